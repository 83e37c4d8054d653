/**
 * A reverse HTTP proxy over QUIC, for embedding: {@link startProxy} and {@link startAgent} with the options of the command line.
 *
 * ```ts ignore
 * const proxy = await startProxy({ agentServer: { tls: { file: { key: "key.pem", cert: "cert.pem" } } } });
 * const agent = await startAgent({ auth: { noauth: { agentId: "4711" } }, agentClient: { tls: { file: { rootCa: "cert.pem" } } } });
 * ```
 *
 * @module
 */
import { type Agent, type AgentDeps, startAgent as start } from "./agent/agent.ts";
import { type AgentOptions, agentOptions } from "./agent/options.ts";
import { type Proxy, type ProxyDeps, startProxy as startProxyWith } from "./proxy/proxy.ts";
import { type ProxyOptions, proxyOptions } from "./proxy/options.ts";
import { type PartialValues, withDefaults } from "./shared/cli/defaults.ts";
import { silentLogger } from "./shared/log.ts";
import { createNativeNet } from "./shared/net/native.ts";

export { AuthenticationError, type Authenticator, type ClientCredentials, type Identity, type Peer } from "./shared/auth/authenticator.ts";
export { type AllowList, createAllowList } from "./shared/allow_list.ts";
export { ConfigError } from "./shared/cli/option.ts";
export { createLogger, type LogFields, type Logger, type LoggerOptions } from "./shared/log.ts";
export { NetError, type NetErrorCode } from "./shared/net/errors.ts";
export { createNativeNet, type NativeNetOptions } from "./shared/net/native.ts";
export type { Agent, AgentDeps, AgentOptions, PartialValues, Proxy, ProxyDeps, ProxyOptions };

/**
 * Starts a proxy; it listens when the promise resolves. Options left out have the defaults of the command line. Without `deps` it uses the
 * native network and logs nothing. Without a certificate for agents it makes one, which lasts where a `stateDir` is given.
 * @throws {ConfigError} for options that cannot be used, before anything is opened
 * @throws {NetError} when an address cannot be listened on
 */
export async function startProxy(options: PartialValues<ProxyOptions>, deps: Partial<ProxyDeps> = {}): Promise<Proxy> {
  return await startProxyWith(withDefaults(proxyOptions, options), {
    ...deps,
    net: deps.net ?? createNativeNet(),
    log: deps.log ?? silentLogger,
  });
}

/**
 * Starts an agent, which goes on connecting until it is closed. Options left out have the defaults of the command line. Without `deps` it
 * uses the native network and logs nothing.
 * @throws {ConfigError} for options that cannot be used
 */
export async function startAgent(options: PartialValues<AgentOptions>, deps: Partial<AgentDeps> = {}): Promise<Agent> {
  return await start(withDefaults(agentOptions, options), { ...deps, net: deps.net ?? createNativeNet(), log: deps.log ?? silentLogger });
}

// run directly, it is the executable; a program that imports it does not load the command line
if (import.meta.main) await import("./main.ts");
