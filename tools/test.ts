// Installs the programs that the tests need, builds, runs every check, and prints `N passed, N failed`. `--only=unit,system` selects some.
import { spawnSync } from "node:child_process";
import { mkdtempSync, rmSync } from "node:fs";
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
  /** Reads the numbers of passed and failed tests from the output. Without it, the check counts as one test. */
  count?: (output: string) => [passed: number, failed: number];
}

/** Timeout of a check, in minutes. */
const CHECK_LIMIT = 20;

const number = (match: RegExpExecArray | null) => Number(match?.[1] ?? 0);
const denoCount: Check["count"] = (o) => [number(/\b(\d+) passed(?: \(\d+ steps?\))? \|/.exec(o)), number(/\| (\d+) failed/.exec(o))];
const bunCount: Check["count"] = (o) => [number(/^\s*(\d+) pass$/m.exec(o)), number(/^\s*(\d+) fail$/m.exec(o))];
const nodeCount: Check["count"] = (o) => [number(/^(?:#|ℹ) pass (\d+)$/m.exec(o)), number(/^(?:#|ℹ) fail (\d+)$/m.exec(o))];
const cargoCount: Check["count"] = (o) => [number(/(\d+) passed;/.exec(o)), number(/; (\d+) failed;/.exec(o))];

const crate = join(root, "native");
const cargoEnv = { CARGO_TARGET_DIR: join(crate, "target") };
const underBun = (suite: string): Check => (
  { name: `${suite} (Bun)`, command: [bun, "test", "--timeout=60000", `./tests/${suite}/`], count: bunCount }
);
const underBoth = (suite: string): Check[] => [
  { name: `${suite} (Deno)`, command: [deno, "test", "-A", "--quiet", "--no-check", `tests/${suite}/`], count: denoCount },
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
  { name: "rust tests", command: ["cargo", "test", "--locked", "--quiet"], cwd: crate, env: cargoEnv, count: cargoCount },
  {
    name: "rust fuzzers",
    command: ["cargo", "test", "--locked", "--quiet"],
    cwd: join(crate, "fuzz"),
    env: cargoEnv,
    count: cargoCount,
  },
  ...underBoth("unit"),
  ...underBoth("fuzz"),
  ...underBoth("conformance"),
  { name: "bundle for Node", command: [bun, "build", "--target=node", `--outfile=${join(bundles, "native_test.mjs")}`, conformance] },
  {
    name: "conformance (Node)",
    command: ["node", "--test", join(bundles, "native_test.mjs")],
    env: { REVERSE_HTTP_TEST_ADDON: join(crate, "reverse-http.node") },
    count: nodeCount,
  },
  // only with Bun: they test the executables
  underBun("system"),
  underBun("fault"),
  ...underBoth("release"),
  // also builds the load generator, with the engine's crates
  {
    name: "bench",
    command: [deno, "run", "-A", join("tests", "bench", "bench.ts"), "--smoke", "--limit", `--json=${join(bundles, "bench.json")}`],
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
    }]
    : []),
];

function run({ name, command: [file, ...args], cwd = root, env, count }: Check): [passed: number, failed: number] {
  const started = Date.now();
  const result = spawnSync(file!, args, {
    cwd,
    env: { ...process.env, NO_COLOR: "1", ...env },
    encoding: "utf8",
    maxBuffer: 1 << 28,
    timeout: CHECK_LIMIT * 60_000,
    killSignal: "SIGKILL",
  });
  const output = stripVTControlCharacters(`${result.stdout ?? ""}${result.stderr ?? ""}`);
  let [passed, failed] = count?.(output) ?? (result.status === 0 ? [1, 0] : [0, 1]);
  // a runner that fails without a failed test, or finds no test, has failed too
  if (failed === 0 && (result.status !== 0 || passed === 0)) failed = 1;
  console.log(
    `${failed === 0 ? "ok  " : "FAIL"} ${name}: ${passed} passed, ${failed} failed (${((Date.now() - started) / 1000).toFixed(1)} s)`,
  );
  if (failed > 0) console.log(output, result.error ?? "");
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
let [passed, failed] = [0, 0];
for (const check of checks) {
  const [p, f] = run(check);
  passed += p;
  failed += f;
}
console.log(`${passed} passed, ${failed} failed`);
process.exit(failed === 0 && passed > 0 ? 0 : 1);
