// The QUIC listener for agents, and the log of handshakes that fail.
import { networksOf } from "../../shared/address/allow_list.ts";
import { unlimitedIfZero } from "../../shared/limits/limit.ts";
import { ALPN, CloseCode, PROXY_TRANSPORT } from "../../shared/link/link.ts";
import type { NetError } from "../../shared/net/errors.ts";
import type { ListenQuicOptions, ServerTls, SessionListener } from "../../shared/net/types.ts";
import type { ServiceRuntime } from "../../shared/service/runtime.ts";
import type { ProxyOptions } from "../options.ts";

/** The largest limit that the network accepts. */
const MAX_HANDSHAKES = 1_000_000;

/**
 * Listens for agents until the service closes.
 * @param countFailed counts handshakes that were refused or failed
 * @throws {NetError} as `listenQuic` of the network
 */
export async function listenForAgents(
  runtime: ServiceRuntime,
  { agentServer, limits: { handshakes, handshakesPerAddress, retryThreshold, exemptAddresses } }: ProxyOptions,
  tls: ServerTls,
  countFailed: (outcome: "refused" | "failed", count: number) => void,
): Promise<SessionListener> {
  const { limitReporter, logLimit } = runtime;
  const onHandshakeError: ListenQuicOptions["onHandshakeError"] = ({ remote, error, count }) => {
    const isLimit = error.code === "limit" || error.code === "limit-per-address";
    countFailed(isLimit ? "refused" : "failed", count);
    if (error.code === "limit") limitReporter.record("handshakes", { remote, max: handshakes, reason: error.message }, count);
    else if (error.code === "limit-per-address") {
      limitReporter.record("handshakes-per-address", { remote, max: handshakesPerAddress }, count);
    } else logLimit.warn("agent handshake failed", { remote, reason: describeHandshake(error) });
  };
  const listener = await runtime.net.listenQuic({
    address: agentServer.listenAddress,
    tls,
    alpn: ALPN,
    transport: { ...PROXY_TRANSPORT, congestion: agentServer.congestionControl },
    maxPendingHandshakes: Math.min(unlimitedIfZero(handshakes), MAX_HANDSHAKES),
    pendingHandshakesPerAddress: { max: handshakesPerAddress, exempt: networksOf(exemptAddresses) },
    retryThreshold,
    onHandshakeError,
  });
  return runtime.adopt(listener, () => listener.close(CloseCode.shutdown, "shutting down"));
}

/** The network's message does not say which side dialled: in a handshake with this listener it was an agent. */
function describeHandshake({ message, code, remote }: NetError): string {
  const reason = message.replace(/^Cannot connect to \S+: (?:aborted by peer: )?/, "");
  if (!remote) return reason;
  return code === "tls"
    ? `the agent does not accept this proxy, and its log says why: ${reason}`
    : `the agent gave up during the handshake: ${reason}`;
}
