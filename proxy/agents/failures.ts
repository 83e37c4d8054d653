// Which agents could not reach which destinations of late: of several agents with one id, others are asked first. It knows no sockets.
import type { ConnectedAgent } from "./registry.ts";

/** An agent that has failed once is not asked first for this time in milliseconds, twice as long after each further failure. */
const AVOIDED_MS = 10_000;
const MOST_AVOIDED_MS = 60_000;
/** Failures remembered; the oldest is forgotten. */
const MOST = 10_000;

interface Failure {
  /** In a row. */
  count: number;
  /** Until when others are asked first. */
  until: number;
}

/** Failures by agent and destination. */
export class DestinationFailures {
  readonly #now: () => number;
  /** Numbers of agents, for the keys. */
  readonly #numbers = new WeakMap<ConnectedAgent, number>();
  #last = 0;
  /** The oldest first. */
  readonly #failures = new Map<string, Failure>();

  /** @param now milliseconds from any fixed point */
  constructor(now: () => number = () => performance.now()) {
    this.#now = now;
  }

  /** Whether others are to be asked first. */
  isAvoided(agent: ConnectedAgent, destination: string): boolean {
    if (this.#failures.size === 0) return false;
    const failure = this.#failures.get(this.#key(agent, destination));
    return failure !== undefined && failure.until > this.#now();
  }

  /** The agent is asked for the destination: where it has failed before, one request is enough to find out whether it still does. */
  started(agent: ConnectedAgent, destination: string): void {
    const failure = this.#failures.size > 0 ? this.#failures.get(this.#key(agent, destination)) : undefined;
    if (failure && failure.until <= this.#now()) failure.until = this.#now() + lengthOf(failure.count);
  }

  failed(agent: ConnectedAgent, destination: string): void {
    const key = this.#key(agent, destination);
    const count = (this.#failures.get(key)?.count ?? 0) + 1;
    this.#failures.delete(key);
    this.#failures.set(key, { count, until: this.#now() + lengthOf(count) });
    if (this.#failures.size > MOST) this.#failures.delete(this.#failures.keys().next().value!);
  }

  succeeded(agent: ConnectedAgent, destination: string): void {
    if (this.#failures.size > 0) this.#failures.delete(this.#key(agent, destination));
  }

  get size(): number {
    return this.#failures.size;
  }

  #key(agent: ConnectedAgent, destination: string): string {
    let number = this.#numbers.get(agent);
    if (number === undefined) this.#numbers.set(agent, number = ++this.#last);
    return `${number} ${destination}`;
  }
}

function lengthOf(count: number): number {
  return Math.min(MOST_AVOIDED_MS, AVOIDED_MS * 2 ** Math.min(count - 1, 10));
}
