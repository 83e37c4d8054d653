// Assembles the load balancer: clients on one side, the store and the proxies on the other.
import type { Authenticator } from "../shared/auth/authenticator.ts";
import { checkLogout } from "../shared/auth/oidc.ts";
import { checkClientCertificates } from "../shared/auth/mtls.ts";
import { checkAuthOptions, clientScheme } from "../shared/auth/scheme.ts";
import { ConfigError } from "../shared/config/option.ts";
import { checkListenAddresses } from "../shared/frontend/listen_addresses.ts";
import { ServiceFrontend } from "../shared/frontend/service_frontend.ts";
import { createHttpProxy, type Endpoints } from "../shared/frontend/http_proxy.ts";
import { prepareParts } from "../shared/frontend/service_parts.ts";
import { autoConfigOf } from "../shared/frontend/proxy_auto_config.ts";
import { acmeHosts } from "../shared/frontend/forwards.ts";
import {
  type CheckForwards,
  checkForwards,
  ForwardListeners,
  type ForwardTls,
  openForwardTls,
} from "../shared/frontend/forward_listeners.ts";
import { readToken } from "../shared/frontend/forward_credentials.ts";
import { createHostProtocol } from "../shared/frontend/http_virtual_host.ts";
import { createForwardProtocol } from "../shared/frontend/static_forward.ts";
import { type Logger, silentLogger } from "../shared/log/logger.ts";
import type { ClientTls, ServerTls } from "../shared/net/tls.ts";
import { Change, differs } from "../shared/service/change.ts";
import { checkAdminOptions } from "../shared/service/admin.ts";
import { checkClusterOptions } from "../shared/service/cluster/cluster.ts";
import type { AgentState } from "../shared/service/api/types.ts";
import { type Acme, openAcme } from "../shared/service/acme.ts";
import type { StateDirectory } from "../shared/files/state_directory.ts";
import { openCertificateDirectory } from "../shared/tls/certificate_directory.ts";
import { checkSelfSigned, openSelfSigned } from "../shared/tls/self_signed.ts";
import { type ServiceDeps, startService } from "../shared/service/runtime.ts";
import { checkStoreOptions } from "../shared/store/options.ts";
import type { Store } from "../shared/store/store.ts";
import { openClientTls, openServerTls, refuseWithoutTls, type ReloadableTls, type TlsCheck } from "../shared/tls/reloadable_tls.ts";
import { checkTracingOptions } from "../shared/tracing/otlp.ts";
import { createDialer, type DialerTimeouts } from "./dial.ts";
import { PublishedNames } from "./published_names.ts";
import { Locator } from "./locator.ts";
import { type LoadBalancerOptions, publishedPorts } from "./options.ts";

/** The load balancer's dependencies and hooks. */
export interface LoadBalancerDeps extends ServiceDeps {
  /** Replaces the scheme that `auth.type` names. */
  authenticator?: Authenticator;
  /** Directory for state if the options name none. Default: certificates cannot be obtained by ACME. */
  stateDirectory?: string;
  /** Replaces the store that `store.type` names. It is not closed. */
  store?: Store;
}

/** A running load balancer. */
export interface LoadBalancer {
  /** TCP address bound for clients. */
  readonly clientAddress: string;
  /** TCP address bound for clients that speak SOCKS 5, if `socks.listenAddress` is set. */
  readonly socksAddress?: string;
  /** Addresses bound for `forward`, in its order. */
  readonly forwardAddresses: readonly string[];
  /** TCP address bound for clients that speak HTTP/2, if `httpProxy.http2ListenAddress` is set. */
  readonly http2Address?: string;
  /** TCP address bound for operators, if `admin.listenAddress` is set. */
  readonly adminAddress?: string;
  /**
   * Stops gracefully within `drain.delay` and `drain.timeout`: fails readiness, waits for the clients it has, then closes. Until then it
   * accepts clients, unless `drain.refuseClients` is set. {@link close} ends it at once.
   */
  drain(): Promise<void>;
  /** Resolves when it has closed: after {@link close}, {@link drain}, or a drain that an operator has asked for. */
  readonly closed: Promise<void>;
  /** Resolves when another process has taken over by `handover.socket`; this one serves open tunnels until they end, and closes. */
  readonly handedOver: Promise<void>;
  /** Reads certificates, keys, and the files of the authenticator again. */
  reload(): Promise<void>;
  /** Resets the clients and frees the address. */
  close(): Promise<void>;
}

