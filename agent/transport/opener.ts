// Opens sessions with a proxy. Decides nothing about the transport: `policy.ts` has the order, `race.ts` chooses at the start of a session,
// and `failover.ts` while it is open.
import { explainTimeout } from "./explain_timeout.ts";
import { connectHedged } from "./hedge.ts";
import { type OutboundRoute, RejectedCredentials, viaOf } from "../outbound_proxy.ts";
import type { ProxyEndpoint } from "../proxy_endpoints.ts";
import { Session, type SessionOptions } from "../session.ts";
import type { LearnedPins } from "../learned_pins.ts";
import { ALPN, keepAlive, TLS_ALPN } from "../../shared/link/link.ts";
import { PROBE_ALPN, runProbe } from "../../shared/link/probe.ts";
import type { Logger } from "../../shared/log/logger.ts";
import { NetError } from "../../shared/net/errors.ts";
import type { Net } from "../../shared/net/net.ts";
import type { AgentSession, QuicTransport, SessionKind, SessionTransport } from "../../shared/net/session.ts";
import type { ClientTls } from "../../shared/net/tls.ts";
import type { TransportPolicy } from "./policy.ts";
import { raceTransports } from "./race.ts";
import { routeTo, type WebSocketUrl } from "./web_socket_url.ts";
import { type ChangeReason, Failover } from "./failover.ts";
import { AdaptiveKeepAlive, type StoredKeepAlives } from "./keep_alive.ts";
import { messageOf } from "../../shared/log/error_message.ts";

/** The link to a proxy has changed its transport, or begins with TLS. */
export interface TransportChange {
  /** Address of the proxy. */
  readonly proxy: string;
  readonly from: SessionKind;
  readonly to: SessionKind;
  readonly reason: ChangeReason;
  /** The error of the transport that was left, if any. */
  readonly error?: string;
}

/** Settings that are read again for every session. */
export interface Access {
  readonly tls: ClientTls;
  readonly credentials: Uint8Array;
  readonly outbound: OutboundRoute;
}

export interface SessionOpenerOptions {
  readonly net: Net;
  readonly log: Logger;
  readonly policy: TransportPolicy;
  /** Where WebSockets are opened. */
  readonly webSocket?: WebSocketUrl;
  /** Reads certificates, credentials and the way out. */
  readonly access: () => Promise<Access>;
  readonly pins: LearnedPins;
  readonly transport: SessionTransport;
  /** Interval of pings in milliseconds; 0: chosen for the network. */
  readonly keepAliveMs: number;
  /** Remembers what was chosen. */
  readonly keepAlives: StoredKeepAlives;
  readonly congestion: QuicTransport["congestion"];
  readonly session: Pick<SessionOptions, "hello" | "tunnels">;
  readonly onChange: (change: TransportChange) => void;
  /** Describes why a connection has failed, with a remedy. */
  readonly explain: (error: unknown, target: ProxyEndpoint) => string;
  /** Cancels everything that is not open yet. */
  readonly signal: AbortSignal;
}

/** Timeout of a connection with its handshake, in milliseconds. */
const HANDSHAKE_TIMEOUT_MS = 10_000;
const PROBE_TIMEOUT_MS = 5_000;
/** Delay in milliseconds before another attempt goes alongside one to an unresponsive proxy, or the outage divided by this if that is longer. */
const ATTEMPT_DELAY_MS = 2_000;
const OUTAGE_DIVISOR = 30;

/** Delay in milliseconds before another transport is tried beside TLS while a session is open. */
const FALLBACK_DELAY_MS = 300;
const PREFERENCE: readonly SessionKind[] = ["quic", "tls", "websocket"];

/** Opens and watches sessions. */
export class SessionOpener {
  readonly #options: SessionOpenerOptions;
  readonly #rejected = new RejectedCredentials();
  /** The last failure that was logged, by proxy. */
  readonly #failures = { tls: new Map<string, string>(), websocket: new Map<string, string>() };

  constructor(options: SessionOpenerOptions) {
    this.#options = options;
  }

  /**
   * Connects to `target` and authenticates.
   * @param outageMs time without a connection so far, in milliseconds
   * @throws {NetError} as the network; `closed` with the proxy's code as `appCode` if it refuses
   */
  async open(target: ProxyEndpoint, outageMs: number): Promise<Session> {
    const { policy, signal } = this.#options;
    const { address } = target;
    const access = await this.#options.access();
    const attemptDelayMs = Math.max(ATTEMPT_DELAY_MS, outageMs / OUTAGE_DIVISOR);
    const { connection, errors } = await raceTransports({
      order: policy.order(address),
      connect: (kind, signal) => this.#connect(kind, target, access, attemptDelayMs, signal),
      fallbackDelayMs: policy.fallbackDelayMs(address),
      retryMs: policy.retryMs(address, attemptDelayMs),
      // a proxy without the TLS link refuses TLS, which says nothing about why QUIC failed; an outbound proxy is there because UDP does not pass
      telling: access.outbound.proxyFor(target) ? "tls" : "quic",
      signal,
    });
    const session = await this.#authenticate(connection, target, access);
    const reason = policy.isRemembered(address, session.transport) ? "remembered" : "blocked";
    this.#linked(target, session, reason, errors.get("quic"));
    return session;
  }

