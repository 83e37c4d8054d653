// Assembles the proxy: agents on one side, clients on the other, and tunnels between them.
import type { Authenticator } from "../shared/auth/authenticator.ts";
import { bindToCertificate } from "../shared/auth/certificate_names.ts";
import { ConfigError } from "../shared/config/option.ts";
import { checkOrdered, ForwardListeners, type ForwardTls } from "../shared/frontend/forwards/listeners.ts";
import { createHttpProxy, type Endpoints } from "../shared/frontend/http/proxy.ts";
import { autoConfigOf } from "../shared/frontend/http/proxy_auto_config.ts";
import { ForwardClaims } from "../shared/frontend/forwards/claims.ts";
import type { Frontend } from "../shared/frontend/server.ts";
import { RunningService } from "../shared/frontend/running_service.ts";
import { type ListenAllOptions, ServiceFrontend } from "../shared/frontend/service_frontend.ts";
import { checkCombinations, checkParts, openParts, prepareParts, type ServiceParts } from "../shared/frontend/service_parts.ts";
import type { WebSocketEndpoint } from "../shared/frontend/http/web_socket.ts";
import { ConnectionLimiter } from "../shared/limits/connection_limiter.ts";
import type { LimitReporter } from "../shared/limits/limit.ts";
import type { SharedLimits } from "../shared/limits/shared_limits.ts";
import type { Hello } from "../shared/link/message.ts";
import { quantity } from "../shared/log/quantity.ts";
import type { Incoming } from "../shared/net/listener.ts";
import type { SessionListener } from "../shared/net/session.ts";
import type { Acme } from "../shared/service/acme.ts";
import { Change, differs } from "../shared/service/change.ts";
import { type ServiceDeps, type ServiceRuntime, startService } from "../shared/service/runtime.ts";
import type { Store } from "../shared/store/store.ts";
import { openCertificateDirectory } from "../shared/tls/certificate_directory.ts";
import type { TlsCheck } from "../shared/tls/reloadable_tls.ts";
import { Arrivals } from "./agents/arrivals.ts";
import { AgentCertificates } from "./agents/certificates.ts";
import { DestinationFailures } from "./agents/destination_failures.ts";
import { AgentListeners } from "./agents/listener.ts";
import { PublishedForwards } from "./agents/published_forwards.ts";
import { type AgentEvents, AgentServer, type AgentServerOptions } from "./agents/server.ts";
import { StalledAgentMonitor } from "./agents/stalled_agents.ts";
import { dialAgent, type DialContext } from "./dial.ts";
import { createHello } from "./hello.ts";
import { registerProxyMetrics } from "./metrics.ts";
import type { ProxyOptions } from "./options.ts";
import { ProxyPresence } from "./presence.ts";
import { agentAddresses } from "./public_address.ts";
import { checkProxyTls, hasOtherTls, logPin, openProxyAcme, openProxyTls, type ProxyTls } from "./tls.ts";
import { checkWorkers } from "./workers/options.ts";
import { ProxyWorkers } from "./workers/workers.ts";

/** The proxy's dependencies and hooks. */
export interface ProxyDeps extends ServiceDeps, AgentEvents {
  /** Replaces the scheme that `auth.type` names. */
  authenticator?: Authenticator;
  /** Directory for state if the options name none. Default: nothing is kept. */
  stateDirectory?: string;
  /** Replaces the store that `store.type` names. It is not closed. */
  store?: Store;
}

