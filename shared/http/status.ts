// What a client is told when it gets no tunnel: a status, the cause in Proxy-Status (RFC 9209), one line of text.
import { printable } from "../net/printable.ts";
import { encodeHead, type Fields, values } from "./head.ts";

/** The error types of RFC 9209 §2.3. */
const PROXY_ERROR_TYPES = [
  "dns_timeout",
  "dns_error",
  "destination_not_found",
  "destination_unavailable",
  "destination_ip_prohibited",
  "destination_ip_unroutable",
  "connection_refused",
  "connection_terminated",
  "connection_timeout",
  "connection_read_timeout",
  "connection_write_timeout",
  "connection_limit_reached",
  "tls_protocol_error",
  "tls_certificate_error",
  "tls_alert_received",
  "http_request_error",
  "http_request_denied",
  "http_response_incomplete",
  "http_response_header_section_size",
  "http_response_header_size",
  "http_response_body_size",
  "http_response_trailer_section_size",
  "http_response_trailer_size",
  "http_response_transfer_coding",
  "http_response_content_coding",
  "http_response_timeout",
  "http_upgrade_failed",
  "http_protocol_error",
  "proxy_internal_response",
  "proxy_internal_error",
  "proxy_configuration_error",
  "proxy_loop_detected",
] as const;
export type ProxyErrorType = (typeof PROXY_ERROR_TYPES)[number];

/** The head that says yes to a CONNECT, of proxy and agent alike. */
export const ESTABLISHED: Uint8Array = encodeHead("HTTP/1.1 200 Connection established", []);

/** Why a request is not done. */
export class Refusal extends Error {
  override readonly name = "Refusal";
  /**
   * @param error the cause for Proxy-Status
   * @param message one line for people, sent to the client: it must hold nothing secret
   * @param fields further fields of the answer
   */
  constructor(
    readonly status: number,
    readonly error: ProxyErrorType,
    message: string,
    readonly fields: Fields = [],
    options?: ErrorOptions,
  ) {
    super(message, options);
  }
}

const REASONS: Readonly<Record<number, string>> = {
  200: "OK",
  400: "Bad Request",
  403: "Forbidden",
  404: "Not Found",
  405: "Method Not Allowed",
  407: "Proxy Authentication Required",
  408: "Request Timeout",
  431: "Request Header Fields Too Large",
  500: "Internal Server Error",
  502: "Bad Gateway",
  503: "Service Unavailable",
  504: "Gateway Timeout",
  505: "HTTP Version Not Supported",
};

/** Reason phrase of a status; empty for one that is not used here. */
export function reasonOf(status: number): string {
  return REASONS[status] ?? "";
}

/** Longest message in an answer, in characters. */
const MAX_MESSAGE = 512;

/** Whose request is refused. */
export interface Refused {
  /** Its body is left out for `HEAD` (RFC 9110 §9.3.2). */
  readonly method?: string;
  /** Under which it is in the log: one token. */
  readonly id?: string;
}

/**
 * The whole answer to a request that is refused. Where the request has an id, that is in a field, in the text, and with the cause in the
 * reason phrase: of a refused CONNECT many programs show nothing but that.
 */
export function encodeRefusal({ status, error, message, fields }: Refusal, { method, id }: Refused = {}): Uint8Array {
  const words = printable(message, MAX_MESSAGE);
  const body = id === undefined ? `${words}\n` : `${words} (request ${id})\n`;
  const reason = id === undefined ? reasonOf(status) : `${reasonOf(status)} (${error}, request ${id})`;
  const head = encodeHead(`HTTP/1.1 ${status} ${reason}`, [
    ["Proxy-Status", `reverse-http; error=${error}; details=${quote(words)}`],
    ...id === undefined ? [] : [["X-Request-Id", id] as const],
    ...fields,
    ["Content-Type", "text/plain; charset=utf-8"],
    ["Content-Length", String(new TextEncoder().encode(body).length)],
    ["Connection", "close"],
  ]);
  if (method === "HEAD") return head;
  const text = new TextEncoder().encode(body);
  const answer = new Uint8Array(head.length + text.length);
  answer.set(head);
  answer.set(text, head.length);
  return answer;
}

/** A structured-field string (RFC 8941 §3.3.3): ASCII, quotes and backslashes escaped. */
function quote(text: string): string {
  return `"${text.replace(/[^\x20-\x7e]/gu, "?").replace(/["\\]/g, "\\$&")}"`;
}

/** Longest `details` that are taken from a peer, in characters. */
const MAX_DETAILS = 256;

/** What Proxy-Status tells of a refusal: cause and words, where they are there and known. */
export function parseProxyStatus(fields: Fields): { error?: ProxyErrorType; details?: string } {
  const [text = ""] = values(fields, "proxy-status");
  const error = /;\s*error=([a-z_]{1,64})(?![^\s;,])/.exec(text)?.[1];
  const details = /;\s*details="((?:[^"\\]|\\["\\])*)"/.exec(text)?.[1]?.replace(/\\(.)/g, "$1");
  return {
    error: PROXY_ERROR_TYPES.find((type) => type === error),
    details: details === undefined ? undefined : printable(details, MAX_DETAILS),
  };
}
