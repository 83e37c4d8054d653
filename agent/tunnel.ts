// Serves a request of the proxy: checks the head and the allow-list, connects over TCP or UDP, responds, and relays.
import { type Authority, formatAuthority, type Network, parseAuthority } from "../shared/address/authority.ts";
import { endReason } from "../shared/auth/authenticator.ts";
import { parseUdpRequest, takesDatagrams, UDP_ESTABLISHED_HEAD } from "../shared/http/connect_udp.ts";
import { parseRequestHead, requestIdOf, takeHead } from "../shared/http/head.ts";
import { CONNECTION_ESTABLISHED_HEAD, encodeErrorResponse, ProxyError, statusOf } from "../shared/http/status.ts";
import { LimitReached } from "../shared/limits/limit.ts";
import type { OpenTunnel, TunnelLimits } from "../shared/limits/tunnels.ts";
import type { LogFields, Logger } from "../shared/log/logger.ts";
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

const DNS_PORT = 53;

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
  /** The same for port 53; the shorter one counts. 0: as for all. Default 0. */
  dnsIdleMs?: number;
  /** Lists open tunnels for operators. Default: they are not listed. */
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
export function serveTunnel(options: TunnelOptions, incoming: Incoming, via?: TunnelVia): Promise<void> {
  return new ServedTunnel(options, incoming.stream, via).serve(incoming);
}

/** The network and destination of a request. */
interface Asked {
  readonly authority: Authority;
  readonly network: Network;
  /** Whether datagrams may be sent in DATAGRAM frames. */
  readonly datagrams: boolean;
}

class ServedTunnel {
  readonly #options: TunnelOptions;
  readonly #stream: Duplex;
  readonly #startedAt = performance.now();
  /** Shown to operators. */
  readonly #record: LiveTunnel;
  #limited?: OpenTunnel;
  #trace?: Span;
  /** That of the client; missing if it has sent none. */
  #id?: string;

  constructor(options: TunnelOptions, stream: Duplex, via: TunnelVia | undefined) {
    this.#options = options;
    this.#stream = stream;
    const key = options.nextKey();
    this.#record = { key, id: key, startedAt: this.#startedAt, via, sent: 0, received: 0 };
  }

