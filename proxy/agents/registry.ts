// The connected agents. Decides which connections a new one replaces, and which one carries the next tunnel. It closes nothing: it returns
// the connections to close.
import type { Identity } from "../../shared/auth/authenticator.ts";
import type { Control } from "../../shared/link/control.ts";
import type { Hello } from "../../shared/link/message.ts";
import type { AgentSession } from "../../shared/net/session.ts";
import type { AgentState } from "../../shared/service/api/types.ts";
import type { TunnelVia } from "../../shared/tunnel/request.ts";

/** A connection of an authenticated agent. */
export interface ConnectedAgent {
  /** Identifies the connection, for operators. */
  readonly id: string;
  readonly connection: AgentSession;
  /** What its tunnels pass through. */
  readonly via: TunnelVia;
  /** Replaced when the agent renews its credentials; the agent id stays. */
  identity: Identity;
  /** The credentials by which its identity was last verified. */
  credentials: Uint8Array;
  /** When it authenticated; later than connections with its id at other workers that were known then. */
  since: Date;
  /** What the agent reported about itself, and its control stream; missing with version 1 of the link. */
  readonly hello?: Hello;
  readonly control?: Control;
  /** Tunnels open, or being opened. */
  tunnels: number;
  /** Time of its last request, in milliseconds from any fixed point; 0 for never. */
  lastRequestAt: number;
  /** The last failure of a tunnel through it. */
  lastError?: AgentState["lastError"];
  /** It accepts no more tunnels. */
  isDraining: boolean;
  /** It has connected to another proxy because this one shuts down. */
  hasMigrated: boolean;
  /** Another worker of this proxy holds it. Tunnels pass through that one, and only {@link AgentRegistry.pick} and rules for ids know it. */
  readonly isRemote?: true;
}

/** Maximum number of connections per agent id; the oldest is closed for another one. */
const MAX_CONNECTIONS = 64;

/** An agent that has not answered a ping for this many milliseconds may be dead without an error from the network. */
export const UNRESPONSIVE_AFTER_MS = 1_000;

/** The connections by agent id. */
export class AgentRegistry {
  #multiple: boolean;
  /** The newest connection is last; a list is never empty. */
  readonly #agents = new Map<string, ConnectedAgent[]>();
  /** Number of connections at other workers. */
  #remote = 0;

  /** @param multiple whether several agents may share one id; otherwise the newest replaces the others */
  constructor(multiple: boolean) {
    this.#multiple = multiple;
  }

  /** Changes which agents may share an id; connected agents stay. */
  set multiple(multiple: boolean) {
    this.#multiple = multiple;
  }

