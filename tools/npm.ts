// Creates the npm packages in dist/npm/: the library, and one with the native engine for each platform that was built with --target. npm
// installs the matching engine.
import { spawnSync } from "node:child_process";
import { copyFileSync, existsSync, mkdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import process from "node:process";
import { parseArgs } from "node:util";
import { parseTarGzip } from "nanotar";
import { home, manifest, ROOT } from "./executables.ts";
import { parseTargets, type Target, type TargetName, TARGETS } from "./targets.ts";

const { version } = manifest();
const { url } = home();
const common = {
  version,
  license: "Apache-2.0",
  repository: { type: "git", url: `git+${url}.git` },
  homepage: `${url}#readme`,
};

function writePackage(folder: string, values: object): void {
  writeFileSync(join(folder, "package.json"), `${JSON.stringify(values, null, 2)}\n`);
}

/** Packages whose files the sources read by name, and do not import. */
const READ_PACKAGES = ["hash-wasm", "js-yaml"];

/** Their versions, as `deno.json` has them. */
function readDependencies(): Record<string, string> {
  const { imports } = manifest();
  return Object.fromEntries(READ_PACKAGES.map((name) => [name, imports[name]!.replace(`npm:${name}@`, "")]));
}

function run(file: string, args: readonly string[], what: string): void {
  const { status, stderr } = spawnSync(file, args, { cwd: ROOT, encoding: "utf8" });
  if (status !== 0) throw new Error(`Cannot ${what}: ${stderr}`);
}

/** The library: the sources as JavaScript, with the engines as optional dependencies. */
async function makeLibrary(folder: string, targets: readonly TargetName[]): Promise<void> {
  mkdirSync(folder, { recursive: true });
  const archive = join(folder, "packed.tgz");
  run(process.execPath, ["pack", "--allow-dirty", "--quiet", "--output", archive], "pack the library");
  for (const { name, data } of await parseTarGzip(readFileSync(archive))) {
    const path = name.replace(/^package\//, "");
    if (!/^((admin|agent|client|lb|proxy|shared)\/|[a-z]+\.(js|d\.ts)$|package\.json$|README\.md$|LICENSE$)/.test(path)) continue;
    mkdirSync(join(folder, path, ".."), { recursive: true });
    writeFileSync(
      join(folder, path),
      path === "main.js" ? `#!/usr/bin/env node\n${new TextDecoder().decode(data)}` : data!,
    );
  }
  rmSync(archive);
  run(
    join(ROOT, "node_modules", ".bin", "bun"),
    [join(ROOT, "tools", "dashboard.ts"), join(folder, "dashboard", "built")],
    "bundle the dashboard",
  );
  const packed = JSON.parse(readFileSync(join(folder, "package.json"), "utf8")) as { dependencies: Record<string, string> };
  writePackage(folder, {
    ...packed,
    ...common,
    description: "A reverse HTTP proxy over QUIC, as a library",
    bin: { "reverse-http": "./main.js" },
    engines: { node: ">=22.12" },
    dependencies: { ...packed.dependencies, ...readDependencies() },
    optionalDependencies: Object.fromEntries(targets.map((target) => [`@reverse-http/native-${target}`, version])),
  });
}

function makeEngine(folder: string, target: TargetName, addon: string): void {
  const { os, libc }: Target = TARGETS[target];
  mkdirSync(folder, { recursive: true });
  copyFileSync(addon, join(folder, "reverse-http.node"));
  copyFileSync(join(ROOT, "LICENSE"), join(folder, "LICENSE"));
  writePackage(folder, {
    name: `@reverse-http/native-${target}`,
    ...common,
    description: `The native engine of @reverse-http/reverse-http for ${target}`,
    main: "reverse-http.node",
    files: ["reverse-http.node"],
    os: [os],
    cpu: [target.split("-")[1]],
    ...(libc === undefined ? {} : { libc: [libc] }),
  });
}

/**
 * Creates the packages, each in its own folder in `folder`, and returns their names.
 * @param addons the native engines to package, by platform
 */
export async function makePackages(folder: string, addons: Readonly<Partial<Record<TargetName, string>>>): Promise<string[]> {
  for (const [target, addon] of Object.entries(addons)) makeEngine(join(folder, `native-${target}`), target as TargetName, addon);
  await makeLibrary(join(folder, "reverse-http"), Object.keys(addons) as TargetName[]);
  return [...Object.keys(addons).map((target) => `native-${target}`), "reverse-http"];
}

async function main(): Promise<void> {
  const { values } = parseArgs({ options: { target: { type: "string", multiple: true, default: ["all"] } } });
  const targets = parseTargets(values.target);
  const missing = targets.filter((target) => !existsSync(join(ROOT, "dist", target)));
  if (missing.length > 0) throw new Error(`Cannot pack missing executables: run deno task build --target ${missing.join(",")}`);
  const folder = join(ROOT, "dist", "npm");
  rmSync(folder, { recursive: true, force: true });
  const addons = Object.fromEntries(targets.map((target) => [target, join(ROOT, "dist", target, "reverse-http.node")]));
  for (const name of await makePackages(folder, addons)) console.log(`dist/npm/${name}`);
}

if (import.meta.main) {
  try {
    await main();
  } catch (error) {
    console.error(error instanceof Error ? error.message : error);
    process.exit(1);
  }
}
