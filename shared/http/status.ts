// What a client is told when it gets no tunnel: a status, the cause in Proxy-Status (RFC 9209), one line of text.
import { printable } from "../net/printable.ts";
import { encodeHead, type Fields } from "./head.ts";
import { formatProxyStatus, type Intermediary, type ProxyErrorType, type ProxyStatus } from "./proxy_status.ts";

/** The head that says yes to a CONNECT, of proxy and agent alike. */
export const CONNECTION_ESTABLISHED_HEAD: Uint8Array = encodeHead("HTTP/1.1 200 Connection established", []);

/** What a port that takes TLS answers to plain HTTP: lb knows by this that its proxy takes TLS. */
export const TLS_NEEDED = "This port takes TLS, and plain HTTP came: the proxy's URL begins with https://";

/** Of a refusal, where there is more to tell. */
export interface ProxyErrorOptions extends ErrorOptions {
  /** What the refusal of the peer that this one passes on says. */
  readonly received?: ProxyStatus;
}

/** Why a request is not done. */
export class ProxyError extends Error {
  override readonly name = "Refusal";
  readonly received?: ProxyStatus;
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

/** Reason phrase of a status; empty for one that is not used here. */
export function reasonOf(status: number): string {
  return REASONS[status] ?? "";
}

/** Longest message in an answer, in characters. */
const MAX_MESSAGE = 512;

/** Whose request is refused. */
export interface ErrorContext {
  /** Its body is left out for `HEAD` (RFC 9110 §9.3.2). */
  readonly method?: string;
  /** Under which it is in the log: one token. */
  readonly id?: string;
}

/**
 * The whole answer to a request that `by` refuses. A cause that came from a peer stays the peer's. Where the request has an id, that is in a field, in the text, and with the cause in the
 * reason phrase: of a refused CONNECT many programs show nothing but that.
 */
export function encodeErrorResponse(refusal: ProxyError, by: Intermediary, { method, id }: ErrorContext = {}): Uint8Array {
  const { status, error, message, fields, received } = refusal;
  const words = printable(message, MAX_MESSAGE);
  const body = id === undefined ? `${words}\n` : `${words} (request ${id})\n`;
  const reason = id === undefined ? reasonOf(status) : `${reasonOf(status)} (${error}, request ${id})`;
  const head = encodeHead(`HTTP/1.1 ${status} ${reason}`, [
    ["Proxy-Status", formatProxyStatus(received?.members ?? [], by, received?.error === error ? {} : { error, details: words })],
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
