/**
 * A reverse HTTP proxy over QUIC, for embedding: {@link startProxy}, {@link startAgent} and {@link startLoadBalancer}, with the options of
 * the command line; and {@link openTunnel} for its clients.
 *
 * ```ts ignore
 * const proxy = await startProxy(
 *   { agentServer: { tls: { file: { key: "key.pem", cert: "cert.pem" } } } },
 *   { onAgentConnected: ({ id }) => console.log(`${id} connected`) },
 * );
 * const agent = await startAgent({ auth: { noauth: { agentId: "4711" } }, agentClient: { tls: { file: { rootCa: "cert.pem" } } } });
 * ```
 *
 * Run directly, it is the executable: `deno run -A mod.ts proxy --help`.
 *
 * @module
 */
import { type Agent, startAgent as startAgentWith } from "./agent/agent.ts";
import type { Duplex as NodeDuplex } from "node:stream";
import { expandJoin as expandAgentJoin } from "./agent/join.ts";
import { agentOptions } from "./agent/options.ts";
import { expandJoin as expandClientJoin } from "./client/join.ts";
import { toNodeStream } from "./client/node_stream.ts";
import { clientOptions } from "./client/options.ts";
import { checkAccess, openTunnel as openTunnelWith, parseDestination } from "./client/tunnel.ts";
import { type LoadBalancer, startLoadBalancer as startLoadBalancerWith } from "./lb/lb.ts";
import { lbOptions } from "./lb/options.ts";
import type { AgentOptions, ClientOptions, LoadBalancerOptions, ProxyOptions } from "./options.ts";
import type { AgentEvents } from "./proxy/agents/server.ts";
import { type Proxy, startProxy as startProxyWith } from "./proxy/proxy.ts";
import { proxyOptions } from "./proxy/options.ts";
import type { Authenticator } from "./shared/auth/authenticator.ts";
import { type Authenticate, createHookAuthenticator } from "./shared/auth/hook.ts";
import { withDefaults } from "./shared/config/defaults.ts";
import { ConfigError } from "./shared/config/option.ts";
import { type Logger, silentLogger } from "./shared/log/logger.ts";
import { createNativeNet } from "./shared/net/native/binding.ts";
import type { Net } from "./shared/net/net.ts";
import type { Store } from "./shared/store/store.ts";

export {
  AuthenticationError,
  type Authenticator,
  type Claims,
  type ClientCredentials,
  type ClientPeer,
  type Identity,
  type Peer,
  RevocationError,
  type SignedOut,
  type TunnelTarget,
} from "./shared/auth/authenticator.ts";
export { type AgentList, createAgentList } from "./shared/auth/agent_list.ts";
export { createPublishList, type PublishList } from "./shared/auth/publish_list.ts";
export type { Authenticate, AuthenticationRequest } from "./shared/auth/hook.ts";
export { type AllowList, createAllowList } from "./shared/address/allow_list.ts";
export { ConfigError };
export type { Authority, Network } from "./shared/address/authority.ts";
export {
  createLogger,
  LOG_FORMATS,
  LOG_LEVELS,
  type LogControl,
  type LogFields,
  type LogFormat,
  type Logger,
  type LoggerOptions,
  type LogLevel,
  type LogLevelControl,
} from "./shared/log/logger.ts";
export { NetError, type NetErrorCode, type NetErrorDetails } from "./shared/net/errors.ts";
export { createNativeNet, type NativeNetOptions } from "./shared/net/native/binding.ts";
export type * from "./shared/net/handover.ts";
export type * from "./shared/net/listener.ts";
export type * from "./shared/net/net.ts";
export type * from "./shared/net/relay.ts";
export type * from "./shared/net/session.ts";
export type * from "./shared/net/stream.ts";
export type * from "./shared/net/tcp.ts";
export type * from "./shared/net/tls.ts";
export type * from "./shared/net/udp.ts";
export { createMemoryStore, type MemoryStoreOptions } from "./shared/store/memory.ts";
export { type Store, StoreError } from "./shared/store/store.ts";
export { TunnelFailure, type TunnelFailureKind } from "./client/tunnel_failure.ts";
export type { Agent, AgentEvents, AgentOptions, ClientOptions, LoadBalancer, LoadBalancerOptions, Proxy, ProxyOptions };

