// Puts the load balancer together: clients on one side, the store and the proxies on the other.
import { setTimeout as sleep } from "node:timers/promises";
import { Health, listenAdmin, startAdminServer } from "../shared/service/admin.ts";
import { createAllowList, networksOf } from "../shared/address/allow_list.ts";
import { openBackends } from "../shared/service/backends.ts";
import type { Authenticator } from "../shared/auth/authenticator.ts";
import { checkAuthOptions } from "../shared/auth/scheme.ts";
import { ConfigError } from "../shared/config/option.ts";
import { TrustedProxies } from "../shared/frontend/client_address.ts";
import { warnOfExposure } from "../shared/frontend/exposure.ts";
import { type HttpFrontend, startHttpFrontend } from "../shared/frontend/server.ts";
import { isolateLogger } from "../shared/log/isolate.ts";
import { ClientLimits } from "../shared/limits/client_limits.ts";
import { LimitReporter } from "../shared/limits/limit.ts";
import { type Logger, silentLogger } from "../shared/log/logger.ts";
import { Metrics } from "../shared/service/metrics.ts";
import type { ClientTls, Net, ServerTls, TcpListener } from "../shared/net/types.ts";
import { checkStoreOptions } from "../shared/store/options.ts";
import type { Store } from "../shared/store/store.ts";
import type { Supervisor } from "../shared/service/supervisor.ts";
import { openClientTls, openServerTls, refuseWithoutTls, type ReloadableTls, startTlsRefresh, type TlsCheck } from "../shared/tls/files.ts";
import { startWatchdog } from "../shared/service/watchdog.ts";
import { createDialer } from "./dial.ts";
import { Locator } from "./locator.ts";
import type { LoadBalancerOptions } from "./options.ts";

/** What the load balancer is given besides its options. */
export interface LoadBalancerDeps {
  net: Net;
  log: Logger;
  /** Replaces the scheme that `auth.type` names. */
  authenticator?: Authenticator;
  /** Replaces the store that `store.type` names. It is not closed. */
  store?: Store;
  /** Hears how it is while it runs. Default: nobody. */
  supervisor?: Supervisor;
}

/** A running load balancer. */
export interface LoadBalancer {
  /** TCP address bound for clients. */
  readonly clientAddress: string;
  /** TCP address bound for those who operate it, where `admin.listenAddress` asks for one. */
  readonly adminAddress?: string;
  /**
   * Stops without cutting anything off, as far as `drain.delay` and `drain.timeout` allow: fails readiness, waits for the clients it has, then
   * closes. Until then it takes further clients, unless `drain.refuseClients` is set. {@link close} ends it at once.
   */
  drain(): Promise<void>;
  /** Reads certificates, keys, and files of tokens again. */
  reload(): Promise<void>;
  /** Resets the clients and frees the address. */
  close(): Promise<void>;
}

/** Entries that lb writes nothing into: their life is the proxies' business. */
const ANY_TTL_MS = 30_000;
/** Of a tunnel: the client's connection, and that to the proxy. */
const DESCRIPTORS = 2;

/**
 * Starts a load balancer; it listens when the promise resolves.
 * @throws {ConfigError} for options that cannot be used, before anything is opened
 * @throws {NetError} when the address cannot be listened on
 */
