// What a scenario is, and how much of everything it takes. No scenario is here.
import type { LoadResult, Program, Usage } from "./processes.ts";
import type { LimitKind, Pair, Place, Surroundings } from "./workdirs.ts";

/** How much of everything. */
export interface Sizes {
  /** For one tunnel and direction. */
  bulkBytes: number;
  /** For each of 8 tunnels. */
  sharedBytes: number;
  warmUpBytes: number;
  rateSeconds: number;
  rttSeconds: number;
  /** The runtime compiles what has run some thousand times: a service has done so long since. */
  warmUpSeconds: number;
  idleTunnels: number;
  idleAgents: number;
  /** Downloads of which the median counts, where a small difference is looked for. */
  repeats: number;
  /** How long CPU time is counted where nothing happens. */
  idleMs: number;
  /** Until a download over a long link goes as fast as it will. */
  headStartSeconds: number;
  lossySeconds: number;
  /** From a start, or the end of a load, until memory is read. */
  settleMs: number;
  /** The same where it is memory that is measured. */
  restMs: number;
}

export const FULL: Sizes = {
  bulkBytes: 1e9,
  sharedBytes: 15e7,
  warmUpBytes: 1e8,
  rateSeconds: 5,
  rttSeconds: 4,
  warmUpSeconds: 15,
  idleTunnels: 10_000,
  idleAgents: 5_000,
  repeats: 3,
  idleMs: 15_000,
  headStartSeconds: 3,
  lossySeconds: 15,
  settleMs: 5_000,
  restMs: 60_000,
};

export const SMOKE: Sizes = {
  bulkBytes: 1e7,
  sharedBytes: 2e6,
  warmUpBytes: 1e6,
  rateSeconds: 0.2,
  rttSeconds: 0.1,
  warmUpSeconds: 0.05,
  idleTunnels: 50,
  idleAgents: 20,
  repeats: 1,
  idleMs: 100,
  headStartSeconds: 0.5,
  lossySeconds: 0.5,
  settleMs: 100,
  restMs: 100,
};

/** A place, and how much is to be done there. */
export interface Bed extends Place {
  readonly sizes: Sizes;
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
  /** Limits that can be measured in the same way. Default none. */
  readonly limits?: readonly LimitKind[];
  readonly surroundings?: Surroundings;
  readonly metrics: Readonly<Record<string, Metric>>;
  readonly run: (bed: Bed) => Promise<Outcome>;
}

export function figure(value: unknown): number | undefined {
  return typeof value === "number" ? value : undefined;
}

export function percentiles(value: unknown): Record<string, number | undefined> {
  return Object.fromEntries(Object.entries(value as Record<string, unknown>).map(([name, ms]) => [name, figure(ms)]));
}

export function errorsOf(...results: LoadResult[]): Record<string, number> {
  const sum: Record<string, number> = {};
  for (const { errors } of results) {
    for (const [error, count] of Object.entries(errors as Record<string, number>)) sum[error] = (sum[error] ?? 0) + count;
  }
  return sum;
}

export function needPair(pair: Pair | undefined): Pair {
  if (!pair) throw new Error("Cannot measure this without a proxy");
  return pair;
}

/** What the programs of a pair cost at one moment. */
export type Usages = Record<"proxy" | "agent", Usage> & { lb?: Usage };

export function usages({ proxy, agent, lb }: Pair): Usages {
  return { proxy: proxy.usage(), agent: agent.usage(), lb: lb?.usage() };
}

/** CPU seconds between two moments. */
export function cpuBetween(before: Usages, after: Usages) {
  const of = (name: "proxy" | "agent") => after[name].cpuSeconds - before[name].cpuSeconds;
  return { proxy: of("proxy"), agent: of("agent"), lb: after.lb && before.lb && after.lb.cpuSeconds - before.lb.cpuSeconds };
}

/** What a load cost, from its start until it has ended. */
export async function costOf(pair: Pair | undefined, work: () => Promise<LoadResult>) {
  if (!pair) return { result: await work() };
  const before = usages(pair);
  const result = await work();
  const after = usages(pair);
  return { result, cpu: cpuBetween(before, after), after };
}

/** CPU of a core in percent over `ms` in which nothing is asked of it. */
export async function cpuPercent(programs: readonly Pick<Program, "usage">[], ms: number, wait: () => Promise<void>): Promise<number[]> {
  const read = () => programs.map((program) => program.usage().cpuSeconds);
  const before = read();
  await wait();
  return read().map((after, index) => (after - before[index]!) / (ms / 1000) * 100);
}
