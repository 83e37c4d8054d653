// Assembles the load balancer: clients on one side, the store and the proxies on the other.
import type { Authenticator } from "../shared/auth/authenticator.ts";
import { ConfigError } from "../shared/config/option.ts";
import { readToken } from "../shared/frontend/forwards/credentials.ts";
import { checkOrdered, ForwardListeners, type ForwardTls } from "../shared/frontend/forwards/listeners.ts";
import { createHttpProxy, type Endpoints } from "../shared/frontend/http/proxy.ts";
import { createHostProtocol } from "../shared/frontend/http/virtual_host.ts";
import { autoConfigOf } from "../shared/frontend/http/proxy_auto_config.ts";
import type { Frontend } from "../shared/frontend/server.ts";
import { RunningService } from "../shared/frontend/running_service.ts";
import { type ListenAllOptions, ServiceFrontend } from "../shared/frontend/service_frontend.ts";
import { checkCombinations, checkParts, openParts, prepareParts, type ServiceParts } from "../shared/frontend/service_parts.ts";
import { createForwardProtocol } from "../shared/frontend/forwards/static_forward.ts";
import { type Logger, silentLogger } from "../shared/log/logger.ts";
import { quantity } from "../shared/log/quantity.ts";
import type { ServerTls } from "../shared/net/tls.ts";
import type { Acme } from "../shared/service/acme.ts";
import type { AgentState } from "../shared/service/api/types.ts";
import { Change, differs } from "../shared/service/change.ts";
import { type ServiceDeps, type ServiceRuntime, startService } from "../shared/service/runtime.ts";
import type { Store } from "../shared/store/store.ts";
import { openCertificateDirectory } from "../shared/tls/certificate_directory.ts";
import type { ReloadableTls, TlsCheck } from "../shared/tls/reloadable_tls.ts";
import { createDialer, type DialerOptions, type DialerTimeouts } from "./dial.ts";
import { Locator } from "./locator.ts";
import { type LoadBalancerOptions, publishedPorts } from "./options.ts";
import { PublishedNames } from "./published_names.ts";
import { hasOtherTls, type LoadBalancerTls, openLoadBalancerAcme, openLoadBalancerTls } from "./tls.ts";

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
/** Proxies ask lb for the client's credentials. */
const TRAITS = { isAuthenticatedAgain: true };

/**
 * Starts a load balancer; it listens when the promise resolves.
 * @throws {ConfigError} for options that cannot be used, before anything is opened
 * @throws {NetError} when the address cannot be listened on
 */
export async function startLoadBalancer(options: LoadBalancerOptions, deps: LoadBalancerDeps): Promise<UpdatableLoadBalancer> {
  return await startService<UpdatableLoadBalancer>("lb", deps, async (runtime) => {
    const lb = new RunningLoadBalancer(runtime, options, deps, await openAll(runtime, options, deps));
    await lb.start();
    return lb;
  }, options.handover);
}

/** Resources that a load balancer opens before it serves. */
interface Opened {
  /** Missing if nothing needs a certificate. */
  readonly acme?: Acme;
  readonly tls: LoadBalancerTls;
  readonly parts: ServiceParts;
  readonly store: Store;
  readonly clients: ServiceFrontend;
  /** Services for clients besides proxy requests; they change with the options. */
  readonly endpoints: Endpoints;
  readonly protocols: Pick<ListenAllOptions, "http" | "http2">;
  readonly forwards: ForwardListeners;
}

/** Opens it; the runtime closes it. */
async function openAll(runtime: ServiceRuntime, options: LoadBalancerOptions, deps: LoadBalancerDeps): Promise<Opened> {
  const { log } = runtime;
  const hasOwnAuthenticator = deps.authenticator !== undefined;
  const acme = await openLoadBalancerAcme(options, deps, log);
  const tls = await openLoadBalancerTls(options, { ...deps, log, acme });
  const certificates = await openCertificateDirectory(options, { net: deps.net, log });
  await checkCombinations(withPublished(options), { ...TRAITS, hasOwnAuthenticator });
  await checkPublished(options);
  const parts = await openParts(runtime, options, { authenticator: deps.authenticator, store: deps.store, ttlMs: ENTRY_TTL_MS });
  const { store } = parts;
  if (!store) throw new ConfigError("Cannot start: there is no store");
  const clients = new ServiceFrontend(runtime, options, { descriptors: DESCRIPTORS, hasOwnAuthenticator });
  if (certificates) clients.useDirectory(certificates);
  const endpoints: Endpoints = { autoConfig: autoConfigOf(options) };
  const protocols = { http: createHttpProxy(NAME, endpoints), http2: createHttpProxy(NAME, {}, "http2") };
  await clients.listenAll({ ...protocols, tls: tls.clients });
  const onHosts = acme && ((configured: readonly string[]) => acme.want(configured, []));
  const forwards = new ForwardListeners(clients, { log, tls: tls.forwards, name: NAME, onHosts });
  await forwards.open(options.forward);
  return { acme, tls, parts, store, clients, endpoints, protocols, forwards };
}

