// How long to wait before the next attempt: exponential, with jitter, so that a thousand agents do not come back in the same second.

/** Waiting times in milliseconds. */
export interface BackoffOptions {
  /** The first wait, before jitter. Default 500. */
  initialMs?: number;
  /** The longest wait. Default 30000. */
  maxMs?: number;
  /** From 0 up to, not including, 1. Default `Math.random`. */
  random?: () => number;
}

/** A wait that follows silence makes it longer by one of so many parts. */
const SILENCE_PARTS = 100;

/** Each wait is between half of and the whole of a bound that doubles. */
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

  /** The next wait in milliseconds; longer each time. */
  next(): number {
    return this.#jitter(Math.min(this.#maxMs, this.#initialMs * 2 ** Math.min(this.#attempts++, 30)));
  }

  #jitter(bound: number): number {
    return bound / 2 + this.#random() * bound / 2;
  }

  /**
   * The next wait in milliseconds where nobody was there to be bothered for `outageMs`: a small part of that, so that who was gone is found
   * again soon.
   */
  afterSilence(outageMs: number): number {
    return this.#jitter(Math.min(this.#maxMs, Math.max(this.#initialMs, outageMs / SILENCE_PARTS)));
  }

  /** Back to the first wait. */
  reset(): void {
    this.#attempts = 0;
  }
}
