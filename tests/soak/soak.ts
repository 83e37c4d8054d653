// A long run under mixed load with one fault after another: `deno task soak`. Every byte of every tunnel is checked, a loss must be one
// that the current fault may cause, and nothing must remain at the end. `--minutes=N` (default 30), `--seed=N` to repeat a run. Exit code 1
// for any violation.
import process from "node:process";
import { setTimeout as sleep } from "node:timers/promises";
import type { LogEntry } from "../../testing/programs.ts";
import { generate } from "../../testing/udp_relay.ts";
import { drawFault, type Fault } from "./faults.ts";
import { Installation, type ResourceUse } from "./installation.ts";
import { type Conversation, Traffic, type TrafficOptions } from "./traffic.ts";

export interface SoakOptions {
  /** How long things go wrong, in milliseconds. */
  ms: number;
  /** Faults that there are at least, if it takes longer. Default 1. */
  least?: number;
  /** The part of the full load, in conversations at a time and in their sizes, up to 1, the default. */
  share?: number;
  seed: number;
  /** Is told how it goes. */
  log: (line: string) => void;
}

/** A fault, with the time until everything had recovered. Times in milliseconds of `performance.now`. */
export interface Suffered {
  readonly fault: Pick<Fault, "name" | "cut" | "refused" | "killed">;
  readonly from: number;
  readonly to: number;
  /** From the fault's end until all was well. */
  readonly wellMs: number;
}

export interface SoakReport {
  readonly suffered: readonly Suffered[];
  readonly conversations: readonly Conversation[];
  readonly before: readonly ResourceUse[];
  readonly after: readonly ResourceUse[];
  readonly violations: readonly string[];
}

/** Load before the first measurement of resources, in which engines warm up and buffers grow. */
const WARM_UP_MS = 60_000;
/** Maximum pause between two faults, in milliseconds. */
const CALM_MS = 3_000;
/** Growth of a process that is tolerated at the end. */
const MAY_GROW = { residentMiB: 64, descriptors: 4, threads: 4 };
/** Idle time before resources are measured: at least, and at most until they are as at the start. */
const QUIET_MS = 2_000;
const QUIET_AT_MOST_MS = 40_000;
/** The statuses of refusals while a fault makes an agent unreachable. */
const ALLOWED = [502, 503, 504];

/** Runs a soak. Violations are in the report; rejects if the installation does not start. */
export async function soak({ ms, least = 1, share = 1, seed, log }: SoakOptions): Promise<SoakReport> {
  await using installation = await Installation.start(seed);
  await withTraffic(installation, { seed: seed + 1, share }, () => sleep(Math.min(WARM_UP_MS, ms / 4)));
  const before = await quiet(installation);
  const suffered: Suffered[] = [];
  const violations: string[] = [];
  const traffic = await withTraffic(installation, { seed: seed + 2, share }, async () => {
    const random = generate(seed);
    for (const end = performance.now() + ms; performance.now() < end || suffered.length < least;) {
      await sleep(random() * CALM_MS);
      const fault = drawFault(random, Math.max(4_000, end - performance.now()));
      try {
        suffered.push(await suffer(installation, fault));
      } catch (error) {
        violations.push(`${fault.name}: ${(error as Error).message}`);
        break; // whatever follows is of no worth
      }
      log(`${suffered.at(-1)!.fault.name}: well after ${Math.round(suffered.at(-1)!.wellMs)} ms`);
    }
  });
  violations.push(...traffic.ended.flatMap((conversation) => judge(conversation, suffered) ?? []));
  violations.push(...traffic.violations.flatMap((violation) => judgeOrigin(violation, traffic.ended, suffered) ?? []));
  const after = await quiet(installation, before);
  violations.push(...grown(before, after), ...installation.programs.flatMap(({ entries }) => errorsOf(entries)));
  return { suffered, conversations: traffic.ended, before, after, violations };
}

