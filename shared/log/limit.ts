// Limits warnings that strangers can provoke: a fixed number is logged, the rest are counted.
import type { LogFields, Logger } from "./logger.ts";

/** Lines of one message in each interval. */
const MOST = 10;
const INTERVAL_MS = 60_000;

export interface LogLimitOptions {
  log: Logger;
  /** Default 10. */
  most?: number;
  /** Milliseconds. Default 60000. */
  intervalMs?: number;
}

/** Logs at most `most` lines of each message per interval, and at its end how many were left out. */
export class LogLimit {
  readonly #log: Logger;
  readonly #most: number;
  readonly #intervalMs: number;
  readonly #counts = new Map<string, number>();
  #timer?: ReturnType<typeof setTimeout>;

  constructor({ log, most = MOST, intervalMs = INTERVAL_MS }: LogLimitOptions) {
    this.#log = log;
    this.#most = most;
    this.#intervalMs = intervalMs;
  }

  /** `message` is one of a few fixed ones. */
  warn(message: string, fields: LogFields): void {
    if (this.admits(message)) this.#log.warn(message, fields);
  }

  /** Whether one more line with this message may be logged; it is counted where not. */
  admits(message: string): boolean {
    this.#timer ??= setTimeout(() => this.#flush(), this.#intervalMs);
    const count = (this.#counts.get(message) ?? 0) + 1;
    this.#counts.set(message, count);
    return count <= this.#most;
  }

  #flush(): void {
    this.#timer = undefined;
    for (const [message, count] of this.#counts) {
      if (count > this.#most) this.#log.warn("log lines left out", { of: message, suppressed: count - this.#most });
    }
    this.#counts.clear();
  }

  /** Logs what was left out so far. */
  close(): void {
    clearTimeout(this.#timer);
    this.#flush();
  }
}
