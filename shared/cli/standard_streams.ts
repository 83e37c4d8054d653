// Standard input and output as byte streams. They are read and written as files: what the runtimes do with a pipe, a terminal or a closed
// descriptor differs.
import { Buffer } from "node:buffer";
import { close, read, write } from "node:fs";
import { setTimeout as sleep } from "node:timers/promises";

/** Bytes per read. */
const SIZE = 256 * 1024;
/** Time in milliseconds after which a descriptor without data is tried again, if another process has made it non-blocking. */
const RETRY_MS = 10;

/** The two streams of a command that moves bytes. */
export class StandardStreams {
  readonly #buffer = Buffer.allocUnsafe(SIZE);
  #isReading = false;

  /** @param input @param output descriptors */
  constructor(private readonly input = 0, private readonly output = 1) {}

  /** Whether a read is pending, which only the end of the process cancels. */
  get isReading(): boolean {
    return this.#isReading;
  }

  /** Returns the next bytes, valid until the next call; `null` at the end, and if there is no standard input. */
  async read(): Promise<Uint8Array | null> {
    this.#isReading = true;
    try {
      const size = await retried((done) => read(this.input, this.#buffer, 0, SIZE, null, done));
      return size === 0 ? null : this.#buffer.subarray(0, size);
    } catch (error) {
      // EBADF: closed by the parent. EIO: a terminal that has gone
      if (["EBADF", "EIO", "EOF", "ECONNRESET"].includes((error as NodeJS.ErrnoException).code ?? "")) return null;
      throw error;
    } finally {
      this.#isReading = false;
    }
  }

  /**
   * Writes all bytes. Resolves when the system has them.
   * @throws {Error} with the code `EPIPE` if their reader is gone
   */
  async write(data: Uint8Array): Promise<void> {
    for (let at = 0; at < data.length;) at += await retried((done) => write(this.output, data, at, data.length - at, null, done));
  }

  /** Ends the output, so that its reader sees the end before this process ends. */
  async closeWrite(): Promise<void> {
    await new Promise<void>((resolve) => close(this.output, () => resolve()));
  }
}

async function retried(call: (done: (error: NodeJS.ErrnoException | null, size: number) => void) => void): Promise<number> {
  for (;;) {
    try {
      return await new Promise((resolve, reject) => call((error, size) => error ? reject(error) : resolve(size)));
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== "EAGAIN") throw error;
      await sleep(RETRY_MS);
    }
  }
}
