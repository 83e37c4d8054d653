// The workflows, as far as they can be checked without running them.
import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { globSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { describe, it } from "node:test";
import { parse } from "yaml";
import { TARGETS } from "../../tools/targets.ts";
import { ROOT } from "../../testing/programs.ts";

interface Step {
  readonly uses?: string;
  readonly run?: string;
  readonly with?: Readonly<Record<string, unknown>>;
}

interface Job {
  readonly needs?: unknown;
  readonly permissions?: unknown;
  readonly "timeout-minutes"?: number;
  readonly steps: readonly Step[];
  readonly strategy?: { readonly matrix: { readonly include?: readonly Readonly<Record<string, string>>[] } };
}

interface Workflow {
  readonly permissions?: unknown;
  readonly jobs: Readonly<Record<string, Job>>;
}

const files = globSync(".github/workflows/*.yml", { cwd: ROOT });
const workflow = (file: string) => parse(readFileSync(join(ROOT, file), "utf8")) as Workflow;
const jobs = files.flatMap((file) => Object.entries(workflow(file).jobs).map(([name, job]) => ({ name: `${file}, ${name}`, job })));
const release = workflow(".github/workflows/release.yml");

describe("workflows", () => {
  it("pin each action to a commit, and name its version", () => {
    const used = files.flatMap((file) =>
      readFileSync(join(ROOT, file), "utf8").split("\n").filter((line) => /\buses:/.test(line)).map((line) => `${file}: ${line.trim()}`)
    );
    assert.ok(used.length > 5);
    for (const line of used) assert.match(line, /: (?:- )?uses: [\w./-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+$/);
  });

  it("have minimal permissions and timeouts", () => {
    for (const file of files) assert.ok(workflow(file).permissions !== undefined, file);
    for (const { name, job } of jobs) assert.ok(job["timeout-minutes"]! > 0, name);
  });

  it("run existing tasks", () => {
    const { tasks } = JSON.parse(readFileSync(join(ROOT, "deno.json"), "utf8")) as { tasks: Record<string, unknown> };
    for (const { name, job } of jobs) {
      for (const { run = "" } of job.steps) {
        for (const [, task] of run.matchAll(/\btask ([\w-]+)/g)) {
          assert.ok(Object.hasOwn(tasks, task!), `${name}: there is no task ${task}`);
        }
      }
    }
  });

  it("check the native engine with the oldest supported compiler, which documents name too", () => {
    const steps = workflow(".github/workflows/ci.yml").jobs["oldest-compiler"]!.steps.map(({ run = "" }) => run).join("\n");
    const [, read] = /version="\$\((sed .*)\)"/.exec(steps) ?? [];
    const version = spawnSync("sh", ["-c", read!], { cwd: ROOT, encoding: "utf8" }).stdout.trim();
    assert.match(version, /^1\.\d+(\.\d+)?$/);
    assert.match(steps, /cargo "\+\$version" check --locked/);
    for (const file of ["README.md", "CONTRIBUTING.md", "tools/native.ts"]) {
      assert.ok(readFileSync(join(ROOT, file), "utf8").includes(`${version} or later`), file);
    }
  });

  it("run all fuzzers by schedule", () => {
    const { jobs } = workflow(".github/workflows/fuzz.yml");
    const parts = jobs.fuzz!.strategy!.matrix.include!.map(({ part }) => part).sort();
    const [, known] = /^const all = \{ (.*) \};$/m.exec(readFileSync(join(ROOT, "tests/fuzz/long.ts"), "utf8")) ?? [];
    assert.deepEqual(parts, known!.split(", ").map((entry) => entry.split(":")[0]!).sort());
    assert.ok(Object.hasOwn((parse(readFileSync(join(ROOT, ".github/workflows/fuzz.yml"), "utf8")) as { on: object }).on, "schedule"));
  });

  it("build every target with its own standard library, and check it before the release", () => {
    const { strategy, steps } = release.jobs.build!;
    const built = strategy!.matrix.include!.map(({ target, rust }) => [target, rust]);
    assert.deepEqual(Object.fromEntries(built), Object.fromEntries(Object.entries(TARGETS).map(([name, { rust }]) => [name, rust])));
    const at = (pattern: RegExp) => steps.findIndex(({ run = "", uses = "" }) => pattern.test(run) || pattern.test(uses));
    assert.ok(at(/task build --release/) < at(/task verify-release/) && at(/task verify-release/) < at(/upload-artifact/));
  });

  it("install the packages and start the image before anything is published", () => {
    const steps = release.jobs.publish!.steps.map(({ run = "" }) => run);
    const at = (pattern: RegExp) => steps.findIndex((run) => pattern.test(run));
    const verified = steps.findIndex((run) => /task verify-packages/.test(run) && /task verify-image/.test(run));
    assert.ok(at(/task package$/) < verified);
    for (const pattern of [/--push/, /cosign sign/, /gh release create/]) assert.ok(verified < at(pattern), String(pattern));
    assert.deepEqual(release.jobs.library!.needs, "publish");
  });

  it("pass the builds of every target to packing and publishing", () => {
    const downloads = Object.values(release.jobs).flatMap(({ steps }) => steps).filter(({ uses = "" }) => /download-artifact/.test(uses));
    assert.equal(downloads.length, 2);
    for (const { with: values } of downloads) {
      const pattern = new RegExp(`^${String(values!.pattern).replaceAll("*", ".*")}$`);
      assert.deepEqual(Object.keys(TARGETS).filter((target) => !pattern.test(target)), []);
    }
  });

  it("put no untrusted text into a script", () => {
    for (const { name, job } of jobs) {
      for (const { run = "" } of job.steps) {
        for (const [, expression] of run.matchAll(/\$\{\{ *(.*?) *\}\}/g)) assert.match(expression!, /^matrix\./, `${name}: ${run}`);
      }
    }
  });

  const without = spawnSync("actionlint", ["--version"], { stdio: "ignore" }).error === undefined ? false : "there is no actionlint";
  it("pass actionlint", { skip: without }, () => {
    const { status, stdout } = spawnSync("actionlint", files, { cwd: ROOT, encoding: "utf8" });
    assert.equal(status, 0, stdout);
  });
});
