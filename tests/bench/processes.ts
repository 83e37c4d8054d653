// Starts and ends the programs that the bench needs, and reads what they cost from /proc. It knows nothing of what is measured with them.
import { type ChildProcess, spawn } from "node:child_process";
import { closeSync, openSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { setTimeout as sleep } from "node:timers/promises";

const READY_TIMEOUT_MS = 15_000;
const STOP_TIMEOUT_MS = 5_000;
/** Linux counts CPU time for user space in hundredths of a second, on every architecture. */
const TICKS_PER_SECOND = 100;

/** What a process costs at one moment. */
export interface Usage {
  /** User and system time of all its threads, those that have ended included. */
  cpuSeconds: number;
  /** Resident memory. */
  rssMiB: number;
  /** The same, with shared pages divided among those who share them. */
  pssMiB: number;
  /** The most that was ever resident. */
  peakMiB: number;
  /** Open file descriptors. */
  files: number;
}

/** A running process. */
export interface Program {
  readonly name: string;
  readonly usage: () => Usage;
  /** Ends it in good order; what it said where it did not end well. */
  readonly stop: () => Promise<string | undefined>;
}

/** One answer of the load generator: a line of JSON. */
export type LoadResult = Record<string, unknown>;

/** A load generator that holds something, tunnels or agents, until `close`. */
export interface Held {
  readonly opened: LoadResult;
  /** Its CPU time and memory meanwhile. */
  readonly usage: () => Usage;
  /** Sees which are still there, then closes them. */
  readonly close: () => Promise<LoadResult>;
}

/** A program of somebody else's that says nothing of how it does. */
export interface Running extends Program {
  /** Asks every `pauseMs` until `isReady`. */
  readonly until: (pauseMs: number, isReady: () => Promise<boolean>) => Promise<void>;
}

/** Everything that was started with it ends with it. */
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

  /**
   * A mode of the load generator that serves until it is stopped, and what it says first. It is ended with everything else, and no sooner.
   * `priority` comes before its command.
   */
  async keep(args: readonly string[], priority: readonly string[] = []): Promise<LoadResult> {
    const child = this.#spawnLoad(args, "ignore", priority);
    this.#kept.add(child);
    return await answers(child).next();
  }

  /** As `keep`, for a program that is measured. */
  async serve(name: string, args: readonly string[]): Promise<{ program: Program; said: LoadResult }> {
    const child = this.#spawnLoad(args, "ignore");
    const said = await answers(child).next();
    return { program: { name, usage: () => readUsage(child.pid!), stop: () => end(child).then(() => undefined) }, said };
  }

  /** Runs the load generator to its end. `priority` comes before its command. */
  async load(args: readonly string[], priority: readonly string[] = []): Promise<LoadResult> {
    const { next, ended } = answers(this.#spawnLoad(args, "ignore", priority));
    const result = await next();
    await ended;
    return result;
  }

  /** A mode of the load generator that goes on until its input ends. */
  async hold(args: readonly string[]): Promise<Held> {
    const child = this.#spawnLoad(args, "pipe");
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

  #spawnLoad(args: readonly string[], input: "ignore" | "pipe", priority: readonly string[] = []): ChildProcess {
    const [file, ...rest] = [...priority, this.#load, ...args];
    return this.#spawn(file!, rest, [input, "pipe", "inherit"]);
  }

  #spawn(file: string, args: readonly string[], stdio: ("ignore" | "pipe" | "inherit" | number)[]): ChildProcess {
    const child = spawn(file, args, { stdio });
    this.#children.add(child);
    child.once("exit", () => {
      this.#children.delete(child);
      this.#kept.delete(child);
    });
    return child;
  }

  /** `command` is for the shell, which it replaces: the process is the program's own. */
  start(name: string, command: string, args: readonly string[]): Running {
    const logFile = join(this.#folder, `${name}-${++this.#count}.log`);
    const log = openSync(logFile, "w");
    const child = this.#spawn("sh", ["-c", `exec ${command} "$@"`, "sh", ...args], ["ignore", log, log]);
    closeSync(log);
    const describe = () => `${name} (${command}) ended with ${child.signalCode ?? child.exitCode}: ${lastLines(logFile)}`;
    return {
      name,
      usage: () => readUsage(child.pid!),
      stop: async () => {
        const early = hasEnded(child);
        await end(child);
        return !early && (child.exitCode === 0 || child.signalCode === "SIGTERM") ? undefined : describe();
      },
      until: async (pauseMs: number, isReady: () => Promise<boolean>) => {
        const deadline = performance.now() + READY_TIMEOUT_MS;
        while (!await isReady()) {
          if (hasEnded(child)) throw new Error(describe());
          if (performance.now() > deadline) throw new Error(`${name} (${command}) is not ready in time: ${lastLines(logFile)}`);
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

/** What the load generator says, a line of JSON at a time. */
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
  const read = (name: string) => readFileSync(`/proc/${pid}/${name}`, "utf8");
  // the second field, the program's name, may hold anything but ends with the last bracket
  const fields = read("stat").split(") ").at(-1)!.split(" ");
  const mib = (text: string, name: string) => Number(new RegExp(`^${name}:\\s+(\\d+) kB$`, "m").exec(text)![1]) / 1024;
  const status = read("status");
  return {
    cpuSeconds: (Number(fields[11]) + Number(fields[12])) / TICKS_PER_SECOND,
    rssMiB: mib(status, "VmRSS"),
    pssMiB: mib(read("smaps_rollup"), "Pss"),
    peakMiB: mib(status, "VmHWM"),
    files: readdirSync(`/proc/${pid}/fd`).length,
  };
}
