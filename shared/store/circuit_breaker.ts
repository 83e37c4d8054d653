// Stands before one server of a store: no call waits longer than it may, and while the server is down calls fail at once instead of
// waiting for it one by one. It does not know what the calls say.
import { Backoff } from "../async/backoff.ts";
import { withTimeout } from "../async/with_timeout.ts";
import { StoreError } from "./store.ts";

/** Told what becomes of calls to a store's servers. */
export interface StoreEvents {
  /** The server has begun to fail, or does its work again. Called on each change only. */
  onServer?: (server: { name: string; up: boolean; reason?: string }) => void;
  /** A call is over, after so many milliseconds. Not called for those that failed at once because the server is down. */
  onCall?: (call: { operation: string; ok: boolean; ms: number }) => void;
}

export interface CircuitBreakerOptions<C> extends StoreEvents {
  /** For messages: `memcached at localhost:11211`. */
  name: string;
  /** Longest wait in milliseconds for one call. */
  timeoutMs: number;
  /** The longest pause, in milliseconds, between two attempts to reach a server that is down. Default 5000. */
  maxPauseMs?: number;
  /** Begins a connection; calls wait in it until it is there. `onEnd` is called when it has ended by itself. */
  connect: (onEnd: () => void) => C;
  /** Ends a connection, whatever its state. Calls that wait for it reject. */
  disconnect: (connection: C) => void;
}

/** A connection, and whether it has ever answered. */
interface Held<C> {
  readonly connection: C;
  hasAnswered: boolean;
}

/** After this part of a call's time a connection that has answered before is silent: a new one is tried beside it. */
const SILENT_AFTER = 1 / 4;

export class CircuitBreaker<C> {
  readonly #options: CircuitBreakerOptions<C>;
  readonly #backoff: Backoff;
  #held: Held<C> | undefined;
  /** Why it is down, and when it is tried again. */
  #down: { reason: string; retryAt: number } | undefined;
  readonly #waiting = new Set<(error: StoreError) => void>();
  #closed = false;

  constructor(options: CircuitBreakerOptions<C>) {
    this.#options = options;
    this.#backoff = new Backoff({ initialMs: 250, maxMs: options.maxPauseMs ?? 5_000 });
  }

  /**
   * Runs `call`, twice at most, within the longest wait.
   * @throws {StoreError}
   */
  async run<T>(operation: string, call: (connection: C) => Promise<T>): Promise<T> {
    const { name, timeoutMs, onCall } = this.#options;
    const startedAt = performance.now();
    if (this.#closed) throw new StoreError(`Cannot ${operation}: ${name} is no longer used`);
    const probing = this.#down !== undefined;
    if (this.#down) {
      if (startedAt < this.#down.retryAt) throw new StoreError(`Cannot ${operation}: ${name} is down: ${this.#down.reason}`);
      this.#down.retryAt = startedAt + timeoutMs; // this call tries it; the others need not wait with it
    }
    const used: Held<C>[] = [];
    try {
      const result = await this.#inTime(this.#attempt(call, used));
      this.#rise();
      onCall?.({ operation, ok: true, ms: performance.now() - startedAt });
      return result;
    } catch (cause) {
      const reason = cause instanceof Error ? cause.message : String(cause);
      const error = cause instanceof StoreError ? cause : new StoreError(`Cannot ${operation}: ${name}: ${reason}`, { cause });
      if (this.#closed) throw error;
      // calls that were under way when it went down say nothing new
      if (probing || !this.#down) this.#fall(reason);
      for (const held of used) this.#discard(held);
      onCall?.({ operation, ok: false, ms: performance.now() - startedAt });
      throw error;
    }
  }

  /**
   * Calls on the connection that there is. Where that has answered before and now fails or is silent, which is what a firewall makes of one
   * that was idle, it is the connection that is bad, perhaps, and not the server: a new one is tried at once.
   */
  async #attempt<T>(call: (connection: C) => Promise<T>, used: Held<C>[]): Promise<T> {
    const first = this.#use(used);
    if (!first.hasAnswered) return await callOn(first, call);
    const original = callOn(first, call);
    const hasAnswered = await withTimeout(this.#options.timeoutMs * SILENT_AFTER, original.then(() => true, () => false));
    if (hasAnswered) return await original;
    if (this.#closed) throw new StoreError(`${this.#options.name} is no longer used`);
    if (this.#held === first) this.#held = undefined;
    const again = callOn(this.#use(used), call);
    try {
      return await Promise.any([original, again]);
    } catch (error) {
      throw (error as AggregateError).errors.at(-1);
    } finally {
      this.#discard(first);
    }
  }

  #use(used: Held<C>[]): Held<C> {
    if (!this.#held) {
      const held: Held<C> = { hasAnswered: false, connection: this.#options.connect(() => this.#forget(held)) };
      this.#held = held;
    }
    used.push(this.#held);
    return this.#held;
  }

  #forget(held: Held<C>): void {
    if (this.#held === held) this.#held = undefined;
  }

  #discard(held: Held<C>): void {
    this.#forget(held);
    this.#options.disconnect(held.connection);
  }

  async #inTime<T>(call: Promise<T>): Promise<T> {
    const { timeoutMs } = this.#options;
    let timer: ReturnType<typeof setTimeout> | undefined;
    let giveUp!: (error: StoreError) => void;
    const givenUp = new Promise<never>((_, reject) => {
      giveUp = reject;
      timer = setTimeout(() => reject(new Error(`no answer in ${timeoutMs} ms`)), timeoutMs);
    });
    this.#waiting.add(giveUp);
    try {
      return await Promise.race([call, givenUp]);
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
    if (this.#held) this.#discard(this.#held);
  }
}

async function callOn<C, T>(held: Held<C>, call: (connection: C) => Promise<T>): Promise<T> {
  const result = await call(held.connection);
  held.hasAnswered = true;
  return result;
}
