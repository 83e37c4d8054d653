// Serves a request of the proxy: checks the head and the allow-list, connects over TCP or UDP, responds, and relays.
import { type Authority, formatAuthority, type Network, parseAuthority } from "../shared/address/authority.ts";
import { endReason } from "../shared/auth/authenticator.ts";
import { parseUdpRequest, takesDatagrams, UDP_ESTABLISHED_HEAD } from "../shared/http/connect_udp.ts";
import { parseRequestHead, requestIdOf } from "../shared/http/head.ts";
import { CONNECTION_ESTABLISHED_HEAD, encodeErrorResponse, ProxyError, statusOf } from "../shared/http/status.ts";
import { LimitReached } from "../shared/limits/limit.ts";
import type { OpenTunnel, TunnelLimits } from "../shared/limits/tunnels.ts";
import type { Logger } from "../shared/log/logger.ts";
import type { Activity } from "../shared/service/live/activity.ts";
import { endOfRequest } from "../shared/service/live/trace.ts";
import type { LiveTunnel } from "../shared/service/live/tunnel.ts";
import type { TunnelEnd } from "../shared/service/metrics.ts";
import { NetError } from "../shared/net/errors.ts";
import type { Incoming } from "../shared/net/listener.ts";
import type { Net } from "../shared/net/net.ts";
import type { ConnectedTunnel, SpliceResult } from "../shared/net/relay.ts";
import type { Duplex } from "../shared/net/stream.ts";
import type { ConnectedFlow, FlowResult } from "../shared/net/udp.ts";
import { addressAttributes } from "../shared/tracing/attributes.ts";
import { parseTraceContext } from "../shared/tracing/context.ts";
import { inSpan, type Span, type Tracer } from "../shared/tracing/span.ts";
import { connectError, describeTunnelError, TunnelError } from "../shared/tunnel/errors.ts";
import type { TunnelVia } from "../shared/tunnel/request.ts";
import type { DestinationPolicy } from "./destination_policy.ts";

export interface TunnelOptions {
  net: Net;
  destinations: DestinationPolicy;
  /** Limits on tunnels, which the caller closes. Default: none. */
  limits?: TunnelLimits;
  log: Logger;
  /** Timeout for the connection to the destination, in milliseconds. */
  connectTimeoutMs: number;
  /** Time without a datagram after which a UDP flow ends, in milliseconds; 0: never. Default 0. */
  udpIdleMs?: number;
  /** Shows operators what is served. Default: operators see nothing. */
  activity?: Activity;
  /** Default: there are no traces. */
  tracer?: Tracer;
  /** Creates {@link LiveTunnel.key}. */
  nextKey: () => string;
  /** Called when a request has ended. */
  onEnd?: (end: TunnelEnd) => void;
}

/**
 * Serves a request. Never rejects: errors are sent to the proxy and logged.
 * @param via the connection to the proxy
 */
