// Exponential backoff with jitter, so that thousands of agents do not reconnect at the same moment.

/** Options of {@link Backoff}. */
export interface BackoffOptions {
  /** Upper bound of the first delay, in milliseconds. Default 500. */
  initialMs?: number;
  /** Upper bound of all delays, in milliseconds. Default 30000. */
  maxMs?: number;
  /** Random number in [0, 1). Default `Math.random`. */
  random?: () => number;
}

/** After timeouts the delay is the outage divided by this. */
const OUTAGE_DIVISOR = 100;

/** Each delay is between half of an upper bound and the bound itself, which doubles each time. */
export class Backoff {
  #attempts = 0;
  readonly #initialMs: number;
  readonly #maxMs: number;
  readonly #random: () => number;

  constructor({ initialMs = 500, maxMs = 30_000, random = Math.random }: BackoffOptions = {}) {
    this.#initialMs = initialMs;
    this.#maxMs = maxMs;
    this.#random = random;
  }

  /** The next delay, in milliseconds. */
  next(): number {
    return this.#jitter(Math.min(this.#maxMs, this.#initialMs * 2 ** Math.min(this.#attempts++, 30)));
  }

  #jitter(bound: number): number {
    return bound / 2 + this.#random() * bound / 2;
  }

  /**
   * The delay after a timeout, in milliseconds: a small fraction of the outage so far. Attempts that reach no peer do no harm, and a peer that
   * returns is found soon.
   */
  delayAfterTimeout(outageMs: number): number {
    return this.#jitter(Math.min(this.#maxMs, Math.max(this.#initialMs, outageMs / OUTAGE_DIVISOR)));
  }

  /** Starts again with the first delay. */
  reset(): void {
    this.#attempts = 0;
  }
}
