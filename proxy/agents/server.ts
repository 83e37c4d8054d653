// The agents' side of the proxy: accepts their connections, authenticates them, and holds them until they close.
import { AuthenticationError, type Authenticator, identifyAgent, type Identity } from "../../shared/auth/authenticator.ts";
import { isolateHook } from "../../shared/log/isolate.ts";
import type { ConnectionLimiter, ConnectionPermit } from "../../shared/limits/connection_limiter.ts";
import { Control } from "../../shared/link/control.ts";
import {
  type Accept,
  CloseCode,
  closeWith,
  CREDENTIALS_ALPN,
  hasControl,
  receiveCredentials,
  receiveHello,
  REPLACED_REASON,
} from "../../shared/link/link.ts";
import { type Hello, PINS_FEATURE } from "../../shared/link/message.ts";
import { PROBE_ALPN, serveProbe } from "../../shared/link/probe.ts";
import type { Logger } from "../../shared/log/logger.ts";
import { NetError } from "../../shared/net/errors.ts";
import type { PresencePublisher } from "../../shared/store/presence.ts";
import type { AgentSession, SessionListener } from "../../shared/net/session.ts";
import type { EventHub } from "../../shared/service/live/events.ts";
import type { AgentRefusal } from "../../shared/service/live/failures.ts";
import { withTimeout } from "../../shared/async/with_timeout.ts";
import { IdentityRenewal } from "./agent_identity.ts";
import { type ConflictRule, Conflicts } from "./conflicts.ts";
import { Migration } from "./migration.ts";
import { AgentOperations } from "./operations.ts";
import type { PublishedForwards } from "./published_forwards.ts";
import { CreditError, refuse } from "./refusal.ts";
import { AgentRegistry, type ConnectedAgent } from "./registry.ts";
import { ReplacementLog } from "./replacement_log.ts";
import { VERSION } from "../../shared/version.ts";

/** Events of agents' connections. */
export interface AgentEvents {
  /** An agent has authenticated. */
  onAgentConnected?: (agent: { id: string; remote: string }) => void;
  /** A connection of the agent has closed, or a newer one has replaced it. */
  onAgentDisconnected?: (agent: { id: string; remote: string; reason: string }) => void;
}

export interface AgentServerOptions extends AgentEvents {
  /** One for each transport. */
  listeners: readonly SessionListener[];
  /** Limits connections of agents. Default none. */
  limiter?: ConnectionLimiter;
  authenticator: Authenticator;
  /** Whether several agents may share one id. */
  multiple: boolean;
  /** Is told when an agent has connected. */
  onArrival?: (agentId: string) => void;
  /** Publishes what agents ask for. They do not wait for it. */
  published?: PublishedForwards;
  /** Which of two agents is kept that replace each other again and again. */
  onConflict: ConflictRule;
  /** Publishes which agents are connected here, at the moment. Agents do not wait for it. Default: nothing does. */
  presence?: () => PresencePublisher | undefined;
  /** Returns the proxy's description of itself for each agent. Default: none is sent. */
  hello?: () => Hello;
  /** Returns the pins that agents are told, the one in use first. Default: none. */
  pins?: () => readonly string[];
  /** Called for each connection that has completed its handshake. */
  onResult?: (outcome: "accepted" | "refused" | "failed") => void;
  /** An agent has replaced another one with its id. */
  onReplaced?: () => void;
  /** An agent's connection was refused. */
  onRefused?: (refusal: AgentRefusal) => void;
  /** Tells operators who watch. Default: there are none. */
  events?: EventHub;
  log: Logger;
}

/** Holds agents until it is closed. */
export interface AgentServer {
  /** The connected agents. */
  readonly agents: AgentRegistry;
  /** Number of agent ids for which one agent is kept and others are refused. */
  readonly conflicts: number;
  readonly operations: AgentOperations;
  /** Accepts agents of another listener. */
  add(listener: SessionListener): void;
  /** Accepts no more agents of a listener, and closes it when the last one that it has has gone. */
  retire(listener: SessionListener): void;
  /** Tells all agents the pins, which have changed. */
  announcePins(): void;
  /** Changes which agents may share an id, from now on. */
  update(rules: Pick<AgentServerOptions, "multiple" | "onConflict">): void;
  /**
   * Verifies the credentials of all agents again, and closes the connections of those that are no longer accepted, unless `keeps` is set.
   * Resolves with their number.
   */
  recheck(options: { readonly keeps: boolean }): Promise<number>;
  /**
   * Stops accepting agents, and asks the connected ones to connect to another proxy. Resolves when they have, or when the time for it is
   * over, `timeoutMs` at most. Agents that stay are served on.
   */
  migrate(timeoutMs: number): Promise<void>;
  /** Closes connections that cannot be asked to move and carry no tunnel, now and when their last tunnel ends, until the server closes. */
  closeUnmovable(): void;
  /** Resolves when no agent stays: each has connected to another proxy, is draining, or has disconnected. */
  abandoned(): Promise<void>;
  /** Closes the listeners and every connection. */
  close(): Promise<void>;
}

