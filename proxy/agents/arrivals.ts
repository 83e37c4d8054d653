// After a hand-over the agents of the earlier process connect to this one. Meanwhile requests for them wait.
import { withTimeout } from "../../shared/async/with_timeout.ts";

export interface ArrivalsOptions {
  /** Resolves when no more agents will come. */
  readonly over: Promise<void>;
  /** Whether the agent is connected. */
  readonly isConnected: (agentId: string) => boolean;
  /** Time in milliseconds that a request waits at most. */
  readonly timeoutMs: () => number;
}

export class Arrivals {
  readonly #options: ArrivalsOptions;
  readonly #awaited = new Map<string, PromiseWithResolvers<void>>();
  #isOver = false;

  constructor(options: ArrivalsOptions) {
    this.#options = options;
    void options.over.then(() => {
      this.#isOver = true;
      for (const { resolve } of this.#awaited.values()) resolve();
      this.#awaited.clear();
    });
  }

  /** Resolves when the agent has connected, or is not expected any longer. `undefined` if there is nothing to wait for. */
  whenExpected(agentId: string): Promise<void> | undefined {
    if (this.#isOver || this.#options.isConnected(agentId)) return undefined;
    const awaited = this.#awaited.get(agentId) ?? Promise.withResolvers<void>();
    this.#awaited.set(agentId, awaited);
    return withTimeout(this.#options.timeoutMs(), awaited.promise);
  }

  connected(agentId: string): void {
    this.#awaited.get(agentId)?.resolve();
    this.#awaited.delete(agentId);
  }
}
