// Merges the answers of all members of a cluster into one: sums of numbers, and the results of actions.
import type { ActionPart, Part } from "./cluster.ts";
import type { ActionResult, ClusterStatus, FailureCount, FailureHistory, Sample, Status } from "./types.ts";

/** The numbers of failures by cause, the most frequent first. */
export function sumFailures(counts: readonly (readonly FailureCount[] | undefined)[]): FailureCount[] {
  const sums = new Map<string, FailureCount>();
  for (const { kind, error, count } of counts.flatMap((each) => each ?? [])) {
    const key = `${kind} ${error}`;
    sums.set(key, { kind, error, count: (sums.get(key)?.count ?? 0) + count });
  }
  return [...sums.values()].sort((a, b) => b.count - a.count);
}

const MINUTE_MS = 60_000;

/** The failures of all members minute by minute, in the minutes of the one that was asked: those of others begin at other seconds. */
export function sumFailureHistories({ minutes }: FailureHistory, histories: readonly FailureHistory[]): FailureHistory {
  const first = Date.parse(minutes[0] ?? "");
  const sums = new Map<string, { kind: FailureCount["kind"]; error: FailureCount["error"]; counts: number[] }>();
  for (const history of histories) {
    const indices = history.minutes.map((minute) => Math.round((Date.parse(minute) - first) / MINUTE_MS));
    for (const { kind, error, counts } of history.causes) {
      const key = `${kind} ${error}`;
      const sum = sums.get(key) ?? { kind, error, counts: minutes.map(() => 0) };
      sums.set(key, sum);
      counts.forEach((count, i) => {
        const at = indices[i]!;
        if (sum.counts[at] !== undefined) sum.counts[at] += count;
      });
    }
  }
  const total = (counts: readonly number[]) => counts.reduce((sum, count) => sum + count, 0);
  return { minutes, causes: [...sums.values()].sort((a, b) => total(b.counts) - total(a.counts)) };
}

/** The status of the cluster, from those of its members and of the service that got the request. */
export function sumStatus(own: Status, parts: readonly Part<Status>[]): ClusterStatus {
  const samples = parts.flatMap(({ answer, value }) => value !== undefined && answer.service === "proxy" ? [value.now] : []);
  return {
    ...own,
    now: samples.length === 0 ? own.now : sumSamples(samples, own.now.at),
    failures: sumFailures(parts.map(({ value }) => value?.failures)),
    members: parts.map(({ answer, value }) => ({ ...answer, status: value })),
  };
}

const SUMMED = [
  "agents",
  "clients",
  "tunnels",
  "opened",
  "refused",
  "broken",
  "sent",
  "received",
  "sentRate",
  "receivedRate",
  "openRate",
  "memory",
] as const;

/** Sums. Times to the connection have no sum: they are those of the slowest member. */
function sumSamples(samples: readonly Sample[], at: string): Sample {
  const sums = Object.fromEntries(SUMMED.map((name) => [name, samples.reduce((sum, sample) => sum + sample[name], 0)]));
  const setups = samples.flatMap(({ setupMs }) => setupMs ?? []);
  const setupMs = setups.length === 0
    ? undefined
    : { p50: Math.max(...setups.map(({ p50 }) => p50)), p99: Math.max(...setups.map(({ p99 }) => p99)) };
  return { at, ...sums as Record<(typeof SUMMED)[number], number>, setupMs };
}

/** Age in milliseconds up to which a sample stands for a moment. */
const MAX_SAMPLE_AGE_MS = 5_000;

/** The samples of all members as one history. A moment for which a member that was there has none is left out, so that graphs show a gap. */
export function sumHistories(histories: readonly (readonly Sample[])[]): Sample[] {
  const times = histories.map((samples) => samples.map(({ at }) => Date.parse(at)));
  const longest = times.reduce((best, each, i) => each.length > times[best]!.length ? i : best, 0);
  const next = histories.map(() => 0);
  return (histories[longest] ?? []).flatMap(({ at }, k) => {
    const time = times[longest]![k]!;
    const found: Sample[] = [];
    for (const [i, samples] of histories.entries()) {
      while (next[i]! < samples.length && times[i]![next[i]!]! <= time) next[i]!++;
      const last = next[i]! - 1;
      if (last < 0) continue; // it had not started
      if (time - times[i]![last]! > MAX_SAMPLE_AGE_MS) return [];
      found.push(samples[last]!);
    }
    return [sumSamples(found, at)];
  });
}

/** The result of an action on members, or the error if none has done it. */
export function sumActions(parts: readonly ActionPart[]): ActionResult | { status: 400 | 404 | 409 | 503; error: string } {
  const members: ActionPart[] = [];
  const [done, failed]: [ActionPart[], ActionPart[]] = [[], []];
  for (const { status, error, affected, ...answer } of parts) {
    // members without the target have answered too, and so has a load balancer, which leaves such targets to proxies
    const isIdle = status === 404 || (status === 409 && answer.service === "lb");
    const part = isIdle ? { ...answer, affected: 0 } : { ...answer, affected, error };
    members.push(part);
    if (error === undefined || status === 404) done.push(part);
    else if (!isIdle) failed.push({ ...part, status });
  }
  const reasons = (failed.length > 0 ? failed : parts).map(({ member, error }) => `${member}: ${error}`).join("; ");
  if (done.length === 0) {
    const [first, second] = new Set((failed.length > 0 ? failed : parts).map(({ status }) => status));
    return { status: second === undefined && (first === 400 || first === 409) ? first : 503, error: reasons };
  }
  const affected = done.reduce((sum, { affected = 0 }) => sum + affected, 0);
  const missing = parts.find(({ status }) => status === 404)?.error;
  if (affected > 0 || missing === undefined) return { affected, members };
  return failed.length === 0
    ? { status: 404, error: missing }
    : { status: 503, error: `${missing} where members have answered; ${reasons}` };
}
