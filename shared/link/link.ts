// The agent link's protocol: names, close codes, timeouts, and the authentication of an agent.
import { NetError } from "../net/errors.ts";
import { printable } from "../net/printable.ts";
import type { AgentSession, SessionTransport } from "../net/session.ts";
import type { Duplex } from "../net/stream.ts";
import { encodeFrame, FrameError, FrameReader, MAX_FRAME, readFrame } from "./frame.ts";
import { decodeMessage, encodeMessage, type Hello, MAX_MESSAGE, MessageError } from "./message.ts";

/** ALPN protocol names (RFC 7301) over QUIC, the preferred one first: version 2 has a control stream, version 1 has none. */
export const ALPN = ["reverse-http-proto/2", "reverse-http-proto"];

/** ALPN protocol name over TLS: the streams of version 2, in frames of docs/protocol.md. */
export const TLS_ALPN = ["reverse-http-tls/1"];

/** ALPN protocol name of a session on which an agent only asks whether its credentials are accepted. */
export const CREDENTIALS_ALPN = "reverse-http-credentials/1";

/** Whether the connection has a control stream. */
export function hasControl({ alpn }: AgentSession): boolean {
  return alpn === ALPN[0] || alpn === TLS_ALPN[0];
}

/** Application error codes with which the proxy closes an agent's connection. Agents use `shutdown` and `malformed`. */
export const CloseCode = {
  shutdown: 0,
  badAgentId: 400,
  unauthorized: 401,
  replaced: 409,
  /** A control frame violates the protocol (version 2). */
  malformed: 422,
  internal: 500,
  /** Too many connections, or too many failures of this address; retry later (version 2). */
  limit: 503,
} as const;

/** The reason beside {@link CloseCode.replaced} if another agent has connected with the same id. */
export const REPLACED_REASON = "closing old connection";

/**
 * The proxy's timeout for an agent's credentials after the handshake, and for its hello after they were verified, in milliseconds. The
 * authenticator in between has none.
 */
const AUTHENTICATION_TIMEOUT_MS = 3_000;
/** The agent's timeout. It is longer, because a late response costs less than another attempt when thousands of agents reconnect. */
const RESPONSE_TIMEOUT_MS = 10_000;

/** Interval of pings in milliseconds, unless an option sets another. */
export const KEEP_ALIVE_MS = 3_000;

/** The longest interval in milliseconds: many NATs drop a mapping after 30 s without packets (RFC 9308 §3.2). */
export const MAX_KEEP_ALIVE_MS = 25_000;

/**
 * By how many milliseconds a proxy pings later than an agent with the same interval. The end that receives a PING pings an interval later, so the
 * agent alone pings, and a proxy with thousands of agents only answers.
 */
const PROXY_DELAY_MS = 250;

/**
 * Pings every `intervalMs` milliseconds, three of which may be lost. The effective idle timeout is the smaller one of both ends (RFC 9000
 * §10.1). With 0 for `auto` the agent alone pings over QUIC, when it chooses to, and both ends at the longest interval over TCP.
 */
export function keepAlive(
  intervalMs: number,
  transport: "quic" | "tcp",
  end: "agent" | "proxy",
): Required<Pick<SessionTransport, "keepAliveMs" | "idleTimeoutMs">> {
  const longest = intervalMs === 0 ? MAX_KEEP_ALIVE_MS : intervalMs;
  const keepAliveMs = transport === "quic" ? intervalMs : longest;
  return {
    keepAliveMs: keepAliveMs > 0 && end === "proxy" ? keepAliveMs + PROXY_DELAY_MS : keepAliveMs,
    idleTimeoutMs: 3 * longest + 1_000,
  };
}

/**
 * The agent's transport parameters, without its keep-alive. The stream limit exceeds `tunnels`, so that the agent refuses further requests itself instead of the
 * transport blocking them. The protocol requires at least 10,000 streams; more cost memory in advance.
 */
export function agentTransport(tunnels: number): SessionTransport {
  return { maxPeerStreams: Math.min(65_536, Math.max(10_000, tunnels + 256)) };
}

/**
 * The proxy's transport parameters, without its keep-alive. An agent opens one stream to authenticate and one for control. The connection window is small until the
 * agent is authenticated; then the proxy raises it with `setConnectionWindow`.
 */
export const PROXY_TRANSPORT: SessionTransport = {
  maxPeerStreams: 4,
  connectionWindow: 4 * MAX_FRAME,
};

const AUTHENTICATED = "authenticated";

/**
 * Authenticates an agent to the proxy. With version 2 it also opens the control stream, without waiting for the response, and returns it.
 * @throws {NetError} `closed` with the proxy's close code as `appCode` if it refuses, `timed-out`, `reset`
 * @throws {FrameError} if the response is not a frame
 */
export async function authenticate(connection: AgentSession, credentials: Uint8Array, hello: Hello): Promise<Duplex | undefined> {
  let control: Duplex | undefined;
  const response = await withTimeout(connection, RESPONSE_TIMEOUT_MS, async () => {
    const stream = await connection.openStream();
    try {
      await stream.write(encodeFrame(credentials));
      stream.closeWrite();
      if (hasControl(connection)) {
        control = closeWith(connection, await connection.openStream());
        await control.write(encodeFrame(encodeMessage({ type: "hello", hello })));
      }
      return await readFrame(stream);
    } finally {
      stream.close();
    }
  });
  checkAuthenticated(response);
  return control;
}

