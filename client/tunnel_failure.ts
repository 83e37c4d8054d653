// Why a client has no tunnel.

/**
 * Why there is no tunnel. `proxy`: the proxy cannot be reached, or is none. `denied`: the credentials or the destination are not allowed.
 * `no-agent`: the agent is not connected. `refused`: nothing listens at the destination. `unreachable`: it cannot be reached, or its name
 * cannot be resolved.
 */
export type TunnelFailureKind = "proxy" | "denied" | "no-agent" | "refused" | "unreachable";

/** There is no tunnel. The message is one line, without secrets. */
export class TunnelFailure extends Error {
  /** Always `TunnelFailure`. */
  override readonly name = "TunnelFailure";
  /** The proxy's error type (RFC 9209 §2.3), such as `dns_error`; `undefined` if it gave none. */
  readonly errorType?: string;
  /** Status of the proxy's response; `undefined` without one. */
  readonly status?: number;

  /**
   * Creates a failure.
   * @param kind whose fault it is
   * @param message one line
   * @param options the cause, and the proxy's error type and status
   */
  constructor(readonly kind: TunnelFailureKind, message: string, options: ErrorOptions & { errorType?: string; status?: number } = {}) {
    super(message, options);
    this.errorType = options.errorType;
    this.status = options.status;
  }
}
