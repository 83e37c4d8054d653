// Runs the fuzzers of the native engine (`native/fuzz`) with libFuzzer, built by a stable compiler: coverage, and no sanitizer.
import { spawnSync } from "node:child_process";
import { globSync, mkdirSync } from "node:fs";
import { basename, join } from "node:path";
import process from "node:process";
import { patchCrates } from "../../tools/crates.ts";
import { ROOT } from "../../testing/programs.ts";

const CRATE = join(ROOT, "native", "fuzz");
/** Folders for builds and findings: inputs that reach new code, and those that cause a failure. */
const FOLDER = join(ROOT, "native", "target", "fuzz");

/** The compiler flags of cargo-fuzz. */
const FLAGS = [
  "--cfg=fuzzing",
  "-Ccodegen-units=1",
  "-Cpasses=sancov-module",
  "-Cllvm-args=-sanitizer-coverage-level=4",
  "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
  "-Cllvm-args=-sanitizer-coverage-pc-table",
  "-Cllvm-args=-sanitizer-coverage-trace-compares",
  "-Cllvm-args=-simplifycfg-branch-fold-threshold=0",
];

/** Runs each target for `seconds`, and returns whether none failed. */
export function fuzzRust(seconds: number, seed: number): boolean {
  const host = /^host: (.*)$/m.exec(spawnSync("rustc", ["-vV"], { encoding: "utf8" }).stdout ?? "")?.[1];
  if (host === undefined) throw new Error("Cannot fuzz the native engine: there is no Rust compiler. Install one from https://rustup.rs");
  patchCrates();
  const env = { ...process.env, CARGO_TARGET_DIR: FOLDER, RUSTFLAGS: FLAGS.join(" ") };
  // a target is named so that build scripts do without the flags
  const built = spawnSync("cargo", ["build", "--release", "--locked", "--bins", "--target", host], { cwd: CRATE, env, stdio: "inherit" });
  if (built.status !== 0) throw new Error("Cannot fuzz the native engine: the compiler's messages are above");
  return globSync("fuzz_targets/*.rs", { cwd: CRATE }).sort().map((file) => {
    const target = basename(file, ".rs");
    const [corpus, artifacts] = ["corpus", "artifacts"].map((name) => join(FOLDER, name, target)) as [string, string];
    for (const folder of [corpus, artifacts]) mkdirSync(folder, { recursive: true });
    console.log(`--- ${target}: what is found is in ${corpus}, and what breaks it in ${artifacts}`);
    const limits = ["-timeout=20", "-rss_limit_mb=2048", "-max_len=4096", `-max_total_time=${seconds}`, `-seed=${seed % 2 ** 31 || 1}`];
    const args = [corpus, join(CRATE, "seeds", target), ...limits, `-artifact_prefix=${artifacts}/`, "-print_final_stats=1"];
    return spawnSync(join(FOLDER, host, "release", target), args, { stdio: "inherit" }).status === 0;
  }).every(Boolean);
}
