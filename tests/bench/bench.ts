// The bench: origin, proxy and agent as processes of their own, loaded by a native generator; with --limit beside what nothing of the same
// parts can exceed, and with --against beside another proxy and agent, in turn. Linux only: it reads what processes cost from /proc.
import { Command, InvalidArgumentError } from "@commander-js/extra-typings";
import { spawnSync } from "node:child_process";
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { cpus, loadavg, release, tmpdir, totalmem } from "node:os";
import { join } from "node:path";
import process from "node:process";
import { drawChart } from "./chart.ts";
import { type LimitKind, Places, type Subject, type Surroundings } from "./workdirs.ts";
import { Launcher } from "./processes.ts";
import { columns, formatTable, formatVerdicts, markdown, type MetricSummary, type Run, summarize } from "./report.ts";
import { FULL, type Outcome, type Scenario, type Sizes, SMOKE } from "./scenario.ts";
import { SCENARIOS } from "./scenarios.ts";
import { AGAINST, judge, LIMIT } from "./targets.ts";

const root = join(import.meta.dirname!, "..", "..");
const crate = join(root, "tests", "bench", "load");
const dist = join(root, "dist");
const OWN = "this";
/** One of each sort shows that limits can be measured. */
const SMOKE_LIMITS = ["down", "rate1", "rtt-beside", "lossy"];
/** Above it, somebody else is at work on the machine. */
const QUIET_LOAD = 0.5;

/** What it was asked to do. */
interface Plan {
  subjects: readonly Subject[];
  scenarios: readonly Scenario[];
  rounds: number;
  sizes: Sizes;
  /** Results of earlier runs, which are shown instead of measuring. */
  from: readonly string[];
  jsonFile: string | undefined;
  svgFile: string | undefined;
  markdown: boolean;
}

/** What --json writes and --from reads. */
interface Results {
  readonly machine: ReturnType<typeof describeMachine>;
  readonly subjects: readonly Subject[];
  readonly runs: readonly Run[];
}

function readPlan(args: readonly string[]): Plan {
  const options = new Command("bench")
    .description("Measures proxy and agent, beside others and beside what is possible.")
    .option("--proxy <command>", "the proxy that is measured", join(dist, "reverse-http-proxy"))
    .option("--agent <command>", "the agent that is measured", join(dist, "reverse-http-agent"))
    .option("--lb <command>", "the load balancer that is measured", join(dist, "reverse-http-lb"))
    .option("--against <commands...>", "'PROXY COMMAND' 'AGENT COMMAND' ['LB COMMAND'] to alternate with; they take the same options")
    .option("--limit", "measure beside it: plain TCP, bare quinn, and quinn with TCP at both ends")
    .option("--only <names>", `scenarios, comma-separated: ${SCENARIOS.map(({ name }) => name).join(", ")}`, parseNames)
    .option("--rounds <n>", "how often each scenario runs; by default 3, or 1 with --smoke", parseRounds)
    .option("--smoke", "a few seconds for everything: shows that it runs, its figures say nothing")
    .option("--json <file>", "write the JSON there instead of printing it")
    .option("--svg <file>", "draw a chart of what is to be reached, and was")
    .option("--markdown", "print the tables in Markdown")
    .option("--from <files...>", "measure nothing: show what earlier runs wrote with --json, together")
    .exitOverride(({ exitCode }) => process.exit(exitCode === 0 ? 0 : 2))
    .parse(args, { from: "user" }).opts();
  for (const command of [options.proxy, options.agent, options.lb]) {
    if (command.startsWith(dist) && !options.from && !existsSync(command)) {
      fail(`Cannot start: there is no ${command}; run deno task build`);
    }
  }
  return {
    subjects: [
      { kind: "pair", name: OWN, proxy: options.proxy, agent: options.agent, lb: options.lb },
      ...(options.against ? [parseAgainst(options.against)] : []),
      ...(options.limit ? (Object.keys(LIMIT) as LimitKind[]).map((kind) => ({ kind, name: LIMIT[kind] })) : []),
    ],
    scenarios: SCENARIOS.filter(({ name }) => options.only?.includes(name) ?? true),
    rounds: options.rounds ?? (options.smoke ? 1 : 3),
    sizes: options.smoke ? SMOKE : FULL,
    from: options.from ?? [],
    jsonFile: options.json,
    svgFile: options.svg,
    markdown: options.markdown ?? false,
  };
}

