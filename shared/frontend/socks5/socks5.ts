// Clients that speak SOCKS 5 (RFC 1928): user name and password (RFC 1929), and one request on each connection. The user name is the agent id
// and the password what HTTP has as password. The listener reads everything up to the credentials.
import { formatAuthority } from "../../address/authority.ts";
import type { ClientCredentials } from "../../auth/authenticator.ts";
import { NetError } from "../../net/errors.ts";
import type { Incoming } from "../../net/listener.ts";
import type { Duplex } from "../../net/stream.ts";
import {
  clientDisconnected,
  CredentialsError,
  MalformedRequestError,
  type TunnelError,
  type TunnelErrorType,
} from "../../tunnel/errors.ts";
import type { ClientProtocol } from "../client_protocol.ts";
import { claimedAgent } from "../http/credentials.ts";
import type { ClientSession, PipelineContext } from "../pipeline.ts";
import {
  CONNECT,
  CREDENTIALS_ACCEPTED,
  CREDENTIALS_REFUSED,
  destinationOf,
  encodeReply,
  type Handshake,
  incompleteMessage,
  NO_AUTHENTICATION,
  NO_METHOD,
  parseHandshake,
  parseRequest,
  REPLY,
  type Reply,
  requestEnd,
  SOCKS_VERSION,
  type SocksRequest,
  UDP_ASSOCIATE,
  UnsupportedRequestError,
} from "./messages.ts";
import { Associations } from "./udp.ts";

/** Whether the connection is a SOCKS client's, where the listener accepts HTTP too: no head begins with its first byte. */
export function isSocks5({ head }: Incoming): boolean {
  return head?.charCodeAt(0) === SOCKS_VERSION;
}

/** Time in milliseconds from the acceptance of the credentials to the end of the request. */
const REQUEST_TIMEOUT_MS = 5_000;

export interface Socks5Options {
  /** The UDP sockets of clients. Default: of any port. */
  readonly associations?: Associations;
  /** See {@link REQUEST_TIMEOUT_MS}. */
  readonly requestTimeoutMs?: number;
}

export function createSocks5Proxy(
  { associations = new Associations(), requestTimeoutMs = REQUEST_TIMEOUT_MS }: Socks5Options = {},
): ClientProtocol {
  return {
    preamble: "socks5",
    open(session, serveStreams) {
      /** The response to a failure, which depends on the step that the client waits for. */
      let refusal: (error: TunnelError) => Uint8Array | undefined = () => undefined;
      return {
        async serve({ head = "", local }) {
          session.record.protocol = "socks5";
          session.startTrace();
          refusal = () => CREDENTIALS_REFUSED;
          const handshake = parseHandshake(head);
          const hasPassword = handshake.credentials !== undefined;
          if (!hasPassword) refusal = () => NO_METHOD;
          session.checkRate();
          const credentials = readCredentials(handshake, mayBeAnonymous(session.context));
          if (credentials !== undefined) session.record.agentClaimed = claimedAgent(credentials);
          const identity = await session.identify(credentials);
          await session.stream.write(hasPassword ? CREDENTIALS_ACCEPTED : NO_AUTHENTICATION);
          refusal = (error) => encodeReply(replyOf(error));
          const request = await readRequest(session.stream, requestTimeoutMs);
          session.record.method = request.method;
          if (request.command === UDP_ASSOCIATE && local !== undefined) {
            session.record.network = "udp";
            return await associations.serve(session, { identity, credentials, request, local }, serveStreams);
          }
          const destination = readDestination(session, request);
          await session.connect({ identity, credentials, destination, established: encodeReply(REPLY.succeeded) });
        },
        async refuse(error) {
          const response = refusal(error);
          if (response !== undefined) await session.stream.write(response);
        },
      };
    },
    refusalOf,
  };
}

const strictDecoder = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });

/** Whether a client needs no credentials, because the agent may follow from its destination. */
function mayBeAnonymous({ authenticator, agentSuffix, findsAgent = false }: PipelineContext): boolean {
  return (agentSuffix !== undefined || findsAgent) && authenticator.anonymous !== undefined;
}

/**
 * Reads the credentials as those of HTTP, where a user name has no colon; `undefined` for an anonymous client.
 * @throws {CredentialsError}
 */
