// What a scenario is, and its sizes. The scenarios themselves are elsewhere.
import type { LoadResult, Program, Usage } from "./processes.ts";
import type { Pair, Setup, Subject, Topology } from "./setups.ts";

/** How much is transferred and how long it is measured. */
export interface Sizes {
  /** For one tunnel and direction. */
  bulkBytes: number;
  /** For each of 8 tunnels. */
  sharedBytes: number;
  warmUpBytes: number;
  rateSeconds: number;
  rttSeconds: number;
  /** The runtime compiles code that has run some thousand times. In a service this happened long ago. */
  warmUpSeconds: number;
  /** The first tunnels after the start, and those after them. */
  firstTunnels: number;
  nextTunnels: number;
  idleTunnels: number;
  idleAgents: number;
  /** Downloads of which the median counts, where differences are small. */
  repeats: number;
  /** How long the CPU time of idle programs is counted. */
  idleMs: number;
  /** Until a download over a long path has reached its full speed. */
  headStartSeconds: number;
  lossySeconds: number;
  /** From the start, or the end of a load, until memory is read. */
  settleMs: number;
  /** The same in the scenario of memory. */
  restMs: number;
}

export const FULL: Sizes = {
  bulkBytes: 1e9,
  sharedBytes: 15e7,
  warmUpBytes: 1e8,
  rateSeconds: 5,
  rttSeconds: 4,
  warmUpSeconds: 5,
  firstTunnels: 500,
  nextTunnels: 2_500,
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
  firstTunnels: 50,
  nextTunnels: 50,
  idleTunnels: 50,
  idleAgents: 20,
  repeats: 1,
  idleMs: 100,
  headStartSeconds: 0.5,
  lossySeconds: 0.5,
  settleMs: 100,
  restMs: 100,
};

export interface Context extends Setup {
  readonly sizes: Sizes;
}

/** One value that a scenario measures. */
export interface Metric {
  readonly title: string;
  readonly unit: string;
  /** Decimals shown. Default 0. */
  readonly digits?: number;
}

/** Values by the name of their metric. */
export type Values = Record<string, number | undefined>;

export interface Outcome {
  readonly values: Values;
  /** Counts of failures. */
  readonly errors: Readonly<Record<string, number>>;
}

export interface Scenario {
  readonly name: string;
  readonly title: string;
  /** Kinds of subjects, besides pairs, that can be measured in the same way. Default none. */
  readonly others?: readonly Subject["kind"][];
  readonly topology?: Topology;
  readonly metrics: Readonly<Record<string, Metric>>;
  readonly run: (context: Context) => Promise<Outcome>;
}

export function toNumber(value: unknown): number | undefined {
  return typeof value === "number" ? value : undefined;
}

export function percentiles(value: unknown): Record<string, number | undefined> {
  return Object.fromEntries(Object.entries(value as Record<string, unknown>).map(([name, ms]) => [name, toNumber(ms)]));
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

/** What the programs of a pair have used so far. */
export type Usages = Record<"proxy" | "agent", Usage> & { lb?: Usage };

export function usages({ proxy, agent, lb }: Pair): Usages {
  return { proxy: proxy.usage(), agent: agent.usage(), lb: lb?.usage() };
}

/** CPU seconds between two moments. */
function cpuBetween(before: Usages, after: Usages) {
  const of = (name: "proxy" | "agent") => after[name].cpuSeconds - before[name].cpuSeconds;
  return { proxy: of("proxy"), agent: of("agent"), lb: after.lb && before.lb && after.lb.cpuSeconds - before.lb.cpuSeconds };
}

/** Runs a load and returns the CPU time that it took. */
export async function costOf(pair: Pair | undefined, work: () => Promise<LoadResult>) {
  if (!pair) return { result: await work() };
  const before = usages(pair);
  const result = await work();
  const after = usages(pair);
  return { result, cpu: cpuBetween(before, after), after };
}

/** CPU time of each program while `wait` runs, in percent of a core. */
export async function cpuPercent(programs: readonly Pick<Program, "usage">[], ms: number, wait: () => Promise<void>): Promise<number[]> {
  const read = () => programs.map((program) => program.usage().cpuSeconds);
  const before = read();
  await wait();
  return read().map((after, index) => (after - before[index]!) / (ms / 1000) * 100);
}