/** Hooks and dependencies of a proxy. */
export interface ProxyHooks extends AgentEvents {
  /** Authenticates agents and clients instead of the scheme in `auth.type`. */
  authenticate?: Authenticate;
  /** As `authenticate`, with the full {@link Authenticator} interface. Only one of the two can be set. */
  authenticator?: Authenticator;
  /** Receives log messages. Default: none are logged. */
  log?: Logger;
  /** Opens the sockets. The caller closes it. Default: a new {@link createNativeNet}, which closes with the service. */
  net?: Net;
  /** Directory for the self-signed certificate if `stateDir` is not set. Default: it is not stored. */
  stateDirectory?: string;
  /** Publishes the connected agents, instead of the store in `store.type`. The caller closes it. */
  store?: Store;
}

/** Hooks and dependencies of a load balancer. */
export interface LoadBalancerHooks {
  /** Authenticates clients instead of the scheme in `auth.type`. */
  authenticate?: Authenticate;
  /** As `authenticate`, with the full {@link Authenticator} interface. Only one of the two can be set. */
  authenticator?: Authenticator;
  /** Directory for accounts and certificates by ACME, if `stateDir` is not set. Default: they cannot be obtained. */
  stateDirectory?: string;
  /** The store in which proxies publish their agents, instead of the store in `store.type`. The caller closes it. */
  store?: Store;
  /** Receives log messages. Default: none are logged. */
  log?: Logger;
  /** Opens the sockets. The caller closes it. Default: a new {@link createNativeNet}, which closes with the service. */
  net?: Net;
}

/** Hooks and dependencies of an agent. */
export interface AgentHooks {
  /** A proxy has accepted the agent. */
  onConnected?: (proxy: { remote: string }) => void;
  /** A connection to a proxy has ended. */
  onDisconnected?: (proxy: { remote: string; reason: string }) => void;
  /** Directory for state that is kept across restarts, if `stateDir` is not set. Default: nothing is kept. */
  stateDirectory?: string;
  /** Variables that name the outbound proxy if `agentClient.proxy` is not set: `process.env`. Default: none, and connections are direct. */
  environment?: Readonly<Record<string, string | undefined>>;
  /** Receives log messages. Default: none are logged. */
  log?: Logger;
  /** Opens the sockets. The caller closes it. Default: a new {@link createNativeNet}, which closes with the service. */
  net?: Net;
}

/**
 * Starts a proxy; it listens when the promise resolves. Omitted options have the defaults of the command line. Without a certificate for
 * agents it creates a self-signed one, which is stored in `stateDir` if that is set.
 * @throws {ConfigError} for invalid options, before anything is opened
 * @throws {NetError} if an address cannot be bound
 * @example
 * ```ts
 * import { startProxy } from "@reverse-http/reverse-http";
 *
 * const proxy = await startProxy(
 *   {
 *     agentServer: { listenAddress: "127.0.0.1:0", tls: { file: { key: "key.pem", cert: "cert.pem" } } },
 *     httpProxy: { listenAddress: "127.0.0.1:0", hostWhitelist: ["*.internal:443"] },
 *   },
 *   { onAgentConnected: ({ id, remote }) => console.log(`agent ${id} connected from ${remote}`) },
 * );
 * console.log(`agents connect to ${proxy.agentAddress}, clients to ${proxy.clientAddress}`);
 * await proxy.drain(); // lets running tunnels end
 * ```
 */
export async function startProxy(options: ProxyOptions, hooks: ProxyHooks = {}): Promise<Proxy> {
  const { authenticate, authenticator, net, log = silentLogger, ...others } = hooks;
  const chosen = chooseAuthenticator(authenticate, authenticator);
  return await startProxyWith(withDefaults(proxyOptions, options), { ...others, authenticator: chosen, ...givenOrOwn(net), log });
}

/**
 * Starts an agent, which connects and reconnects until it is closed. Omitted options have the defaults of the command line.
 * @throws {ConfigError} for invalid options
 * @example
 * ```ts
 * import { startAgent } from "@reverse-http/reverse-http";
 *
 * const agent = await startAgent(
 *   {
 *     agentClient: { serverAddress: ["localhost:4242"], hostWhitelist: ["10.0.0.0/8"], tls: { file: { rootCa: "cert.pem" } } },
 *     auth: { noauth: { agentId: "4711" } },
 *   },
 *   {
 *     onConnected: ({ remote }) => console.log(`connected to ${remote}`),
 *     onDisconnected: ({ remote, reason }) => console.log(`disconnected from ${remote}: ${reason}`),
 *   },
 * );
 * await agent.close();
 * ```
 */
