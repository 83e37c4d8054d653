// Where is this agent, as lb knows it: the store's answers, each good for a second, and the last of them where the store has none. It does
// not connect to anything: whoever does says when an address has proved wrong.
import type { Store } from "../shared/store/store.ts";

export interface LocatorOptions {
  store: Store;
  /** How long an answer is good for, in milliseconds. Default 1000. */
  maxAgeMs?: number;
  /** Most agents remembered; the one asked for least recently is forgotten. Default 10000. */
  limit?: number;
  /** Milliseconds from any fixed point. Default `performance.now`. */
  now?: () => number;
}

interface Known {
  readonly address: string;
  checkedAt: number;
}

export class Locator {
  readonly #store: Store;
  readonly #maxAgeMs: number;
  readonly #limit: number;
  readonly #now: () => number;
  /** The one asked for least recently first. */
  readonly #known = new Map<string, Known>();
  readonly #asking = new Map<string, Promise<string | undefined>>();

  constructor({ store, maxAgeMs = 1_000, limit = 10_000, now = () => performance.now() }: LocatorOptions) {
    this.#store = store;
    this.#maxAgeMs = maxAgeMs;
    this.#limit = limit;
    this.#now = now;
  }

  /**
   * The address of the proxy that holds the agent. Many who ask at once ask the store once. A store that fails or was started empty does
   * not make an agent unknown that was there: its last address is used until it proves wrong.
   * @throws {StoreError} when the store fails and there is no last address
   */
  async locate(agentId: string): Promise<string | undefined> {
    const known = this.#known.get(agentId);
    if (known && this.#now() - known.checkedAt < this.#maxAgeMs) {
      this.#remember(agentId, known);
      return known.address;
    }
    let asking = this.#asking.get(agentId);
    if (!asking) {
      asking = this.#ask(agentId).finally(() => this.#asking.delete(agentId));
      this.#asking.set(agentId, asking);
    }
    return await asking;
  }

  async #ask(agentId: string): Promise<string | undefined> {
    let address: string | undefined;
    try {
      address = await this.#store.lookup(agentId);
    } catch (error) {
      if (!this.#known.has(agentId)) throw error;
    }
    address ??= this.#known.get(agentId)?.address;
    if (address !== undefined) this.#remember(agentId, { address, checkedAt: this.#now() });
    return address;
  }

  #remember(agentId: string, known: Known): void {
    this.#known.delete(agentId);
    this.#known.set(agentId, known);
    if (this.#known.size > this.#limit) this.#known.delete(this.#known.keys().next().value!);
  }

  /** The agent is not at `address`: whoever asks next gets what the store says then. */
  forget(agentId: string, address: string): void {
    if (this.#known.get(agentId)?.address === address) this.#known.delete(agentId);
  }

  /** What is remembered, agent ids with addresses. */
  *[Symbol.iterator](): Iterator<readonly [agentId: string, address: string]> {
    for (const [agentId, { address }] of this.#known) yield [agentId, address];
  }
}
