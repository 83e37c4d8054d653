// Remembers which agents could not reach which destinations, so that of several agents with one id others are tried first.
import type { ConnectedAgent } from "./registry.ts";

/** Time in milliseconds for which an agent is avoided after a failure; it doubles with each further failure, up to the maximum. */
const AVOIDED_MS = 10_000;
const MAX_AVOIDED_MS = 60_000;
/** Maximum number of failures remembered; the oldest is dropped. */
const MAX_FAILURES = 10_000;

interface Failure {
  /** Consecutive failures. */
  count: number;
  /** Until when the agent is avoided. */
  until: number;
}

export class DestinationFailures {
  readonly #now: () => number;
  /** Numbers that stand for agents in keys. */
  readonly #numbers = new WeakMap<ConnectedAgent, number>();
  #last = 0;
  /** The oldest is first. */
  readonly #failures = new Map<string, Failure>();

  /** @param now milliseconds from any fixed point */
  constructor(now: () => number = () => performance.now()) {
    this.#now = now;
  }

  /** Whether other agents should be tried first. */
  isAvoided(agent: ConnectedAgent, destination: string): boolean {
    if (this.#failures.size === 0) return false;
    const failure = this.#failures.get(this.#key(agent, destination));
    return failure !== undefined && failure.until > this.#now();
  }

  /** A request to the destination starts. After a failure, one request is enough to find out whether the agent still fails. */
  started(agent: ConnectedAgent, destination: string): void {
    const failure = this.#failures.size > 0 ? this.#failures.get(this.#key(agent, destination)) : undefined;
    if (failure && failure.until <= this.#now()) failure.until = this.#now() + lengthOf(failure.count);
  }

  failed(agent: ConnectedAgent, destination: string): void {
    const key = this.#key(agent, destination);
    const count = (this.#failures.get(key)?.count ?? 0) + 1;
    this.#failures.delete(key);
    this.#failures.set(key, { count, until: this.#now() + lengthOf(count) });
    if (this.#failures.size > MAX_FAILURES) this.#failures.delete(this.#failures.keys().next().value!);
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
  return Math.min(MAX_AVOIDED_MS, AVOIDED_MS * 2 ** Math.min(count - 1, 10));
}