export async function startAgent(options: AgentOptions, hooks: AgentHooks = {}): Promise<Agent> {
  const { net, log = silentLogger, ...others } = hooks;
  const joined = options.join === undefined ? {} : expandAgentJoin(options.join);
  return await startAgentWith(withDefaults(agentOptions, options, joined), { ...others, ...givenOrOwn(net), log });
}

/**
 * Starts a load balancer for proxies that share a store; it listens when the promise resolves. Omitted options have the defaults of the
 * command line. In one process, proxies and a load balancer can share {@link createMemoryStore}.
 * @throws {ConfigError} for invalid options, before anything is opened
 * @throws {NetError} if an address cannot be bound
 * @example
 * ```ts
 * import { createMemoryStore, startLoadBalancer } from "@reverse-http/reverse-http";
 *
 * const store = createMemoryStore(); // shared with the proxies
 * const lb = await startLoadBalancer({ httpProxy: { listenAddress: "127.0.0.1:0" } }, { store });
 * console.log(`clients connect to ${lb.clientAddress}`);
 * await lb.close();
 * store.close();
 * ```
 */
export async function startLoadBalancer(
  options: LoadBalancerOptions,
  hooks: LoadBalancerHooks = {},
): Promise<LoadBalancer> {
  const { authenticate, authenticator, net, log = silentLogger, ...others } = hooks;
  const chosen = chooseAuthenticator(authenticate, authenticator);
  return await startLoadBalancerWith(withDefaults(lbOptions, options), { ...others, authenticator: chosen, ...givenOrOwn(net), log });
}

/** A destination, and how to reach it. `proxy` is required. */
export interface TunnelOptions extends ClientOptions {
  /** `host:port` or `[host]:port`, as the agent reaches it. */
  destination: string;
}

/** Dependencies of a tunnel. */
export interface TunnelHooks {
  /** Opens the connection. The caller closes it. Default: a new {@link createNativeNet}, which closes with the tunnel. */
  net?: Net;
  /** Cancels the opening, with a {@link NetError} `cancelled`. An open tunnel ignores it. Default: only `connectTimeout` ends it. */
  signal?: AbortSignal;
}

/**
 * Opens a tunnel through a proxy that serves CONNECT, to a destination behind an agent. Omitted options have the defaults of the command line.
 * The result is a stream as `net.connect` of Node.js returns it, without the properties of a socket. Each direction ends separately, and a
 * reset of the tunnel is an error of the stream, a {@link NetError} `reset`. Destroying the stream before `end()` has finished resets the
 * tunnel.
 * @throws {ConfigError} for invalid options, before anything is opened
 * @throws {TunnelFailure} if the tunnel cannot be opened, with the reason
 * @throws {NetError} `cancelled`
 * @example
 * ```ts
 * import { openTunnel, TunnelFailure } from "@reverse-http/reverse-http";
 *
 * try {
 *   const stream = await openTunnel({ proxy: "127.0.0.1:3128", agentId: "4711", destination: "mail.internal:25" });
 *   stream.pipe(process.stdout);
 *   stream.end("QUIT\r\n");
 * } catch (error) {
 *   if (!(error instanceof TunnelFailure)) throw error;
 *   console.error(`${error.kind}: ${error.message}`); // no-agent: The agent is not connected
 * }
 * ```
 */
export async function openTunnel({ destination, ...options }: TunnelOptions, { net, signal }: TunnelHooks = {}): Promise<NodeDuplex> {
  const joined = options.join === undefined ? {} : expandClientJoin(options.join);
  const access = checkAccess(withDefaults(clientOptions, options, joined));
  const target = parseDestination(destination);
  const { net: used, ownsNet } = givenOrOwn(net);
  try {
    const stream = toNodeStream(await openTunnelWith(used, access, target, { signal }));
    if (ownsNet) stream.once("close", () => used.close());
    return stream;
  } catch (error) {
    if (ownsNet) used.close();
    throw error;
  }
}

/** The caller's network, or one that the service closes. */
function givenOrOwn(net: Net | undefined): { net: Net; ownsNet: boolean } {
  return { net: net ?? createNativeNet(), ownsNet: net === undefined };
}

/** @throws {ConfigError} if both are set */
function chooseAuthenticator(authenticate?: Authenticate, authenticator?: Authenticator): Authenticator | undefined {
  if (authenticate && authenticator) throw new ConfigError("Cannot use both authenticate and authenticator: set only one");
  return authenticator ?? (authenticate && createHookAuthenticator(authenticate));
}

// run directly, this is the executable; programs that import it do not load the command line
if (import.meta.main) await import("./main.ts");
