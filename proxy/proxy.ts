// Assembles the proxy: agents on one side, clients on the other, and tunnels between them.
import { hostname } from "node:os";
import { createAllowList } from "../shared/address/allow_list.ts";
import type { Authenticator } from "../shared/auth/authenticator.ts";
import { bindToCertificate } from "../shared/auth/certificate_names.ts";
import { checkLogout } from "../shared/auth/oidc.ts";
import { checkClientCertificates } from "../shared/auth/mtls.ts";
import { ConfigError } from "../shared/config/option.ts";
import { checkAuthOptions, clientScheme } from "../shared/auth/scheme.ts";
import { checkListenAddresses } from "../shared/frontend/listen_addresses.ts";
import { ServiceFrontend } from "../shared/frontend/service_frontend.ts";
import { createHttpProxy, type Endpoints } from "../shared/frontend/http_proxy.ts";
import { prepareService } from "../shared/frontend/prepare_service.ts";
import { autoConfigOf } from "../shared/frontend/proxy_auto_config.ts";
import type { Frontend } from "../shared/frontend/server.ts";
import { ForwardClaims } from "../shared/frontend/published_claims.ts";
import { acmeHosts } from "../shared/frontend/forwards.ts";
import { checkForwards, ForwardListeners, type ForwardTls } from "../shared/frontend/forward_listeners.ts";
import type { WebSocketEndpoint } from "../shared/frontend/web_socket.ts";
import { ConnectionLimiter } from "../shared/limits/connection_limiter.ts";
import type { LimitReporter } from "../shared/limits/limit.ts";
import { type Logger, silentLogger } from "../shared/log/logger.ts";
import { openPolicy } from "../shared/policy/policy.ts";
import { openAcme } from "../shared/service/acme.ts";
import { Change, differs } from "../shared/service/change.ts";
import { checkAdminOptions } from "../shared/service/admin.ts";
import { checkClusterOptions } from "../shared/service/cluster/cluster.ts";
import { type ServiceDeps, type ServiceRuntime, startService } from "../shared/service/runtime.ts";
import { checkStoreOptions } from "../shared/store/options.ts";
import { type PresencePublisher, startPresencePublisher } from "../shared/store/presence.ts";
import type { Store } from "../shared/store/store.ts";
import type { TlsCheck } from "../shared/tls/reloadable_tls.ts";
import { checkTracingOptions } from "../shared/tracing/otlp.ts";
import type { ServerTls } from "../shared/net/tls.ts";
import type { Dialer } from "../shared/tunnel/request.ts";
import { Arrivals } from "./agents/arrivals.ts";
import { DestinationFailures } from "./agents/destination_failures.ts";
import { AgentListeners } from "./agents/listener.ts";
import { type AgentEvents, AgentServer } from "./agents/server.ts";
import { PublishedForwards } from "./agents/published_forwards.ts";
import { StalledAgentMonitor } from "./agents/stalled_agents.ts";
import { dialAgent } from "./dial.ts";
import { registerProxyMetrics } from "./metrics.ts";
import type { ProxyOptions } from "./options.ts";
import { agentAddresses, clientAddresses, isEvery } from "./public_address.ts";
import { checkProxyTls, logPin, openProxyTls, pinsOf, type ProxyTls, stateDirectoryOf } from "./tls.ts";
import { pinFor } from "../shared/tls/trust.ts";
import { VERSION } from "../shared/version.ts";
import type { Hello } from "../shared/link/message.ts";
import { splitHostPort } from "../shared/address/host_port.ts";
import { messageOf } from "../shared/log/error_message.ts";

/** What the proxy needs besides its options. */
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
  /** Resolves when another process has taken over by `handover.socket`; this one finishes what is open, and closes. */
  readonly handedOver: Promise<void>;
  /** Reads certificates, keys, and the files of the authenticator again. */
  reload(): Promise<void>;
  /** Resets the clients, tells the agents, frees the addresses. */
  close(): Promise<void>;
}

/** What an update has ended. */
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

/**
 * Starts a proxy; it listens when the promise resolves.
 * @throws {ConfigError} for options that cannot be used, before anything is opened
 * @throws {NetError} when an address cannot be listened on
 */
