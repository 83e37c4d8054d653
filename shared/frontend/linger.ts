// The end of a connection whose client may still be sending when it has been answered (RFC 9112 §9.6): closing it at once would reset it, and
// the client would lose the answer.
import type { Duplex } from "../net/types.ts";

/** Longest time in milliseconds, longest silence, and most bytes. */
const LINGER_MS = 30_000;
const SILENCE_MS = 2_000;
const LINGER_BYTES = 64 << 20;

/**
 * Finishes the writing direction, then reads and drops what the client still sends, up to its end or for as long as a client may take; then
 * closes the stream. `pace` is waited for before each further read. Never rejects.
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
    // the client is gone, or was closed meanwhile
  } finally {
    clearTimeout(timer);
    clearTimeout(silence);
  }
  stream.close();
}
