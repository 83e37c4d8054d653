// Classifies and describes the errors of connections to a proxy.
import { CloseCode, REPLACED_REASON } from "../shared/link/link.ts";
import { NetError } from "../shared/net/errors.ts";
import type { AgentSession, SessionClosed } from "../shared/net/session.ts";
import { tlsAdvice } from "../shared/tls/advice.ts";
import type { AgentOptions } from "./options.ts";
import { messageOf } from "../shared/log/error_message.ts";

/** Why a connection failed. */
export interface Failure {
  readonly reason: string;
  /** Whether the proxy refuses the agent for now only. Default `false`. */
  readonly isTemporary?: boolean;
  /** What to do about it, or what to look at. */
  readonly remedy?: string;
}

/** Describes a failed connection and its remedy, for a log. */
export function describeConnectError(error: unknown, address: string, options: AgentOptions): string {
  const { reason, isTemporary, remedy } = explainFailure(error, address, options);
  return [reason, isTemporary ? "retrying" : undefined, remedy].filter((part) => part !== undefined).join("; ");
}

/** Explains a failed connection to `address`. */
export function explainFailure(error: unknown, address: string, options: AgentOptions): Failure {
  if (!(error instanceof NetError)) return { reason: messageOf(error) };
  const { message: reason } = error;
  if (isOnTheWayOut(error)) {
    if (reason.includes("the proxy answers 403")) return { reason, remedy: `its operator must permit CONNECT to ${address}` };
    if (reason.includes("it needs a user name and a password")) {
      return { reason, remedy: "write them into the URL in --agent-client.proxy, or HTTPS_PROXY: http://USER:PASSWORD@HOST:PORT" };
    }
    return { reason, remedy: "is --agent-client.proxy right, or HTTPS_PROXY?" };
  }
  switch (error.code) {
    case "closed":
      return error.appCode === undefined ? { reason } : explainCode(error.appCode, reason, options.auth.type);
    case "refused":
      if (!error.remote) return { reason, remedy: "is the proxy running there?" };
      if (options.agentClient.transport === "websocket") {
        return { reason, remedy: "is the proxy, or the server in front of it, running there?" };
      }
      if (options.agentClient.transport === "tls") {
        return {
          reason,
          remedy:
            "is the proxy running there, does its --agent-server.tcp-listen-address have this port, and do firewalls allow TCP to it?",
        };
      }
      return { reason: `${address} refuses connections: the proxy is shutting down or has too many handshakes`, isTemporary: true };
    case "timed-out":
      if (error.cause instanceof NetError) return { reason: `${reason}: ${error.cause.message}` };
      return {
        reason,
        remedy: `is the proxy running there, and do firewalls allow ${PROTOCOLS[options.agentClient.transport]} to ${address}?`,
      };
    case "name-timed-out":
      return { reason, remedy: "do the name servers of this machine respond?" };
    case "tls":
      if (reason.includes(" over HTTPS: ")) {
        return { reason, remedy: "if the port expects plain HTTP, write ws: in --agent-client.websocket-url" };
      }
      return { reason, remedy: tlsAdvice(error, AGENT_TLS, options.agentClient.tls.file.rootCa) };
    case "reset":
      return { reason, remedy: reason.includes("the WebSocket request") ? webSocketAdvice(reason, options) : undefined };
    default:
      return { reason };
  }
}

/** Servers of HTTPS respond to plain HTTP with 400, a TLS alert, or the end of the connection. */
function webSocketAdvice(reason: string, { agentClient: { websocketUrl } }: AgentOptions): string {
  const isPlain = websocketUrl?.slice(0, 3).toLowerCase() === "ws:";
  if (isPlain && !/ is (?!400\b)\d{3}\b/.test(reason)) return "if the port expects TLS, write wss: in --agent-client.websocket-url";
  return "does --agent-client.websocket-url lead to the proxy's clients' port, and is its path that of --agent-server.websocket-path?";
}

/**
 * Closes a connection on which something failed, and returns the error to report: the proxy's close reason says more than the reset of a
 * stream. Never rejects.
 */
export async function closeFailed(connection: AgentSession, error: unknown): Promise<unknown> {
  connection.close(CloseCode.shutdown, "");
  const closed = await connection.closed;
  if (!closed.remote) return error;
  // in TLS 1.3, a client's handshake completes before the server has verified the client's certificate
  if (closed.cause === "transport" && closed.reason.includes("handshake")) {
    return new NetError("tls", closed.reason, { remote: true, cause: error });
  }
  return new NetError("closed", closed.reason, { appCode: closed.code, remote: true, cause: error });
}

/** Whether the connection failed at the outbound proxy, or on the way to it. */
function isOnTheWayOut({ code, message }: NetError): boolean {
  return code.startsWith("outbound-proxy") || (message.includes(" via proxy ") && !["closed", "tls"].includes(code));
}

/** The options that advice names. */
const AGENT_TLS = { group: "agent-client.tls", address: "agent-client.server-address" };

/** What firewalls must allow, by transport. */
const PROTOCOLS = { auto: "UDP or TCP", quic: "UDP", tls: "TCP", websocket: "TCP" } as const;

/** Whether the proxy did not respond or was unreachable: the network is down, or the proxy is not running. */
export function isUnreachable(error: unknown): boolean {
  return error instanceof NetError && !error.remote && ["timed-out", "unreachable", "unknown-host", "name-timed-out"].includes(error.code);
}

/** Whether the proxy refused the connection: it is shutting down, overloaded, or not listening, and probably back soon. */
export function isRefused(error: unknown): boolean {
  if (!(error instanceof NetError)) return false;
  return error.code === "refused" || (error.code === "closed" && error.appCode === CloseCode.shutdown);
}

/** Describes why an open connection has been closed. */
export function describeClose({ code, reason, remote, cause }: SessionClosed): string {
  if (cause === "application" && !remote) return "closed by this agent";
  if (cause === "application") {
    const { reason: text, remedy } = explainCode(code, reason);
    return remedy === undefined ? text : `${text}; ${remedy}`;
  }
  if (cause === "reset") return `${reason}: the proxy no longer knows this connection (was it restarted?)`;
  return reason;
}

function explainCode(code: number, why: string, authType?: AgentOptions["auth"]["type"]): Failure {
  const reason = `the proxy closed the connection: ${code} ${why}`;
  switch (code) {
    case CloseCode.badAgentId:
      return {
        reason,
        remedy: authType === "jwt" || authType === "oidc"
          ? `it does not accept tokens: set --auth.type=${authType} there, or --auth.type=noauth here`
          : "it does not accept this agent id",
      };
    case CloseCode.unauthorized:
    case CloseCode.internal:
      return { reason, remedy: "does it use the same --auth.type, and does it accept these credentials?" };
    case CloseCode.malformed:
      return { reason, remedy: "is it another version?" };
    case CloseCode.limit:
      return { reason, isTemporary: true, remedy: why.includes(" operator ") ? undefined : "the proxy's log names the limit" };
    case CloseCode.replaced:
      return { reason, remedy: why === REPLACED_REASON ? "another agent has connected with the same id" : undefined };
    default:
      return { reason };
  }
}