  async serve(incoming: Incoming): Promise<void> {
    const { activity } = this.#options;
    activity?.tunnels.set(this.#stream, this.#record);
    try {
      const { remote, ended } = await this.#open(this.#read(incoming));
      const setupMs = this.#opened(remote);
      this.#ended(await ended, setupMs);
    } catch (cause) {
      await this.#refuse(cause);
    } finally {
      this.#limited?.close();
      this.#trace?.end(() => endOfRequest(this.#record));
      activity?.ended(this.#record);
      activity?.tunnels.delete(this.#stream);
    }
  }

  /**
   * Reads the head.
   * @throws {HeadError | ProxyError}
   */
  #read(incoming: Incoming): Asked {
    const { head, error } = incoming;
    if (head === undefined) throw new ProxyError(400, "http_request_error", "The request head is malformed", [], { cause: error });
    const record = this.#record;
    const request = parseRequestHead(takeHead(incoming));
    this.#id = requestIdOf(request.fields);
    const parent = parseTraceContext(request.fields);
    this.#trace = this.#options.tracer?.start(parent, this.#startedAt);
    record.traceId = parent?.traceId ?? this.#trace?.context.traceId;
    const udp = parseUdpRequest(request);
    if (udp) record.network = "udp";
    if (!udp && request.method !== "CONNECT") {
      throw new ProxyError(405, "http_request_denied", "Only CONNECT and UDP proxying are served", [["Allow", "CONNECT"]]);
    }
    const authority = udp ?? parseAuthority(request.target);
    record.id = this.#id ?? record.id;
    record.destination = formatAuthority(authority);
    return { authority, network: udp ? "udp" : "tcp", datagrams: udp !== undefined && takesDatagrams(request) };
  }

  /**
   * Connects, responds, and starts the relay.
   * @throws {TunnelError}
   */
  async #open(asked: Asked): Promise<ConnectedTunnel | ConnectedFlow> {
    const { limits } = this.#options;
    const destination = this.#record.destination!;
    this.#limited = limits?.open({});
    const span = this.#trace?.child("client", "connect", () => ({
      ...addressAttributes("server", destination),
      "network.transport": asked.network,
    }));
    try {
      return await inSpan(
        span,
        () => connect(this.#options, this.#stream, asked, this.#limited),
        ({ remote }) => ({ attributes: addressAttributes("network.peer", remote) }),
      );
    } catch (cause) {
      if (cause instanceof NetError && cause.code === "address-not-available") limits?.recordNoPort(destination);
      throw destinationError(cause, destination);
    }
  }

  /** Returns the time since the request, in milliseconds. */
  #opened(address: string): number {
    const { activity, log } = this.#options;
    const record = this.#record;
    record.connectedAt = performance.now();
    activity?.opened(record);
    const setupMs = round(record.connectedAt - this.#startedAt);
    const { network, destination } = record;
    log.debug("tunnel opened", { id: this.#id, network, destination, address, setupMs });
    return setupMs;
  }

  #ended(result: SpliceResult | FlowResult, setupMs: number): void {
    const record = this.#record;
    const { network } = record;
    const { aToB: sent, bToA: received, error, errorSide } = result;
    const isIdle = error?.code === "timed-out" && errorSide === undefined;
    if (isIdle && !network) this.#limited?.recordIdle();
    if (error?.code === "limit" && errorSide === undefined) this.#limited?.recordCut();
    const status = record.status = network ? 101 : 200;
    // a flow that is idle has just ended
    const proxyError = record.proxyError = error && !(isIdle && network) ? "connection_terminated" : undefined;
    const reason = record.reason = this.#endReason(result);
    record.sent = sent;
    record.received = received;
    const totalMs = round(performance.now() - this.#startedAt);
    const datagrams = "datagrams" in result ? result.datagrams : undefined;
    this.#options.log.info("tunnel", {
      ...this.#logFields(),
      status,
      reason,
      sent,
      received,
      datagramsSent: datagrams?.aToB,
      datagramsReceived: datagrams?.bToA,
      datagramsDropped: datagrams?.dropped,
      setupMs,
      totalMs,
    });
    const traceId = this.#trace?.isRecorded ? this.#trace.context.traceId : undefined;
    this.#options.onEnd?.({ status, error: proxyError, setupMs, totalMs, id: record.id, traceId, sent, received, datagrams });
  }

  /** Why the tunnel has ended; `undefined` if both directions were complete. */
  #endReason({ error, errorSide }: SpliceResult | FlowResult): string | undefined {
    const { closedBy, cutBecause } = this.#record;
    if (closedBy !== undefined) return `closed by the operator ${closedBy}`;
    if (cutBecause !== undefined) return `cut: ${cutBecause}`;
    if (error && this.#limited?.signal?.aborted) return endReason(this.#limited.signal);
    return error && `${errorSide === undefined ? "" : errorSide === "a" ? "proxy: " : "destination: "}${error.message}`;
  }

  /** Responds with an error. Never rejects. */
  async #refuse(cause: unknown): Promise<void> {
    const { log, onEnd } = this.#options;
    const failure = reportableError(cause);
    const [status, reason] = [statusOf(failure), describeTunnelError(failure)];
    Object.assign(this.#record, { status, proxyError: failure.type, reason } satisfies Partial<LiveTunnel>);
    const asked = this.#logFields();
    if (failure !== cause) log.error("tunnel failed", { ...asked, error: cause instanceof Error ? cause.stack : String(cause) });
    else log[cause instanceof LimitReached ? "debug" : "info"]("tunnel refused", { ...asked, status, reason });
    await this.#stream.write(encodeErrorResponse(failure, "reverse-http-agent")).catch(() => {}); // the proxy has disconnected
    this.#stream.close();
    onEnd?.({ status, error: failure.type, sent: 0, received: 0 });
  }

  #logFields(): LogFields {
    const { traceId, network, destination } = this.#record;
    return { id: this.#id, trace_id: traceId, network, destination };
  }
}

async function connect(
  { net, destinations, limits, connectTimeoutMs, udpIdleMs = 0, dnsIdleMs = 0 }: TunnelOptions,
  stream: Duplex,
  { authority, network, datagrams }: Asked,
  tunnel: OpenTunnel | undefined,
): Promise<ConnectedTunnel | ConnectedFlow> {
  const { rates, signal } = tunnel ?? {};
  const address = await destinations.resolve(authority, network, connectTimeoutMs, signal);
  if (network === "udp") {
    return await net.connectUdp(stream, address, {
      initialDataToA: UDP_ESTABLISHED_HEAD,
      idleTimeoutMs: authority.port === DNS_PORT ? Math.min(udpIdleMs || Infinity, dnsIdleMs || udpIdleMs) : udpIdleMs,
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
