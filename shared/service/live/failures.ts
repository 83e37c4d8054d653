// Requests that were refused, tunnels that broke and agents that were refused: the last ones, and how many of each cause there were in the last
// hour.
import { printable } from "../../net/printable.ts";
import type { AgentRefusalError, Failure, FailureCount, FailureError, FailureHistory, FailureKind } from "../api/types.ts";
import { Ring } from "./ring.ts";
import { isoTime, type LiveTunnel, userOf } from "./tunnel.ts";

/** Failures that are remembered. */
const MAX_FAILURES = 1_000;
/** Minutes that are counted. */
const MINUTES = 60;
const MINUTE_MS = 60_000;
/** Longest text of a peer in a report, in characters. */
const MAX_TEXT = 300;

/** What has failed: a tunnel, or the connection of an agent. */
export type Failed = Omit<LiveTunnel, "proxyError"> & { readonly proxyError?: FailureError; readonly isAgent?: boolean };

/** An agent's connection that was refused. */
export interface AgentRefusal {
  /** Its address. */
  readonly remote: string;
  /** The transport of its connection. */
  readonly transport: string;
  readonly error: AgentRefusalError;
  readonly reason: string;
  /** The code with which the connection is closed. */
  readonly code: number;
  /** Claims of its token, if that is genuine. */
  readonly agent?: string;
  readonly token?: string;
}

interface Counted {
  readonly kind: FailureKind;
  readonly error: FailureError;
  /** By minute, as far as `latest` is one of the last hour. */
  readonly minutes: Uint32Array;
  latest: number;
}

export class Failures {
  readonly #last = new Ring<Failed>(MAX_FAILURES);
  /** Agents have a list of their own: connections without valid credentials must not displace what clients suffer from. */
  readonly #agents = new Ring<Failed>(MAX_FAILURES);
  /** By kind and error, which are a few fixed words. */
  readonly #counts = new Map<string, Counted>();

  /** @param failed it has ended with an error */
  record(failed: Failed, error: FailureError, now: number): void {
    (failed.isAgent ? this.#agents : this.#last).push(failed);
    const kind = kindOf(failed);
    const key = `${kind} ${error}`;
    let counted = this.#counts.get(key);
    if (!counted) this.#counts.set(key, counted = { kind, error, minutes: new Uint32Array(MINUTES), latest: minuteOf(now) });
    advance(counted, minuteOf(now));
    counted.minutes[counted.latest % MINUTES]!++;
  }

  /** Those of the last hour, the newest first. */
  last(now: number): Failed[] {
    const all = [...this.#last.toArray(), ...this.#agents.toArray()].filter(({ endedAt = 0 }) => now - endedAt < MINUTES * MINUTE_MS);
    return all.sort((a, b) => b.endedAt! - a.endedAt!);
  }

  /** The failures of the last hour by cause, the most frequent first. */
  counts(now: number): FailureCount[] {
    const counts: FailureCount[] = [];
    for (const counted of this.#counts.values()) {
      advance(counted, minuteOf(now));
      const count = sumOf(counted.minutes);
      if (count > 0) counts.push({ kind: counted.kind, error: counted.error, count });
    }
    return counts.sort((a, b) => b.count - a.count);
  }

  /** The failures of the last hour by cause and minute. */
  history(now: number): FailureHistory {
    const minute = minuteOf(now);
    const minutes = Array.from({ length: MINUTES }, (_, i) => minute - MINUTES + 1 + i);
    const causes = this.counts(now).map(({ kind, error }) => {
      const counted = this.#counts.get(`${kind} ${error}`)!;
      return { kind, error, counts: minutes.map((each) => each < 0 ? 0 : counted.minutes[each % MINUTES]!) };
    });
    // The clocks are compared once, so that the minutes are exactly one minute apart.
    const last = Date.parse(isoTime(minute * MINUTE_MS));
    return { minutes: minutes.map((each) => new Date(last - (minute - each) * MINUTE_MS).toISOString()), causes };
  }
}

function sumOf(counts: Uint32Array): number {
  return counts.reduce((sum, count) => sum + count, 0);
}

/** Forgets the minutes that are older than an hour. */
function advance(counted: Counted, minute: number): void {
  const passed = Math.min(MINUTES, minute - counted.latest);
  for (let i = 0; i < passed; i++) counted.minutes[(minute - i) % MINUTES] = 0;
  counted.latest = minute;
}

function minuteOf(now: number): number {
  return Math.floor(now / MINUTE_MS);
}

export function kindOf({ isAgent = false, connectedAt }: Failed): FailureKind {
  return isAgent ? "agent" : connectedAt === undefined ? "refused" : "broken";
}

export function describeFailure(tunnel: Failed): Failure {
  const { key, id, traceId, client, agent, token, destination, protocol = "http", status = 0, reason = "" } = tunnel;
  return {
    kind: kindOf(tunnel),
    at: isoTime(tunnel.endedAt ?? tunnel.startedAt),
    id: key,
    requestId: id,
    traceId,
    client,
    agent,
    tokenId: token,
    user: userOf(tunnel),
    destination: destination && printable(destination, MAX_TEXT),
    protocol,
    status,
    error: tunnel.proxyError ?? "proxy_internal_error",
    reason: printable(reason, MAX_TEXT),
  };
}
