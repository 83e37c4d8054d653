// Why a tunnel could not be opened, or has ended, in terms of no client protocol. Frontends and the agent turn it into responses.
import { NetError, type NetErrorCode } from "../net/errors.ts";

/** The error types of RFC 9209 §2.3. */
const TUNNEL_ERROR_TYPES = [
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
export type TunnelErrorType = (typeof TUNNEL_ERROR_TYPES)[number];

/** The type that `text` names, if any. */
export function toErrorType(text: string): TunnelErrorType | undefined {
  return TUNNEL_ERROR_TYPES.find((type) => type === text);
}

export interface TunnelErrorOptions extends ErrorOptions {
  /** Milliseconds after which a retry makes sense. Default: the failure is not known to be temporary. */
  readonly retryAfterMs?: number;
  /** The next hop's response in its own protocol. Frontends of that protocol forward it; the others ignore it. */
  readonly received?: object;
}

/** Why a tunnel could not be opened, or has ended. */
export class TunnelError extends Error {
  override readonly name: string = "TunnelError";
  readonly retryAfterMs?: number;
  readonly received?: object;

  /** @param message one line for the client; it must not contain secrets */
  constructor(readonly type: TunnelErrorType, message: string, options: TunnelErrorOptions = {}) {
    super(message, options);
    this.retryAfterMs = options.retryAfterMs;
    this.received = options.received;
  }
}

/** The client's credentials are missing, or not or no longer accepted. */
export class CredentialsError extends TunnelError {
  constructor(message: string, options: TunnelErrorOptions & { readonly type?: TunnelErrorType } = {}) {
    super(options.type ?? "http_request_denied", message, options);
  }
}

/** The client's request is malformed. */
export class MalformedRequestError extends TunnelError {
  override readonly name: string = "MalformedRequestError";
  constructor(message: string) {
    super("http_request_error", message);
  }
}

/** A retry after a failure for lack of resources, in milliseconds. */
const RETRY_MS = 1_000;

type Phrase = (by: string) => string;

/** Types and descriptions of failed connections, by the network's code; the rest of the codes occur after the connection is open. */
const CONNECT_ERRORS: Readonly<Partial<Record<NetErrorCode, readonly [type: TunnelErrorType, phrase: Phrase]>>> = {
  "refused": ["connection_refused", () => "refused the connection"],
  "unreachable": ["destination_ip_unroutable", () => "cannot be reached"],
  "unknown-host": ["dns_error", (by) => `has a name that ${by} cannot resolve`],
  "name-timed-out": ["dns_timeout", () => "has a name that no name server answers for"],
  "timed-out": ["connection_timeout", () => "did not respond in time"],
  "tls": ["tls_protocol_error", (by) => `failed the TLS handshake with ${by}`],
  "abandoned": ["connection_terminated", () => "was not connected yet when the client disconnected"],
  "cancelled": ["connection_timeout", () => "did not respond within the tunnel's maximum duration"],
  "limit": ["connection_limit_reached", (by) => `cannot be reached: ${by} has no file descriptors or memory left`],
  "address-not-available": ["connection_limit_reached", (by) => `cannot be reached: ${by} has no local port left`],
};

/**
 * The error of a connection that could not be opened; `undefined` if `error` is not about opening one.
 * @param peer the subject of the message
 * @param by which program tried
 * @param cause logged with the error
 */
export function connectError(error: NetError, peer: string, by: string, cause: Error = error): TunnelError | undefined {
  const [type, phrase] = CONNECT_ERRORS[error.code] ?? [];
  if (type === undefined || phrase === undefined) return undefined;
  return new TunnelError(type, `${peer} ${phrase(by)}`, {
    cause,
    retryAfterMs: type === "connection_limit_reached" ? RETRY_MS : undefined,
  });
}

/** The client has disconnected before the end. */
export function clientDisconnected(cause: unknown): TunnelError {
  return new TunnelError("connection_terminated", "The client has disconnected", { cause });
}

/** `error` as the client learns it: errors that are not for clients become internal ones. */
export function toTunnelError(error: unknown): TunnelError {
  if (error instanceof TunnelError) return error;
  if (error instanceof NetError) {
    return new TunnelError("connection_terminated", "The connection to the destination was lost", { cause: error });
  }
  return new TunnelError("proxy_internal_error", "Internal error", { cause: error });
}

/** The message for the log, with the cause that the client does not learn. */
export function describeTunnelError({ message, cause }: TunnelError): string {
  return cause instanceof Error ? `${message}: ${cause.message}` : message;
}
