// Operations of the engine as promises: numbers them, settles them by batches, and turns raw errors into NetErrors.
import { NetError } from "../errors.ts";
import { printable } from "../printable.ts";
import type { Engine, EngineConstructor, RawError, RawResult } from "./engine.ts";

/** Options of an engine. */
export interface CallsOptions {
  readonly warn: (message: string) => void;
  readonly threads: number;
  readonly ownsProcess: boolean;
}

type Pending = PromiseWithResolvers<unknown>;

/** Longest error message, in characters: it may quote a peer. */
const MAX_MESSAGE = 1_000;
/** Operation number of warnings. */
const WARNING = 0;

export function toError([code, message, appCode, remote]: RawError): NetError {
  return new NetError(code, printable(inWords(message), MAX_MESSAGE), { appCode: appCode ?? undefined, remote });
}

/** Names of errors in messages of rustls, and what they mean. */
const TLS_WORDS: Readonly<Record<string, string>> = {
  CaUsedAsEndEntity: "it is a CA certificate (CA:TRUE)",
  UnsupportedCertVersion: "it is not X.509 version 3",
};
const TLS_TIMES =
  /verification time (\d+) \(UNIX\), but (certificate|CRL) is not valid (before|after) (\d+) \(\d+ seconds (?:in future|ago)\)/;

/** Replaces debug formats in a message of rustls: foreign errors as `Other(OtherError(…))`, and times as seconds since 1970. */
function inWords(message: string): string {
  return message
    .replace(/Other\(OtherError\((.*?)\)\)/, (_, inner: string) => TLS_WORDS[inner] ?? inner)
    .replace(
      TLS_TIMES,
      (_, now: string, what: string, when: string, then: string) =>
        `the clock of this machine is at ${isoOf(now)}, and the ${what} is not valid ${when} ${isoOf(then)}`,
    );
}

function isoOf(seconds: string): string {
  const date = new Date(Number(seconds) * 1000);
  return Number.isNaN(date.getTime()) ? seconds : date.toISOString();
}

/** Wraps a callback of the program so that it never throws: the other operations of a batch must settle. */
export function isolated<T>(callback: (value: T) => void): (value: T) => void {
  return (value) => {
    try {
      callback(value);
    } catch { /* the callback reports its own errors */ }
  };
}

/** As `Promise.withResolvers`, which Node.js 20 lacks. */
function createPending(): Pending {
  let [resolve, reject]: [Pending["resolve"], Pending["reject"]] = [() => {}, () => {}];
  const promise = new Promise<unknown>((...functions) => [resolve, reject] = functions);
  return { promise, resolve, reject };
}

/** Pending operations of the engine, by number. */
export class Calls {
  readonly engine: Engine;
  readonly #pending = new Map<number, Pending>();
  #last = WARNING;

  /** @param warn receives warnings of the engine */
  constructor(engine: EngineConstructor, { warn, threads, ownsProcess }: CallsOptions) {
    const warnSafely = isolated(warn);
    this.engine = new engine((batch) => this.#settle(batch, warnSafely), threads, ownsProcess);
  }

  /** Starts an operation and returns its result. */
  call<T>(start: (op: number, engine: Engine) => void): Promise<T> {
    return this.#call(start).promise as Promise<T>;
  }

  /**
   * As {@link call}, cancelled by `signal`.
   * @throws {NetError} `cancelled`
   */
  cancellable<T>(signal: AbortSignal | undefined, start: (op: number, engine: Engine) => void): Promise<T> {
    return signal === undefined ? this.call(start) : this.#callUntil(signal, start);
  }

  /** Starts an operation in two phases, each with a result. The second number cancels it. */
  callTwice<T, U>(
    signal: AbortSignal | undefined,
    start: (first: number, second: number, engine: Engine) => void,
  ): [Promise<T>, Promise<U>] {
    const second = this.#call(() => {});
    const first = this.#call((op, engine) => {
      try {
        start(op, second.op, engine);
      } catch (cause) {
        this.#settle([second.op, undefined, undefined], () => {});
        throw cause;
      }
    });
    return [first.promise as Promise<T>, (signal === undefined ? second.promise : this.#until<U>(signal, second)) as Promise<U>];
  }

  #callUntil<T>(signal: AbortSignal, start: (op: number, engine: Engine) => void): Promise<T> {
    return this.#until(signal, this.#call(start));
  }

  async #until<T>(signal: AbortSignal, { op, promise }: { op: number; promise: Promise<unknown> }): Promise<T> {
    const cancel = () => this.engine.cancel(op);
    if (signal.aborted) cancel();
    signal.addEventListener("abort", cancel, { once: true });
    try {
      return await promise as T;
    } finally {
      signal.removeEventListener("abort", cancel);
    }
  }

  #call(start: (op: number, engine: Engine) => void): { op: number; promise: Promise<unknown> } {
    const op = ++this.#last;
    const pending = createPending();
    try {
      start(op, this.engine);
      this.#pending.set(op, pending);
      if (this.#pending.size === 1) this.engine.setRef(true);
    } catch (cause) {
      // the addon throws for a value of the wrong type
      pending.reject(new NetError("invalid", `Cannot make the call: ${cause instanceof Error ? cause.message : cause}`, { cause }));
    }
    return { op, promise: pending.promise };
  }

  #settle(batch: unknown[], warn: (message: string) => void): void {
    for (let i = 0; i < batch.length; i += 3) {
      const op = batch[i] as number;
      const error = batch[i + 1] as RawError | undefined;
      if (op === WARNING) {
        warn(batch[i + 2] as string);
        continue;
      }
      const pending = this.#pending.get(op);
      this.#pending.delete(op);
      if (error) pending?.reject(toError(error));
      else pending?.resolve(batch[i + 2]);
    }
    if (this.#pending.size === 0) this.engine.setRef(false);
  }
}

/** Rejects an aborted signal before the operation starts; cancelled later, the operation could already be complete. */
export function checkSignal(signal: AbortSignal | undefined): void {
  if (signal?.aborted) throw new NetError("cancelled", "The call was cancelled before it started");
}

export function check(result: RawResult): void {
  if (result) throw new NetError(result[0], inWords(result[1]));
}

/** The engine would truncate the port to 16 bits. */
export function checkPort(port: number): void {
  if (!Number.isInteger(port) || port < 1 || port > 65_535) {
    throw new NetError("invalid", `Cannot connect to port ${port}: it is not 1 to 65535`);
  }
}
