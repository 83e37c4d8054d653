// The agents' side of the proxy: takes their connections, finds out who they are, holds them, and sends them elsewhere when it stops.
import { AuthenticationError, type Authenticator, endReason, identifyAgent } from "../../shared/auth/authenticator.ts";
import { isolateHook } from "../../shared/log/isolate.ts";
import type { ConnectionLimiter, ConnectionPermit } from "../../shared/limits/connection_limiter.ts";
import { LimitReached } from "../../shared/limits/limit.ts";
import { Control } from "../../shared/link/control.ts";
import { FrameError } from "../../shared/link/frame.ts";
import { CloseCode, closeWith, hasControl, receiveCredentials, receiveHello } from "../../shared/link/link.ts";
import { MAX_SPREAD_MS, MessageError } from "../../shared/link/message.ts";
import type { Logger } from "../../shared/log/logger.ts";
import { NetError } from "../../shared/net/errors.ts";
import type { PresencePublisher } from "../../shared/store/presence.ts";
import type { QuicConnection, QuicListener } from "../../shared/net/types.ts";
import { withTimeout } from "../../shared/async/with_timeout.ts";
import { AgentRegistry, type ConnectedAgent } from "./registry.ts";
import { Replacements } from "./replacements.ts";

/** Told of agents that come and go. */
export interface AgentEvents {
  /** An agent has authenticated. */
  onAgentConnected?: (agent: { id: string; remote: string }) => void;
  /** A connection of it is no more, or a newer one took its place. */
  onAgentDisconnected?: (agent: { id: string; remote: string; reason: string }) => void;
}

export interface AgentServerOptions extends AgentEvents {
  listener: QuicListener;
  /** Lets agents in, as far as there is room. Default: all. */
  limiter?: ConnectionLimiter;
  authenticator: Authenticator;
  /** Whether several agents may have one id. */
  multiple: boolean;
  /** Tells others which agents are here. Nobody waits for it. */
  announcer?: PresencePublisher;
  /** What became of a connection that had completed its handshake. */
  onResult?: (outcome: "accepted" | "refused") => void;
  /** An agent has taken the place of another with its id. */
  onReplaced?: () => void;
  log: Logger;
}

/** Holds agents until it is closed. */
export interface AgentServer {
  /** Those that are held. */
  readonly agents: AgentRegistry;
  /**
   * Takes no more agents, and tells those it holds to connect elsewhere. Resolves when all have done so that could be told, or after the time
   * that they may need for it, `timeoutMs` at most. All goes on being served.
   */
  migrate(timeoutMs: number): Promise<void>;
  /** Resolves when no agent stays: each has connected to another proxy, has asked for no more tunnels, or is gone. */
  abandoned(): Promise<void>;
  /** Tells all agents that the proxy shuts down. */
  close(): Promise<void>;
}

/** Interval between pings of an agent, in milliseconds. */
const PING_INTERVAL_MS = 60_000;
/** A connection is dead that does not answer for so many milliseconds though its process is there, and has made another one. */
const UNRESPONSIVE_TIMEOUT_MS = 5_000;
/** Agents that are sent away in one second. */
const MIGRATIONS_PER_SECOND = 1_000;
/** Longest wait in milliseconds for an agent to find another proxy, once it has begun to look for it. */
const RECONNECT_WAIT_MS = 10_000;
/** Longest wait in milliseconds for agents to have heard that they are sent away. */
const PROBE_TIMEOUT_MS = 1_000;
/** Of more agents than these, so many at most look for another proxy before the others do: where there is none, thousands need not try. */
const CANARY_COUNT = 128;
/** When so large a part of them has found none, there is none. Some may never answer. */
const CANARY_FAILURE_FRACTION = 0.75;

/** Longest text of labels in a line of the log: /agents has all of them. */
const MAX_LOGGED_LABELS = 512;

/** What became of an agent that was told to connect elsewhere. */
type Migration = "moved" | "found nothing" | "gone";