/** A load balancer whose options can be changed. */
export interface UpdatableLoadBalancer extends LoadBalancer {
  /**
   * Applies options that can be reloaded; the others are ignored. Listeners open and close beside those that stay. Tunnels that the options
   * forbid are cut, unless `reload.forbidden` says otherwise; everything else that is open stays. Not while another call is pending. Resolves
   * with the number of tunnels that were cut.
   * @throws {ConfigError} for options that cannot be used
   * @throws {NetError} if an address cannot be listened on; in each case nothing has changed
   */
  update(options: LoadBalancerOptions): Promise<{ readonly tunnelsCut: number }>;
}

/** The service in Proxy-Status. */
const NAME = "reverse-http-lb";
/** Lifetime of lb's own entry in the list of members; that of agents' entries is decided by the proxies. */
const ENTRY_TTL_MS = 30_000;
/** File descriptors per tunnel: the client's connection, and the one to the proxy. */
const DESCRIPTORS = 2;

/**
 * Starts a load balancer; it listens when the promise resolves.
 * @throws {ConfigError} for options that cannot be used, before anything is opened
 * @throws {NetError} when the address cannot be listened on
 */
export async function startLoadBalancer(options: LoadBalancerOptions, deps: LoadBalancerDeps): Promise<UpdatableLoadBalancer> {
  return await startService<UpdatableLoadBalancer>("lb", deps, async (runtime) => {
    const { net, log } = runtime;
    const acme = await openAcme(options.acme, {
      directory: stateDirectoryOf(options, deps),
      hosts: acmeHosts(options.forward),
      hasStore: true,
      log,
    });
    const tls = await openTls(options, { net, log, acme, directory: stateDirectoryOf(options, deps) });
    const certificates = await openCertificateDirectory(options, { net, log });
    const hasOwnAuthenticator = deps.authenticator !== undefined;
    await checkForwards(options.forward, forwardRulesOf(options, hasOwnAuthenticator));
    checkClientCertificates(options);
    checkLogout(options);
    checkListenAddresses({ ...options, published: publishedListeners(options) });
    await checkPublished(options);
    const authenticator = await runtime.access.openAuthenticator(options.auth, deps.authenticator);
    const store = await runtime.store.open(options.store, ENTRY_TTL_MS, deps.store);
    if (!store) throw new ConfigError("Cannot start: there is no store");
    const audit = await runtime.audit.open(options.audit);
    const tracer = await runtime.openTracer(options.tracing);
    await runtime.admin.listen(options.admin);
    await runtime.admin.joinCluster(options.admin.cluster, store, ENTRY_TTL_MS);
    const clients = new ServiceFrontend(runtime, options, { descriptors: DESCRIPTORS, hasOwnAuthenticator });
    if (certificates) clients.useDirectory(certificates);
    const endpoints: Endpoints = { autoConfig: autoConfigOf(options) };
    const protocols = { http: createHttpProxy(NAME, endpoints), http2: createHttpProxy(NAME, {}, "http2") };
    await clients.listenAll({ ...protocols, tls: tls.clients });
    let current = options;
    const onHosts = acme && ((configured: readonly string[]) => acme.want(configured, []));
    const forwards = new ForwardListeners(clients, { log, tls: tls.forwards, name: NAME, onHosts });
    await forwards.open(options.forward);
    const published = new PublishedNames(store, { knowsCertificates: () => knowsCertificates(current.auth) });
    await listenPublished(options.published, published, { clients, log, tls: tls.clients });
    runtime.certificates.watch("proxies", () => tls.proxies?.current.cert);
    const locator = new Locator({ store, system: options.store.type });
    const dialing = {
      net,
      locator,
      tls: () => tls.proxies?.current,
      connectTimeoutMs: options.httpConnector.connectTimeout,
      responseTimeoutMs: options.httpConnector.responseTimeout,
      onNoLocalPort: (address: string) => clients.limits.recordNoPort(address),
      pseudonym: createPseudonym(),
    };
    const frontend = clients.serve({ upstreamRole: "proxy", authenticator, dial: createDialer(dialing), audit, tracer });
    const refreshProxyTls = () => tls.proxies && runtime.certificates.refresh(tls.proxies, () => current.httpConnector.tls.refresh);
    let stopRefresh = refreshProxyTls();
    const shared = { store, ttlMs: ENTRY_TTL_MS };
    await acme?.start(runtime, {
      useChallenges: (challenges) => clients.setChallenges(challenges),
      useHosts: (hosts) => clients.setHosts(hosts),
      shared,
    });
    runtime.describe = () => `${runtime.isDraining ? "Draining" : "Serving"}: ${frontend.open} clients`;
    runtime.handover.finish = async (settle) => {
      await acme?.release();
      settle(); // clients stay where they are
      await frontend.outlive(current.handover.timeout);
    };
    const drain = () => {
      const { delay: delayMs, timeout: timeoutMs, refuseClients } = current.drain;
      if (runtime.handover.isDone) void frontend.drain(timeoutMs, Promise.resolve()); // sooner than planned
      return runtime.drain({
        fields: { clients: frontend.open, delayMs, timeoutMs },
        delayMs,
        finish: () => frontend.drain(timeoutMs, refuseClients ? Promise.resolve() : undefined),
      });
    };
    // lb does not hold agents: it reports the proxies at which it found them
    const agents = () => [...locator].map(([id, address]): AgentState => ({ id, connection: id, state: "connected", address }));
    runtime.serveAdmin({ agents, population: () => ({ agents: agents().length }), drain });
    const { clientAddress, http2Address, socksAddress } = clients.addresses;
    log.info("listening", { clients: clientAddress, http2: http2Address, socks: socksAddress, admin: runtime.admin.address });

    /** Prepares other certificates; returns those of clients and forwards as they will be. */
    const prepareTls = async (change: Change, next: LoadBalancerOptions): Promise<ForwardTls> => {
      const tlsOf = ({ httpProxy, httpConnector, forward }: LoadBalancerOptions) => [
        httpProxy.tls,
        httpConnector.tls,
        forward.map((
          { listen, network, acme, certFile, keyFile, clientCaFile },
        ) => [listen, network, acme, certFile, keyFile, clientCaFile]),
      ];
      if (!acme && acmeHosts(next.forward).length > 0) {
        throw new ConfigError("Cannot use acme of a --forward without a restart: nothing is ordered yet");
      }
      if (!differs(tlsOf(current), tlsOf(next))) return { listeners: tls.forwards.listeners, clients: tls.clients };
      const opened = await openTls(next, { net, log, acme, directory: stateDirectoryOf(next, deps) });
      const clientsTls = opened.clients && (tls.clients ?? opened.clients);
      change.onCommit(() => {
        if (tls.clients && opened.clients) void tls.clients.replaceBy(opened.clients, (renewed) => clients.useTls(clientsTls!, renewed));
        tls.clients = clientsTls;
        stopRefresh?.();
        tls.proxies = opened.proxies;
        stopRefresh = refreshProxyTls();
      });
      return { listeners: opened.forwards.listeners, clients: clientsTls };
    };

    const update = async (next: LoadBalancerOptions): Promise<{ tunnelsCut: number }> => {
      let authenticates = false;
      const before = current;
      await Change.run(async (change) => {
        authenticates = await prepareParts(change, runtime, frontend, before, next);
        const forwardTls = await prepareTls(change, next);
        await clients.prepare(change, next, { ...protocols, tls: forwardTls.clients });
        await forwards.prepare(change, next.forward, forwardTls);
        if (differs(before.store, next.store)) {
          await runtime.store.prepare(change, next.store, ENTRY_TTL_MS, (other) => {
            if (other === undefined) return;
            locator.use(other, next.store.type);
            published.use(other);
            shared.store = other;
          });
        }
        change.onCommit(() => {
          current = next;
          endpoints.autoConfig = autoConfigOf(next);
          const { connectTimeout: connectTimeoutMs, responseTimeout: responseTimeoutMs } = next.httpConnector;
          Object.assign(dialing, { connectTimeoutMs, responseTimeoutMs } satisfies DialerTimeouts);
        });
      });
      const rulesOf = (
        { auth, forward, httpProxy }: LoadBalancerOptions,
      ) => [auth, forward, httpProxy.hostWhitelist, httpProxy.agentSuffix];
      if (!differs(rulesOf(before), rulesOf(next))) return { tunnelsCut: 0 };
      const tunnelsCut = await frontend.recheck({ authenticates, keeps: next.reload.forbidden === "keep" });
      runtime.access.closeRetired();
      return { tunnelsCut };
    };

    return {
      get adminAddress() {
        return runtime.admin.address;
      },
      get clientAddress() {
        return clients.addresses.clientAddress;
      },
      get socksAddress() {
        return clients.addresses.socksAddress;
      },
      get http2Address() {
        return clients.addresses.http2Address;
      },
      get forwardAddresses() {
        return forwards.addresses;
      },
      drain,
      closed: runtime.closed,
      handedOver: runtime.handover.done,
      reload: () => runtime.reload(),
      update,
      close: () => runtime.close(),
    };
  }, options.handover);
}

