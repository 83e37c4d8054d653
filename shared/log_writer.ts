// Where log lines go: a file descriptor, written to in the background. A reader that is slow or gone costs lines, never the program's time
// or memory. It does not know what the lines say.
//
// The streams of the runtimes cannot do that: on a pipe that nobody reads, one blocks the whole program in `write`, another keeps every
// line in memory.
import { write } from "node:fs";
import { setTimeout as sleep } from "node:timers/promises";

/** Most bytes that wait to be written. */
const MAX_WAITING = 1 << 20;
/** Wait in milliseconds before the next attempt on a descriptor that takes nothing now and does not block either. */
const RETRY_MS = 10;

export interface LineWriter {
  /** Takes a line with its newline. Never blocks, never throws: with too much waiting the line is dropped, and the loss told when there is room. */
  write(line: string): void;
  /** Resolves when all that was taken is written, or after so many milliseconds. */
  flush(timeoutMs: number): Promise<void>;
}

export interface LineWriterOptions {
  /** Writes to the descriptor as `node:fs` does; for tests. */
  writeTo?: typeof write;
  /** Told of lines that were dropped, once there is room again to write of it. */
  onLoss?: (lines: number) => void;
  /** Default 1 MiB. */
  maxWaiting?: number;
}

export function createLineWriter(fd: number, options: LineWriterOptions = {}): LineWriter {
  const { writeTo = write, onLoss, maxWaiting = MAX_WAITING } = options;
  const encoder = new TextEncoder();
  let waiting: Uint8Array[] = [];
  let waitingBytes = 0;
  let dropped = 0;
  let writing: Promise<void> | undefined;

  const drain = async (): Promise<void> => {
    while (waitingBytes > 0) {
      const batch = join(waiting);
      const lost = dropped;
      [waiting, waitingBytes, dropped] = [[], 0, 0];
      if (lost > 0) onLoss?.(lost);
      await writeAll(fd, batch, writeTo);
    }
    writing = undefined;
  };

  return {
    write(line) {
      const bytes = encoder.encode(line);
      if (waitingBytes + bytes.length > maxWaiting) {
        dropped++;
        return;
      }
      waiting.push(bytes);
      waitingBytes += bytes.length;
      writing ??= drain();
    },
    async flush(timeoutMs) {
      if (writing === undefined) return;
      const given = new AbortController();
      await Promise.race([writing, sleep(timeoutMs, undefined, { signal: given.signal }).catch(() => {})]);
      given.abort();
    },
  };
}

/** Never rejects: with a reader that is gone, or a disk that is full, the bytes are lost and the program goes on. */
async function writeAll(fd: number, bytes: Uint8Array, writeTo: typeof write): Promise<void> {
  while (bytes.length > 0) {
    const result = await new Promise<number | NodeJS.ErrnoException>((resolve) =>
      writeTo(fd, bytes, (error, count) => resolve(error ?? count))
    );
    if (typeof result === "number") bytes = bytes.subarray(result);
    else if (result.code === "EAGAIN") await sleep(RETRY_MS);
    else if (result.code !== "EINTR") return;
  }
}

function join(parts: Uint8Array[]): Uint8Array {
  const whole = new Uint8Array(parts.reduce((sum, part) => sum + part.length, 0));
  let at = 0;
  for (const part of parts) {
    whole.set(part, at);
    at += part.length;
  }
  return whole;
}
