// Starts and stops the programs that the bench needs, and reads their CPU time and memory from /proc. It knows nothing of what is measured.
import { type ChildProcess, spawn } from "node:child_process";
import { closeSync, openSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { setTimeout as sleep } from "node:timers/promises";

const READY_TIMEOUT_MS = 15_000;
const STOP_TIMEOUT_MS = 5_000;
/** Linux counts CPU time for user space in hundredths of a second, on every architecture. */
const TICKS_PER_SECOND = 100;

/** What a process and its descendants have used so far. */
export interface Usage {
  /** User and system time of all threads, including those that have ended. */
  cpuSeconds: number;
  /** Resident memory. */
  rssMiB: number;
  /** The same, with shared pages divided among the processes that share them. */
  pssMiB: number;
  /** The highest resident memory ever. */
  peakMiB: number;
  /** Open file descriptors. */
  files: number;
}

/** A running process. */
export interface Program {
  readonly name: string;
  readonly usage: () => Usage;
  /** Terminates it. Returns its last output if it failed. */
  readonly stop: () => Promise<string | undefined>;
}

/** One answer of the load generator: a line of JSON. */
export type LoadResult = Record<string, unknown>;

/** A load generator that holds tunnels or agents until `close`. */
export interface Held {
  readonly opened: LoadResult;
  /** Its CPU time and memory meanwhile. */
  readonly usage: () => Usage;
  /** Counts those that are still open, then closes them. */
  readonly close: () => Promise<LoadResult>;
}

/** A program that does not report when it is ready. */
export interface Running extends Program {
  /** Asks every `pauseMs` until it is. */
  readonly until: (pauseMs: number, isReady: () => Promise<boolean>) => Promise<void>;
}

export interface StartOptions {
  /** Words before the command: a namespace, a priority. */
  readonly prefix?: readonly string[];
  /** Some programs exit with an error code when they are terminated. */
  readonly anyExitCode?: boolean;
}

/** Stops everything that was started with it. */
export class Launcher {
  readonly #folder: string;
  readonly #load: string;
  readonly #children = new Set<ChildProcess>();
  readonly #kept = new Set<ChildProcess>();
  #count = 0;

  /** `folder` takes files and logs; `load` is the load generator's executable. */
  constructor(folder: string, load: string) {
    this.#folder = folder;
    this.#load = load;
  }

  /** A file for a program; its path. */
  write(name: string, text: string): string {
    const path = join(this.#folder, name);
    writeFileSync(path, text, { mode: 0o600 });
    return path;
  }

  /** Starts a mode of the load generator that serves until everything is stopped. Returns its first line. */
  async keep(args: readonly string[], prefix: readonly string[]): Promise<LoadResult> {
    const child = this.#spawnLoad(args, "ignore", prefix);
    this.#kept.add(child);
    return await answers(child).next();
  }

  /** As `keep`, for a program that is measured. */
  async serve(name: string, args: readonly string[], prefix: readonly string[]): Promise<{ program: Program; said: LoadResult }> {
    const child = this.#spawnLoad(args, "ignore", prefix);
    const said = await answers(child).next();
    return { program: { name, usage: () => readUsage(child.pid!), stop: () => end(child).then(() => undefined) }, said };
  }

  /** Runs the load generator to its end. */
  async load(args: readonly string[], prefix: readonly string[]): Promise<LoadResult> {
    const { next, ended } = answers(this.#spawnLoad(args, "ignore", prefix));
    const result = await next();
    await ended;
    return result;
  }

  /** Starts a mode of the load generator that ends with its input. */
  async hold(args: readonly string[], prefix: readonly string[]): Promise<Held> {
    const child = this.#spawnLoad(args, "pipe", prefix);
    const { next, ended } = answers(child);
    const opened = await next();
    return {
      opened,
      usage: () => readUsage(child.pid!),
      close: async () => {
        child.stdin!.end();
        const closed = await next();
        await ended;
        return closed;
      },
    };
  }

  /** Ends everything but what is kept. */
  async stopPrograms(): Promise<void> {
    await Promise.all([...this.#children].filter((child) => !this.#kept.has(child)).map(end));
  }

  async stopAll(): Promise<void> {
    await Promise.all([...this.#children].map(end));
  }

  /** Does not wait for them. */
  killAll(): void {
    for (const child of this.#children) child.kill("SIGKILL");
  }

  #spawnLoad(args: readonly string[], input: "ignore" | "pipe", prefix: readonly string[]): ChildProcess {
    return this.#spawn([...prefix, this.#load, ...args], [input, "pipe", "inherit"]);
  }

  #spawn([file, ...args]: readonly string[], stdio: ("ignore" | "pipe" | "inherit" | number)[]): ChildProcess {
    const child = spawn(file!, args, { stdio });
    this.#children.add(child);
    child.once("exit", () => {
      this.#children.delete(child);
      this.#kept.delete(child);
    });
    return child;
  }

  /** The prefix must replace itself by the command, as `nice` does: the process that is measured is the program's own. */
  start(name: string, command: readonly string[], { prefix = [], anyExitCode = false }: StartOptions = {}): Running {
    const logFile = join(this.#folder, `${name}-${++this.#count}.log`);
    const log = openSync(logFile, "w");
    const child = this.#spawn([...prefix, ...command], ["ignore", log, log]);
    closeSync(log);
    const describe = () => `${name} ended with ${child.signalCode ?? child.exitCode}: ${lastLines(logFile)}`;
    return {
      name,
      usage: () => readUsage(child.pid!),
      stop: async () => {
        const early = hasEnded(child);
        await end(child);
        return !early && (anyExitCode || child.exitCode === 0 || child.signalCode === "SIGTERM") ? undefined : describe();
      },
      until: async (pauseMs: number, isReady: () => Promise<boolean>) => {
        const deadline = performance.now() + READY_TIMEOUT_MS;
        while (!await isReady()) {
          if (hasEnded(child)) throw new Error(describe());
          if (performance.now() > deadline) throw new Error(`${name} is not ready in time: ${lastLines(logFile)}`);
          await sleep(pauseMs);
        }
      },
    };
  }
}

function hasEnded(child: ChildProcess): boolean {
  return child.exitCode !== null || child.signalCode !== null;
}

async function end(child: ChildProcess): Promise<void> {
  if (hasEnded(child)) return;
  const exited = new Promise((resolve) => child.once("exit", resolve));
  child.kill("SIGTERM");
  const timer = setTimeout(() => child.kill("SIGKILL"), STOP_TIMEOUT_MS);
  await exited;
  clearTimeout(timer);
}

function lastLines(file: string): string {
  return readFileSync(file, "utf8").trimEnd().split("\n").slice(-5).join("\n");
}

/** The lines of the load generator. */
function answers(child: ChildProcess): { next: () => Promise<LoadResult>; ended: Promise<void> } {
  const ended = new Promise<void>((resolve, reject) => {
    child.once("exit", () => resolve());
    child.once("error", reject);
  });
  const lines = createInterface({ input: child.stdout! })[Symbol.asyncIterator]();
  const next = async () => {
    const { value, done } = await lines.next();
    if (done) throw new Error("The load generator has ended without an answer");
    return JSON.parse(value) as LoadResult;
  };
  return { next, ended };
}

function readUsage(pid: number): Usage {
  const sum = readOwnUsage(pid);
  for (const child of descendantsOf(pid)) {
    const usage = unlessEnded(() => readOwnUsage(child));
    for (const key of Object.keys(sum) as (keyof Usage)[]) sum[key] += usage?.[key] ?? 0;
  }
  return sum;
}

/** sshd serves each connection in a child. */
function descendantsOf(pid: number): number[] {
  const children = new Map<number, number[]>();
  for (const entry of readdirSync("/proc")) {
    if (!/^\d+$/.test(entry)) continue;
    const parent = unlessEnded(() => Number(readStat(Number(entry))[1]));
    if (parent !== undefined) children.set(parent, [...(children.get(parent) ?? []), Number(entry)]);
  }
  const below = (parent: number): number[] => (children.get(parent) ?? []).flatMap((child) => [child, ...below(child)]);
  return below(pid);
}

/** A process may end while it is read; its parent then has its CPU time. */
function unlessEnded<T>(read: () => T): T | undefined {
  try {
    return read();
  } catch {
    return undefined;
  }
}

/** The fields from the third on: the second, the program's name, may contain anything but ends with the last bracket. */
function readStat(pid: number): string[] {
  return readFileSync(`/proc/${pid}/stat`, "utf8").split(") ").at(-1)!.split(" ");
}

function readOwnUsage(pid: number): Usage {
  const read = (name: string) => readFileSync(`/proc/${pid}/${name}`, "utf8");
  const mib = (text: string, name: string) => Number(new RegExp(`^${name}:\\s+(\\d+) kB$`, "m").exec(text)![1]) / 1024;
  const status = read("status");
  // user and system time of its own, then of children that it has waited for
  const ticks = readStat(pid).slice(11, 15).reduce((sum, field) => sum + Number(field), 0);
  return {
    cpuSeconds: ticks / TICKS_PER_SECOND,
    rssMiB: mib(status, "VmRSS"),
    pssMiB: mib(read("smaps_rollup"), "Pss"),
    peakMiB: mib(status, "VmHWM"),
    files: readdirSync(`/proc/${pid}/fd`).length,
  };
}
