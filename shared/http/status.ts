// HTTP responses to failed requests: a status, the error type in Proxy-Status (RFC 9209), and one line of text.
import { printable } from "../net/printable.ts";
import { CredentialsError, TunnelError, type TunnelErrorType } from "../tunnel/errors.ts";
import { encodeHead, type Fields, HeadError } from "./head.ts";
import { formatProxyStatus, type Intermediary, NO_PROXY_STATUS, type ProxyStatus } from "./proxy_status.ts";

/** The successful response head to CONNECT, of proxy and agent. */
export const CONNECTION_ESTABLISHED_HEAD: Uint8Array = encodeHead("HTTP/1.1 200 Connection established", []);

/** The error text of a TLS port for plain HTTP. lb recognises by it that its proxy requires TLS. */
export const TLS_NEEDED = "This port takes TLS, and plain HTTP came: its URL begins with https://";

/** An error of HTTP itself, whose status does not follow from its type. */
export class ProxyError extends TunnelError {
  override readonly name = "ProxyError";
  /** @param fields additional fields of the response */
  constructor(readonly status: number, type: TunnelErrorType, message: string, readonly fields: Fields = [], options?: ErrorOptions) {
    super(type, message, options);
  }
}

/** The response of a next hop that speaks HTTP, as part of a {@link TunnelError}. */
export class ReceivedResponse {
  /**
   * @param proxyStatus forwarded in front of this hop's own member
   * @param status of the response to the client. Default: that of the error's type
   * @param fields additional fields of the response to the client
   */
  constructor(readonly proxyStatus: ProxyStatus, readonly status?: number, readonly fields: Fields = []) {}
}

const STATUSES: Readonly<Record<TunnelErrorType, number>> = {
  dns_timeout: 504,
  dns_error: 502,
  destination_not_found: 502,
  destination_unavailable: 502,
  destination_ip_prohibited: 403,
  destination_ip_unroutable: 502,
  connection_refused: 502,
  connection_terminated: 502,
  connection_timeout: 504,
  connection_read_timeout: 504,
  connection_write_timeout: 504,
  connection_limit_reached: 503,
  tls_protocol_error: 502,
  tls_certificate_error: 502,
  tls_alert_received: 502,
  http_request_error: 400,
  http_request_denied: 403,
  http_response_incomplete: 502,
  http_response_header_section_size: 502,
  http_response_header_size: 502,
  http_response_body_size: 502,
  http_response_trailer_section_size: 502,
  http_response_trailer_size: 502,
  http_response_transfer_coding: 502,
  http_response_content_coding: 502,
  http_response_timeout: 504,
  http_upgrade_failed: 502,
  http_protocol_error: 502,
  proxy_internal_response: 500,
  proxy_internal_error: 500,
  proxy_configuration_error: 500,
  proxy_loop_detected: 502,
};

/** A challenge (RFC 9110 §11.7.1). */
const CHALLENGE: Fields = [["Proxy-Authenticate", 'Basic realm="reverse-http"']];

/** The status that the client of `error` gets. */
export function statusOf(error: TunnelError): number {
  if (error instanceof ProxyError || error instanceof HeadError) return error.status;
  const received = receivedOf(error)?.status;
  if (received !== undefined) return received;
  if (error instanceof CredentialsError) return 407;
  return error.retryAfterMs === undefined ? STATUSES[error.type] : 503;
}

/** Fields of the response besides those of every error response. */
export function fieldsOf(error: TunnelError): Fields {
  if (error instanceof ProxyError) return error.fields;
  const { retryAfterMs } = error;
  const received = receivedOf(error)?.fields ?? (error instanceof CredentialsError ? CHALLENGE : []);
  return retryAfterMs === undefined ? received : [...received, ["Retry-After", String(Math.ceil(retryAfterMs / 1_000))]];
}

function receivedOf({ received }: TunnelError): ReceivedResponse | undefined {
  return received instanceof ReceivedResponse ? received : undefined;
}

const REASONS: Readonly<Record<number, string>> = {
  200: "OK",
  202: "Accepted",
  400: "Bad Request",
  401: "Unauthorized",
  403: "Forbidden",
  404: "Not Found",
  405: "Method Not Allowed",
  407: "Proxy Authentication Required",
  408: "Request Timeout",
  409: "Conflict",
  411: "Length Required",
  413: "Content Too Large",
  415: "Unsupported Media Type",
  421: "Misdirected Request",
  426: "Upgrade Required",
  431: "Request Header Fields Too Large",
  500: "Internal Server Error",
  501: "Not Implemented",
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
export function encodeErrorResponse(error: TunnelError, by: Intermediary, { method, id }: ErrorContext = {}): Uint8Array {
  const { type, message } = error;
  const [status, received] = [statusOf(error), receivedOf(error)?.proxyStatus ?? NO_PROXY_STATUS];
  const details = printable(message, MAX_MESSAGE);
  const body = id === undefined ? `${details}\n` : `${details} (request ${id})\n`;
  const reason = id === undefined ? reasonOf(status) : `${reasonOf(status)} (${type}, request ${id})`;
  const head = encodeHead(`HTTP/1.1 ${status} ${reason}`, [
    ["Proxy-Status", formatProxyStatus(received.members, by, received.error === type ? {} : { error: type, details })],
    ...id === undefined ? [] : [["X-Request-Id", id] as const],
    ...fieldsOf(error),
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
