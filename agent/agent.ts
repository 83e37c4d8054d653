// Assembles the agent: one reconnector per connection to a proxy, and the tunnels served through them.
import { hostname } from "node:os";
import { publishRequest } from "../shared/frontend/forwards/published.ts";
import { createRequestIds } from "../shared/frontend/access_log.ts";
import { Change, differs } from "../shared/service/change.ts";
import { checkAdminOptions } from "../shared/service/admin.ts";
import type { AgentState, DisconnectRequest } from "../shared/service/api/types.ts";
import { ActionRefused } from "../shared/service/api/operations.ts";
import { SessionStates } from "../shared/service/live/sessions.ts";
import type { Fetch } from "../shared/auth/fetch.ts";
import { parseAuthority } from "../shared/address/authority.ts";
import { Backoff } from "../shared/async/backoff.ts";
import { isolateHook } from "../shared/log/isolate.ts";
import { DATAGRAMS_FEATURE, type Hello, PINS_FEATURE, TRACE_FEATURE, UDP_FEATURE } from "../shared/link/message.ts";
import { unlimitedIfZero } from "../shared/limits/limit.ts";
import { reportDescriptors, withinDescriptors } from "../shared/limits/resources.ts";
import { TunnelLimits } from "../shared/limits/tunnels.ts";
import { type Logger, silentLogger } from "../shared/log/logger.ts";
import { quantity } from "../shared/log/quantity.ts";
import type { Net } from "../shared/net/net.ts";
import type { Tracer } from "../shared/tracing/span.ts";
import type { Metrics, TunnelMetrics } from "../shared/service/metrics.ts";
import { type ServiceDeps, type ServiceRuntime, startService } from "../shared/service/runtime.ts";
import { SecretFiles } from "../shared/files/secret_files.ts";
import type { StateDirectory } from "../shared/files/state_directory.ts";
import type { ClientTls } from "../shared/net/tls.ts";
import { openClientTls, type TlsCheck } from "../shared/tls/reloadable_tls.ts";
import { TunnelError } from "../shared/tunnel/errors.ts";
import { VERSION } from "../shared/version.ts";
import { withTimeout } from "../shared/async/with_timeout.ts";
import { Connections, type ConnectionsOptions } from "./connections.ts";
import { checkIssuerOptions, type Credentials, openCredentials, readCredentials } from "./credentials.ts";
import { Generations } from "./generations.ts";
import { OpenSessions } from "./open_sessions.ts";
import { StoredTransports } from "./transport/stored_transports.ts";
import type { TransportChange } from "./transport/opener.ts";
import { LearnedPins } from "./learned_pins.ts";
import { type AgentOptions, checkTransport, parseLabels } from "./options.ts";
import { type Environment, type OutboundRoute, readOutboundRoute } from "./outbound_proxy.ts";
import { checkTracingOptions } from "../shared/tracing/otlp.ts";
import type { Session } from "./session.ts";
import { createDestinationPolicy } from "./destination_policy.ts";
import type { Resolve } from "./proxy_endpoints.ts";
import type { TunnelOptions } from "./tunnel.ts";

/** The agent's dependencies and hooks. */
export interface AgentDeps extends ServiceDeps {
  /** Creates the backoff between attempts, one per connection. Default 0.5 s to 30 s. */
  backoff?: () => Backoff;
  /** Lifetime of a connection, in milliseconds, that resets the backoff. Default 30000. */
  settledAfterMs?: number;
  /** Random number in [0, 1). Default `Math.random`. */
  random?: () => number;
  /** Directory for state if the options name none. Default: nothing is kept. */
  stateDirectory?: string;
  /** Environment variables, which may name an outbound proxy. Default: none. */
  environment?: Environment;
  /** Resolves a name to all its addresses. Default: the network's `resolve`. */
  resolve?: Resolve;
  /** Time in milliseconds between two looks at the token's file. Default 10000. */
  tokenIntervalMs?: number;
  /** For requests to the issuer of its tokens. Default: the runtime's. */
  fetch?: Fetch;
  /** A proxy has accepted the agent. */
  onConnected?: (proxy: { remote: string }) => void;
  onDisconnected?: (proxy: { remote: string; reason: string }) => void;
}

