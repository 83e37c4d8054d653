// Asks agents to connect to another proxy when this one stops, and observes whether they do.
import { MAX_SPREAD_MS } from "../../shared/link/message.ts";
import { withTimeout } from "../../shared/async/with_timeout.ts";
import type { AgentRegistry, ConnectedAgent } from "./registry.ts";

/** Agents asked to migrate per second. */
const MIGRATIONS_PER_SECOND = 1_000;
/** Time in milliseconds for an agent to find another proxy, once it has begun to look for one. */
const RECONNECT_WAIT_MS = 10_000;
/** Time in milliseconds for agents to answer a ping after they were asked to migrate. */
const PROBE_TIMEOUT_MS = 1_000;
/** Maximum number of canaries, which are asked to move first. If there is no other proxy, thousands of agents need not search for one. */
const CANARY_COUNT = 128;
/** When this fraction of the canaries has found no proxy, there is none. The rest may never respond. */
const CANARY_FAILURE_FRACTION = 0.75;

/** The result of asking an agent to migrate. */
export type MigrationResult = "moved" | "found nothing" | "gone";

export class Migration {
  readonly #agents: AgentRegistry;
  /** Agents that were asked to migrate, while they are connected. */
  readonly #asked = new Map<ConnectedAgent, (result: MigrationResult) => void>();
  readonly #abandoned = Promise.withResolvers<void>();
  #isMigrating = false;
  #isWatched = false;

  constructor(agents: AgentRegistry) {
    this.#agents = agents;
  }

  /** An agent has connected; during a migration it is asked to move at once. */
  connected(agent: ConnectedAgent): void {
    if (this.#isMigrating && this.#canAsk(agent)) void this.#ask([agent]);
  }

  /** Records the response of an agent that was asked to move. */
  settle(agent: ConnectedAgent, result: MigrationResult): void {
    this.#asked.get(agent)?.(result);
  }

  /** The agent's connection has closed. */
  disconnected(agent: ConnectedAgent): void {
    this.settle(agent, "gone");
    this.#asked.delete(agent);
  }

  /** Resolves when every agent has migrated or failed to, or when the time for it is over, `timeoutMs` at most. */
  async run(timeoutMs: number): Promise<void> {
    this.#isMigrating = true;
    const since = performance.now();
    const all = [...this.#agents].filter((agent) => this.#canAsk(agent));
    const step = Math.ceil(all.length / CANARY_COUNT);
    const canaries = this.#ask(all.filter((_, index) => index % step === 0));
    const isOnlyProxy = step > 1 && await withTimeout(Math.min(timeoutMs, RECONNECT_WAIT_MS), findNoProxy(canaries));
    const others = [...this.#agents].filter((agent) => this.#canAsk(agent));
    const migrations = Promise.all([...canaries, ...this.#ask(others)]);
    const leftMs = timeoutMs - (performance.now() - since);
    if (!isOnlyProxy) return void await withTimeout(Math.min(leftMs, spreadMs(others.length) + RECONNECT_WAIT_MS), migrations);
    // an answered ping proves that the agent has read when to reconnect
    await withTimeout(Math.min(leftMs, PROBE_TIMEOUT_MS), Promise.all(others.map(({ control }) => control?.ping())));
  }

  /** Resolves when no agent stays. */
  abandoned(): Promise<void> {
    this.#isWatched = true;
    this.checkAbandoned();
    return this.#abandoned.promise;
  }

  /** To be called when an agent no longer stays. */
  checkAbandoned(): void {
    if (this.#isWatched && !this.#agents.hasAvailable) this.#abandoned.resolve();
  }

  #canAsk(agent: ConnectedAgent): boolean {
    return agent.control !== undefined && !this.#asked.has(agent);
  }

  #ask(agents: readonly ConnectedAgent[]): Promise<MigrationResult>[] {
    return agents.map((agent) => {
      void agent.control!.goaway("shutting down", spreadMs(agents.length)); // never rejects
      return new Promise((resolve) => this.#asked.set(agent, resolve));
    });
  }
}

/** Milliseconds over which `count` agents reconnect. */
function spreadMs(count: number): number {
  return Math.min(MAX_SPREAD_MS, Math.round(count * 1_000 / MIGRATIONS_PER_SECOND));
}

/** Resolves with `true` when nearly all canaries have found no other proxy, with `false` when one has. */
function findNoProxy(canaries: readonly Promise<MigrationResult>[]): Promise<boolean> {
  let without = 0;
  return new Promise((resolve) => {
    for (const canary of canaries) {
      void canary.then((result) => {
        if (result === "moved") resolve(false);
        else if (++without >= canaries.length * CANARY_FAILURE_FRACTION) resolve(true);
      });
    }
  });
}
