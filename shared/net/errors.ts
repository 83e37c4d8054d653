// The one error type of the network contract. It knows codes, never policy: what a code means to a client is decided by the caller.

/**
 * What went wrong, as a stable literal.
 *
 * - `address-in-use`, `address-not-available`, `permission-denied`: the local address cannot be used; for a connection,
 *   `address-not-available` says that no local port is free
 * - `refused`, `unreachable`, `unknown-host`, `timed-out`: nobody answered, as the network or the resolver said
 * - `name-timed-out`: no name server answered for the name of the far side
 * - `tls`: the handshake failed or a certificate, key or revocation list is unusable
 * - `reset`: the stream or connection was aborted (TCP RST, RESET_STREAM), or ended without saying so
 * - `stopped`: the peer takes no more of this direction (STOP_SENDING, or a TCP write after its end)
 * - `closed`: this handle, or the connection it belongs to, was closed in good order
 * - `abandoned`: the peer of the stream to be copied went away while the other end was not there yet
 * - `cancelled`: the `signal` of the call was aborted
 * - `not-tls`: where TLS is spoken, a client speaks plain HTTP; it can be answered in it
 * - `head-too-large`, `head-timeout`, `head-malformed`, `head-truncated`: a head did not reach its blank line
 * - `limit`: a local limit was reached
 * - `limit-per-address`: a local limit on what one address may take was reached
 * - `invalid`: an argument cannot be used
 * - `internal`: a fault of this program
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
  | "head-too-large"
  | "head-timeout"
  | "head-malformed"
  | "head-truncated"
  | "limit"
  | "limit-per-address"
  | "invalid"
  | "internal";

/** More about a {@link NetError}. */
export interface NetErrorDetails {
  /** Application error code of QUIC (RFC 9000 §20.2), where the peer or this side gave one. */
  appCode?: number;
  /** Whether the far side caused it. Default `false`. */
  remote?: boolean;
  /** What it was made of. */
  cause?: unknown;
}

/** Every rejection of the network contract is one of these. */
export class NetError extends Error {
  /** Always that. */
  override readonly name = "NetError";
  /** Application error code of QUIC (RFC 9000 §20.2); `undefined` where none was given. */
  readonly appCode?: number;
  /** Whether the far side caused it. */
  readonly remote: boolean;

  /** `code` is what programs look at; `message` is for people. */
  constructor(readonly code: NetErrorCode, message: string, details: NetErrorDetails = {}) {
    super(message, details.cause === undefined ? undefined : { cause: details.cause });
    this.appCode = details.appCode;
    this.remote = details.remote ?? false;
  }
}