function parseAgainst([proxy, agent, lb, ...more]: readonly string[]): Subject {
  if (proxy === undefined || agent === undefined || more.length > 0) {
    fail("Cannot use --against: it takes two commands, a proxy's and an agent's, or three with lb's, each in quotes");
  }
  return { kind: "pair", name: AGAINST, proxy, agent, lb };
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
  // the engine's: what both are built of is compiled once
  const target = join(root, "native", "target");
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
    memoryGiB: Math.round(totalmem() / 2 ** 30),
    system: `${process.platform} ${release()}`,
    loadAverage: loadavg()[0]!,
  };
}

function hasAll(subject: Subject & { kind: "pair" }, { lb, neighbour }: Surroundings = {}): boolean {
  return (!lb || subject.lb !== undefined) && (!neighbour?.proxyOptions || subject.name === OWN);
}

/** Whether the scenario can be measured with this subject. */
function applies({ sizes }: Plan, { name, limits = [], surroundings }: Scenario, subject: Subject): boolean {
  if (subject.kind === "pair") return hasAll(subject, surroundings);
  return limits.includes(subject.kind) && (sizes !== SMOKE || SMOKE_LIMITS.includes(name));
}

function failed(error: unknown): Outcome {
  return { figures: {}, errors: { [`failed: ${error instanceof Error ? error.message : error}`]: 1 } };
}

async function runOnce(places: Places, scenario: Scenario, subject: Subject, sizes: Sizes): Promise<Outcome> {
  const place = await places.make(subject, scenario.surroundings);
  // where it fails, a program that has ended says why
  const { figures, errors } = await scenario.run({ ...place, sizes }).catch(failed);
  const problems = await place.stop();
  return { figures, errors: { ...errors, ...Object.fromEntries(problems.map((problem) => [problem, 1])) } };
}

async function runScenario(places: Places, plan: Plan, scenario: Scenario, say: (text: string) => void): Promise<Run[]> {
  const runs: Run[] = [];
  for (let round = 1; round <= plan.rounds; round++) {
    for (const subject of plan.subjects.filter((subject) => applies(plan, scenario, subject))) {
      say(`${scenario.name}, round ${round} of ${plan.rounds}: ${subject.name}`);
      let outcome: Outcome;
      try {
        outcome = await runOnce(places, scenario, subject, plan.sizes);
      } catch (error) {
        outcome = failed(error);
        await places.launcher.stopPrograms();
      }
      runs.push({ scenario: scenario.name, round, subject: subject.name, ...outcome });
    }
  }
  return runs;
}

/** On a terminal one line, written over all the time; elsewhere a line a scenario. */
class Progress {
  readonly #started = performance.now();
  readonly #isTerminal = process.stderr.isTTY;
  #timer: ReturnType<typeof setInterval> | undefined;

  /** Returns what shows the steps of the scenario. */
  begin(scenario: Scenario, at: number, of: number): (step: string) => void {
    const head = `[${at}/${of}]`;
    if (!this.#isTerminal) {
      process.stderr.write(`${head} ${scenario.name}: ${scenario.title}\n`);
      return () => {};
    }
    let step = "";
    const draw = () => process.stderr.write(`\r\x1b[K${head} ${((performance.now() - this.#started) / 1000).toFixed(0)} s  ${step}`);
    this.#timer = setInterval(draw, 1_000);
    return (next) => {
      step = next;
      draw();
    };
  }