/** A running proxy. */
export interface Proxy {
  /** UDP address bound for agents. */
  readonly agentAddress: string;
  /** TCP address bound for agents where UDP is blocked, possibly that of clients; `undefined` if they connect over QUIC only. */
  readonly agentTcpAddress?: string;
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
  /** Number of agent ids connected. */
  readonly agents: number;
  /** Whether it is stopping, and clients should go elsewhere. */
  readonly draining: boolean;
  /**
   * Stops gracefully within `drain.delay` and `drain.timeout`: fails readiness, asks agents to connect elsewhere, waits for the clients it
   * has, then closes. It accepts clients as long as an agent stays that finds no other proxy. {@link close} ends it at once.
   */
  drain(): Promise<void>;
  /** Resolves when it has closed: after {@link close}, {@link drain}, or a drain that an operator has asked for. */
  readonly closed: Promise<void>;
  /** Resolves when another process has taken over by `handover.socket`; this one serves open tunnels until they end, and closes. */
  readonly handedOver: Promise<void>;
  /** Reads certificates, keys, and the files of the authenticator again. */
  reload(): Promise<void>;
  /** Resets the clients, closes the agents' connections, and frees the addresses. */
  close(): Promise<void>;
}

/** The tunnels and connections that an update has ended. */
export interface UpdateResult {
  /** Tunnels that were no longer permitted. */
  readonly tunnelsCut: number;
  /** Connections of agents whose credentials were no longer accepted. */
  readonly agentsClosed: number;
}

/** A proxy whose options can be changed. */
export interface UpdatableProxy extends Proxy {
  /**
   * Applies options that can be reloaded; the others are ignored. Listeners open and close beside those that stay. Tunnels and agents that the
   * options forbid are cut, unless `reload.forbidden` says otherwise; everything else that is open stays. Not while another call is pending.
   * @throws {ConfigError} for options that cannot be used
   * @throws {NetError} if an address cannot be listened on; in each case nothing has changed
   */
  update(options: ProxyOptions): Promise<UpdateResult>;
}

/** The service in Proxy-Status. */
const NAME = "reverse-http-proxy";
/** File descriptors per tunnel: the client's connection. */
const DESCRIPTORS = 1;
/** Interval in milliseconds at which an address may fail another authentication: a site may have many agents with one mistake. */
const FAILURE_REFILL_MS = 1_000;
/** A proxy is the last hop that verifies clients' credentials: agents get none. */
const TRAITS = { isAuthenticatedAgain: false };

/**
 * Starts a proxy; it listens when the promise resolves.
 * @throws {ConfigError} for options that cannot be used, before anything is opened
 * @throws {NetError} when an address cannot be listened on
 */
export async function startProxy(options: ProxyOptions, deps: ProxyDeps): Promise<UpdatableProxy> {
  if (options.workers > 1 && deps.worker === undefined) {
    throw new ConfigError(`Cannot use workers ${options.workers}: start the executable`);
  }
  return await startService<UpdatableProxy>("proxy", deps, async (runtime) => {
    const proxy = new RunningProxy(runtime, options, deps, await openAll(runtime, options, deps));
    await proxy.start();
    return proxy;
  }, options.handover);
}

/** Resources that a proxy opens before it serves. */
interface Opened {
  /** Missing if nothing needs a certificate. */
  readonly acme?: Acme;
  /** Missing if this process is the only one. */
  readonly workers?: ProxyWorkers;
  readonly tls: ProxyTls;
  readonly parts: ServiceParts;
  readonly listeners: AgentListeners;
  readonly countAgents: NonNullable<AgentServerOptions["onResult"]>;
  readonly clients: ServiceFrontend;
  /** Served to clients besides proxy requests; it changes with the options. */
  readonly endpoints: Endpoints;
  readonly protocols: Pick<ListenAllOptions, "http" | "http2">;
  readonly forwards: ForwardListeners;
}

