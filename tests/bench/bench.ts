// The bench: origin, proxy and agent as separate processes, loaded by a native generator, on loopback or over a veth of MTU 1,500; with other
// builds, the Go version and other tools in alternating runs, and with baselines. Linux only: it reads CPU time and memory from /proc.
import { Command, InvalidArgumentError } from "@commander-js/extra-typings";
import { spawnSync } from "node:child_process";
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import process from "node:process";
import { isInside, type Network, type NetworkOptions, openNetwork, problemOf as problemOfNetwork, runInside } from "./network.ts";
import { drawChart } from "./chart.ts";
import { Launcher } from "./processes.ts";
import { chartOf, writeBlocks } from "./quotes.ts";
import { columns, formatTable, formatVerdicts, markdown, type MetricSummary, type Run, summarize } from "./report.ts";
import { describeMachine, describeShortly, readQuoted, readResults, type Results, versionOf, writeResults } from "./results.ts";
import { FULL, type Outcome, type Scenario, type Sizes, SMOKE } from "./scenario.ts";
import { SCENARIOS } from "./scenarios.ts";
import { type LimitKind, readBuild, Setups, type Subject } from "./setups.ts";
import { GO, judge, LIMIT } from "./targets.ts";
import { problemOf as problemOfTool, type ToolName, TOOLS, type ToolSubject } from "./tools.ts";

const root = join(import.meta.dirname!, "..", "..");
const crate = join(root, "tests", "bench", "load");
const OWN = "reverse-http";
/** Scenarios in which a smoke run measures baselines and tools. */
const SMOKE_OTHERS = ["down", "rate1", "rtt-beside", "lossy"];
/** Above it, other programs use the machine. */
const QUIET_LOAD = 0.5;
const USAGE_ERROR = 2;

interface Plan {
  subjects: readonly Subject[];
  scenarios: readonly Scenario[];
  rounds: number;
  sizes: Sizes;
  network: NetworkOptions;
  /** Results of earlier runs, which are shown instead of measuring. */
  from: readonly string[];
  jsonFile: string | undefined;
  svgFile: string | undefined;
  markdown: boolean;
  writesDocuments: boolean;
}

function readPlan(args: readonly string[]): Plan {
  const options = new Command("bench")
    .description("Measures proxy and agent, beside other programs and beside baselines.")
    .option(
      "--dist <builds...>",
      "folders of executables, each '[LABEL=]FOLDER [OPTION OF THE AGENT]…'; the first is compared with the others",
      [
        join(root, "dist"),
      ],
    )
    .option("--go <file>", "the executable of the Go version")
    .option("--ssh [folder]", "ssh -R: the folder that has bin/ssh and sbin/sshd, by default /usr")
    .option("--frp <folder>", "frp: the folder that has frps and frpc")
    .option("--chisel <file>", "the executable of chisel")
    .option("--rathole <file>", "the executable of rathole")
    .option("--limit", "baselines: plain TCP, bare quinn, and quinn with TCP at both ends")
    .option("--veth", "agent and origin behind a veth of MTU 1,500 in a network namespace of their own; needs root")
    .option("--tcp-congestion <name>", "congestion control of TCP with --veth: cubic, bbr and others that the kernel has", "cubic")
    .option("--delay <ms>", "round trip between proxy and agent, by netem if the kernel has it, otherwise by a relay of UDP", parseDelay)
    .option("--only <names>", `scenarios, comma-separated: ${SCENARIOS.map(({ name }) => name).join(", ")}`, parseNames)
    .option("--rounds <n>", "how often each scenario runs; by default 3, or 1 with --smoke", parseRounds)
    .option("--smoke", "a few seconds for everything: shows that it runs, the values mean nothing")
    .option("--json <file>", "write the results there")
    .option("--svg <file>", "draw a chart of the ratios and their goals")
    .option("--markdown", "print the tables in Markdown")
    .option("--from <files...>", "measure nothing: show what earlier runs wrote with --json, together")
    .option("--write-docs", "measure nothing: write tables and chart of README.md and docs/ from tests/bench/results/")
    .exitOverride(({ exitCode }) => process.exit(exitCode === 0 ? 0 : USAGE_ERROR))
    .parse(args, { from: "user" }).opts();
  const tools = Object.entries({
    ssh: options.ssh === true ? "/usr" : options.ssh,
    frp: options.frp,
    chisel: options.chisel,
    rathole: options.rathole,
  }).flatMap(([tool, path]) =>
    path === undefined ? [] : [{ kind: "tool", name: TOOLS[tool as ToolName].title, tool, path } as ToolSubject]
  );
  const plan = {
    subjects: [
      ...options.dist.map(parseBuild),
      ...(options.go === undefined ? [] : [readGo(options.go)]),
      ...tools,
      ...(options.limit ? (Object.keys(LIMIT) as LimitKind[]).map((kind) => ({ kind, name: LIMIT[kind] })) : []),
    ],
    scenarios: SCENARIOS.filter(({ name }) => options.only?.includes(name) ?? true),
    rounds: options.rounds ?? (options.smoke ? 1 : 3),
    sizes: options.smoke ? SMOKE : FULL,
    network: { veth: options.veth ?? false, tcpCongestion: options.tcpCongestion, roundTripMs: options.delay ?? 0 },
    from: options.from ?? [],
    jsonFile: options.json,
    svgFile: options.svg,
    markdown: options.markdown ?? false,
    writesDocuments: options.writeDocs ?? false,
  };
  if (plan.from.length === 0 && !plan.writesDocuments) check(plan);
  return plan;
}

