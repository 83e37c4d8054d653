// Serves one request of the proxy: head, allow-list, TCP connection, 200, copy.
import { endReason } from "../shared/auth/authenticator.ts";
import { type Authority, formatAuthority, HeadError, parseAuthority, parseRequestHead, requestIdOf } from "../shared/http/head.ts";
import type { ProxyErrorType } from "../shared/http/proxy_status.ts";
import { CONNECTION_ESTABLISHED_HEAD, encodeErrorResponse, ProxyError } from "../shared/http/status.ts";
import { LimitReached } from "../shared/limits/limit.ts";
import type { OpenTunnel, TunnelLimits } from "../shared/limits/tunnels.ts";
import type { Logger } from "../shared/log/logger.ts";
import type { TunnelEnd } from "../shared/service/metrics.ts";
import { NetError, type NetErrorCode } from "../shared/net/errors.ts";
import type { ConnectedTunnel, Duplex, Incoming, Net } from "../shared/net/types.ts";
import type { DestinationPolicy } from "./destination_policy.ts";

export interface TunnelOptions {
  net: Net;
  destinations: DestinationPolicy;
  /** What the proxy may take. Default: as much as it likes. It is not closed. */
  limits?: TunnelLimits;
  log: Logger;
  /** Longest wait in milliseconds for the connection to the destination. */
  connectTimeoutMs: number;
  /** A request is over. */
  onEnd?: (end: TunnelEnd) => void;
}

/** Never rejects: what goes wrong is answered and logged. */
export async function serveTunnel(options: TunnelOptions, { stream, head, error }: Incoming): Promise<void> {
  const { log, limits } = options;
  let tunnel: OpenTunnel | undefined;
  let id: string | undefined;
  let destination: string | undefined;
  const startedAt = performance.now();
  try {
    if (head === undefined) throw new ProxyError(400, "http_request_error", "The request head is malformed", [], { cause: error });
    const request = parseRequestHead(head);
    id = requestIdOf(request.fields);
    if (request.method !== "CONNECT") throw new ProxyError(405, "http_request_denied", "Only CONNECT is served", [["Allow", "CONNECT"]]);
    const authority = parseAuthority(request.target);
    destination = formatAuthority(authority);
    tunnel = limits?.open({});
    const { remote, ended } = await connect(options, stream, authority, tunnel).catch((cause) => {
      if (cause instanceof NetError && cause.code === "address-not-available") limits?.recordNoPort(destination!);
      throw toRefusal(cause, destination!);
    });
    const setupMs = round(performance.now() - startedAt);
    log.debug("opened", { id, destination, address: remote, setupMs });
    const { aToB, bToA, error: broken, errorSide } = await ended;
    if (broken?.code === "timed-out" && errorSide === undefined) tunnel?.recordIdle();
    if (broken?.code === "limit" && errorSide === undefined) tunnel?.recordCut();
    const reason = broken && tunnel?.signal?.aborted
      ? endReason(tunnel.signal)
      : broken && `${errorSide === undefined ? "" : errorSide === "a" ? "proxy: " : "destination: "}${broken.message}`;
    const totalMs = round(performance.now() - startedAt);
    log.info("tunnel", { id, destination, status: 200, reason, sent: aToB, received: bToA, setupMs, totalMs });
    options.onEnd?.({ status: 200, error: broken && "connection_terminated", setupMs, sent: aToB, received: bToA });
  } catch (cause) {
    const refusal = asRefusal(cause);
    const reason = refusal.cause instanceof Error ? `${refusal.message}: ${refusal.cause.message}` : refusal.message;
    if (refusal.status === 500) {
      log.error("tunnel failed", { id, destination, error: cause instanceof Error ? cause.stack : String(cause) });
    } else log[refusal instanceof LimitReached ? "debug" : "info"]("tunnel refused", { id, destination, status: refusal.status, reason });
    await stream.write(encodeErrorResponse(refusal, "reverse-http-agent")).catch(() => {}); // the proxy is gone, and with it whoever asked
    stream.close();
    options.onEnd?.({ status: refusal.status, error: refusal.error, sent: 0, received: 0 });
  } finally {
    tunnel?.close();
  }
}

async function connect(
  { net, destinations, limits, connectTimeoutMs }: TunnelOptions,
  stream: Duplex,
  authority: Authority,
  tunnel: OpenTunnel | undefined,
): Promise<ConnectedTunnel> {
  return await net.connectAndSplice(stream, await destinations.resolve(authority, connectTimeoutMs, tunnel?.signal), {
    initialDataToA: CONNECTION_ESTABLISHED_HEAD,
    idleTimeoutMs: limits?.idleMs,
    rates: tunnel?.rates,
    signal: tunnel?.signal,
  });
}

/** Answers that the agent is about to stop. Never rejects. */
export async function refuseTunnel({ log }: TunnelOptions, { stream }: Incoming): Promise<void> {
  log.debug("tunnel refused", { status: 503, reason: "shutting down" });
  const refusal = new ProxyError(503, "destination_unavailable", "The agent is shutting down", [["Retry-After", "1"]]);
  await stream.write(encodeErrorResponse(refusal, "reverse-http-agent")).catch(() => {}); // the proxy is gone
  stream.close();
}

function round(ms: number): number {
  return Math.round(ms * 100) / 100;
}

function asRefusal(cause: unknown): ProxyError {
  if (cause instanceof ProxyError) return cause;
  if (cause instanceof HeadError) return new ProxyError(cause.status, "http_request_error", cause.message);
  return new ProxyError(500, "proxy_internal_error", "Internal error of the agent", [], { cause });
}

const STATUSES: Readonly<Partial<Record<NetErrorCode, readonly [status: number, error: ProxyErrorType, what: string]>>> = {
  "refused": [502, "connection_refused", "refused the connection"],
  "unreachable": [502, "destination_ip_unroutable", "cannot be reached"],
  "unknown-host": [502, "dns_error", "has a name that the agent does not know"],
  "name-timed-out": [504, "dns_timeout", "has a name that no name server answers for"],
  "timed-out": [504, "connection_timeout", "did not answer in time"],
  "abandoned": [502, "connection_terminated", "was still being connected to when the client went away"],
  "cancelled": [504, "connection_timeout", "did not answer as long as the tunnel may live"],
  "limit": [503, "connection_limit_reached", "cannot be reached: the agent has no descriptors or memory left"],
  "address-not-available": [503, "connection_limit_reached", "cannot be reached: the agent has no local port left for it"],
};

function toRefusal(cause: unknown, destination: string): unknown {
  if (!(cause instanceof NetError)) return cause;
  const [status, error, what] = STATUSES[cause.code] ?? [502, "destination_unavailable", "cannot be reached"];
  return new ProxyError(status, error, `${destination} ${what}`, status === 503 ? [["Retry-After", "1"]] : [], { cause });
}
