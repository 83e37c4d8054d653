// Checks the executables of `deno task build --target …` before a release. Those for Linux are started (arm64 under qemu-user on another
// processor) and fetch a page: as they are, in an empty root with a read-only file system, and with the command lines of the Go project's
// compose files. Executables for macOS are inspected, and started on a Mac.
import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { existsSync, readFileSync } from "node:fs";
import { join } from "node:path";
import process from "node:process";
import { parseArgs } from "node:util";
import { makeAuthority } from "../testing/certificates.ts";
import { Folder, runToEnd, writeCertificates } from "../testing/programs.ts";
import { EXECUTABLES, ROOT } from "./executables.ts";
import { readMachO } from "./macho.ts";
import { hostTarget, parseTargets, type TargetName, TARGETS } from "./targets.ts";
import { Checks } from "./verify/check.ts";
import { COMPOSITIONS, verifyComposition } from "./verify/compositions.ts";
import { fetchPage } from "./verify/page.ts";
import { inEmptyRoot, inPlace, type Place } from "./verify/place.ts";

const checks = new Checks();

/** The newest version of glibc that a file needs. */
function newestGlibc(file: string): string {
  const { stdout, error } = spawnSync("readelf", ["--version-info", "--wide", file], { encoding: "utf8", maxBuffer: 1 << 28 });
  if (error) throw new Error("there is no readelf: install binutils");
  const versions = [...stdout.matchAll(/GLIBC_(\d+)\.(\d+)/g)].map(([, major, minor]) => [Number(major), Number(minor)] as const);
  return versions.sort((a, b) => a[0] - b[0] || a[1] - b[1]).at(-1)!.join(".");
}

/** The libraries that a file is linked with. */
function neededLibraries(file: string): string[] {
  const { stdout, error } = spawnSync("readelf", ["--dynamic", "--wide", file], { encoding: "utf8", maxBuffer: 1 << 28 });
  if (error) throw new Error("there is no readelf: install binutils");
  return [...stdout.matchAll(/\(NEEDED\).*\[(.+)\]/g)].map(([, library]) => library!);
}

type LinuxName = Extract<TargetName, `linux-${string}`>;

const isLinux = (target: TargetName): target is LinuxName => TARGETS[target].os === "linux";

async function verifyLinux(target: LinuxName, alpine: string | undefined): Promise<void> {
  const built = join(ROOT, "dist", target);
  const { libc, arch, oldest } = TARGETS[target];
  for (const name of [...Object.keys(EXECUTABLES), "reverse-http.node"]) {
    if (libc === "musl") {
      await checks.run(`${target} ${name} needs musl and libstdc++ alone`, () => {
        assert.deepEqual(
          neededLibraries(join(built, name)).filter((library) => !/^libc\.(so|musl-\w+\.so\.1)$|^libstdc\+\+\.so\.6$/.test(library)),
          [],
        );
      });
      continue;
    }
    await checks.run(`${target} ${name} runs on glibc ${oldest}`, () => {
      const newest = newestGlibc(join(built, name));
      const [, minor = "99"] = newest.split(".");
      assert.ok(Number(minor) <= Number(oldest.split(".")[1]), `it needs ${newest}`);
    });
  }
  if (libc === "musl" && alpine === undefined) {
    return console.log(
      `     ${target} cannot be started without --alpine, a folder with a root file system of Alpine and libstdc++ in ${arch}/`,
    );
  }
  using folder = new Folder();
  await writeCertificates(folder, await makeAuthority());
  using root = new Folder();
  await writeCertificates(root, await makeAuthority());
  const places: [string, Place][] = [[" from an empty root that is read-only", inEmptyRoot(target, root, alpine && join(alpine, arch))]];
  if (libc === "glibc") places.unshift(["", inPlace(target, folder.path)]);
  await checks.run(`${target} executables say their version and commit`, async () => {
    for (const name of Object.keys(EXECUTABLES)) {
      const [file, ...args] = places[0]![1].command(name);
      const { exitCode, stdout, stderr } = await runToEnd(file!, [...args, "version", "-V"], { env: { PATH: process.env.PATH! } });
      assert.equal(exitCode, 0, stderr);
      assert.match(stdout, /"commit":"[0-9a-f]{40}/, `${name}: ${stdout}`);
    }
  });
  const pairs: [string, [string[], string[]]][] = [
    ["reverse-http-proxy and -agent", [["reverse-http-proxy"], ["reverse-http-agent"]]],
    ["reverse-http proxy and agent", [["reverse-http", "proxy"], ["reverse-http", "agent"]]],
  ];
  for (const [what, pair] of pairs) {
    for (const [where, place] of places) await checks.run(`${target} ${what} bring a page${where}`, () => fetchPage(place, pair));
  }
  if (target !== hostTarget()) return;
  for (const name of Object.keys(COMPOSITIONS)) {
    await checks.run(
      `${target} brings pages with the command lines of the Go project's compose file ${name}`,
      () => verifyComposition(target, name),
    );
  }
}

async function verifyDarwin(target: TargetName): Promise<void> {
  const built = join(ROOT, "dist", target);
  const addon = readFileSync(join(built, "reverse-http.node"));
  const { arch, oldest } = TARGETS[target];
  for (const name of [...Object.keys(EXECUTABLES), "reverse-http.node"]) {
    await checks.run(
      `${target} ${name} is for ${arch}, macOS ${oldest} and later, needs the system's libraries alone, and is signed`,
      () => {
        const file = readFileSync(join(built, name));
        const found = readMachO(file);
        assert.equal(found.arch, arch);
        assert.ok(Number.parseFloat(found.oldest) <= Number.parseFloat(oldest), `it needs macOS ${found.oldest}`);
        assert.deepEqual(found.libraries.filter((library) => !/^\/(usr\/lib|System\/Library)\//.test(library)), []);
        if (name !== "reverse-http.node") assert.ok(file.includes(addon), "the native engine is not inside");
        if (name !== "reverse-http.node" || arch === "arm64") assert.equal(found.signatureProblem, undefined);
      },
    );
  }
  if (target !== hostTarget()) return console.log(`     ${target} cannot be started on this machine: it was inspected only`);
  using folder = new Folder();
  await writeCertificates(folder, await makeAuthority());
  await checks.run(`${target} codesign accepts all`, () => {
    for (const name of Object.keys(EXECUTABLES)) {
      const { status, stderr } = spawnSync("codesign", ["--verify", "--strict", join(built, name)], { encoding: "utf8" });
      assert.equal(status, 0, stderr);
    }
  });
  const place = inPlace(target, folder.path);
  await checks.run(`${target} brings a page`, () => fetchPage(place, [["reverse-http-proxy"], ["reverse-http-agent"]]));
}

const { values } = parseArgs({
  options: { target: { type: "string", multiple: true, default: ["all"] }, alpine: { type: "string" } },
});
const targets = parseTargets(values.target);
if (targets.some((target) => isLinux(target)) && process.getuid?.() !== 0) {
  console.error("Cannot make an empty root: only root can. Run this with sudo");
  process.exit(1);
}
for (const target of targets) {
  if (!existsSync(join(ROOT, "dist", target))) {
    await checks.run(`${target} is built`, () => assert.fail("it is not: run deno task build --target"));
  } else if (isLinux(target)) await verifyLinux(target, values.alpine);
  else await verifyDarwin(target);
}
checks.exit();
