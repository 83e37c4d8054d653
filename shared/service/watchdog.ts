// Detects that the event loop was blocked or the network engine stalled: by a fault, an overloaded machine, or suspension. While both run,
// the supervisor is notified.
import type { Logger } from "../log/logger.ts";
import type { Supervisor } from "./supervisor.ts";

/** What was stalled: the event loop, or only the network engine. */
export type StallReport = "program" | "network";

export interface WatchdogOptions {
  log: Logger;
  /** Milliseconds for which the network engine has been stalled. Default: always 0. */
  networkStalledMs?: () => number;
  /** Called with the milliseconds of a stall. For the network engine, with the milliseconds since the last call. */
  onStall?: (what: StallReport, ms: number) => void;
  /** Receives the regular signs of life and the status of the program. */
  supervisor?: Supervisor;
  /** The program's state in one line, `undefined` while there is none. */
  status?: () => string | undefined;
  /** Milliseconds from any fixed point. Default `performance.now`. */
  now?: () => number;
}

/** Interval between checks in milliseconds. */
const CHECK_INTERVAL_MS = 500;
/** A check that is late by this many milliseconds is a stall. */
const STALL_MS = 1_000;

/** Checks until it is closed. */
export function startWatchdog(options: WatchdogOptions): { close(): void } {
  const { log, onStall, supervisor, status, networkStalledMs = () => 0, now = () => performance.now() } = options;
  // often enough for the supervisor's timeout
  const intervalMs = Math.min(CHECK_INTERVAL_MS, (supervisor?.watchdogMs ?? Infinity) / 4);
  let last = now();
  let networkMs = 0;
  const checkNetwork = (): void => {
    const ms = networkStalledMs();
    if (ms >= STALL_MS) {
      if (networkMs === 0) log.error("network engine stalled", { ms: Math.round(ms) });
      // less than before: it ran in between, which only another watchdog of the same network saw
      onStall?.("network", ms < networkMs ? ms : ms - networkMs);
      networkMs = ms;
    } else if (networkMs > 0) {
      log.warn("network engine recovered", { ms: Math.round(networkMs) });
      networkMs = 0;
    }
  };
  const check = (): void => {
    const lagMs = now() - last - intervalMs;
    last = now();
    if (lagMs >= STALL_MS) {
      log.warn("event loop was blocked", { ms: Math.round(lagMs) });
      onStall?.("program", lagMs);
    }
    checkNetwork();
    if (!supervisor) return;
    const text = status?.();
    if (text !== undefined) supervisor.status(text);
    if (networkMs === 0) supervisor.alive();
  };
  const timer = setInterval(check, intervalMs);
  return { close: () => clearInterval(timer) };
}