function check({ subjects, network }: Plan): void {
  for (const subject of subjects) {
    if (subject.kind === "tool") fail(problemOfTool(subject));
    if (subject.kind === "pair" && !existsSync(subject.proxy[0]!)) {
      fail(`Cannot start: there is no ${subject.proxy[0]}; run deno task build`);
    }
  }
  const names = subjects.map(({ name }) => name);
  if (new Set(names).size !== names.length) fail(`Cannot use --dist: labels must differ; current values are ${names.join(", ")}`);
  fail(problemOfNetwork(network));
}

function fail(problem: string | undefined): void {
  if (problem === undefined) return;
  console.error(problem);
  process.exit(USAGE_ERROR);
}

function parseBuild(text: string): Subject {
  const [build, ...agentOptions] = text.split(" ");
  const [, label = OWN, folder] = /^(?:([^=/]+)=)?(.+)$/.exec(build!)!;
  return readBuild(label, folder!, agentOptions);
}

function readGo(file: string): Subject {
  return { kind: "pair", name: GO, proxy: [file, "proxy"], agent: [file, "agent"], lb: [file, "lb"] };
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

function parseDelay(text: string): number {
  if (!/^[1-9][0-9]{0,2}$/.test(text)) throw new InvalidArgumentError("It must be a number of milliseconds from 1 to 999.");
  return Number(text);
}

/** Builds the load generator, if its sources have changed, and returns its executable. */
function buildLoad(): string {
  // in the engine's folder, so that common dependencies are compiled once
  const target = join(root, "native", "target");
  const args = ["build", "--release", "--locked", "--quiet"];
  const built = spawnSync("cargo", args, { cwd: crate, stdio: "inherit", env: { ...process.env, CARGO_TARGET_DIR: target } });
  if (built.status !== 0) throw new Error("Cannot build the load generator: is there a Rust compiler? https://rustup.rs has one");
  return join(target, "release", "load");
}

/** Whether the scenario can be measured with this subject. */
function applies({ sizes }: Plan, { relayDelayMs }: Network, { name, others = [], topology }: Scenario, subject: Subject): boolean {
  const { udp = false, neighbour } = topology ?? {};
  // the Go version does not have the options
  if (subject.kind === "pair") return subject.name !== GO || (neighbour?.proxyOptions === undefined && !udp);
  if (udp && !(subject.kind === "tool" && TOOLS[subject.tool].hasUdp)) return false;
  if (sizes === SMOKE && !SMOKE_OTHERS.includes(name)) return false;
  // the relay relays UDP only
  if (relayDelayMs > 0 && subject.kind !== "hops") return false;
  return others.includes(subject.kind);
}

function failed(error: unknown): Outcome {
  return { values: {}, errors: { [`failed: ${error instanceof Error ? error.message : error}`]: 1 } };
}

async function runOnce(setups: Setups, scenario: Scenario, subject: Subject, sizes: Sizes): Promise<Outcome> {
  const setup = await setups.make(subject, scenario.topology);
  // if it fails because a program has ended, the program's last output says why
  const { values, errors } = await scenario.run({ ...setup, sizes }).catch(failed);
  const problems = await setup.stop();
  return { values, errors: { ...errors, ...Object.fromEntries(problems.map((problem) => [problem, 1])) } };
}

async function runScenario(
  setups: Setups,
  { rounds, sizes }: Plan,
  scenario: Scenario,
  subjects: readonly Subject[],
  say: (text: string) => void,
): Promise<Run[]> {
  const runs: Run[] = [];
  for (let round = 1; round <= rounds; round++) {
    for (const subject of subjects) {
      say(`${scenario.name}, round ${round} of ${rounds}: ${subject.name}`);
      let outcome: Outcome;
      try {
        outcome = await runOnce(setups, scenario, subject, sizes);
      } catch (error) {
        outcome = failed(error);
        await setups.launcher.stopPrograms();
      }
      runs.push({ scenario: scenario.name, round, subject: subject.name, ...outcome });
    }
  }
  return runs;
}

/** On a terminal one line that changes; elsewhere a line for each scenario. */
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

async function measure(plan: Plan, launcher: Launcher, network: Network): Promise<Results> {
  const machine = describeMachine(network.description);
  if (machine.loadAverage > QUIET_LOAD) {
    console.log(`The machine is busy (load average ${machine.loadAverage.toFixed(2)}): trust the ratios only`);
  }
  const setups = await Setups.open(launcher, network);
  const subjects = plan.subjects.map((subject) => ({ name: subject.name, version: versionOf(subject) }));
  const runs: Run[] = [];
  const progress = new Progress();
  for (const [index, scenario] of plan.scenarios.entries()) {
    const say = progress.begin(scenario, index + 1, plan.scenarios.length);
    const measured = plan.subjects.filter((subject) => applies(plan, network, scenario, subject));
    try {
      runs.push(...await runScenario(setups, plan, scenario, measured, say));
    } finally {
      progress.end();
    }
    show(plan, scenario, { machine, subjects, runs });
    // also if a later scenario is interrupted
    if (plan.jsonFile !== undefined) writeResults(plan.jsonFile, { machine, subjects, runs });
  }
  return { machine, subjects, runs };
}

/** Prints the table of a scenario, if it was measured. */
function show(plan: Plan, scenario: Scenario, { runs, subjects }: Results): Record<string, MetricSummary> {
  const own = runs.filter((run) => run.scenario === scenario.name);
  const names = subjects.map(({ name }) => name);
  const summary = summarize(scenario, own, names);
  if (own.length > 0) console.log(`\n${formatTable(scenario, summary, own, names, plan.markdown ? markdown : columns)}`);
  return summary;
}

function report(plan: Plan, results: Results): void {
  const { machine, subjects, runs } = results;
  const names = subjects.map(({ name }) => name);
  const summary = Object.fromEntries(plan.scenarios.map((scenario) => [
    scenario.name,
    plan.from.length > 0 ? show(plan, scenario, results) : summarize(scenario, runs.filter((run) => run.scenario === scenario.name), names),
  ]));
  const verdicts = judge(summary, names[0]!);
  console.log(`\n${formatVerdicts(verdicts, plan.markdown ? markdown : columns)}`);
  const about = describeShortly(machine);
  console.log(`\n${about}, load average ${machine.loadAverage.toFixed(2)}`);
  if (plan.svgFile !== undefined) writeFileSync(plan.svgFile, drawChart(verdicts, about));
  for (const { name, version } of subjects) if (version !== undefined) console.log(`${name}: ${version}`);
}

function writeDocuments(): void {
  writeFileSync(join(root, "docs", "performance.svg"), chartOf(readQuoted("mtu-1500")));
  const docs = readdirSync(join(root, "docs")).filter((name) => name.endsWith(".md")).map((name) => join(root, "docs", name));
  for (const file of [join(root, "README.md"), ...docs]) {
    const text = readFileSync(file, "utf8");
    const written = writeBlocks(text);
    if (written === text) continue;
    writeFileSync(file, written);
    spawnSync(process.execPath, ["fmt", "--quiet", file], { stdio: "inherit" });
  }
}

const args = process.argv.slice(2);
const plan = readPlan(args);
if (plan.writesDocuments) writeDocuments();
else if (plan.from.length > 0) report(plan, readResults(plan.from));
else if (plan.network.veth && !isInside()) {
  buildLoad();
  process.exitCode = await runInside(import.meta.filename!, args, plan.network);
} else await run();

async function run(): Promise<void> {
  const folder = mkdtempSync(join(tmpdir(), "reverse-http-bench-"));
  const launcher = new Launcher(folder, buildLoad());
  for (const signal of ["SIGINT", "SIGTERM"] as const) {
    process.once(signal, () => {
      // at once, so that nothing else is started or reported in between; namespaces end with their processes
      launcher.killAll();
      rmSync(folder, { recursive: true, force: true });
      process.exit(1);
    });
  }
  const network = await openNetwork(plan.network);
  try {
    const results = await measure(plan, launcher, network);
    report(plan, results);
    // what another program cannot do is a result; what this one or the bench itself cannot do is a failure
    const own = new Set(plan.subjects.filter(({ kind, name }) => kind !== "tool" && name !== GO).map(({ name }) => name));
    process.exitCode = results.runs.some(({ subject, errors }) => own.has(subject) && Object.keys(errors).length > 0) ? 1 : 0;
  } finally {
    await launcher.stopAll();
    network.close();
    rmSync(folder, { recursive: true, force: true });
  }
}
