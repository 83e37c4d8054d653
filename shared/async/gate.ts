// A gate that lets a bounded number of tasks run at once, and a bounded number wait.

/** Neither a place to run nor one to wait is left. */
export class GateFull extends Error {
  override readonly name = "GateFull";
}

export class Gate {
  readonly #max: number;
  readonly #maxWaiting: number;
  readonly #waiting: (() => void)[] = [];
  #running = 0;

  /**
   * @param max tasks that run at once
   * @param maxWaiting tasks that wait, first come, first served
   */
  constructor(max: number, maxWaiting: number) {
    this.#max = max;
    this.#maxWaiting = maxWaiting;
  }

  /**
   * Runs the task when there is a place, and returns its result.
   * @throws {GateFull} at once, if too many tasks wait
   */
  async run<T>(task: () => Promise<T>): Promise<T> {
    if (this.#running < this.#max) this.#running++;
    else if (this.#waiting.length >= this.#maxWaiting) throw new GateFull(`${this.#max} run and ${this.#maxWaiting} wait already`);
    else await new Promise<void>((resolve) => this.#waiting.push(resolve)); // takes over a place
    try {
      return await task();
    } finally {
      const next = this.#waiting.shift();
      if (next === undefined) this.#running--;
      else next();
    }
  }
}