export function startAgentServer(options: AgentServerOptions): AgentServer {
  const { listener, log } = options;
  const onAgentConnected = isolateHook("onAgentConnected", options.onAgentConnected, log);
  const onAgentDisconnected = isolateHook("onAgentDisconnected", options.onAgentDisconnected, log);
  const agents = new AgentRegistry(options.multiple);
  const replacements = new Replacements(log, options.onReplaced);
  /** Those that were told to connect elsewhere and have not done so yet. */
  const leaving = new Map<ConnectedAgent, (migration: Migration) => void>();
  let isMigrating = false;
  const abandoned = Promise.withResolvers<void>();
  let isWatched = false;
  const checkAbandoned = (): void => {
    if (isWatched && !agents.hasAvailable) abandoned.resolve();
  };

  const canMigrate = (agent: ConnectedAgent): boolean => agent.control !== undefined && !leaving.has(agent);
  const migrate = (some: readonly ConnectedAgent[]): Promise<Migration>[] =>
    some.map((agent) => {
      void agent.control!.goaway("shutting down", migrationSpreadMs(some.length)); // never rejects
      return new Promise((resolve) => leaving.set(agent, resolve));
    });
  const settle = (agent: ConnectedAgent, migration: Migration): void => leaving.get(agent)?.(migration);

  /** A connection of the agent does not stay: where it was the last, clients need not come here for it. */
  const withdraw = ({ identity: { agentId } }: ConnectedAgent): void => {
    if (!agents.isAvailable(agentId)) options.announcer?.remove(agentId);
    checkAbandoned();
  };

  const register = (agent: ConnectedAgent): void => {
    const replaced = agents.add(agent);
    options.announcer?.add(agent.identity.agentId);
    // after that: whoever asks for the agent in between gets the new one
    for (const old of replaced) {
      agents.remove(old);
      if (agents.replaces(agent, old)) replacements.replaced(old, agent);
      old.connection.close(CloseCode.replaced, "closing old connection");
    }
    for (const other of agents.others(agent)) void closeIfUnresponsive(other); // never rejects
  };

  const events: AdmissionEvents = {
    onGoaway: (agent) => {
      const { identity, connection: { remote } } = agent;
      if (agent.isDraining) return;
      log.info("agent is draining", { agent: identity.agentId, remote });
      agent.isDraining = true;
      withdraw(agent);
      settle(agent, "gone");
    },
    onMoved: (agent, found) => {
      if (found) {
        agent.hasMigrated = true;
        withdraw(agent);
      }
      settle(agent, found ? "moved" : "found nothing");
    },
    onViolation: ({ identity, connection: { remote } }, reason) =>
      log.warn("agent violated the protocol", { agent: identity.agentId, remote, reason }),
  };

  const serveAgent = async ({ agent, serveControl }: Admitted): Promise<void> => {
    const { agentId: id, tokenId: jti } = agent.identity;
    const { version, host, labels } = agent.hello ?? {};
    const { remote } = agent.connection;
    log.info("agent connected", { agent: id, jti, remote, version, host, labels: labels && formatLabels(labels) });
    let why = "";
    // none rejects
    const refused = refuseStreams(agent, (reason) => events.onViolation(agent, reason));
    const ended = Promise.all([waitForClose(agent), serveControl(), refused]);
    try {
      onAgentConnected?.({ id, remote });
      if (isMigrating && canMigrate(agent)) void migrate([agent]);
      [why] = await ended;
    } finally {
      agents.remove(agent);
      withdraw(agent);
      settle(agent, "gone");
      leaving.delete(agent);
      log.info("agent disconnected", { agent: id, jti, remote, reason: why });
    }
    onAgentDisconnected?.({ id, remote, reason: why });
  };

  const serve = async (connection: QuicConnection): Promise<void> => {
    let [permit, accepted]: [ConnectionPermit | undefined, boolean] = [undefined, false];
    try {
      permit = options.limiter?.acquire(connection.remote);
      const admitted = await admit(connection, options.authenticator, permit, register, events, log);
      accepted = true;
      options.onResult?.("accepted");
      await serveAgent(admitted);
    } catch (error) {
      if (!accepted) options.onResult?.("refused");
      refuse(connection, error, log);
    } finally {
      permit?.release();
    }
  };

  const run = async (): Promise<void> => {
    for (let connection; (connection = await listener.accept()) !== null;) void serve(connection); // never rejects
  };
  const running = run();

  return {
    agents,
    async migrate(timeoutMs) {
      isMigrating = true;
      listener.stopAccepting();
      const since = performance.now();
      const all = [...agents].filter(canMigrate);
      const step = Math.ceil(all.length / CANARY_COUNT);
      const canaries = migrate(all.filter((_, index) => index % step === 0));
      const isOnlyProxy = step > 1 && await withTimeout(Math.min(timeoutMs, RECONNECT_WAIT_MS), findNoProxy(canaries));
      const others = [...agents].filter(canMigrate);
      const migrations = Promise.all([...canaries, ...migrate(others)]);
      const leftMs = timeoutMs - (performance.now() - since);
      if (!isOnlyProxy) return void await withTimeout(Math.min(leftMs, migrationSpreadMs(others.length) + RECONNECT_WAIT_MS), migrations);
      // once a ping is answered, what came before it was read: when to come back
      await withTimeout(Math.min(leftMs, PROBE_TIMEOUT_MS), Promise.all(others.map(({ control }) => control?.ping())));
    },
    abandoned() {
      isWatched = true;
      checkAbandoned();
      return abandoned.promise;
    },
    async close() {
      await listener.close(CloseCode.shutdown, "shutting down");
      await running;
    },
  };
}

