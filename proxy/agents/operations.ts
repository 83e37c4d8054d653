// The agents for operators: connected ones, recently connected ones, and those that must stay away; and the actions on them.
import { CloseCode } from "../../shared/link/link.ts";
import { printable } from "../../shared/net/printable.ts";
import type { AgentState, DisconnectRequest } from "../../shared/service/api/types.ts";
import type { EventHub } from "../../shared/service/live/events.ts";
import { Ring } from "../../shared/service/live/ring.ts";
import { SessionStates } from "../../shared/service/live/sessions.ts";
import type { AgentRegistry, ConnectedAgent } from "./registry.ts";

/** Connections that are remembered after their end. */
const MAX_GONE = 1_000;
/** Agents that are kept away; the oldest may come back for another one. */
const MAX_AWAY = 10_000;
/** Longest reason in a report, in characters. */
const MAX_REASON = 300;

/** An operator keeps the agent away. */
export class AgentKeptAway extends Error {
  override readonly name = "AgentKeptAway";
}

export class AgentOperations {
  readonly #agents: AgentRegistry;
  readonly #events?: EventHub;
  readonly #now: () => number;
  readonly #sessions = new SessionStates();
  readonly #gone = new Ring<AgentState>(MAX_GONE);
  /** By agent id: until when, in milliseconds of the clock. */
  readonly #away = new Map<string, number>();

  /** @param now monotonic clock in milliseconds. Default `performance.now` */
  constructor(agents: AgentRegistry, events?: EventHub, now: () => number = () => performance.now()) {
    this.#agents = agents;
    this.#events = events;
    this.#now = now;
  }

  connected(agent: ConnectedAgent): void {
    this.#events?.publish("agents", () => this.#describe(agent));
  }

  disconnected(agent: ConnectedAgent, reason: string): void {
    const gone: AgentState = { ...describe(agent), state: "gone", until: new Date().toISOString(), reason: printable(reason, MAX_REASON) };
    this.#gone.push(gone);
    this.#events?.publish("agents", () => gone);
  }

  /** The connections, then those that have ended recently, the last one first. */
  list(): AgentState[] {
    return [...Array.from(this.#agents, (agent) => this.#describe(agent)), ...this.#gone.toArray().reverse()];
  }

  #describe(agent: ConnectedAgent): AgentState {
    return { ...describe(agent), tunnels: agent.tunnels, ...this.#sessions.describe(agent.connection, this.#now()) };
  }

  /** Closes connections of an agent, and refuses it for a time. Returns how many. */
  disconnect({ agent: id, connection: only, awaySeconds = 0 }: DisconnectRequest, by: string): number {
    if (awaySeconds > 0) this.#keepAway(id, awaySeconds);
    else this.#away.delete(id);
    const found = [...this.#agents].filter((agent) => agent.identity.agentId === id && (only === undefined || agent.id === only));
    for (const { connection } of found) connection.close(CloseCode.limit, `disconnected by the operator ${by}`);
    return found.length;
  }

  #keepAway(id: string, seconds: number): void {
    const now = this.#now();
    for (const [other, until] of this.#away) if (until <= now) this.#away.delete(other);
    this.#away.delete(id);
    this.#away.set(id, now + seconds * 1_000);
    if (this.#away.size > MAX_AWAY) this.#away.delete(this.#away.keys().next().value!);
  }

  /** @throws {AgentKeptAway} */
  checkMayConnect(id: string): void {
    const until = this.#away.get(id);
    if (until === undefined) return;
    const seconds = Math.ceil((until - this.#now()) / 1_000);
    if (seconds > 0) throw new AgentKeptAway(`an operator keeps the agent away for ${seconds} s`);
    this.#away.delete(id);
  }
}

/** What does not change while it is connected, and costs no call. */
function describe(
  { id: connection, identity, connection: { remote, transport }, since, hello, isDraining, lastError }: ConnectedAgent,
): AgentState {
  return {
    id: identity.agentId,
    connection,
    state: isDraining ? "draining" : "connected",
    address: remote,
    link: transport,
    version: hello?.version,
    host: hello?.host,
    labels: hello?.labels,
    tokenId: identity.tokenId,
    tokenExpiresAt: identity.expiresAt === undefined ? undefined : new Date(identity.expiresAt).toISOString(),
    since: since.toISOString(),
    lastError,
  };
}
