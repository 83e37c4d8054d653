// Assembles the agent: one reconnector per connection to a proxy, and the tunnels served through them.
import { hostname } from "node:os";
import { publishRequest } from "../shared/frontend/published.ts";
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
import { silentLogger } from "../shared/log/logger.ts";
import type { Metrics, TunnelMetrics } from "../shared/service/metrics.ts";
import { type ServiceDeps, type ServiceRuntime, startService } from "../shared/service/runtime.ts";
import { SecretFiles } from "../shared/files/secret_files.ts";
import type { StateDirectory } from "../shared/files/state_directory.ts";
import type { ClientTls } from "../shared/net/tls.ts";
import { openClientTls, type ReloadableTls, type TlsCheck } from "../shared/tls/reloadable_tls.ts";
import { TunnelError } from "../shared/tunnel/errors.ts";
import { VERSION } from "../shared/version.ts";
import { withTimeout } from "../shared/async/with_timeout.ts";
import { Connections } from "./connections.ts";
import { checkIssuerOptions, type Credentials, type CredentialsSource, openCredentials, readCredentials } from "./credentials.ts";
import { clientAdvice } from "./client_advice.ts";
import { describeClose } from "./connection_errors.ts";
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

/** What the agent needs besides its options. */
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
  /** Resolves when another process has taken over by `handover.socket`; this one finishes what is open, and closes. */
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
const NOT_CONNECTED = "not connected to a proxy";
/** Limits on connections that are being replaced, without tunnels and in all; above one of them the oldest is closed. */
const MAX_IDLE_LEAVING = 8;
const MAX_LEAVING = 32;
/** Time in milliseconds to connect before the agent takes over from another process. */
const TAKE_OVER_TIMEOUT_MS = 60_000;

/**
 * Starts an agent. Resolves without waiting for a connection; the agent reconnects until it is closed.
 * @throws {ConfigError} for invalid options
 * @throws {NetError} if the admin address cannot be bound
 */
export async function startAgent(options: AgentOptions, deps: AgentDeps): Promise<UpdatableAgent> {
  return await startService("agent", deps, (runtime) => start(runtime, options, deps), options.handover);
}

