// Runs checks one after another, and prints the result of each and the totals.
import process from "node:process";

/** Counts passed and failed checks. */
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

  /** Exits with code 1 if a check failed or none ran, otherwise with 0. */
  exit(): never {
    console.log(`${this.#passed} passed, ${this.#failed} failed`);
    process.exit(this.#failed === 0 && this.#passed > 0 ? 0 : 1);
  }
}
