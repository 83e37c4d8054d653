// The error type of the network contract. The caller translates its codes for clients.

/**
 * Error code, as a stable literal.
 *
 * - `address-in-use`, `address-not-available`, `permission-denied`: the local address cannot be used; for a connection,
 *   `address-not-available` says that no local port is free
 * - `refused`, `unreachable`, `unknown-host`, `timed-out`: the connection failed, as reported by the network or the resolver
 * - `name-timed-out`: no name server responded for the peer's name
 * - `tls`: the handshake failed or a certificate, key or revocation list is unusable
 * - `reset`: the stream or connection was aborted (TCP RST, RESET_STREAM), or ended without a clean close
 * - `stopped`: the peer does not accept more data in this direction (STOP_SENDING, or a TCP write after its end)
 * - `closed`: this handle, or its connection, was closed cleanly
 * - `abandoned`: the peer of the stream to be relayed disconnected before the other end was connected
 * - `cancelled`: the `signal` of the call was aborted
 * - `not-tls`: a client sent plain HTTP to a TLS listener; it can be answered in plain HTTP
 * - `not-http2`: a client sent something else, such as HTTP/1.1, to a listener for HTTP/2; it can be answered in HTTP/1.1
 * - `head-too-large`, `head-timeout`, `head-malformed`, `head-truncated`: a head was not received completely
 * - `limit`: a local limit was reached
 * - `limit-per-address`: a local limit per address was reached
 * - `outbound-proxy`: the outbound proxy did not open a tunnel to the server
 * - `outbound-proxy-credentials`: the outbound proxy rejects the user name or the password
 * - `invalid`: an invalid argument
 * - `internal`: a bug in this program
 */
export type NetErrorCode =
  | "address-in-use"
  | "address-not-available"
  | "permission-denied"
  | "refused"
  | "unreachable"
  | "unknown-host"
  | "timed-out"
  | "name-timed-out"
  | "tls"
  | "reset"
  | "stopped"
  | "closed"
  | "abandoned"
  | "cancelled"
  | "not-tls"
  | "not-http2"
  | "head-too-large"
  | "head-timeout"
  | "head-malformed"
  | "head-truncated"
  | "limit"
  | "limit-per-address"
  | "outbound-proxy"
  | "outbound-proxy-credentials"
  | "invalid"
  | "internal";

/** Details of a {@link NetError}. */
export interface NetErrorDetails {
  /** QUIC application error code (RFC 9000 §20.2) that the peer or this side gave. Default: none. */
  appCode?: number;
  /** Whether the peer caused it. Default `false`. */
  remote?: boolean;
  /** The underlying error. */
  cause?: unknown;
}

/** The error of every rejection in the network contract. */
export class NetError extends Error {
  /** Always `NetError`. */
  override readonly name = "NetError";
  /** QUIC application error code (RFC 9000 §20.2); `undefined` if none was given. */
  readonly appCode?: number;
  /** Whether the peer caused it. */
  readonly remote: boolean;

  /**
   * Creates an error of the network.
   * @param code for programs
   * @param message for people
   */
  constructor(readonly code: NetErrorCode, message: string, details: NetErrorDetails = {}) {
    super(message, details.cause === undefined ? undefined : { cause: details.cause });
    this.appCode = details.appCode;
    this.remote = details.remote ?? false;
  }
}