  /** Number of agent ids held here. */
  get size(): number {
    if (this.#remote === 0) return this.#agents.size;
    let size = 0;
    for (const connections of this.#agents.values()) if (connections.some(isHeld)) size++;
    return size;
  }

  /** All connections held here. */
  *[Symbol.iterator](): Iterator<ConnectedAgent> {
    for (const connections of this.#agents.values()) yield* this.#remote === 0 ? connections : connections.filter(isHeld);
  }

  /** The connections held here whose id has another one, here or at another worker. */
  *shared(): Iterable<ConnectedAgent> {
    for (const connections of this.#agents.values()) if (connections.length > 1) yield* connections.filter(isHeld);
  }

  /** Whether lb should route clients of the agent here: a connection of it stays. */
  isAvailable(agentId: string): boolean {
    return (this.#agents.get(agentId) ?? []).some((agent) => isHeld(agent) && isStaying(agent));
  }

  /** The ids for which {@link isAvailable} holds. */
  get availableIds(): string[] {
    return [...this.#agents.keys()].filter((agentId) => this.isAvailable(agentId));
  }

  /** Whether the agent has a connection, here or at another worker. */
  isConnected(agentId: string): boolean {
    return this.#agents.has(agentId);
  }

  /** Whether a connection of any agent stays. */
  get hasAvailable(): boolean {
    for (const agent of this) if (isStaying(agent)) return true;
    return false;
  }

  /** The labels, `name=value`, of each connection of the agent. */
  labelsOf(agentId: string): string[][] {
    return (this.#agents.get(agentId) ?? []).map(({ hello }) =>
      Object.entries(hello?.labels ?? {}).map(([name, value]) => `${name}=${value}`)
    );
  }

  /**
   * Adds a connection and returns those it replaces, for the caller to close. An older connection of the same process is kept, and so is a
   * draining one, whose tunnels may finish. What another worker has told late, and is older than the others, replaces none.
   */
  add(agent: ConnectedAgent): ConnectedAgent[] {
    const { agentId } = agent.identity;
    const before = this.#agents.get(agentId) ?? [];
    // the clock may have been set back: other workers could take an older connection for the newest
    const newest = Math.max(...before.flatMap(({ isRemote, since }) => isRemote ? since.getTime() : []));
    if (newest > -Infinity && !agent.isRemote && agent.since.getTime() <= newest) agent.since = new Date(newest + 1);
    const replaced = before.filter((old) => this.replaces(agent, old));
    const kept = before.filter((old) => !replaced.includes(old));
    const newer = kept.findIndex((other) => isToldLate(agent, other));
    kept.splice(newer < 0 ? kept.length : newer, 0, agent);
    replaced.push(...kept.splice(0, Math.max(0, kept.length - MAX_CONNECTIONS)));
    this.#set(agentId, before, kept);
    return replaced;
  }

  /** Whether `agent` replaces `old`, the connection of another process. Other connections that {@link add} returns exceed the maximum. */
  replaces(agent: ConnectedAgent, old: ConnectedAgent): boolean {
    return !this.#multiple && !old.isDraining && !isSameProcess(old, agent) && !isToldLate(agent, old);
  }

  remove(agent: ConnectedAgent): void {
    const { agentId } = agent.identity;
    const before = this.#agents.get(agentId) ?? [];
    this.#set(agentId, before, before.filter((connection) => connection !== agent));
  }

  #set(agentId: string, before: readonly ConnectedAgent[], after: ConnectedAgent[]): void {
    const remoteOf = (connections: readonly ConnectedAgent[]) => connections.filter(({ isRemote }) => isRemote).length;
    this.#remote += remoteOf(after) - remoteOf(before);
    if (after.length > 0) this.#agents.set(agentId, after);
    else this.#agents.delete(agentId);
  }

  /** The other connections of the same process. */
  others(agent: ConnectedAgent): ConnectedAgent[] {
    return (this.#agents.get(agent.identity.agentId) ?? []).filter((other) => other !== agent && isSameProcess(other, agent));
  }

  /**
   * The connection for the next tunnel, none of `excluded`. Candidates are the newest connection of each process; avoided and unresponsive
   * ones count only if there are no others. Among them the one with the fewest tunnels is picked, then the least recently used. Older
   * connections of a process follow, which may be dead, and draining ones come last.
   */
  pick(
    agentId: string,
    excluded: ReadonlySet<ConnectedAgent>,
    isAvoided: (agent: ConnectedAgent) => boolean = () => false,
  ): ConnectedAgent | undefined {
    const connections = this.#agents.get(agentId) ?? [];
    // the common case, on the path of every tunnel
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

/** Whether it is neither draining nor connected to another proxy. */
function isStaying({ isDraining, hasMigrated }: ConnectedAgent): boolean {
  return !isDraining && !hasMigrated;
}

function isHeld({ isRemote }: ConnectedAgent): boolean {
  return !isRemote;
}

/** Whether `agent` is at another worker, and is older than `other`. Both workers decide the same, also for those of one moment. */
function isToldLate(agent: ConnectedAgent, other: ConnectedAgent): boolean {
  if (!agent.isRemote) return false;
  const [at, otherAt] = [agent.since.getTime(), other.since.getTime()];
  return at < otherAt || (at === otherAt && agent.id < other.id);
}

function isSameProcess(a: ConnectedAgent, b: ConnectedAgent): boolean {
  return a.hello !== undefined && a.hello.instance === b.hello?.instance;
}
