// Lingering close (RFC 9112 §9.6): closing a connection whose client still sends would reset it, and the client would lose the response.
import type { Duplex } from "../../net/stream.ts";

/** Bounds: total time and silence in milliseconds, and bytes. */
const LINGER_MS = 30_000;
const SILENCE_MS = 2_000;
const LINGER_BYTES = 64 << 20;

/**
 * Finishes the writing direction, drops the client's data until it ends or a bound is reached, then closes the stream.
 * Awaits `pace` before each further read. Never rejects.
 */
export async function linger(stream: Duplex, pace: (bytes: number) => Promise<void>): Promise<void> {
  stream.closeWrite();
  const end = () => stream.close();
  const timer = setTimeout(end, LINGER_MS);
  let silence = setTimeout(end, SILENCE_MS);
  try {
    let left = LINGER_BYTES;
    for (let data; left > 0 && (data = await stream.read()) !== null;) {
      clearTimeout(silence);
      left -= data.length;
      await pace(data.length);
      silence = setTimeout(end, SILENCE_MS);
    }
  } catch {
    // the client has disconnected, or the stream was closed
  } finally {
    clearTimeout(timer);
    clearTimeout(silence);
  }
  stream.close();
}
