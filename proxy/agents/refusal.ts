// Why an agent is refused: the message for the agent, the log line, and the failure for operators.
import { AuthenticationError } from "../../shared/auth/authenticator.ts";
import { LimitReached } from "../../shared/limits/limit.ts";
import { FrameError } from "../../shared/link/frame.ts";
import { ALPN, CloseCode, REPLACED_REASON } from "../../shared/link/link.ts";
import { MessageError } from "../../shared/link/message.ts";
import { messageOf } from "../../shared/log/error_message.ts";
import type { Logger } from "../../shared/log/logger.ts";
import { NetError } from "../../shared/net/errors.ts";
import type { AgentSession } from "../../shared/net/session.ts";
import type { AgentRefusal } from "../../shared/service/live/failures.ts";
import { ConflictError } from "./conflicts.ts";
import { AgentKeptAway } from "./operations.ts";

/** An agent gives no credit for streams, or for data on them. */
export class CreditError extends Error {
  override readonly name = "CreditError";
}

/** Closes a connection that was not admitted. The agent does not learn the reason; the log has it. */
export function refuse(connection: AgentSession, error: unknown, log: Logger, onRefused?: (refusal: AgentRefusal) => void): void {
  const { remote, transport } = connection;
  const message = messageOf(error);
  const { error: type, code, reason, level } = refusalOf(error, message, connection.alpn === ALPN[1]);
  if (level === "error") log.error("agent failed", { remote, error: error instanceof Error ? error.stack : message });
  else if (level !== undefined) log[level]("agent refused", { remote, reason: message });
  const { agentId: agent, tokenId: token } = error instanceof AuthenticationError ? error.claims : {};
  onRefused?.({ remote, transport, error: type, reason: message, code, agent, token });
  connection.close(code, reason);
}

/** The message for the agent, and that for operators. */
interface Refusal extends Pick<AgentRefusal, "error" | "code"> {
  /** For the agent. */
  readonly reason: string;
  /** Level of the log line. Missing: it has been logged, or is only counted. */
  readonly level?: "debug" | "warn" | "error";
}

const AUTHENTICATION_FAILED = { code: CloseCode.unauthorized, reason: "authentication failed", level: "warn" } as const;

/** @param isFirst the link has version 1, which has no code for limits */
function refusalOf(error: unknown, message: string, isFirst: boolean): Refusal {
  const limited = { code: isFirst ? CloseCode.internal : CloseCode.limit, reason: message };
  if (error instanceof LimitReached) return { error: "limit_reached", ...limited };
  if (error instanceof AgentKeptAway) return { error: "agent_kept_away", ...limited, level: "debug" };
  if (error instanceof ConflictError) return { error: "agent_id_conflict", code: CloseCode.replaced, reason: REPLACED_REASON };
  if (error instanceof AuthenticationError) {
    switch (error.kind) {
      case "agent-id":
        return { error: "agent_id_invalid", code: CloseCode.badAgentId, reason: "bad agent id", level: "warn" };
      case "unavailable":
        return { error: "credentials_unchecked", code: CloseCode.internal, reason: "credentials cannot be checked now", level: "warn" };
      default:
        return { error: error.kind === "ended" ? "credentials_ended" : "credentials_denied", ...AUTHENTICATION_FAILED };
    }
  }
  if (error instanceof MessageError || error instanceof CreditError) {
    return { error: "protocol_violated", code: CloseCode.malformed, reason: message, level: "warn" };
  }
  if (error instanceof FrameError) return { error: "protocol_violated", ...AUTHENTICATION_FAILED };
  if (error instanceof NetError) return { error: "connection_terminated", ...AUTHENTICATION_FAILED };
  return { error: "proxy_internal_error", code: CloseCode.internal, reason: "internal error", level: "error" };
}
