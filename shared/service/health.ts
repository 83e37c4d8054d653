// Whether a service is ready for traffic.

/** Readiness, and the reasons against it. Ready at first. */
export class Health {
  readonly #problems = new Map<string, string>();

  /** `cause` is one of a few fixed words, `reason` describes it for people. */
  setUnready(cause: string, reason: string = cause): void {
    this.#problems.set(cause, reason);
  }

  /** Clears one cause. */
  setReady(cause: string): void {
    this.#problems.delete(cause);
  }

  /** Reasons by cause; empty when ready. */
  get problems(): ReadonlyMap<string, string> {
    return this.#problems;
  }
}