/** For the log: one text of bounded length, `undefined` for none. */
function formatLabels(labels: Readonly<Record<string, string>>): string | undefined {
  const text = Object.entries(labels).map(([name, value]) => `${name}=${value}`).join(",");
  if (text === "") return undefined;
  return text.length <= MAX_LOGGED_LABELS ? text : `${text.slice(0, MAX_LOGGED_LABELS)}…`;
}

/** Milliseconds over which so many agents are spread that are sent away. */
function migrationSpreadMs(count: number): number {
  return Math.min(MAX_SPREAD_MS, Math.round(count * 1_000 / MIGRATIONS_PER_SECOND));
}

/** Resolves with `true` when nearly all have found no other proxy, with `false` when one has. */
function findNoProxy(canaries: readonly Promise<Migration>[]): Promise<boolean> {
  let without = 0;
  return new Promise((resolve) => {
    for (const canary of canaries) {
      void canary.then((migration) => {
        if (migration === "moved") resolve(false);
        else if (++without >= canaries.length * CANARY_FAILURE_FRACTION) resolve(true);
      });
    }
  });
}

interface AdmissionEvents {
  onGoaway: (agent: ConnectedAgent) => void;
  onMoved: (agent: ConnectedAgent, found: boolean) => void;
  onViolation: (agent: ConnectedAgent, reason: string) => void;
}

/** An agent that is registered, and the work of its control stream. */
interface Admitted {
  readonly agent: ConnectedAgent;
  readonly serveControl: () => Promise<void>;
}

/** Finds out who it is, registers it, and tells it so. */
async function admit(
  connection: QuicConnection,
  authenticator: Authenticator,
  permit: ConnectionPermit | undefined,
  register: (agent: ConnectedAgent) => void,
  events: AdmissionEvents,
  log: Logger,
): Promise<Admitted> {
  permit?.checkLockout();
  const { credentials, accept } = await receiveCredentials(connection);
  permit?.checkLockout(); // others of the address may have failed meanwhile
  const identity = await identifyAgent(authenticator, credentials, { certificate: connection.peerCertificate }, log).catch((error) => {
    if (error instanceof AuthenticationError) permit?.recordFailure(credentials);
    throw error;
  });
  let received;
  try {
    checkCredit(connection);
    received = hasControl(connection) ? await receiveHello(connection) : undefined;
  } catch (error) {
    identity.release?.();
    throw error;
  }
  const control = received && new Control(connection, received.stream);
  const agent: ConnectedAgent = {
    connection,
    identity,
    since: new Date(),
    hello: received?.hello,
    control,
    tunnels: 0,
    lastRequestAt: 0,
    isDraining: false,
    hasMigrated: false,
  };
  connection.setConnectionWindow(0); // its tunnels have windows of their own
  // before the agent knows: once it does, clients may ask for it
  register(agent);
  await accept().catch(() => {}); // gone again: the end of its connection says so
  return { agent, serveControl: async () => void (received && control && await runControl(agent, control, received.frames, events)) };
}

