// The agents' side of the proxy: takes their connections, finds out who they are, and keeps the newest connection of each.
import { AuthenticationError, type Authenticator, endReason, identifyAgent, type Identity } from "../shared/auth/authenticator.ts";
import { FrameError } from "../shared/link/frame.ts";
import { CloseCode, receiveCredentials } from "../shared/link/link.ts";
import type { Logger } from "../shared/log.ts";
import { NetError } from "../shared/net/errors.ts";
import type { QuicConnection, QuicListener } from "../shared/net/types.ts";

/** Told of agents that come and go. */
export interface AgentEvents {
  /** An agent has authenticated. */
  onAgentConnected?: (agent: { id: string; remote: string }) => void;
  /** Its connection is no more, or a newer one took its place. */
  onAgentDisconnected?: (agent: { id: string; remote: string; reason: string }) => void;
}

export interface AgentServerOptions extends AgentEvents {
  listener: QuicListener;
  authenticator: Authenticator;
  log: Logger;
}

/** An agent that has authenticated. */
export interface HeldAgent {
  readonly connection: QuicConnection;
  readonly identity: Identity;
}

/** Holds agents until it is closed. */
export interface AgentServer {
  /** The newest connection of the agent. */
  find(agentId: string): HeldAgent | undefined;
  /** Agents held. */
  readonly size: number;
  /** Tells all agents that the proxy shuts down. */
  close(): Promise<void>;
}

export function startAgentServer(options: AgentServerOptions): AgentServer {
  const { listener, log } = options;
  const agents = new Map<string, HeldAgent>();

  const serve = async (connection: QuicConnection): Promise<void> => {
    const { remote } = connection;
    try {
      const identity = await authenticate(connection, options.authenticator, (identity) => {
        const old = agents.get(identity.agentId);
        agents.set(identity.agentId, { connection, identity });
        // after that: whoever asks for the agent in between gets the new one
        old?.connection.close(CloseCode.replaced, "closing old connection");
      });
      const { agentId: id, tokenId: token } = identity;
      log.info("agent connected", { agent: id, token, remote });
      options.onAgentConnected?.({ id, remote });
      const why = await endOf(connection, identity);
      if (agents.get(id)?.connection === connection) agents.delete(id);
      log.info("agent disconnected", { agent: id, token, remote, reason: why });
      options.onAgentDisconnected?.({ id, remote, reason: why });
    } catch (error) {
      refuse(connection, error, log);
    }
  };

  const run = async (): Promise<void> => {
    for (let connection; (connection = await listener.accept()) !== null;) void serve(connection); // never rejects
  };
  const running = run();

  return {
    find: (agentId) => agents.get(agentId),
    get size() {
      return agents.size;
    },
    async close() {
      await listener.close(CloseCode.shutdown, "shutting down");
      await running;
    },
  };
}

async function authenticate(
  connection: QuicConnection,
  authenticator: Authenticator,
  register: (identity: Identity) => void,
): Promise<Identity> {
  const { credentials, welcome } = await receiveCredentials(connection);
  const identity = await identifyAgent(authenticator, credentials, { certificate: connection.peerCertificate });
  // before the agent knows: once it does, clients may ask for it
  register(identity);
  await welcome().catch(() => {}); // gone again: the end of its connection says so
  return identity;
}

/** Waits for the end of the connection, which comes when the identity ends at the latest. Why it came. */
async function endOf(connection: QuicConnection, { ends, release }: Identity): Promise<string> {
  // the agent need not know why; the log does
  const close = () => connection.close(CloseCode.unauthorized, "credentials no longer accepted");
  if (ends?.aborted) close();
  ends?.addEventListener("abort", close, { once: true });
  const { code, reason, cause, remote: byAgent } = await connection.closed;
  ends?.removeEventListener("abort", close);
  release?.();
  if (cause !== "application") return reason;
  if (byAgent) return `closed by the agent: ${code} ${reason}`;
  return `closed by the proxy: ${code} ${code === CloseCode.unauthorized && ends?.aborted ? endReason(ends) : reason}`;
}

/** The agent learns that it is refused, and not why: that goes to the log. */
function refuse(connection: QuicConnection, error: unknown, log: Logger): void {
  const { remote } = connection;
  const message = error instanceof Error ? error.message : String(error);
  if (error instanceof AuthenticationError) {
    log.warn("agent refused", { remote, reason: message });
    if (error.kind === "agent-id") connection.close(CloseCode.badAgentId, "bad agent id");
    else connection.close(CloseCode.unauthorized, "authentication failed");
  } else if (error instanceof FrameError || error instanceof NetError) {
    log.warn("agent refused", { remote, reason: message });
    connection.close(CloseCode.unauthorized, "authentication failed");
  } else {
    log.error("agent failed", { remote, error: error instanceof Error ? error.stack : message });
    connection.close(CloseCode.internal, "internal error");
  }
}