/** Interval between pings of an agent, in milliseconds. */
const PING_INTERVAL_MS = 60_000;
/** If the same process has a newer connection, one that is unresponsive for this time in milliseconds is considered dead. */
const UNRESPONSIVE_TIMEOUT_MS = 5_000;
/** Time in milliseconds in which the end of a connection is reported after its streams have failed. */
const CLOSE_TIMEOUT_MS = 100;
/** Time in milliseconds in which an agent that only checks its credentials closes the connection after the answer. */
const CHECKED_TIMEOUT_MS = 1_000;
/** Interval in milliseconds at which agents that cannot be asked to move are looked at. */
const UNMOVABLE_INTERVAL_MS = 500;
/** Agents that are checked again before other tasks have their turn. */
const CHUNK = 200;
/** Maximum length of the labels in a log line; /agents shows all of them. */
const MAX_LOGGED_LABELS = 512;

export function startAgentServer(options: AgentServerOptions): AgentServer {
  const { log } = options;
  const listeners = new Map<SessionListener, Promise<void>>();
  const onAgentConnected = isolateHook("onAgentConnected", options.onAgentConnected, log);
  const onAgentDisconnected = isolateHook("onAgentDisconnected", options.onAgentDisconnected, log);
  const agents = new AgentRegistry(options.multiple);
  const replacementLog = new ReplacementLog(log, options.onReplaced);
  const conflicts = new Conflicts(options.onConflict, log);
  const migration = new Migration(agents);
  const operations = new AgentOperations(agents, options.events);
  const renewal = new IdentityRenewal(options.authenticator, log);

  /** A connection of the agent does not stay. If it was the last one, lb must not route clients here. */
  const withdraw = ({ identity: { agentId } }: ConnectedAgent): void => {
    if (!agents.isAvailable(agentId)) options.presence?.()?.remove(agentId);
    migration.checkAbandoned();
  };

  const register = (agent: ConnectedAgent): void => {
    conflicts.check(agent);
    const removed = agents.add(agent);
    options.presence?.()?.add(agent.identity.agentId);
    options.onArrival?.(agent.identity.agentId);
    const replaced = removed.filter((old) => agents.replaces(agent, old));
    for (const old of replaced) replacementLog.replaced(old, agent);
    if (replaced.length > 0) conflicts.replaced(replaced, agent);
    for (const old of removed) old.connection.close(CloseCode.replaced, REPLACED_REASON);
    for (const other of agents.others(agent)) void closeIfUnresponsive(other); // never rejects
  };

  const announcePins = ({ hello, control }: ConnectedAgent): void => {
    const pins = options.pins?.() ?? [];
    if (pins.length > 0 && hello?.features?.includes(PINS_FEATURE)) void control?.pins(pins); // never rejects
  };

  const events: AdmissionEvents = {
    onGoaway: (agent) => {
      const { identity, connection: { remote } } = agent;
      if (agent.isDraining) return;
      log.info("agent is draining", { agent: identity.agentId, remote });
      agent.isDraining = true;
      withdraw(agent);
      migration.settle(agent, "gone");
    },
    onMoved: (agent, found) => {
      if (found) {
        agent.hasMigrated = true;
        withdraw(agent);
      }
      migration.settle(agent, found ? "moved" : "found nothing");
    },
    onCredentials: (agent, credentials) => void renewal.renew(agent, credentials), // never rejects
    onViolation: ({ identity, connection: { remote } }, reason) =>
      log.warn("agent violated the protocol", { agent: identity.agentId, remote, reason }),
  };

  const serveAgent = async ({ agent, serveControl }: Admitted): Promise<void> => {
    const { agentId: id, tokenId: jti } = agent.identity;
    announcePins(agent);
    const { version, host, labels } = agent.hello ?? {};
    const { remote, transport: link } = agent.connection;
    log.info("agent connected", { agent: id, jti, remote, link, version, host, labels: labels && formatLabels(labels) });
    let why = "";
    // none rejects
    const refused = refuseStreams(agent, (reason) => events.onViolation(agent, reason));
    const ended = Promise.all([renewal.untilClosed(agent), serveControl(), refused]);
    try {
      options.published?.connected(agent);
      operations.connected(agent);
      onAgentConnected?.({ id, remote });
      migration.connected(agent);
      [why] = await ended;
    } finally {
      agents.remove(agent);
      operations.disconnected(agent, why);
      options.published?.disconnected(agent);
      conflicts.removed(agent, agents.others(agent).at(-1));
      withdraw(agent);
      migration.disconnected(agent);
      log.info("agent disconnected", { agent: id, jti, remote, reason: why });
    }
    onAgentDisconnected?.({ id, remote, reason: why });
  };

  const serve = async (connection: AgentSession): Promise<void> => {
    let [permit, accepted]: [ConnectionPermit | undefined, boolean] = [undefined, false];
    try {
      permit = options.limiter?.acquire(connection.remote);
      if (connection.alpn === PROBE_ALPN) return await serveProbe(connection);
      if (connection.alpn === CREDENTIALS_ALPN) return await checkCredentials(connection, options.authenticator, permit, log);
      const admitted = await admit(connection, options.authenticator, permit, register, options.hello?.(), events, operations, log);
      accepted = true;
      options.onResult?.("accepted");
      await serveAgent(admitted);
    } catch (error) {
      if (accepted || !await hasGivenUp(connection, error)) {
        if (!accepted) options.onResult?.("refused");
        refuse(connection, error, log, options.onRefused);
      } else {
        options.onResult?.("failed");
        log.debug("agent gave up before the authentication", { remote: connection.remote });
      }
    } finally {
      permit?.release();
    }
  };

  const run = async (listener: SessionListener): Promise<void> => {
    const open = new Set<Promise<unknown>>();
    for (let connection; (connection = await listener.accept()) !== null;) {
      const { closed } = connection;
      open.add(closed);
      void closed.then(() => open.delete(closed)); // never rejects
      void serve(connection); // never rejects
    }
    while (open.size > 0) await Promise.all(open);
  };
  const add = (listener: SessionListener): void => void listeners.set(listener, run(listener));
  for (const listener of options.listeners) add(listener);
  let unmovable: ReturnType<typeof setInterval> | undefined;

  return {
    agents,
    get conflicts() {
      return conflicts.size;
    },
    operations,
    add,
    retire(listener) {
      listener.stopAccepting();
      void listeners.get(listener)?.then(() => listener.close(CloseCode.shutdown, "")).then(() => listeners.delete(listener)); // never rejects
    },
    announcePins() {
      for (const agent of agents) announcePins(agent);
    },
    update({ multiple, onConflict }) {
      agents.multiple = multiple;
      conflicts.rule = onConflict;
    },
    async recheck(keeps) {
      let [checked, closed] = [0, 0];
      for (const agent of [...agents]) {
        if (await renewal.recheck(agent, keeps)) closed++;
        if (++checked % CHUNK === 0) await new Promise((resolve) => setTimeout(resolve));
      }
      return closed;
    },
    async migrate(timeoutMs) {
      for (const listener of listeners.keys()) listener.stopAccepting();
      await migration.run(timeoutMs);
    },
    closeUnmovable() {
      const close = () => {
        for (const { control, tunnels, connection } of agents) {
          if (control === undefined && tunnels === 0) connection.close(CloseCode.shutdown, "shutting down");
        }
      };
      close();
      unmovable ??= setInterval(close, UNMOVABLE_INTERVAL_MS);
    },
    abandoned: () => migration.abandoned(),
    async close() {
      clearInterval(unmovable);
      await Promise.all([...listeners.keys()].map((listener) => listener.close(CloseCode.shutdown, "shutting down")));
      await Promise.all(listeners.values());
    },
  };
}

