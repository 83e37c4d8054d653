// What one request came to, and the line of the access log that is made of it.
import type { ProxyErrorType } from "../http/status.ts";
import type { Logger } from "../log.ts";

/** Filled in as the request goes on. */
export interface Exchange {
  /** This side's own, or the one that came with the request: a proxy in front knows it by that. */
  id: string;
  /** The client's own address. */
  client: string;
  /** The address of the connection, where that is a trusted proxy's. */
  peer?: string;
  agent?: string;
  /** See {@link Identity.tokenId}. */
  token?: string;
  /** `host:port` or `[host]:port`. */
  destination?: string;
  method?: string;
  status?: number;
  /** Error type of RFC 9209. */
  proxyError?: ProxyErrorType;
  /** In words. */
  reason?: string;
  /** When the destination was reached. */
  connectedAt?: number;
  /** Bytes from the client to the destination, and back. */
  sent: number;
  received: number;
  /** Refused for a limit, which is logged for itself. */
  isLimited?: boolean;
}

export function logAccess(log: Logger, exchange: Exchange, startedAt: number, endedAt: number): void {
  const { id, client, peer, agent, token, destination, method, status, proxyError, reason, connectedAt, sent, received } = exchange;
  // a flood of what is refused anyway is not to fill the log
  log[exchange.isLimited ? "debug" : "info"]("request", {
    id,
    client,
    peer,
    agent,
    jti: token,
    method,
    destination,
    status,
    error: proxyError,
    reason,
    sent,
    received,
    setupMs: connectedAt === undefined ? undefined : round(connectedAt - startedAt),
    totalMs: round(endedAt - startedAt),
  });
}

function round(ms: number): number {
  return Math.round(ms * 100) / 100;
}