export async function startLoadBalancer(options: LoadBalancerOptions, deps: LoadBalancerDeps): Promise<LoadBalancer> {
  const { net } = deps;
  const log = isolateLogger(deps.log);
  const tls = await openTls(options, { ...deps, log });
  const allowList = createAllowList(options.httpProxy.hostWhitelist);
  const [metrics, health] = [new Metrics("lb"), new Health()];
  const backends = await openBackends(
    { auth: options.auth, store: options.store, ttlMs: ANY_TTL_MS, log, health, metrics },
    deps,
  );
  const { authenticator, store } = backends;
  if (!store) {
    backends.close();
    throw new ConfigError("Cannot start: there is no store");
  }
  const { trustedProxies, proxyProtocol } = options.httpProxy;
  const limitReporter = new LimitReporter({ log, count: (limit, times) => metrics.limitHit(limit, times) });
  const limits = new ClientLimits(options.limits, DESCRIPTORS, {
    log,
    reports: limitReporter,
    intermediaries: [...trustedProxies, ...proxyProtocol],
    createRate: (rate) => net.createRate(rate),
    buffers: net,
  });
  const closeOwn = () => {
    limits.close();
    backends.close();
  };
  const locator = new Locator({ store });
  const { listener, adminListener } = await listen(net, options, tls, limits).catch((error) => {
    closeOwn();
    throw error;
  });
  const tunnels = metrics.tunnels(() => front.open);
  metrics.watchCertificate("clients", () => tls.clients?.current.cert);
  metrics.watchCertificate("proxies", () => tls.proxies?.current.cert);
  const watchdog = startWatchdog({
    log,
    networkStalledMs: () => net.stalledMs(),
    onStall: metrics.stalls(),
    supervisor: deps.supervisor,
    status: () => `${draining ? "Draining" : "Serving"}: ${front.open} clients`,
  });
  const stopping = new AbortController();
  let [draining, closing]: Promise<void>[] = [];
  const front: HttpFrontend = startHttpFrontend({
    net,
    listener,
    authenticator,
    allowList,
    trusted: new TrustedProxies(trustedProxies, proxyProtocol),
    log,
    limits,
    name: "reverse-http-lb",
    upstreamRole: "proxy",
    onEnd: (end) => tunnels.ended(end),
    onBadClient: metrics.clientFailures(),
    dial: createDialer({
      net,
      locator,
      tls: () => tls.proxies?.current,
      connectTimeoutMs: options.httpConnector.connectTimeout,
      responseTimeoutMs: options.httpConnector.responseTimeout,
      onNoLocalPort: (address) => limits.recordNoPort(address),
      pseudonym: createPseudonym(),
    }),
  });
  const useForClients = (renewed: ServerTls) => listener.setTls(renewed);
  const refreshed = [
    ...tls.clients ? [startTlsRefresh(tls.clients, options.httpProxy.tls.refresh, useForClients)] : [],
    ...tls.proxies ? [startTlsRefresh(tls.proxies, options.httpConnector.tls.refresh)] : [],
  ];
  const reload = async (): Promise<void> => {
    await Promise.all([tls.clients?.reload(useForClients), tls.proxies?.reload(), authenticator.reload?.()]);
  };
  warnOfExposure(log, {
    address: listener.address,
    asksForSecret: authenticator === deps.authenticator || options.auth.type !== "noauth" || !!tls.clients?.current.clientCa,
    allowList: options.httpProxy.hostWhitelist,
  });
  // where agents are held it does not know, only where they were found
  const agents = () => [...locator].map(([id, address]) => ({ id, address }));
  const admin = adminListener && startAdminServer({ listener: adminListener, health, metrics, agents });
  const close = async (): Promise<void> => {
    stopping.abort();
    for (const refreshing of refreshed) await refreshing.close();
    front.close();
    await front.done;
    watchdog.close();
    closeOwn();
    await admin?.close();
    log.info("stopped");
  };
  const drain = async ({ delay, timeout, refuseClients }: LoadBalancerOptions["drain"]): Promise<void> => {
    health.setUnready("draining");
    log.info("draining", { clients: front.open, delayMs: delay, timeoutMs: timeout });
    await sleep(delay, undefined, { signal: stopping.signal }).catch(() => {}); // closed
    await front.drain(timeout, refuseClients ? Promise.resolve() : undefined);
    await (closing ??= close());
  };
  log.info("listening", { clients: listener.address, admin: admin?.address });
  return {
    adminAddress: admin?.address,
    clientAddress: listener.address,
    drain: () => draining ??= drain(options.drain),
    reload,
    close: () => closing ??= close(),
  };
}

/** All addresses, or none. */
async function listen(
  net: Net,
  { admin, httpProxy }: LoadBalancerOptions,
  tls: LoadBalancerTls,
  { pendingRequests: maxPendingHeads, pendingRequestsPerAddress: pendingHeadsPerAddress }: ClientLimits,
): Promise<{ listener: TcpListener; adminListener?: TcpListener }> {
  const adminListener = await listenAdmin(net, admin.listenAddress);
  try {
    const address = httpProxy.listenAddress;
    const proxyProtocol = networksOf(httpProxy.proxyProtocol);
    const listener = await net.listenTcp({ address, tls: tls.clients?.current, maxPendingHeads, pendingHeadsPerAddress, proxyProtocol });
    return { adminListener, listener };
  } catch (error) {
    adminListener?.close();
    throw error;
  }
}

/**
 * Checks the files that the options name, and the options that need each other.
 * @throws {ConfigError}
 */
export async function checkLoadBalancerOptions(options: LoadBalancerOptions, net: TlsCheck): Promise<void> {
  await checkAuthOptions(options.auth);
  await openTls(options, { log: silentLogger, net });
  await checkStoreOptions(options.store);
}

interface LoadBalancerTls {
  /** Missing where clients come without TLS. */
  readonly clients?: ReloadableTls<ServerTls>;
  /** Missing where proxies are spoken to without TLS. */
  readonly proxies?: ReloadableTls<ClientTls>;
}

async function openTls(
  { httpProxy, httpConnector }: LoadBalancerOptions,
  deps: { log: Logger; net: TlsCheck },
): Promise<LoadBalancerTls> {
  if (!httpProxy.tls.enable) refuseWithoutTls("http-proxy.tls", httpProxy.tls);
  if (!httpConnector.tls.enable) refuseWithoutTls("http-connector.tls", httpConnector.tls);
  return {
    clients: httpProxy.tls.enable ? await openServerTls("http-proxy.tls", httpProxy.tls, deps) : undefined,
    proxies: httpConnector.tls.enable ? await openClientTls("http-connector.tls", httpConnector.tls, deps) : undefined,
  };
}

/** Of this process alone: two load balancers in a row are no loop. */
function createPseudonym(): string {
  return `reverse-http-lb-${Array.from(crypto.getRandomValues(new Uint8Array(4)), (byte) => byte.toString(16).padStart(2, "0")).join("")}`;
}