/** A running agent. */
export interface Agent {
  /** The bound address of the admin server; `undefined` without `admin.listenAddress`. */
  readonly adminAddress?: string;
  /** Addresses of the proxies it is connected to. */
  readonly proxies: readonly string[];
  /**
   * Stops gracefully: tells proxies to prefer other agents, serves what still arrives (with version 1 of the link, refuses it), waits up to
   * `drain.timeout` until the open tunnels have ended, then closes. {@link close} ends the wait.
   */
  drain(): Promise<void>;
  /** Resolves when it has closed: after {@link close}, {@link drain}, or a drain that an operator has asked for. */
  readonly closed: Promise<void>;
  /** Resolves when another process has taken over by `handover.socket`; this one serves open tunnels until they end, and closes. */
  readonly handedOver: Promise<void>;
  /** Reloads certificates and keys. The token is read at every connect anyway. */
  reload(): Promise<void>;
  /** Closes all connections and tunnels. */
  close(): Promise<void>;
}

/** An agent whose options can be changed. */
export interface UpdatableAgent extends Agent {
  /**
   * Applies options that can be reloaded; the others are ignored. Options of connections get new ones; those that are open stay until the first
   * of these is open, and then until their tunnels have ended. Tunnels to destinations that are no longer allowed are cut, unless
   * `reload.forbidden` says otherwise. Not while another call is pending. Resolves with the number of tunnels that were cut.
   * @throws {ConfigError} for options that cannot be used
   * @throws {NetError} if the admin address cannot be listened on; in each case nothing has changed
   */
  update(options: AgentOptions): Promise<{ readonly tunnelsCut: number }>;
}

/** Time in milliseconds between two looks at the token's file. */
const TOKEN_INTERVAL_MS = 10_000;
/** Time in milliseconds to connect before the agent takes over from another process. */
const TAKE_OVER_TIMEOUT_MS = 60_000;

/**
 * Starts an agent. Resolves without waiting for a connection; the agent reconnects until it is closed.
 * @throws {ConfigError} for invalid options
 * @throws {NetError} if the admin address cannot be bound
 */
export async function startAgent(options: AgentOptions, deps: AgentDeps): Promise<UpdatableAgent> {
  return await startService<UpdatableAgent>("agent", deps, async (runtime) => {
    const agent = new RunningAgent(runtime, options, deps, await openAll(runtime, options, deps));
    await agent.start();
    return agent;
  }, options.handover);
}

/** Resources that an agent opens before it connects. */
interface Opened {
  readonly prepared: Prepared;
  readonly memory: StoredTransports;
  readonly pins: LearnedPins;
  readonly tracer?: Tracer;
}

/** Opens it; the runtime closes it. */
async function openAll(runtime: ServiceRuntime, options: AgentOptions, deps: AgentDeps): Promise<Opened> {
  const { net, log, admin } = runtime;
  const prepared = await prepare(options, net, log, deps);
  const memory = runtime.adopt(await StoredTransports.open(stateDirectoryOf(options, deps), log), (memory) => memory.close());
  const pins = runtime.adopt(await LearnedPins.open(options.stateDir || deps.stateDirectory, log), (pins) => pins.close());
  await admin.listen(options.admin);
  if (admin.address !== undefined) log.info("listening", { admin: admin.address });
  return { prepared, memory, pins, tracer: await runtime.openTracer(options.tracing) };
}

/** An agent that connects until it is closed. */
class RunningAgent implements UpdatableAgent {
  readonly #runtime: ServiceRuntime;
  readonly #deps: AgentDeps;
  readonly #opened: Opened;
  readonly #sessions: OpenSessions;
  readonly #limits: TunnelLimits;
  readonly #tunnels: TunnelOptions;
  readonly #generations: Generations;
  readonly #secrets: SecretFiles;
  readonly #resolve: Resolve;
  readonly #countChange: (change: TransportChange) => void;
  /** To proxies, a process that takes over is the same one with another connection. */
  readonly #instance: string;
  readonly #drainRequested = Promise.withResolvers<void>();
  #options: AgentOptions;
  /** Those by the options in force, and their certificate. */
  #connections: Connections;
  #tls: Prepared["tls"];

