// The record of one request, its id, and the lines that the log gets for it.
import type { RequestHead } from "../http/head.ts";
import { ignoreLine, type Logger } from "../log/logger.ts";
import { printable } from "../net/printable.ts";
import type { AuditLog, AuditStart } from "../service/audit.ts";
import type { LiveTunnel } from "../service/live/tunnel.ts";
import type { Span } from "../tracing/span.ts";

/** Filled in while the request is served. */
export interface RequestRecord extends LiveTunnel {
  client: string;
  /** The user name of credentials that were rejected or not checked. */
  agentClaimed?: string;
  /** See {@link Identity.groups}. */
  groups?: readonly string[];
  /** The server name in the client's ClientHello, or the host of a request to a virtual host. */
  serverName?: string;
  method?: string;
  /** The request's span. */
  trace?: Span;
  /** The audit log has a start of it, or has tried to write one. */
  isAudited?: boolean;
  /** Number of datagrams of a UDP flow that were dropped because the client read too slowly. */
  datagramsDropped?: number;
  /** Logged at `debug`: the limit that refused it has its own line, or too many of these lines were logged. */
  isQuiet?: boolean;
}

/** Maximum length of a person's groups in characters. */
const MAX_GROUPS = 512;
/** Maximum length of a reason in characters. */
const MAX_REASON = 1_000;

export function logAccess(log: Logger, record: RequestRecord, endedAt: number): void {
  const { id, client, peer, agent, agentClaimed, token, subject, name, groups, protocol, method, network, destination, serverName } =
    record;
  const { traceId, status, proxyError, reason, startedAt, connectedAt, sent, received, datagramsDropped } = record;
  // a flood of refused requests must not fill the log
  log[record.isQuiet ? "debug" : "info"]("request", {
    id,
    trace_id: traceId,
    client,
    peer,
    agent,
    agentClaimed: agent === undefined ? agentClaimed : undefined,
    jti: token,
    sub: subject === undefined || subject === agent ? undefined : printable(subject),
    name: name === undefined || name === subject ? undefined : printable(name),
    groups: groups === undefined || groups.length === 0 ? undefined : printable(groups.join(","), MAX_GROUPS),
    protocol,
    method: shortMethod(method),
    network,
    destination,
    serverName: serverName === undefined ? undefined : printable(serverName),
    status,
    error: proxyError,
    reason: reason === undefined ? undefined : printable(reason, MAX_REASON),
    sent,
    received,
    datagramsDropped,
    setupMs: connectedAt === undefined ? undefined : round(connectedAt - startedAt),
    totalMs: round(endedAt - startedAt),
  });
}

/** The audit log's record of the start of a tunnel. */
export function auditedStart(record: RequestRecord): AuditStart {
  const { id, key: tunnel, traceId: trace_id, client, peer, agent, token, subject, name, protocol, network, destination } = record;
  return { id, tunnel, trace_id, client, peer, agent, token, subject, name, protocol, network, destination };
}

/** Records how a request has ended, or why it was refused. */
export function auditEnd(audit: AuditLog, record: RequestRecord, durationMs: number): void {
  const { id, key: tunnel, status, proxyError: error, connectedAt, sent, received } = record;
  const reason = record.reason === undefined ? undefined : printable(record.reason, MAX_REASON);
  if (record.isAudited) {
    const outcome = connectedAt === undefined ? "failed" : error === undefined ? "completed" : "broken";
    audit.end({ id, tunnel, outcome, error, reason, sent, received, durationMs: round(durationMs) });
  } else if (error !== undefined && !record.isQuiet) {
    audit.refused({ ...auditedStart(record), status, error, reason });
  }
}

/** Longest method that is logged in full, in characters: any client may send any token. */
const MAX_METHOD = 32;

function shortMethod(method = ""): string | undefined {
  return method.length > MAX_METHOD ? printable(method, MAX_METHOD) : method || undefined;
}

function round(ms: number): number {
  return Math.round(ms * 100) / 100;
}

/** Field names only: values hold credentials, cookies and tokens, and so do paths and queries. */
export function logRequest(log: Logger, request: RequestHead, { id, client, destination }: RequestRecord): void {
  const { method, version, fields } = request;
  if (log.debug !== ignoreLine) log.debug("request received", { id, client, method: shortMethod(method), version, destination });
  if (log.trace !== ignoreLine) log.trace("request head", { id, fields: fields.map(([name]) => name).join(", ") });
}

/** Creates ids that are short, and unique among all proxies and restarts for practical purposes. */
export function createRequestIds(): () => string {
  const start = Array.from(crypto.getRandomValues(new Uint8Array(5)), (byte) => byte.toString(16).padStart(2, "0")).join("");
  let count = 0;
  return () => `${start}-${(++count).toString(36)}`;
}
