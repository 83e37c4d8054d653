// What is measured: each scenario loads one proxy and agent, or nothing but the origin, and returns figures. It starts no proxy itself.
import { setTimeout as sleep } from "node:timers/promises";
import type { Held, LoadResult, Pair, Program, Usage } from "./processes.ts";

/** How much of everything. */
export interface Sizes {
  /** For one tunnel and direction. */
  bulkBytes: number;
  /** For each of 8 tunnels. */
  sharedBytes: number;
  warmUpBytes: number;
  rateSeconds: number;
  rttSeconds: number;
  warmUpSeconds: number;
  idleTunnels: number;
  /** From the end of a load until memory is read again. */
  settleMs: number;
}

export const FULL: Sizes = {
  bulkBytes: 1e9,
  sharedBytes: 15e7,
  warmUpBytes: 1e8,
  rateSeconds: 5,
  rttSeconds: 4,
  warmUpSeconds: 1,
  idleTunnels: 2_000,
  settleMs: 10_000,
};

export const SMOKE: Sizes = {
  bulkBytes: 2e7,
  sharedBytes: 5e6,
  warmUpBytes: 1e6,
  rateSeconds: 0.5,
  rttSeconds: 0.3,
  warmUpSeconds: 0.1,
  idleTunnels: 50,
  settleMs: 200,
};

/** What a scenario works on. */
export interface Bed {
  readonly sizes: Sizes;
  /** Missing where the origin is reached directly. */
  readonly pair: Pair | undefined;
  readonly load: (mode: string, ...options: (string | number)[]) => Promise<LoadResult>;
  readonly hold: (tunnels: number) => Promise<Held>;
}

/** One figure of a scenario. */
export interface Metric {
  readonly title: string;
  readonly unit: string;
  /** Decimals shown. Default 0. */
  readonly digits?: number;
}

/** Figures by the name of their metric; `undefined` where there is none. */
export type Figures = Record<string, number | undefined>;

export interface Outcome {
  readonly figures: Figures;
  /** What failed, and how often. */
  readonly errors: Readonly<Record<string, number>>;
}

export interface Scenario {
  readonly name: string;
  readonly title: string;
  /** Whether there is something to measure without proxy and agent. */
  readonly direct: boolean;
  readonly metrics: Readonly<Record<string, Metric>>;
  readonly run: (bed: Bed) => Promise<Outcome>;
}

const PEAKS = {
  proxyPeakMiB: { title: "proxy memory, peak", unit: "MiB", digits: 1 },
  agentPeakMiB: { title: "agent memory, peak", unit: "MiB", digits: 1 },
};

const BEFORE_AND_AFTER = {
  proxyBeforeMiB: { title: "proxy memory before", unit: "MiB", digits: 1 },
  proxyAfterMiB: { title: "proxy memory after", unit: "MiB", digits: 1 },
  agentBeforeMiB: { title: "agent memory before", unit: "MiB", digits: 1 },
  agentAfterMiB: { title: "agent memory after", unit: "MiB", digits: 1 },
};

export const SCENARIOS: readonly Scenario[] = [
  {
    name: "idle",
    title: "start, and one second of doing nothing",
    direct: false,
    metrics: {
      listeningMs: { title: "proxy start to listening", unit: "ms" },
      connectedMs: { title: "agent start to first tunnel", unit: "ms" },
      proxyRssMiB: { title: "proxy memory (RSS)", unit: "MiB", digits: 1 },
      agentRssMiB: { title: "agent memory (RSS)", unit: "MiB", digits: 1 },
      proxyPssMiB: { title: "proxy memory (PSS)", unit: "MiB", digits: 1 },
      agentPssMiB: { title: "agent memory (PSS)", unit: "MiB", digits: 1 },
    },
    run: idle,
  },
  bulk("down", "one tunnel, origin to client", "down", 1),
  bulk("up", "one tunnel, client to origin", "up", 1),
  bulk("both", "one tunnel, both directions at once", "both", 1),
  bulk("down8", "8 tunnels, origin to client", "down", 8),
  bulk("up8", "8 tunnels, client to origin", "up", 8),
  ...[1, 50, 90, 500].map(rate),
  rtt("rtt", "round trip in an open tunnel"),
  rtt("rtt-beside", "round trip beside a download in another tunnel", "--beside"),
  {
    name: "tunnels",
    title: "open tunnels that say nothing",
    direct: false,
    metrics: {
      open: { title: "open", unit: "" },
      alive: { title: "still going through at the end", unit: "" },
      openSeconds: { title: "time to open them", unit: "s", digits: 2 },
      proxyKiBEach: { title: "proxy memory each", unit: "KiB", digits: 1 },
      agentKiBEach: { title: "agent memory each", unit: "KiB", digits: 1 },
      proxyFilesKept: { title: "proxy descriptors kept after", unit: "" },
      agentFilesKept: { title: "agent descriptors kept after", unit: "" },
      ...BEFORE_AND_AFTER,
    },
    run: tunnels,
  },
  {
    name: "memory",
    title: "memory after a download and 50 clients",
    direct: false,
    metrics: BEFORE_AND_AFTER,
    run: memory,
  },
];

