// Reaching a limit: the error for the peer, the count for metrics, and a log line at most once a minute.
import type { LogFields, Logger } from "../log/logger.ts";
import { TunnelError } from "../tunnel/errors.ts";

/**
 * Name of a limit in metrics and log: its option without `limits.`; `memory` is `limits.memory-watermark`, and `ports` are the system's local
 * ports, and `policy` the limits of `auth.policy-file`.
 */
export type LimitName =
  | "connections"
  | "connections-per-address"
  | "pending-requests"
  | "pending-requests-per-address"
  | "tunnels"
  | "tunnels-per-agent"
  | "tunnels-per-client"
  | "udp-flows-per-client"
  | "policy"
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

/** A configured limit is reached. */
export class LimitReached extends TunnelError {
  override readonly name = "LimitReached";

  /** @param retryAfterMs milliseconds after which a retry makes sense. Default 1000. */
  constructor(readonly limit: LimitName, message: string, retryAfterMs = 1_000) {
    super("connection_limit_reached", message, { retryAfterMs });
  }
}

/** A tunnel has been idle for longer than `limits.tunnel-idle-timeout`. */
export class TunnelIdle extends TunnelError {
  override readonly name = "TunnelIdle";

  constructor(message: string) {
    super("http_response_timeout", message);
  }
}

/** Minimum interval between two log lines of one limit, in milliseconds. */
const LOG_INTERVAL_MS = 60_000;

export interface LimitReporterOptions {
  log: Logger;
  /** Adds `times` to the limit's metric. */
  count?: (limit: LimitName, times: number) => void;
  /** Monotonic clock in milliseconds. Default `performance.now`. */
  now?: () => number;
}

/** Counts and logs reached limits. */
export class LimitReporter {
  readonly #options: LimitReporterOptions;
  readonly #now: () => number;
  readonly #logged = new Map<LimitName, { at: number; suppressed: number }>();

  constructor(options: LimitReporterOptions) {
    this.#options = options;
    this.#now = options.now ?? (() => performance.now());
  }

  /** Records that a limit was reached `times` times; `fields` describe the last time. */
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

  /** Records that no local port is left for a connection to `destination`. */
  noPort(destination: string): void {
    this.record("ports", { destination, remedy: "widen net.ipv4.ip_local_port_range, or set net.ipv4.tcp_tw_reuse=1" });
  }

  /** Logs suppressed counts whose interval is over, or all of them at the end. Called regularly. */
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

/** Returns `Infinity` for 0, which means no limit in options. */
export function unlimitedIfZero(limit: number): number {
  return limit === 0 ? Infinity : limit;
}
