// Logs and counts replaced agents, and warns of two agents with one id, which replace each other forever. `registry.ts` decides who is
// replaced.
import type { Logger } from "../../shared/log/logger.ts";
import type { ConnectedAgent } from "./registry.ts";

/** An agent that is replaced again within this time was not just restarted. The warning repeats at most at this interval. */
const REPEATED_MS = 60_000;
/** Maximum number of agent ids remembered; the one replaced least recently is dropped. */
const MAX_IDS = 1_000;

interface Replaced {
  readonly at: number;
  /** Replacements since the last log line. */
  readonly unlogged: number;
  readonly warnedAt: number;
}

export class ReplacementLog {
  readonly #log: Logger;
  readonly #count: () => void;
  readonly #now: () => number;
  /** The least recently replaced is first. */
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
    let { unlogged, warnedAt } = before ?? { unlogged: 0, warnedAt: -Infinity };
    unlogged++;
    if (before === undefined || now - before.at > REPEATED_MS) {
      this.#log.info("agent replaced", fields);
      unlogged = 0;
    } else if (now - warnedAt >= REPEATED_MS) {
      const advice = "give each agent an id of its own, or start the proxy with --agent-server.agent.multiple";
      this.#log.warn("agents with the same id replace each other", { ...fields, times: unlogged, advice });
      [unlogged, warnedAt] = [0, now];
    }
    this.#replaced.delete(agentId);
    this.#replaced.set(agentId, { at: now, unlogged, warnedAt });
    if (this.#replaced.size > MAX_IDS) this.#replaced.delete(this.#replaced.keys().next().value!);
  }
}
