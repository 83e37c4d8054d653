// The connections of an agent to its proxies, by one set of options: one reconnector for each. Other options get connections of their own,
// and these retire.
import type { Fetch } from "../shared/auth/fetch.ts";
import { Backoff } from "../shared/async/backoff.ts";
import { agentTransport } from "../shared/link/link.ts";
import type { Hello } from "../shared/link/message.ts";
import type { Logger } from "../shared/log/logger.ts";
import type { Net } from "../shared/net/net.ts";
import type { ClientTls } from "../shared/net/tls.ts";
import type { SecretFiles } from "../shared/files/secret_files.ts";
import type { ReloadableTls } from "../shared/tls/reloadable_tls.ts";
import type { Credentials, CredentialsSource } from "./credentials.ts";
import { IssuedCredentials } from "./issued_credentials.ts";
import { CredentialsWatch } from "./credentials_watch.ts";
import { describeConnectError } from "./connection_errors.ts";
import type { LearnedPins } from "./learned_pins.ts";
import type { AgentOptions } from "./options.ts";
import { type Environment, type OutboundRoute, readOutboundRoute, viaOf } from "./outbound_proxy.ts";
import { type ProxyEndpoint, ProxyEndpoints, type Resolve } from "./proxy_endpoints.ts";
import { Reconnector } from "./reconnector.ts";
import type { Session } from "./session.ts";
import { type Access, SessionOpener, type TransportChange } from "./transport/opener.ts";
import { TransportPolicy } from "./transport/policy.ts";
import type { StoredTransports } from "./transport/stored_transports.ts";
import { parseWebSocketUrl } from "./transport/web_socket_url.ts";
import type { TunnelOptions } from "./tunnel.ts";

export interface ConnectionsOptions {
  readonly net: Net;
  readonly log: Logger;
  readonly options: AgentOptions;
  readonly tls: ReloadableTls<ClientTls>;
  /** Missing if an issuer has them. */
  readonly credentials?: CredentialsSource;
  /** Asks the issuer. Default: the runtime's. */
  readonly fetch?: Fetch;
  /** The way out, as first read. */
  readonly outbound: OutboundRoute;
  readonly environment: Environment;
  readonly memory: StoredTransports;
  readonly pins: LearnedPins;
  readonly secrets: SecretFiles;
  readonly hello: Hello;
  readonly tunnels: TunnelOptions;
  readonly maxTunnels: number;
  readonly resolve: Resolve;
  /** Creates the backoff between attempts, one per connection. */
  readonly backoff: () => Backoff;
  /** Lifetime of a connection, in milliseconds, that resets the backoff. */
  readonly settledAfterMs: number;
  /** Time in milliseconds between two looks at the token's file. */
  readonly tokenIntervalMs: number;
  readonly random: () => number;
  readonly onConnected: (session: Session) => void;
  readonly onChange: (change: TransportChange) => void;
}

/** Backoff after short connections that a proxy has closed cleanly, because it is restarting. */
const RECONNECT_BACKOFF = { initialMs: 100, maxMs: 1_000 };

/** Keeps connections until it is stopped. */
export class Connections {
  readonly #given: ConnectionsOptions;
  readonly #sessions = new Set<Session>();
  readonly #stopping = new AbortController();
  readonly #watch?: CredentialsWatch;
  readonly #running: Promise<void>[];
  readonly #connected = Promise.withResolvers<void>();
  readonly #issued?: IssuedCredentials;
  readonly #read: () => Promise<Credentials>;
  #agentId: string;

