// Streams, relays between them, and rates. Where a stream comes from is not known here.
import { NetError } from "../errors.ts";
import type { Incoming, Preamble } from "../listener.ts";
import type { Rate, Relayed, SpliceOptions, SpliceResult } from "../relay.ts";
import type { Duplex } from "../stream.ts";
import type { Http2Connection } from "../tcp.ts";
import type { FlowResult } from "../udp.ts";
import { type Calls, checkSignal, toError } from "./calls.ts";
import type { Engine, RawError, RawFlowResult, RawSpliceResult } from "./engine.ts";

export class NativeDuplex implements Duplex {
  readonly #calls: Calls;
  readonly #id: number;
  /** `given`: a relay owns the stream, which can still be closed. */
  #state: "open" | "given" | "closed" = "open";

  constructor(calls: Calls, id: number, readonly remote: string) {
    this.#calls = calls;
    this.#id = id;
  }

  /** The handle. */
  get id(): number {
    return this.#id;
  }

  async read(): Promise<Uint8Array | null> {
    this.#checkOpen();
    return await this.#calls.call<Uint8Array | null>((op, engine) => engine.read(op, this.#id));
  }

  unread(data: Uint8Array): void {
    this.#checkOpen();
    if (data.length > 0) this.#calls.engine.unread(this.#id, data);
  }

  async write(data: Uint8Array): Promise<void> {
    this.#checkOpen();
    await this.#calls.call((op, engine) => engine.write(op, this.#id, data));
  }

  async whenReset(signal: AbortSignal): Promise<NetError> {
    checkSignal(signal);
    this.#checkOpen();
    return toError(await this.#calls.cancellable<RawError>(signal, (op, engine) => engine.whenReset(op, this.#id)));
  }

  closeWrite(): void {
    if (this.#state === "open") this.#calls.engine.closeWrite(this.#id);
  }

  reset(code: number): void {
    if (this.#state !== "closed") this.#calls.engine.reset(this.#id, code);
  }

  stopRead(code: number): void {
    if (this.#state !== "closed") this.#calls.engine.stopRead(this.#id, code);
  }

  close(): void {
    if (this.#state === "closed") return;
    this.#state = "closed";
    this.#calls.engine.closeStream(this.#id);
  }

  /**
   * Transfers ownership to a relay and returns the handle.
   * @throws {NetError} `closed`
   */
  give(): number {
    this.#checkOpen();
    this.#state = "given";
    return this.#id;
  }

  /** Restores the ownership when the relay has not started. */
  takeBack(): void {
    if (this.#state === "given") this.#state = "open";
  }

  #checkOpen(): void {
    if (this.#state !== "open") throw new NetError("closed", "Cannot use the stream: it is closed");
  }
}

export class NativeHttp2Connection implements Http2Connection {
  readonly #calls: Calls;
  readonly #id: number;

  constructor(calls: Calls, id: number, readonly remote: string) {
    this.#calls = calls;
    this.#id = id;
  }

  async openStream(): Promise<Duplex> {
    return new NativeDuplex(this.#calls, await this.#calls.call<number>((op, engine) => engine.openHttp2Stream(op, this.#id)), this.remote);
  }

  release(): void {
    this.#calls.engine.releaseHttp2(this.#id);
  }
}

/** Information about a client from TLS and HTTP/2. */
type RawPeer = [serverName: string | undefined, certificate: Uint8Array | undefined, isHttp2: boolean];

/** A flat list of six values each: stream, remote, local, head or server name, error, and what is known of the client. */
export type IncomingBatch = [number, string, string | undefined, RawError | undefined, RawPeer | undefined][number][];

export function toIncoming(calls: Calls, batch: IncomingBatch | null, preamble: Preamble = "http"): Incoming[] | null {
  if (batch === null) return null;
  const all: Incoming[] = [];
  for (let i = 0; i < batch.length; i += 6) {
    const text = batch[i + 3] as string | undefined;
    const error = batch[i + 4] as RawError | undefined;
    const peer = batch[i + 5] as RawPeer | undefined;
    const isHello = preamble === "client-hello";
    all.push({
      stream: new NativeDuplex(calls, batch[i] as number, batch[i + 1] as string),
      local: batch[i + 2] as string | undefined,
      head: isHello ? undefined : text,
      serverName: isHello ? text : peer?.[0],
      peerCertificate: peer?.[1],
      isHttp2: peer?.[2],
      error: error && toError(error),
    });
  }
  return all;
}

/**
 * Starts a relay of `a` that follows another operation. Returns that operation's result, the end of the relay, if the operation has started
 * one, and `a`, whose ownership is restored if the operation fails.
 * @throws {NetError} `invalid`, `closed`, and as the operation
 */
export async function beginSplice<T, R = RawSpliceResult>(
  calls: Calls,
  a: Duplex,
  { rates, signal }: SpliceOptions,
  start: (first: number, second: number, id: number, rates: number[] | undefined, engine: Engine) => void,
): Promise<[first: T, ended: Promise<R>, a: NativeDuplex]> {
  if (!(a instanceof NativeDuplex)) throw new NetError("invalid", "Cannot copy between streams of another network");
  const limits = numbersOf(rates);
  const id = a.give();
  const [first, ended] = calls.callTwice<T, R>(
    signal,
    (op, second, engine) => start(op, second, id, limits, engine),
  );
  try {
    return [await first, ended, a];
  } catch (cause) {
    a.takeBack();
    ended.catch(() => {}); // fails for the same reason
    throw cause;
  }
}

export function toSpliceResult([aToB, bToA, error, side, dropped]: RawSpliceResult): SpliceResult {
  const errorSide = side === undefined ? undefined : side === 0 ? "a" : "b";
  const result = { aToB, bToA, error: error && toError(error), errorSide } as const;
  return dropped ? { ...result, datagramsDropped: dropped } : result;
}

/** No stream has this handle. */
export const NO_STREAM = 0;
const STATES = ["open", "blocked", "ended"] as const;

/** @param numbers four for each stream, as {@link Engine.relayed} returns them */
export function toRelayed(numbers: Float64Array): (Relayed | undefined)[] {
  const all: (Relayed | undefined)[] = [];
  for (let i = 0; i < numbers.length; i += 4) {
    const [aToB, bToA, toB, toA] = numbers.subarray(i, i + 4) as unknown as [number, number, number, number];
    all.push(aToB < 0 ? undefined : { aToB, bToA, toB: STATES[toB]!, toA: STATES[toA]! });
  }
  return all;
}

export function toFlowResult([bytesToB, bytesToA, error, side, dropped, aToB, bToA]: RawFlowResult): FlowResult {
  return { ...toSpliceResult([bytesToB, bytesToA, error, side, 0]), datagrams: { aToB, bToA, dropped } };
}

/** @throws {NetError} `invalid` */
export function numbersOf(rates: readonly Rate[] | undefined): number[] | undefined {
  return rates && rates.length > 0 ? rates.map(numberOf) : undefined;
}

/** @throws {NetError} `invalid` */
function numberOf(rate: Rate): number {
  if (!(rate instanceof NativeRate)) throw new NetError("invalid", "Cannot copy at the rate of another network");
  return rate.id;
}

export class NativeRate implements Rate {
  readonly #calls: Calls;

  constructor(calls: Calls, readonly id: number) {
    this.#calls = calls;
  }

  async take(bytes: number): Promise<void> {
    await this.#calls.call((op, engine) => engine.takeFromRate(op, this.id, bytes));
  }

  close(): void {
    this.#calls.engine.closeRate(this.id);
  }
}