/**
 * Checks the files that the options name, and options that depend on each other.
 * @throws {ConfigError}
 */
export async function checkLoadBalancerOptions(
  options: LoadBalancerOptions,
  { net, stateDirectory }: { readonly net: TlsCheck; readonly stateDirectory?: string },
): Promise<void> {
  await checkAuthOptions(options.auth);
  checkClientCertificates(options);
  checkLogout(options);
  checkListenAddresses({ ...options, published: publishedListeners(options) });
  await checkAdminOptions(options.admin, net);
  await checkClusterOptions(options);
  await checkForwards(options.forward, forwardRulesOf(options));
  await checkPublished(options);
  const directory = stateDirectoryOf(options, { stateDirectory });
  const acme = await openAcme(options.acme, { directory, hosts: acmeHosts(options.forward), hasStore: true });
  await openTls(options, { log: silentLogger, net, acme, directory, isCheck: true });
  await openCertificateDirectory(options, { log: silentLogger, net });
  await checkStoreOptions(options.store);
  await checkTracingOptions(options.tracing);
}

function forwardRulesOf({ auth }: LoadBalancerOptions, hasOwnAuthenticator = false): CheckForwards {
  return {
    authType: hasOwnAuthenticator ? undefined : clientScheme(auth),
    isAuthenticatedAgain: true,
    knowsCertificates: knowsCertificates(auth),
  };
}

