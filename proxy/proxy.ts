// Puts the proxy together: agents on one side, clients on the other, and the way from one to the other.
import { hostname } from "node:os";
import { setTimeout as sleep } from "node:timers/promises";
import { Health, listenAdmin, startAdminServer } from "../shared/service/admin.ts";
import { createAllowList, networksOf } from "../shared/address/allow_list.ts";
import { openBackends } from "../shared/service/backends.ts";
import type { Authenticator } from "../shared/auth/authenticator.ts";
import { bindToCertificate } from "../shared/auth/certificate_names.ts";
import { checkAuthOptions } from "../shared/auth/scheme.ts";
import { TrustedProxies } from "../shared/frontend/client_address.ts";
import { warnOfExposure } from "../shared/frontend/exposure.ts";
import { type HttpFrontend, startHttpFrontend } from "../shared/frontend/server.ts";
import { isolateLogger } from "../shared/log/isolate.ts";
import { ClientLimits } from "../shared/limits/client_limits.ts";
import { ConnectionLimiter } from "../shared/limits/connection_limiter.ts";
import { LimitReporter, unlimitedIfZero } from "../shared/limits/limit.ts";
import { ALPN, CloseCode, PROXY_TRANSPORT } from "../shared/link/link.ts";
import type { Logger } from "../shared/log/logger.ts";
import { LogLimit } from "../shared/log/limit.ts";
import { Metrics } from "../shared/service/metrics.ts";
import type { NetError } from "../shared/net/errors.ts";
import type { ListenQuicOptions, Net, QuicListener, ServerTls, TcpListener } from "../shared/net/types.ts";
import { type PresencePublisher, startPresencePublisher } from "../shared/store/presence.ts";
import { checkStoreOptions } from "../shared/store/options.ts";
import type { Store } from "../shared/store/store.ts";
import type { Supervisor } from "../shared/service/supervisor.ts";
import { startTlsRefresh, type TlsCheck } from "../shared/tls/files.ts";
import { startWatchdog } from "../shared/service/watchdog.ts";
import { type AgentEvents, startAgentServer } from "./agents/server.ts";
import { DestinationFailures } from "./agents/failures.ts";
import { StalledAgentMonitor } from "./agents/stalled_agents.ts";
import { dialAgent } from "./dial.ts";
import { registerProxyMetrics, reportAgents } from "./metrics.ts";
import type { ProxyOptions } from "./options.ts";
import { checkProxyTls, logPin, openProxyTls, type ProxyTls } from "./tls.ts";

/** What the proxy is given besides its options. */
export interface ProxyDeps extends AgentEvents {
  net: Net;
  log: Logger;
  /** Replaces the scheme that `auth.type` names. */
  authenticator?: Authenticator;
  /** Directory for state where the options name none. Default: nothing is kept. */
  stateDirectory?: string;
  /** Replaces the store that `store.type` names. It is not closed. */
  store?: Store;
  /** Hears how it is while it runs. Default: nobody. */
  supervisor?: Supervisor;
}

/** A running proxy. */
export interface Proxy {
  /** UDP address bound for agents. */
  readonly agentAddress: string;
  /** TCP address bound for clients. */
  readonly clientAddress: string;
  /** TCP address bound for those who operate it, where `admin.listenAddress` asks for one. */
  readonly adminAddress?: string;
  /** Ids of the agents held. */
  readonly agents: number;
  /** Whether it is about to stop: whoever sends clients here should stop that. */
  readonly draining: boolean;
  /**
   * Stops without cutting anything off, as far as `drain.delay` and `drain.timeout` allow: fails readiness, sends agents elsewhere, waits for
   * the clients it has, then closes. It goes on taking clients as long as an agent stays that finds no other proxy. {@link close} ends it at
   * once.
   */
  drain(): Promise<void>;
  /** Reads certificates, keys, and files of tokens again. */
  reload(): Promise<void>;
  /** Resets the clients, tells the agents, frees the addresses. */
  close(): Promise<void>;
}

/** Of a tunnel: the client's connection. */
const DESCRIPTORS = 1;
/** What the network can count to. */
const MAX_HANDSHAKES = 1_000_000;

/**
 * Starts a proxy; it listens when the promise resolves.
 * @throws {ConfigError} for options that cannot be used, before anything is opened
 * @throws {NetError} when an address cannot be listened on
 */
