// What happens when a limit is reached: the peer is told, it is counted, and once a minute it is logged. It does not know what is limited.
import { ProxyError } from "../http/status.ts";
import type { LogFields, Logger } from "../log/logger.ts";

/** Name of a limit, in the metrics and the log: that of its option, and `ports`, the local ports that the system has for connections. */
export type LimitName =
  | "connections"
  | "connections-per-address"
  | "pending-requests"
  | "pending-requests-per-address"
  | "tunnels"
  | "tunnels-per-agent"
  | "tunnels-per-client"
  | "tunnel-rate-per-address"
  | "tunnel-rate-per-client"
  | "tunnel-idle-timeout"
  | "tunnel-max-duration"
  | "auth-failures"
  | "memory"
  | "buffer-memory"
  | "ports"
  | "agents"
  | "agents-per-address"
  | "handshakes"
  | "handshakes-per-address";

/** A configured limit is reached: 503, and when to come again. */
export class LimitReached extends ProxyError {
  /** @param retryAfterS seconds, a whole number */
  constructor(readonly limit: LimitName, message: string, retryAfterS = 1) {
    super(503, "connection_limit_reached", message, [["Retry-After", String(retryAfterS)]]);
  }
}

/** A limit is logged once in so many milliseconds at most. */
const LOG_INTERVAL_MS = 60_000;

export interface LimitReporterOptions {
  log: Logger;
  /** Counts it, so many times. */
  count?: (limit: LimitName, times: number) => void;
  /** Milliseconds from any fixed point. Default `performance.now`. */
  now?: () => number;
}

/** Counts and logs limits that were reached. */
export class LimitReporter {
  readonly #options: LimitReporterOptions;
  readonly #now: () => number;
  readonly #logged = new Map<LimitName, { at: number; suppressed: number }>();

  constructor(options: LimitReporterOptions) {
    this.#options = options;
    this.#now = options.now ?? (() => performance.now());
  }

  /** `fields` tell of the latest of `times`: who, and what the limit is. */
  record(limit: LimitName, fields: LogFields = {}, times = 1): void {
    this.#options.count?.(limit, times);
    const now = this.#now();
    const last = this.#logged.get(limit);
    if (last && now - last.at < LOG_INTERVAL_MS) {
      last.suppressed += times;
      return;
    }
    this.#options.log.warn("limit reached", { limit, ...fields, suppressed: (last?.suppressed ?? 0) + times - 1 || undefined });
    this.#logged.set(limit, { at: now, suppressed: 0 });
  }

  /** The system has no local port left for one more connection to `destination`. */
  noPort(destination: string): void {
    this.record("ports", { destination, remedy: "widen net.ipv4.ip_local_port_range, or set net.ipv4.tcp_tw_reuse=1" });
  }

  /** Logs what was not logged and may be now, at the end all of it. To be called now and then. */
  flush(isEnd = false): void {
    const now = this.#now();
    for (const [limit, last] of this.#logged) {
      if (!isEnd && now - last.at < LOG_INTERVAL_MS) continue;
      this.#logged.delete(limit);
      if (last.suppressed === 0) continue;
      this.#options.log.warn("limit reached", { limit, suppressed: last.suppressed });
      this.#logged.set(limit, { at: now, suppressed: 0 });
    }
  }
}

/** 0 stands for no limit. */
export function unlimitedIfZero(limit: number): number {
  return limit === 0 ? Infinity : limit;
}
