// Who may order: one order at a time in this process, and among all that share a store.
import { randomUUID } from "node:crypto";
import { messageOf } from "../../log/error_message.ts";
import type { Logger } from "../../log/logger.ts";
import type { SharedStore } from "./solvers.ts";

export class Lease {
  readonly #instance = randomUUID();
  /** Resolves when the orders of this process before the next one are done. */
  #last = Promise.resolve();

  /**
   * @param name of the authority
   * @param shared with the others who order. Default: none
   */
  constructor(private readonly name: string, private readonly log: Logger, private readonly shared?: SharedStore) {}

  /** Waits for other orders of this process. Returns what gives the lease back; `undefined` if another process has it. Never rejects. */
  async take(): Promise<(() => void) | undefined> {
    const { shared, log } = this;
    const { promise, resolve: free } = Promise.withResolvers<void>();
    const before = this.#last;
    this.#last = promise;
    await before;
    if (shared === undefined) return free;
    const key = `acme lease ${this.name}`; // no agent has such an id, because it contains a space
    const renew = () => shared.store.renew(key, this.#instance);
    try {
      await renew();
      if (await shared.store.lookup(key) !== this.#instance) {
        free();
        return undefined;
      }
    } catch (error) {
      log.debug("a certificate is ordered without asking the other proxies", { reason: messageOf(error) });
    }
    const timer = setInterval(() => void renew().catch(() => {}), shared.ttlMs / 3); // the store reports it
    return () => {
      clearInterval(timer); // the entry expires
      free();
    };
  }
}