export async function startProxy(options: ProxyOptions, deps: ProxyDeps): Promise<Proxy> {
  const { net, onAgentConnected, onAgentDisconnected } = deps;
  const log = isolateLogger(deps.log);
  const tls = await openProxyTls(options, { ...deps, log });
  const allowList = createAllowList(options.httpProxy.hostWhitelist);
  const { agentIdFrom } = options.agentServer.tls;
  const [metrics, health] = [new Metrics("proxy"), new Health()];
  const backends = await openBackends(
    { auth: options.auth, store: options.store, ttlMs: options.store.ttl, log, health, metrics },
    deps,
  );
  const { authenticator, store } = backends;
  const { trustedProxies, proxyProtocol } = options.httpProxy;
  const limitReporter = new LimitReporter({ log, count: (limit, times) => metrics.limitHit(limit, times) });
  const limits = new ClientLimits(options.limits, DESCRIPTORS, {
    log,
    reports: limitReporter,
    intermediaries: [...trustedProxies, ...proxyProtocol],
    createRate: (rate) => net.createRate(rate),
    buffers: net,
  });
  const logLimit = new LogLimit({ log });
  const countAgents = metrics.outcomes("reverse_http_agent_connections_total", "Connections of agents: accepted, refused or failed.");
  const onHandshakeError: ListenQuicOptions["onHandshakeError"] = ({ remote, error, count }) => {
    const isLimit = error.code === "limit" || error.code === "limit-per-address";
    countAgents(isLimit ? "refused" : "failed", count);
    const { handshakes, handshakesPerAddress } = options.limits;
    if (error.code === "limit") limitReporter.record("handshakes", { remote, max: handshakes, reason: error.message }, count);
    else if (error.code === "limit-per-address") {
      limitReporter.record("handshakes-per-address", { remote, max: handshakesPerAddress }, count);
    } else logLimit.warn("agent handshake failed", { remote, reason: describeHandshake(error) });
  };
  const { agentListener, clientListener, adminListener } = await listen(net, options, tls, limits, onHandshakeError).catch(
    (error) => {
      limits.close();
      logLimit.close();
      backends.close();
      throw error;
    },
  );
  const announcer = store && announce(store, options, clientListener.address, log);
  const server = startAgentServer({
    onAgentConnected,
    onAgentDisconnected,
    log,
    presence: announcer,
    listener: agentListener,
    authenticator: agentIdFrom === "none" ? authenticator : bindToCertificate(authenticator, agentIdFrom, log),
    multiple: options.agentServer.agent.multiple,
    limiter: new ConnectionLimiter({
      all: { limit: "agents", max: options.limits.agents },
      perAddress: { limit: "agents-per-address", max: options.limits.agentsPerAddress },
      addresses: options.limits,
      // a site may have many agents, all of them set up wrongly in the same way
      failureRefillMs: 1_000,
      reports: limitReporter,
    }),
    onResult: countAgents,
    onReplaced: metrics.count("reverse_http_agents_replaced_total", "Agents whose place another one with the same id took."),
  });
  const watchdog = startWatchdog({
    log,
    networkStalledMs: () => net.stalledMs(),
    onStall: metrics.stalls(),
    supervisor: deps.supervisor,
    status: () => `${draining ? "Draining" : "Serving"}: ${server.agents.size} agents, ${front.open} clients`,
  });
  const stopping = new AbortController();
  let draining: Promise<void> | undefined;
  let closing: Promise<void> | undefined;
  const monitor = new StalledAgentMonitor(server.agents);
  const dialing = { agents: server.agents, monitor, failures: new DestinationFailures(), timeoutMs: options.agentServer.agent.dialTimeout };
  const tunnels = registerProxyMetrics(metrics, { agents: server.agents, tls, clients: () => front.open });
  const front: HttpFrontend = startHttpFrontend({
    net,
    listener: clientListener,
    name: "reverse-http-proxy",
    authenticator,
    allowList,
    trusted: new TrustedProxies(trustedProxies, proxyProtocol),
    limits,
    log,
    onEnd: (end) => tunnels.ended(end),
    onBadClient: metrics.clientFailures(),
    dial: (request) => dialAgent(dialing, request, draining !== undefined),
  });
  const useForAgents = (renewed: ServerTls) => agentListener.setTls(renewed);
  const useForClients = (renewed: ServerTls) => clientListener.setTls(renewed);
  const refreshed = [
    startTlsRefresh(tls.agents, options.agentServer.tls.refresh, useForAgents),
    ...tls.clients ? [startTlsRefresh(tls.clients, options.httpProxy.tls.refresh, useForClients)] : [],
  ];
  const reload = async (): Promise<void> => {
    await Promise.all([tls.agents.reload(useForAgents), tls.clients?.reload(useForClients), authenticator.reload?.()]);
  };
  warnOfExposure(log, {
    address: clientListener.address,
    asksForSecret: authenticator === deps.authenticator || options.auth.type !== "noauth" || !!tls.clients?.current.clientCa,
    allowList: options.httpProxy.hostWhitelist,
  });
  if (tls.own) logPin(tls.own, agentListener.address, log);
  const agents = () => reportAgents(server.agents);
  const admin = adminListener && startAdminServer({ listener: adminListener, health, metrics, agents });
  const close = async (): Promise<void> => {
    stopping.abort();
    for (const refreshing of refreshed) await refreshing.close();
    front.close();
    await server.close();
    await front.done;
    monitor.close();
    limits.close();
    logLimit.close();
    watchdog.close();
    announcer?.close();
    backends.close();
    await admin?.close();
    log.info("stopped");
  };
  const drain = async ({ delay, timeout }: ProxyOptions["drain"]): Promise<void> => {
    health.setUnready("draining");
    log.info("draining", { agents: server.agents.size, clients: front.open, delayMs: delay, timeoutMs: timeout });
    await sleep(delay, undefined, { signal: stopping.signal }).catch(() => {}); // closed
    const start = performance.now();
    // clients are still taken: for agents that are on their way, and for those that find no other proxy
    if (timeout > 0) await server.migrate(timeout);
    if (server.agents.hasAvailable) log.info("no other proxy for the agents", { advice: "clients are served to the end" });
    await front.drain(Math.max(0, timeout - (performance.now() - start)), server.abandoned());
    await (closing ??= close());
  };
  log.info("listening", { agents: agentListener.address, clients: clientListener.address, admin: admin?.address });
  return {
    adminAddress: admin?.address,
    agentAddress: agentListener.address,
    clientAddress: clientListener.address,
    get agents() {
      return server.agents.size;
    },
    get draining() {
      return draining !== undefined;
    },
    drain: () => draining ??= drain(options.drain),
    reload,
    close: () => closing ??= close(),
  };
}

