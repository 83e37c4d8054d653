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

interface Pending {
  readonly resolve: (value: unknown) => void;
  readonly reject: (error: NetError) => void;
}

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
    return this.#start(++this.#last, start);
  }

  /**
   * As {@link call}, cancelled by `signal`.
   * @throws {NetError} `cancelled`
   */
  cancellable<T>(signal: AbortSignal | undefined, start: (op: number, engine: Engine) => void): Promise<T> {
    const op = ++this.#last;
    const result = this.#start<T>(op, start);
    return signal === undefined ? result : this.#until(signal, op, result);
  }

  /** Starts an operation in two phases, each with a result. The second number cancels it. */
  callTwice<T, U>(
    signal: AbortSignal | undefined,
    start: (first: number, second: number, engine: Engine) => void,
  ): [Promise<T>, Promise<U>] {
    const [first, second] = [++this.#last, ++this.#last];
    const ended = this.#expect<U>(second);
    const started = this.#start<T>(first, (op, engine) => {
      try {
        start(op, second, engine);
      } catch (cause) {
        this.#take(second)?.resolve(undefined);
        throw cause;
      }
    });
    return [started, signal === undefined ? ended : this.#until(signal, second, ended)];
  }

  #start<T>(op: number, start: (op: number, engine: Engine) => void): Promise<T> {
    const result = this.#expect<T>(op);
    try {
      start(op, this.engine);
    } catch (cause) {
      // the addon throws for a value of the wrong type
      const message = `Cannot make the call: ${cause instanceof Error ? cause.message : cause}`;
      this.#take(op)?.reject(new NetError("invalid", message, { cause }));
    }
    return result;
  }

  async #until<T>(signal: AbortSignal, op: number, result: Promise<T>): Promise<T> {
    const cancel = () => this.engine.cancel(op);
    if (signal.aborted) cancel();
    signal.addEventListener("abort", cancel, { once: true });
    try {
      return await result;
    } finally {
      signal.removeEventListener("abort", cancel);
    }
  }

  #expect<T>(op: number): Promise<T> {
    const result = new Promise<unknown>((resolve, reject) => this.#pending.set(op, { resolve, reject }));
    if (this.#pending.size === 1) this.engine.setRef(true);
    return result as Promise<T>;
  }

  #settle(batch: unknown[], warn: (message: string) => void): void {
    for (let i = 0; i < batch.length; i += 3) {
      const op = batch[i] as number;
      const error = batch[i + 1] as RawError | undefined;
      if (op === WARNING) {
        warn(batch[i + 2] as string);
        continue;
      }
      const pending = this.#take(op);
      if (error) pending?.reject(toError(error));
      else pending?.resolve(batch[i + 2]);
    }
  }

  #take(op: number): Pending | undefined {
    const pending = this.#pending.get(op);
    this.#pending.delete(op);
    if (this.#pending.size === 0) this.engine.setRef(false);
    return pending;
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
