// What went wrong between agent and proxy: in words for the log, and whether anybody answered.
import { CloseCode } from "../shared/link/link.ts";
import { NetError } from "../shared/net/errors.ts";
import type { QuicClosed } from "../shared/net/types.ts";
import type { AgentOptions } from "./options.ts";

/** What happened, and what to do about it, for somebody who sets it up for the first time. */
export function describeFailure(error: unknown, address: string, options: AgentOptions): string {
  if (!(error instanceof NetError)) return error instanceof Error ? error.message : String(error);
  switch (error.code) {
    case "closed":
      return error.appCode === undefined ? error.message : describeCode(error.appCode, error.message, options.auth.type);
    case "refused":
      if (!error.remote) return `${error.message}; is the proxy running there?`;
      return `${address} takes no connections now: the proxy shuts down, or has too many handshakes; it will be tried again`;
    case "timed-out":
      if (error.cause instanceof NetError) return `${error.message}: ${error.cause.message}`;
      return `${error.message}; is the proxy running there, and may UDP pass to ${address}?`;
    case "name-timed-out":
      return `${error.message}; do the name servers of this machine answer?`;
    case "tls":
      return error.message + adviseOnTls(error, options);
    default:
      return error.message;
  }
}

function adviseOnTls({ message, remote }: NetError, { agentClient: { tls } }: AgentOptions): string {
  if (!message.includes("certificate")) return "";
  if (remote) return "; the proxy asks for a certificate that it accepts, --agent-client.tls.file.cert with its key";
  if (message.includes("is not the pinned one")) {
    return "; the proxy shows another certificate than that of --agent-client.tls.pin-sha256: it logs the pin of its own at its start";
  }
  if (/certificate (?:not valid yet|expired)/.test(message)) {
    return "; if the certificate should be valid now, the clock of this machine is wrong: set it";
  }
  if (message.includes("CA:TRUE")) {
    return "; --agent-client.tls.file.root-ca must have this very certificate, or the proxy one that is not an authority's";
  }
  const authority = "--agent-client.tls.file.root-ca";
  if (message.includes("not valid for name")) {
    return "; --agent-client.server-address must be a name of the certificate, or the certificate pinned with --agent-client.tls.pin-sha256";
  }
  if (tls.file.rootCa) return `; the certificate must be issued by an authority of ${authority}`;
  return "; unless the certificate is of an authority that this system trusts, the agent needs --agent-client.tls.pin-sha256, which the " +
    `proxy logs at its start where it has made its own, or the authority as ${authority}`;
}

/** Nobody answered, or there was no way there: the network is gone, or the proxy does not run. */
export function isTimeout(error: unknown): boolean {
  return error instanceof NetError && !error.remote && ["timed-out", "unreachable", "unknown-host", "name-timed-out"].includes(error.code);
}

/** A proxy that shuts down, or has too much to do, or no program at its port: it is there, or will be there again. */
export function isUnavailable(error: unknown): boolean {
  if (!(error instanceof NetError)) return false;
  return error.code === "refused" || (error.code === "closed" && error.appCode === CloseCode.shutdown);
}

/** Why a connection is no more. */
export function describeEnd({ code, reason, remote, cause }: QuicClosed): string {
  if (cause === "application") return remote ? describeCode(code, reason) : "closed by this agent";
  if (cause === "reset") return `${reason}: the proxy does not know the connection any more; was it started anew?`;
  return reason;
}

function describeCode(code: number, reason: string, authType?: AgentOptions["auth"]["type"]): string {
  const text = `the proxy closed the connection: ${code} ${reason}`;
  switch (code) {
    case CloseCode.badAgentId:
      return authType === "jwt"
        ? `${text}; it takes no tokens: it needs --auth.type=jwt, or this agent --auth.type=noauth`
        : `${text}; it does not take this agent id`;
    case CloseCode.unauthorized:
    case CloseCode.internal:
      return `${text}; does it use the same --auth.type, and does it accept these credentials?`;
    case CloseCode.malformed:
      return `${text}; is it another version?`;
    case CloseCode.limit:
      return `${text}; it will be tried again, and the proxy's log says which of its limits`;
    case CloseCode.replaced:
      return `${text}; another agent has connected with the same id`;
    default:
      return text;
  }
}
