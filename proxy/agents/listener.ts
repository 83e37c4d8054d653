// The listeners for agents, over QUIC and over TLS, and the log of handshakes that fail.
import { networksOf } from "../../shared/address/allow_list.ts";
import { splitHostPort } from "../../shared/address/host_port.ts";
import { unlimitedIfZero } from "../../shared/limits/limit.ts";
import { ALPN, CloseCode, CREDENTIALS_ALPN, keepAlive, PROXY_TRANSPORT, TLS_ALPN } from "../../shared/link/link.ts";
import { PROBE_ALPN } from "../../shared/link/probe.ts";
import { NetError } from "../../shared/net/errors.ts";
import type { ListenSessionsOptions, ServerTls, SessionListener } from "../../shared/net/types.ts";
import type { ServiceRuntime } from "../../shared/service/runtime.ts";
import { NO_LISTENER, type ProxyOptions } from "../options.ts";

/** The largest limit that the network accepts. */
const MAX_HANDSHAKES = 1_000_000;
/** What is no agent. First, because an agent offers one of these only together with the protocols that older proxies know. */
const CHECKS_ALPN = [CREDENTIALS_ALPN, PROBE_ALPN];
/** Attempts to find a port that is free for UDP and TCP, where the system chooses it. */
const MAX_PORTS = 16;

/** The open listeners. */
export interface AgentListeners {
  readonly quic: SessionListener;
  /** Missing if agents connect over QUIC only. Without an address if it has only what clients' listeners pass on. */
  readonly tls?: SessionListener;
}

/**
 * Listens for agents until the service closes.
 * @param countFailed counts handshakes that were refused or failed
 * @throws {NetError} as `listenQuic` of the network
 */
export async function listenForAgents(
  runtime: ServiceRuntime,
  options: ProxyOptions,
  tls: ServerTls,
  countFailed: (outcome: "refused" | "failed", count: number) => void,
): Promise<AgentListeners> {
  const { net } = runtime;
  const { listenAddress, tcpListenAddress, congestionControl, keepAlive: keepAliveMs } = options.agentServer;
  const transport = { ...PROXY_TRANSPORT, ...keepAlive(keepAliveMs) };
  const common = { tls, ...handshakeLimits(runtime, options, countFailed) };
  const adopt = (listener: SessionListener) => runtime.adopt(listener, () => listener.close(CloseCode.shutdown, "shutting down"));
  const listenQuic = () =>
    net.listenQuic({
      ...common,
      address: listenAddress,
      alpn: [...CHECKS_ALPN, ...ALPN],
      transport: { ...transport, congestion: congestionControl },
      retryThreshold: options.limits.retryThreshold,
    });
  const listenTls = (address?: string) => net.listenTlsLink({ ...common, address, alpn: [...CHECKS_ALPN, ...TLS_ALPN], transport });
  if (tcpListenAddress === NO_LISTENER || (tcpListenAddress === undefined && isPortTaken(options, runtime))) {
    const quic = adopt(await listenQuic());
    return usesClientPort(options) ? { quic, tls: adopt(await listenTls()) } : { quic };
  }
  if (tcpListenAddress !== undefined) return { quic: adopt(await listenQuic()), tls: adopt(await listenTls(tcpListenAddress)) };
  const both = await listenOnBoth(listenAddress, listenQuic, listenTls);
  return { quic: adopt(both.quic), tls: adopt(both.tls) };
}

/** Whether agents connect to the port of clients. */
function usesClientPort({ agentServer: { shareClientPort, websocketPath } }: ProxyOptions): boolean {
  return shareClientPort || websocketPath !== undefined;
}

/** Whether the proxy itself uses the TCP port for clients or operators. */
function isPortTaken(options: ProxyOptions, { log }: ServiceRuntime): boolean {
  const { agentServer, httpProxy, admin } = options;
  const { port } = splitHostPort(agentServer.listenAddress);
  const others = { "--http-proxy.listen-address": httpProxy.listenAddress, "--admin.listen-address": admin.listenAddress };
  const [taken] = Object.entries(others).find(([, address]) => address && port !== 0 && splitHostPort(address).port === port) ?? [];
  if (taken === undefined) return false;
  if (usesClientPort(options)) return true;
  log.info("agents connect over QUIC only", { reason: `${taken} has the TCP port ${port}; set --agent-server.tcp-listen-address` });
  return true;
}

/**
 * Listens on the same port of UDP and TCP; where the system chooses the port, it may be free for only one of them.
 * @throws {NetError}
 */
async function listenOnBoth(
  address: string,
  listenQuic: () => Promise<SessionListener>,
  listenTls: (address: string) => Promise<SessionListener>,
): Promise<Required<AgentListeners>> {
  for (let attempts = 1;; attempts++) {
    const quic = await listenQuic();
    try {
      return { quic, tls: await listenTls(address.replace(/:0+$/, /:[0-9]+$/.exec(quic.address)![0])) };
    } catch (cause) {
      await quic.close(CloseCode.shutdown, "");
      if (!(cause instanceof NetError) || cause.code !== "address-in-use") throw cause;
      if (splitHostPort(address).port === 0 && attempts < MAX_PORTS) continue;
      const advice = "agents may connect over TCP too: set --agent-server.tcp-listen-address to a free address, or to none";
      throw new NetError(cause.code, `${cause.message}; ${advice}`, { cause });
    }
  }
}

/** The limits on handshakes, and the log of those that fail. */
function handshakeLimits(
  { limitReporter, logLimit }: ServiceRuntime,
  { limits: { handshakes, handshakesPerAddress, exemptAddresses } }: ProxyOptions,
  countFailed: (outcome: "refused" | "failed", count: number) => void,
): Pick<ListenSessionsOptions, "maxPendingHandshakes" | "pendingHandshakesPerAddress" | "onHandshakeError"> {
  return {
    maxPendingHandshakes: Math.min(unlimitedIfZero(handshakes), MAX_HANDSHAKES),
    pendingHandshakesPerAddress: { max: handshakesPerAddress, exempt: networksOf(exemptAddresses) },
    onHandshakeError({ remote, error, count }) {
      const isLimit = error.code === "limit" || error.code === "limit-per-address";
      countFailed(isLimit ? "refused" : "failed", count);
      if (error.code === "limit") limitReporter.record("handshakes", { remote, max: handshakes, reason: error.message }, count);
      else if (error.code === "limit-per-address") {
        limitReporter.record("handshakes-per-address", { remote, max: handshakesPerAddress }, count);
      } else logLimit.warn("agent handshake failed", { remote, reason: describeHandshake(error) });
    },
  };
}

/** The network's message does not say which side dialled: in a handshake with this listener it was an agent. */
function describeHandshake({ message, code, remote }: NetError): string {
  const reason = message.replace(/^Cannot connect to \S+: (?:aborted by peer: )?/, "");
  if (!remote) return reason;
  return code === "tls"
    ? `the agent does not accept this proxy, and its log says why: ${reason}`
    : `the agent gave up during the handshake: ${reason}`;
}
