// Describes sessions between agents and proxies for operators. Rates are those since the description before.
import type { SessionStats } from "../../net/session.ts";
import type { AgentState } from "../api/types.ts";

interface Measurement {
  readonly at: number;
  readonly sent: number;
  readonly received: number;
  readonly sentRate?: number;
  readonly receivedRate?: number;
}

/** Time in milliseconds between the measurements that a rate is computed of. */
const RATE_MS = 1_000;

export class SessionStates {
  readonly #measured = new WeakMap<object, Measurement>();

  /** @param now monotonic clock in milliseconds */
  describe(session: { stats(): SessionStats }, now: number): Partial<AgentState> {
    const { sentBytes: sent, receivedBytes: received, rttMs, sentPackets, lostPackets, congestionWindow } = session.stats();
    const before = this.#measured.get(session);
    const sinceMs = now - (before?.at ?? now);
    let measured = before;
    if (before === undefined || sinceMs >= RATE_MS) {
      const rate = (of: "sent" | "received", bytes: number) => before && Math.max(0, Math.round((bytes - before[of]) / sinceMs * 1_000)); // statistics are zero once it is closed
      measured = { at: now, sent, received, sentRate: rate("sent", sent), receivedRate: rate("received", received) };
      this.#measured.set(session, measured);
    }
    const { sentRate, receivedRate } = measured!;
    return { sent, received, sentRate, receivedRate, rttMs: Math.round(rttMs * 1_000) / 1_000, sentPackets, lostPackets, congestionWindow };
  }
}
