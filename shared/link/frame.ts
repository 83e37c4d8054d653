// Frames of the agent link: a length of four bytes, big-endian, then the payload.
import type { Duplex } from "../net/stream.ts";

/** Longest payload in bytes. */
export const MAX_FRAME = 64 * 1024;

/** A frame that is too long or truncated. */
export class FrameError extends Error {
  override readonly name = "FrameError";
}

/**
 * Encodes a frame.
 * @throws {FrameError} for more than {@link MAX_FRAME} bytes
 */
export function encodeFrame(payload: Uint8Array): Uint8Array {
  if (payload.length > MAX_FRAME) throw new FrameError(`Cannot send a frame of ${payload.length} bytes: the limit is ${MAX_FRAME}`);
  const frame = new Uint8Array(4 + payload.length);
  new DataView(frame.buffer).setUint32(0, payload.length);
  frame.set(payload, 4);
  return frame;
}

/** Nothing is received: a reader that waits keeps no buffer. */
const NOTHING = new Uint8Array(0);

/** Reads the frames of a stream. */
export class FrameReader {
  readonly #stream: Pick<Duplex, "read">;
  readonly #limit: number;
  #received: Uint8Array = NOTHING;

  /** @param limit longest payload in bytes. Default {@link MAX_FRAME}. */
  constructor(stream: Pick<Duplex, "read">, limit = MAX_FRAME) {
    this.#stream = stream;
    this.#limit = limit;
  }

  /**
   * Returns the next payload; `null` at the end of the stream.
   * @throws {FrameError} if it is too long, before anything is buffered, or truncated
   * @throws {NetError} as {@link Duplex.read}
   */
  async next(): Promise<Uint8Array | null> {
    for (;;) {
      const received = this.#received;
      if (received.length >= 4) {
        const length = new DataView(received.buffer, received.byteOffset).getUint32(0);
        if (length > this.#limit) throw new FrameError(`A frame of ${length} bytes was announced: the limit is ${this.#limit}`);
        if (received.length >= 4 + length) {
          this.#received = received.length > 4 + length ? received.subarray(4 + length) : NOTHING;
          return received.subarray(4, 4 + length);
        }
      }
      const data = await this.#stream.read();
      if (data === null && received.length === 0) return null;
      if (data === null) throw new FrameError("The stream ended within a frame");
      // bounded: a read returns at most 256 KiB, and long frames are rejected above
      this.#received = received.length > 0 ? concat(received, data) : data;
    }
  }
}

function concat(a: Uint8Array, b: Uint8Array): Uint8Array {
  const all = new Uint8Array(a.length + b.length);
  all.set(a);
  all.set(b, a.length);
  return all;
}

/**
 * Reads the only frame of a stream; any bytes after it are dropped.
 * @throws {FrameError} as {@link FrameReader.next}, and if the stream is empty
 * @throws {NetError} as {@link Duplex.read}
 */
export async function readFrame(stream: Duplex): Promise<Uint8Array> {
  const frame = await new FrameReader(stream).next();
  if (frame === null) throw new FrameError("The stream ended without a frame");
  return frame;
}
