// Error responses: a status, the error type in Proxy-Status (RFC 9209), and one line of text.
import { printable } from "../net/printable.ts";
import { encodeHead, type Fields } from "./head.ts";
import { formatProxyStatus, type Intermediary, type ProxyErrorType, type ProxyStatus } from "./proxy_status.ts";

/** The successful response head to CONNECT, of proxy and agent. */
export const CONNECTION_ESTABLISHED_HEAD: Uint8Array = encodeHead("HTTP/1.1 200 Connection established", []);

/** The error text of a TLS port for plain HTTP. lb recognises by it that its proxy requires TLS. */
export const TLS_NEEDED = "This port takes TLS, and plain HTTP came: the proxy's URL begins with https://";

/** Options of a {@link ProxyError}. */
export interface ProxyErrorOptions extends ErrorOptions {
  /** The Proxy-Status of the peer's error that this one forwards. */
  readonly received?: ProxyStatus;
}

/** Why a request failed, with the status and the proxy error type (RFC 9209 §2.3) of the response. */
export class ProxyError extends Error {
  override readonly name = "ProxyError";
  readonly received?: ProxyStatus;
  /**
   * @param error the error type in Proxy-Status
   * @param message one line for the client; it must not contain secrets
   * @param fields additional fields of the response
   */
  constructor(
    readonly status: number,
    readonly error: ProxyErrorType,
    message: string,
    readonly fields: Fields = [],
    options?: ProxyErrorOptions,
  ) {
    super(message, options);
    this.received = options?.received;
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

/** Reason phrase of a status; empty for statuses that are not used here. */
export function reasonOf(status: number): string {
  return REASONS[status] ?? "";
}

/** Longest message in a response, in characters. */
const MAX_MESSAGE = 512;

/** The failed request. */
export interface ErrorContext {
  /** The response to `HEAD` has no body (RFC 9110 §9.3.2). */
  readonly method?: string;
  /** Request id in the log: one token. */
  readonly id?: string;
}

/**
 * Encodes the error response of `by`. An error that a peer reported is attributed to the peer. The request id is in a field, in the text,
 * and with the error type in the reason phrase, because many programs show nothing else of a failed CONNECT.
 */
export function encodeErrorResponse(proxyError: ProxyError, by: Intermediary, { method, id }: ErrorContext = {}): Uint8Array {
  const { status, error, message, fields, received } = proxyError;
  const details = printable(message, MAX_MESSAGE);
  const body = id === undefined ? `${details}\n` : `${details} (request ${id})\n`;
  const reason = id === undefined ? reasonOf(status) : `${reasonOf(status)} (${error}, request ${id})`;
  const head = encodeHead(`HTTP/1.1 ${status} ${reason}`, [
    ["Proxy-Status", formatProxyStatus(received?.members ?? [], by, received?.error === error ? {} : { error, details })],
    ...id === undefined ? [] : [["X-Request-Id", id] as const],
    ...fields,
    ["Content-Type", "text/plain; charset=utf-8"],
    ["Content-Length", String(new TextEncoder().encode(body).length)],
    ["Connection", "close"],
  ]);
  if (method === "HEAD") return head;
  const text = new TextEncoder().encode(body);
  const response = new Uint8Array(head.length + text.length);
  response.set(head);
  response.set(text, head.length);
  return response;
}
