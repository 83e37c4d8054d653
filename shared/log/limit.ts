// Rate limit for warnings that unauthenticated peers can cause: a fixed number is logged, the rest are counted.
import type { LogFields, Logger } from "./logger.ts";

/** Lines of one message per interval. */
const MAX_LINES = 10;
const INTERVAL_MS = 60_000;

export interface LogLimitOptions {
  log: Logger;
  /** Lines per message and interval. Default 10. */
  maxLines?: number;
  /** In milliseconds. Default 60000. */
  intervalMs?: number;
}

/** Logs at most `maxLines` lines of each message per interval, and at its end how many were suppressed. */
export class LogLimit {
  readonly #log: Logger;
  readonly #maxLines: number;
  readonly #intervalMs: number;
  readonly #counts = new Map<string, number>();
  #timer?: ReturnType<typeof setTimeout>;

  constructor({ log, maxLines = MAX_LINES, intervalMs = INTERVAL_MS }: LogLimitOptions) {
    this.#log = log;
    this.#maxLines = maxLines;
    this.#intervalMs = intervalMs;
  }

  /** Logs a warning. `message` must be one of a few constants. */
  warn(message: string, fields: LogFields): void {
    if (this.admits(message)) this.#log.warn(message, fields);
  }

  /** Whether one more line with this message may be logged; if not, it is counted as suppressed. */
  admits(message: string): boolean {
    this.#timer ??= setTimeout(() => this.#flush(), this.#intervalMs);
    const count = (this.#counts.get(message) ?? 0) + 1;
    this.#counts.set(message, count);
    return count <= this.#maxLines;
  }

  #flush(): void {
    this.#timer = undefined;
    for (const [message, count] of this.#counts) {
      if (count > this.#maxLines) this.#log.warn("log lines suppressed", { of: message, suppressed: count - this.#maxLines });
    }
    this.#counts.clear();
  }

  /** Logs how many lines were suppressed so far. */
  close(): void {
    clearTimeout(this.#timer);
    this.#flush();
  }
}
