// Packs the executables of `deno task build --target …` into dist/packages/: an archive for each executable and platform, .deb and .rpm,
// notices, bill of materials and checksums. The same input gives the same files.
import { spawnSync } from "node:child_process";
import { createHash } from "node:crypto";
import { copyFileSync, existsSync, mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import process from "node:process";
import { parseArgs } from "node:util";
import { gzipSync } from "node:zlib";
import { createTar } from "nanotar";
import { billOfMaterials, notices } from "./bill_of_materials.ts";
import { readComponents } from "./components.ts";
import { EXECUTABLES, home, manifest, ROOT } from "./executables.ts";
import { parseTargets, platformOf, type Target, type TargetName, TARGETS } from "./targets.ts";

const SHELLS = ["bash", "zsh", "fish"] as const;
const bun = join(ROOT, "node_modules", ".bin", "bun");

interface Release {
  readonly version: string;
  /** The commit's time in milliseconds since 1970, which all files get. */
  readonly time: number;
  readonly notices: string;
  /** The folder for the packages. */
  readonly folder: string;
}

/** Runs a program and returns its standard output. */
function output(file: string, args: readonly string[]): string {
  const { status, stdout, stderr, error } = spawnSync(file, args, { cwd: ROOT, encoding: "utf8", maxBuffer: 1 << 26 });
  if (status !== 0) throw new Error(`Cannot run ${file} ${args.join(" ")}: ${error?.message ?? stdout + stderr}`);
  return stdout;
}

/** The other files of an executable's archive, by name. */
function companions(name: keyof typeof EXECUTABLES, { notices }: Release): Record<string, string> {
  const entry = EXECUTABLES[name];
  return {
    "README.md": readFileSync(join(ROOT, "README.md"), "utf8"),
    "LICENSE": readFileSync(join(ROOT, "LICENSE"), "utf8"),
    "THIRD-PARTY-NOTICES.txt": notices,
    [`man/${name}.1`]: output(bun, [entry, "man"]),
    ...Object.fromEntries(SHELLS.map((shell) => [`completions/${name}.${shell}`, output(bun, [entry, "completion", shell])])),
  };
}

function packArchive(name: keyof typeof EXECUTABLES, target: TargetName, texts: Record<string, string>, release: Release): void {
  const attrs = { uid: 0, gid: 0, user: "root", group: "root", mtime: release.time };
  const tar = createTar([
    { name, data: readFileSync(join(ROOT, "dist", target, name)), attrs: { ...attrs, mode: "755" } },
    ...Object.entries(texts).map(([name, text]) => ({ name, data: new TextEncoder().encode(text), attrs: { ...attrs, mode: "644" } })),
  ]);
  write(release, `${name}_${release.version}_${platformOf(target)}.tar.gz`, gzipSync(tar, { level: 9 }));
}

/** Only glibc: distributions with .deb or .rpm have it. */
const isPackaged = (target: TargetName) => (TARGETS[target] as Target).libc === "glibc";

/** Packs reverse-http, which contains all services, as .deb and .rpm. */
function packSystemPackages(target: TargetName, texts: Record<string, string>, release: Release): void {
  const name = "reverse-http";
  const { arch } = TARGETS[target];
  const files = join(ROOT, "dist", "files", target);
  mkdirSync(files, { recursive: true });
  for (const file of [name, `${name}.node`]) copyFileSync(join(ROOT, "dist", target, file), join(files, file));
  for (const [path, text] of Object.entries(texts)) writeFileSync(join(files, path.split("/").at(-1)!), text);
  const { url, maintainer } = home();
  const values: Record<string, string> = {
    HOMEPAGE: url,
    MAINTAINER: maintainer,
    ARCH: arch,
    VERSION: release.version,
    DATE: new Date(release.time).toISOString(),
    FILES: files,
  };
  const config = join(files, "nfpm.yaml");
  const template = readFileSync(join(ROOT, "deploy", "packages", "nfpm.yaml"), "utf8");
  writeFileSync(config, template.replace(/\$\{(\w+)\}/g, (_, name: string) => values[name]!));
  for (const format of ["deb", "rpm"]) {
    const file = `${name}_${release.version}_linux_${arch}.${format}`;
    output("nfpm", ["package", "--config", config, "--packager", format, "--target", join(release.folder, file)]);
    console.log(`dist/packages/${file}`);
  }
}

function write({ folder }: Release, name: string, data: string | Uint8Array): void {
  writeFileSync(join(folder, name), data);
  console.log(`dist/packages/${name}`);
}

function pack(): void {
  const { values } = parseArgs({ options: { target: { type: "string", multiple: true, default: ["all"] } } });
  const targets = parseTargets(values.target);
  const missing = targets.filter((target) => !existsSync(join(ROOT, "dist", target)));
  if (missing.length > 0) throw new Error(`Cannot pack missing executables: run deno task build --target ${missing.join(",")}`);
  if (spawnSync("nfpm", ["--version"]).error) {
    throw new Error("Cannot make .deb and .rpm: nfpm is not installed. Run go install github.com/goreleaser/nfpm/v2/cmd/nfpm@v2.43.4");
  }
  const components = readComponents();
  const { version } = manifest();
  const release: Release = {
    version,
    time: Number(output("git", ["log", "-1", "--format=%ct"])) * 1000,
    notices: notices(components),
    folder: join(ROOT, "dist", "packages"),
  };
  rmSync(release.folder, { recursive: true, force: true });
  mkdirSync(release.folder, { recursive: true });
  for (const name of Object.keys(EXECUTABLES) as (keyof typeof EXECUTABLES)[]) {
    const texts = companions(name, release);
    for (const target of targets) {
      packArchive(name, target, texts, release);
      if (name === "reverse-http" && isPackaged(target)) packSystemPackages(target, texts, release);
    }
  }
  write(
    release,
    `reverse-http_${version}_sbom.cdx.json`,
    billOfMaterials({ version, home: home().url }, new Date(release.time), components),
  );
  write(release, "install.sh", readFileSync(join(ROOT, "install.sh")));
  const sums = readdirSync(release.folder).sort().map((name) =>
    `${createHash("sha256").update(readFileSync(join(release.folder, name))).digest("hex")}  ${name}\n`
  );
  write(release, "checksums.txt", sums.join(""));
}

try {
  pack();
} catch (error) {
  console.error(error instanceof Error ? error.message : error);
  process.exit(1);
}