function bulk(name: string, title: string, mode: string, count: number): Scenario {
  return {
    name,
    title,
    direct: true,
    metrics: {
      mbPerSecond: { title: "speed", unit: "MB/s" },
      cpuPerGB: { title: "CPU, proxy + agent", unit: "s/GB", digits: 2 },
      proxyCpuPerGB: { title: "CPU, proxy", unit: "s/GB", digits: 2 },
      agentCpuPerGB: { title: "CPU, agent", unit: "s/GB", digits: 2 },
      loadCpuPerGB: { title: "CPU, load generator without origin", unit: "s/GB", digits: 2 },
      ...PEAKS,
    },
    run: async ({ sizes, pair, load }) => {
      const bytes = count > 1 ? sizes.sharedBytes : mode === "both" ? sizes.bulkBytes / 2 : sizes.bulkBytes;
      await load(mode, "--bytes", sizes.warmUpBytes, "--tunnels", count);
      const { result, cost } = await costOf(pair, () => load(mode, "--bytes", bytes, "--tunnels", count));
      const gigabytes = figure(result.bytes)! / 1e9;
      const each = (seconds: number | undefined) => gigabytes > 0 && seconds !== undefined ? seconds / gigabytes : undefined;
      return {
        figures: {
          mbPerSecond: figure(result.mbPerSecond),
          cpuPerGB: each(cost && cost.proxyCpu + cost.agentCpu),
          proxyCpuPerGB: each(cost?.proxyCpu),
          agentCpuPerGB: each(cost?.agentCpu),
          loadCpuPerGB: each(figure(result.cpuSeconds)),
          proxyPeakMiB: cost?.proxy.peakMiB,
          agentPeakMiB: cost?.agent.peakMiB,
        },
        errors: errorsOf(result),
      };
    },
  };
}

function rate(clients: number): Scenario {
  return {
    name: `rate${clients}`,
    title: `short tunnels, ${clients} ${clients === 1 ? "client" : "clients at once"}`,
    direct: true,
    metrics: {
      perSecond: { title: "tunnels", unit: "/s" },
      setupP50: { title: "set-up p50", unit: "ms", digits: 2 },
      setupP90: { title: "set-up p90", unit: "ms", digits: 2 },
      setupP99: { title: "set-up p99", unit: "ms", digits: 2 },
      setupP999: { title: "set-up p99.9", unit: "ms", digits: 2 },
      totalP50: { title: "to the answer p50", unit: "ms", digits: 2 },
      totalP99: { title: "to the answer p99", unit: "ms", digits: 2 },
      proxyCpuPer1000: { title: "CPU for 1,000 tunnels, proxy", unit: "s", digits: 3 },
      agentCpuPer1000: { title: "CPU for 1,000 tunnels, agent", unit: "s", digits: 3 },
      loadCpuPer1000: { title: "CPU for 1,000 tunnels, load generator", unit: "s", digits: 3 },
      ...PEAKS,
    },
    run: async ({ sizes, pair, load }) => {
      await load("rate", "--clients", clients, "--seconds", sizes.warmUpSeconds);
      const { result, cost } = await costOf(pair, () => load("rate", "--clients", clients, "--seconds", sizes.rateSeconds));
      const thousands = figure(result.tunnels)! / 1000;
      const each = (seconds: number | undefined) => thousands > 0 && seconds !== undefined ? seconds / thousands : undefined;
      const [setup, total] = [percentiles(result.setupMs), percentiles(result.totalMs)];
      return {
        figures: {
          perSecond: figure(result.perSecond),
          setupP50: setup.p50,
          setupP90: setup.p90,
          setupP99: setup.p99,
          setupP999: setup.p999,
          totalP50: total.p50,
          totalP99: total.p99,
          proxyCpuPer1000: each(cost?.proxyCpu),
          agentCpuPer1000: each(cost?.agentCpu),
          loadCpuPer1000: each(figure(result.cpuSeconds)),
          proxyPeakMiB: cost?.proxy.peakMiB,
          agentPeakMiB: cost?.agent.peakMiB,
        },
        errors: errorsOf(result),
      };
    },
  };
}

