// Installs the programs that the tests need, builds, runs every check, and prints `N passed, N failed`. `--only=unit,system` selects some.
import { Buffer } from "node:buffer";
import { spawn, type SpawnOptions, spawnSync } from "node:child_process";
import { mkdtempSync, readdirSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import process from "node:process";
import { stripVTControlCharacters } from "node:util";
import { requireAll } from "./requirements.ts";

const root = join(import.meta.dirname!, "..");
const deno = process.execPath;
const bun = join(root, "node_modules", ".bin", "bun");
const bundles = mkdtempSync(join(tmpdir(), "reverse-http-tests-"));
process.on("exit", () => rmSync(bundles, { recursive: true, force: true }));

interface Check {
  name: string;
  command: string[];
  cwd?: string;
  env?: Record<string, string>;
  /** Only checks of the same group run beside it. */
  group?: string;
  /** Reads the numbers of passed and failed tests from the output. Without it, the check counts as one test. */
  count?: (output: string) => [passed: number, failed: number];
  /** Runs files that have failed once more, when nothing else runs. Missing: a failure is final. */
  repetition?: Repetition;
}

/** How to run single test files of a check. */
interface Repetition {
  /** The files of the failed tests in the output. */
  failedFiles(output: string): string[];
  command(file: string): string[];
}

interface Result {
  readonly check: Check;
  readonly passed: number;
  readonly failed: number;
  readonly failedFiles: readonly string[];
}

/** Timeout of a check, in minutes. */
const CHECK_LIMIT = 20;
/** Maximum number of checks that run side by side: most of them wait rather than compute, except where they start many programs. */
const lanesOf = (group?: string) => group === "executables" ? 2 : 3;

/** A line of Bun, Deno or Cargo about a test that passed. */
const PASSED = /^\(pass\) |^\s*\S.* \.\.\. ok\b/;

const number = (match: RegExpExecArray | null) => Number(match?.[1] ?? 0);
const denoCount: Check["count"] = (o) => [number(/\b(\d+) passed(?: \(\d+ steps?\))? \|/.exec(o)), number(/\| (\d+) failed/.exec(o))];
const bunCount: Check["count"] = (o) => [number(/^\s*(\d+) pass$/m.exec(o)), number(/^\s*(\d+) fail$/m.exec(o))];
const nodeCount: Check["count"] = (o) => [number(/^(?:#|ℹ) pass (\d+)$/m.exec(o)), number(/^(?:#|ℹ) fail (\d+)$/m.exec(o))];
const cargoCount: Check["count"] = (o) => [number(/(\d+) passed;/.exec(o)), number(/; (\d+) failed;/.exec(o))];

/** Finds the files of failures where a runner prints a file's name before its results. */
function filesOf(output: string, heading: RegExp, failure: RegExp): string[] {
  const files = new Set<string>();
  let file = "";
  for (const line of output.split("\n")) {
    file = heading.exec(line)?.[1] ?? file;
    if (failure.test(line)) files.add(file);
  }
  return [...files];
}
const bunFile: Repetition = {
  // an error outside of tests has no line of its own
  failedFiles(output) {
    const [results] = output.split(/^\d+ tests failed:$/m); // the failures are listed again after it
    return /^\s*\d+ errors?$/m.test(output) ? [] : filesOf(results!, /^(tests\/\S+_test\.ts):$/, /^\(fail\) /);
  },
  command: (file) => [bun, "test", "--timeout=60000", `./${file}`],
};
const denoFile: Repetition = {
  failedFiles: (output) => filesOf(output, /^running \d+ tests? from \.\/(tests\/\S+_test\.ts)$/, /\.\.\. FAILED/),
  command: (file) => [deno, "test", "-A", "--quiet", "--no-check", file],
};
/** Failures in more files are no accident of a busy machine. */
const MAX_REPEATED = 3;

const crate = join(root, "native");
const cargoEnv = { CARGO_TARGET_DIR: join(crate, "target") };
const underBun = (suite: string): Check => (
  { name: `${suite} (Bun)`, command: [bun, "test", "--timeout=60000", `./tests/${suite}/`], count: bunCount, repetition: bunFile }
);
/** Half of the test files of a suite. */
const halfUnderBun = (suite: string, half: 0 | 1): Check => {
  const files = readdirSync(join(root, "tests", suite)).filter((name) => name.endsWith("_test.ts")).sort();
  return {
    name: `${suite} (Bun, ${half + 1} of 2)`,
    command: [bun, "test", "--timeout=60000", ...files.filter((_, at) => at % 2 === half).map((name) => `./tests/${suite}/${name}`)],
    count: bunCount,
    repetition: bunFile,
  };
};
const underBoth = (suite: string): Check[] => [
  {
    name: `${suite} (Deno)`,
    command: [deno, "test", "-A", "--quiet", "--no-check", `tests/${suite}/`],
    count: denoCount,
    repetition: denoFile,
  },
  underBun(suite),
];
const conformance = join("tests", "conformance", "native_test.ts");

/** The files with the library's functions and their examples. */
const LIBRARY = [
  "mod.ts",
  ...[join("address", "allow_list"), join("log", "logger"), join("net", "native", "binding"), join("store", "memory")].map((name) =>
    join("shared", `${name}.ts`)
  ),
];

const CHECKS: Check[] = [
  {
    name: "bundle for Node",
    command: [bun, "build", "--target=node", `--outfile=${join(bundles, "native_test.mjs")}`, conformance],
    group: "bundle", // a later check runs it
  },
  { name: "format", command: [deno, "fmt", "--check", "--quiet"] },
  { name: "lint", command: [deno, "lint", "--quiet"] },
  { name: "types", command: [deno, "check", "--quiet", "."] },
  { name: "types in documents", command: [deno, "check", "--quiet", "--doc-only", "README.md", join("docs", "library.md"), ...LIBRARY] },
  { name: "documentation of the library", command: [deno, "doc", "--lint", "mod.ts"] },
  { name: "types of the library", command: [deno, "publish", "--dry-run", "--allow-dirty", "--quiet"] },
  { name: "rust format", command: ["cargo", "fmt", "--check"], cwd: crate },
  { name: "rust format of the bench", command: ["cargo", "fmt", "--check"], cwd: join(root, "tests", "bench", "load") },
  {
    name: "rust lint",
    command: ["cargo", "clippy", "--release", "--locked", "--all-targets", "--quiet", "--", "-D", "warnings"],
    cwd: crate,
    env: cargoEnv,
  },
  ...underBoth("unit"),
  // cargo locks the folder of its builds, so the next check with it comes later
  { name: "rust tests", command: ["cargo", "test", "--locked", "--quiet"], cwd: crate, env: cargoEnv, count: cargoCount },
  ...underBoth("fuzz"),
  ...underBoth("conformance"),
  {
    name: "rust fuzzers",
    command: ["cargo", "test", "--locked", "--quiet"],
    cwd: join(crate, "fuzz"),
    env: cargoEnv,
    count: cargoCount,
  },
  {
    name: "conformance (Node)",
    command: ["node", "--test", join(bundles, "native_test.mjs")],
    env: { REVERSE_HTTP_TEST_ADDON: join(crate, "reverse-http.node") },
    count: nodeCount,
  },
  // only with Bun: they test the executables, and start many programs
  { ...halfUnderBun("system", 0), group: "executables" },
  { ...halfUnderBun("system", 1), group: "executables" },
  { ...underBun("fault"), group: "executables" },
  ...underBoth("release"),
  // also builds the load generator, with the engine's crates
  {
    name: "bench",
    command: [deno, "run", "-A", join("tests", "bench", "bench.ts"), "--smoke", "--limit", `--json=${join(bundles, "bench.json")}`],
    group: "bench",
  },
  // only root may make network namespaces
  ...(process.getuid?.() === 0
    ? [{
      name: "bench over a veth",
      command: [
        deno,
        "run",
        "-A",
        join("tests", "bench", "bench.ts"),
        "--smoke",
        "--veth",
        "--tcp-congestion=reno",
        "--ssh",
        "--only=down,rate1",
      ],
      group: "bench over a veth",
    }]
    : []),
];

/** Runs a check and prints its result. Never rejects. */
async function run(check: Check): Promise<Result> {
  const { name, command: [file, ...args], cwd = root, env, count, repetition } = check;
  const started = Date.now();
  const { status, output } = await execute(file!, args, { cwd, env: { ...process.env, NO_COLOR: "1", ...env } });
  let [passed, failed] = count?.(output) ?? (status === 0 ? [1, 0] : [0, 1]);
  // a runner that fails without a failed test, or finds no test, has failed too
  if (failed === 0 && (status !== 0 || passed === 0)) failed = 1;
  console.log(
    `${failed === 0 ? "ok  " : "FAIL"} ${name}: ${passed} passed, ${failed} failed (${((Date.now() - started) / 1000).toFixed(1)} s)`,
  );
  // what passed would hide the rest
  if (failed > 0) console.log(output.split("\n").filter((line) => !PASSED.test(line)).join("\n"));
  return { check, passed, failed, failedFiles: failed > 0 ? repetition?.failedFiles(output) ?? [] : [] };
}

/** Runs the failed files of a check again, one at a time, and returns what remains failed. */
async function repeat({ check: { name, repetition, ...check }, failed, failedFiles }: Result): Promise<number> {
  if (!repetition || failedFiles.length === 0 || failedFiles.length > MAX_REPEATED || failedFiles.includes("")) return failed;
  for (const file of failedFiles) {
    const again = await run({ ...check, name: `${name}, again: ${file}`, command: repetition.command(file) });
    if (again.failed > 0) return failed;
  }
  console.log(`FLAKY ${name}: ${failed} failed beside other tests, and passed alone`);
  return 0;
}

/** Resolves with the exit status and all output, standard output first; the status is `null` if the program did not start or was ended. */
function execute(file: string, args: string[], options: SpawnOptions): Promise<{ status: number | null; output: string }> {
  const { promise, resolve } = Promise.withResolvers<{ status: number | null; output: string }>();
  const child = spawn(file, args, { ...options, stdio: ["ignore", "pipe", "pipe"], timeout: CHECK_LIMIT * 60_000, killSignal: "SIGKILL" });
  const [stdout, stderr]: [Buffer[], Buffer[]] = [[], []];
  child.stdout!.on("data", (data: Buffer) => stdout.push(data));
  child.stderr!.on("data", (data: Buffer) => stderr.push(data));
  const settle = (status: number | null, error = "") =>
    resolve({ status, output: stripVTControlCharacters(`${Buffer.concat([...stdout, ...stderr])}${error}`) });
  child.on("error", (error) => settle(null, error.message));
  child.on("close", (status) => settle(status));
  return promise;
}

/** Runs the checks, a few side by side, then what has failed once more, and returns the sums of their results. */
async function runAll(checks: readonly Check[]): Promise<[passed: number, failed: number]> {
  const running = new Set<Promise<void>>();
  const results: Result[] = [];
  let group: string | undefined;
  for (const check of checks) {
    while (running.size >= (check.group === group ? lanesOf(group) : 1)) await Promise.race(running);
    group = check.group;
    const ended = run(check).then((result) => {
      results.push(result);
      running.delete(ended);
    });
    running.add(ended);
  }
  await Promise.all(running);
  let [passed, failed] = [0, 0];
  for (const result of results) {
    const remaining = await repeat(result);
    passed += result.passed + result.failed - remaining;
    failed += remaining;
  }
  return [passed, failed];
}

/** With `--only`, missing programs may not be needed; the tests that need one fail and name it. */
function prepare(isPartial: boolean): void {
  try {
    requireAll();
  } catch (error) {
    if (!isPartial) throw error;
    console.error(error instanceof Error ? error.message : error);
  }
  const built = spawnSync(deno, ["task", "build"], { cwd: root, stdio: "inherit" });
  if (built.status !== 0) throw new Error("Cannot run the tests: the build failed, see above");
}

const wanted = /^--only=(.+)$/.exec(process.argv[2] ?? "")?.[1]?.split(",");
const checks = CHECKS.filter(({ name }) => wanted === undefined || wanted.some((part) => name.includes(part)));
try {
  prepare(wanted !== undefined);
} catch (error) {
  console.error(error instanceof Error ? error.message : error);
  process.exit(1);
}
const [passed, failed] = await runAll(checks);
console.log(`${passed} passed, ${failed} failed`);
process.exit(failed === 0 && passed > 0 ? 0 : 1);
