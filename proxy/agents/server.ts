// The agents' side of the proxy: accepts their connections, registers them, and serves them until they close.
import type { Authenticator } from "../../shared/auth/authenticator.ts";
import { withTimeout } from "../../shared/async/with_timeout.ts";
import type { ConnectionLimiter, ConnectionPermit } from "../../shared/limits/connection_limiter.ts";
import type { FrameReader } from "../../shared/link/frame.ts";
import { CloseCode, closeWith, CREDENTIALS_ALPN, REPLACED_REASON } from "../../shared/link/link.ts";
import { type Hello, PINS_FEATURE } from "../../shared/link/message.ts";
import { PROBE_ALPN, serveProbe } from "../../shared/link/probe.ts";
import { isolateHook } from "../../shared/log/isolate.ts";
import type { Logger } from "../../shared/log/logger.ts";
import { NetError } from "../../shared/net/errors.ts";
import type { AgentSession, SessionListener } from "../../shared/net/session.ts";
import type { EventHub } from "../../shared/service/live/events.ts";
import type { AgentRefusal } from "../../shared/service/live/failures.ts";
import type { PresencePublisher } from "../../shared/store/presence.ts";
import { type AdmissionRules, admit, type Admitted, checkCredentials } from "./admission.ts";
import { IdentityRenewal } from "./agent_identity.ts";
import { type ConflictRule, Conflicts } from "./conflicts.ts";
import { Migration } from "./migration.ts";
import { AgentOperations } from "./operations.ts";
import type { PublishedForwards } from "./published_forwards.ts";
import { refuse } from "./refusal.ts";
import { AgentRegistry, type ConnectedAgent } from "./registry.ts";
import { ReplacementLog } from "./replacement_log.ts";

/** Events of agents' connections. */
export interface AgentEvents {
  /** An agent has authenticated. */
  onAgentConnected?: (agent: { id: string; remote: string }) => void;
  /** A connection of the agent has closed, or a newer one has replaced it. */
  onAgentDisconnected?: (agent: { id: string; remote: string; reason: string }) => void;
}

/** Tells others which agents are connected here. */
export interface AgentAnnouncer {
  added(agent: ConnectedAgent): void;
  /** Whether it is draining, or has migrated, has changed. */
  changed(agent: ConnectedAgent): void;
  removed(agent: ConnectedAgent): void;
}

export interface AgentServerOptions extends AgentEvents {
  /** One for each transport. */
  listeners: readonly SessionListener[];
  /** Limits connections of agents. Default none. */
  limiter?: ConnectionLimiter;
  authenticator: Authenticator;
  /** Whether several agents may share one id. */
  multiple: boolean;
  /** Called when an agent has connected. */
  onArrival?: (agentId: string) => void;
  /** Publishes the forwards that agents request. They do not wait for it. */
  published?: PublishedForwards;
  /** Which of two agents is kept that replace each other again and again. */
  onConflict: ConflictRule;
  /** Tells the other workers of this proxy which agents are connected here. Default: there are none. */
  workers?: AgentAnnouncer;
  /** Publishes which agents are connected here, at the moment. Agents do not wait for it. Default: nothing does. */
  presence?: () => PresencePublisher | undefined;
  /** Returns the proxy's description of itself for each agent. Default: none is sent. */
  hello?: () => Hello;
  /** Returns the pins that are announced to agents, the one in use first. Default: none. */
  pins?: () => readonly string[];
  /** Called for each connection that has completed its handshake. */
  onResult?: (outcome: "accepted" | "refused" | "failed") => void;
  /** An agent has replaced another one with its id. */
  onReplaced?: () => void;
  /** An agent's connection was refused. */
  onRefused?: (refusal: AgentRefusal) => void;
  /** Notifies operators who watch events. Default: none do. */
  events?: EventHub;
  log: Logger;
}

/** Interval between pings of agents that share an id, in milliseconds. */
const PING_INTERVAL_MS = 60_000;
/** If the same process has a newer connection, one that is unresponsive for this time in milliseconds is considered dead. */
const UNRESPONSIVE_TIMEOUT_MS = 5_000;
/** Time in milliseconds in which the end of a connection is reported after its streams have failed. */
const CLOSE_TIMEOUT_MS = 100;
/** Interval in milliseconds at which agents that cannot be asked to move are looked at. */
const UNMOVABLE_INTERVAL_MS = 500;
/** Agents that are checked again before other tasks have their turn. */
const CHUNK = 200;
/** Maximum length of the labels in a log line; /agents shows all of them. */
const MAX_LOGGED_LABELS = 512;