/** Opens it; the runtime closes it. */
async function openAll(runtime: ServiceRuntime, options: ProxyOptions, deps: ProxyDeps): Promise<Opened> {
  const { log, metrics } = runtime;
  const hasOwnAuthenticator = deps.authenticator !== undefined;
  const workers = deps.worker && runtime.adopt(await ProxyWorkers.open(deps.worker, runtime.net, log), (own) => own.close());
  const acme = await openProxyAcme(options, deps, log);
  const tls = await openProxyTls(options, { ...deps, log, acme });
  const certificates = await openCertificateDirectory(options, { net: deps.net, log });
  await checkCombinations(options, { ...TRAITS, hasOwnAuthenticator });
  const { authenticator, store } = deps;
  const parts = await openParts(runtime, options, { authenticator, store, ttlMs: options.store.ttl });
  if (!parts.policy && providesPeople(options.auth)) {
    log.warn("every client of the identity providers may reach every agent", { remedy: "set --auth.policy-file" });
  }
  const countAgents = metrics.outcomes("reverse_http_agent_connections_total", "Connections of agents: accepted, refused or failed.");
  const listeners = await AgentListeners.open(runtime, options, tls.agents.current, countAgents);
  const clients = new ServiceFrontend(runtime, options, { descriptors: DESCRIPTORS, hasOwnAuthenticator, sharedLimits: workers?.limits });
  if (certificates) clients.useDirectory(certificates);
  const endpoints = endpointsOf(options, listeners);
  const protocols = { http: createHttpProxy(NAME, endpoints), http2: createHttpProxy(NAME, {}, "http2") };
  await clients.listenAll({ ...protocols, tls: tls.clients, links: linksOf(options, listeners) });
  const onHosts = acme &&
    ((configured: readonly string[], published: readonly string[]) => acme.want(configured, options.acme.published ? published : []));
  const forwards = new ForwardListeners(clients, { log, tls: tls.forwards, name: NAME, onHosts });
  await forwards.open(options.forward);
  return { acme, workers, tls, parts, listeners, countAgents, clients, endpoints, protocols, forwards };
}

/** A proxy that serves agents and clients. */
class RunningProxy extends RunningService implements UpdatableProxy {
  readonly #deps: ProxyDeps;
  readonly #opened: Opened;
  readonly #limiter: ConnectionLimiter;
  readonly #presence: ProxyPresence;
  readonly #published: PublishedForwards;
  readonly #certificates: AgentCertificates;
  readonly #server: AgentServer;
  readonly #dialing: DialContext;
  readonly #frontend: Frontend;
  /** Tells agents this process from others. */
  readonly #instance: string;
  /** The store that certificates are ordered with; missing without one at the start. */
  readonly #shared?: { store: Store; ttlMs: number };
  #options: ProxyOptions;
  #store?: Store;
  #hello: () => Hello;

