// Detects agents whose connection has died silently while requests wait for them.
import { type AgentRegistry, type ConnectedAgent, UNRESPONSIVE_AFTER_MS } from "./registry.ts";

/** Interval in milliseconds between pings of agents with pending requests. */
const CHECK_INTERVAL_MS = 500;

/** Requests that one connection of an agent has not responded to. */
export interface PendingRequests {
  count: number;
}

/**
 * Cancels the pending requests of a connection that does not answer pings either, if the agent has another connection, for example because
 * it has reconnected. One timer serves all connections, and runs only while requests are pending.
 */
export class StalledAgentMonitor {
  readonly #agents: AgentRegistry;
  readonly #pending = new Map<ConnectedAgent, PendingRequests>();
  #timer?: ReturnType<typeof setInterval>;
  #isClosed = false;

  constructor(agents: AgentRegistry) {
    this.#agents = agents;
  }

  /** Counts one pending request of the agent. The caller decrements `count` when it has ended. */
  track(agent: ConnectedAgent): PendingRequests {
    let pending = this.#pending.get(agent);
    if (!pending) {
      pending = { count: 0 };
      this.#pending.set(agent, pending);
      if (!this.#isClosed) this.#timer ??= setInterval(() => this.#check(), CHECK_INTERVAL_MS);
    }
    pending.count++;
    return pending;
  }

  #check(): void {
    for (const [agent, { count }] of this.#pending) {
      if (count === 0) {
        this.#pending.delete(agent);
        continue;
      }
      const { connection, control, identity: { agentId } } = agent;
      if (!control || this.#agents.pick(agentId, new Set([agent])) === undefined) continue;
      if (control.silentMs >= UNRESPONSIVE_AFTER_MS) {
        this.#pending.delete(agent);
        connection.cancelRequests();
      } else control.pingIfDue();
    }
    if (this.#pending.size === 0) this.#stop();
  }

  #stop(): void {
    clearInterval(this.#timer);
    this.#timer = undefined;
  }

  close(): void {
    this.#isClosed = true;
    this.#stop();
  }
}
