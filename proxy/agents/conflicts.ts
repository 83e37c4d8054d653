// Ends the conflict of two agents with one id, which would replace each other forever: after a few rounds one of them is kept for as long as
// it is connected, and the other is refused. Knows agents only by their instance, so those of version 1 are not affected.
import type { Logger } from "../../shared/log/logger.ts";
import type { ConnectedAgent } from "./registry.ts";

/** Which agent is kept: the one that was there first or last, or none. */
export const CONFLICT_RULES = ["keep-last", "keep-first", "replace"] as const;
export type ConflictRule = (typeof CONFLICT_RULES)[number];

/** An agent that returns within this time in milliseconds after it was replaced is in conflict with the one that replaced it. */
const RETURN_MS = 60_000;
/** An agent is kept when it has been replaced and others have returned so often. */
const MAX_ROUNDS = 3;
/** Interval in milliseconds of the warning that an agent is refused. */
const WARNING_MS = 60_000;
/** Maximum number of agent ids remembered; the one replaced least recently is dropped. */
const MAX_IDS = 1_000;
/** Maximum number of agents remembered for an id. */
const MAX_RIVALS = 8;

/** An agent is not accepted because another one with its id is kept. */
export class ConflictError extends Error {
  override readonly name = "ConflictError";
}

interface Conflict {
  /** When each agent was last replaced, by instance. */
  readonly replacedAt: Map<string, number>;
  first: string;
  last: string;
  rounds: number;
  kept?: ConnectedAgent;
  warnedAt: number;
}

export class Conflicts {
  #rule: ConflictRule;
  readonly #log: Logger;
  readonly #now: () => number;
  /** By agent id; the least recently changed is first. */
  readonly #conflicts = new Map<string, Conflict>();

  /** @param now milliseconds from any fixed point */
  constructor(rule: ConflictRule, log: Logger, now: () => number = () => performance.now()) {
    this.#rule = rule;
    this.#log = log;
    this.#now = now;
  }

  /** Changes the rule for rounds to come. */
  set rule(rule: ConflictRule) {
    this.#rule = rule;
  }

  /** Number of ids for which an agent is kept here and others are refused. */
  get size(): number {
    return [...this.#conflicts.values()].filter(({ kept }) => kept !== undefined && !kept.isRemote).length;
  }

  /**
   * Checks whether `agent` may replace others.
   * @throws {ConflictError} if it is in conflict with the agent that is kept
   */
  check(agent: ConnectedAgent): void {
    const conflict = this.#conflicts.get(agent.identity.agentId);
    const instance = agent.hello?.instance;
    const { kept } = conflict ?? {};
    if (conflict === undefined || kept === undefined || instance === undefined || kept.hello?.instance === instance) return;
    if (kept.isDraining || !conflict.replacedAt.has(instance)) return;
    if (this.#now() - conflict.warnedAt >= WARNING_MS) {
      conflict.warnedAt = this.#now();
      this.#log.warn("agent refused: another agent has the same id", {
        agent: agent.identity.agentId,
        remote: agent.connection.remote,
        host: agent.hello?.host,
        kept: kept.connection.remote,
        keptHost: kept.hello?.host,
        advice: "give each agent an id of its own; --agent-server.agent.on-conflict says which one is kept",
      });
    }
    throw new ConflictError(`Another agent with the id is kept, that of the host ${kept.hello?.host}`);
  }

  /** `by` has replaced connections of other agents with its id. */
  replaced(replaced: readonly ConnectedAgent[], by: ConnectedAgent): void {
    const { identity: { agentId }, hello } = by;
    const [instance, old] = [hello?.instance, replaced.find(({ hello }) => hello !== undefined)?.hello?.instance];
    if (this.#rule === "replace" || instance === undefined || old === undefined) return;
    const now = this.#now();
    const before = this.#conflicts.get(agentId);
    const hasReturned = now - (before?.replacedAt.get(instance) ?? -Infinity) <= RETURN_MS;
    // a new agent replaces the others, as ever
    const conflict: Conflict = before !== undefined && hasReturned
      ? before
      : { replacedAt: new Map(before?.replacedAt), first: old, last: instance, rounds: 0, warnedAt: -Infinity };
    conflict.kept = undefined;
    if (hasReturned) conflict.rounds++;
    conflict.replacedAt.delete(old);
    conflict.replacedAt.set(old, now);
    if (conflict.replacedAt.size > MAX_RIVALS) conflict.replacedAt.delete(conflict.replacedAt.keys().next().value!);
    this.#conflicts.delete(agentId);
    this.#conflicts.set(agentId, conflict);
    if (this.#conflicts.size > MAX_IDS) this.#conflicts.delete(this.#conflicts.keys().next().value!);
    const kept = this.#rule === "keep-first" ? conflict.first : conflict.last;
    if (conflict.rounds >= MAX_ROUNDS && instance === kept) conflict.kept = by;
  }

  /** A connection has ended; `other` is another one of its process. Without one, the agent that was kept is not any more. */
  removed(agent: ConnectedAgent, other?: ConnectedAgent): void {
    const { agentId } = agent.identity;
    const conflict = this.#conflicts.get(agentId);
    if (conflict?.kept !== agent) return;
    if (other) conflict.kept = other;
    else this.#conflicts.delete(agentId);
  }
}
