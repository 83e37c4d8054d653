// A circuit breaker for one server of a store: calls have a timeout, and while the server is down they fail at once. Knows nothing about the
// content of the calls.
import { Backoff } from "../async/backoff.ts";
import { withTimeout } from "../async/with_timeout.ts";
import { StoreError } from "./store.ts";

/** Events of a store's servers and calls. */
export interface StoreEvents {
  /** The server has gone down or recovered. Called on changes only. */
  onServer?: (server: { name: string; up: boolean; reason?: string }) => void;
  /** A call has ended, after `ms` milliseconds. Not called for calls that fail at once because the server is down. */
  onCall?: (call: { operation: string; ok: boolean; ms: number }) => void;
}

export interface CircuitBreakerOptions<C> extends StoreEvents {
  /** For messages: `memcached at localhost:11211`. */
  name: string;
  /** Timeout of a call in milliseconds. */
  timeoutMs: number;
  /** Longest delay in milliseconds between attempts to reach a server that is down. Default 5000. */
  maxRetryDelayMs?: number;
  /** Starts to connect; calls are queued in the connection until it is established. `onEnd` is called when it is lost. */
  connect: (onEnd: () => void) => C;
  /** Closes a connection in any state. Its pending calls reject. */
  disconnect: (connection: C) => void;
}

/** A connection, and whether it has ever responded. */
interface Entry<C> {
  readonly connection: C;
  hasResponded: boolean;
}

/** After this fraction of the timeout, a call on an established connection is repeated on a new one. */
const RETRY_AFTER = 1 / 4;

export class CircuitBreaker<C> {
  readonly #options: CircuitBreakerOptions<C>;
  readonly #backoff: Backoff;
  #current: Entry<C> | undefined;
  /** Why the server is down, and when to try again. */
  #down: { reason: string; retryAt: number } | undefined;
  readonly #pending = new Set<(error: StoreError) => void>();
  #closed = false;

  constructor(options: CircuitBreakerOptions<C>) {
    this.#options = options;
    this.#backoff = new Backoff({ initialMs: 250, maxMs: options.maxRetryDelayMs ?? 5_000 });
  }

  /**
   * Runs `call` within the timeout, repeated at most once.
   * @throws {StoreError} if it fails, times out, or the server is down
   */
  async run<T>(operation: string, call: (connection: C) => Promise<T>): Promise<T> {
    const { name, timeoutMs, onCall } = this.#options;
    const startedAt = performance.now();
    if (this.#closed) throw new StoreError(`Cannot ${operation}: ${name} is closed`);
    const probing = this.#down !== undefined;
    if (this.#down) {
      if (startedAt < this.#down.retryAt) throw new StoreError(`Cannot ${operation}: ${name} is down: ${this.#down.reason}`);
      this.#down.retryAt = startedAt + timeoutMs; // this call is the probe; others fail until it ends
    }
    const used: Entry<C>[] = [];
    try {
      const result = await this.#withTimeout(this.#attempt(call, used));
      this.#recordSuccess();
      onCall?.({ operation, ok: true, ms: performance.now() - startedAt });
      return result;
    } catch (cause) {
      const reason = cause instanceof Error ? cause.message : String(cause);
      const error = cause instanceof StoreError ? cause : new StoreError(`Cannot ${operation}: ${name}: ${reason}`, { cause });
      if (this.#closed) throw error;
      // ignores calls that had started before the server went down
      if (probing || !this.#down) this.#recordFailure(reason);
      for (const entry of used) this.#discard(entry);
      onCall?.({ operation, ok: false, ms: performance.now() - startedAt });
      throw error;
    }
  }

  /**
   * Calls on the current connection. If that has responded before but now fails or is silent, only the connection may be dead, for example
   * because a firewall has dropped it while it was idle: the call is repeated on a new connection.
   */
  async #attempt<T>(call: (connection: C) => Promise<T>, used: Entry<C>[]): Promise<T> {
    const first = this.#use(used);
    if (!first.hasResponded) return await callOn(first, call);
    const original = callOn(first, call);
    const hasResponded = await withTimeout(this.#options.timeoutMs * RETRY_AFTER, original.then(() => true, () => false));
    if (hasResponded) return await original;
    if (this.#closed) throw new StoreError(`${this.#options.name} is closed`);
    if (this.#current === first) this.#current = undefined;
    const retry = callOn(this.#use(used), call);
    try {
      return await Promise.any([original, retry]);
    } catch (error) {
      throw (error as AggregateError).errors.at(-1);
    } finally {
      this.#discard(first);
    }
  }

  #use(used: Entry<C>[]): Entry<C> {
    if (!this.#current) {
      const entry: Entry<C> = { hasResponded: false, connection: this.#options.connect(() => this.#forget(entry)) };
      this.#current = entry;
    }
    used.push(this.#current);
    return this.#current;
  }

  #forget(entry: Entry<C>): void {
    if (this.#current === entry) this.#current = undefined;
  }

  #discard(entry: Entry<C>): void {
    this.#forget(entry);
    this.#options.disconnect(entry.connection);
  }

  async #withTimeout<T>(call: Promise<T>): Promise<T> {
    const { timeoutMs } = this.#options;
    let timer: ReturnType<typeof setTimeout> | undefined;
    let cancel!: (error: StoreError) => void;
    const cancelled = new Promise<never>((_, reject) => {
      cancel = reject;
      timer = setTimeout(() => reject(new Error(`no response within ${timeoutMs} ms`)), timeoutMs);
    });
    this.#pending.add(cancel);
    try {
      return await Promise.race([call, cancelled]);
    } finally {
      clearTimeout(timer);
      this.#pending.delete(cancel);
    }
  }

  #recordSuccess(): void {
    if (!this.#down) return;
    this.#down = undefined;
    this.#backoff.reset();
    this.#options.onServer?.({ name: this.#options.name, up: true });
  }

  #recordFailure(reason: string): void {
    const wasUp = !this.#down;
    const retryAt = performance.now() + this.#backoff.next();
    this.#down = { reason, retryAt };
    if (wasUp) this.#options.onServer?.({ name: this.#options.name, up: false, reason });
  }

  /** Rejects pending calls and all further ones. */
  close(): void {
    this.#closed = true;
    for (const cancel of this.#pending) cancel(new StoreError(`${this.#options.name} is closed`));
    if (this.#current) this.#discard(this.#current);
  }
}

async function callOn<C, T>(entry: Entry<C>, call: (connection: C) => Promise<T>): Promise<T> {
  const result = await call(entry.connection);
  entry.hasResponded = true;
  return result;
}
