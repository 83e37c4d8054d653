// Counters, rates and lockouts by keys that peers control. Every table is bounded, every lookup takes constant time, and no key has a timer.

/** What other processes of the service count by the same keys. */
export interface OtherCounts {
  get(key: string): number;
  /**
   * This process counts `count` now.
   * @param max the limit, `Infinity` for none. Default: that of the last call for the key
   */
  changed(key: string, count: number, max?: number): void;
}

/** Counts per key. A key is removed when its count reaches zero. */
export class InflightCounts {
  readonly #counts = new Map<string, number>();
  readonly #others?: OtherCounts;

  /** @param others Default: there is one process */
  constructor(others?: OtherCounts) {
    this.#others = others;
  }

  /** How many all processes count. */
  get(key: string): number {
    return this.#others === undefined ? this.own(key) : this.own(key) + this.#others.get(key);
  }

  /** How many this process counts. */
  own(key: string): number {
    return this.#counts.get(key) ?? 0;
  }

  /** @param max the limit, which matters to other processes. Default: none */
  add(key: string, max = Infinity): void {
    const count = this.own(key) + 1;
    this.#counts.set(key, count);
    this.#others?.changed(key, count, max);
  }

  remove(key: string): void {
    const count = this.own(key) - 1;
    if (count > 0) this.#counts.set(key, count);
    else this.#counts.delete(key);
    this.#others?.changed(key, Math.max(0, count));
  }
}

/** Keys per generation. */
const MAX_KEYS = 8_192;

/**
 * A bounded map of recently set keys, in two generations. When the younger one is full, it replaces the older one: evicting single keys,
 * oldest first, is slow with maps.
 */
export class RecentKeys<T> {
  #young = new Map<string, T>();
  #old = new Map<string, T>();

  get size(): number {
    return this.#young.size + this.#old.size;
  }

  get(key: string): T | undefined {
    return this.#young.get(key) ?? this.#old.get(key);
  }

  set(key: string, value: T): void {
    this.#old.delete(key);
    this.#young.set(key, value);
    if (this.#young.size < MAX_KEYS) return;
    this.#old = this.#young;
    this.#young = new Map();
  }

  delete(key: string): void {
    this.#young.delete(key);
    this.#old.delete(key);
  }
}

/** A token bucket per key. */
export class TokenBuckets {
  readonly #buckets = new RecentKeys<{ tokens: number; at: number }>();
  #rate!: number;
  #burst!: number;
  readonly #now: () => number;
  readonly #onTaken?: (key: string, rate: number) => void;

  /**
   * @param rate tokens per second; `Infinity`: no limit
   * @param burst capacity of a bucket; at least 1
   * @param now monotonic clock in milliseconds
   * @param onTaken called for each token taken, with the rate
   */
  constructor(
    rate: number,
    burst: number,
    now: () => number = () => performance.now(),
    onTaken?: (key: string, rate: number) => void,
  ) {
    this.#now = now;
    this.#onTaken = onTaken;
    this.update(rate, burst);
  }

  /** Changes rate and burst. A bucket that has more keeps no more than its new capacity. */
  update(rate: number, burst: number): void {
    this.#rate = rate;
    this.#burst = Math.max(1, burst);
  }

  get size(): number {
    return this.#buckets.size;
  }

  /** Takes a token and returns 0; without one, returns the milliseconds until the next. */
  take(key: string): number {
    if (this.#rate === Infinity) return 0;
    const now = this.#now();
    const filled = this.#filled(key, now);
    this.#buckets.set(key, { tokens: filled >= 1 ? filled - 1 : filled, at: now });
    if (filled < 1) return (1 - filled) * 1_000 / this.#rate;
    this.#onTaken?.(key, this.#rate);
    return 0;
  }

  /** Other processes have taken tokens. A bucket then lacks as many as it may have, or those of a second, at most. */
  takenByOthers(key: string, tokens: number): void {
    if (this.#rate === Infinity) return;
    const now = this.#now();
    const least = -Math.max(this.#burst, this.#rate);
    this.#buckets.set(key, { tokens: Math.max(least, this.#filled(key, now) - tokens), at: now });
  }

  #filled(key: string, now: number): number {
    const { tokens, at } = this.#buckets.get(key) ?? { tokens: this.#burst, at: now };
    return Math.min(this.#burst, tokens + (now - at) * this.#rate / 1_000);
  }
}

/** Duration of the first lockout in milliseconds; each further one lasts twice as long. */
const FIRST_LOCK_MS = 1_000;

interface Offender {
  /** Failures that are not forgiven yet. */
  failures: number;
  at: number;
  /** Consecutive lockouts. */
  locks: number;
  lockedUntil: number;
}

/** Locks out keys with too many failures, each time for longer. A success forgives nothing: it may alternate with guesses. */
export class AuthLockout {
  readonly #offenders = new RecentKeys<Offender>();
  #max: number;
  #maxMs: number;
  readonly #failureRefillMs: number;
  readonly #now: () => number;

  /**
   * @param max failures without a lockout; `Infinity`: no lockouts
   * @param maxMs longest lockout in milliseconds
   * @param failureRefillMs time in milliseconds after which one failure is forgiven, so that misconfigured peers are not locked out
   * @param now monotonic clock in milliseconds
   */
  constructor(max: number, maxMs: number, failureRefillMs: number, now: () => number = () => performance.now()) {
    this.#max = max;
    this.#maxMs = maxMs;
    this.#failureRefillMs = failureRefillMs;
    this.#now = now;
  }

  /** Changes the maxima. Lockouts that have begun last as they would. */
  update(max: number, maxMs: number): void {
    this.#max = max;
    this.#maxMs = maxMs;
  }

  get size(): number {
    return this.#offenders.size;
  }

  /** Remaining lockout of the key in milliseconds; 0: none. */
  lockedMs(key: string): number {
    const offender = this.#offenders.get(key);
    return offender === undefined ? 0 : Math.max(0, offender.lockedUntil - this.#now());
  }

  recordFailure(key: string): void {
    if (this.#max === Infinity) return;
    const now = this.#now();
    const before = this.#offenders.get(key) ?? { failures: 0, at: now, locks: 0, lockedUntil: 0 };
    const remaining = Math.max(0, before.failures - (now - before.at) / this.#failureRefillMs);
    const failures = Math.min(this.#max, remaining) + 1;
    let { locks, lockedUntil } = remaining === 0 ? { locks: 0, lockedUntil: 0 } : before;
    if (failures > this.#max) lockedUntil = now + Math.min(this.#maxMs, FIRST_LOCK_MS * 2 ** locks++);
    // failures are forgiven from the end of the lockout on
    this.#offenders.set(key, { failures, at: Math.max(now, lockedUntil), locks, lockedUntil });
  }
}