  end(): void {
    clearInterval(this.#timer);
    if (this.#isTerminal) process.stderr.write("\r\x1b[K");
  }
}

async function measure(plan: Plan, launcher: Launcher): Promise<Results> {
  const machine = describeMachine();
  if (machine.loadAverage > QUIET_LOAD) {
    console.log(`The machine is busy (load average ${machine.loadAverage.toFixed(2)}): trust the ratios only`);
  }
  const places = await Places.open(launcher);
  const runs: Run[] = [];
  const progress = new Progress();
  for (const [index, scenario] of plan.scenarios.entries()) {
    const say = progress.begin(scenario, index + 1, plan.scenarios.length);
    try {
      runs.push(...await runScenario(places, plan, scenario, say));
    } finally {
      progress.end();
    }
    show(plan, scenario, runs, plan.subjects);
  }
  return { machine, subjects: plan.subjects, runs };
}

/** What earlier runs wrote, as if it were of one run: their rounds follow each other. */
function read(files: readonly string[]): Results {
  const all = files.map((file) => JSON.parse(readFileSync(file, "utf8")) as Results);
  const subjects = new Map(all.flatMap(({ subjects }) => subjects.map((subject) => [subject.name, subject] as const)));
  const runs = all.flatMap(({ runs }, index) => runs.map((run) => ({ ...run, round: index * 1_000 + run.round })));
  return { machine: all[0]!.machine, subjects: [...subjects.values()], runs };
}

/** The table of a scenario, where it was measured. */
function show(plan: Plan, scenario: Scenario, runs: readonly Run[], subjects: readonly Subject[]): Record<string, MetricSummary> {
  const own = runs.filter((run) => run.scenario === scenario.name);
  const names = subjects.map(({ name }) => name);
  const summary = summarize(scenario, own, names);
  if (own.length > 0) console.log(`\n${formatTable(scenario, summary, own, names, plan.markdown ? markdown : columns)}`);
  return summary;
}

function report(plan: Plan, { machine, subjects, runs }: Results): void {
  const summary = Object.fromEntries(plan.scenarios.map((scenario) => [
    scenario.name,
    plan.from.length > 0
      ? show(plan, scenario, runs, subjects)
      : summarize(scenario, runs.filter((run) => run.scenario === scenario.name), subjects.map(({ name }) => name)),
  ]));
  const verdicts = judge(summary, OWN);
  console.log(`\n${formatVerdicts(verdicts, plan.markdown ? markdown : columns)}`);
  const about = `${machine.cores} x ${machine.cpu}, ${machine.memoryGiB} GiB, ${machine.system}, commit ${machine.commit}, ${machine.date}`;
  console.log(`\n${about}`);
  for (const { name, ...subject } of subjects) if (subject.kind === "pair") console.log(`${name}: ${subject.proxy} | ${subject.agent}`);
  if (plan.svgFile !== undefined) writeFileSync(plan.svgFile, drawChart(verdicts, about));
  if (plan.from.length > 0) return;
  const json = JSON.stringify({ machine, subjects, rounds: plan.rounds, sizes: plan.sizes, summary, verdicts, runs });
  if (plan.jsonFile === undefined) console.log(`\n${json}`);
  else writeFileSync(plan.jsonFile, `${json}\n`);
}

const plan = readPlan(process.argv.slice(2));
if (plan.from.length > 0) report(plan, read(plan.from));
else await run();

async function run(): Promise<void> {
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
    const results = await measure(plan, launcher);
    report(plan, results);
    // what another program cannot do is a finding; what this one or the bench itself cannot do is a failure
    const isFailure = ({ subject, errors }: Run) => subject !== AGAINST && Object.keys(errors).length > 0;
    process.exitCode = results.runs.some(isFailure) ? 1 : 0;
  } finally {
    await launcher.stopAll();
    rmSync(folder, { recursive: true, force: true });
  }
}