async function start(runtime: ServiceRuntime, options: AgentOptions, deps: AgentDeps): Promise<UpdatableAgent> {
  const { net, log, metrics, health } = runtime;
  const { random = Math.random } = deps;
  const hooks = {
    onConnected: isolateHook("onConnected", deps.onConnected, log),
    onDisconnected: isolateHook("onDisconnected", deps.onDisconnected, log),
  };
  const { environment = {} } = deps;
  let current = options;
  /** Reads what connections need. */
  const prepare = async (next: AgentOptions): Promise<Omit<Generation, "connections">> => {
    const { outbound } = await checkAgentOptions(next, { net, environment });
    const tls = await openClientTls("agent-client.tls", next.agentClient.tls, { ...deps, log });
    return { tls, outbound, credentials: await openCredentials(next) };
  };
  const first = await prepare(options);
  let { tls } = first;
  const resolve: Resolve = deps.resolve ?? ((host, options) => net.resolve(host, options));
  const secrets = new SecretFiles(log);
  const memory = runtime.adopt(await StoredTransports.open(stateDirectoryOf(options, deps), log), (memory) => memory.close());
  const pins = runtime.adopt(await LearnedPins.open(options.stateDir || deps.stateDirectory, log), (pins) => pins.close());
  const sessions = new Set<Session>();
  const { tunnelMetrics, countChange } = registerMetrics(metrics, sessions);
  runtime.certificates.watch("proxies", () => tls.current.cert);
  health.setUnready("proxy", NOT_CONNECTED);
  await runtime.admin.listen(options.admin);
  if (runtime.admin.address !== undefined) log.info("listening", { admin: runtime.admin.address });
  const maxTunnelsOf = ({ limits: { tunnels } }: AgentOptions): number => {
    const requested = unlimitedIfZero(tunnels);
    const { connections } = withinDescriptors({ connections: requested, pendingRequests: 0 }, 1);
    if (connections < requested) reportDescriptors(log, "tunnels", connections);
    return connections;
  };
  const limits = new TunnelLimits({
    ...options.limits,
    tunnels: maxTunnelsOf(options),
    createRate: (rate) => net.createRate(rate),
    buffers: net,
    reports: runtime.limitReporter,
  });
  runtime.defer(() => limits.close());
  const tracer = await runtime.openTracer(options.tracing);
  const tunnels: TunnelOptions = {
    net,
    log,
    limits,
    ...tunnelValues(options, resolve),
    activity: runtime.activity,
    tracer,
    nextKey: createRequestIds(),
    onEnd: (end) => tunnelMetrics.ended(end),
  };
  // to proxies, a process that takes over is the same one with another connection
  const instance = runtime.handover.predecessor?.state.instance ?? crypto.randomUUID();
  runtime.handover.state = { instance };
  const helloOf = ({ agentClient: { labels, publish } }: AgentOptions): Hello => ({
    version: `reverse-http/${VERSION}`,
    instance,
    host: hostname(),
    labels: parseLabels(labels),
    features: [UDP_FEATURE, DATAGRAMS_FEATURE, TRACE_FEATURE, PINS_FEATURE],
    publish: publish.map(publishRequest),
  });
  runtime.describe = () => {
    if (sessions.size === 0) return runtime.isDraining ? "Draining" : `Connecting to ${current.agentClient.serverAddress.join(", ")}`;
    const tunnels = [...sessions].reduce((sum, session) => sum + session.tunnels, 0);
    return `${runtime.isDraining ? "Draining" : "Connected"}: ${[...sessions].map(({ remote }) => remote).join(", ")}, ${tunnels} tunnels`;
  };
  /** Settles once there are as many connections as there shall be. */
  const connected = Promise.withResolvers<true>();
  let isAdvised = false;
  const adviseClients = ({ clients }: Hello, remote: string): void => {
    if (isAdvised || clients === undefined) return;
    isAdvised = true;
    // the name that was configured, if it is the only one: a certificate may require it
    const { agentClient: { serverAddress } } = current;
    const advice = clientAdvice(clients, latest.connections.agentId, serverAddress.length === 1 ? serverAddress[0]! : remote);
    log.info("clients reach this agent with", { ...advice });
  };
  const onConnected = (session: Session, agent: string): void => {
    const { remote, transport: link, via } = session;
    sessions.add(session);
    health.setReady("proxy");
    if (sessions.size >= current.agentClient.connections) connected.resolve(true);
    log.info("connected", { proxy: remote, agent, link, via });
    void session.proxy.then((proxy) => adviseClients(proxy, remote));
    hooks.onConnected?.({ remote });
    void session.closed.then((closed) => {
      sessions.delete(session);
      if (sessions.size === 0) health.setUnready("proxy", NOT_CONNECTED);
      hooks.onDisconnected?.({ remote, reason: describeClose(closed) });
    });
    const leaving = [...sessions].filter(({ isLeaving, isRetired }) => isLeaving && !isRetired);
    const idle = leaving.filter(({ tunnels }) => tunnels === 0);
    if (idle.length > MAX_IDLE_LEAVING) idle[0]!.close();
    else if (leaving.length > MAX_LEAVING) leaving[0]!.close();
  };
  /** Connections that are kept, the newest last. */
  const generations: Generation[] = [];
  const connect = (next: AgentOptions, { tls, outbound, credentials }: Omit<Generation, "connections">): Generation => {
    const connections: Connections = new Connections({
      net,
      log,
      options: next,
      tls,
      outbound,
      credentials,
      environment,
      memory,
      pins,
      secrets,
      hello: helloOf(next),
      tunnels,
      maxTunnels: maxTunnelsOf(next),
      fetch: deps.fetch,
      resolve,
      backoff: deps.backoff ?? (() => new Backoff({ random })),
      settledAfterMs: deps.settledAfterMs ?? 30_000,
      tokenIntervalMs: deps.tokenIntervalMs ?? TOKEN_INTERVAL_MS,
      random,
      onConnected: (session) => onConnected(session, connections.agentId),
      onChange: (change) => {
        countChange(change);
        log.info("link changed", { ...change });
      },
    });
    const stopRefresh = runtime.certificates.refresh(tls, () => current.agentClient.tls.refresh);
    const generation = { tls, outbound, credentials, connections };
    generations.push(generation);
    // earlier ones serve until this one does
    void connections.connected.then(async () => {
      const earlier = generations.slice(0, generations.indexOf(generation));
      if (earlier.length === 0) return;
      log.info("earlier connections end when their tunnels have ended", { connections: sessions.size - 1 });
      await Promise.all(earlier.map(({ connections }) => connections.retire()));
      for (const old of earlier) generations.splice(generations.indexOf(old), 1);
    });
    void connections.done.then(stopRefresh);
    return generation;
  };
  const stop = () => {
    for (const { connections } of generations) connections.stop();
  };
  let latest = connect(options, first);
  runtime.defer(async () => {
    await Promise.all(generations.map(({ connections }) => connections.done));
    await Promise.all([...sessions].map(({ closed }) => closed));
  });
  runtime.defer(() => {
    stop();
    for (const session of sessions) session.close();
  });
  const finishTunnels = async (limitMs: number) => {
    const open = [...sessions];
    stop();
    if (limitMs > 0) await withTimeout(limitMs, Promise.all(open.map((session) => session.drain())));
  };
  runtime.handover.finish = async (settle) => {
    settle();
    await Promise.race([finishTunnels(current.handover.timeout), drainRequested.promise]);
  };
  const drainRequested = Promise.withResolvers<void>();
  const drain = () => {
    const { timeout: timeoutMs } = current.drain;
    if (runtime.handover.isDone) void finishTunnels(timeoutMs).then(drainRequested.resolve); // sooner than planned
    const open = [...sessions];
    return runtime.drain({
      fields: { tunnels: open.reduce((sum, { tunnels }) => sum + tunnels, 0), timeoutMs },
      delayMs: 0,
      finish: () => finishTunnels(timeoutMs),
    });
  };
  if (runtime.handover.predecessor) {
    // before, it does better
    if (await withTimeout(TAKE_OVER_TIMEOUT_MS, connected.promise) === undefined) {
      throw new Error(
        `Cannot take over: no connection to ${options.agentClient.serverAddress.join(", ")} within ${TAKE_OVER_TIMEOUT_MS / 1000} s`,
      );
    }
  }
  const states = new SessionStates();
  runtime.serveAdmin({
    agents: () => [...sessions].map((session) => describeSession(latest.connections.agentId, session, states)),
    population: () => ({ agents: sessions.size }),
    disconnect: (request, by) => disconnect(sessions, request, by),
    drain,
  });
  const update = async (next: AgentOptions): Promise<{ tunnelsCut: number }> => {
    const before = current;
    const isOther = differs(connectionOptions(before), connectionOptions(next));
    const prepared = isOther ? await prepare(next) : undefined;
    await Change.run(async (change) => {
      if (differs(before.admin, next.admin)) await runtime.admin.prepare(change, next.admin);
      change.onCommit(() => {
        current = next;
        limits.update({ ...next.limits, tunnels: maxTunnelsOf(next) });
        Object.assign(tunnels, tunnelValues(next, resolve));
        if (prepared === undefined || runtime.isDraining) return;
        latest = connect(next, prepared);
        ({ tls } = latest);
      });
    });
    const listsOf = ({ agentClient: { hostWhitelist, hostDenylist } }: AgentOptions) => [hostWhitelist, hostDenylist];
    if (!differs(listsOf(before), listsOf(next)) || next.reload.forbidden === "keep") return { tunnelsCut: 0 };
    return { tunnelsCut: await cutForbidden(tunnels, runtime) };
  };
  return {
    get adminAddress() {
      return runtime.admin.address;
    },
    get proxies() {
      return [...sessions].map(({ remote }) => remote);
    },
    drain,
    closed: runtime.closed,
    handedOver: runtime.handover.done,
    reload: () => runtime.reload(),
    update,
    close: () => runtime.close(),
  };
}

