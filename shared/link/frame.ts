// The frames of the agent link: four bytes of length, big-endian, then so many bytes.
import type { Duplex } from "../net/types.ts";

/** Longest frame in bytes. Nothing real comes near it. */
export const MAX_FRAME = 64 * 1024;

/** A frame that is too long, or a stream that ends within one. */
export class FrameError extends Error {
  override readonly name = "FrameError";
}

/**
 * @throws {FrameError} for more than {@link MAX_FRAME} bytes
 */
export function encodeFrame(payload: Uint8Array): Uint8Array {
  if (payload.length > MAX_FRAME) throw new FrameError(`Cannot send a frame of ${payload.length} bytes: the limit is ${MAX_FRAME}`);
  const frame = new Uint8Array(4 + payload.length);
  new DataView(frame.buffer).setUint32(0, payload.length);
  frame.set(payload, 4);
  return frame;
}

/**
 * Reads one frame. What follows it is lost: a frame is the last thing that either side sends on its stream.
 * @throws {FrameError} when it is too long, before anything of that length is kept, or cut short
 * @throws {NetError} as {@link Duplex.read}
 */
export async function readFrame(stream: Duplex): Promise<Uint8Array> {
  let received = new Uint8Array(0);
  for (;;) {
    if (received.length >= 4) {
      const length = new DataView(received.buffer, received.byteOffset).getUint32(0);
      if (length > MAX_FRAME) throw new FrameError(`A frame of ${length} bytes was announced: the limit is ${MAX_FRAME}`);
      if (received.length >= 4 + length) return received.subarray(4, 4 + length);
    }
    const data = await stream.read();
    if (data === null) throw new FrameError("The stream ended within a frame");
    // a read brings 256 KiB at most, and a frame that is too long is refused above: this stays small
    const joined = new Uint8Array(received.length + data.length);
    joined.set(received);
    joined.set(data, received.length);
    received = joined;
  }
}