/** Tells an agent that its credentials are accepted. */
export type Accept = (status?: ProxyStatus) => Promise<void>;

/** The proxy's status, for an agent that only checks its credentials. */
export interface ProxyStatus {
  /** For display: `reverse-http/0.1.0`. */
  readonly version: string;
  /** Its clock, in milliseconds since 1970. */
  readonly time: number;
}

/**
 * Asks on a session of {@link CREDENTIALS_ALPN} whether the credentials are accepted. Resolves with the proxy's status; `undefined` from one that
 * does not tell it.
 * @throws {NetError} as {@link authenticate}
 * @throws {FrameError} if the response is not a frame
 */
export async function askForStatus(session: AgentSession, credentials: Uint8Array): Promise<ProxyStatus | undefined> {
  return await withTimeout(session, RESPONSE_TIMEOUT_MS, async () => {
    const stream = closeWith(session, await session.openStream());
    await stream.write(encodeFrame(credentials));
    stream.closeWrite();
    const frames = new FrameReader(stream);
    checkAuthenticated(await frames.next() ?? new Uint8Array(0));
    const status = await frames.next().catch(() => null); // older proxies end the stream in their own way
    return status === null ? undefined : decodeStatus(status);
  });
}

function encodeStatus(status: ProxyStatus): Uint8Array {
  return encodeFrame(new TextEncoder().encode(JSON.stringify(status)));
}

function decodeStatus(frame: Uint8Array): ProxyStatus | undefined {
  try {
    const { version, time } = JSON.parse(new TextDecoder().decode(frame)) as Partial<Record<keyof ProxyStatus, unknown>>;
    return typeof version === "string" && Number.isSafeInteger(time)
      ? { version: printable(version, 100), time: time as number }
      : undefined;
  } catch {
    return undefined;
  }
}

/** @throws {NetError} `reset` for any other response */
function checkAuthenticated(response: Uint8Array): void {
  const text = new TextDecoder().decode(response);
  if (text === AUTHENTICATED) return;
  throw new NetError("reset", `The proxy answered ${JSON.stringify(text.slice(0, 100))} to the authentication`, { remote: true });
}

/**
 * Receives an agent's credentials on the proxy. `accept` tells the agent that they are accepted, and a status to one that asks.
 * @throws {NetError} `timed-out`, `closed`, `reset`
 * @throws {FrameError} if the agent sends no valid frame
 */
export async function receiveCredentials(connection: AgentSession): Promise<{ credentials: Uint8Array; accept: Accept }> {
  return await withTimeout(connection, AUTHENTICATION_TIMEOUT_MS, async () => {
    const stream = await connection.acceptStream();
    if (stream === null) throw new NetError("closed", "The connection was closed before the authentication");
    closeWith(connection, stream);
    const credentials = await readFrame(stream);
    return {
      credentials,
      accept: async (status) => {
        await stream.write(encodeFrame(new TextEncoder().encode(AUTHENTICATED)));
        if (status) await stream.write(encodeStatus(status));
        stream.close();
      },
    };
  });
}

/**
 * Receives the control stream and the hello of an authenticated agent on the proxy (version 2).
 * @throws {NetError} `timed-out`, `closed`, `reset`
 * @throws {MessageError} if the first frame is not a hello
 */
export async function receiveHello(connection: AgentSession): Promise<{ stream: Duplex; frames: FrameReader; hello: Hello }> {
  return await withTimeout(connection, AUTHENTICATION_TIMEOUT_MS, async () => {
    const stream = await connection.acceptStream();
    if (stream === null) throw new NetError("closed", "The connection was closed before the hello");
    closeWith(connection, stream);
    const frames = controlFrames(stream);
    try {
      const frame = await frames.next();
      const message = frame === null ? undefined : decodeMessage(frame);
      if (message?.type !== "hello") throw new MessageError("The first control frame is not a hello");
      return { stream, frames, hello: message.hello };
    } catch (error) {
      throw error instanceof FrameError ? new MessageError(error.message) : error;
    }
  });
}

/** Closes `stream` when the connection ends; an open stream would keep the connection's resources, such as its socket. */
export function closeWith(connection: AgentSession, stream: Duplex): Duplex {
  void connection.closed.then(() => stream.close()); // never rejects
  return stream;
}

/** A reader of the frames of a control stream. */
export function controlFrames(stream: Duplex): FrameReader {
  return new FrameReader(stream, MAX_MESSAGE);
}

/** Runs `work` and closes the connection if it takes longer than `timeoutMs`. */
async function withTimeout<T>(connection: AgentSession, timeoutMs: number, work: () => Promise<T>): Promise<T> {
  let expired = false;
  const timer = setTimeout(() => {
    expired = true;
    connection.close(CloseCode.unauthorized, "authentication timed out");
  }, timeoutMs);
  try {
    return await work();
  } catch (cause) {
    if (expired) {
      throw new NetError("timed-out", `The authentication did not complete in ${timeoutMs} ms`, { remote: true, cause });
    }
    throw cause;
  } finally {
    clearTimeout(timer);
  }
}