/** A load balancer that serves clients. */
class RunningLoadBalancer extends RunningService implements UpdatableLoadBalancer {
  readonly #deps: LoadBalancerDeps;
  readonly #opened: Opened;
  readonly #published: PublishedNames;
  readonly #locator: Locator;
  readonly #dialing: DialerOptions;
  readonly #frontend: Frontend;
  /** The store that certificates are ordered with. */
  readonly #shared: { store: Store; readonly ttlMs: number };
  #options: LoadBalancerOptions;
  /** Stops reading the certificate for proxies again. */
  #stopRefresh?: () => void;

  constructor(runtime: ServiceRuntime, options: LoadBalancerOptions, deps: LoadBalancerDeps, opened: Opened) {
    super(runtime, opened);
    const { tls, store, parts: { authenticator, audit, tracer }, clients } = opened;
    const { connectTimeout: connectTimeoutMs, responseTimeout: responseTimeoutMs } = options.httpConnector;
    this.#deps = deps;
    this.#opened = opened;
    this.#options = options;
    this.#shared = { store, ttlMs: ENTRY_TTL_MS };
    runtime.certificates.watch("proxies", () => tls.proxies?.current.cert);
    this.#published = new PublishedNames(store, { knowsCertificates: () => this.#options.auth.clients.includes("mtls") });
    this.#locator = new Locator({ store, system: options.store.type });
    this.#dialing = {
      net: runtime.net,
      locator: this.#locator,
      tls: () => tls.proxies?.current,
      connectTimeoutMs,
      responseTimeoutMs,
      onNoLocalPort: (address: string) => clients.limits.recordNoPort(address),
      pseudonym: createPseudonym(),
    };
    this.#frontend = clients.serve({ upstreamRole: "proxy", authenticator, dial: createDialer(this.#dialing), audit, tracer });
    this.#refreshProxyTls();
  }

  /** Reads the certificate for proxies again, and no longer that before. */
  #refreshProxyTls(): void {
    const { proxies } = this.#opened.tls;
    this.#stopRefresh?.();
    this.#stopRefresh = proxies && this.runtime.certificates.refresh(proxies, () => this.#options.httpConnector.tls.refresh);
  }

  /** Serves what agents publish, orders certificates, lets operators in, and says where it listens. */
  async start(): Promise<void> {
    const runtime = this.runtime;
    const { acme, clients, tls } = this.#opened;
    await listenPublished(this.#options.published, this.#published, { clients, log: runtime.log, tls: tls.clients });
    await acme?.start(runtime, {
      useChallenges: (challenges) => clients.setChallenges(challenges),
      useHosts: (hosts) => clients.setHosts(hosts),
      shared: this.#shared,
    });
    runtime.describe = () => `${runtime.isDraining ? "Draining" : "Serving"}: ${quantity(this.#frontend.open, "client")}`;
    runtime.handover.finish = async (settle) => {
      await acme?.release();
      settle(); // clients stay where they are
      await this.#frontend.outlive(this.#options.handover.timeout);
    };
    // lb does not hold agents: it reports the proxies at which it found them
    const agents = () => [...this.#locator].map(([id, address]): AgentState => ({ id, connection: id, state: "connected", address }));
    runtime.serveAdmin({ agents, population: () => ({ agents: agents().length }), drain: () => this.drain() });
    runtime.log.info("listening", {
      clients: this.clientAddress,
      http2: this.http2Address,
      socks: this.socksAddress,
      admin: this.adminAddress,
    });
  }

  drain(): Promise<void> {
    const { delay: delayMs, timeout: timeoutMs, refuseClients } = this.#options.drain;
    if (this.runtime.handover.isDone) void this.#frontend.drain(timeoutMs, Promise.resolve()); // sooner than planned
    return this.runtime.drain({
      fields: { clients: this.#frontend.open, delayMs, timeoutMs },
      delayMs,
      finish: () => this.#frontend.drain(timeoutMs, refuseClients ? Promise.resolve() : undefined),
    });
  }

  async update(next: LoadBalancerOptions): Promise<{ tunnelsCut: number }> {
    const before = this.#options;
    let authenticates = false;
    await Change.run(async (change) => {
      authenticates = await this.#prepare(change, next);
    });
    if (!differs(rulesOf(before), rulesOf(next))) return { tunnelsCut: 0 };
    const tunnelsCut = await this.#frontend.recheck({ authenticates, keeps: next.reload.forbidden === "keep" });
    this.runtime.access.closeRetired();
    return { tunnelsCut };
  }

  /** Returns whether credentials must be verified again. */
  async #prepare(change: Change, next: LoadBalancerOptions): Promise<boolean> {
    const { clients, protocols, forwards } = this.#opened;
    const authenticates = await prepareParts(change, this.runtime, this.#frontend, this.#options, next);
    const forwardTls = await this.#prepareTls(change, next);
    await clients.prepare(change, next, { ...protocols, tls: forwardTls.clients });
    await forwards.prepare(change, next.forward, forwardTls);
    await this.#prepareStore(change, next);
    change.onCommit(() => this.#apply(next));
    return authenticates;
  }

  /** Prepares other certificates; returns those of clients and forwards as they will be. */
  async #prepareTls(change: Change, next: LoadBalancerOptions): Promise<ForwardTls> {
    const { acme, tls, clients } = this.#opened;
    checkOrdered(next.forward, acme !== undefined);
    if (!hasOtherTls(this.#options, next)) return { listeners: tls.forwards.listeners, clients: tls.clients };
    const opened = await openLoadBalancerTls(next, { ...this.#deps, log: this.runtime.log, acme });
    const clientsTls = clients.prepareTls(change, tls, opened);
    change.onCommit(() => {
      tls.proxies = opened.proxies;
      this.#refreshProxyTls();
    });
    return { listeners: opened.forwards.listeners, clients: clientsTls };
  }

  async #prepareStore(change: Change, next: LoadBalancerOptions): Promise<void> {
    if (!differs(this.#options.store, next.store)) return;
    await this.runtime.store.prepare(change, next.store, ENTRY_TTL_MS, (other) => {
      if (other === undefined) return;
      this.#locator.use(other, next.store.type);
      this.#published.use(other);
      this.#shared.store = other;
    });
  }

  #apply(next: LoadBalancerOptions): void {
    const { connectTimeout: connectTimeoutMs, responseTimeout: responseTimeoutMs } = next.httpConnector;
    this.#options = next;
    this.#opened.endpoints.autoConfig = autoConfigOf(next);
    Object.assign(this.#dialing, { connectTimeoutMs, responseTimeoutMs } satisfies DialerTimeouts);
  }
}

/** The options whose change may forbid open tunnels. */
function rulesOf({ auth, forward, httpProxy: { hostWhitelist, agentSuffix } }: LoadBalancerOptions): unknown {
  return [auth, forward, hostWhitelist, agentSuffix];
}

/**
 * Checks the files that the options name, and options that depend on each other.
 * @throws {ConfigError}
 */
export async function checkLoadBalancerOptions(
  options: LoadBalancerOptions,
  { net, stateDirectory }: { readonly net: TlsCheck; readonly stateDirectory?: string },
): Promise<void> {
  await checkParts(withPublished(options), net, TRAITS);
  await checkPublished(options);
  const acme = await openLoadBalancerAcme(options, { stateDirectory });
  await openLoadBalancerTls(options, { log: silentLogger, net, acme, stateDirectory, isCheck: true });
  await openCertificateDirectory(options, { log: silentLogger, net });
}

/** The options, with a record for each port at which lb serves what agents publish. */
function withPublished(options: LoadBalancerOptions) {
  const published = options.published.flatMap((record) => publishedPorts(record).map(({ listen }) => ({ ...record, listen })));
  return { ...options, published };
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

/** Unique to this process: a chain of two load balancers is no loop. */
function createPseudonym(): string {
  return `reverse-http-lb-${Array.from(crypto.getRandomValues(new Uint8Array(4)), (byte) => byte.toString(16).padStart(2, "0")).join("")}`;
}