  /** Watches `session` for a better transport, until the result is closed. */
  watch(session: Session, target: ProxyEndpoint): Failover<Session> {
    const { policy, log, keepAliveMs } = this.#options;
    const connect = async (kind: "quic" | "tls", signal: AbortSignal, reason?: ChangeReason) => {
      const access = await this.#options.access();
      const { connection } = await raceTransports({
        order: kind === "tls" && reason === "silent" ? policy.fallbacks : [kind],
        connect: (kind, signal) => this.#connect(kind, target, access, ATTEMPT_DELAY_MS, signal),
        fallbackDelayMs: FALLBACK_DELAY_MS,
        retryMs: ATTEMPT_DELAY_MS,
        telling: kind,
        signal,
      });
      return connection;
    };
    return new Failover<Session>({
      address: target.address,
      session,
      policy,
      connect,
      keepAliveMs: keepAlive(keepAliveMs, "tcp", "agent").keepAliveMs,
      authenticate: async (connection, reason) => {
        const next = await this.#authenticate(connection, target, await this.#options.access());
        this.#linked(target, next, reason);
        if (reason === "silent" && next.transport === "quic") {
          log.info("opened another connection", { proxy: target.address, reason: "nothing arrives on the open one" });
        }
        return next;
      },
      isDirect: async () => (await this.#options.access()).outbound.proxyFor(target) === undefined,
      probe: async (kind, signal) => {
        const access = await this.#options.access();
        return (await runProbe(await this.#connectOnce(kind, target, access, [PROBE_ALPN], PROBE_TIMEOUT_MS, signal))).durationMs;
      },
      log,
    });
  }

  async #authenticate(connection: AgentSession, target: ProxyEndpoint, { tls, credentials, outbound }: Access): Promise<Session> {
    const { log, pins, session: options, keepAliveMs, keepAlives } = this.#options;
    const onPins = (announced: readonly string[]) => pins.learn(target.address, tls, announced);
    const session = await Session.open(connection, { ...options, log, credentials, onPins });
    const { transport } = session;
    if (transport === "quic" && keepAliveMs === 0) {
      session.keepAlive = new AdaptiveKeepAlive({ session, address: target.address, stored: keepAlives, log });
    }
    if (transport !== "quic") session.via = viaOf(outbound.proxyFor(routeTo(target, transport, this.#options.webSocket).server));
    return session;
  }

  /** Records and reports the transport in use. */
  #linked({ address }: ProxyEndpoint, session: Session, reason: ChangeReason, error?: unknown): void {
    const { policy, onChange } = this.#options;
    const { transport: to } = session;
    const from = policy.connected(address, to, reason === "bulk") ?? "quic";
    if (!policy.isAutomatic) return;
    if (to !== "quic") {
      session.linkReason = reason;
      this.#failures[to].delete(address);
    }
    if (from === to) return;
    const left = error === undefined ? undefined : messageOf(error);
    const isBetter = PREFERENCE.indexOf(to) < PREFERENCE.indexOf(from);
    onChange({ proxy: address, from, to, reason: isBetter ? "recovered" : reason, error: left });
  }

  async #connect(
    kind: SessionKind,
    target: ProxyEndpoint,
    access: Access,
    attemptDelayMs: number,
    signal: AbortSignal,
  ): Promise<AgentSession> {
    const { net, log, policy, explain } = this.#options;
    const alpn = kind === "quic" ? ALPN : TLS_ALPN;
    const connect = (signal: AbortSignal) => this.#connectOnce(kind, target, access, alpn, HANDSHAKE_TIMEOUT_MS, signal);
    const attempt = connectHedged(connect, { restartMs: attemptDelayMs, signal });
    if (kind === "quic") return await explainTimeout(net, log, target, attempt);
    return await attempt.catch((error) => {
      const isAnswer = error instanceof NetError && (error.code === "tls" || (error.code === "reset" && kind === "websocket"));
      const isViaProxy = access.outbound.proxyFor(routeTo(target, kind, this.#options.webSocket).server) !== undefined;
      const isTelling = isAnswer || (isViaProxy && error instanceof NetError && error.code !== "cancelled");
      if (policy.isAutomatic && isTelling) this.#reportFailure(kind, target, explain(error, target));
      throw error;
    });
  }

  async #connectOnce(
    kind: SessionKind,
    target: ProxyEndpoint,
    { tls, outbound }: Access,
    alpn: string[],
    timeoutMs: number,
    signal: AbortSignal,
  ): Promise<AgentSession> {
    const { net, pins, keepAliveMs, congestion } = this.#options;
    const transport = { ...this.#options.transport, ...keepAlive(keepAliveMs, kind === "quic" ? "quic" : "tcp", "agent") };
    const { host, port, serverName } = target;
    const common = { host, port, serverName, tls: pins.extend(target.address, tls), alpn, timeoutMs, signal };
    if (kind === "quic") return await net.connectQuic({ ...common, transport: { ...transport, congestion } });
    const { server, webSocket } = routeTo(target, kind, this.#options.webSocket);
    const outboundProxy = outbound.proxyFor(server);
    const wanted = { ...common, host: server.host, port: server.port, transport, webSocket, outboundProxy };
    return await this.#rejected.connect(outboundProxy, () => net.connectTlsLink(wanted));
  }

  /** An outbound proxy fails, or something answers that is not the proxy or inspects TLS: a reason of its own. Logged once for each. */
  #reportFailure(kind: "tls" | "websocket", { address }: ProxyEndpoint, reason: string): void {
    const failures = this.#failures[kind];
    if (failures.get(address) === reason) return;
    failures.set(address, reason);
    this.#options.log.warn(`the proxy cannot be reached ${kind === "tls" ? "over TLS" : "within a WebSocket"}`, {
      proxy: address,
      reason,
    });
  }
}