/** Holds agents until it is closed. */
export class AgentServer {
  /** The connected agents. */
  readonly agents: AgentRegistry;
  readonly operations: AgentOperations;
  readonly #options: AgentServerOptions;
  readonly #log: Logger;
  readonly #rules: AdmissionRules;
  readonly #listeners = new Map<SessionListener, Promise<void>>();
  readonly #replacementLog: ReplacementLog;
  readonly #conflicts: Conflicts;
  readonly #migration: Migration;
  readonly #renewal: IdentityRenewal;
  readonly #pings: ReturnType<typeof setInterval>;
  #unmovable: ReturnType<typeof setInterval> | undefined;

  constructor(options: AgentServerOptions) {
    const { log, authenticator } = options;
    this.#options = {
      ...options,
      onAgentConnected: isolateHook("onAgentConnected", options.onAgentConnected, log),
      onAgentDisconnected: isolateHook("onAgentDisconnected", options.onAgentDisconnected, log),
    };
    this.#log = log;
    this.agents = new AgentRegistry(options.multiple);
    this.operations = new AgentOperations(this.agents, options.events);
    this.#rules = { authenticator, operations: this.operations, log };
    this.#replacementLog = new ReplacementLog(log, options.onReplaced);
    this.#conflicts = new Conflicts(options.onConflict, log);
    this.#migration = new Migration(this.agents);
    this.#renewal = new IdentityRenewal(authenticator, log);
    this.#pings = setInterval(() => this.#pingShared(), PING_INTERVAL_MS);
    for (const listener of options.listeners) this.add(listener);
  }

  /** Number of agent ids for which one agent is kept and others are refused. */
  get conflicts(): number {
    return this.#conflicts.size;
  }

  /** Accepts agents of another listener. */
  add(listener: SessionListener): void {
    this.#listeners.set(listener, this.#accept(listener));
  }

  /** Accepts no more agents of a listener, and closes it after its last agent has gone. */
  retire(listener: SessionListener): void {
    listener.stopAccepting();
    const ended = this.#listeners.get(listener);
    void ended?.then(() => listener.close(CloseCode.shutdown, "")).then(() => this.#listeners.delete(listener)); // never rejects
  }

  /** Accepts connections, and resolves when it accepts no more and the last one has closed. */
  async #accept(listener: SessionListener): Promise<void> {
    const open = new Set<Promise<unknown>>();
    for (let connection; (connection = await listener.accept()) !== null;) {
      const { closed } = connection;
      open.add(closed);
      void closed.then(() => open.delete(closed)); // never rejects
      void this.#serve(connection); // never rejects
    }
    while (open.size > 0) await Promise.all(open);
  }

  async #serve(connection: AgentSession): Promise<void> {
    const { limiter, onResult, onRefused } = this.#options;
    let [permit, accepted]: [ConnectionPermit | undefined, boolean] = [undefined, false];
    try {
      permit = limiter?.acquire(connection.remote);
      if (connection.alpn === PROBE_ALPN) return await serveProbe(connection);
      if (connection.alpn === CREDENTIALS_ALPN) return await checkCredentials(connection, permit, this.#rules);
      const admitted = await admit(connection, permit, this.#rules);
      await this.#register(admitted);
      accepted = true;
      onResult?.("accepted");
      await this.#serveAgent(admitted);
    } catch (error) {
      if (accepted || !await hasGivenUp(connection, error)) {
        if (!accepted) onResult?.("refused");
        refuse(connection, error, this.#log, onRefused);
      } else {
        onResult?.("failed");
        this.#log.debug("agent gave up before the authentication", { remote: connection.remote });
      }
    } finally {
      permit?.release();
    }
  }

  /**
   * Registers the agent before it is accepted: it may tell its clients at once that it is reachable.
   * @throws {ConflictError}
   */
  async #register({ agent, accept }: Admitted): Promise<void> {
    agent.connection.setConnectionWindow(0); // each tunnel has its own window
    try {
      this.#conflicts.check(agent);
      this.#replaceOthers(agent);
    } catch (error) {
      agent.identity.release?.();
      throw error;
    }
    await accept().catch(() => {}); // the connection's end reports the error
  }

  #replaceOthers(agent: ConnectedAgent): void {
    const { agentId } = agent.identity;
    this.#add(agent);
    this.#options.workers?.added(agent);
    this.#options.presence?.()?.add(agentId);
    this.#options.onArrival?.(agentId);
  }

  /** Those that it replaces at other workers are closed there, by the same rules. */
  #add(agent: ConnectedAgent): void {
    const { agents } = this;
    const removed = agents.add(agent);
    const replaced = removed.filter((old) => agents.replaces(agent, old));
    for (const old of replaced) if (!old.isRemote) this.#replacementLog.replaced(old, agent);
    if (replaced.length > 0) this.#conflicts.replaced(replaced, agent);
    for (const old of removed) if (!old.isRemote) old.connection.close(CloseCode.replaced, REPLACED_REASON);
    for (const other of agents.others(agent)) void closeIfUnresponsive(other); // never rejects
  }

  /** Another worker of this proxy holds an agent. */
  addRemote(agent: ConnectedAgent): void {
    this.#add(agent);
    this.#options.published?.connected(agent);
  }

  /** The other worker does not hold it any more. */
  removeRemote(agent: ConnectedAgent): void {
    this.agents.remove(agent);
    this.#options.published?.disconnected(agent);
    this.#conflicts.removed(agent, this.agents.others(agent).at(-1));
  }

  async #serveAgent({ agent, frames }: Admitted): Promise<void> {
    const { published, onAgentConnected, onAgentDisconnected } = this.#options;
    const { agentId: id, tokenId: jti } = agent.identity;
    this.#announcePins(agent);
    const { version, host, labels } = agent.hello ?? {};
    const { remote, transport: link } = agent.connection;
    this.#log.info("agent connected", { agent: id, jti, remote, link, version, host, labels: labels && formatLabels(labels) });
    let why = "";
    // none rejects
    const refused = this.#refuseStreams(agent);
    const ended = Promise.all([this.#renewal.untilClosed(agent), this.#serveControl(agent, frames), refused]);
    try {
      published?.connected(agent);
      this.operations.connected(agent);
      onAgentConnected?.({ id, remote });
      this.#migration.connected(agent);
      [why] = await ended;
    } finally {
      this.agents.remove(agent);
      this.#options.workers?.removed(agent);
      this.operations.disconnected(agent, why);
      published?.disconnected(agent);
      this.#conflicts.removed(agent, this.agents.others(agent).at(-1));
      this.#withdraw(agent);
      this.#migration.disconnected(agent);
      this.#log.info("agent disconnected", { agent: id, jti, remote, reason: why });
    }
    onAgentDisconnected?.({ id, remote, reason: why });
  }

  /** The agent has opened all streams of the protocol: data on another one would be buffered and never read. Resolves when the connection ends. */
  async #refuseStreams(agent: ConnectedAgent): Promise<void> {
    const { connection } = agent;
    const stream = await connection.acceptStream();
    if (stream === null) return;
    closeWith(connection, stream);
    const reason = "An agent opens no more streams";
    this.#onViolation(agent, reason);
    connection.close(CloseCode.malformed, reason);
  }

  async #serveControl(agent: ConnectedAgent, frames: FrameReader | undefined): Promise<void> {
    const { control } = agent;
    if (!control || !frames) return;
    const hello = this.#options.hello?.();
    if (hello) void control.hello(hello); // never rejects
    void control.ping(); // never rejects
    await control.run(frames, {
      onGoaway: () => this.#onGoaway(agent),
      onMoved: (found) => this.#onMoved(agent, found),
      onCredentials: (credentials) => void this.#renewal.renew(agent, credentials), // never rejects
      onViolation: (reason) => this.#onViolation(agent, reason),
    });
  }

  /** Of agents with one id, those that answer get the tunnels. An agent without others gets them in any case. */
  #pingShared(): void {
    for (const { control } of this.agents.shared()) void control?.ping(); // never rejects
  }

  #onGoaway(agent: ConnectedAgent): void {
    if (agent.isDraining) return;
    this.#log.info("agent is draining", { agent: agent.identity.agentId, remote: agent.connection.remote });
    agent.isDraining = true;
    this.#options.workers?.changed(agent);
    this.#withdraw(agent);
    this.#migration.settle(agent, "gone");
  }

  #onMoved(agent: ConnectedAgent, found: boolean): void {
    if (found) {
      agent.hasMigrated = true;
      this.#options.workers?.changed(agent);
      this.#withdraw(agent);
    }
    this.#migration.settle(agent, found ? "moved" : "found nothing");
  }

  #onViolation({ identity, connection: { remote } }: ConnectedAgent, reason: string): void {
    this.#log.warn("agent violated the protocol", { agent: identity.agentId, remote, reason });
  }

  /** A connection of the agent does not stay. If it was the last one, lb must not route clients here. */
  #withdraw({ identity: { agentId } }: ConnectedAgent): void {
    if (!this.agents.isAvailable(agentId)) this.#options.presence?.()?.remove(agentId);
    this.#migration.checkAbandoned();
  }

  /** Tells all agents the pins, which have changed. */
  announcePins(): void {
    for (const agent of this.agents) this.#announcePins(agent);
  }

  #announcePins({ hello, control }: ConnectedAgent): void {
    const pins = this.#options.pins?.() ?? [];
    if (pins.length > 0 && hello?.features?.includes(PINS_FEATURE)) void control?.pins(pins); // never rejects
  }

  /** Changes which agents may share an id, from now on. */
  update({ multiple, onConflict }: Pick<AgentServerOptions, "multiple" | "onConflict">): void {
    this.agents.multiple = multiple;
    this.#conflicts.rule = onConflict;
  }

  /**
   * Verifies the credentials of all agents again, and closes the connections of those that are no longer accepted, unless `keeps` is set.
   * Resolves with their number.
   */
  async recheck(options: { readonly keeps: boolean }): Promise<number> {
    let [checked, closed] = [0, 0];
    for (const agent of [...this.agents]) {
      if (await this.#renewal.recheck(agent, options)) closed++;
      if (++checked % CHUNK === 0) await new Promise((resolve) => setTimeout(resolve));
    }
    return closed;
  }

  /**
   * Stops accepting agents, and asks the connected ones to connect to another proxy. Resolves when they have, or when the time for it is
   * over, `timeoutMs` at most. Agents that stay are served on.
   */
  async migrate(timeoutMs: number): Promise<void> {
    for (const listener of this.#listeners.keys()) listener.stopAccepting();
    await this.#migration.run(timeoutMs);
  }

  /** Closes connections that cannot be asked to move and carry no tunnel, now and when their last tunnel ends, until the server closes. */
  closeUnmovable(): void {
    const close = () => {
      for (const { control, tunnels, connection } of this.agents) {
        if (control === undefined && tunnels === 0) connection.close(CloseCode.shutdown, "shutting down");
      }
    };
    close();
    this.#unmovable ??= setInterval(close, UNMOVABLE_INTERVAL_MS);
  }

  /** Resolves when no agent stays: each has connected to another proxy, is draining, or has disconnected. */
  abandoned(): Promise<void> {
    return this.#migration.abandoned();
  }

  /** Closes the listeners and every connection. */
  async close(): Promise<void> {
    clearInterval(this.#pings);
    clearInterval(this.#unmovable);
    await Promise.all([...this.#listeners.keys()].map((listener) => listener.close(CloseCode.shutdown, "shutting down")));
    await Promise.all(this.#listeners.values());
  }
}

/** Formats labels for the log, bounded in length; `undefined` for none. */
function formatLabels(labels: Readonly<Record<string, string>>): string | undefined {
  const text = Object.entries(labels).map(([name, value]) => `${name}=${value}`).join(",");
  if (text === "") return undefined;
  return text.length <= MAX_LOGGED_LABELS ? text : `${text.slice(0, MAX_LOGGED_LABELS)}…`;
}

/**
 * The transport may take minutes to close a silent connection after a machine was suspended (QUIC: three probe timeouts, RFC 9000 §10.1), and
 * the connection's tunnels would hang that long.
 */
async function closeIfUnresponsive({ connection, control }: ConnectedAgent): Promise<void> {
  if (!control) return;
  const responded = control.ping().then(() => true);
  if (!await withTimeout(UNRESPONSIVE_TIMEOUT_MS, responded)) connection.close(CloseCode.replaced, "it does not answer");
}

/** Whether the agent has closed the connection in good order, as it does when another attempt of it was faster. */
async function hasGivenUp(connection: AgentSession, error: unknown): Promise<boolean> {
  if (!(error instanceof NetError) || (error.code !== "closed" && error.code !== "reset")) return false;
  const closed = await withTimeout(CLOSE_TIMEOUT_MS, connection.closed);
  return closed !== undefined && closed.remote && closed.cause === "application" && closed.code === CloseCode.shutdown;
}
