// The agent's open sessions with proxies: reports them, and bounds those that are being replaced.
import { withTimeout } from "../shared/async/with_timeout.ts";
import type { Hello } from "../shared/link/message.ts";
import type { Logger } from "../shared/log/logger.ts";
import type { Health } from "../shared/service/health.ts";
import { clientAdvice } from "./client_advice.ts";
import { describeClose } from "./connection_errors.ts";
import type { AgentOptions } from "./options.ts";
import type { Session } from "./session.ts";

export interface OpenSessionsOptions {
  readonly log: Logger;
  /** Is ready while there is a session. */
  readonly health: Health;
  /** Returns the options in force. */
  readonly agentClient: () => AgentOptions["agentClient"];
  /** Never throws. */
  readonly onConnected?: (proxy: { remote: string }) => void;
  /** Never throws. */
  readonly onDisconnected?: (proxy: { remote: string; reason: string }) => void;
}

const NOT_CONNECTED = "not connected to a proxy";
/** Limits on sessions that are being replaced, without tunnels and in all; above one of them the oldest is closed. */
const MAX_IDLE_LEAVING = 8;
const MAX_LEAVING = 32;

export class OpenSessions {
  readonly #options: OpenSessionsOptions;
  readonly #sessions = new Set<Session>();
  readonly #connected = Promise.withResolvers<true>();
  #isAdvised = false;

  constructor(options: OpenSessionsOptions) {
    this.#options = options;
    options.health.setUnready("proxy", NOT_CONNECTED);
  }

  get all(): ReadonlySet<Session> {
    return this.#sessions;
  }

  /** Number of tunnels through all sessions. */
  get tunnels(): number {
    return [...this.#sessions].reduce((sum, { tunnels }) => sum + tunnels, 0);
  }

  /** Resolves once there are as many sessions as the options ask for. */
  get connected(): Promise<true> {
    return this.#connected.promise;
  }

  /** Adds a session of the agent with this id, until the session closes. */
  add(session: Session, agent: string): void {
    const { log, health, agentClient, onConnected, onDisconnected } = this.#options;
    const { remote, transport: link, via } = session;
    this.#sessions.add(session);
    health.setReady("proxy");
    if (this.#sessions.size >= agentClient().connections) this.#connected.resolve(true);
    log.info("connected", { proxy: remote, agent, link, via });
    void session.proxy.then((proxy) => this.#adviseClients(proxy, agent, remote));
    onConnected?.({ remote });
    void session.closed.then((closed) => {
      this.#sessions.delete(session);
      if (this.#sessions.size === 0) health.setUnready("proxy", NOT_CONNECTED);
      onDisconnected?.({ remote, reason: describeClose(closed) });
    });
    this.#closeSurplus();
  }

  /** Logs once how clients reach the agent. */
  #adviseClients({ clients }: Hello, agent: string, remote: string): void {
    if (this.#isAdvised || clients === undefined) return;
    this.#isAdvised = true;
    // the name that was configured, if it is the only one: a certificate may require it
    const { serverAddress } = this.#options.agentClient();
    const advice = clientAdvice(clients, agent, serverAddress.length === 1 ? serverAddress[0]! : remote);
    this.#options.log.info("clients reach this agent with", { ...advice });
  }

  #closeSurplus(): void {
    const leaving = [...this.#sessions].filter(({ isLeaving, isRetired }) => isLeaving && !isRetired);
    const idle = leaving.filter(({ tunnels }) => tunnels === 0);
    if (idle.length > MAX_IDLE_LEAVING) idle[0]!.close();
    else if (leaving.length > MAX_LEAVING) leaving[0]!.close();
  }

  /** Waits until the tunnels of all sessions have ended, `limitMs` at most. */
  async drain(limitMs: number): Promise<void> {
    if (limitMs > 0) await withTimeout(limitMs, Promise.all([...this.#sessions].map((session) => session.drain())));
  }

  close(): void {
    for (const session of this.#sessions) session.close();
  }

  /** Resolves when the sessions that are open now have closed. */
  async closed(): Promise<void> {
    await Promise.all([...this.#sessions].map(({ closed }) => closed));
  }
}
