// A stream of bytes: two directions that end independently.
import type { NetError } from "./errors.ts";

/** A TCP connection or a stream of a session: two directions that end independently. Calls take effect in the order in which they are made. */
export interface Duplex {
  /** The peer's address, `host:port` or `[host]:port`; for a stream of a session that of the session. */
  readonly remote: string;
  /**
   * Returns the next bytes, or `null` when the peer has finished its direction. Over TLS, a FIN without close_notify is a clean end from a
   * client and a reset from a server.
   * @throws {NetError} `reset`, `closed`
   */
  read(): Promise<Uint8Array | null>;
  /**
   * Puts bytes back that were read: reads and relays return them first. For what follows a request that this program has read itself. The bytes
   * are copied before it returns.
   * @throws {NetError} `closed`
   */
  unread(data: Uint8Array): void;
  /**
   * Writes bytes, which are copied before it returns. Resolves when more may be written (backpressure).
   * @throws {NetError} `stopped`, `reset`, `closed`
   */
  write(data: Uint8Array): Promise<void>;
  /** Finishes the writing direction after all earlier writes (FIN of TCP or of the stream, TLS close_notify). */
  closeWrite(): void;
  /** Aborts at once: RESET_STREAM with `code` in a session; RST on TCP, which has no code and resets both directions. */
  reset(code: number): void;
  /** Stops reading at once: STOP_SENDING with `code` in a session. A pending `read` rejects with `closed`. */
  stopRead(code: number): void;
  /**
   * Resolves when the peer resets the stream, even without a pending read, with the error that reads get. Abort the signal before the stream
   * is closed or relayed.
   * @throws {NetError} `cancelled`, `closed`
   */
  whenReset(signal: AbortSignal): Promise<NetError>;
  /**
   * Closes both directions cleanly and releases the handle: written data is still sent (for up to 10 s), then the writing direction is
   * finished; a pending `read` rejects with `closed`. A TCP peer that is still sending has up to 2 s to read what was written to it before the
   * connection is reset.
   */
  close(): void;
}
