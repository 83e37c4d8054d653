// Writes log lines to a file descriptor in the background. With a slow or closed reader, lines are dropped; the program neither blocks nor
// buffers without limit.
//
// The runtimes' streams cannot do that: on a pipe that is not read, one blocks the program in `write`, another buffers every line.
import { Buffer } from "node:buffer";
import { write } from "node:fs";
import { setTimeout as sleep } from "node:timers/promises";

/** Limit on buffered characters. */
const MAX_BUFFERED = 1 << 20;
/** Pause between writes in milliseconds; under load many lines share one write. */
const PAUSE_MS = 20;
/** Delay in milliseconds before a retry on a non-blocking descriptor that is full. */
const RETRY_MS = 10;
const NEWLINE = 10;
/** Bytes that are written to a pipe at once, without those of other processes in between (write(2)): that of Linux, not less than POSIX has. */
const PIPE_BUF = 4096;

export interface LineWriter {
  /** Queues a line, which ends with a newline. Never blocks or throws: with a full buffer it drops the line and reports the loss later. */
  write(line: string): void;
  /** Resolves when all queued lines are written, or after `timeoutMs` milliseconds. */
  flush(timeoutMs: number): Promise<void>;
}

export interface LineWriterOptions {
  /** Replaces `write` of `node:fs`, for tests. */
  writeTo?: typeof write;
  /** Called with the number of dropped or unwritten lines once there is room again. */
  onLoss?: (lines: number) => void;
  /** Limit on buffered characters. Default 1 Mi. */
  maxBuffered?: number;
  /** Other processes write lines there, too: lines that fit into {@link PIPE_BUF} are not mixed with theirs. Default `false`. */
  isShared?: boolean;
}

export function createLineWriter(fd: number, options: LineWriterOptions = {}): LineWriter {
  const { writeTo = write, onLoss, maxBuffered = MAX_BUFFERED, isShared = false } = options;
  const encoder = new TextEncoder();
  let buffer: string[] = [];
  let bufferedLength = 0;
  let dropped = 0;
  /** The last line was written incompletely, for example because the disk is full. */
  let torn = false;
  let works = true;
  let writing: Promise<void> | undefined;
  let flushing = new AbortController();

  /** Reports dropped lines once writing works again. */
  const reportLoss = (): void => {
    if (dropped === 0 || !works) return;
    const lost = dropped;
    dropped = 0;
    onLoss?.(lost);
  };

  const drain = async (): Promise<void> => {
    while (buffer.length > 0) {
      const texts = isShared ? joinUpTo(PIPE_BUF, buffer) : [buffer.join("")];
      [buffer, bufferedLength] = [[], 0];
      reportLoss();
      for (const text of texts) {
        const batch = encoder.encode((torn ? "\n" : "") + text);
        const unwritten = await writeAll(fd, batch, writeTo);
        dropped += unwritten.filter((byte) => byte === NEWLINE).length;
        if (unwritten.length < batch.length) torn = batch[batch.length - unwritten.length - 1] !== NEWLINE;
        else if (torn) dropped--; // the newline before the first line
        works = unwritten.length === 0;
      }
      if (buffer.length === 0) reportLoss();
      await sleep(PAUSE_MS, undefined, { signal: flushing.signal }).catch(() => {}); // flushing
    }
    writing = undefined;
    flushing = new AbortController();
  };

  return {
    write(line) {
      if (bufferedLength + line.length > maxBuffered) {
        dropped++;
        return;
      }
      buffer.push(line);
      bufferedLength += line.length;
      writing ??= drain();
    },
    async flush(timeoutMs) {
      if (writing === undefined) return;
      flushing.abort();
      const written = new AbortController();
      await Promise.race([writing, sleep(timeoutMs, undefined, { signal: written.signal }).catch(() => {})]);
      written.abort();
    },
  };
}

/** Joins lines to texts of up to `max` bytes; a longer line is a text of its own. */
function joinUpTo(max: number, lines: readonly string[]): string[] {
  const texts: string[] = [];
  let [text, length] = ["", 0];
  for (const line of lines) {
    const bytes = Buffer.byteLength(line);
    if (length > 0 && length + bytes > max) {
      texts.push(text);
      [text, length] = ["", 0];
    }
    text += line;
    length += bytes;
  }
  if (text !== "") texts.push(text);
  return texts;
}

/** Returns the bytes that could not be written, because the reader is gone or the disk is full. Never rejects. */
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