  constructor(given: ConnectionsOptions) {
    this.#given = given;
    const { net, log, options, credentials, outbound, resolve, random, memory } = given;
    const { serverAddress, transport, websocketUrl, quicProbeInterval, connections, congestionControl, keepAlive } = options.agentClient;
    const { signal } = this.#stopping;
    this.#agentId = credentials?.agentId ?? options.auth.oidc.clientId!;
    const sessions = this.#sessions;
    const issued = credentials ? undefined : new IssuedCredentials({ auth: options.auth, sessions, log, fetch: given.fetch });
    this.#issued = issued;
    this.#read = () => (credentials ?? issued!).read();
    const explain = (error: unknown, { address }: ProxyEndpoint) => describeConnectError(error, address, options);
    const link = new SessionOpener({
      net,
      log,
      webSocket: websocketUrl === undefined ? undefined : parseWebSocketUrl(websocketUrl),
      policy: new TransportPolicy({
        transport,
        hasWebSocket: websocketUrl !== undefined,
        memory,
        probeIntervalMs: quicProbeInterval,
        random,
      }),
      access: () => this.#readAccess(),
      pins: given.pins,
      transport: agentTransport(given.maxTunnels),
      keepAliveMs: keepAlive,
      keepAlives: memory,
      congestion: congestionControl,
      session: { hello: given.hello, tunnels: given.tunnels },
      onChange: given.onChange,
      explain,
      signal,
    });
    // a single connection uses the first address of a name that responds; several use one address each
    const targets = new ProxyEndpoints(shuffle(serverAddress, random), connections > 1 ? resolve : undefined);
    const vias = new Set(targets.all.map((target) => viaOf(outbound.proxyFor(target))).filter((via) => via !== undefined));
    log.info("connecting", { proxy: serverAddress.join(","), via: [...vias].join(",") || undefined }); // without a response, nothing else is logged for a while
    this.#running = Array.from({ length: connections }, () =>
      new Reconnector({
        targets,
        open: (target, outageMs) => link.open(target, outageMs),
        watch: (session, target) => link.watch(session, target),
        describe: explain,
        onConnected: (session) => this.#opened(session),
        settledAfterMs: given.settledAfterMs,
        backoff: given.backoff(),
        reconnectBackoff: new Backoff({ ...RECONNECT_BACKOFF, random }),
        hasOtherConnection: () => [...this.#sessions].some(({ isOpen, isLeaving }) => isOpen && !isLeaving),
        random,
        log,
        signal,
      }).run());
    const { file } = credentials ?? {};
    if (file === undefined) return;
    this.#watch = new CredentialsWatch({ file, read: this.#read, sessions, intervalMs: given.tokenIntervalMs, log });
  }

  /** The agent id of the last credentials that were read. */
  get agentId(): string {
    return this.#agentId;
  }

  /** Resolves when the first connection is open; otherwise it stays pending. */
  get connected(): Promise<void> {
    return this.#connected.promise;
  }

  #opened(session: Session): void {
    this.#sessions.add(session);
    void session.closed.then(() => this.#sessions.delete(session)); // never rejects
    if (this.#stopping.signal.aborted) session.close(); // it was opened while this was stopped
    this.#given.onConnected(session);
    this.#connected.resolve();
  }

  /** Reads certificates, credentials and the way out. */
  async #readAccess(): Promise<Access> {
    const { options, tls, secrets, log, environment } = this.#given;
    await tls.reload();
    const credentials = await this.#read();
    this.#agentId = credentials.agentId;
    if (credentials.expiresAt <= Date.now()) {
      log.warn("token has expired", { agent: credentials.agentId, at: new Date(credentials.expiresAt).toISOString() });
    }
    const { file } = credentials;
    if (file !== undefined && `file:${file}` !== options.join) await secrets.check("--auth.jwt.token", file);
    if (options.join?.startsWith("file:")) await secrets.check("--join", options.join.slice("file:".length));
    const outbound = await readOutboundRoute(options.agentClient, environment);
    if (outbound.file !== undefined) await secrets.check("--agent-client.proxy", outbound.file);
    return { tls: tls.current, credentials: credentials.bytes, outbound };
  }

  /** Opens no more connections. Those that are open stay. */
  stop(): void {
    this.#stopping.abort();
    this.#watch?.close();
    this.#issued?.close();
  }

  /** Opens no more connections, and ends those that are open when their tunnels have ended. Resolves then. Never rejects. */
  async retire(): Promise<void> {
    this.stop();
    await Promise.all([...this.#sessions].map((session) => {
      session.isLeaving = session.isRetired = true;
      return session.retire();
    }));
    await this.done;
  }

  /** Resolves when no connection is being opened, after {@link stop}. */
  get done(): Promise<void> {
    return Promise.all(this.#running).then(() => {});
  }
}

/** Shuffles, so that agents with the same list do not all begin with the same proxy. */
function shuffle<T>(items: readonly T[], random: () => number): T[] {
  return items.map((item) => ({ item, at: random() })).toSorted((a, b) => a.at - b.at).map(({ item }) => item);
}
