// Error responses to clients: which status an error becomes, and how it is sent and logged.
import { AuthenticationError } from "../auth/authenticator.ts";
import { HeadError } from "../http/head.ts";
import type { Intermediary } from "../http/proxy_status.ts";
import { encodeErrorResponse, ProxyError, TLS_NEEDED } from "../http/status.ts";
import type { ClientLimits } from "../limits/client_limits.ts";
import { LimitReached } from "../limits/limit.ts";
import type { LogLimit } from "../log/limit.ts";
import type { Logger } from "../log/logger.ts";
import { NetError } from "../net/errors.ts";
import type { Duplex } from "../net/types.ts";
import { proxyErrorOf } from "../tunnel/errors.ts";
import type { RequestRecord } from "./access_log.ts";

/** What error responses need of the frontend. */
export interface RefusalContext {
  /** The frontend's name in Proxy-Status. */
  readonly name: Intermediary;
  readonly log: Logger;
  /** Limits log lines that unauthenticated clients can cause. */
  readonly logLimit: LogLimit;
  readonly limits?: ClientLimits;
  /** A client's connection brought no request. */
  readonly onBadClient?: (what: "handshake" | "head") => void;
}

/** 407 with a challenge (RFC 9110 §11.7.1). */
export function challenge(
  message: string,
  { error = "http_request_denied", cause }: { error?: "http_request_denied" | "connection_terminated"; cause?: unknown } = {},
): ProxyError {
  return new ProxyError(407, error, message, [["Proxy-Authenticate", 'Basic realm="reverse-http"']], { cause });
}

/** The client does not learn why its credentials were rejected: the log has the reason. */
export function toDenial(cause: unknown): unknown {
  return cause instanceof AuthenticationError ? challenge("The credentials are not accepted", { cause }) : cause;
}

/**
 * Handles a connection without a request head. Returns after closing it where a response makes no sense.
 * @throws {ProxyError | HeadError | LimitReached} the response
 */
export function refuseHead(context: RefusalContext, stream: Duplex, error: NetError | undefined, record: RequestRecord): void {
  const { log, logLimit, limits, onBadClient } = context;
  switch (error?.code) {
    case "head-too-large":
      throw new ProxyError(431, "http_request_error", "The request head is too large");
    case "head-timeout":
      throw new ProxyError(408, "http_request_error", "The request head was not complete in time");
    case "limit":
      limits?.recordPendingHead(record.client);
      throw new LimitReached("pending-requests", "Too many requests are being received");
    case "limit-per-address":
      limits?.recordPendingHeadOfAddress(record.client);
      throw new LimitReached("pending-requests-per-address", "Too many requests from this address are being received");
    case "head-malformed":
    case "head-truncated":
      throw new HeadError(400, `The request head is malformed: ${error.message}`);
    case "not-tls":
      throw new HeadError(400, TLS_NEEDED);
    case "tls":
      onBadClient?.("handshake");
      logLimit.warn("client handshake failed", { id: record.id, remote: record.client, reason: error.message });
      return stream.close();
    default:
      log.debug("client disconnected before its request", { id: record.id, client: record.client, error: error?.message });
      stream.close();
  }
}

/** Whether a refused client's connection is finished, or stays open until the client has read the response. */
export type Ending = "over" | "may linger";

/** Sends the response for `error` and fills in the record. */
export async function refuse(
  { name, log, logLimit, onBadClient }: RefusalContext,
  stream: Duplex,
  record: RequestRecord,
  error: unknown,
  mayLinger: boolean,
): Promise<Ending> {
  const refusal = toProxyError(error);
  const hasResponse = record.status !== undefined;
  record.status ??= refusal.status;
  record.proxyError = refusal.error;
  record.reason = refusal.cause instanceof Error ? `${refusal.message}: ${refusal.cause.message}` : refusal.message;
  record.isQuiet = error instanceof LimitReached && record.connectedAt === undefined; // a tunnel that a limit ends is logged as others are
  if (error instanceof HeadError && record.agent === undefined) {
    onBadClient?.("head");
    record.isQuiet = !logLimit.admits("malformed request");
  }
  if (refusal.status === 500) logInternalError(log, record.id, refusal.cause);
  try {
    if (hasResponse) stream.reset(1); // a truncated response must be visible
    else await stream.write(encodeErrorResponse(refusal, name, record));
    if (!hasResponse && mayLinger) return "may linger";
  } catch (error) {
    log.debug("client disconnected before its response", { id: record.id, error: error instanceof Error ? error.message : String(error) });
  }
  stream.close();
  return "over";
}

function toProxyError(error: unknown): ProxyError {
  const known = proxyErrorOf(error);
  if (known) return known;
  if (error instanceof NetError) {
    return new ProxyError(502, "connection_terminated", "The connection to the destination was lost", [], { cause: error });
  }
  return new ProxyError(500, "proxy_internal_error", "Internal error", [], { cause: error });
}

export function logInternalError(log: Logger, id: string | undefined, error: unknown): void {
  log.error("request failed", { id, error: error instanceof Error ? error.stack : String(error) });
}
