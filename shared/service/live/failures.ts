// Requests that were refused and tunnels that broke: the last ones, and how many of each cause there were in the last hour.
import { printable } from "../../net/printable.ts";
import type { TunnelErrorType } from "../../tunnel/errors.ts";
import type { Failure, FailureCount } from "../api/types.ts";
import { Ring } from "./ring.ts";
import { isoTime, type LiveTunnel, userOf } from "./tunnel.ts";

/** Failures that are remembered. */
const MAX_FAILURES = 1_000;
/** Minutes that are counted. */
const MINUTES = 60;
const MINUTE_MS = 60_000;
/** Longest text of a peer in a report, in characters. */
const MAX_TEXT = 300;

interface Counted {
  readonly kind: Failure["kind"];
  readonly error: TunnelErrorType;
  /** By minute, as far as `latest` is one of the last hour. */
  readonly minutes: Uint32Array;
  latest: number;
}

export class Failures {
  readonly #last = new Ring<LiveTunnel>(MAX_FAILURES);
  /** By kind and error, which are a few fixed words. */
  readonly #counts = new Map<string, Counted>();

  /** @param tunnel it has ended with an error */
  record(tunnel: LiveTunnel, error: TunnelErrorType, now: number): void {
    this.#last.push(tunnel);
    const kind = kindOf(tunnel);
    const key = `${kind} ${error}`;
    let counted = this.#counts.get(key);
    if (!counted) this.#counts.set(key, counted = { kind, error, minutes: new Uint32Array(MINUTES), latest: minuteOf(now) });
    advance(counted, minuteOf(now));
    counted.minutes[counted.latest % MINUTES]!++;
  }

  /** Those of the last hour, the newest first. */
  last(now: number): LiveTunnel[] {
    return this.#last.toArray().reverse().filter(({ endedAt = 0 }) => now - endedAt < MINUTES * MINUTE_MS);
  }

  /** Of the last hour, the most frequent first. */
  counts(now: number): FailureCount[] {
    const counts: FailureCount[] = [];
    for (const counted of this.#counts.values()) {
      advance(counted, minuteOf(now));
      const count = counted.minutes.reduce((sum, minute) => sum + minute, 0);
      if (count > 0) counts.push({ kind: counted.kind, error: counted.error, count });
    }
    return counts.sort((a, b) => b.count - a.count);
  }
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

function kindOf({ connectedAt }: LiveTunnel): Failure["kind"] {
  return connectedAt === undefined ? "refused" : "broken";
}

export function describeFailure(tunnel: LiveTunnel): Failure {
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
