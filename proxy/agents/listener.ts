// The listeners for agents, over QUIC and over TLS, and the log of handshakes that fail.
import { networksOf } from "../../shared/address/allow_list.ts";
import { splitHostPort } from "../../shared/address/host_port.ts";
import { unlimitedIfZero } from "../../shared/limits/limit.ts";
import { ALPN, CloseCode, CREDENTIALS_ALPN, keepAlive, PROXY_TRANSPORT, TLS_ALPN } from "../../shared/link/link.ts";
import { PROBE_ALPN } from "../../shared/link/probe.ts";
import { NetError } from "../../shared/net/errors.ts";
import type { ListenSessionsOptions, SessionListener, SessionSettings } from "../../shared/net/session.ts";
import type { ServerTls } from "../../shared/net/tls.ts";
import { type Change, differs } from "../../shared/service/change.ts";
import type { ServiceRuntime } from "../../shared/service/runtime.ts";
import { NO_LISTENER, type ProxyOptions } from "../options.ts";

/** The largest limit that the network accepts. */
const MAX_HANDSHAKES = 1_000_000;
/** Protocols of probes and checks. They come first, because an agent offers them together with the protocols that older proxies know. */
const CHECKS_ALPN = [CREDENTIALS_ALPN, PROBE_ALPN];
/** Attempts to find a port that is free for UDP and TCP, where the system chooses it. */
const MAX_PORTS = 16;

/** Where agents connect, by the options. */
interface Places {
  readonly quic: string;
  /** Empty if only clients' listeners pass connections on; `undefined` for no TCP. */
  readonly tls?: string;
  /** Whether both have one port, which the system may choose. */
  readonly isOnePort: boolean;
}

/** The listeners for agents, until the service closes. */
export class AgentListeners {
  readonly #runtime: ServiceRuntime;
  readonly #countFailed: CountFailed;
  #options: ProxyOptions;
  #places: Places;
  #quic!: SessionListener;
  #tls?: SessionListener;

  private constructor(runtime: ServiceRuntime, options: ProxyOptions, countFailed: CountFailed) {
    this.#runtime = runtime;
    this.#options = options;
    this.#places = placesOf(options);
    this.#countFailed = countFailed;
  }

