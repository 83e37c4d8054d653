// Detects agents whose connection has died silently while requests wait for them.
import { CloseCode, KEEP_ALIVE_MS, keepAlive } from "../../shared/link/link.ts";
import type { AgentSession } from "../../shared/net/session.ts";
import { type AgentRegistry, type ConnectedAgent, UNRESPONSIVE_AFTER_MS } from "./registry.ts";

/** Interval in milliseconds between checks of agents with pending requests. */
const CHECK_INTERVAL_MS = 250;
/** Silence, in round trips, after which an agent with pending requests is probed, if that is longer than the interval of checks. */
const SILENT_ROUND_TRIPS = 3;
/** An agent that has not answered a ping for this many milliseconds is lost, however rarely it is pinged while no request waits. */
const LOST_AFTER_MS = keepAlive(KEEP_ALIVE_MS, "quic", "proxy").idleTimeoutMs;

/** Requests that one connection of an agent has not responded to. */
export interface PendingRequests {
  count: number;
}

/** The last change of the bytes received from an agent, and when it was seen. */
interface Received {
  bytes: number;
  at: number;
}

/**
 * Probes connections with pending requests on which nothing arrives, and so ends them soon if the agent's process is gone. Cancels the pending
 * requests of a connection that does not answer pings either, if the agent has another connection, for example because it has reconnected, and
 * closes it after 10 s. One timer serves all connections, and runs only while requests are pending.
 */
export class StalledAgentMonitor {
  readonly #agents: AgentRegistry;
  readonly #pending = new Map<ConnectedAgent, PendingRequests & { received?: Received }>();
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
    const now = performance.now();
    for (const [agent, pending] of this.#pending) {
      if (pending.count === 0) {
        this.#pending.delete(agent);
        continue;
      }
      const { connection, control, identity: { agentId } } = agent;
      const { receivedBytes, rttMs } = connection.stats();
      const { received } = pending;
      const isSilent = received?.bytes === receivedBytes && now - received.at >= SILENT_ROUND_TRIPS * rttMs;
      if (received?.bytes !== receivedBytes) pending.received = { bytes: receivedBytes, at: now };
      if (isSilent) void closeIfGone(connection); // never rejects
      if (!control) continue;
      if (isSilent && control.silentMs >= LOST_AFTER_MS) {
        this.#pending.delete(agent);
        connection.close(CloseCode.replaced, "the agent does not answer");
        continue;
      }
      const hasOther = this.#agents.pick(agentId, new Set([agent])) !== undefined;
      if (hasOther && control.silentMs >= UNRESPONSIVE_AFTER_MS) {
        this.#pending.delete(agent);
        connection.cancelRequests();
      } else if (hasOther || isSilent) control.pingIfDue();
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

/** Closes a connection if the agent's process is gone. Never rejects. */
async function closeIfGone(connection: AgentSession): Promise<void> {
  if (await connection.probe().catch(() => false)) connection.close(CloseCode.replaced, "the agent does not answer");
}
