// Streams of the network in memory: two bounded pipes each, the heads read from them, and the copy between two of them. It knows neither
// addresses nor connections.
import { Buffer } from "node:buffer";
import { NetError } from "../../shared/net/errors.ts";
import { type MemoryRate, pace } from "./rate.ts";
import type { Preamble } from "../../shared/net/listener.ts";
import type { Relayed, SpliceOptions, SpliceResult } from "../../shared/net/relay.ts";
import type { Duplex } from "../../shared/net/stream.ts";

/** The native engine's code of resets without a code. */
export const RESET = 1;
const LARGEST_READ = 64 * 1024;
const FLUSH_MS = 10_000;
const LINGER_MS = 2_000;
const LINGER_BYTES = 1024 * 1024;
/** As the native engine: how long a copy goes on after one end was reset, or takes no more. */
const GRACE_MS = 500;

export function closed(what = "stream"): NetError {
  return new NetError("closed", `Cannot use the ${what}: it is closed`);
}

function resetBy(appCode?: number): NetError {
  return new NetError("reset", `The stream was reset${appCode === undefined ? "" : ` with code ${appCode}`}`, { appCode, remote: true });
}

function stoppedBy(appCode: number): NetError {
  return new NetError("stopped", `The peer stopped reading this stream with code ${appCode}`, { appCode, remote: true });
}

interface Waiting<T> {
  resolve(value: T): void;
  reject(error: NetError): void;
}

/** A peer that closed its stream, and did not abort it. */
function isClose({ code, appCode }: NetError): boolean {
  return code === "stopped" && appCode === 0;
}

/** Why a pipe broke, as each side is told. */
interface PipeFault {
  readonly read: NetError;
  readonly write: NetError;
}

/** What a pipe tells its connection. */
export interface PipeEvents {
  /** Something was written to it, or it ended: a peer of a session hears of a stream only then. */
  onStart?: () => void;
  /** Nothing more goes through it. */
  onEnd?: () => void;
}

/** One direction. Calls on each side act in the order they were made; no more than `window` bytes are taken before they are read. */
export class Pipe {
  #onFault?: (fault: PipeFault) => void;
  readonly #window: number;
  readonly #events: PipeEvents;
  #chunks: Uint8Array[] = [];
  #size = 0;
  #reads: Waiting<Uint8Array | null>[] = [];
  #writes: (Waiting<void> & { data: Uint8Array })[] = [];
  #finishing = false;
  /** Bytes that are still to be thrown away before a write breaks it. */
  #toDiscard?: number;
  /** What each side is told from now on. */
  #fault?: PipeFault;
  #started = false;
  #ended = false;

  constructor(window: number, events: PipeEvents = {}) {
    this.#window = window;
    this.#events = events;
  }

