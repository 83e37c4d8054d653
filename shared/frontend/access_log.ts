// What one request came to, and the line of the access log that is made of it.
import type { ProxyErrorType } from "../http/proxy_status.ts";
import type { Logger } from "../log/logger.ts";
import { printable } from "../net/printable.ts";

/** Filled in as the request goes on. */
export interface RequestRecord {
  /** This side's own, or the one that came with the request: a proxy in front knows it by that. */
  id: string;
  /** The client's own address. */
  client: string;
  /** The address of the connection, where that is a trusted proxy's. */
  peer?: string;
  agent?: string;
  /** The user name of credentials that were not accepted, or not looked at. */
  agentClaimed?: string;
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
  /** Refused for a limit, which is logged for itself, or one of many that are logged no more. */
  isQuiet?: boolean;
}

/** Longest reason in a line, in characters. */
const MAX_REASON = 1_000;

export function logAccess(log: Logger, record: RequestRecord, startedAt: number, endedAt: number): void {
  const { id, client, peer, agent, agentClaimed, token, destination, method, status, proxyError, reason, connectedAt, sent, received } =
    record;
  // a flood of what is refused anyway is not to fill the log
  log[record.isQuiet ? "debug" : "info"]("request", {
    id,
    client,
    peer,
    agent,
    agentClaimed: agent === undefined ? agentClaimed : undefined,
    jti: token,
    method,
    destination,
    status,
    error: proxyError,
    reason: reason === undefined ? undefined : printable(reason, MAX_REASON),
    sent,
    received,
    setupMs: connectedAt === undefined ? undefined : round(connectedAt - startedAt),
    totalMs: round(endedAt - startedAt),
  });
}

function round(ms: number): number {
  return Math.round(ms * 100) / 100;
}