export async function serveTunnel(options: TunnelOptions, { stream, head, error }: Incoming, via?: TunnelVia): Promise<void> {
  const { log, limits, activity, nextKey, tracer } = options;
  let tunnel: OpenTunnel | undefined;
  let id: string | undefined;
  let destination: string | undefined;
  let network: "udp" | undefined;
  let trace: Span | undefined;
  const startedAt = performance.now();
  const key = nextKey();
  const record: LiveTunnel = { key, id: key, startedAt, via, sent: 0, received: 0 };
  activity?.tunnels.set(stream, record);
  try {
    if (head === undefined) throw new ProxyError(400, "http_request_error", "The request head is malformed", [], { cause: error });
    const request = parseRequestHead(head);
    id = requestIdOf(request.fields);
    const parent = parseTraceContext(request.fields);
    trace = tracer?.start(parent, startedAt);
    record.traceId = parent?.traceId ?? trace?.context.traceId;
    const udp = parseUdpRequest(request);
    network = udp && "udp";
    if (!udp && request.method !== "CONNECT") {
      throw new ProxyError(405, "http_request_denied", "Only CONNECT and UDP proxying are served", [["Allow", "CONNECT"]]);
    }
    const authority = udp ?? parseAuthority(request.target);
    destination = formatAuthority(authority);
    Object.assign(record, { id: id ?? record.id, destination, network } satisfies Partial<LiveTunnel>);
    tunnel = limits?.open({});
    const relay = { network: network ?? "tcp", datagrams: network === "udp" && takesDatagrams(request) } as const;
    const dial = trace?.child("client", "connect", () => ({
      ...addressAttributes("server", formatAuthority(authority)),
      "network.transport": network ?? "tcp",
    }));
    const opening = inSpan(
      dial,
      () => connect(options, stream, authority, relay, tunnel),
      ({ remote }) => ({ attributes: addressAttributes("network.peer", remote) }),
    );
    const { remote, ended } = await opening.catch((cause) => {
      if (cause instanceof NetError && cause.code === "address-not-available") limits?.recordNoPort(destination!);
      throw destinationError(cause, destination!);
    });
    record.connectedAt = performance.now();
    activity?.opened(record);
    const setupMs = round(record.connectedAt - startedAt);
    log.debug("tunnel opened", { id, network, destination, address: remote, setupMs });
    const result: SpliceResult | FlowResult = await ended;
    const { aToB, bToA, error: relayError, errorSide } = result;
    const isIdle = relayError?.code === "timed-out" && errorSide === undefined;
    if (isIdle && !network) tunnel?.recordIdle();
    if (relayError?.code === "limit" && errorSide === undefined) tunnel?.recordCut();
    const reason = record.closedBy !== undefined
      ? `closed by the operator ${record.closedBy}`
      : record.cutBecause !== undefined
      ? `cut: ${record.cutBecause}`
      : relayError && tunnel?.signal?.aborted
      ? endReason(tunnel.signal)
      : relayError && `${errorSide === undefined ? "" : errorSide === "a" ? "proxy: " : "destination: "}${relayError.message}`;
    const totalMs = round(performance.now() - startedAt);
    const status = network ? 101 : 200;
    const datagrams = "datagrams" in result ? result.datagrams : undefined;
    const counts = datagrams && {
      datagramsSent: datagrams.aToB,
      datagramsReceived: datagrams.bToA,
      datagramsDropped: datagrams.dropped,
    };
    log.info("tunnel", {
      id,
      trace_id: record.traceId,
      network,
      destination,
      status,
      reason,
      sent: aToB,
      received: bToA,
      ...counts,
      setupMs,
      totalMs,
    });
    // a flow that is idle has just ended
    const failure = relayError && !(isIdle && network) ? "connection_terminated" : undefined;
    Object.assign(record, { status, proxyError: failure, reason, sent: aToB, received: bToA } satisfies Partial<LiveTunnel>);
    const traceId = trace?.isRecorded ? trace.context.traceId : undefined;
    options.onEnd?.({ status, error: failure, setupMs, totalMs, id: record.id, traceId, sent: aToB, received: bToA, datagrams });
  } catch (cause) {
    const failure = reportableError(cause);
    const [status, reason] = [statusOf(failure), describeTunnelError(failure)];
    Object.assign(record, { status, proxyError: failure.type, reason } satisfies Partial<LiveTunnel>);
    const asked = { id, trace_id: record.traceId, network, destination };
    if (failure !== cause) log.error("tunnel failed", { ...asked, error: cause instanceof Error ? cause.stack : String(cause) });
    else log[cause instanceof LimitReached ? "debug" : "info"]("tunnel refused", { ...asked, status, reason });
    await stream.write(encodeErrorResponse(failure, "reverse-http-agent")).catch(() => {}); // the proxy has disconnected
    stream.close();
    options.onEnd?.({ status, error: failure.type, sent: 0, received: 0 });
  } finally {
    tunnel?.close();
    trace?.end(() => endOfRequest(record));
    activity?.ended(record);
    activity?.tunnels.delete(stream);
  }
}

async function connect(
  { net, destinations, limits, connectTimeoutMs, udpIdleMs }: TunnelOptions,
  stream: Duplex,
  authority: Authority,
  { network, datagrams }: { network: Network; datagrams: boolean },
  tunnel: OpenTunnel | undefined,
): Promise<ConnectedTunnel | ConnectedFlow> {
  const { rates, signal } = tunnel ?? {};
  const address = await destinations.resolve(authority, network, connectTimeoutMs, signal);
  if (network === "udp") {
    return await net.connectUdp(stream, address, {
      initialDataToA: UDP_ESTABLISHED_HEAD,
      idleTimeoutMs: udpIdleMs,
      datagrams,
      rates,
      signal,
    });
  }
  return await net.connectAndSplice(stream, address, {
    initialDataToA: CONNECTION_ESTABLISHED_HEAD,
    idleTimeoutMs: limits?.idleMs,
    rates,
    signal,
  });
}

/** Responds that the agent is shutting down. Never rejects. */
export async function refuseTunnel({ log }: TunnelOptions, { stream }: Incoming): Promise<void> {
  log.debug("tunnel refused", { status: 503, reason: "shutting down" });
  const failure = new TunnelError("destination_unavailable", "The agent is shutting down", { retryAfterMs: 1_000 });
  await stream.write(encodeErrorResponse(failure, "reverse-http-agent")).catch(() => {}); // the proxy has disconnected
  stream.close();
}

function round(ms: number): number {
  return Math.round(ms * 100) / 100;
}

function reportableError(cause: unknown): TunnelError {
  return cause instanceof TunnelError ? cause : new TunnelError("proxy_internal_error", "Internal error of the agent", { cause });
}

function destinationError(cause: unknown, destination: string): unknown {
  if (!(cause instanceof NetError)) return cause;
  return connectError(cause, destination, "the agent") ??
    new TunnelError("destination_unavailable", `${destination} cannot be reached`, { cause });
}
