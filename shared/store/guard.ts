// Stands before one server of a store: no call waits longer than it may, and while the server is down calls fail at once instead of
// waiting for it one by one. It does not know what the calls say.
import { Backoff } from "../backoff.ts";
import { StoreError } from "./store.ts";

/** Told what becomes of calls to a store's servers. */
export interface StoreEvents {
  /** The server has begun to fail, or does its work again. Called on each change only. */
  onServer?: (server: { name: string; up: boolean; reason?: string }) => void;
  /** A call is over, after so many milliseconds. Not called for those that failed at once because the server is down. */
  onCall?: (call: { operation: string; ok: boolean; ms: number }) => void;
}

export interface GuardOptions extends StoreEvents {
  /** For messages: `memcached at localhost:11211`. */
  name: string;
  /** Longest wait in milliseconds for one call. */
  timeoutMs: number;
  /** The longest pause, in milliseconds, between two attempts to reach a server that is down. Default 5000. */
  maxPauseMs?: number;
  /** Called after each call that failed: whatever state the connection is in, the next call gets a new one. */
  discard: (error: StoreError) => void;
}

export class Guard {
  readonly #options: GuardOptions;
  readonly #backoff: Backoff;
  /** Why it is down, and when it is tried again. */
  #down: { reason: string; retryAt: number } | undefined;
  readonly #waiting = new Set<(error: StoreError) => void>();
  #closed = false;

  constructor(options: GuardOptions) {
    this.#options = options;
    this.#backoff = new Backoff({ initialMs: 250, maxMs: options.maxPauseMs ?? 5_000 });
  }

  /**
   * Runs `call`, at most for so long.
   * @throws {StoreError}
   */
  async run<T>(operation: string, call: () => Promise<T>): Promise<T> {
    const { name, timeoutMs, onCall } = this.#options;
    const startedAt = performance.now();
    if (this.#closed) throw new StoreError(`Cannot ${operation}: ${name} is no longer used`);
    const probing = this.#down !== undefined;
    if (this.#down) {
      if (startedAt < this.#down.retryAt) throw new StoreError(`Cannot ${operation}: ${name} is down: ${this.#down.reason}`);
      this.#down.retryAt = startedAt + timeoutMs; // this call tries it; the others need not wait with it
    }
    try {
      const result = await this.#inTime(operation, call);
      this.#rise();
      onCall?.({ operation, ok: true, ms: performance.now() - startedAt });
      return result;
    } catch (cause) {
      const reason = cause instanceof Error ? cause.message : String(cause);
      const error = cause instanceof StoreError ? cause : new StoreError(`Cannot ${operation}: ${name}: ${reason}`, { cause });
      if (this.#closed) throw error;
      // calls that were under way when it went down say nothing new
      if (probing || !this.#down) this.#fall(reason);
      this.#options.discard(error);
      onCall?.({ operation, ok: false, ms: performance.now() - startedAt });
      throw error;
    }
  }

  async #inTime<T>(operation: string, call: () => Promise<T>): Promise<T> {
    const { name, timeoutMs } = this.#options;
    let timer: ReturnType<typeof setTimeout> | undefined;
    let giveUp!: (error: StoreError) => void;
    const givenUp = new Promise<never>((_, reject) => {
      giveUp = reject;
      timer = setTimeout(() => reject(new StoreError(`Cannot ${operation}: ${name} did not answer in ${timeoutMs} ms`)), timeoutMs);
    });
    this.#waiting.add(giveUp);
    try {
      return await Promise.race([call(), givenUp]);
    } finally {
      clearTimeout(timer);
      this.#waiting.delete(giveUp);
    }
  }

  #rise(): void {
    if (!this.#down) return;
    this.#down = undefined;
    this.#backoff.reset();
    this.#options.onServer?.({ name: this.#options.name, up: true });
  }

  #fall(reason: string): void {
    const wasUp = !this.#down;
    const retryAt = performance.now() + this.#backoff.next();
    this.#down = { reason, retryAt };
    if (wasUp) this.#options.onServer?.({ name: this.#options.name, up: false, reason });
  }

  /** What waits rejects, and so does every call from now on. */
  close(): void {
    this.#closed = true;
    for (const giveUp of this.#waiting) giveUp(new StoreError(`${this.#options.name} is no longer used`));
  }
}