  constructor(runtime: ServiceRuntime, options: ProxyOptions, deps: ProxyDeps, opened: Opened) {
    super(runtime, opened);
    const { log, metrics, certificates } = runtime;
    const { workers, tls, parts: { store, ...rules }, listeners, clients, forwards } = opened;
    this.#deps = deps;
    this.#instance = deps.worker?.instance ?? crypto.randomUUID();
    this.#opened = opened;
    this.#options = options;
    this.#store = store;
    this.#shared = store && { store, ttlMs: options.store.ttl };
    this.#limiter = createAgentLimiter(options, runtime.limitReporter, workers?.limits);
    this.#hello = this.#createHello();
    this.#presence = runtime.adopt(new ProxyPresence(log), (presence) => presence.close());
    this.#presence.publish({ store, options: options.store, bound: this.clientAddress, agents: [] });
    this.#published = runtime.adopt(
      new PublishedForwards(forwards, log, claimsIn(store, options.store)),
      (published) => published.close(),
    );
    this.#certificates = new AgentCertificates(tls, listeners);
    const arrivals = this.#awaitArrivals();
    this.#server = runtime.adopt(this.#createServer(arrivals), (server) => server.close());
    registerProxyMetrics(metrics, this.#server);
    this.#certificates.refresh(certificates, () => this.#options.agentServer.tls.refresh, () => this.#server.announcePins());
    const { agents } = this.#server;
    const monitor = runtime.adopt(new StalledAgentMonitor(agents), (monitor) => monitor.close());
    this.#dialing = { agents, monitor, failures: new DestinationFailures(), timeoutMs: options.agentServer.agent.dialTimeout };
    this.#frontend = clients.serve({
      ...rules,
      labelsOf: (agentId) => agents.labelsOf(agentId),
      whenExpected: workers ? () => workers.whenStarted : arrivals && ((agentId) => arrivals.whenExpected(agentId)),
      dial: (request) => dialAgent(this.#dialing, request, runtime.isDraining),
    });
  }

  /** Agents that another process has had, if this one takes over from it. */
  #awaitArrivals(): Arrivals | undefined {
    const { predecessor } = this.runtime.handover;
    return predecessor && new Arrivals({
      over: predecessor.settled,
      isConnected: (agentId) => this.#server.agents.isConnected(agentId),
      timeoutMs: () => this.#options.agentServer.agent.dialTimeout,
    });
  }

  #createServer(arrivals: Arrivals | undefined): AgentServer {
    const { log, metrics, activity } = this.runtime;
    const { onAgentConnected, onAgentDisconnected } = this.#deps;
    const { workers, parts: { authenticator }, listeners, countAgents } = this.#opened;
    const { multiple, onConflict } = this.#options.agentServer.agent;
    return new AgentServer({
      log,
      onAgentConnected,
      onAgentDisconnected,
      onArrival: (agentId) => arrivals?.connected(agentId),
      workers,
      presence: () => this.#presence.current,
      published: this.#published,
      listeners: listeners.all,
      authenticator: bindToCertificate(authenticator, () => this.#options.agentServer.tls.agentIdFrom, log),
      multiple,
      hello: () => this.#hello(),
      pins: () => this.#certificates.pins,
      onConflict,
      limiter: this.#limiter,
      onResult: countAgents,
      events: activity.events,
      onRefused: (refusal) => activity.agentRefused(refusal),
      onReplaced: metrics.count("reverse_http_agents_replaced_total", "Agents that were replaced by another one with the same id."),
    });
  }

  #createHello(): () => Hello {
    return createHello(this.#options, this.clientAddress, this.#opened.tls, this.#instance);
  }

  /** Joins other workers, orders certificates, lets operators in, and says where it listens. */
  async start(): Promise<void> {
    const runtime = this.runtime;
    const { worker } = this.#deps;
    const { acme, workers, tls, listeners, clients } = this.#opened;
    if (workers) {
      const serveOperators = (incoming: Incoming) => void runtime.admin.serveWorker(incoming); // never rejects
      runtime.admin.useWorkers(() => workers.links);
      await workers.start({
        server: this.#server,
        monitor: this.#dialing.monitor,
        rateOfAgent: (id) => clients.limits.rateOfAgent(id),
        serveOperators,
      });
    }
    if ((worker?.index ?? 0) === 0) {
      await acme?.start(runtime, {
        useChallenges: (challenges) => clients.setChallenges(challenges),
        useHosts: (hosts) => clients.setHosts(hosts),
        shared: this.#shared,
      });
    }
    runtime.describe = () =>
      `${runtime.isDraining ? "Draining" : "Serving"}: ${quantity(this.agents, "agent")}, ${quantity(this.#frontend.open, "client")}`;
    if (tls.selfSigned) logPin(tls.selfSigned, agentAddresses(this.#options, { bound: listeners.quic.address }), runtime.log);
    runtime.handover.finish = (settle) => this.#finish(settle);
    const { operations } = this.#server;
    runtime.serveAdmin({
      agents: () => operations.list(),
      population: () => ({ agents: this.agents }),
      disconnect: (request, by) => operations.disconnect(request, by),
      drain: worker ? () => Promise.resolve(worker.ask("stop")) : () => this.drain(),
    });
    runtime.log.info("listening", {
      agents: this.agentAddress,
      agentsTcp: this.agentTcpAddress,
      clients: this.clientAddress,
      http2: this.http2Address,
      socks: this.socksAddress,
      admin: this.adminAddress,
    });
  }

  get agentAddress(): string {
    return this.#opened.listeners.quic.address;
  }

  get agentTcpAddress(): string | undefined {
    const { tls } = this.#opened.listeners;
    return tls && (tls.address || this.clientAddress);
  }

  get agents(): number {
    return this.#server.agents.size;
  }

  get draining(): boolean {
    return this.runtime.isDraining;
  }

  drain(): Promise<void> {
    const { delay: delayMs, timeout: timeoutMs } = this.#options.drain;
    if (this.runtime.handover.isDone) void this.#frontend.drain(timeoutMs, Promise.resolve()); // sooner than planned
    return this.runtime.drain({
      fields: { agents: this.agents, clients: this.#frontend.open, delayMs, timeoutMs },
      delayMs,
      finish: () => this.#finishClients(timeoutMs),
    });
  }

  async #finishClients(timeoutMs: number): Promise<void> {
    const [server, frontend] = [this.#server, this.#frontend];
    const start = performance.now();
    if (timeoutMs === 0) return await frontend.drain(0);
    // clients are still served: some agents are moving, and some find no other proxy
    await server.migrate(timeoutMs);
    if (server.agents.hasAvailable) this.runtime.log.info("no other proxy for the agents", { advice: "clients are served to the end" });
    const leftMs = () => Math.max(1, timeoutMs - (performance.now() - start)); // 0 would cut the newest clients
    await frontend.drain(leftMs(), server.abandoned());
    await this.#opened.workers?.idle(leftMs());
  }

  /** Serves open tunnels until they end, after another process has taken over. */
  async #finish(settle: () => void): Promise<void> {
    const { timeout: timeoutMs } = this.#options.handover;
    await this.#opened.acme?.release();
    await this.#server.migrate(timeoutMs);
    this.#server.closeUnmovable();
    settle();
    await this.#frontend.outlive(timeoutMs);
  }

  async update(next: ProxyOptions): Promise<UpdateResult> {
    const before = this.#options;
    let authenticates = false;
    await Change.run(async (change) => {
      authenticates = await this.#prepare(change, next);
    });
    if (!differs(rulesOf(before), rulesOf(next))) return { tunnelsCut: 0, agentsClosed: 0 };
    const keeps = next.reload.forbidden === "keep";
    const tunnelsCut = await this.#frontend.recheck({ authenticates, keeps });
    const isBound = before.agentServer.tls.agentIdFrom === next.agentServer.tls.agentIdFrom;
    const agentsClosed = authenticates || !isBound ? await this.#server.recheck({ keeps }) : 0;
    this.runtime.access.closeRetired();
    return { tunnelsCut, agentsClosed };
  }

  /** Returns whether credentials must be verified again. */
  async #prepare(change: Change, next: ProxyOptions): Promise<boolean> {
    const { tls, listeners, clients, protocols, forwards } = this.#opened;
    const authenticates = await prepareParts(change, this.runtime, this.#frontend, this.#options, next);
    const forwardTls = await this.#prepareTls(change, next);
    await listeners.prepare(change, next, tls.agents.current, (opened, left) => {
      for (const listener of opened) this.#server.add(listener);
      for (const listener of left) this.#server.retire(listener);
    });
    await clients.prepare(change, next, { ...protocols, tls: forwardTls.clients, links: linksOf(next, listeners) });
    await forwards.prepare(change, next.forward, forwardTls);
    await this.#prepareStore(change, next);
    change.onCommit(() => this.#apply(next));
    return authenticates;
  }

  /** Prepares other certificates; returns those of clients and forwards as they will be. */
  async #prepareTls(change: Change, next: ProxyOptions): Promise<ForwardTls> {
    const { acme, tls, clients } = this.#opened;
    checkOrdered(next.forward, acme !== undefined);
    if (!hasOtherTls(this.#options, next)) return { listeners: tls.forwards.listeners, clients: tls.clients };
    const opened = await openProxyTls(next, { ...this.#deps, log: this.runtime.log, acme });
    change.onCommit(() => this.#certificates.replaceBy(opened));
    return { listeners: opened.forwards.listeners, clients: clients.prepareTls(change, tls, opened) };
  }

  /** Prepares another store, and another address in it. */
  async #prepareStore(change: Change, next: ProxyOptions): Promise<void> {
    const { store, httpProxy } = this.#options;
    const isOtherStore = differs(store, next.store);
    if (!isOtherStore && httpProxy.listenAddress === next.httpProxy.listenAddress) return;
    if (isOtherStore) {
      await this.runtime.store.prepare(change, next.store, next.store.ttl, (other) => {
        this.#store = other;
        this.#published.share(claimsIn(other, next.store));
        if (this.#shared && other) Object.assign(this.#shared, { store: other, ttlMs: next.store.ttl });
      });
    }
    change.onCommit(() => {
      this.#presence.publish({
        store: this.#store,
        options: next.store,
        bound: this.clientAddress,
        agents: this.#server.agents.availableIds,
      });
    });
  }

  #apply(next: ProxyOptions): void {
    const { listeners, endpoints } = this.#opened;
    this.#options = next;
    Object.assign(endpoints, endpointsOf(next, listeners));
    this.#limiter.update({ all: next.limits.agents, perAddress: next.limits.agentsPerAddress }, next.limits);
    this.#dialing.timeoutMs = next.agentServer.agent.dialTimeout;
    this.#server.update(next.agentServer.agent);
    this.#hello = this.#createHello();
  }
}

/** The options whose change may forbid open tunnels. */
function rulesOf({ auth, forward, httpProxy: { hostWhitelist, agentSuffix }, agentServer: { tls } }: ProxyOptions): unknown {
  return [auth, forward, hostWhitelist, agentSuffix, tls.agentIdFrom];
}

/**
 * Checks the files that the options name, and options that depend on each other.
 * @throws {ConfigError}
 */
export async function checkProxyOptions(options: ProxyOptions, deps: { net: TlsCheck; stateDirectory?: string }): Promise<void> {
  checkWorkers(options);
  await checkParts(options, deps.net, TRAITS);
  await checkProxyTls(options, { ...deps, acme: await openProxyAcme(options, deps) });
}

function createAgentLimiter({ limits }: ProxyOptions, reports: LimitReporter, shared: SharedLimits | undefined): ConnectionLimiter {
  return new ConnectionLimiter({
    all: { limit: "agents", max: limits.agents },
    perAddress: { limit: "agents-per-address", max: limits.agentsPerAddress },
    addresses: limits,
    failureRefillMs: FAILURE_REFILL_MS,
    reports,
    shared,
  });
}

/** Services for clients besides proxy requests. */
function endpointsOf(options: ProxyOptions, { tls }: AgentListeners): Endpoints {
  const { websocketPath: path } = options.agentServer;
  const webSocket: WebSocketEndpoint | undefined = path === undefined || tls === undefined
    ? undefined
    : { path, accept: (stream, client) => tls.acceptWebSocket(stream, client) };
  return { webSocket, autoConfig: autoConfigOf(options) };
}

/** What takes the TLS connections of agents at the port of clients. */
function linksOf({ agentServer: { shareClientPort } }: ProxyOptions, { tls }: AgentListeners): SessionListener | undefined {
  return shareClientPort ? tls : undefined;
}

/** The claims of published forwards that all proxies of a store share. */
function claimsIn(store: Store | undefined, { ttl: ttlMs }: ProxyOptions["store"]) {
  return store && { claims: new ForwardClaims(store), ttlMs };
}

/** Whether people of an identity provider are clients, who may reach every agent without a policy. */
function providesPeople({ type, clients }: ProxyOptions["auth"]): boolean {
  return clients.length === 0 ? type === "oidc" : clients.some((name) => ["oidc", "htpasswd", "mtls"].includes(name));
}