/** Formats labels for the log, bounded in length; `undefined` for none. */
function formatLabels(labels: Readonly<Record<string, string>>): string | undefined {
  const text = Object.entries(labels).map(([name, value]) => `${name}=${value}`).join(",");
  if (text === "") return undefined;
  return text.length <= MAX_LOGGED_LABELS ? text : `${text.slice(0, MAX_LOGGED_LABELS)}…`;
}

interface AdmissionEvents {
  onGoaway: (agent: ConnectedAgent) => void;
  onMoved: (agent: ConnectedAgent, found: boolean) => void;
  onCredentials: (agent: ConnectedAgent, credentials: Uint8Array) => void;
  onViolation: (agent: ConnectedAgent, reason: string) => void;
}

/** A registered agent, and the task that serves its control stream. */
interface Admitted {
  readonly agent: ConnectedAgent;
  readonly serveControl: () => Promise<void>;
}

/** Authenticates the agent. `accept` tells it so. */
async function authenticateAgent(
  connection: AgentSession,
  authenticator: Authenticator,
  permit: ConnectionPermit | undefined,
  log: Logger,
): Promise<{ identity: Identity; credentials: Uint8Array; accept: Accept }> {
  permit?.checkLockout();
  const { credentials, accept } = await receiveCredentials(connection);
  permit?.checkLockout(); // other connections of the address may have failed meanwhile
  const identity = await identifyAgent(authenticator, credentials, { certificate: connection.peerCertificate }, log).catch((error) => {
    if (error instanceof AuthenticationError && error.kind !== "unavailable") permit?.recordFailure(credentials);
    throw error;
  });
  return { identity, credentials, accept };
}