function publishedListeners({ published }: LoadBalancerOptions): { listen: string; network: string }[] {
  return published.flatMap((record) => publishedPorts(record).map(({ listen }) => ({ listen, network: record.network })));
}

/** Whether the proxies, which have the same options, know clients by their certificates. */
function knowsCertificates({ clients }: LoadBalancerOptions["auth"]): boolean {
  return clients.includes("mtls");
}

/** @throws {ConfigError} for a token that cannot be read, or a missing certificate */
async function checkPublished({ published, httpProxy }: Pick<LoadBalancerOptions, "published" | "httpProxy">): Promise<void> {
  for (const { listen, network, tokenFile } of published) {
    const fail = (why: string, cause?: unknown) => new ConfigError(`Cannot use --published listen=${listen}: ${why}`, { cause });
    if (network === "https" && !httpProxy.tls.enable) throw fail("network=https needs --http-proxy.tls.enable, whose certificate it has");
    await readToken(tokenFile).catch((cause: Error) => {
      throw fail(`token-file: ${cause.message}`, cause);
    });
  }
}

/**
 * Listens for clients of the forwards that agents publish.
 * @throws {NetError} as `listenTcp` and `listenUdp` of the network
 */
async function listenPublished(
  records: LoadBalancerOptions["published"],
  names: PublishedNames,
  { clients, log, tls }: { readonly clients: ServiceFrontend; readonly log: Logger; readonly tls?: ReloadableTls<ServerTls> },
): Promise<void> {
  for (const record of records) {
    const { network } = record;
    for (const { listen: address, port } of publishedPorts(record)) {
      const protocol = network === "http" || network === "https"
        ? createHostProtocol({ network, find: (host, path) => names.requests(record, network, port, host, path), name: NAME })
        : createForwardProtocol(network === "tls" ? "client-hello" : "none", (name) => names.connections(record, port, name));
      const listener = network === "udp"
        ? await clients.listenUdp({ address, protocol })
        : await clients.listen({ address, protocol, tls: network === "https" ? tls : undefined });
      log.info("serving what agents publish", { clients: listener.address, network, port });
    }
  }
}

