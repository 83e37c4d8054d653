// Results of the bench as files: what was measured, on which machine, with which versions. tests/bench/results/ has those that the documents
// quote. It measures nothing.
import { spawnSync } from "node:child_process";
import { existsSync, readFileSync, writeFileSync } from "node:fs";
import { cpus, loadavg, release, totalmem } from "node:os";
import { dirname, join } from "node:path";
import process from "node:process";
import type { Run } from "./report.ts";
import type { Values } from "./scenario.ts";
import type { Subject } from "./setups.ts";
import { TOOLS } from "./tools.ts";

const RESULTS = join(import.meta.dirname!, "results");
const SIGNIFICANT_DIGITS = 5;

export interface Results {
  readonly machine: Machine;
  /** The first is this program. */
  readonly subjects: readonly { readonly name: string; readonly version?: string }[];
  readonly runs: readonly Run[];
}

/** What values depend on besides the programs. */
export interface Machine {
  readonly date: string;
  readonly cpu: string;
  readonly cores: number;
  readonly memoryGiB: number;
  readonly system: string;
  /** At the start. */
  readonly loadAverage: number;
  readonly network: string;
}

export function describeMachine(network: string): Machine {
  const [processor] = cpus();
  return {
    date: new Date().toISOString(),
    cpu: processor?.model ?? "unknown",
    cores: cpus().length,
    memoryGiB: Math.round(totalmem() / 2 ** 30),
    system: `${process.platform === "linux" ? "Linux" : process.platform} ${release().split(".", 2).join(".")}`,
    loadAverage: loadavg()[0]!,
    network,
  };
}

/** The version that a program itself prints, and the commit of the sources around a build. */
export function versionOf(subject: Subject): string | undefined {
  if (subject.kind !== "pair" && subject.kind !== "tool") return undefined;
  const [file, ...args] = subject.kind === "tool" ? TOOLS[subject.tool].version(subject.path) : [...subject.proxy, "--version"];
  const { stdout, stderr, status } = spawnSync(file!, args, { encoding: "utf8" });
  // ssh prints it to standard error, rathole behind a time
  const version = status === 0 ? /(?<![\d.:])\d+\.\d+[\w.-]*/.exec(stdout || stderr)?.[0] : undefined;
  const commit = subject.kind === "pair" ? commitOf(dirname(file!)) : undefined;
  return version !== undefined && commit !== undefined ? `${version} (${commit})` : version;
}

function commitOf(folder: string): string | undefined {
  const git = (...args: string[]) => spawnSync("git", args, { cwd: folder, encoding: "utf8" });
  const { status, stdout } = git("rev-parse", "--short=10", "HEAD");
  const isChanged = git("status", "--porcelain", "--untracked-files=no").stdout?.trim() !== "";
  return status === 0 ? `commit ${stdout.trim()}${isChanged ? " with changes" : ""}` : undefined;
}

/** One run a line, so that a difference is readable. */
export function writeResults(file: string, { machine, subjects, runs }: Results): void {
  const lines = runs.map(({ values, ...run }) => JSON.stringify({ ...run, values: round(values) }));
  const [head, tail] = JSON.stringify({ machine, subjects, runs: [] }, undefined, 1).split("[]");
  writeFileSync(file, `${head}[\n${lines.join(",\n")}\n]${tail}\n`);
}

function round(values: Values): Values {
  const entries = Object.entries(values).filter(([, value]) => value !== undefined);
  return Object.fromEntries(entries.map(([key, value]) => [key, Number(value!.toPrecision(SIGNIFICANT_DIGITS))]));
}

/** The runs of several files as if they were of one: their rounds follow each other. */
export function readResults(files: readonly string[]): Results {
  const all = files.map((file) => JSON.parse(readFileSync(file, "utf8")) as Results);
  const subjects = new Map(all.flatMap(({ subjects }) => subjects.map((subject) => [subject.name, subject] as const)));
  const runs = all.flatMap(({ runs }, index) => runs.map((run) => ({ ...run, round: index * 1_000 + run.round })));
  return { machine: all[0]!.machine, subjects: [...subjects.values()], runs };
}

/** One line about the machine. */
export function describeShortly({ network, cores, cpu, memoryGiB, system, date }: Machine): string {
  return `${network}; ${cores} x ${cpu}, ${memoryGiB} GiB, ${system}, ${date.slice(0, 10)}`;
}

/** What the documents quote under `name`. */
export function readQuoted(name: string): Results {
  const file = join(RESULTS, `${name}.json`);
  if (!existsSync(file)) throw new Error(`There are no results ${name}: ${file} is missing`);
  return readResults([file]);
}