/** Connections, and what they were opened with. */
interface Generation {
  readonly connections: Connections;
  readonly tls: ReloadableTls<ClientTls>;
  readonly outbound: OutboundRoute;
  readonly credentials?: CredentialsSource;
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
): Pick<TunnelOptions, "destinations" | "connectTimeoutMs" | "udpIdleMs"> {
  return { destinations: createDestinationPolicy({ allow, deny, resolve }), connectTimeoutMs, udpIdleMs: limits.udpIdleTimeout };
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
 * Checks the files that the options refer to, and returns what an agent connects with; no credentials if they are an issuer's.
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

/** Only `auto` has something to remember. */
function stateDirectoryOf({ stateDir, agentClient: { transport } }: AgentOptions, { stateDirectory }: AgentDeps): StateDirectory {
  const path = stateDir || stateDirectory;
  return transport === "auto" ? { path, required: Boolean(stateDir) } : { required: false };
}

/** Registers the agent's metrics, and returns those of its tunnels and of changes of the link. */
function registerMetrics(
  metrics: Metrics,
  sessions: ReadonlySet<Session>,
): { tunnelMetrics: TunnelMetrics; countChange: (change: TransportChange) => void } {
  metrics.gauge("reverse_http_proxy_connections_active", "Connections to proxies.", () => sessions.size);
  metrics.sessions(() => sessions);
  return {
    tunnelMetrics: metrics.tunnels(() => [...sessions].reduce((sum, { tunnels }) => sum + tunnels, 0)),
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
