// The relay between two streams, and its limits.
import type { NetError } from "./errors.ts";

/** Options of a relay. */
export interface SpliceOptions {
  /**
   * Written to `a` before anything from `b`, and not counted. On TCP it is a separate write, and data that `b` sends unprompted follows a
   * millisecond later: many clients lose data that they read together with the response to CONNECT. Default: none.
   */
  initialDataToA?: Uint8Array;
  /** Idle timeout of both directions in milliseconds; the relay is then aborted with `timed-out`. 0 or missing: none. */
  idleTimeoutMs?: number;
  /** Rate limits of both directions together; the lowest applies. Default: none. */
  rates?: readonly Rate[];
  /** Cancels with `cancelled`. */
  signal?: AbortSignal;
}

/** Options of {@link Net.createRate}. */
export interface RateOptions {
  /** 1 or more. */
  bytesPerSecond: number;
  /** Burst in bytes; at least the bytes of 10 ms. */
  burst: number;
}

/** A rate limit in bytes per second. Its users are served in turn, so that none starves. */
export interface Rate {
  /**
   * Resolves when `bytes` may be sent.
   * @throws {NetError} `closed`, `cancelled`
   */
  take(bytes: number): Promise<void>;
  /** Rejects new users; relays that already use it continue. */
  close(): void;
}

/** The result of a relay. */
export interface SpliceResult {
  /** Bytes read from `a` and written to `b`. */
  readonly aToB: number;
  /** Bytes read from `b` and written to `a`. */
  readonly bToA: number;
  /** The first error, after which both streams were reset. `undefined` if both directions ended cleanly. */
  readonly error?: NetError;
  /** The stream that caused the error; `undefined` for `cancelled` and `timed-out`. */
  readonly errorSide?: "a" | "b";
  /** Datagrams of either stream that were dropped while they waited, as with {@link RequestOptions.datagrams}. Missing: none. */
  readonly datagramsDropped?: number;
}

/** `blocked`: data that was read waits for the receiver. `ended`: finished, or one side has failed. */
export type DirectionState = "open" | "blocked" | "ended";

/** The progress of a relay. Bytes as of {@link SpliceResult}. */
export interface Relayed {
  /** Bytes read from `a` and written to `b`. */
  readonly aToB: number;
  /** Bytes read from `b` and written to `a`. */
  readonly bToA: number;
  /** The direction from `a` to `b`. */
  readonly toB: DirectionState;
  /** The direction from `b` to `a`. */
  readonly toA: DirectionState;
}

/** A running relay. */
export interface Spliced {
  /** The result, as of {@link Net.splice}. */
  readonly ended: Promise<SpliceResult>;
}

/** A running relay to a new connection. */
export interface ConnectedTunnel extends Spliced {
  /** The connected address, `host:port` or `[host]:port`. */
  readonly remote: string;
}
