// A change of a running service that happens as a whole or not at all.

/** Collects the prepared steps of a change, each with a function to apply it and one to undo it. */
export class Change {
  readonly #commits: (() => void)[] = [];
  readonly #reverts: (() => void | Promise<void>)[] = [];

  /** Calls `commit` once all parts are prepared. It must not throw. */
  onCommit(commit: () => void): void {
    this.#commits.push(commit);
  }

  /** Calls `revert` if a later part cannot be prepared. */
  onRevert(revert: () => void | Promise<void>): void {
    this.#reverts.push(revert);
  }

  /**
   * Prepares the parts, and then puts all of them in force.
   * @throws what `prepare` throws, after all parts were taken back
   */
  static async run(prepare: (change: Change) => Promise<void>): Promise<void> {
    const change = new Change();
    try {
      await prepare(change);
    } catch (error) {
      for (const revert of change.#reverts.reverse()) await Promise.resolve(revert()).catch(() => {}); // the first error is the cause
      throw error;
    }
    for (const commit of change.#commits) commit();
  }
}

/** Whether values of options differ. */
export function differs(a: unknown, b: unknown): boolean {
  return JSON.stringify(a) !== JSON.stringify(b);
}