  write(data: Uint8Array): Promise<void> {
    return new Promise((resolve, reject) => {
      if (this.#toDiscard === 0) this.fail(closed(), resetBy());
      if (this.#fault) return reject(this.#fault.write);
      if (this.#finishing) return reject(closed());
      this.#writes.push({ resolve, reject, data: new Uint8Array(data) });
      if (data.length > 0) this.#start();
      this.#move();
    });
  }

  finish(): void {
    if (this.#fault) return;
    this.#finishing = true;
    this.#start();
    this.#move();
  }

  read(): Promise<Uint8Array | null> {
    return new Promise((resolve, reject) => {
      if (this.#fault) return reject(this.#fault.read);
      this.#reads.push({ resolve, reject });
      this.#move();
    });
  }

  /** Puts back what was read too much. */
  unread(data: Uint8Array): void {
    if (data.length === 0) return;
    this.#chunks.unshift(data);
    this.#size += data.length;
  }

  /** Ends the reads under way; what comes stays where it is. */
  cancelReads(): void {
    for (const read of this.#reads.splice(0)) read.reject(closed());
  }

  /** There will be no more reads. A number of bytes is dropped, then a write breaks it. */
  discard(most: number): void {
    this.cancelReads();
    this.#toDiscard = most;
    this.#move();
  }

  /** Breaks it, unless it has ended. What was not read is gone. */
  fail(read: NetError, write: NetError): void {
    if (this.#fault || this.#ended) return;
    this.#fault = { read, write };
    this.#chunks = [];
    this.#size = 0;
    for (const waiting of this.#reads.splice(0)) waiting.reject(read);
    for (const waiting of this.#writes.splice(0)) waiting.reject(write);
    this.#start();
    this.#onFault?.(this.#fault);
    this.#end();
  }

  /** `tell` is called when it breaks, or now where it is broken; until it is called without one. */
  watch(tell?: (fault: PipeFault) => void): void {
    this.#onFault = tell;
    if (this.#fault) tell?.(this.#fault);
  }

  get isFlushed(): boolean {
    return this.#writes.length === 0;
  }

  get hasEnded(): boolean {
    return this.#ended;
  }

  #move(): void {
    for (;;) {
      this.#takeWrites();
      if (this.#size === 0) break;
      const read = this.#reads.shift();
      if (read) read.resolve(this.#takeChunk(LARGEST_READ));
      else if (this.#toDiscard === undefined) return;
      else this.#toDiscard = Math.max(0, this.#toDiscard - this.#takeChunk(Infinity).length);
    }
    if (!this.#finishing || this.#writes.length > 0) return;
    for (const read of this.#reads.splice(0)) read.resolve(null);
    this.#end();
  }

  #takeWrites(): void {
    for (let next; (next = this.#writes[0]);) {
      const taken = next.data.subarray(0, Math.max(0, this.#window - this.#size));
      if (taken.length > 0) this.#chunks.push(taken);
      this.#size += taken.length;
      next.data = next.data.subarray(taken.length);
      if (next.data.length > 0) return;
      this.#writes.shift();
      next.resolve();
    }
  }

  #takeChunk(most: number): Uint8Array {
    const parts = [];
    let size = 0;
    for (let chunk; size < most && (chunk = this.#chunks.shift());) {
      const part = chunk.subarray(0, most - size);
      if (part.length < chunk.length) this.#chunks.unshift(chunk.subarray(part.length));
      parts.push(part);
      size += part.length;
    }
    this.#size -= size;
    return parts.length === 1 ? parts[0]! : new Uint8Array(Buffer.concat(parts));
  }

  #start(): void {
    if (this.#started) return;
    this.#started = true;
    this.#events.onStart?.();
  }

  #end(): void {
    if (this.#ended) return;
    this.#ended = true;
    this.#events.onEnd?.();
  }
}

/** One end of a stream. */
export class MemoryDuplex implements Duplex {
  /** `given`: a copy has it, and it can still be ended. */
  #state: "open" | "given" | "closed" = "open";
  #readable = true;
  #stopCopy: (code: number) => void = () => {};
  /** What the copy that has it has copied. */
  relayed?: () => Relayed;

  constructor(readonly kind: "tcp" | "session", readonly remote: string, readonly input: Pipe, readonly output: Pipe) {}

  async read(): Promise<Uint8Array | null> {
    if (this.#state !== "open" || !this.#readable) throw closed();
    return await this.input.read();
  }

  unread(data: Uint8Array): void {
    this.checkOpen();
    this.input.unread(new Uint8Array(data));
  }

  async write(data: Uint8Array): Promise<void> {
    if (this.#state !== "open") throw closed();
    await this.output.write(data);
  }

  async whenReset(signal: AbortSignal): Promise<NetError> {
    this.checkOpen();
    const reset = Promise.withResolvers<NetError>();
    const stop = () => reset.reject(new NetError("cancelled", "The call was cancelled"));
    if (signal.aborted) stop();
    signal.addEventListener("abort", stop, { once: true });
    this.input.watch(({ read }) => reset.resolve(read));
    this.output.watch(({ write }) => reset.resolve(write)); // where the peer had finished its direction before
    try {
      return await reset.promise;
    } finally {
      signal.removeEventListener("abort", stop);
      if (this.#state !== "given") { for (const pipe of [this.input, this.output]) pipe.watch(); }
    }
  }

  closeWrite(): void {
    if (this.#state === "open") this.output.finish();
  }

  reset(code: number): void {
    if (this.#state === "given") this.#stopCopy(code);
    else if (this.#state === "closed") return;
    else if (this.kind === "tcp") this.abort(code);
    else this.output.fail(resetBy(code), closed());
  }

  stopRead(code: number): void {
    if (this.#state !== "open") return;
    this.#readable = false;
    if (this.kind === "session") this.input.fail(closed(), stoppedBy(code));
    else this.input.cancelReads(); // the peer notices when its window is full
  }

  close(): void {
    const before = this.#state;
    this.#state = "closed";
    if (before === "given") this.#stopCopy(0);
    if (before !== "open") return;
    this.output.finish();
    if (this.kind === "session") this.input.fail(closed(), stoppedBy(0));
    else this.input.discard(LINGER_BYTES);
    if (!this.output.isFlushed) later(FLUSH_MS, () => this.abort(0));
    else if (this.kind === "tcp" && !this.input.hasEnded) later(LINGER_MS, () => this.input.discard(0));
  }

  /** Breaks both directions at once: RST, or RESET_STREAM and STOP_SENDING. */
  abort(code: number): void {
    const tcp = this.kind === "tcp";
    this.output.fail(resetBy(tcp ? undefined : code), closed());
    this.input.fail(closed(), tcp ? resetBy() : stoppedBy(code));
  }

  /** Its connection is no more: what this side is told, and what the other. */
  lose(here: NetError, there: NetError): void {
    this.output.fail(there, here);
    this.input.fail(here, there);
  }

  /** Reading is over, writing is not: for a head that did not come. */
  stopReading(): void {
    this.#readable = false;
    this.input.cancelReads();
  }

  /** @throws {NetError} `closed` */
  checkOpen(): void {
    if (this.#state !== "open") throw closed();
  }

  /**
   * Hands it to a copy, which `stop` ends.
   * @throws {NetError} `closed`
   */
  give(stop: (code: number) => void): void {
    this.checkOpen();
    this.#state = "given";
    this.#stopCopy = stop;
  }
}

/** Never keeps the program alive. */
function later(ms: number, action: () => void): void {
  const timer = setTimeout(action, ms);
  if (typeof timer === "object") timer.unref();
}

/**
 * Reads a head up to and including its blank line, LF followed by LF or CRLF; what follows stays in the stream. `null`: it ended, or was
 * reset, before a byte of it.
 * @throws {NetError} `head-too-large`, `head-malformed`, `head-truncated`, `reset`, `closed`
 */
export async function readHead(stream: MemoryDuplex, limit: number): Promise<string | null> {
  let head = Buffer.alloc(0);
  let skipped = 0;
  for (let scanned = 0, afterNewline = false;;) {
    let data;
    try {
      data = await stream.read();
    } catch (error) {
      if (head.length === 0 && (error as NetError).code === "reset") return null;
      throw error;
    }
    if (data === null && head.length === 0) return null;
    if (data === null) throw new NetError("head-truncated", "The stream ended within the head", { remote: true });
    // RFC 9112 §2.2: empty lines before a request line are ignored
    const start = head.length > 0 ? 0 : data.findIndex((byte) => byte !== CR && byte !== LF);
    skipped += start < 0 ? data.length : start;
    head = Buffer.concat([head, start < 0 ? new Uint8Array() : data.subarray(start)]);
    for (; scanned < head.length; scanned++) {
      const byte = head[scanned]!;
      if ((byte < 0x20 && byte !== CR && byte !== LF && byte !== TAB) || byte === 0x7f) {
        const character = `Control character 0x${byte.toString(16).padStart(2, "0")} in a head`;
        throw new NetError("head-malformed", scanned === 0 ? OTHER_PROTOCOLS[byte] ?? character : character, { remote: true });
      }
      if (byte === LF && afterNewline && skipped + scanned < limit) {
        stream.input.unread(new Uint8Array(head.subarray(scanned + 1)));
        return head.toString("latin1", 0, scanned + 1);
      }
      if (byte !== CR) afterNewline = byte === LF;
    }
    if (skipped + head.length > limit || skipped >= limit) throw new NetError("head-too-large", "The head is too large", { remote: true });
  }
}

/**
 * Reads what a listener with this preamble reads; `null`: the client has gone without a byte.
 * @param socks gets the messages of a SOCKS client as they arrive
 * @throws {NetError}
 */
export async function readPreamble(
  stream: MemoryDuplex,
  preamble: Preamble = "http",
  limit: number,
  socks: number[],
): Promise<string | null> {
  if (preamble === "http" || preamble === "http-or-http2") return await readHead(stream, limit);
  const first = await stream.read();
  if (first === null) return null;
  stream.input.unread(first);
  if (first[0] !== 5 && preamble === "http-or-socks5") return await readHead(stream, limit);
  if (first[0] !== 5) throw new NetError("head-malformed", "This is not SOCKS 5", { remote: true });
  /** Reads until `socks` has `count` bytes. */
  const need = async (count: number) => {
    while (socks.length < count) {
      const data = await stream.read();
      if (data === null) throw new NetError("head-truncated", "The stream ended within a message", { remote: true });
      const taken = count - socks.length;
      socks.push(...data.subarray(0, taken));
      stream.input.unread(data.subarray(taken));
    }
  };
  await need(2);
  const methods = 2 + socks[1]!;
  await need(methods);
  if (socks.slice(2).includes(2)) {
    await stream.write(Uint8Array.of(5, 2));
    await need(methods + 1);
    if (socks[methods] === 1) {
      await need(methods + 2);
      const password = methods + 2 + socks[methods + 1]!;
      await need(password + 1);
      await need(password + 1 + socks[password]!);
    }
  }
  return String.fromCharCode(...socks);
}

/** What the first byte tells that comes from a client with another protocol. */
const OTHER_PROTOCOLS: Readonly<Record<number, string>> = {
  0x04: "This is SOCKS 4: use SOCKS 5",
  0x05: "This is SOCKS 5, but this port accepts only HTTP",
  0x16: "This is TLS, but this port accepts only plain HTTP: use a proxy URL that begins with http://",
};

const [TAB, LF, CR] = [0x09, 0x0a, 0x0d];

type Side = "a" | "b";

interface Failure {
  error: NetError;
  side?: Side;
}

/** See `Net.splice`. */
export async function splice(
  a: MemoryDuplex,
  b: MemoryDuplex,
  options: SpliceOptions,
  rates: readonly MemoryRate[] = [],
): Promise<SpliceResult> {
  const { initialDataToA, idleTimeoutMs = 0, signal } = options;
  const streams = { a, b };
  const counts = { aToB: 0, bToA: 0 };
  /** Directions that have ended, and those that wait for their reader, by the side that they come from. */
  const done = { a: false, b: false };
  const writing = { a: false, b: false };
  let failure: Failure | undefined;
  /** A side that was reset, or takes no more: the copy ends soon. */
  let left: Failure | undefined;
  /** A side that has closed its stream. */
  let closing: Side | undefined;
  let code: number | undefined;
  let graceTimer: ReturnType<typeof setTimeout> | undefined;
  let copiedAt = Date.now();
  /** Directions whose turn has not come. */
  let waiting = 0;
  let isOver = false;
  let abort = () => {};
  const aborted = new Promise<void>((resolve) => abort = resolve).then(() => void (isOver = true));
  const fail = (error: NetError, side?: Side) => {
    failure ??= { error, side };
    abort();
  };
  const stateOf = (from: Side) => done[from] ? "ended" : writing[from] ? "blocked" : "open";
  const cancel = (given?: number) => {
    code ??= given;
    fail(new NetError("cancelled", "The call was cancelled"));
  };
  a.give(cancel);
  b.give(cancel);
  a.relayed = () => ({ ...counts, toB: stateOf("a"), toA: stateOf("b") });

  const beginGrace = () =>
    graceTimer ??= setTimeout(() => {
      failure ??= left;
      abort();
    }, GRACE_MS);
  /** A side that was reset, and whose direction is over, has neither something to say nor to hear. */
  const checkGone = (side: Side) => {
    if (done[side] && left?.side === side) fail(left.error, side);
    else if (left || (done[side] && closing === side)) beginGrace();
  };
  for (const side of ["a", "b"] as const) {
    const { input, output } = streams[side];
    const other = side === "a" ? "b" : "a";
    output.watch(({ write }) => {
      if (done[other]) return;
      if (isClose(write)) closing ??= side;
      else left ??= { error: write, side };
      checkGone(side);
    });
    input.watch(({ read }) => {
      left ??= { error: read, side };
      beginGrace();
    });
  }

  const pump = async (from: Side, count: "aToB" | "bToA", prologue: Uint8Array): Promise<void> => {
    const to = from === "a" ? "b" : "a";
    const { input } = streams[from];
    const { output } = streams[to];
    for (let data: Uint8Array | null = prologue;;) {
      if (data !== prologue && rates.length > 0) {
        waiting++;
        await pace(rates, data.length);
        waiting--;
        if (isOver) return;
      }
      try {
        writing[from] = true;
        await output.write(data);
        writing[from] = false;
      } catch (cause) {
        const error = cause as NetError;
        done[from] = true;
        input.watch();
        input.fail(closed(), stoppedBy(isClose(error) ? 0 : RESET));
        // what still came for a peer that had closed its stream is nothing that it misses
        if (isClose(error) && done[to] && !failure) return abort();
        failure ??= { error, side: to };
        beginGrace();
        return;
      }
      if (data !== prologue) counts[count] += data.length;
      copiedAt = Date.now();
      try {
        data = await input.read();
      } catch (error) {
        return fail(error as NetError, from);
      }
      if (data !== null) continue;
      output.finish();
      done[from] = true;
      return checkGone(from);
    }
  };

  const onAbort = () => cancel();
  if (signal?.aborted) onAbort();
  signal?.addEventListener("abort", onAbort, { once: true });
  const checkIdle = () => {
    if (waiting === 0 && Date.now() - copiedAt >= idleTimeoutMs) {
      fail(new NetError("timed-out", `No data was relayed for ${idleTimeoutMs} ms`));
    }
  };
  const idleTimer = idleTimeoutMs > 0 ? setInterval(checkIdle, Math.max(1, idleTimeoutMs / 8)) : undefined;
  const copied = Promise.all([pump("a", "aToB", new Uint8Array()), pump("b", "bToA", initialDataToA ?? new Uint8Array())]);
  await Promise.race([copied, aborted]);
  clearTimeout(graceTimer);
  clearInterval(idleTimer);
  signal?.removeEventListener("abort", onAbort);
  a.relayed = undefined;
  for (const { input, output } of [a, b]) {
    input.watch();
    output.watch();
  }
  for (const stream of failure ? [a, b] : []) stream.abort(code ?? failure?.error.appCode ?? RESET);
  // closed by its peer: what it was sent is still its own
  for (const side of ["a", "b"] as const) {
    if (!failure && !done[side]) streams[side].input.fail(closed(), streams[side].kind === "tcp" ? resetBy() : stoppedBy(0));
  }
  return { ...counts, error: failure?.error, errorSide: failure?.side };
}