  constructor(runtime: ServiceRuntime, options: AgentOptions, deps: AgentDeps, opened: Opened) {
    const { net, log, metrics, handover } = runtime;
    this.#runtime = runtime;
    this.#deps = deps;
    this.#opened = opened;
    this.#options = options;
    this.#tls = opened.prepared.tls;
    this.#secrets = new SecretFiles(log);
    this.#resolve = deps.resolve ?? ((host, options) => net.resolve(host, options));
    this.#sessions = new OpenSessions({
      log,
      health: runtime.health,
      agentClient: () => this.#options.agentClient,
      onConnected: isolateHook("onConnected", deps.onConnected, log),
      onDisconnected: isolateHook("onDisconnected", deps.onDisconnected, log),
    });
    const { tunnelMetrics, countChange } = registerMetrics(metrics, this.#sessions);
    this.#countChange = countChange;
    runtime.certificates.watch("proxies", () => this.#tls.current.cert);
    this.#limits = runtime.adopt(
      new TunnelLimits({
        ...options.limits,
        tunnels: maxTunnelsOf(options, log),
        createRate: (rate) => net.createRate(rate),
        buffers: net,
        reports: runtime.limitReporter,
      }),
      (limits) => limits.close(),
    );
    this.#tunnels = {
      net,
      log,
      limits: this.#limits,
      ...tunnelValues(options, this.#resolve),
      activity: runtime.activity,
      tracer: opened.tracer,
      nextKey: createRequestIds(),
      onEnd: (end) => tunnelMetrics.ended(end),
    };
    this.#instance = handover.predecessor?.state.instance ?? crypto.randomUUID();
    handover.state = { instance: this.#instance };
    this.#generations = new Generations(runtime, this.#sessions);
    this.#connections = this.#connect(options, opened.prepared);
    runtime.defer(async () => {
      await this.#generations.done();
      await this.#sessions.closed();
    });
    runtime.defer(() => {
      this.#generations.stop();
      this.#sessions.close();
    });
  }

  /** Opens connections by other options. Earlier ones stay until these are open. */
  #connect(options: AgentOptions, prepared: Prepared): Connections {
    const { net, log } = this.#runtime;
    const { fetch, environment = {}, random = Math.random, backoff, settledAfterMs = 30_000, tokenIntervalMs = TOKEN_INTERVAL_MS } =
      this.#deps;
    const { memory, pins } = this.#opened;
    const connections: Connections = new Connections({
      net,
      log,
      options,
      ...prepared,
      environment,
      memory,
      pins,
      secrets: this.#secrets,
      hello: helloOf(options, this.#instance),
      tunnels: this.#tunnels,
      maxTunnels: maxTunnelsOf(options, log),
      fetch,
      resolve: this.#resolve,
      backoff: backoff ?? (() => new Backoff({ random })),
      settledAfterMs,
      tokenIntervalMs,
      random,
      onConnected: (session) => this.#sessions.add(session, connections.agentId),
      onChange: (change) => {
        this.#countChange(change);
        log.info("link changed", { ...change });
      },
    });
    this.#generations.add(connections, prepared.tls, () => this.#options.agentClient.tls.refresh);
    return connections;
  }

  /** Waits for a connection if it takes over from another process, and lets operators in. */
  async start(): Promise<void> {
    const runtime = this.#runtime;
    const sessions = this.#sessions;
    runtime.describe = () => describeService(sessions, runtime.isDraining, this.#options);
    runtime.handover.finish = async (settle) => {
      settle();
      await Promise.race([this.#finishTunnels(this.#options.handover.timeout), this.#drainRequested.promise]);
    };
    if (runtime.handover.predecessor) await connectInTime(sessions, this.#options); // until then, the predecessor serves
    const states = new SessionStates();
    runtime.serveAdmin({
      agents: () => [...sessions.all].map((session) => describeSession(this.#connections.agentId, session, states)),
      population: () => ({ agents: sessions.all.size }),
      disconnect: (request, by) => disconnect(sessions.all, request, by),
      drain: () => this.drain(),
    });
  }

  get adminAddress(): string | undefined {
    return this.#runtime.admin.address;
  }

  get proxies(): readonly string[] {
    return [...this.#sessions.all].map(({ remote }) => remote);
  }

  get closed(): Promise<void> {
    return this.#runtime.closed;
  }

  get handedOver(): Promise<void> {
    return this.#runtime.handover.done;
  }

  drain(): Promise<void> {
    const { timeout: timeoutMs } = this.#options.drain;
    if (this.#runtime.handover.isDone) void this.#finishTunnels(timeoutMs).then(this.#drainRequested.resolve); // sooner than planned
    return this.#runtime.drain({
      fields: { tunnels: this.#sessions.tunnels, timeoutMs },
      delayMs: 0,
      finish: () => this.#finishTunnels(timeoutMs),
    });
  }

  async #finishTunnels(limitMs: number): Promise<void> {
    this.#generations.stop();
    await this.#sessions.drain(limitMs);
  }

  reload(): Promise<void> {
    return this.#runtime.reload();
  }

  close(): Promise<void> {
    return this.#runtime.close();
  }

  async update(next: AgentOptions): Promise<{ tunnelsCut: number }> {
    const { net, log } = this.#runtime;
    const before = this.#options;
    const isOther = differs(connectionOptions(before), connectionOptions(next));
    const prepared = isOther ? await prepare(next, net, log, this.#deps) : undefined;
    await Change.run(async (change) => {
      if (differs(before.admin, next.admin)) await this.#runtime.admin.prepare(change, next.admin);
      change.onCommit(() => this.#apply(next, prepared));
    });
    const listsOf = ({ agentClient: { hostWhitelist, hostDenylist } }: AgentOptions) => [hostWhitelist, hostDenylist];
    if (!differs(listsOf(before), listsOf(next)) || next.reload.forbidden === "keep") return { tunnelsCut: 0 };
    return { tunnelsCut: await cutForbidden(this.#tunnels, this.#runtime) };
  }

  /** @param prepared missing if the connections stay */
  #apply(next: AgentOptions, prepared: Prepared | undefined): void {
    this.#options = next;
    this.#limits.update({ ...next.limits, tunnels: maxTunnelsOf(next, this.#runtime.log) });
    Object.assign(this.#tunnels, tunnelValues(next, this.#resolve));
    if (prepared === undefined || this.#runtime.isDraining) return;
    this.#connections = this.#connect(next, prepared);
    this.#tls = prepared.tls;
  }
}

/** What connections are opened with, besides the options. */
type Prepared = Pick<ConnectionsOptions, "tls" | "outbound" | "credentials">;

/** Checks the options, and reads the files that they refer to. */
async function prepare(options: AgentOptions, net: Net, log: Logger, deps: AgentDeps): Promise<Prepared> {
  const { outbound } = await checkAgentOptions(options, { net, environment: deps.environment });
  const tls = await openClientTls("agent-client.tls", options.agentClient.tls, { ...deps, log });
  return { tls, outbound, credentials: await openCredentials(options) };
}

/** The maximum number of tunnels: as configured, or as many as the file descriptor limit permits. */
function maxTunnelsOf({ limits: { tunnels } }: AgentOptions, log: Logger): number {
  const requested = unlimitedIfZero(tunnels);
  const { connections } = withinDescriptors({ connections: requested, pendingRequests: 0 }, 1);
  if (connections < requested) reportDescriptors(log, "tunnels", connections);
  return connections;
}

/** The agent's hello to proxies. */
function helloOf({ agentClient: { labels, publish } }: AgentOptions, instance: string): Hello {
  return {
    version: `reverse-http/${VERSION}`,
    instance,
    host: hostname(),
    labels: parseLabels(labels),
    features: [UDP_FEATURE, DATAGRAMS_FEATURE, TRACE_FEATURE, PINS_FEATURE],
    publish: publish.map(publishRequest),
  };
}

/** Describes the service in one line. */
function describeService(sessions: OpenSessions, isDraining: boolean, { agentClient: { serverAddress } }: AgentOptions): string {
  if (sessions.all.size === 0) return isDraining ? "Draining" : `Connecting to ${serverAddress.join(", ")}`;
  const remotes = [...sessions.all].map(({ remote }) => remote).join(", ");
  return `${isDraining ? "Draining" : "Connected"}: ${remotes}, ${quantity(sessions.tunnels, "tunnel")}`;
}

/** Waits until a process that takes over has connected. */
async function connectInTime({ connected }: OpenSessions, { agentClient: { serverAddress } }: AgentOptions): Promise<void> {
  if (await withTimeout(TAKE_OVER_TIMEOUT_MS, connected) !== undefined) return;
  throw new Error(`Cannot take over: no connection to ${serverAddress.join(", ")} within ${TAKE_OVER_TIMEOUT_MS / 1000} s`);
}

/** The options that connections are opened with. */
function connectionOptions({ join, agentClient, auth, limits: { tunnels } }: AgentOptions): unknown {
  const { hostWhitelist: _allow, hostDenylist: _deny, connectTimeout: _timeout, tls: { refresh: _refresh, ...tls }, ...others } =
    agentClient;
  return [join, others, tls, auth, tunnels];
}

/** The options of tunnels, which can change while they are open. */
function tunnelValues(
  { agentClient: { hostWhitelist: allow, hostDenylist: deny, connectTimeout: connectTimeoutMs }, limits }: AgentOptions,
  resolve: Resolve,
): Pick<TunnelOptions, "destinations" | "connectTimeoutMs" | "udpIdleMs" | "dnsIdleMs"> {
  const { udpIdleTimeout: udpIdleMs, dnsIdleTimeout: dnsIdleMs } = limits;
  return { destinations: createDestinationPolicy({ allow, deny, resolve }), connectTimeoutMs, udpIdleMs, dnsIdleMs };
}

/** Cuts the tunnels to destinations that are not allowed now. A name whose lookup fails may be. Returns their number. */
async function cutForbidden({ destinations, connectTimeoutMs }: TunnelOptions, { activity }: ServiceRuntime): Promise<number> {
  let cut = 0;
  for (const [stream, tunnel] of [...activity.tunnels]) {
    if (tunnel.destination === undefined || tunnel.endedAt !== undefined) continue;
    try {
      await destinations.resolve(parseAuthority(tunnel.destination), tunnel.network ?? "tcp", connectTimeoutMs);
    } catch (error) {
      if (!(error instanceof TunnelError)) continue;
      tunnel.cutBecause = error.message;
      stream.reset(1);
      cut++;
    }
  }
  return cut;
}

/**
 * Checks the files that the options refer to, and returns the settings of connections; without credentials if an issuer has them.
 * @throws {ConfigError} for a missing or invalid file or variable; once the agent runs, it retries instead
 */
export async function checkAgentOptions(
  options: AgentOptions,
  { net, environment = {} }: { net: TlsCheck; environment?: Environment },
): Promise<{ tls: ClientTls; credentials?: Credentials; outbound: OutboundRoute }> {
  checkTransport(options);
  await checkAdminOptions(options.admin, net);
  const tls = await openClientTls("agent-client.tls", options.agentClient.tls, { log: silentLogger, net });
  const outbound = await readOutboundRoute(options.agentClient, environment);
  await checkTracingOptions(options.tracing);
  await checkIssuerOptions(options.auth);
  const credentials = options.auth.type === "oidc" ? undefined : await readCredentials(options.auth);
  return { tls: tls.current, credentials, outbound };
}

/** Only what is `auto` has something to remember. */
function stateDirectoryOf({ stateDir, agentClient }: AgentOptions, { stateDirectory }: AgentDeps): StateDirectory {
  const path = stateDir || stateDirectory;
  return agentClient.transport === "auto" || agentClient.keepAlive === 0 ? { path, required: Boolean(stateDir) } : { required: false };
}

/** Registers the agent's metrics, and returns those of its tunnels and of changes of the link. */
function registerMetrics(
  metrics: Metrics,
  sessions: OpenSessions,
): { tunnelMetrics: TunnelMetrics; countChange: (change: TransportChange) => void } {
  metrics.gauge("reverse_http_proxy_connections_active", "Connections to proxies.", () => sessions.all.size);
  metrics.sessions(() => sessions.all);
  return {
    tunnelMetrics: metrics.tunnels(() => sessions.tunnels),
    countChange: metrics.linkChanges(),
  };
}

/** Describes a connection to a proxy for operators. */
function describeSession(id: string, session: Session, states: SessionStates): AgentState {
  const { id: connection, remote: address, transport: link, linkReason, via, since, tunnels } = session;
  const state = session.isLeaving ? "draining" : "connected";
  return {
    id,
    connection,
    state,
    address,
    link,
    linkReason,
    via,
    since: since.toISOString(),
    tunnels,
    ...states.describe(session, performance.now()),
  };
}

/** Closes connections to proxies, which are opened again. Returns how many. */
function disconnect(sessions: ReadonlySet<Session>, { connection, awaySeconds = 0 }: DisconnectRequest, by: string): number {
  if (awaySeconds > 0) throw new ActionRefused("an agent connects again at once: ask the proxies to keep it away");
  const found = [...sessions].filter(({ id }) => connection === undefined || id === connection);
  for (const session of found) session.close(`disconnected by the operator ${by}`);
  return found.length;
}
