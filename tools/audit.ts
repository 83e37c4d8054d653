// Asks whether what others have made is safe to ship: licences, which are known here, and advisories, which only the registries know.
// Exit code 1 where something was found, 2 where something could not be asked and nothing was found.
import { spawnSync } from "node:child_process";
import { join } from "node:path";
import process from "node:process";
import { type Component, readComponents } from "./components.ts";
import { ROOT } from "./executables.ts";

/** Licences that ask for no more than their text, which the notices carry. */
const ALLOWED = new Set([
  "0BSD",
  "Apache-2.0",
  "BSD-2-Clause",
  "BSD-3-Clause",
  "CDLA-Permissive-2.0",
  "ISC",
  "MIT",
  "MIT-0",
  "Unicode-3.0",
  "Unlicense",
  "Zlib",
]);

type Verdict = { outcome: "good" | "bad" | "unknown"; text: string };

/** An SPDX expression of allowed licences: every side of an AND, one side of an OR. */
export function isAllowed(expression: string): boolean {
  const tokens = expression.match(/[()]|[^\s()]+/g) ?? [];
  let at = 0;
  const one = (): boolean => {
    if (tokens[at] !== "(") return ALLOWED.has(tokens[at++] ?? "");
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

function auditLicenses(components: readonly Component[]): Verdict {
  const bad = components.filter(({ license }) => !isAllowed(license));
  if (bad.length === 0) return { outcome: "good", text: `all ${components.length} are allowed` };
  return { outcome: "bad", text: bad.map(({ purl, license }) => `${purl} has ${license || "none"}`).join("\n") };
}

/** What could not be reached, as the tools say it. */
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
  return { outcome: "unknown", text: `cannot be asked, this machine does not reach them: ${text.split("\n")[0]}` };
}

function main(): number {
  const manifest = join(ROOT, "native", "Cargo.toml");
  const verdicts: [string, Verdict][] = [
    ["licences", auditLicenses(readComponents())],
    ["advisories of npm packages", audit(process.execPath, ["audit"], "there is no Deno: run deno task audit")],
    [
      "advisories and sources of crates",
      audit(
        "cargo",
        ["deny", "--manifest-path", manifest, "--log-level", "error", "check", "advisories", "bans", "sources"],
        "there is no cargo-deny: run cargo install --locked cargo-deny",
      ),
    ],
  ];
  for (const [what, { outcome, text }] of verdicts) console.log(`${outcome.padEnd(7)} ${what}: ${text}`);
  const outcomes = verdicts.map(([, { outcome }]) => outcome);
  return outcomes.includes("bad") ? 1 : outcomes.includes("unknown") ? 2 : 0;
}

if (import.meta.main) process.exit(main());
