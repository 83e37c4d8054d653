// Runs checks one after another, says how each went, and how many in all.
import process from "node:process";

/** Counts what passed and what failed. */
export class Checks {
  #passed = 0;
  #failed = 0;

  async run(what: string, check: () => void | Promise<void>): Promise<void> {
    const started = performance.now();
    try {
      await check();
      this.#passed++;
      console.log(`ok   ${what} (${((performance.now() - started) / 1000).toFixed(1)} s)`);
    } catch (error) {
      this.#failed++;
      console.log(`FAIL ${what}: ${error instanceof Error ? error.message : error}`);
    }
  }

  /** Ends the process: with 1 where a check failed, or none ran. */
  exit(): never {
    console.log(`${this.#passed} passed, ${this.#failed} failed`);
    process.exit(this.#failed === 0 && this.#passed > 0 ? 0 : 1);
  }
}
