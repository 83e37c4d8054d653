// What is remembered of peers by a key of their own making: how many, how fast, how often in vain. Every table has an end, every look-up
// costs the same however many there are, and nobody has a timer.

/** How many there are of each key. It holds keys only as long as there is something to count. */
export class InflightCounts {
  readonly #counts = new Map<string, number>();

  get(key: string): number {
    return this.#counts.get(key) ?? 0;
  }

  add(key: string): void {
    this.#counts.set(key, this.get(key) + 1);
  }

  remove(key: string): void {
    const left = this.get(key) - 1;
    if (left > 0) this.#counts.set(key, left);
    else this.#counts.delete(key);
  }
}

/** Keys of which something is remembered, in each of two generations. */
const MAX_KEYS = 8_192;

/**
 * What is remembered of the latest keys. Once the younger generation is full, it becomes the older one, and that is forgotten: taking keys
 * out one by one, the oldest first, is slow with maps.
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

/** A token bucket for each key: so many a second, and so many at once after a pause. */
export class TokenBuckets {
  readonly #buckets = new RecentKeys<{ tokens: number; at: number }>();
  readonly #rate: number;
  readonly #burst: number;
  readonly #now: () => number;

  /**
   * @param rate a second
   * @param burst most at once; at least 1
   * @param now milliseconds from any fixed point
   */
  constructor(rate: number, burst: number, now: () => number = () => performance.now()) {
    this.#rate = rate;
    this.#burst = Math.max(1, burst);
    this.#now = now;
  }

  get size(): number {
    return this.#buckets.size;
  }

  /** Takes one, where there is one; otherwise returns in how many milliseconds there will be. */
  take(key: string): number {
    if (this.#rate === Infinity) return 0;
    const now = this.#now();
    const { tokens, at } = this.#buckets.get(key) ?? { tokens: this.#burst, at: now };
    const filled = Math.min(this.#burst, tokens + (now - at) * this.#rate / 1_000);
    this.#buckets.set(key, { tokens: filled >= 1 ? filled - 1 : filled, at: now });
    return filled >= 1 ? 0 : (1 - filled) * 1_000 / this.#rate;
  }
}

/** The first lock-out in milliseconds; each further one lasts twice as long as the one before. */
const FIRST_LOCK_MS = 1_000;

interface Offender {
  /** Failures that are not forgiven yet. */
  failures: number;
  at: number;
  /** Lock-outs in a row. */
  locks: number;
  lockedUntil: number;
}

/** Locks out who fails too often, ever longer. Only time forgives: one right credential says nothing about the wrong ones beside it. */
export class AuthLockout {
  readonly #offenders = new RecentKeys<Offender>();
  readonly #max: number;
  readonly #maxMs: number;
  readonly #failureRefillMs: number;
  readonly #now: () => number;

  /**
   * @param max failures that are not punished
   * @param maxMs longest lock-out in milliseconds
   * @param failureRefillMs one failure is forgiven in so many milliseconds: what tries again now and then, wrongly set up, is no attack
   * @param now milliseconds from any fixed point
   */
  constructor(max: number, maxMs: number, failureRefillMs: number, now: () => number = () => performance.now()) {
    this.#max = max;
    this.#maxMs = maxMs;
    this.#failureRefillMs = failureRefillMs;
    this.#now = now;
  }

  get size(): number {
    return this.#offenders.size;
  }

  /** Milliseconds that the key is still locked out for; 0 where it is not. */
  lockedMs(key: string): number {
    const offender = this.#offenders.get(key);
    return offender === undefined ? 0 : Math.max(0, offender.lockedUntil - this.#now());
  }

  recordFailure(key: string): void {
    if (this.#max === Infinity) return;
    const now = this.#now();
    const before = this.#offenders.get(key) ?? { failures: 0, at: now, locks: 0, lockedUntil: 0 };
    const kept = Math.max(0, before.failures - (now - before.at) / this.#failureRefillMs);
    const failures = Math.min(this.#max, kept) + 1;
    let { locks, lockedUntil } = kept === 0 ? { locks: 0, lockedUntil: 0 } : before;
    if (failures > this.#max) lockedUntil = now + Math.min(this.#maxMs, FIRST_LOCK_MS * 2 ** locks++);
    // what is forgiven begins when the lock-out ends
    this.#offenders.set(key, { failures, at: Math.max(now, lockedUntil), locks, lockedUntil });
  }
}
