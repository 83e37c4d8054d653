// Notices that the program did not get to run for a while: a fault that keeps it busy, a machine that is too busy, or one that was asleep.
import type { Logger } from "./log.ts";

export interface WatchdogOptions {
  log: Logger;
  /** It stood still for so many milliseconds. */
  onStall?: (ms: number) => void;
  /** Milliseconds from any fixed point. Default `performance.now`. */
  now?: () => number;
}

/** How often it looks, in milliseconds. */
const LOOK_MS = 500;
/** What is later than that by so many milliseconds was a stall. */
const STALL_MS = 1_000;

/** Looks until it is closed. */
export function startWatchdog({ log, onStall, now = () => performance.now() }: WatchdogOptions): { close(): void } {
  let last = now();
  const timer = setInterval(() => {
    const late = now() - last - LOOK_MS;
    last = now();
    if (late < STALL_MS) return;
    log.warn("stood still", { ms: Math.round(late) });
    onStall?.(late);
  }, LOOK_MS);
  return { close: () => clearInterval(timer) };
}
