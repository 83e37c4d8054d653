// Where log lines go: a file descriptor, written to in the background. A reader that is slow or gone costs lines, never the program's time
// or memory. It does not know what the lines say.
//
// The streams of the runtimes cannot do that: on a pipe that nobody reads, one blocks the whole program in `write`, another keeps every
// line in memory.
import { write } from "node:fs";
import { setTimeout as sleep } from "node:timers/promises";

/** Most characters that wait to be written. */
const MAX_WAITING = 1 << 20;
/** From the end of a write to the next, in milliseconds: under load a line costs a hundredth of a write instead of one. */
const PAUSE_MS = 20;
/** Wait in milliseconds before the next attempt on a descriptor that takes nothing now and does not block either. */
const RETRY_MS = 10;
const NEWLINE = 10;

export interface LineWriter {
  /** Takes a line with its newline. Never blocks, never throws: with too much waiting the line is dropped, and the loss told when there is room. */
  write(line: string): void;
  /** Resolves when all that was taken is written, or after so many milliseconds. */
  flush(timeoutMs: number): Promise<void>;
}

export interface LineWriterOptions {
  /** Writes to the descriptor as `node:fs` does; for tests. */
  writeTo?: typeof write;
  /** Told of lines that were dropped, or could not be written, once there is room again to write of it. */
  onLoss?: (lines: number) => void;
  /** Most characters that wait. Default 1 Mi. */
  maxWaiting?: number;
}

export function createLineWriter(fd: number, options: LineWriterOptions = {}): LineWriter {
  const { writeTo = write, onLoss, maxWaiting = MAX_WAITING } = options;
  const encoder = new TextEncoder();
  let waiting: string[] = [];
  let waitingLength = 0;
  let dropped = 0;
  /** The last line that was written is cut short: the disk is full. */
  let torn = false;
  let works = true;
  let writing: Promise<void> | undefined;
  let hurry = new AbortController();

  /** Called when there is room; what could not be written is told of once writing works again. */
  const tell = (): void => {
    if (dropped === 0 || !works) return;
    const lost = dropped;
    dropped = 0;
    onLoss?.(lost);
  };

  const drain = async (): Promise<void> => {
    while (waiting.length > 0) {
      const batch = encoder.encode((torn ? "\n" : "") + waiting.join(""));
      [waiting, waitingLength] = [[], 0];
      tell();
      const left = await writeAll(fd, batch, writeTo);
      dropped += left.filter((byte) => byte === NEWLINE).length;
      if (left.length < batch.length) torn = batch[batch.length - left.length - 1] !== NEWLINE;
      else if (torn) dropped--; // the newline before the first line
      works = left.length === 0;
      if (waiting.length === 0) tell();
      await sleep(PAUSE_MS, undefined, { signal: hurry.signal }).catch(() => {}); // hurried
    }
    writing = undefined;
    hurry = new AbortController();
  };

  return {
    write(line) {
      if (waitingLength + line.length > maxWaiting) {
        dropped++;
        return;
      }
      waiting.push(line);
      waitingLength += line.length;
      writing ??= drain();
    },
    async flush(timeoutMs) {
      if (writing === undefined) return;
      hurry.abort();
      const given = new AbortController();
      await Promise.race([writing, sleep(timeoutMs, undefined, { signal: given.signal }).catch(() => {})]);
      given.abort();
    },
  };
}

/** What could not be written: with a reader that is gone, or a disk that is full, it is lost and the program goes on. Never rejects. */
async function writeAll(fd: number, bytes: Uint8Array, writeTo: typeof write): Promise<Uint8Array> {
  while (bytes.length > 0) {
    const result = await new Promise<number | NodeJS.ErrnoException>((resolve) =>
      writeTo(fd, bytes, (error, count) => resolve(error ?? count))
    );
    if (typeof result === "number") bytes = bytes.subarray(result);
    else if (result.code === "EAGAIN") await sleep(RETRY_MS);
    else if (result.code !== "EINTR") break;
  }
  return bytes;
}
