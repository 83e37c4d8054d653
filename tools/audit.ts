// Checks third-party components: licences and origins, which are known locally, and advisories, which the registries have. Exit code 1 if
// there is a finding, 2 if there is none but a registry could not be reached.
import { spawnSync } from "node:child_process";
import { globSync, readFileSync } from "node:fs";
import { join } from "node:path";
import process from "node:process";
import { readComponents } from "./components.ts";
import { patchCrates } from "./crates.ts";
import { ROOT } from "./executables.ts";

/** Licences that only require their text to be included; the notices do. */
const ALLOWED = new Set([
  "0BSD",
  "Apache-2.0",
  "BSD-2-Clause",
  "BSD-3-Clause",
  "CDLA-Permissive-2.0",
  "ISC",
  "MIT",
  "MIT-0",
  "PSF-2.0",
  "Unicode-3.0",
  "Unlicense",
  "Zlib",
]);

type Verdict = { outcome: "good" | "bad" | "unknown"; text: string };

/** Whether an SPDX expression allows use under allowed licences: all operands of an AND, one of an OR. */
export function isAllowed(expression: string): boolean {
  const tokens = expression.match(/[()]|[^\s()]+/g) ?? [];
  let at = 0;
  const one = (): boolean => {
    if (tokens[at] !== "(") {
      const allowed = ALLOWED.has(tokens[at++] ?? "");
      if (tokens[at] === "WITH") at += 2; // an exception only permits more
      return allowed;
    }
    at++;
    const inner = any();
    at++; // the bracket that closes
    return inner;
  };
  const all = (): boolean => {
    let good = one();
    while (tokens[at] === "AND") {
      at++;
      good = one() && good;
    }
    return good;
  };
  const any = (): boolean => {
    let good = all();
    while (tokens[at] === "OR") {
      at++;
      good = all() || good;
    }
    return good;
  };
  return any() && at === tokens.length;
}

function auditLicenses(): Verdict {
  let components;
  try {
    components = readComponents();
  } catch (error) {
    return { outcome: "unknown", text: `cannot be read: ${firstLine(String(error instanceof Error ? error.message : error))}` };
  }
  const bad = components.filter(({ license }) => !isAllowed(license));
  if (bad.length === 0) return { outcome: "good", text: `all ${components.length} are allowed` };
  return { outcome: "bad", text: bad.map(({ purl, license }) => `${purl} has ${license || "none"}`).join("\n") };
}

/** Crates in a Cargo.lock that are neither part of this repository nor from crates.io with a checksum. */
export function strangeCrates(lock: string): string[] {
  return lock.split("[[package]]").slice(1).flatMap((entry) => {
    const value = (key: string) => new RegExp(`^${key} = "(.*)"$`, "m").exec(entry)?.[1];
    const source = value("source");
    if (source === undefined ? OURS.has(value("name")!) : source === CRATES_IO && /^[0-9a-f]{64}$/.test(value("checksum") ?? "")) return [];
    return [`${value("name")} ${value("version")} of ${source ?? "a folder"}`];
  });
}

/** Entries of a deno.lock that are not from the npm registry with a checksum. */
export function strangePackages(lock: string): string[] {
  const { npm, version: _, specifiers, workspace: __, ...others } = JSON.parse(lock) as {
    npm: Record<string, { integrity?: string; tarball?: string }>;
    specifiers: Record<string, string>;
  } & Record<string, unknown>;
  return [
    ...Object.entries(npm).filter(([, { integrity = "", tarball }]) => tarball !== undefined || !integrity.startsWith("sha512-"))
      .map(([name, { tarball }]) => `${name} of ${tarball ?? "npm, without a checksum"}`),
    ...Object.keys(specifiers).filter((specifier) => !specifier.startsWith("npm:")),
    ...Object.keys(others),
  ];
}

const CRATES_IO = "registry+https://github.com/rust-lang/crates.io-index";
/** Crates in this repository, and patched ones, whose checksums are in native/patches/Cargo.lock, which is audited too. */
const OURS = new Set(["reverse_http_native", "reverse_http_fuzz", "reverse_http_patches", "load", "quinn", "quinn-proto"]);

function auditOrigins(): Verdict {
  const read = (file: string) => readFileSync(join(ROOT, file), "utf8");
  const locks = globSync(["native/Cargo.lock", "native/fuzz/Cargo.lock", "native/patches/Cargo.lock", "tests/bench/load/Cargo.lock"], {
    cwd: ROOT,
  });
  const bad = [
    ...strangePackages(read("deno.lock")),
    ...locks.flatMap((file) => strangeCrates(read(file)).map((text) => `${text} in ${file}`)),
  ];
  if (bad.length > 0) return { outcome: "bad", text: bad.join("\n") };
  return { outcome: "good", text: `deno.lock and ${locks.length} Cargo.lock name npm and crates.io alone, with checksums` };
}

const firstLine = (text: string) => text.split("\n")[0]!;

/** Messages of the tools about a registry that could not be reached. */
const OFFLINE =
  /error sending request|client error \(Connect\)|dns error|failed to (fetch|open|clone|download)|network|could not connect|timed out/i;

function audit(command: string, args: readonly string[], missing: string): Verdict {
  const { status, stdout, stderr, error } = spawnSync(command, args, {
    cwd: ROOT,
    encoding: "utf8",
    timeout: 300_000,
    env: { ...process.env, NO_COLOR: "1" },
  });
  const text = `${stdout ?? ""}${stderr ?? ""}`.trim();
  if (error !== undefined || /no such command/.test(text)) return { outcome: "unknown", text: missing };
  if (status === 0) return { outcome: "good", text: "none" };
  if (!OFFLINE.test(text)) return { outcome: "bad", text };
  return { outcome: "unknown", text: `cannot be asked, this machine does not reach them: ${firstLine(text)}` };
}

function main(): number {
  patchCrates();
  const manifest = join(ROOT, "native", "Cargo.toml");
  const verdicts: [string, Verdict][] = [
    ["licences", auditLicenses()],
    ["origins", auditOrigins()],
    ["advisories of npm packages", audit(process.execPath, ["audit"], "there is no Deno: run deno task audit")],
    [
      "advisories of crates",
      audit(
        "cargo",
        ["deny", "--manifest-path", manifest, "--log-level", "error", "check", "advisories", "bans", "sources"],
        "there is no cargo-deny: run cargo install --locked cargo-deny",
      ),
    ],
  ];
  for (const [what, { outcome, text }] of verdicts) console.log(`${outcome.padEnd(7)} ${what}: ${text}`);
  const count = (wanted: Verdict["outcome"]) => verdicts.filter(([, { outcome }]) => outcome === wanted).length;
  const [bad, unknown] = [count("bad"), count("unknown")];
  console.log(`${count("good")} good, ${bad} bad, ${unknown} could not be asked`);
  return bad > 0 ? 1 : unknown > 0 ? 2 : 0;
}

if (import.meta.main) process.exit(main());
