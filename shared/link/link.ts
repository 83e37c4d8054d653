// What proxy and agent agree on: the protocol's name, close codes, timings, and the exchange in which an agent says who it is.
import { NetError } from "../net/errors.ts";
import type { Duplex, QuicConnection, QuicTransport } from "../net/types.ts";
import { encodeFrame, FrameError, FrameReader, MAX_FRAME, readFrame } from "./frame.ts";
import { decodeMessage, encodeMessage, type Hello, MAX_MESSAGE, MessageError } from "./message.ts";

/** Protocol names in the TLS handshake (RFC 7301), the preferred one first: version 2 has a control stream, version 1 has none. */
export const ALPN = ["reverse-http-proto/2", "reverse-http-proto"];

/** Whether the two have a control stream. */
export function hasControl({ alpn }: QuicConnection): boolean {
  return alpn === ALPN[0];
}

/** Application error codes with which the proxy closes an agent's connection; an agent uses `shutdown` and `malformed`. */
export const CloseCode = {
  shutdown: 0,
  badAgentId: 400,
  unauthorized: 401,
  replaced: 409,
  /** A control frame breaks the rules (version 2). */
  malformed: 422,
  internal: 500,
  /** There are too many connections, or too many failures of this address: to be tried again later (version 2). */
  limit: 503,
} as const;

/** What the proxy allows from the end of the handshake to the end of the authentication, in milliseconds. */
export const AUTHENTICATION_TIMEOUT_MS = 3_000;
/** What an agent allows: where thousands come back at once, an answer that is late costs less than all that was done for it again. */
const ANSWER_TIMEOUT_MS = 10_000;

/**
 * The agent's, which takes `tunnels` at a time: one more is answered by it, and not kept waiting by QUIC. An agent must let the proxy open
 * at least 10,000 streams. Each one that it may open costs memory and time before it does.
 */
export function agentTransport(tunnels: number): QuicTransport {
  return { keepAliveMs: 3_000, idleTimeoutMs: 10_000, maxPeerStreams: Math.min(65_536, Math.max(10_000, tunnels + 256)) };
}
/**
 * An agent opens one stream to authenticate, and one for control. Until it has said who it is, it may send so much that nobody reads; the
 * proxy lifts that with `setConnectionWindow`.
 */
export const PROXY_TRANSPORT: QuicTransport = {
  keepAliveMs: 3_000,
  idleTimeoutMs: 10_000,
  maxPeerStreams: 4,
  connectionWindow: 4 * MAX_FRAME,
};

const AUTHENTICATED = "authenticated";

/**
 * The agent's side: says who it is and waits for the proxy's word. With version 2 it opens the control stream too, without waiting, and
 * returns it.
 * @throws {NetError} `closed` with the proxy's close code as `appCode` when it refuses, `timed-out`, `reset`
 * @throws {FrameError} when the answer is no frame
 */
export async function authenticate(connection: QuicConnection, credentials: Uint8Array, hello: Hello): Promise<Duplex | undefined> {
  let control: Duplex | undefined;
  const answer = await withTimeout(connection, ANSWER_TIMEOUT_MS, async () => {
    const stream = await connection.openStream();
    try {
      await stream.write(encodeFrame(credentials));
      stream.closeWrite();
      if (hasControl(connection)) {
        control = endWith(connection, await connection.openStream());
        await control.write(encodeFrame(encodeMessage({ type: "hello", hello })));
      }
      return await readFrame(stream);
    } finally {
      stream.close();
    }
  });
  const text = new TextDecoder().decode(answer);
  if (text !== AUTHENTICATED) {
    throw new NetError("reset", `The proxy answered ${JSON.stringify(text.slice(0, 100))} to the authentication`, { remote: true });
  }
  return control;
}

/**
 * The proxy's side: what the agent says of itself, and how to tell it that it is welcome.
 * @throws {NetError} `timed-out`, `closed`, `reset`
 * @throws {FrameError} when it sends no frame
 */
export async function receiveCredentials(connection: QuicConnection): Promise<{ credentials: Uint8Array; welcome: () => Promise<void> }> {
  return await withTimeout(connection, AUTHENTICATION_TIMEOUT_MS, async () => {
    const stream = await connection.acceptStream();
    if (stream === null) throw new NetError("closed", "The connection was closed before the authentication");
    endWith(connection, stream);
    const credentials = await readFrame(stream);
    return {
      credentials,
      welcome: async () => {
        await stream.write(encodeFrame(new TextEncoder().encode(AUTHENTICATED)));
        stream.close();
      },
    };
  });
}

/**
 * The proxy's side of version 2, once it knows who the agent is: its control stream, and what it says of itself there.
 * @throws {NetError} `timed-out`, `closed`, `reset`
 * @throws {MessageError} when the first frame is no hello
 */
export async function receiveHello(connection: QuicConnection): Promise<{ stream: Duplex; frames: FrameReader; hello: Hello }> {
  return await withTimeout(connection, AUTHENTICATION_TIMEOUT_MS, async () => {
    const stream = await connection.acceptStream();
    if (stream === null) throw new NetError("closed", "The connection was closed before the hello");
    endWith(connection, stream);
    const frames = controlFrames(stream);
    try {
      const frame = await frames.next();
      const message = frame === null ? undefined : decodeMessage(frame);
      if (message?.type !== "hello") throw new MessageError("The first control frame is no hello");
      return { stream, frames, hello: message.hello };
    } catch (error) {
      throw error instanceof FrameError ? new MessageError(error.message) : error;
    }
  });
}

/** A stream that is open keeps all that belongs to its connection, a socket among it: it is let go when the connection is no more. */
export function endWith(connection: QuicConnection, stream: Duplex): Duplex {
  void connection.closed.then(() => stream.close()); // never rejects
  return stream;
}

/** Reads the frames of a control stream. */
export function controlFrames(stream: Duplex): FrameReader {
  return new FrameReader(stream, MAX_MESSAGE);
}

/** A peer that never ends its part ends with its connection, and `work` with it. */
async function withTimeout<T>(connection: QuicConnection, timeoutMs: number, work: () => Promise<T>): Promise<T> {
  let expired = false;
  const timer = setTimeout(() => {
    expired = true;
    connection.close(CloseCode.unauthorized, "authentication timed out");
  }, timeoutMs);
  try {
    return await work();
  } catch (cause) {
    if (expired) {
      throw new NetError("timed-out", `The authentication is not complete in ${timeoutMs} ms`, { remote: true, cause });
    }
    throw cause;
  } finally {
    clearTimeout(timer);
  }
}