export async function startProxy(options: ProxyOptions, deps: ProxyDeps): Promise<UpdatableProxy> {
  return await startService<UpdatableProxy>("proxy", deps, async (runtime) => {
    const { log, metrics } = runtime;
    const hasStore = deps.store !== undefined || options.store.type !== "none";
    const acme = await openAcme(options.acme, {
      directory: stateDirectoryOf(options, deps),
      hosts: acmeHosts(options.forward),
      publishedNames: options.acme.published ? options.acme.publishedNames : 0,
      hasStore,
      log,
    });
    const tls = await openProxyTls(options, { ...deps, log, acme });
    const hasOwnAuthenticator = deps.authenticator !== undefined;
    await checkForwards(options.forward, {
      authType: hasOwnAuthenticator ? undefined : clientScheme(options.auth),
      isAuthenticatedAgain: false,
    });
    checkClientCertificates(options);
    checkLogout(options);
    checkListenAddresses(options);
    const allowList = createAllowList(options.httpProxy.hostWhitelist);
    const authenticator = await runtime.access.openAuthenticator(options.auth, deps.authenticator);
    const policy = await runtime.access.openPolicy(options.auth.policyFile);
    if (!policy && providesPeople(options.auth)) {
      log.warn("every client of the identity providers may reach every agent", { remedy: "set --auth.policy-file" });
    }
    const store = await runtime.store.open(options.store, options.store.ttl, deps.store);
    const audit = await runtime.audit.open(options.audit);
    const tracer = await runtime.openTracer(options.tracing);
    await runtime.admin.listen(options.admin);
    await runtime.admin.joinCluster(options.admin.cluster, store, options.store.ttl);
    const countAgents = metrics.outcomes("reverse_http_agent_connections_total", "Connections of agents: accepted, refused or failed.");
    const listeners = await AgentListeners.open(runtime, options, tls.agents.current, countAgents);
    const clients = new ServiceFrontend(runtime, options, { descriptors: DESCRIPTORS, hasOwnAuthenticator });
    const endpoints: Endpoints = { webSocket: webSocketsOf(options, listeners), autoConfig: autoConfigOf(options) };
    const protocols = { http: createHttpProxy(NAME, endpoints), http2: createHttpProxy(NAME, {}, "http2") };
    const linksOf = ({ agentServer }: ProxyOptions) => agentServer.shareClientPort ? listeners.tls : undefined;
    await clients.listenAll({ ...protocols, tls: tls.clients, links: linksOf(options) });
    const onHosts = acme &&
      ((configured: readonly string[], published: readonly string[]) => acme.want(configured, options.acme.published ? published : []));
    const forwards = new ForwardListeners(clients, { log, tls: tls.forwards, name: NAME, onHosts });
    await forwards.open(options.forward);
    const limiter = createAgentLimiter(options, runtime.limitReporter);
    let current = options;
    const instance = crypto.randomUUID();
    let hello = createHello(options, clients.addresses.clientAddress, tls, instance);
    let presence = store && publishPresence(store, options, clients.addresses.clientAddress, log);
    runtime.defer(() => presence?.close());
    const claimsIn = (store: Store | undefined, { ttl: ttlMs }: ProxyOptions["store"]) =>
      store && { claims: new ForwardClaims(store), ttlMs };
    const published = runtime.adopt(
      new PublishedForwards(forwards, log, claimsIn(store, options.store)),
      (published) => published.close(),
    );
    let pins = pinsOf(tls);
    const server = new AgentServer({
      onArrival: (agentId) => arrivals?.connected(agentId), // never before this function goes on
      onAgentConnected: deps.onAgentConnected,
      onAgentDisconnected: deps.onAgentDisconnected,
      log,
      presence: () => presence,
      published,
      listeners: listeners.all,
      authenticator: bindToCertificate(authenticator, () => current.agentServer.tls.agentIdFrom, log),
      multiple: options.agentServer.agent.multiple,
      hello: () => hello(),
      pins: () => pins,
      onConflict: options.agentServer.agent.onConflict,
      limiter,
      onResult: countAgents,
      events: runtime.activity.events,
      onRefused: (refusal) => runtime.activity.agentRefused(refusal),
      onReplaced: metrics.count("reverse_http_agents_replaced_total", "Agents that were replaced by another one with the same id."),
    });
    const { agents } = server;
    const { predecessor } = runtime.handover;
    const arrivals = predecessor && new Arrivals({
      over: predecessor.settled,
      isConnected: (agentId) => agents.isConnected(agentId),
      timeoutMs: () => dialing.timeoutMs,
    });
    runtime.defer(() => server.close());
    registerProxyMetrics(metrics, server);
    runtime.certificates.watch("agents", () => tls.agents.current.cert);
    const monitor = runtime.adopt(new StalledAgentMonitor(agents), (monitor) => monitor.close());
    const dialing = { agents, monitor, failures: new DestinationFailures(), timeoutMs: options.agentServer.agent.dialTimeout };
    const dial: Dialer = (request) => dialAgent(dialing, request, runtime.isDraining);
    const labelsOf = (agentId: string) => agents.labelsOf(agentId);
    const whenExpected = arrivals && ((agentId: string) => arrivals.whenExpected(agentId));
    const frontend = clients.serve({ authenticator, allowList, policy, labelsOf, whenExpected, dial, audit, tracer });
    const useAgentTls = (renewed: ServerTls) => {
      for (const listener of listeners.all) listener.setTls(renewed);
      queueMicrotask(announcePins); // it is in force then
    };
    const announcePins = () => {
      const before = pins.join();
      pins = pinsOf(tls);
      if (pins.join() !== before) server.announcePins();
    };
    runtime.certificates.refresh(tls.nextPin, () => current.agentServer.tls.refresh, () => queueMicrotask(announcePins));
    runtime.certificates.refresh(tls.agents, () => current.agentServer.tls.refresh, useAgentTls);
    const shared = store && { store, ttlMs: options.store.ttl };
    await acme?.start(runtime, {
      useChallenges: (challenges) => clients.setChallenges(challenges),
      useHosts: (hosts) => clients.setHosts(hosts),
      shared,
    });
    runtime.describe = () => `${runtime.isDraining ? "Draining" : "Serving"}: ${agents.size} agents, ${frontend.open} clients`;
    const agentTcpAddress = () => listeners.tls && (listeners.tls.address || clients.addresses.clientAddress);
    if (tls.selfSigned) logPin(tls.selfSigned, agentAddresses(options, { bound: listeners.quic.address }), log);
    const drainAll = () => {
      if (runtime.handover.isDone) void frontend.drain(current.drain.timeout, Promise.resolve()); // sooner than planned
      return drain(runtime, server, frontend, current.drain);
    };
    runtime.handover.finish = async (settle) => {
      const { timeout: timeoutMs } = current.handover;
      await acme?.release();
      await server.migrate(timeoutMs);
      server.closeUnmovable();
      settle();
      await frontend.outlive(timeoutMs);
    };
    runtime.serveAdmin({
      agents: () => server.operations.list(),
      population: () => ({ agents: agents.size }),
      disconnect: (request, by) => server.operations.disconnect(request, by),
      drain: drainAll,
    });
    const { clientAddress, http2Address, socksAddress } = clients.addresses;
    log.info("listening", {
      agents: listeners.quic.address,
      agentsTcp: agentTcpAddress(),
      clients: clientAddress,
      http2: http2Address,
      socks: socksAddress,
      admin: runtime.admin.address,
    });

    /** Prepares other certificates; returns those of clients and forwards as they will be. */
    const prepareTls = async (change: Change, next: ProxyOptions): Promise<ForwardTls> => {
      const tlsOf = ({ agentServer, httpProxy, forward }: ProxyOptions) => [
        agentServer.tls,
        agentServer.shareClientPort,
        httpProxy.tls,
        forward.map((
          { listen, network, acme, certFile, keyFile, clientCaFile },
        ) => [listen, network, acme, certFile, keyFile, clientCaFile]),
      ];
      if (!acme && acmeHosts(next.forward).length > 0) {
        throw new ConfigError("Cannot use acme of a --forward without a restart: nothing is ordered yet");
      }
      if (!differs(tlsOf(current), tlsOf(next))) return { listeners: tls.forwards.listeners, clients: tls.clients };
      const opened = await openProxyTls(next, { ...deps, log, acme });
      const clientsTls = opened.clients && (tls.clients ?? opened.clients);
      change.onCommit(() => {
        void tls.agents.replaceBy(opened.agents, useAgentTls); // never rejects
        void tls.nextPin.replaceBy(opened.nextPin, () => queueMicrotask(announcePins));
        if (tls.clients && opened.clients) void tls.clients.replaceBy(opened.clients, (renewed) => clients.useTls(clientsTls!, renewed));
        tls.clients = clientsTls;
      });
      return { listeners: opened.forwards.listeners, clients: clientsTls };
    };

    let storeInUse = store;
    const preparePresence = async (change: Change, next: ProxyOptions): Promise<void> => {
      const publish = (store: Store | undefined) => {
        presence?.close();
        presence = store && publishPresence(store, next, clients.addresses.clientAddress, log);
        for (const id of new Set(Array.from(agents, ({ identity }) => identity.agentId))) if (agents.isAvailable(id)) presence?.add(id);
      };
      if (!differs(current.store, next.store)) {
        if (current.httpProxy.listenAddress !== next.httpProxy.listenAddress) change.onCommit(() => publish(storeInUse));
        return;
      }
      await runtime.store.prepare(change, next.store, next.store.ttl, (other) => {
        storeInUse = other;
        published.share(claimsIn(other, next.store));
        if (shared && other) Object.assign(shared, { store: other, ttlMs: next.store.ttl });
      });
      change.onCommit(() => publish(storeInUse));
    };

    const update = async (next: ProxyOptions): Promise<UpdateResult> => {
      let authenticates = false;
      const before = current;
      await Change.run(async (change) => {
        authenticates = await prepareService(change, runtime, frontend, before, next);
        const forwardTls = await prepareTls(change, next);
        await listeners.prepare(change, next, tls.agents.current, (opened, left) => {
          for (const listener of opened) server.add(listener);
          for (const listener of left) server.retire(listener);
        });
        await clients.prepare(change, next, { ...protocols, tls: forwardTls.clients, links: linksOf(next) });
        await forwards.prepare(change, next.forward, forwardTls);
        await preparePresence(change, next);
        change.onCommit(() => {
          current = next;
          Object.assign(endpoints, { webSocket: webSocketsOf(next, listeners), autoConfig: autoConfigOf(next) });
          limiter.update({ all: next.limits.agents, perAddress: next.limits.agentsPerAddress }, next.limits);
          dialing.timeoutMs = next.agentServer.agent.dialTimeout;
          server.update(next.agentServer.agent);
          hello = createHello(next, clients.addresses.clientAddress, tls, instance);
        });
      });
      const rulesOf = ({ auth, forward, httpProxy, agentServer: { tls } }: ProxyOptions) => [
        auth,
        forward,
        httpProxy.hostWhitelist,
        httpProxy.agentSuffix,
        tls.agentIdFrom,
      ];
      if (!differs(rulesOf(before), rulesOf(next))) return { tunnelsCut: 0, agentsClosed: 0 };
      const keeps = next.reload.forbidden === "keep";
      const tunnelsCut = await frontend.recheck({ authenticates, keeps });
      const isBound = before.agentServer.tls.agentIdFrom === next.agentServer.tls.agentIdFrom;
      const agentsClosed = authenticates || !isBound ? await server.recheck({ keeps }) : 0;
      runtime.access.closeRetired();
      return { tunnelsCut, agentsClosed };
    };

    return {
      get adminAddress() {
        return runtime.admin.address;
      },
      get agentAddress() {
        return listeners.quic.address;
      },
      get agentTcpAddress() {
        return agentTcpAddress();
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
      get agents() {
        return agents.size;
      },
      get draining() {
        return runtime.isDraining;
      },
      drain: drainAll,
      closed: runtime.closed,
      handedOver: runtime.handover.done,
      reload: () => runtime.reload(),
      update,
      close: () => runtime.close(),
    };
  }, options.handover);
}

function drain(runtime: ServiceRuntime, server: AgentServer, frontend: Frontend, options: ProxyOptions["drain"]): Promise<void> {
  const { delay: delayMs, timeout: timeoutMs } = options;
  return runtime.drain({
    fields: { agents: server.agents.size, clients: frontend.open, delayMs, timeoutMs },
    delayMs,
    async finish() {
      const start = performance.now();
      if (timeoutMs === 0) return await frontend.drain(0);
      // clients are still served: some agents are moving, and some find no other proxy
      await server.migrate(timeoutMs);
      if (server.agents.hasAvailable) runtime.log.info("no other proxy for the agents", { advice: "clients are served to the end" });
      await frontend.drain(Math.max(1, timeoutMs - (performance.now() - start)), server.abandoned()); // 0 would cut the newest clients
    },
  });
}

function createAgentLimiter({ limits }: ProxyOptions, reports: LimitReporter): ConnectionLimiter {
  return new ConnectionLimiter({
    all: { limit: "agents", max: limits.agents },
    perAddress: { limit: "agents-per-address", max: limits.agentsPerAddress },
    addresses: limits,
    failureRefillMs: FAILURE_REFILL_MS,
    reports,
  });
}

/**
 * Checks the files that the options name, and options that depend on each other.
 * @throws {ConfigError}
 */
export async function checkProxyOptions(options: ProxyOptions, deps: { net: TlsCheck; stateDirectory?: string }): Promise<void> {
  await checkAuthOptions(options.auth);
  checkClientCertificates(options);
  checkLogout(options);
  checkListenAddresses(options);
  await checkAdminOptions(options.admin, deps.net);
  await checkClusterOptions(options);
  if (options.auth.policyFile !== undefined) (await openPolicy(options.auth.policyFile, { log: silentLogger })).close();
  await checkForwards(options.forward, { authType: clientScheme(options.auth), isAuthenticatedAgain: false });
  const acme = await openAcme(options.acme, {
    directory: stateDirectoryOf(options, deps),
    hosts: acmeHosts(options.forward),
    publishedNames: options.acme.published ? options.acme.publishedNames : 0,
    hasStore: options.store.type !== "none",
  });
  await checkProxyTls(options, { ...deps, acme });
  await checkStoreOptions(options.store);
  await checkTracingOptions(options.tracing);
}

/** What the proxy tells agents about itself. */
function createHello(options: ProxyOptions, bound: string, { clients }: ProxyTls, instance: string): () => Hello {
  const { doubt, addresses: [known] } = clientAddresses(options);
  const { port } = splitHostPort(bound);
  // where the proxy can only guess its address, agents know at which one they reach it
  const isKnown = doubt === undefined || !isEvery(options.httpProxy.listenAddress);
  const address = isKnown ? known!.replace(/:0$/, `:${port}`) : `:${port}`;
  const fixed = { version: `reverse-http/${VERSION}`, instance, host: "", labels: {} };
  const access = { address, tls: clients !== undefined, token: options.auth.type !== "noauth" };
  let pinned: { readonly cert: string; readonly pin?: string } | undefined;
  return () => {
    const cert = clients?.current.cert;
    if (cert !== undefined && pinned?.cert !== cert) pinned = { cert, pin: pinFor(cert) }; // it takes milliseconds
    return { ...fixed, clients: { ...access, pin: pinned?.pin } };
  };
}

/** The path for agents that connect within WebSockets. */
function webSocketsOf({ agentServer: { websocketPath: path } }: ProxyOptions, { tls }: AgentListeners): WebSocketEndpoint | undefined {
  return path === undefined || tls === undefined ? undefined : { path, accept: (stream, client) => tls.acceptWebSocket(stream, client) };
}

/** Publishes agents with the address at which lb reaches this proxy. */
function publishPresence(store: Store, options: ProxyOptions, bound: string, log: Logger): PresencePublisher {
  const address = options.store.httpProxyAddress ?? reachable(bound);
  log.info("publishing agents to the store", { address });
  if (options.store.httpProxyAddress === undefined) {
    log.warn("lb may not reach this proxy at this address: set --store.http-proxy-address", { address });
  }
  return startPresencePublisher({
    store,
    address,
    ttlMs: options.store.ttl,
    onFailure: ({ agentId, error }) =>
      log.debug("presence of the agent could not be stored", {
        agent: agentId,
        reason: messageOf(error),
      }),
  });
}

/** A wildcard address means nothing on another host: the host name replaces it. */
function reachable(bound: string): string {
  return bound.replace(/^(0\.0\.0\.0|\[::\])(?=:[0-9]+$)/, hostname());
}

/** Whether people of an identity provider are clients, who may reach every agent without a policy. */
function providesPeople({ type, clients }: ProxyOptions["auth"]): boolean {
  return clients.length === 0 ? type === "oidc" : clients.some((name) => ["oidc", "htpasswd", "mtls"].includes(name));
}