/** Tells an agent whether its credentials are accepted; it is not registered. */
async function checkCredentials(
  connection: AgentSession,
  authenticator: Authenticator,
  permit: ConnectionPermit | undefined,
  log: Logger,
): Promise<void> {
  const { identity, accept } = await authenticateAgent(connection, authenticator, permit, log);
  identity.release?.();
  log.debug("credentials checked", { agent: identity.agentId, remote: connection.remote });
  await accept({ version: `reverse-http/${VERSION}`, time: Date.now() }).catch(() => {}); // the agent does not wait for it
  await withTimeout(CHECKED_TIMEOUT_MS, connection.closed);
  connection.close(CloseCode.shutdown, "");
}

/**
 * Authenticates the agent, registers it, and accepts it.
 * @throws {ConflictError} of `register`
 */
async function admit(
  connection: AgentSession,
  authenticator: Authenticator,
  permit: ConnectionPermit | undefined,
  register: (agent: ConnectedAgent) => void,
  hello: Hello | undefined,
  events: AdmissionEvents,
  operations: AgentOperations,
  log: Logger,
): Promise<Admitted> {
  const { identity, credentials, accept } = await authenticateAgent(connection, authenticator, permit, log);
  let received;
  try {
    operations.checkMayConnect(identity.agentId);
    checkCredit(connection);
    received = hasControl(connection) ? await receiveHello(connection) : undefined;
  } catch (error) {
    identity.release?.();
    throw error;
  }
  const control = received && new Control(connection, received.stream);
  const id = crypto.randomUUID();
  const agent: ConnectedAgent = {
    id,
    connection,
    via: { address: connection.remote, connection: id, link: connection.transport },
    identity,
    credentials,
    since: new Date(),
    hello: received?.hello,
    control,
    tunnels: 0,
    lastRequestAt: 0,
    isDraining: false,
    hasMigrated: false,
  };
  connection.setConnectionWindow(0); // each tunnel has its own window
  try {
    register(agent); // before the agent is accepted: it may tell its clients at once that it is reachable
  } catch (error) {
    identity.release?.();
    throw error;
  }
  await accept().catch(() => {}); // the connection's end reports the error
  return {
    agent,
    serveControl: async () => void (received && control && await runControl(agent, control, received.frames, hello, events)),
  };
}

/**
 * Each tunnel is a stream that the proxy opens. Without credit for streams, every tunnel would time out.
 * @throws {CreditError}
 */
function checkCredit(connection: AgentSession): void {
  const credit = connection.peerCredit();
  if (!credit) return; // closed: its end is reported
  const refuse = (parameter: string, what: string, least: number): never => {
    throw new CreditError(`Cannot ${what}: the agent's transport parameter ${parameter} is 0. Set it to ${least} or more`);
  };
  if (credit.streams === 0) refuse("initial_max_streams_bidi", "open streams for tunnels", 100);
  if (credit.streamBytes === 0) refuse("initial_max_stream_data_bidi_remote", "send on streams for tunnels", 65_536);
}

/** The agent has opened all streams of the protocol: data on another one would be buffered and never read. Resolves when the connection ends. */
async function refuseStreams({ connection }: ConnectedAgent, onViolation: (reason: string) => void): Promise<void> {
  const stream = await connection.acceptStream();
  if (stream === null) return;
  closeWith(connection, stream);
  const reason = "An agent opens no more streams";
  onViolation(reason);
  connection.close(CloseCode.malformed, reason);
}

async function runControl(
  agent: ConnectedAgent,
  control: Control,
  frames: Parameters<Control["run"]>[0],
  hello: Hello | undefined,
  events: AdmissionEvents,
): Promise<void> {
  if (hello) void control.hello(hello); // never rejects
  void control.ping(); // never rejects
  const timer = setInterval(() => void control.ping(), PING_INTERVAL_MS);
  await control.run(frames, {
    onGoaway: () => events.onGoaway(agent),
    onMoved: (found) => events.onMoved(agent, found),
    onCredentials: (credentials) => events.onCredentials(agent, credentials),
    onViolation: (reason) => events.onViolation(agent, reason),
  });
  clearInterval(timer);
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