/** Runs the traffic, and returns it when all of it has ended. */
async function withTraffic(installation: Installation, options: TrafficOptions, body: () => Promise<void>): Promise<Traffic> {
  await using traffic = await Traffic.start(installation, options);
  await body();
  await traffic.stop();
  return traffic;
}

async function suffer(installation: Installation, fault: Fault): Promise<Suffered> {
  const from = performance.now();
  await fault.act(installation);
  const over = performance.now();
  await installation.untilWell();
  const to = performance.now();
  return { fault, from, to, wellMs: to - over };
}

/** Measures the resources at idle; while they exceed `before`, waits some time. */
async function quiet(installation: Installation, before?: readonly ResourceUse[]): Promise<ResourceUse[]> {
  await sleep(QUIET_MS);
  for (const deadline = performance.now() + QUIET_AT_MOST_MS;; await sleep(500)) {
    const use = await installation.measure();
    const isQuiet = before ? grown(before, use).length === 0 : use.every(({ tunnels }) => tunnels === 0);
    if (isQuiet || performance.now() > deadline) return use;
  }
}

/** Describes resources that have grown. */
export function grown(before: readonly ResourceUse[], after: readonly ResourceUse[]): string[] {
  return after.flatMap((now, i) => {
    const then = before[i]!;
    const grown = (["residentMiB", "descriptors", "threads"] as const).filter((what) => now[what] > then[what] + MAY_GROW[what])
      .map((what) => `${now.name} has grown from ${Math.round(then[what])} to ${Math.round(now[what])} ${what}`);
    if (now.tunnels !== 0) grown.push(`${now.name} has ${now.tunnels} unused open tunnels`);
    if (now.links !== then.links) grown.push(`${now.name} has ${now.links} links, and had ${then.links}`);
    return grown;
  });
}

/** The errors that a process has logged, except a brief stall of its network, which a busy machine may cause. */
export function errorsOf(entries: readonly LogEntry[]): string[] {
  const isOver = (at: number) => entries.slice(at).some(({ message }) => message === "network engine recovered");
  return entries.flatMap((entry, at) => {
    if (entry.level.toLowerCase() !== "error" || (entry.message === "network engine stalled" && isOver(at))) return [];
    return [`an error was logged: ${JSON.stringify(entry)}`];
  });
}

/** Why the end of a conversation is a violation; `undefined` if it is none. */
export function judge(conversation: Conversation, suffered: readonly Suffered[]): string | undefined {
  const { failure, agent, kind, seed, startedAt, endedAt } = conversation;
  if (!failure) return undefined;
  const meanwhile = suffered.filter(({ from, to }) => startedAt <= to && endedAt >= from).map(({ fault }) => fault);
  const { status, begun, message, violation } = failure;
  let isAllowed;
  if (violation) isAllowed = isCutShort(message) && meanwhile.some(({ killed, cut }) => killed && cut.includes(agent));
  else if (message.startsWith("There were no ")) isAllowed = false; // it would have hung
  else if (begun || isLost(message)) isAllowed = meanwhile.some(({ cut }) => cut.includes(agent));
  else isAllowed = (status === undefined || ALLOWED.includes(status)) && meanwhile.some(({ refused }) => refused.includes(agent));
  if (isAllowed) return undefined;
  const when = `${Math.round(startedAt)} to ${Math.round(endedAt)} ms, during ${meanwhile.map(({ name }) => name).join(", ") || "nothing"}`;
  return `${kind} through agent ${agent}, stream ${seed}, ${begun ? "under way" : "not begun"}, ${when}: ${message}`;
}

/** A request had been sent when it was cut off: no hop may repeat it for the client (RFC 9110 §9.2.2). */
function isLost(message: string): boolean {
  return /details=\\?"The (connection to the destination was lost|destination's response head is missing)\\?"/.test(message);
}

/** It ended cleanly but too early, as connections of killed processes do. */
function isCutShort(message: string): boolean {
  return / finished( after |, and was to be reset)/.test(message);
}

