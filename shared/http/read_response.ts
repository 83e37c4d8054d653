// Reads the response to a request that was written to a stream.
import { NetError } from "../net/errors.ts";
import type { Duplex } from "../net/stream.ts";
import { parseResponseHead, type ResponseHead } from "./head.ts";

/** Maximum size of a response head in bytes. */
const MAX_HEAD = 16_384;
/** A TLS alert (RFC 8446 §6): record type and major version. */
const TLS_ALERT = "\x15\x03";

/**
 * Reads the response head of a proxy. Data after it stays in the stream. The stream is closed after a timeout.
 * @param tlsOption flag that makes this side use TLS, for the error
 * @throws {NetError} `tls` where the proxy takes TLS and none is spoken; `timed-out`, `reset`, `closed`, `head-truncated`, `head-too-large`
 * @throws {HeadError}
 */
export async function readResponse(stream: Duplex, timeoutMs: number, tlsOption: string): Promise<ResponseHead> {
  let timedOut = false;
  const timer = setTimeout(() => {
    timedOut = true;
    stream.reset(1);
    stream.close();
  }, timeoutMs);
  try {
    let text = "";
    for (;;) {
      const end = text.indexOf("\r\n\r\n");
      if (end >= 0) {
        // a server that speaks first
        stream.unread(Uint8Array.from(text.slice(end + 4), (c) => c.charCodeAt(0)));
        return parseResponseHead(text.slice(0, end + 4));
      }
      if (text.length > MAX_HEAD) throw new NetError("head-too-large", "The proxy's response head is too large", { remote: true });
      if (text.startsWith(TLS_ALERT)) {
        throw new NetError("tls", `it responded with a TLS alert; set ${tlsOption}`, { remote: true });
      }
      const data = await stream.read();
      if (data === null) throw new NetError("head-truncated", "The proxy ended the connection without a response", { remote: true });
      for (const byte of data) text += String.fromCharCode(byte);
    }
  } catch (cause) {
    throw timedOut ? new NetError("timed-out", `The proxy did not respond in ${Math.round(timeoutMs)} ms`, { remote: true, cause }) : cause;
  } finally {
    clearTimeout(timer);
  }
}
