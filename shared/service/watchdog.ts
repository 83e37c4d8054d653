// Notices that the program did not get to run for a while: a fault that keeps it busy, a machine that is too busy, or one that was asleep.
// As long as it does run, whoever supervises it hears of that.
import type { Logger } from "../log/logger.ts";
import type { Supervisor } from "./supervisor.ts";

/** What stood still: the program as a whole, or only what moves the bytes of its tunnels. */
export type StallReport = "program" | "network";

export interface WatchdogOptions {
  log: Logger;
  /** For how many milliseconds the network has not got to run. Default: that is not known. */
  networkStalledMs?: () => number;
  /** It stood still for so many milliseconds. Of the network, for so many more since it was told last. */
  onStall?: (what: StallReport, ms: number) => void;
  /** Hears that the program runs, and what it is doing. */
  supervisor?: Supervisor;
  /** The program's state in one line, `undefined` while there is none. */
  status?: () => string | undefined;
  /** Milliseconds from any fixed point. Default `performance.now`. */
  now?: () => number;
}

/** How often it looks, in milliseconds. */
const LOOK_MS = 500;
/** What is later than that by so many milliseconds was a stall. */
const STALL_MS = 1_000;

/** Looks until it is closed. */
export function startWatchdog(options: WatchdogOptions): { close(): void } {
  const { log, onStall, supervisor, status, networkStalledMs = () => 0, now = () => performance.now() } = options;
  // as often as the supervisor has to hear of it, and once more
  const lookMs = Math.min(LOOK_MS, (supervisor?.watchdogMs ?? Infinity) / 4);
  let last = now();
  let networkMs = 0;
  const lookAtNetwork = (): void => {
    const ms = networkStalledMs();
    if (ms >= STALL_MS) {
      if (networkMs === 0) log.error("the network stands still", { ms: Math.round(ms) });
      // less than it was: it ran meanwhile, which another watchdog of the same network has seen
      onStall?.("network", ms < networkMs ? ms : ms - networkMs);
      networkMs = ms;
    } else if (networkMs > 0) {
      log.warn("the network runs again", { ms: Math.round(networkMs) });
      networkMs = 0;
    }
  };
  const look = (): void => {
    const lagMs = now() - last - lookMs;
    last = now();
    if (lagMs >= STALL_MS) {
      log.warn("stood still", { ms: Math.round(lagMs) });
      onStall?.("program", lagMs);
    }
    lookAtNetwork();
    if (!supervisor) return;
    const text = status?.();
    if (text !== undefined) supervisor.status(text);
    if (networkMs === 0) supervisor.alive();
  };
  const timer = setInterval(look, lookMs);
  return { close: () => clearInterval(timer) };
}