interface LoadBalancerTls {
  /** Missing for plain HTTP from clients. */
  clients?: ReloadableTls<ServerTls>;
  readonly forwards: ForwardTls;
  /** Missing for plain HTTP to proxies. */
  proxies?: ReloadableTls<ClientTls>;
}

interface OpenTls {
  readonly log: Logger;
  readonly net: TlsCheck;
  readonly acme?: Acme;
  readonly directory: StateDirectory;
  /** Whether no file is written. */
  readonly isCheck?: boolean;
}

/** Name of the certificate in the state directory that clients get until the authority has issued one, without `.pem`. */
const CLIENT_CERTIFICATE = "lb";

function stateDirectoryOf({ stateDir }: LoadBalancerOptions, { stateDirectory }: { readonly stateDirectory?: string }): StateDirectory {
  return { path: stateDir || stateDirectory, required: Boolean(stateDir) };
}

async function openTls(
  { httpProxy, httpConnector, forward, acme: { challenge } }: LoadBalancerOptions,
  { log, net, acme, directory, isCheck = false }: OpenTls,
): Promise<LoadBalancerTls> {
  const { enable, file: { key, cert } } = httpProxy.tls;
  const managedFile = acme?.certificateFile;
  if (managedFile !== undefined && (!enable || key || cert)) {
    throw new ConfigError(
      `Cannot use --acme.domain: ${enable ? "clients get the certificate of --http-proxy.tls" : "--http-proxy.tls.enable is not set"}`,
    );
  }
  if (acme && challenge === "tls-alpn-01" && !enable && forward.every(({ network }) => network !== "https")) {
    throw new ConfigError("Cannot use --acme.challenge tls-alpn-01: there is no TLS port to answer at; set --http-proxy.tls.enable");
  }
  const hasDirectory = httpProxy.tls.certDir !== undefined && !enable;
  const selfSigned = acme === undefined && !hasDirectory
    ? undefined
    : await (isCheck ? checkSelfSigned(CLIENT_CERTIFICATE, directory) : openSelfSigned(CLIENT_CERTIFICATE, directory, log));
  const deps = { log, net };
  if (!httpProxy.tls.enable) refuseWithoutTls("http-proxy.tls", httpProxy.tls);
  if (!httpConnector.tls.enable) refuseWithoutTls("http-connector.tls", httpConnector.tls);
  const own = managedFile === undefined ? {} : { managedFile, selfSigned };
  const clients = enable ? await openServerTls("http-proxy.tls", httpProxy.tls, { ...deps, ...own }) : undefined;
  return {
    clients,
    forwards: await openForwardTls(forward, clients, { ...deps, selfSigned, hasDirectory }),
    proxies: httpConnector.tls.enable ? await openClientTls("http-connector.tls", httpConnector.tls, deps) : undefined,
  };
}

/** Unique to this process: a chain of two load balancers is no loop. */
function createPseudonym(): string {
  return `reverse-http-lb-${Array.from(crypto.getRandomValues(new Uint8Array(4)), (byte) => byte.toString(16).padStart(2, "0")).join("")}`;
}
