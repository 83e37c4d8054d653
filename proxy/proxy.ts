// Puts the proxy together: agents on one side, clients on the other, and the way from one to the other.
import { hostname } from "node:os";
import { setTimeout as sleep } from "node:timers/promises";
import { Health, listenAdmin, startAdmin } from "../shared/admin.ts";
import { createAllowList, networksOf } from "../shared/allow_list.ts";
import { openBacking } from "../shared/backing.ts";
import type { Authenticator } from "../shared/auth/authenticator.ts";
import { bindToCertificate } from "../shared/auth/certificate_names.ts";
import { checkAuthOptions } from "../shared/auth/scheme.ts";
import { TrustedProxies } from "../shared/front/client_address.ts";
import { warnOfExposure } from "../shared/front/exposure.ts";
import { type Front, startFront } from "../shared/front/front.ts";
import { isolateLogger } from "../shared/hooks.ts";
import { ClientLimits } from "../shared/limits/client_limits.ts";
import { Door } from "../shared/limits/door.ts";
import { LimitReports, orNone } from "../shared/limits/limit.ts";
import { ALPN, CloseCode, PROXY_TRANSPORT } from "../shared/link/link.ts";
import type { Logger } from "../shared/log.ts";
import { LogLimit } from "../shared/log_limit.ts";
import { Metrics } from "../shared/metrics.ts";
import type { NetError } from "../shared/net/errors.ts";
import type { ListenQuicOptions, Net, QuicListener, ServerTls, TcpListener } from "../shared/net/types.ts";
import { type Announcer, startAnnouncer } from "../shared/store/announcer.ts";
import { checkStoreOptions, watchServers } from "../shared/store/options.ts";
import type { Store } from "../shared/store/store.ts";
import type { Supervisor } from "../shared/supervisor.ts";
import { refreshTls, type TlsCheck } from "../shared/tls/files.ts";
import { startWatchdog } from "../shared/watchdog.ts";
import { type AgentEvents, startAgentServer } from "./agent_server.ts";
import { dialAgent, Patience } from "./dial.ts";
import { Failures } from "./failures.ts";
import { registerProxy, reportAgents } from "./figures.ts";
import type { ProxyOptions } from "./options.ts";
import { checkProxyTls, openProxyTls, type ProxyTls, showPin } from "./tls.ts";

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
const MOST_HANDSHAKES = 1_000_000;

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
  const backing = await openBacking(
    { auth: options.auth, store: options.store, ttlMs: options.store.ttl, storeEvents: watchServers(log, health, metrics), log },
    deps,
  );
  const { authenticator, store } = backing;
  const { trustedProxies, proxyProtocol } = options.httpProxy;
  const reports = new LimitReports({ log, count: (limit, times) => metrics.limitHit(limit, times) });
  const limits = new ClientLimits(options.limits, DESCRIPTORS, {
    log,
    reports,
    intermediaries: [...trustedProxies, ...proxyProtocol],
    createRate: (rate) => net.createRate(rate),
    buffers: net,
  });
  const logLimit = new LogLimit({ log });
  const countAgents = metrics.outcomes("reverse_http_agent_handshakes_total", "Connections of agents: accepted, refused or failed.");
  const onHandshakeError: ListenQuicOptions["onHandshakeError"] = ({ remote, error, count }) => {
    const isLimited = error.code === "limit" || error.code === "limit-per-address";
    countAgents(isLimited ? "refused" : "failed", count);
    const { handshakes, handshakesPerAddress } = options.limits;
    if (error.code === "limit") reports.hit("handshakes", { remote, most: handshakes, reason: error.message }, count);
    else if (error.code === "limit-per-address") reports.hit("handshakes-per-address", { remote, most: handshakesPerAddress }, count);
    else logLimit.warn("agent handshake failed", { remote, reason: describeHandshake(error) });
  };
  const { agentListener, clientListener, adminListener } = await listen(net, options, tls, limits, onHandshakeError).catch(
    (error) => {
      limits.close();
      logLimit.close();
      backing.close();
      throw error;
    },
  );
  const announcer = store && announce(store, options, clientListener.address, log);
  const server = startAgentServer({
    onAgentConnected,
    onAgentDisconnected,
    log,
    announcer,
    listener: agentListener,
    authenticator: agentIdFrom === "none" ? authenticator : bindToCertificate(authenticator, agentIdFrom, log),
    multiple: options.agentServer.agent.multiple,
    door: new Door({
      all: { limit: "agents", most: options.limits.agents },
      perAddress: { limit: "agents-per-address", most: options.limits.agentsPerAddress },
      addresses: options.limits,
      // a site may have many agents, all of them set up wrongly in the same way
      forgivenMs: 1_000,
      reports,
    }),
    onOutcome: countAgents,
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
  const patience = new Patience(server.agents);
  const dialing = { agents: server.agents, patience, failures: new Failures(), timeoutMs: options.agentServer.agent.dialTimeout };
  const tunnels = registerProxy(metrics, { agents: server.agents, tls, clients: () => front.open });
  const front: Front = startFront({
    net,
    listener: clientListener,
    name: "reverse-http-proxy",
    authenticator,
    allowList,
    trusted: new TrustedProxies(trustedProxies, proxyProtocol),
    limits,
    log,
    onEnd: (end) => tunnels.ended(end),
    onFailure: metrics.clientFailures(),
    dial: (request) => dialAgent(dialing, request, draining !== undefined),
  });
  const useForAgents = (renewed: ServerTls) => agentListener.setTls(renewed);
  const useForClients = (renewed: ServerTls) => clientListener.setTls(renewed);
  const refreshed = [
    refreshTls(tls.agents, options.agentServer.tls.refresh, useForAgents),
    ...tls.clients ? [refreshTls(tls.clients, options.httpProxy.tls.refresh, useForClients)] : [],
  ];
  const reload = async (): Promise<void> => {
    await Promise.all([tls.agents.reload(useForAgents), tls.clients?.reload(useForClients), authenticator.reload?.()]);
  };
  warnOfExposure(log, {
    address: clientListener.address,
    asksForSecret: authenticator === deps.authenticator || options.auth.type !== "noauth" || !!tls.clients?.current.clientCa,
    allowList: options.httpProxy.hostWhitelist,
  });
  if (tls.own) showPin(tls.own, agentListener.address, log);
  const agents = () => reportAgents(server.agents);
  const admin = adminListener && startAdmin({ listener: adminListener, health, metrics, agents });
  const close = async (): Promise<void> => {
    stopping.abort();
    for (const refreshing of refreshed) await refreshing.close();
    front.close();
    await server.close();
    await front.done;
    patience.close();
    limits.close();
    logLimit.close();
    watchdog.close();
    announcer?.close();
    backing.close();
    await admin?.close();
    log.info("stopped");
  };
  const drain = async ({ delay, timeout }: ProxyOptions["drain"]): Promise<void> => {
    health.notReady("draining");
    log.info("draining", { agents: server.agents.size, clients: front.open, delayMs: delay, timeoutMs: timeout });
    await sleep(delay, undefined, { signal: stopping.signal }).catch(() => {}); // closed
    const start = performance.now();
    // clients are still taken: for agents that are on their way, and for those that find no other proxy
    if (timeout > 0) await server.sendAway(timeout);
    if (server.agents.holdsAny) log.info("no other proxy for the agents", { advice: "clients are served to the end" });
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
  { admin, agentServer, httpProxy, limits: { handshakes, handshakesPerAddress, handshakesRetry, exempt } }: ProxyOptions,
  tls: ProxyTls,
  { heads: maxPendingHeads, headsPerAddress: pendingHeadsPerAddress }: ClientLimits,
  onHandshakeError: ListenQuicOptions["onHandshakeError"],
): Promise<Listeners> {
  const agentListener = await net.listenQuic({
    address: agentServer.listenAddress,
    tls: tls.agents.current,
    alpn: ALPN,
    transport: { ...PROXY_TRANSPORT, congestion: agentServer.congestionControl },
    maxPendingHandshakes: Math.min(orNone(handshakes), MOST_HANDSHAKES),
    pendingHandshakesPerAddress: { most: handshakesPerAddress, exempt: networksOf(exempt) },
    retryThreshold: handshakesRetry,
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
function announce(store: Store, options: ProxyOptions, bound: string, log: Logger): Announcer {
  const address = options.store.httpProxyAddress ?? reachable(bound);
  log.info("announcing agents", { address });
  if (options.store.httpProxyAddress === undefined) {
    log.warn("lb may not reach this proxy under that address: say which one with --store.http-proxy-address", { address });
  }
  return startAnnouncer({
    store,
    address,
    ttlMs: options.store.ttl,
    onFailure: ({ agentId, error }) =>
      log.debug("agent not announced", { agent: agentId, reason: error instanceof Error ? error.message : String(error) }),
  });
}

/** An address that stands for all of this host is of no use to another. */
function reachable(bound: string): string {
  return bound.replace(/^(0\.0\.0\.0|\[::\])(?=:[0-9]+$)/, hostname());
}
