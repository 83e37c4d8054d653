// Assembles the agent: one reconnector per connection to a proxy, and the tunnels served through them.
import { hostname } from "node:os";
import { publishRequest } from "../shared/frontend/published.ts";
import { createRequestIds } from "../shared/frontend/access_log.ts";
import { checkAdminOptions } from "../shared/service/admin.ts";
import type { AgentState, DisconnectRequest } from "../shared/service/api/types.ts";
import { ActionRefused } from "../shared/service/api/operations.ts";
import { SessionStates } from "../shared/service/live/sessions.ts";
import type { Fetch } from "../shared/auth/fetch.ts";
import { Backoff } from "../shared/async/backoff.ts";
import { isolateHook } from "../shared/log/isolate.ts";
import { agentTransport } from "../shared/link/link.ts";
import { DATAGRAMS_FEATURE, type Hello, TRACE_FEATURE, UDP_FEATURE } from "../shared/link/message.ts";
import { unlimitedIfZero } from "../shared/limits/limit.ts";
import { reportDescriptors, withinDescriptors } from "../shared/limits/resources.ts";
import { TunnelLimits } from "../shared/limits/tunnels.ts";
import { silentLogger } from "../shared/log/logger.ts";
import type { Metrics, TunnelMetrics } from "../shared/service/metrics.ts";
import { type ServiceDeps, type ServiceRuntime, startService } from "../shared/service/runtime.ts";
import { SecretFiles } from "../shared/files/secret_files.ts";
import type { StateDirectory } from "../shared/files/state_directory.ts";
import type { ClientTls } from "../shared/net/types.ts";
import { openClientTls, type TlsCheck } from "../shared/tls/reloadable_tls.ts";
import { VERSION } from "../shared/version.ts";
import { withTimeout } from "../shared/async/with_timeout.ts";
import { checkIssuerOptions, type Credentials, readCredentials } from "./credentials.ts";
import { CredentialsWatch } from "./credentials_watch.ts";
import { IssuedCredentials } from "./issued_credentials.ts";
import { clientAdvice } from "./client_advice.ts";
import { describeClose, describeConnectError } from "./connection_errors.ts";
import { StoredTransports } from "./transport/stored_transports.ts";
import { type Access, SessionOpener, type TransportChange } from "./transport/opener.ts";
import { TransportPolicy } from "./transport/policy.ts";
import { parseWebSocketUrl } from "./transport/web_socket_url.ts";
import { Reconnector } from "./reconnector.ts";
import { type AgentOptions, checkTransport, parseLabels } from "./options.ts";
import { type Environment, type OutboundRoute, readOutboundRoute, viaOf } from "./outbound_proxy.ts";
import { checkTracingOptions } from "../shared/tracing/otlp.ts";
import type { Session } from "./session.ts";
import { createDestinationPolicy } from "./destination_policy.ts";
import { type ProxyEndpoint, ProxyEndpoints, type Resolve } from "./proxy_endpoints.ts";
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

/** Time in milliseconds between two looks at the token's file. */
const TOKEN_INTERVAL_MS = 10_000;
/** An agent whose options can be changed. */
export interface UpdatableAgent extends Agent {
  /** Applies options that can be reloaded; the others are ignored. What is open stays. */
  update(options: AgentOptions): void;
}