function rtt(name: string, title: string, ...options: string[]): Scenario {
  const beside = options.length > 0;
  return {
    name,
    title,
    direct: true,
    metrics: {
      p50: { title: "p50", unit: "µs" },
      p90: { title: "p90", unit: "µs" },
      p99: { title: "p99", unit: "µs" },
      p999: { title: "p99.9", unit: "µs" },
      ...(beside ? { besideMbPerSecond: { title: "the download meanwhile", unit: "MB/s" } } : {}),
    },
    run: async ({ sizes, load }) => {
      await load("rtt", "--seconds", sizes.warmUpSeconds, ...options);
      const result = await load("rtt", "--seconds", sizes.rttSeconds, ...options);
      const ms = percentiles(result.rttMs);
      const micros = (value: number | undefined) => value === undefined ? undefined : value * 1000;
      return {
        figures: {
          p50: micros(ms.p50),
          p90: micros(ms.p90),
          p99: micros(ms.p99),
          p999: micros(ms.p999),
          ...(beside ? { besideMbPerSecond: figure(result.besideMbPerSecond) } : {}),
        },
        errors: errorsOf(result),
      };
    },
  };
}

async function idle({ pair }: Bed): Promise<Outcome> {
  const { proxy, agent, listeningMs, connectedMs } = needPair(pair);
  await sleep(1000);
  const [p, a] = [proxy.usage(), agent.usage()];
  return {
    figures: { listeningMs, connectedMs, proxyRssMiB: p.rssMiB, agentRssMiB: a.rssMiB, proxyPssMiB: p.pssMiB, agentPssMiB: a.pssMiB },
    errors: {},
  };
}

async function tunnels({ sizes, pair, hold }: Bed): Promise<Outcome> {
  const { proxy, agent } = needPair(pair);
  await sleep(sizes.settleMs); // what the start needed is gone
  const before = { proxy: proxy.usage(), agent: agent.usage() };
  const held = await hold(sizes.idleTunnels);
  const open = figure(held.opened.open) ?? 0;
  const during = { proxy: proxy.usage(), agent: agent.usage() };
  const closed = await held.close();
  await sleep(sizes.settleMs);
  const after = { proxy: proxy.usage(), agent: agent.usage() };
  const each = (of: "proxy" | "agent") => open > 0 ? (during[of].rssMiB - before[of].rssMiB) * 1024 / open : undefined;
  return {
    figures: {
      open,
      alive: figure(closed.alive),
      openSeconds: figure(held.opened.seconds),
      proxyKiBEach: each("proxy"),
      agentKiBEach: each("agent"),
      proxyFilesKept: after.proxy.files - before.proxy.files,
      agentFilesKept: after.agent.files - before.agent.files,
      ...afterFigures(before, after),
    },
    errors: errorsOf(held.opened, closed),
  };
}

async function memory({ sizes, pair, load }: Bed): Promise<Outcome> {
  const { proxy, agent } = needPair(pair);
  await sleep(sizes.settleMs); // what the start needed is gone
  const before = { proxy: proxy.usage(), agent: agent.usage() };
  const download = await load("down", "--bytes", sizes.bulkBytes);
  const clients = await load("rate", "--clients", 50, "--seconds", sizes.rateSeconds);
  await sleep(sizes.settleMs);
  const after = { proxy: proxy.usage(), agent: agent.usage() };
  return { figures: afterFigures(before, after), errors: errorsOf(download, clients) };
}

type Both = Record<"proxy" | "agent", Usage>;

function afterFigures(before: Both, after: Both): Figures {
  return {
    proxyBeforeMiB: before.proxy.rssMiB,
    proxyAfterMiB: after.proxy.rssMiB,
    agentBeforeMiB: before.agent.rssMiB,
    agentAfterMiB: after.agent.rssMiB,
  };
}

/** What a load cost the proxy and the agent, from its start until it has ended. */
async function costOf(pair: Pair | undefined, work: () => Promise<LoadResult>) {
  if (!pair) return { result: await work(), cost: undefined };
  const read = (program: Program) => program.usage();
  const before = [read(pair.proxy), read(pair.agent)] as const;
  const result = await work();
  const [proxy, agent] = [read(pair.proxy), read(pair.agent)];
  const cost = {
    proxy,
    agent,
    proxyCpu: proxy.cpuSeconds - before[0].cpuSeconds,
    agentCpu: agent.cpuSeconds - before[1].cpuSeconds,
  };
  return { result, cost };
}

function needPair(pair: Pair | undefined): Pair {
  if (!pair) throw new Error("Cannot measure this without a proxy");
  return pair;
}

function figure(value: unknown): number | undefined {
  return typeof value === "number" ? value : undefined;
}

function percentiles(value: unknown): Record<string, number | undefined> {
  return Object.fromEntries(Object.entries(value as Record<string, unknown>).map(([name, ms]) => [name, figure(ms)]));
}

function errorsOf(...results: LoadResult[]): Record<string, number> {
  const sum: Record<string, number> = {};
  for (const { errors } of results) {
    for (const [error, count] of Object.entries(errors as Record<string, number>)) sum[error] = (sum[error] ?? 0) + count;
  }
  return sum;
}
