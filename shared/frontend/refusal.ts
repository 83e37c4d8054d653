// Failed requests of any client protocol: which error it is, the log and the metrics, and how the connection ends.
import { statusOf } from "../http/status.ts";
import { LimitReached } from "../limits/limit.ts";
import type { Logger } from "../log/logger.ts";
import type { NetError } from "../net/errors.ts";
import type { Incoming } from "../net/listener.ts";
import { describeTunnelError, MalformedRequestError, toTunnelError } from "../tunnel/errors.ts";
import type { ClientHandler, ClientProtocol } from "./client_protocol.ts";
import type { ClientSession } from "./pipeline.ts";
import { messageOf } from "../log/error_message.ts";

/**
 * Handles a connection that the listener could not read a request from. Returns after closing it where a response makes no sense.
 * @throws {TunnelError} the response
 */
export function refuseAccepted(
  { context, stream, record }: ClientSession,
  protocol: ClientProtocol,
  { error, head }: Incoming & { readonly error: NetError },
): void {
  const { log, logLimit, limits, onBadClient } = context;
  switch (error.code) {
    case "limit":
      limits?.recordPendingHead(record.client);
      throw new LimitReached("pending-requests", "Too many requests are being received");
    case "limit-per-address":
      limits?.recordPendingHeadOfAddress(record.client);
      throw new LimitReached("pending-requests-per-address", "Too many requests from this address are being received");
    case "tls":
      onBadClient?.("handshake");
      logLimit.warn("client handshake failed", { id: record.id, remote: record.client, reason: error.message });
      return stream.close();
    default: {
      const refusal = protocol.refusalOf?.(error, head);
      if (refusal) throw refusal;
      log.debug("client disconnected before its request", { id: record.id, client: record.client, error: error.message });
      stream.close();
    }
  }
}

/** What happens to the connection of a refused client: closed, or kept open until the client has read the response. */
export type ConnectionEnd = "closed" | "lingering";

/** Sends the response for `thrown` and fills in the record. */
export async function refuse(session: ClientSession, handler: ClientHandler, thrown: unknown, mayLinger: boolean): Promise<ConnectionEnd> {
  const { context: { log, logLimit, onBadClient }, stream, record } = session;
  const error = toTunnelError(thrown);
  const hasResponse = record.status !== undefined;
  record.status ??= statusOf(error);
  record.proxyError = error.type;
  record.reason = describeTunnelError(error);
  record.isQuiet = error instanceof LimitReached && record.connectedAt === undefined; // a tunnel that a limit ends is logged as others are
  if (error instanceof MalformedRequestError && record.agent === undefined) {
    onBadClient?.("head");
    record.isQuiet = !logLimit.admits("malformed request");
  }
  if (error.type === "proxy_internal_error" && error !== thrown) logInternalError(log, record.id, thrown);
  try {
    if (hasResponse) stream.reset(1); // a truncated response must be visible
    else await handler.refuse(error);
    if (!hasResponse && mayLinger) return "lingering";
  } catch (error) {
    log.debug("client disconnected before its response", { id: record.id, error: messageOf(error) });
  }
  stream.close();
  return "closed";
}

export function logInternalError(log: Logger, id: string | undefined, error: unknown): void {
  log.error("request failed", { id, error: error instanceof Error ? error.stack : String(error) });
}