  /**
   * Listens for agents.
   * @param countFailed counts handshakes that were refused or failed
   * @throws {NetError} as `listenQuic` of the network
   */
  static async open(runtime: ServiceRuntime, options: ProxyOptions, tls: ServerTls, countFailed: CountFailed): Promise<AgentListeners> {
    const listeners = new AgentListeners(runtime, options, countFailed);
    const { isOnePort, quic, tls: tlsAddress } = listeners.#places;
    if (tlsAddress === undefined) logPortTaken(options, runtime);
    if (isOnePort) {
      const both = await listenOnBoth(
        quic,
        (address) => listeners.#listenQuic(address, tls),
        (address) => listeners.#listenTls(address, tls),
      );
      [listeners.#quic, listeners.#tls] = [both.quic, both.tls];
    } else {
      listeners.#quic = await listeners.#listenQuic(quic, tls);
      const close = () => listeners.#quic.close(CloseCode.shutdown, "");
      if (tlsAddress !== undefined) {
        listeners.#tls = await listeners.#listenTls(tlsAddress, tls).catch(async (error) => {
          await close();
          throw error;
        });
      }
    }
    runtime.defer(async () => void await Promise.all(listeners.all.map((each) => each.close(CloseCode.shutdown, "shutting down"))));
    return listeners;
  }

  /** That of QUIC. */
  get quic(): SessionListener {
    return this.#quic;
  }

  /** Missing if agents connect over QUIC only. Has no address if only clients' listeners pass connections on. */
  get tls(): SessionListener | undefined {
    return this.#tls;
  }

  get all(): SessionListener[] {
    return this.#tls ? [this.#quic, this.#tls] : [this.#quic];
  }

  #listenQuic(address: string, tls: ServerTls): Promise<SessionListener> {
    return this.#runtime.net.listenQuic({ ...this.#settings(true), ...this.#onFailure(), tls, address, alpn: [...CHECKS_ALPN, ...ALPN] });
  }

  #listenTls(address: string, tls: ServerTls): Promise<SessionListener> {
    const alpn = [...CHECKS_ALPN, ...TLS_ALPN];
    return this.#runtime.net.listenTlsLink({ ...this.#settings(false), ...this.#onFailure(), tls, address: address || undefined, alpn });
  }

  #settings(isQuic: boolean): SessionSettings {
    const { agentServer: { keepAlive: keepAliveMs, congestionControl: congestion }, limits } = this.#options;
    const transport = { ...PROXY_TRANSPORT, ...keepAlive(keepAliveMs, isQuic ? "quic" : "tcp", "proxy") };
    return {
      transport: isQuic ? { ...transport, congestion } : transport,
      maxPendingHandshakes: Math.min(unlimitedIfZero(limits.handshakes), MAX_HANDSHAKES),
      pendingHandshakesPerAddress: { max: limits.handshakesPerAddress, exempt: networksOf(limits.exemptAddresses) },
      retryThreshold: limits.retryThreshold,
    };
  }

  /** Counts and logs handshakes that fail. */
  #onFailure(): Pick<ListenSessionsOptions, "onHandshakeError"> {
    const { limitReporter, logLimit } = this.#runtime;
    return {
      onHandshakeError: ({ remote, error, count }) => {
        const { handshakes, handshakesPerAddress } = this.#options.limits;
        const isLimit = error.code === "limit" || error.code === "limit-per-address";
        this.#countFailed(isLimit ? "refused" : "failed", count);
        if (error.code === "limit") limitReporter.record("handshakes", { remote, max: handshakes, reason: error.message }, count);
        else if (error.code === "limit-per-address") {
          limitReporter.record("handshakes-per-address", { remote, max: handshakesPerAddress }, count);
        } else logLimit.warn("agent handshake failed", { remote, reason: describeHandshake(error) });
      },
    };
  }

  /**
   * Prepares other options: opens listeners at new addresses. `use` is called with the opened listeners and with the unused ones.
   * @throws {NetError} as {@link open}
   */
  async prepare(change: Change, next: ProxyOptions, tls: ServerTls, use: (opened: SessionListener[], left: SessionListener[]) => void) {
    const [before, places] = [{ options: this.#options, places: this.#places, quic: this.#quic, tls: this.#tls }, placesOf(next)];
    this.#options = next; // new listeners have the new settings
    const opened: SessionListener[] = [];
    change.onRevert(async () => {
      [this.#options, this.#places, this.#quic, this.#tls] = [before.options, before.places, before.quic, before.tls];
      await Promise.all(opened.map((each) => each.close(CloseCode.shutdown, "")));
    });
    const [isSameQuic, isSameTls] = [places.quic === before.places.quic, places.tls === before.places.tls];
    if (places.isOnePort && !(isSameQuic && isSameTls)) {
      const both = await listenOnBoth(places.quic, (address) => this.#listenQuic(address, tls), (address) => this.#listenTls(address, tls));
      opened.push(both.quic, both.tls);
      [this.#quic, this.#tls] = [both.quic, both.tls];
    } else {
      if (!isSameQuic) opened.push(this.#quic = await this.#listenQuic(places.quic, tls));
      if (!isSameTls && places.tls === undefined) this.#tls = undefined;
      else if (!isSameTls) opened.push(this.#tls = await this.#listenTls(places.tls!, tls));
    }
    this.#places = places;
    change.onCommit(() => {
      const { log } = this.#runtime;
      const left = [before.quic, before.tls].filter((each) =>
        each !== undefined && each !== this.#quic && each !== this.#tls
      ) as SessionListener[];
      for (const { address } of opened) log.info("listener for agents opened", { address: address || undefined });
      for (const { address } of left) {
        log.info("listener for agents closed; the agents connected to it stay", { address: address || undefined });
      }
      use(opened, left);
      this.#configure(before.options);
    });
  }

  #configure(before: ProxyOptions): void {
    const of = ({ agentServer: { keepAlive, congestionControl }, limits }: ProxyOptions) => {
      const { handshakes, handshakesPerAddress, exemptAddresses, retryThreshold } = limits;
      return [keepAlive, congestionControl, handshakes, handshakesPerAddress, exemptAddresses, retryThreshold];
    };
    if (!differs(of(before), of(this.#options))) return;
    this.#quic.configure(this.#settings(true));
    this.#tls?.configure(this.#settings(false));
  }
}

type CountFailed = (outcome: "refused" | "failed", count: number) => void;

function placesOf(options: ProxyOptions): Places {
  const { listenAddress: quic, tcpListenAddress } = options.agentServer;
  if (tcpListenAddress === NO_LISTENER || (tcpListenAddress === undefined && takenBy(options) !== undefined)) {
    return { quic, tls: usesClientPort(options) ? "" : undefined, isOnePort: false };
  }
  return { quic, tls: tcpListenAddress ?? quic, isOnePort: tcpListenAddress === undefined };
}

/** Whether agents connect to the port of clients. */
function usesClientPort({ agentServer: { shareClientPort, websocketPath } }: ProxyOptions): boolean {
  return shareClientPort || websocketPath !== undefined;
}

/** The option by which the proxy itself uses the TCP port for clients or operators. */
function takenBy({ agentServer, httpProxy, admin }: ProxyOptions): string | undefined {
  const { port } = splitHostPort(agentServer.listenAddress);
  const others = { "--http-proxy.listen-address": httpProxy.listenAddress, "--admin.listen-address": admin.listenAddress };
  return Object.entries(others).find(([, address]) => address && port !== 0 && splitHostPort(address).port === port)?.[0];
}

function logPortTaken(options: ProxyOptions, { log }: ServiceRuntime): void {
  const taken = options.agentServer.tcpListenAddress === undefined ? takenBy(options) : undefined;
  if (taken === undefined) return;
  const { port } = splitHostPort(options.agentServer.listenAddress);
  log.info("agents connect over QUIC only", { reason: `${taken} has the TCP port ${port}; set --agent-server.tcp-listen-address` });
}

/**
 * Listens on the same port of UDP and TCP; where the system chooses the port, it may be free for only one of them.
 * @throws {NetError}
 */
async function listenOnBoth(
  address: string,
  listenQuic: (address: string) => Promise<SessionListener>,
  listenTls: (address: string) => Promise<SessionListener>,
): Promise<{ readonly quic: SessionListener; readonly tls: SessionListener }> {
  for (let attempts = 1;; attempts++) {
    const quic = await listenQuic(address);
    try {
      return { quic, tls: await listenTls(address.replace(/:0+$/, /:[0-9]+$/.exec(quic.address)![0])) };
    } catch (cause) {
      await quic.close(CloseCode.shutdown, "");
      if (!(cause instanceof NetError) || cause.code !== "address-in-use") throw cause;
      if (splitHostPort(address).port === 0 && attempts < MAX_PORTS) continue;
      const advice = "agents may connect over TCP too: set --agent-server.tcp-listen-address to a free address, or to none";
      throw new NetError(cause.code, `${cause.message}; ${advice}`, { cause });
    }
  }
}

/** The network's message does not say which side dialled: in a handshake with this listener it was an agent. */
function describeHandshake({ message, code, remote }: NetError): string {
  const reason = message.replace(/^Cannot connect to \S+: (?:aborted by peer: )?/, "");
  if (!remote) return reason;
  return code === "tls"
    ? `the agent does not accept this proxy, and its log says why: ${reason}`
    : `the agent gave up during the handshake, which is harmless if another transport was faster: ${reason}`;
}
