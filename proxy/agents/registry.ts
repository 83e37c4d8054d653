// Which agents there are, and which connection of an agent gets the next tunnel. It knows no sockets: who is to be closed, it returns.
import type { Identity } from "../../shared/auth/authenticator.ts";
import type { Control } from "../../shared/link/control.ts";
import type { Hello } from "../../shared/link/message.ts";
import type { QuicConnection } from "../../shared/net/types.ts";

/** A connection of an agent that has authenticated. */
export interface ConnectedAgent {
  readonly connection: QuicConnection;
  readonly identity: Identity;
  /** When it authenticated. */
  readonly since: Date;
  /** What it said of itself, and the way to tell it something; missing with version 1. */
  readonly hello?: Hello;
  readonly control?: Control;
  /** Tunnels open, or being opened. */
  tunnels: number;
  /** When it was asked for the last one, in milliseconds from any fixed point; 0 for never. */
  lastRequestAt: number;
  /** It asked for no more tunnels. */
  isDraining: boolean;
  /** It has connected to another proxy, for this one shuts down. */
  hasMigrated: boolean;
}

/** Connections of one agent id; one more, and the oldest is closed. */
const MAX_CONNECTIONS = 64;

/** An agent that has not answered a ping for so many milliseconds may be dead without the network saying so. */
export const UNRESPONSIVE_AFTER_MS = 1_000;

/** The connections held, by agent id. */
export class AgentRegistry {
  readonly #multiple: boolean;
  /** The newest last; never an empty list. */
  readonly #agents = new Map<string, ConnectedAgent[]>();

  /** @param multiple whether several agents may have one id; otherwise the newest takes the place of the others */
  constructor(multiple: boolean) {
    this.#multiple = multiple;
  }

  /** Agent ids held. */
  get size(): number {
    return this.#agents.size;
  }

  /** Every connection. */
  *[Symbol.iterator](): Iterator<ConnectedAgent> {
    for (const connections of this.#agents.values()) yield* connections;
  }

  /** Whether clients of the agent should come here: a connection of it stays. */
  isAvailable(agentId: string): boolean {
    return (this.#agents.get(agentId) ?? []).some(isStaying);
  }

  /** Whether a connection of any agent stays. */
  get hasAvailable(): boolean {
    for (const agent of this) if (isStaying(agent)) return true;
    return false;
  }

  /**
   * Returns those whose place it takes, which are to be closed. An older connection of the same process is kept, and so is one that
   * takes no more tunnels: those it has may finish.
   */
  add(agent: ConnectedAgent): ConnectedAgent[] {
    const { agentId } = agent.identity;
    const before = this.#agents.get(agentId) ?? [];
    const replaced = before.filter((old) => this.replaces(agent, old));
    const kept = [...before.filter((old) => !replaced.includes(old)), agent];
    replaced.push(...kept.splice(0, Math.max(0, kept.length - MAX_CONNECTIONS)));
    this.#agents.set(agentId, kept);
    return replaced;
  }

  /** Whether `agent` takes the place of another process. What {@link add} returns besides was only one connection too many. */
  replaces(agent: ConnectedAgent, old: ConnectedAgent): boolean {
    return !this.#multiple && !old.isDraining && !isSameProcess(old, agent);
  }

  remove(agent: ConnectedAgent): void {
    const { agentId } = agent.identity;
    const kept = this.#agents.get(agentId)?.filter((connections) => connections !== agent) ?? [];
    if (kept.length > 0) this.#agents.set(agentId, kept);
    else this.#agents.delete(agentId);
  }

  /** The other connections of the same process. */
  others(agent: ConnectedAgent): ConnectedAgent[] {
    return (this.#agents.get(agent.identity.agentId) ?? []).filter((other) => other !== agent && isSameProcess(other, agent));
  }

  /**
   * The connection for the next tunnel, none of `passed`: of each process the newest, of these one that is not to be avoided, if there is a
   * choice, and the one with the fewest tunnels, of equals the one that was not asked for longest. Agents that are silent, and older connections of a process, may be dead without being known to
   * be: they come late. One that asked for no more tunnels comes last: it stops, and serves as long as no other has taken its place.
   */
  pick(
    agentId: string,
    excluded: ReadonlySet<ConnectedAgent>,
    isAvoided: (agent: ConnectedAgent) => boolean = () => false,
  ): ConnectedAgent | undefined {
    const connections = this.#agents.get(agentId) ?? [];
    // nearly always, and for every tunnel
    if (connections.length === 1) return connections.find((agent) => !excluded.has(agent));
    const usable = connections.filter((agent) => !agent.isDraining);
    const current = usable.filter((agent, i) => !usable.slice(i + 1).some((newer) => isSameProcess(newer, agent)));
    const left = current.filter((agent) => !excluded.has(agent));
    const lively = left.filter(({ control }) => !control || control.silentMs < UNRESPONSIVE_AFTER_MS);
    if (left.length === 0) {
      return usable.findLast((agent) => !excluded.has(agent)) ?? connections.findLast((agent) => agent.isDraining && !excluded.has(agent));
    }
    const isBetter = (a: ConnectedAgent, b: ConnectedAgent) =>
      a.tunnels < b.tunnels || (a.tunnels === b.tunnels && a.lastRequestAt <= b.lastRequestAt);
    const candidates = lively.length > 0 ? lively : left;
    const well = candidates.filter((agent) => !isAvoided(agent));
    return (well.length > 0 ? well : candidates).reduce((best, agent) => isBetter(agent, best) ? agent : best);
  }
}

/** It has neither asked for no more tunnels nor connected to another proxy. */
function isStaying({ isDraining, hasMigrated }: ConnectedAgent): boolean {
  return !isDraining && !hasMigrated;
}

function isSameProcess(a: ConnectedAgent, b: ConnectedAgent): boolean {
  return a.hello !== undefined && a.hello.instance === b.hello?.instance;
}
