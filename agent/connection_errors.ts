// Classifies and describes the errors of connections to a proxy.
import { CloseCode, REPLACED_REASON } from "../shared/link/link.ts";
import { NetError } from "../shared/net/errors.ts";
import type { SessionClosed } from "../shared/net/types.ts";
import type { AgentOptions } from "./options.ts";

/** Describes a failed connection and its remedy. */
export function describeConnectError(error: unknown, address: string, options: AgentOptions): string {
  if (!(error instanceof NetError)) return error instanceof Error ? error.message : String(error);
  switch (error.code) {
    case "closed":
      return error.appCode === undefined ? error.message : describeCode(error.appCode, error.message, options.auth.type);
    case "refused":
      if (!error.remote) return `${error.message}; is the proxy running there?`;
      if (options.agentClient.transport === "tls") {
        return `${error.message}; is the proxy running there, and does its --agent-server.tcp-listen-address have this port?`;
      }
      return `${address} refuses connections: the proxy is shutting down or has too many handshakes; retrying`;
    case "timed-out":
      if (error.cause instanceof NetError) return `${error.message}: ${error.cause.message}`;
      return `${error.message}; is the proxy running there, and do firewalls allow ${
        PROTOCOLS[options.agentClient.transport]
      } to ${address}?`;
    case "name-timed-out":
      return `${error.message}; do the name servers of this machine respond?`;
    case "tls":
      return error.message + adviseOnTls(error, options);
    default:
      return error.message;
  }
}

/** What firewalls must allow, by transport. */
const PROTOCOLS = { auto: "UDP or TCP", quic: "UDP", tls: "TCP" } as const;

function adviseOnTls({ message, remote }: NetError, { agentClient: { tls } }: AgentOptions): string {
  if (!/certificate/i.test(message)) return "";
  if (remote) return "; the proxy requires a client certificate that it accepts: set --agent-client.tls.file.cert and its key";
  if (message.includes("is not the pinned one")) {
    return "; the proxy's certificate does not match --agent-client.tls.pin-sha256; the proxy logs its pin on startup";
  }
  if (/certificate (?:not valid yet|expired)/.test(message)) {
    return "; if the certificate should be valid now, set the clock of this machine";
  }
  if (message.includes("CA:TRUE")) {
    return "; --agent-client.tls.file.root-ca must contain this very certificate, or the proxy must use one without CA:TRUE";
  }
  const authority = "--agent-client.tls.file.root-ca";
  if (message.includes("not valid for name")) {
    return "; use a name of the certificate in --agent-client.server-address, or pin the certificate with --agent-client.tls.pin-sha256";
  }
  if (tls.file.rootCa) return `; the certificate must be issued by an authority of ${authority}`;
  return "; unless this system trusts the certificate's authority, set --agent-client.tls.pin-sha256, which a proxy with a self-signed " +
    `certificate logs on startup, or set ${authority}`;
}

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
  if (cause === "application") return remote ? describeCode(code, reason) : "closed by this agent";
  if (cause === "reset") return `${reason}: the proxy no longer knows this connection (was it restarted?)`;
  return reason;
}

function describeCode(code: number, reason: string, authType?: AgentOptions["auth"]["type"]): string {
  const text = `the proxy closed the connection: ${code} ${reason}`;
  switch (code) {
    case CloseCode.badAgentId:
      return authType === "jwt"
        ? `${text}; it does not accept tokens: set --auth.type=jwt there, or --auth.type=noauth here`
        : `${text}; it does not accept this agent id`;
    case CloseCode.unauthorized:
    case CloseCode.internal:
      return `${text}; does it use the same --auth.type, and does it accept these credentials?`;
    case CloseCode.malformed:
      return `${text}; is it another version?`;
    case CloseCode.limit:
      return `${text}; retrying; the proxy's log names the limit`;
    case CloseCode.replaced:
      return reason === REPLACED_REASON ? `${text}; another agent has connected with the same id` : text;
    default:
      return text;
  }
}