/** An agent's QUIC stack lets the proxy open no streams, or send nothing on them. */
class CreditError extends Error {
  override readonly name = "CreditError";
}

/**
 * Each tunnel is a stream that the proxy opens. Where the agent gives no credit for those, none of them would be answered.
 * @throws {CreditError}
 */
function checkCredit(connection: QuicConnection): void {
  const credit = connection.peerCredit();
  if (!credit) return; // closed: what comes next says why
  const refuse = (parameter: string, what: string, least: number): never => {
    throw new CreditError(`Cannot ${what}: the agent's QUIC transport parameter ${parameter} is 0. Set it to ${least} or more`);
  };
  if (credit.streams === 0) refuse("initial_max_streams_bidi", "open streams for tunnels", 100);
  if (credit.streamBytes === 0) refuse("initial_max_stream_data_bidi_remote", "send on streams for tunnels", 65_536);
}

/** An agent has opened the streams that it opens: what came on one more would be kept, and read by nobody. Ends with the connection. */
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
  events: AdmissionEvents,
): Promise<void> {
  void control.ping(); // never rejects
  const timer = setInterval(() => void control.ping(), PING_INTERVAL_MS);
  await control.run(frames, {
    onGoaway: () => events.onGoaway(agent),
    onMoved: (found) => events.onMoved(agent, found),
    onViolation: (reason) => events.onViolation(agent, reason),
  });
  clearInterval(timer);
}

/**
 * QUIC gives up a silent peer after three probe timeouts (RFC 9000 §10.1), and where a machine stood still these have become minutes: so
 * long its tunnels would hang.
 */
async function closeIfUnresponsive({ connection, control }: ConnectedAgent): Promise<void> {
  if (!control) return;
  const answered = control.ping().then(() => true);
  if (!await withTimeout(UNRESPONSIVE_TIMEOUT_MS, answered)) connection.close(CloseCode.replaced, "it does not answer");
}

/** Waits for the end of the connection, which comes when the identity ends at the latest. Why it came. */
async function waitForClose({ connection, identity: { signal, release } }: ConnectedAgent): Promise<string> {
  // the agent need not know why; the log does
  const close = () => connection.close(CloseCode.unauthorized, "credentials no longer accepted");
  if (signal?.aborted) close();
  signal?.addEventListener("abort", close, { once: true });
  const { code, reason, cause, remote: byAgent } = await connection.closed;
  signal?.removeEventListener("abort", close);
  release?.();
  if (cause !== "application") return reason;
  if (byAgent) return `closed by the agent: ${code} ${reason}`;
  return `closed by the proxy: ${code} ${code === CloseCode.unauthorized && signal?.aborted ? endReason(signal) : reason}`;
}

/** The agent learns that it is refused, and not why: that goes to the log. */
function refuse(connection: QuicConnection, error: unknown, log: Logger): void {
  const { remote } = connection;
  const message = error instanceof Error ? error.message : String(error);
  if (error instanceof LimitReached) {
    // version 1 has no code of its own for it
    connection.close(hasControl(connection) ? CloseCode.limit : CloseCode.internal, message);
  } else if (error instanceof AuthenticationError) {
    log.warn("agent refused", { remote, reason: message });
    if (error.kind === "agent-id") connection.close(CloseCode.badAgentId, "bad agent id");
    else connection.close(CloseCode.unauthorized, "authentication failed");
  } else if (error instanceof MessageError || error instanceof CreditError) {
    log.warn("agent refused", { remote, reason: message });
    connection.close(CloseCode.malformed, message);
  } else if (error instanceof FrameError || error instanceof NetError) {
    log.warn("agent refused", { remote, reason: message });
    connection.close(CloseCode.unauthorized, "authentication failed");
  } else {
    log.error("agent failed", { remote, error: error instanceof Error ? error.stack : message });
    connection.close(CloseCode.internal, "internal error");
  }
}