/** The same for the origin's side. */
export function judgeOrigin(message: string, conversations: readonly Conversation[], suffered: readonly Suffered[]): string | undefined {
  const stream = Number(/stream ([0-9]+) /.exec(message)?.[1] ?? NaN);
  const conversation = conversations.find(({ seed }) => seed === stream - stream % 2);
  if (!conversation) return `at an origin: ${message}`;
  const verdict = judge({ ...conversation, failure: { begun: true, message, violation: true } }, suffered);
  return verdict === undefined ? undefined : `at an origin: ${verdict}`;
}

/** A readable summary. */
export function summarize({ suffered, conversations, before, after, violations }: SoakReport): string {
  const faults = Map.groupBy(suffered, ({ fault }) => fault.name);
  const during = ({ from, to }: Suffered) => conversations.filter(({ startedAt, endedAt }) => startedAt <= to && endedAt >= from);
  const seconds = (ms: number) => (ms / 1_000).toFixed(1);
  const rows = [...faults].map(([name, times]) => {
    const failures = (begun: boolean) =>
      times.flatMap((one) =>
        during(one).filter(({ agent, failure }) => failure?.begun === begun && one.fault[begun ? "cut" : "refused"].includes(agent))
      );
    const wellMs = Math.max(...times.map(({ wellMs }) => wellMs));
    return [name, times.length, times.flatMap(during).length, failures(false).length, failures(true).length, seconds(wellMs)];
  });
  const kinds = [...Map.groupBy(conversations, ({ kind }) => kind)].map(([kind, all]) => {
    const done = all.filter(({ failure }) => !failure);
    return [kind, all.length, all.length - done.length, Math.round(done.reduce((sum, { bytes }) => sum + bytes, 0) / (1 << 20))];
  });
  const taken = before.map((then, i) => {
    const now = after[i]!;
    const both = (what: Exclude<keyof ResourceUse, "name">) => `${Math.round(then[what])} → ${Math.round(now[what])}`;
    return [then.name, both("residentMiB"), both("descriptors"), both("threads"), both("tunnels"), both("links")];
  });
  return [
    table(["fault", "times", "conversations", "refused", "cut off", "s until well, at most"], rows),
    table(["conversation", "all", "failed", "MiB that came"], kinds),
    table(["before → after", "resident MiB", "descriptors", "threads", "tunnels", "links"], taken),
    violations.length === 0 ? "No violations" : `${violations.length} violations:\n${violations.slice(0, 100).join("\n")}`,
  ].join("\n\n");
}

function table(head: readonly string[], rows: readonly (readonly (string | number)[])[]): string {
  const cells = [head, ...rows].map((row) => row.map(String));
  const widths = head.map((_, i) => Math.max(...cells.map((row) => row[i]!.length)));
  return cells.map((row) => row.map((cell, i) => i === 0 ? cell.padEnd(widths[i]!) : cell.padStart(widths[i]!)).join("  ")).join("\n");
}

function option(name: string, fallback: number): number {
  const given = process.argv.find((arg) => arg.startsWith(`--${name}=`))?.slice(name.length + 3);
  if (given === undefined) return fallback;
  if (!/^[0-9]{1,9}(\.[0-9]+)?$/.test(given)) throw new Error(`Cannot use --${name}: ${JSON.stringify(given)} is not a number`);
  return Number(given);
}

async function main(): Promise<void> {
  const seed = option("seed", Math.floor(Math.random() * 2 ** 30));
  const ms = option("minutes", 30) * 60_000;
  console.log(`seed ${seed}`);
  const started = performance.now();
  const log = (line: string) => console.log(`${((performance.now() - started) / 1_000).toFixed(0).padStart(5)} s  ${line}`);
  const report = await soak({ ms, seed, log });
  console.log(`\n${summarize(report)}`);
  process.exitCode = report.violations.length === 0 ? 0 : 1;
}

if (import.meta.main) {
  await main().catch((error: Error) => {
    console.error(error.message);
    process.exitCode = 2;
  });
}
