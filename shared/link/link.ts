// What proxy and agent agree on: the protocol's name, close codes, timings, and the exchange in which an agent says who it is.
import { NetError } from "../net/errors.ts";
import type { QuicConnection, QuicTransport } from "../net/types.ts";
import { encodeFrame, readFrame } from "./frame.ts";

/** Protocol name in the TLS handshake (RFC 7301). */
export const ALPN = "reverse-http-proto";

/** Application error codes with which the proxy closes an agent's connection. */
export const CloseCode = {
  shutdown: 0,
  badAgentId: 400,
  unauthorized: 401,
  replaced: 409,
  internal: 500,
} as const;

/** From the end of the handshake to the end of the authentication, in milliseconds. */
export const AUTHENTICATION_TIMEOUT_MS = 3_000;

/** An agent must let the proxy open at least 10,000 streams. */
export const AGENT_TRANSPORT: QuicTransport = { keepAliveMs: 3_000, idleTimeoutMs: 10_000, maxPeerStreams: 65_536 };
/** An agent opens one stream, to authenticate. */
export const PROXY_TRANSPORT: QuicTransport = { keepAliveMs: 3_000, idleTimeoutMs: 10_000, maxPeerStreams: 4 };

const AUTHENTICATED = "authenticated";

/**
 * The agent's side: says who it is and waits for the proxy's word.
 * @throws {NetError} `closed` with the proxy's close code as `appCode` when it refuses, `timed-out`, `reset`
 * @throws {FrameError} when the answer is no frame
 */
export async function authenticate(connection: QuicConnection, credentials: Uint8Array): Promise<void> {
  const answer = await withTimeout(connection, async () => {
    const stream = await connection.openStream();
    try {
      await stream.write(encodeFrame(credentials));
      stream.closeWrite();
      return await readFrame(stream);
    } finally {
      stream.close();
    }
  });
  const text = new TextDecoder().decode(answer);
  if (text !== AUTHENTICATED) {
    throw new NetError("reset", `The proxy answered ${JSON.stringify(text.slice(0, 100))} to the authentication`, { remote: true });
  }
}

/**
 * The proxy's side: what the agent says of itself, and how to tell it that it is welcome.
 * @throws {NetError} `timed-out`, `closed`, `reset`
 * @throws {FrameError} when it sends no frame
 */
export async function receiveCredentials(connection: QuicConnection): Promise<{ credentials: Uint8Array; welcome: () => Promise<void> }> {
  return await withTimeout(connection, async () => {
    const stream = await connection.acceptStream();
    if (stream === null) throw new NetError("closed", "The connection was closed before the authentication");
    try {
      const credentials = await readFrame(stream);
      return {
        credentials,
        welcome: async () => {
          await stream.write(encodeFrame(new TextEncoder().encode(AUTHENTICATED)));
          stream.close();
        },
      };
    } catch (error) {
      stream.close();
      throw error;
    }
  });
}

/** A peer that never ends its part ends with its connection, and `work` with it. */
async function withTimeout<T>(connection: QuicConnection, work: () => Promise<T>): Promise<T> {
  let expired = false;
  const timer = setTimeout(() => {
    expired = true;
    connection.close(CloseCode.unauthorized, "authentication timed out");
  }, AUTHENTICATION_TIMEOUT_MS);
  try {
    return await work();
  } catch (cause) {
    if (expired) {
      throw new NetError("timed-out", `The authentication is not complete in ${AUTHENTICATION_TIMEOUT_MS} ms`, { remote: true, cause });
    }
    throw cause;
  } finally {
    clearTimeout(timer);
  }
}