/** Backoff after short connections that a proxy has closed cleanly, because it is restarting. */
const RECONNECT_BACKOFF = { initialMs: 100, maxMs: 1_000 };
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
  const { serverAddress, transport, websocketUrl, quicProbeInterval, connections, connectTimeout, congestionControl } = options.agentClient;
  const { hostWhitelist, hostDenylist, labels, publish } = options.agentClient;
  const { environment = {} } = deps;
  const { credentials, outbound } = await checkAgentOptions(options, { net, environment });
  let agentId = credentials?.agentId ?? options.auth.oidc.clientId!;
  const tls = await openClientTls("agent-client.tls", options.agentClient.tls, { ...deps, log });
  const resolve: Resolve = deps.resolve ?? ((host, options) => net.resolve(host, options));
  const secrets = new SecretFiles(log);
  const memory = runtime.adopt(await StoredTransports.open(stateDirectoryOf(options, deps), log), (memory) => memory.close());
  const sessions = new Set<Session>();
  const issued = options.auth.type === "oidc"
    ? runtime.adopt(new IssuedCredentials({ auth: options.auth, sessions, log, fetch: deps.fetch }), (issued) => issued.close())
    : undefined;
  const { tunnelMetrics, countChange } = registerMetrics(metrics, sessions);
  runtime.watchCertificate("proxies", () => tls.current.cert);
  health.setUnready("proxy", NOT_CONNECTED);
  await runtime.listenAdmin(options.admin);
  const { adminAddress } = runtime;
  if (adminAddress !== undefined) log.info("listening", { admin: adminAddress });
  const requestedTunnels = unlimitedIfZero(options.limits.tunnels);
  const { connections: maxTunnels } = withinDescriptors({ connections: requestedTunnels, pendingRequests: 0 }, 1);
  if (maxTunnels < requestedTunnels) reportDescriptors(log, "tunnels", maxTunnels);
  const limits = new TunnelLimits({
    ...options.limits,
    tunnels: maxTunnels,
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
    destinations: createDestinationPolicy({ allow: hostWhitelist, deny: hostDenylist, resolve }),
    connectTimeoutMs: connectTimeout,
    udpIdleMs: options.limits.udpIdleTimeout,
    activity: runtime.activity,
    tracer,
    nextKey: createRequestIds(),
    onEnd: (end) => tunnelMetrics.ended(end),
  };
  const instance = runtime.predecessor?.state.instance ?? crypto.randomUUID();
  runtime.handoverState = { instance };
  const hello: Hello = {
    version: `reverse-http/${VERSION}`,
    // to proxies, a process that takes over is the same one with another connection
    instance,
    host: hostname(),
    labels: parseLabels(labels),
    features: [UDP_FEATURE, DATAGRAMS_FEATURE, TRACE_FEATURE],
    publish: publish.map(publishRequest),
  };
  runtime.describe = () => {
    if (sessions.size === 0) return runtime.isDraining ? "Draining" : `Connecting to ${serverAddress.join(", ")}`;
    const tunnels = [...sessions].reduce((sum, session) => sum + session.tunnels, 0);
    return `${runtime.isDraining ? "Draining" : "Connected"}: ${[...sessions].map(({ remote }) => remote).join(", ")}, ${tunnels} tunnels`;
  };
  const stopping = new AbortController();
  /** Settles once there are as many connections as there shall be. */
  const connected = Promise.withResolvers<true>();
  const { signal } = stopping;

  const readAccess = async (): Promise<Access> => {
    await tls.reload();
    const credentials = await (issued?.read() ?? readCredentials(options.auth));
    ({ agentId } = credentials);
    if (credentials.file !== undefined) await secrets.check("--auth.jwt.token", credentials.file);
    if (credentials.expiresAt <= Date.now()) {
      log.warn("token has expired", { agent: agentId, at: new Date(credentials.expiresAt).toISOString() });
    }
    if (options.join?.startsWith("file:")) await secrets.check("--join", options.join.slice("file:".length));
    const outbound = await readOutboundRoute(options.agentClient, environment);
    if (outbound.file !== undefined) await secrets.check("--agent-client.proxy", outbound.file);
    return { tls: tls.current, credentials: credentials.bytes, outbound };
  };
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
    access: readAccess,
    transport: agentTransport(maxTunnels, options.agentClient.keepAlive),
    congestion: congestionControl,
    session: { hello, tunnels },
    onChange: (change) => {
      countChange(change);
      log.info("link changed", { ...change });
    },
    signal,
  });
  let isAdvised = false;
  const adviseClients = ({ clients }: Hello, remote: string): void => {
    if (isAdvised || clients === undefined) return;
    isAdvised = true;
    // the name that was configured, if it is the only one: a certificate may require it
    const advice = clientAdvice(clients, agentId, serverAddress.length === 1 ? serverAddress[0]! : remote);
    log.info("clients reach this agent with", { ...advice });
  };
  const onConnected = (session: Session): void => {
    const { remote, transport: link, via } = session;
    sessions.add(session);
    if (signal.aborted) session.close(); // it was opened while the agent stopped
    health.setReady("proxy");
    if (sessions.size >= connections) connected.resolve(true);
    log.info("connected", { proxy: remote, agent: agentId, link, via });
    void session.proxy.then((proxy) => adviseClients(proxy, remote));
    hooks.onConnected?.({ remote });
    void session.closed.then((closed) => {
      sessions.delete(session);
      if (sessions.size === 0) health.setUnready("proxy", NOT_CONNECTED);
      hooks.onDisconnected?.({ remote, reason: describeClose(closed) });
    });
    const leaving = [...sessions].filter(({ isLeaving }) => isLeaving);
    const idle = leaving.filter(({ tunnels }) => tunnels === 0);
    if (idle.length > MAX_IDLE_LEAVING) idle[0]!.close();
    else if (leaving.length > MAX_LEAVING) leaving[0]!.close();
  };
  // a single connection uses the first address of a name that responds; several use one address each
  const targets = new ProxyEndpoints(shuffle(serverAddress, random), connections > 1 ? resolve : undefined);
  const vias = new Set(targets.all.map((target) => viaOf(outbound.proxyFor(target))).filter((via) => via !== undefined));
  log.info("connecting", { proxy: serverAddress.join(","), via: [...vias].join(",") || undefined }); // without a response, nothing else is logged for a while
  const reconnectors = Array.from({ length: connections }, () => {
    const backoff = deps.backoff?.() ?? new Backoff({ random });
    const explain = (error: unknown, { address }: ProxyEndpoint) => describeConnectError(error, address, options);
    const { settledAfterMs = 30_000 } = deps;
    return new Reconnector({
      targets,
      open: (target, outageMs) => link.open(target, outageMs),
      watch: (session, target) => link.watch(session, target),
      describe: explain,
      onConnected,
      settledAfterMs,
      backoff,
      reconnectBackoff: new Backoff({ ...RECONNECT_BACKOFF, random }),
      hasOtherConnection: () => [...sessions].some(({ isOpen, isLeaving }) => isOpen && !isLeaving),
      random,
      log,
      signal,
    }).run();
  });
  runtime.defer(async () => {
    await Promise.all(reconnectors);
    await Promise.all([...sessions].map(({ closed }) => closed));
  });
  runtime.refreshTls(tls, options.agentClient.tls.refresh);
  if (credentials?.file !== undefined) {
    const read = () => readCredentials(options.auth);
    const intervalMs = deps.tokenIntervalMs ?? TOKEN_INTERVAL_MS;
    runtime.adopt(new CredentialsWatch({ file: credentials.file, read, sessions, intervalMs, log }), (watch) => watch.close());
  }
  runtime.defer(() => {
    stopping.abort();
    for (const session of sessions) session.close();
  });
  let { timeout: timeoutMs } = options.drain;
  const finishTunnels = async (limitMs: number) => {
    const open = [...sessions];
    stopping.abort();
    if (limitMs > 0) await withTimeout(limitMs, Promise.all(open.map((session) => session.drain())));
  };
  runtime.onHandedOver = async (settle) => {
    settle();
    await Promise.race([finishTunnels(options.handover.timeout), drainRequested.promise]);
  };
  const drainRequested = Promise.withResolvers<void>();
  const drain = () => {
    if (runtime.isHandedOver) void finishTunnels(timeoutMs).then(drainRequested.resolve); // sooner than planned
    const open = [...sessions];
    return runtime.drain({
      fields: { tunnels: open.reduce((sum, { tunnels }) => sum + tunnels, 0), timeoutMs },
      delayMs: 0,
      finish: () => finishTunnels(timeoutMs),
    });
  };
  if (runtime.predecessor) {
    // before, it does better
    if (await withTimeout(TAKE_OVER_TIMEOUT_MS, connected.promise) === undefined) {
      throw new Error(`Cannot take over: no connection to ${serverAddress.join(", ")} within ${TAKE_OVER_TIMEOUT_MS / 1000} s`);
    }
  }
  const states = new SessionStates();
  runtime.serveAdmin({
    agents: () => [...sessions].map((session) => describeSession(agentId, session, states)),
    population: () => ({ agents: sessions.size }),
    disconnect: (request, by) => disconnect(sessions, request, by),
    drain,
  });
  return {
    adminAddress,
    get proxies() {
      return [...sessions].map(({ remote }) => remote);
    },
    drain,
    closed: runtime.closed,
    handedOver: runtime.handedOver,
    reload: () => runtime.reload(),
    update({ agentClient: { hostWhitelist: allow, hostDenylist: deny }, drain: { timeout } }) {
      tunnels.destinations = createDestinationPolicy({ allow, deny, resolve });
      timeoutMs = timeout;
    },
    close: () => runtime.close(),
  };
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
  await checkAdminOptions(options.admin, silentLogger);
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

/** Shuffles, so that agents with the same list do not all begin with the same proxy. */
function shuffle<T>(items: readonly T[], random: () => number): T[] {
  return items.map((item) => ({ item, at: random() })).toSorted((a, b) => a.at - b.at).map(({ item }) => item);
}
