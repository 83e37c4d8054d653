// Goals: each a metric of a scenario, as a ratio to the Go version or to a baseline, or by itself.
import type { MetricSummary } from "./report.ts";

/** The name of the Go version in tables. */
export const GO = "Go version";
/** Names of the baselines. */
export const LIMIT = { tcp: "plain TCP", hops: "quinn + TCP", bare: "bare quinn" } as const;

export interface Target {
  readonly title: string;
  readonly scenario: string;
  readonly metric: string;
  /** The subject whose value is the divisor, or is subtracted. */
  readonly other?: string;
  readonly difference?: boolean;
  readonly least?: number;
  readonly most?: number;
}

const toGo = (title: string, scenario: string, metric: string, bound: { least: number } | { most: number }): Target => ({
  title,
  scenario,
  metric,
  other: GO,
  ...bound,
});

export const TARGETS: readonly Target[] = [
  toGo("MB/s, one tunnel down", "down", "mbPerSecond", { least: 2.6 }),
  toGo("CPU per GB, proxy + agent", "down", "cpuPerGB", { most: 0.35 }),
  toGo("MB/s, one tunnel up", "up", "mbPerSecond", { least: 2.6 }),
  toGo("MB/s, 8 tunnels down", "down8", "mbPerSecond", { least: 2.6 }),
  toGo("MB/s, 8 tunnels up", "up8", "mbPerSecond", { least: 2.6 }),
  toGo("MB/s, both ways at once", "both", "mbPerSecond", { least: 2.6 }),
  ...[50, 90, 500].flatMap((clients) => [
    toGo(`tunnels/s, ${clients} clients`, `rate${clients}`, "perSecond", { least: 1.5 }),
    toGo(`set-up p99, ${clients} clients`, `rate${clients}`, "setupP99", { most: 1 }),
  ]),
  toGo("tunnels/s, the first 500 after the start", "cold50", "firstPerSecond", { least: 1.5 }),
  toGo("tunnels/s, the first 3,000 after the start", "cold50", "perSecond", { least: 1.6 }),
  toGo("set-up p50, one client", "rate1", "setupP50", { most: 0.75 }),
  toGo("round trip p50", "rtt", "p50", { most: 0.65 }),
  toGo("round trip p99", "rtt", "p99", { most: 0.65 }),
  toGo("round trip beside a download, p99", "rtt-beside", "p99", { most: 0.5 }),
  toGo("MB/s down, 50 ms and 1 % loss", "lossy", "mbPerSecond", { least: 3 }),
  { title: "MB/s, one tunnel down", scenario: "down", metric: "mbPerSecond", other: LIMIT.hops, least: 0.85 },
  { title: "round trip p50, µs more than", scenario: "rtt", metric: "p50", other: LIMIT.bare, difference: true, most: 40 },
  { title: "open idle tunnels on one agent", scenario: "tunnels", metric: "alive", least: 10_000 },
  { title: "KiB of the proxy for each tunnel", scenario: "tunnels", metric: "proxyKiBEach", most: 8 },
  { title: "KiB of the agent for each tunnel", scenario: "tunnels", metric: "agentKiBEach", most: 8 },
  { title: "idle agents on one proxy", scenario: "agents", metric: "alive", least: 5_000 },
  { title: "KiB of the proxy for each agent", scenario: "agents", metric: "proxyKiBEach", most: 40 },
  { title: "another agent slower beside them, %", scenario: "agents", metric: "slowdownPercent", most: 5 },
  { title: "CPU of the proxy for idle agents, % of a core", scenario: "agents", metric: "proxyCpuPercent", most: 5 },
  { title: "set-up p50 beside another agent's 50 clients, to alone", scenario: "isolation", metric: "floodToAloneP50", most: 2 },
  { title: "set-up p50 beside another agent's downloads, to alone", scenario: "isolation", metric: "downloadsToAloneP50", most: 2 },
  { title: "the same, with limits: 50 clients", scenario: "isolation-limits", metric: "floodToAloneP50", most: 2 },
  { title: "the same, with limits: downloads", scenario: "isolation-limits", metric: "downloadsToAloneP50", most: 2 },
  { title: "proxy, MiB idle", scenario: "idle", metric: "proxyRssMiB", most: 45 },
  { title: "agent, MiB idle", scenario: "idle", metric: "agentRssMiB", most: 45 },
  { title: "proxy, a minute after the load to before", scenario: "memory", metric: "proxyAfterToBefore", most: 1.3 },
  { title: "agent, a minute after the load to before", scenario: "memory", metric: "agentAfterToBefore", most: 1.3 },
  { title: "start to listening, ms", scenario: "idle", metric: "listeningMs", most: 120 },
];

/** A target and the measured value. */
export interface Verdict {
  readonly target: Target;
  readonly value: number;
  /** Of adjacent runs, for ratios. */
  readonly min?: number;
  readonly max?: number;
  readonly reached: boolean;
}

/** Judges the targets that were measured, for the subject `own`. */
export function judge(summary: Record<string, Record<string, MetricSummary>>, own: string): Verdict[] {
  return TARGETS.flatMap((target): Verdict[] => {
    const metric = summary[target.scenario]?.[target.metric];
    const mine = metric?.medians[own];
    if (metric === undefined || mine === undefined) return [];
    const { other, difference, least = -Infinity, most = Infinity } = target;
    const ratio = other === undefined || difference ? undefined : metric.ratios[other];
    const theirs = other === undefined ? 0 : metric.medians[other];
    const value = ratio?.median ?? (other !== undefined && !difference || theirs === undefined ? undefined : mine - theirs);
    if (value === undefined) return [];
    return [{ target, value, min: ratio?.min, max: ratio?.max, reached: value >= least && value <= most }];
  });
}
