// Tells of agents that take each other's place, which two with one id do for ever. It knows no connections.
import type { Logger } from "../../shared/log/logger.ts";
import type { ConnectedAgent } from "./registry.ts";

/** An agent that is replaced again within this time is not only started again: it is warned of, once in this time. */
const REPEATED_MS = 60_000;
/** Agent ids remembered; the one that was replaced least recently is forgotten. */
const MOST = 1_000;

interface Replaced {
  readonly at: number;
  /** Since the last line in the log. */
  readonly untold: number;
  readonly warnedAt: number;
}

/** Logs replacements. */
export class Replacements {
  readonly #log: Logger;
  readonly #count: () => void;
  readonly #now: () => number;
  /** The one replaced least recently first. */
  readonly #replaced = new Map<string, Replaced>();

  /** @param now milliseconds from any fixed point */
  constructor(log: Logger, count: () => void = () => {}, now: () => number = () => performance.now()) {
    this.#log = log;
    this.#count = count;
    this.#now = now;
  }

  replaced(old: ConnectedAgent, by: ConnectedAgent): void {
    this.#count();
    const { agentId } = by.identity;
    const now = this.#now();
    const before = this.#replaced.get(agentId);
    const fields = {
      agent: agentId,
      remote: old.connection.remote,
      host: old.hello?.host,
      by: by.connection.remote,
      byHost: by.hello?.host,
    };
    let { untold, warnedAt } = before ?? { untold: 0, warnedAt: -Infinity };
    untold++;
    if (before === undefined || now - before.at > REPEATED_MS) {
      this.#log.info("agent replaced", fields);
      untold = 0;
    } else if (now - warnedAt >= REPEATED_MS) {
      const advice = "give each agent an id of its own, or start the proxy with --agent-server.agent.multiple";
      this.#log.warn("agents with the same id replace each other", { ...fields, times: untold, advice });
      [untold, warnedAt] = [0, now];
    }
    this.#replaced.delete(agentId);
    this.#replaced.set(agentId, { at: now, untold, warnedAt });
    if (this.#replaced.size > MOST) this.#replaced.delete(this.#replaced.keys().next().value!);
  }
}
