// The input of a client's connection with several requests (RFC 9112 §9.3), and the head of the next one.
import { Buffer } from "node:buffer";
import { withTimeout } from "../../async/with_timeout.ts";
import { endOfHead } from "../../http/head.ts";
import { NetError, type NetErrorCode } from "../../net/errors.ts";
import type { Incoming } from "../../net/listener.ts";
import type { Duplex } from "../../net/stream.ts";

/**
 * Reads a stream for several readers in turn. One waits for the end of its request, and leaves later data to the next one: nothing is
 * lost between them.
 */
export class ClientInput {
  readonly #stream: Duplex;
  /** Received data that is not consumed yet; `null`: the end. */
  #received?: Uint8Array | null;
  #reading?: Promise<void>;

  constructor(stream: Duplex) {
    this.#stream = stream;
  }

  /**
   * Resolves when {@link take} has something to return. Several readers may wait.
   * @throws {NetError} as `read` of the stream
   */
  async ready(): Promise<void> {
    if (this.#received !== undefined) return;
    await (this.#reading ??= this.#read());
  }

  async #read(): Promise<void> {
    try {
      this.#received = await this.#stream.read();
    } finally {
      this.#reading = undefined;
    }
  }

  /** The bytes for which {@link ready} has resolved; `null` at the end. */
  take(): Uint8Array | null {
    const received = this.#received ?? null;
    if (received !== null) this.#received = undefined;
    return received;
  }

  /** Puts bytes back that were taken. Not while another reader waits. */
  unread(data: Uint8Array): void {
    this.#received = data;
  }
}

/** Longest head in bytes, as of the network's listeners. */
const MAX_HEAD = 16 * 1024;
/** Time in milliseconds to the first byte of another request, and from there to the end of its head. */
const IDLE_TIMEOUT_MS = 60_000;
const HEAD_TIMEOUT_MS = 10_000;

/**
 * Waits for the next request on a connection. Resolves with its head, or the error in reading that, as a listener of the network does;
 * `undefined` if the client sends none.
 * @param idleTimeoutMs see {@link IDLE_TIMEOUT_MS}
 */
export async function nextRequest(stream: Duplex, input: ClientInput, idleTimeoutMs = IDLE_TIMEOUT_MS): Promise<Incoming | undefined> {
  const fail = (code: NetErrorCode, message: string) => ({ stream, error: new NetError(code, message, { remote: true }) });
  let deadline = performance.now() + idleTimeoutMs;
  let head: Buffer = Buffer.alloc(0);
  try {
    for (let seen = 0;; seen = head.length) {
      const isReady = await withTimeout(Math.max(0, deadline - performance.now()), input.ready().then(() => true));
      if (!isReady) return seen === 0 ? undefined : fail("head-timeout", "The head was not complete in time");
      const data = input.take();
      if (data === null) return seen === 0 ? undefined : fail("head-truncated", "The connection ended within a head");
      // empty lines before the request line are skipped (RFC 9112 §2.2), and begin no request
      head = seen === 0 ? withoutEmptyLines(data) : Buffer.concat([head, data]);
      if (seen === 0 && head.length > 0) deadline = performance.now() + HEAD_TIMEOUT_MS;
      const end = endOfHead(head, seen);
      if ((end < 0 ? head.length : end) > MAX_HEAD) return fail("head-too-large", `The head has more than ${MAX_HEAD} bytes`);
      if (end < 0) continue;
      if (end < head.length) input.unread(head.subarray(end));
      return { stream, head: head.toString("latin1", 0, end) };
    }
  } catch (error) {
    if (error instanceof NetError) return undefined; // the client has disconnected, or the stream was closed
    throw error;
  }
}

function withoutEmptyLines(data: Uint8Array): Buffer {
  const start = data.findIndex((byte) => byte !== 0x0d && byte !== 0x0a);
  return start < 0 ? Buffer.alloc(0) : Buffer.from(data.subarray(start));
}