/** Why an agent's handshake failed. The network speaks of any connection, and not of who dialled. */
function describeHandshake({ message, code, remote }: NetError): string {
  const reason = message.replace(/^Cannot connect to \S+: (?:aborted by peer: )?/, "");
  if (!remote) return reason;
  return code === "tls"
    ? `the agent does not accept this proxy, and its log says why: ${reason}`
    : `the agent gave up during the handshake: ${reason}`;
}

interface Listeners {
  readonly agentListener: QuicListener;
  readonly clientListener: TcpListener;
  readonly adminListener?: TcpListener;
}

/** All addresses, or none. */
async function listen(
  net: Net,
  { admin, agentServer, httpProxy, limits: { handshakes, handshakesPerAddress, retryThreshold, exemptAddresses } }: ProxyOptions,
  tls: ProxyTls,
  { pendingRequests: maxPendingHeads, pendingRequestsPerAddress: pendingHeadsPerAddress }: ClientLimits,
  onHandshakeError: ListenQuicOptions["onHandshakeError"],
): Promise<Listeners> {
  const agentListener = await net.listenQuic({
    address: agentServer.listenAddress,
    tls: tls.agents.current,
    alpn: ALPN,
    transport: { ...PROXY_TRANSPORT, congestion: agentServer.congestionControl },
    maxPendingHandshakes: Math.min(unlimitedIfZero(handshakes), MAX_HANDSHAKES),
    pendingHandshakesPerAddress: { max: handshakesPerAddress, exempt: networksOf(exemptAddresses) },
    retryThreshold: retryThreshold,
    onHandshakeError,
  });
  let clientListener: TcpListener | undefined;
  try {
    const address = httpProxy.listenAddress;
    const proxyProtocol = networksOf(httpProxy.proxyProtocol);
    clientListener = await net.listenTcp({ address, tls: tls.clients?.current, maxPendingHeads, pendingHeadsPerAddress, proxyProtocol });
    return { agentListener, clientListener, adminListener: await listenAdmin(net, admin.listenAddress) };
  } catch (error) {
    clientListener?.close();
    await agentListener.close(CloseCode.shutdown, "shutting down");
    throw error;
  }
}

/**
 * Checks the files that the options name, and the options that need each other.
 * @throws {ConfigError}
 */
export async function checkProxyOptions(options: ProxyOptions, deps: { net: TlsCheck; stateDirectory?: string }): Promise<void> {
  await checkAuthOptions(options.auth);
  await checkProxyTls(options, deps);
  await checkStoreOptions(options.store);
}

/** Entries with the address that lb is to use. */
function announce(store: Store, options: ProxyOptions, bound: string, log: Logger): PresencePublisher {
  const address = options.store.httpProxyAddress ?? reachable(bound);
  log.info("publishing agents to the store", { address });
  if (options.store.httpProxyAddress === undefined) {
    log.warn("lb may not reach this proxy under that address: say which one with --store.http-proxy-address", { address });
  }
  return startPresencePublisher({
    store,
    address,
    ttlMs: options.store.ttl,
    onFailure: ({ agentId, error }) =>
      log.debug("presence of the agent could not be stored", {
        agent: agentId,
        reason: error instanceof Error ? error.message : String(error),
      }),
  });
}

/** An address that stands for all of this host is of no use to another. */
function reachable(bound: string): string {
  return bound.replace(/^(0\.0\.0\.0|\[::\])(?=:[0-9]+$)/, hostname());
}
