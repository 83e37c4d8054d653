// Decides whether a link carries bulk data over a short path without loss. There TLS is faster than QUIC and takes less processor time;
// elsewhere QUIC is the better one (docs/performance.md). Knows neither sessions nor timers.
import type { SessionStats } from "../../shared/net/session.ts";

/** Times are in milliseconds. */
export interface BulkLimits {
  /** Traffic is measured over this time. */
  readonly window: number;
  /** Bytes per second, both directions together, from which a link carries bulk data. */
  readonly bytesPerSecond: number;
  /** Round-trip time up to which a path is short, and from which it is not any more. */
  readonly shortMs: number;
  readonly longMs: number;
  /** Fraction of packets up to which none count as lost, and from which the path loses packets. */
  readonly leastLoss: number;
  readonly loss: number;
  /** Bulk data is over when there was none for this time. */
  readonly idle: number;
}

/** The limits differ each way, so that a path between them changes nothing. */
export const BULK: BulkLimits = {
  window: 5_000,
  bytesPerSecond: 100e6,
  shortMs: 5,
  longMs: 20,
  leastLoss: 0.000_1,
  loss: 0.001,
  idle: 600_000,
};

/** `bulk`: TLS is better; `over`: QUIC is better; `neither`: no reason to change. */
export type BulkVerdict = "bulk" | "over" | "neither";

/** Measures one session. */
export class BulkMeter {
  readonly #limits: BulkLimits;
  #start?: { readonly at: number; readonly moved: number; readonly sent: number; readonly lost: number };
  #bulkAt?: number;

  constructor(limits: BulkLimits = BULK) {
    this.#limits = limits;
  }

  /** The verdict on the time since the last one; `neither` while that is shorter than a window. `now` is in milliseconds. */
  measure({ rttMs, sentBytes, receivedBytes, sentPackets, lostPackets }: SessionStats, now: number): BulkVerdict {
    const { window, bytesPerSecond, shortMs, longMs, leastLoss, loss, idle } = this.#limits;
    this.#bulkAt ??= now;
    const start = this.#start;
    if (start && now - start.at < window) return "neither";
    const end = { at: now, moved: sentBytes + receivedBytes, sent: sentPackets, lost: lostPackets };
    this.#start = end;
    if (!start) return "neither";
    const lost = (end.lost - start.lost) / Math.max(1, end.sent - start.sent);
    const isBulk = (end.moved - start.moved) * 1_000 >= bytesPerSecond * (now - start.at);
    if (isBulk) this.#bulkAt = now;
    if (rttMs >= longMs || lost >= loss || now - this.#bulkAt >= idle) return "over";
    return isBulk && rttMs <= shortMs && lost <= leastLoss ? "bulk" : "neither";
  }
}
