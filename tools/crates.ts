// Creates native/crates/: the crates of native/patches/ from crates.io, each with its patch. Cargo verifies the downloads against
// native/patches/Cargo.lock. Runs under Deno and Bun.
import { spawnSync } from "node:child_process";
import { createHash } from "node:crypto";
import { cpSync, existsSync, globSync, mkdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { basename, dirname, join } from "node:path";
import process from "node:process";

const native = join(import.meta.dirname!, "..", "native");
const patches = join(native, "patches");
const crates = join(native, "crates");
const stamp = join(crates, "patches.sha256");

/** The files that determine the content of native/crates/. */
export const PATCHES: readonly string[] = globSync("{*.patch,Cargo.toml,Cargo.lock}", { cwd: patches }).sort();

/**
 * Creates native/crates/ if the patches have changed.
 * @throws {Error} if a crate cannot be fetched or its patch does not apply
 */
export function patchCrates(): void {
  const hash = createHash("sha256");
  for (const file of PATCHES) hash.update(file).update("\0").update(readFileSync(join(patches, file)));
  const wanted = hash.digest("hex");
  if (existsSync(stamp) && readFileSync(stamp, "utf8") === wanted) return;
  const folders = fetchCrates();
  rmSync(crates, { recursive: true, force: true });
  for (const file of PATCHES.filter((name) => name.endsWith(".patch"))) {
    const name = basename(file, ".patch");
    const from = folders.get(name);
    if (from === undefined) throw new Error(`Cannot patch ${name}: native/patches/Cargo.toml does not name it`);
    const to = join(crates, name);
    mkdirSync(to, { recursive: true });
    cpSync(from, to, { recursive: true });
    for (const [path, hunks] of parsePatch(readFileSync(join(patches, file), "utf8"))) {
      const target = join(to, path);
      writeFileSync(target, applyHunks(readFileSync(target, "utf8"), hunks, `${file}: ${path}`));
    }
  }
  writeFileSync(stamp, wanted);
}

/** The folder with the sources of each crate in native/patches/Cargo.lock. */
function fetchCrates(): Map<string, string> {
  const cargo = (...args: string[]) => spawnSync("cargo", args, { cwd: patches, encoding: "utf8", maxBuffer: 1 << 28 });
  // crates that cargo has already need no network
  const fetched = [["--offline"], []].map((more) => () => cargo("fetch", "--locked", ...more)).find((fetch) => fetch().status === 0);
  const { status, stdout, stderr } = cargo("metadata", "--locked", "--format-version=1", ...(fetched ? ["--offline"] : []));
  if (status !== 0) throw new Error(`Cannot fetch the crates of native/patches: ${stderr}`);
  const { packages } = JSON.parse(stdout) as { packages: { name: string; manifest_path: string }[] };
  return new Map(packages.map(({ name, manifest_path }) => [name, dirname(manifest_path)]));
}

/** A hunk: the number of its first line, from 1, and its lines with their prefix `" "`, `"-"` or `"+"`. */
export interface Hunk {
  readonly at: number;
  readonly lines: readonly string[];
}

/** Parses a unified diff (`diff -u`) into the hunks of each file. */
function parsePatch(text: string): Map<string, Hunk[]> {
  const files = new Map<string, Hunk[]>();
  let [hunks, lines]: [Hunk[], string[]] = [[], []];
  let [old, now] = [0, 0];
  for (const line of text.split("\n")) {
    const head = /^@@ -(\d+)(?:,(\d+))? \+\d+(?:,(\d+))? @@/.exec(line);
    if (old > 0 || now > 0) {
      lines.push(line);
      if (line[0] !== "+") old--;
      if (line[0] !== "-") now--;
    } else if (head) {
      [old, now] = [Number(head[2] ?? 1), Number(head[3] ?? 1)];
      hunks.push({ at: Number(head[1]), lines: lines = [] });
    } else if (line.startsWith("+++ b/")) {
      files.set(line.slice(6), hunks = []);
    } else if (line !== "" && !line.startsWith("--- a/")) {
      throw new Error(`Cannot read the patch: ${JSON.stringify(line)} is unexpected`);
    }
  }
  return files;
}

/** @throws {Error} if the hunks do not match the text */
function applyHunks(text: string, hunks: readonly Hunk[], what: string): string {
  const lines = text.split("\n");
  for (const { at, lines: changes } of hunks.toReversed()) {
    const old = changes.filter((line) => line[0] !== "+").map((line) => line.slice(1));
    const now = changes.filter((line) => line[0] !== "-").map((line) => line.slice(1));
    const found = lines.splice(at - 1, old.length, ...now);
    if (found.join("\n") !== old.join("\n")) throw new Error(`Cannot apply ${what}: line ${at} does not match`);
  }
  return lines.join("\n");
}

if (import.meta.main) {
  try {
    patchCrates();
  } catch (error) {
    console.error(error instanceof Error ? error.message : error);
    process.exit(1);
  }
}