function readCredentials({ methods, credentials }: Handshake, mayBeAnonymous: boolean): ClientCredentials | undefined {
  if (mayBeAnonymous && (credentials ? credentials.password.length === 0 : methods.includes(0))) return undefined;
  if (credentials === undefined) {
    const offered = methods.length === 0 ? "nothing" : methods.join(", ");
    throw new CredentialsError(
      `The client offers no password (SOCKS method 2), it offers ${offered}: it needs the agent id as user name, and a password`,
    );
  }
  if (credentials.username.length === 0) throw new CredentialsError("Credentials are required: the agent id as user name");
  // clients without credentials of their own send the name of the local user
  if (credentials.password.length === 0) {
    throw new CredentialsError("The client sent a user name without a password, which SOCKS 5 requires");
  }
  try {
    const username = strictDecoder.decode(credentials.username).replaceAll(":", "%3A");
    return { scheme: "basic", username, password: strictDecoder.decode(credentials.password) };
  } catch {
    throw new CredentialsError("The client's credentials are not UTF-8");
  }
}

/**
 * Reads the request, and leaves later data in the stream.
 * @throws {TunnelError}
 */
async function readRequest(stream: Duplex, timeoutMs: number): Promise<SocksRequest> {
  let isLate = false;
  const timer = setTimeout(() => {
    isLate = true;
    stream.stopRead(0); // the pending read rejects
  }, timeoutMs);
  try {
    let received = new Uint8Array();
    for (;;) {
      const end = requestEnd(received);
      if (end !== undefined && received.length >= end) {
        stream.unread(received.subarray(end));
        return parseRequest(received.subarray(0, end));
      }
      const data = await stream.read();
      if (data === null) throw new MalformedRequestError("The client ended within the SOCKS request");
      const joined = new Uint8Array(received.length + data.length);
      joined.set(received);
      joined.set(data, received.length);
      received = joined;
    }
  } catch (error) {
    if (isLate) throw new MalformedRequestError("The SOCKS request was not complete in time");
    throw error instanceof NetError ? clientDisconnected(error) : error;
  } finally {
    clearTimeout(timer);
  }
}

/** @throws {TunnelError} if it is not served */
function readDestination({ context: { log }, record }: ClientSession, request: SocksRequest) {
  if (request.command !== CONNECT) {
    throw new UnsupportedRequestError(REPLY.commandNotSupported, `The SOCKS command ${request.method} is not supported`);
  }
  const destination = destinationOf(request);
  record.destination = formatAuthority(destination);
  const { id, client, method } = record;
  log.debug("request received", { id, client, method, protocol: record.protocol, destination: record.destination });
  return destination;
}

/** Replies to errors; a general failure to all others. */
const REPLIES: Readonly<Partial<Record<TunnelErrorType, Reply>>> = {
  http_request_denied: REPLY.notAllowed,
  destination_ip_prohibited: REPLY.notAllowed,
  destination_ip_unroutable: REPLY.networkUnreachable,
  destination_unavailable: REPLY.hostUnreachable,
  destination_not_found: REPLY.hostUnreachable,
  dns_error: REPLY.hostUnreachable,
  connection_refused: REPLY.connectionRefused,
  connection_timeout: REPLY.ttlExpired,
  connection_read_timeout: REPLY.ttlExpired,
  connection_write_timeout: REPLY.ttlExpired,
  dns_timeout: REPLY.ttlExpired,
  http_response_timeout: REPLY.ttlExpired,
};

function replyOf(error: TunnelError): Reply {
  return error instanceof UnsupportedRequestError ? error.reply : REPLIES[error.type] ?? REPLY.generalFailure;
}

/** The fault of a handshake that could not be read. The client gets no response, because no reply of SOCKS fits. */
function refusalOf({ code, message }: NetError, received = ""): TunnelError | undefined {
  switch (code) {
    case "head-timeout":
      return new MalformedRequestError(`The client's SOCKS ${incompleteMessage(received)} were not complete in time`);
    case "head-truncated":
      return new MalformedRequestError(`The client ended within its SOCKS ${incompleteMessage(received)}`);
    case "head-malformed":
      return new MalformedRequestError(message);
    default:
      return undefined;
  }
}
