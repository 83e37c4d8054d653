// The bench: origin, proxy and agent as processes of their own, loaded by a native generator, measured beside a direct connection and,
// with --against, beside another proxy and agent in turn. Linux only: it reads what processes cost from /proc.
import { Command, InvalidArgumentError } from "@commander-js/extra-typings";
import { spawnSync } from "node:child_process";
import { existsSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { cpus, loadavg, release, tmpdir } from "node:os";
import { join } from "node:path";
import process from "node:process";
import { Launcher, type Subject } from "./processes.ts";
import { DIRECT, formatTable, type MetricSummary, type Run, summarize } from "./report.ts";
import { type Bed, FULL, type Outcome, type Scenario, SCENARIOS, type Sizes, SMOKE } from "./scenarios.ts";

const root = join(import.meta.dirname!, "..", "..");
const crate = join(root, "tests", "bench", "load");
const OWN = "this";
/** Above it, somebody else is at work on the machine. */
const QUIET_LOAD = 0.5;

/** What it was asked to do. */
interface Plan {
  subjects: readonly Subject[];
  scenarios: readonly Scenario[];
  rounds: number;
  sizes: Sizes;
  jsonFile: string | undefined;
}

function readPlan(args: readonly string[]): Plan {
  const options = new Command("bench")
    .description("Measures proxy and agent beside a direct connection.")
    .option("--proxy <command>", "the proxy that is measured", join(root, "dist", "reverse-http-proxy"))
    .option("--agent <command>", "the agent that is measured", join(root, "dist", "reverse-http-agent"))
    .option("--against <commands...>", "'PROXY COMMAND' 'AGENT COMMAND' to alternate with; they take the same options")
    .option("--only <names>", `scenarios, comma-separated: ${SCENARIOS.map(({ name }) => name).join(", ")}`, parseNames)
    .option("--rounds <n>", "how often each scenario runs; by default 3, or 1 with --smoke", parseRounds)
    .option("--smoke", "a few seconds for everything: shows that it runs, its figures say nothing")
    .option("--json <file>", "write the JSON there instead of printing it")
    .exitOverride(({ exitCode }) => process.exit(exitCode === 0 ? 0 : 2))
    .parse(args, { from: "user" }).opts();
  const subjects: Subject[] = [{ name: OWN, proxy: options.proxy, agent: options.agent }];
  if (options.against) {
    const [proxy, agent, ...more] = options.against;
    if (proxy === undefined || agent === undefined || more.length > 0) {
      fail("Cannot use --against: it takes two commands, a proxy's and an agent's, each in quotes");
    }
    subjects.push({ name: "against", proxy, agent });
  }
  for (const command of [options.proxy, options.agent]) {
    if (command.startsWith(join(root, "dist")) && !existsSync(command)) fail(`Cannot start: there is no ${command}; run deno task build`);
  }
  return {
    subjects,
    scenarios: SCENARIOS.filter(({ name }) => options.only?.includes(name) ?? true),
    rounds: options.rounds ?? (options.smoke ? 1 : 3),
    sizes: options.smoke ? SMOKE : FULL,
    jsonFile: options.json,
  };
}

function parseNames(text: string): string[] {
  const names = text.split(",");
  for (const name of names) {
    if (!SCENARIOS.some((scenario) => scenario.name === name)) {
      throw new InvalidArgumentError(`There is no scenario ${JSON.stringify(name)}.`);
    }
  }
  return names;
}

function parseRounds(text: string): number {
  if (!/^[1-9][0-9]{0,2}$/.test(text)) throw new InvalidArgumentError("It must be a number from 1 to 999.");
  return Number(text);
}

function fail(message: string): never {
  console.error(message);
  process.exit(2);
}

/** The load generator's executable, built where its sources have changed. */
function buildLoad(): string {
  const target = join(crate, "target");
  const args = ["build", "--release", "--locked", "--quiet"];
  const built = spawnSync("cargo", args, { cwd: crate, stdio: "inherit", env: { ...process.env, CARGO_TARGET_DIR: target } });
  if (built.status !== 0) throw new Error("Cannot build the load generator: is there a Rust compiler? https://rustup.rs has one");
  return join(target, "release", "load");
}

/** What figures depend on besides the programs. */
function describeMachine() {
  const git = (...args: string[]) => spawnSync("git", args, { cwd: root, encoding: "utf8" }).stdout?.trim() ?? "";
  const [processor] = cpus();
  return {
    date: new Date().toISOString(),
    commit: `${git("rev-parse", "--short", "HEAD")}${git("status", "--porcelain", "--untracked-files=no") && "+"}`,
    cpu: processor?.model ?? "unknown",
    cores: cpus().length,
    system: `${process.platform} ${release()}`,
    loadAverage: loadavg()[0]!,
  };
}

/** A fresh proxy and agent for every run: what one load left behind does not weigh on the next. */
async function runOnce(
  launcher: Launcher,
  origin: string,
  scenario: Scenario,
  subject: Subject | undefined,
  sizes: Sizes,
): Promise<Outcome> {
  const pair = subject && await launcher.startPair(subject, origin);
  const way = ["--target", origin, ...(pair?.via ?? [])];
  const bed: Bed = {
    sizes,
    pair,
    load: (mode, ...options) => launcher.load([mode, ...way, ...options.map(String)]),
    hold: (tunnels) => launcher.hold([...way, "--tunnels", String(tunnels)]),
  };
  const { figures, errors } = await scenario.run(bed);
  const problems = await pair?.stop() ?? [];
  return { figures, errors: { ...errors, ...Object.fromEntries(problems.map((problem) => [problem, 1])) } };
}

async function runScenario(launcher: Launcher, origin: string, plan: Plan, scenario: Scenario): Promise<Run[]> {
  const runs: Run[] = [];
  const at = `${plan.scenarios.indexOf(scenario) + 1}/${plan.scenarios.length}`;
  for (let round = 1; round <= plan.rounds; round++) {
    for (const subject of [...(scenario.direct ? [undefined] : []), ...plan.subjects]) {
      const name = subject?.name ?? DIRECT;
      progress(`[${at}] ${scenario.name}, round ${round} of ${plan.rounds}: ${name}`);
      let outcome: Outcome;
      try {
        outcome = await runOnce(launcher, origin, scenario, subject, plan.sizes);
      } catch (error) {
        outcome = { figures: {}, errors: { [`failed: ${error instanceof Error ? error.message : error}`]: 1 } };
        await launcher.stopPrograms();
      }
      runs.push({ scenario: scenario.name, round, subject: name, ...outcome });
    }
  }
  progress("");
  return runs;
}

/** One line that is written over where that is possible. */
function progress(text: string): void {
  if (process.stderr.isTTY) process.stderr.write(`\r\x1b[K${text}`);
  else if (text) process.stderr.write(`${text}\n`);
}

async function bench(plan: Plan, launcher: Launcher): Promise<boolean> {
  const machine = describeMachine();
  console.log(`${machine.cores} x ${machine.cpu}, ${machine.system}, commit ${machine.commit}, ${machine.date}`);
  for (const { name, proxy, agent } of plan.subjects) console.log(`${name}: ${proxy} | ${agent}`);
  if (machine.loadAverage > QUIET_LOAD) {
    console.log(`The machine is busy (load average ${machine.loadAverage.toFixed(2)}): trust the ratios only`);
  }
  await launcher.makeCertificates();
  const origin = await launcher.startOrigin();
  const runs: Run[] = [];
  const summary: Record<string, Record<string, MetricSummary>> = {};
  const [own, ...others] = plan.subjects.map(({ name }) => name);
  const names = [own!, DIRECT, ...others];
  for (const scenario of plan.scenarios) {
    const done = await runScenario(launcher, origin, plan, scenario);
    const figures = summarize(scenario, done, names);
    runs.push(...done);
    summary[scenario.name] = figures;
    console.log(`\n${formatTable(scenario, figures, done, names)}`);
  }
  const json = JSON.stringify({ machine, subjects: plan.subjects, rounds: plan.rounds, sizes: plan.sizes, summary, runs });
  if (plan.jsonFile === undefined) console.log(`\n${json}`);
  else writeFileSync(plan.jsonFile, `${json}\n`);
  // what another program cannot do is a finding; what this one or the bench itself cannot do is a failure
  return runs.every(({ subject, errors }) => Object.keys(errors).length === 0 || others.includes(subject));
}

const plan = readPlan(process.argv.slice(2));
const folder = mkdtempSync(join(tmpdir(), "reverse-http-bench-"));
const launcher = new Launcher(folder, buildLoad());
for (const signal of ["SIGINT", "SIGTERM"] as const) {
  process.once(signal, () => {
    // all at once, so that nothing else is started or reported in between
    launcher.killAll();
    rmSync(folder, { recursive: true, force: true });
    process.exit(1);
  });
}
try {
  process.exitCode = await bench(plan, launcher) ? 0 : 1;
} finally {
  await launcher.stopAll();
  rmSync(folder, { recursive: true, force: true });
}
