// Makes the npm packages in dist/npm/: the library, and for each platform that was built with --target one with its native engine, which
// npm installs where it fits.
import { spawnSync } from "node:child_process";
import { copyFileSync, existsSync, mkdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import process from "node:process";
import { parseArgs } from "node:util";
import { parseTarGzip } from "nanotar";
import { manifest, ROOT } from "./executables.ts";
import { parseTargets, type Target, type TargetName, TARGETS } from "./targets.ts";

const folder = join(ROOT, "dist", "npm");
const { version } = manifest();
const common = {
  version,
  license: "Apache-2.0",
  repository: { type: "git", url: "git+https://github.com/reverse-http/reverse-http.git" },
  homepage: "https://github.com/reverse-http/reverse-http#readme",
};

function writePackage(name: string, values: object): void {
  writeFileSync(join(folder, name, "package.json"), `${JSON.stringify(values, null, 2)}\n`);
  console.log(`dist/npm/${name}`);
}

/** The sources as JavaScript, with the engines as what npm may leave out. */
async function makeLibrary(targets: readonly TargetName[]): Promise<void> {
  const archive = join(folder, "reverse-http.tgz");
  const { status, stderr } = spawnSync(process.execPath, ["pack", "--allow-dirty", "--quiet", "--output", archive], {
    cwd: ROOT,
    encoding: "utf8",
  });
  if (status !== 0) throw new Error(`Cannot pack the library: ${stderr}`);
  for (const { name, data } of await parseTarGzip(readFileSync(archive))) {
    const path = name.replace(/^package\//, "");
    if (!/^((agent|lb|proxy|shared)\/|[a-z]+\.(js|d\.ts)$|package\.json$|README\.md$|LICENSE$)/.test(path)) continue;
    mkdirSync(join(folder, "reverse-http", path, ".."), { recursive: true });
    writeFileSync(
      join(folder, "reverse-http", path),
      path === "main.js" ? `#!/usr/bin/env node\n${new TextDecoder().decode(data)}` : data!,
    );
  }
  rmSync(archive);
  const packed = JSON.parse(readFileSync(join(folder, "reverse-http", "package.json"), "utf8")) as object;
  writePackage("reverse-http", {
    ...packed,
    ...common,
    description: "A reverse HTTP proxy over QUIC, as a library",
    bin: { "reverse-http": "./main.js" },
    engines: { node: ">=22.12" },
    optionalDependencies: Object.fromEntries(targets.map((target) => [`@reverse-http/native-${target}`, version])),
  });
}

function makeEngine(target: TargetName): void {
  const { os, libc }: Target = TARGETS[target];
  const name = `native-${target}`;
  mkdirSync(join(folder, name), { recursive: true });
  copyFileSync(join(ROOT, "dist", target, "reverse-http.node"), join(folder, name, "reverse-http.node"));
  copyFileSync(join(ROOT, "LICENSE"), join(folder, name, "LICENSE"));
  writePackage(name, {
    name: `@reverse-http/${name}`,
    ...common,
    description: `The native engine of @reverse-http/reverse-http for ${target}`,
    main: "reverse-http.node",
    files: ["reverse-http.node"],
    os: [os],
    cpu: [target.split("-")[1]],
    ...(libc === undefined ? {} : { libc: [libc] }),
  });
}

try {
  const { values } = parseArgs({ options: { target: { type: "string", multiple: true, default: ["all"] } } });
  const targets = parseTargets(values.target);
  const missing = targets.filter((target) => !existsSync(join(ROOT, "dist", target)));
  if (missing.length > 0) throw new Error(`Cannot pack what is not built: run deno task build --target ${missing.join(",")}`);
  rmSync(folder, { recursive: true, force: true });
  mkdirSync(folder, { recursive: true });
  targets.forEach((target) => makeEngine(target));
  await makeLibrary(targets);
} catch (error) {
  console.error(error instanceof Error ? error.message : error);
  process.exit(1);
}
