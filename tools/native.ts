// Builds the native engine where its sources have changed: native/reverse-http.node.
import { createHash } from "node:crypto";
import { spawnSync } from "node:child_process";
import { copyFileSync, existsSync, globSync, mkdirSync, readFileSync, renameSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import process from "node:process";

const root = join(import.meta.dirname!, "..");
const crate = join(root, "native");
const addon = join(crate, "reverse-http.node");
const stamp = join(crate, "target", "sources.sha256");

/** What cargo is called with is part of what is built. */
const COMMAND = ["build", "--release", "--locked"];

function hashSources(): string {
  const hash = createHash("sha256").update(COMMAND.join(" ")).update(process.platform + process.arch);
  for (const file of [...globSync("src/**/*.rs", { cwd: crate }), "Cargo.toml", "Cargo.lock", "build.rs"].sort()) {
    hash.update(file).update("\0").update(readFileSync(join(crate, file)));
  }
  return hash.digest("hex");
}

function fail(message: string): never {
  console.error(message);
  process.exit(1);
}

function requireTool(command: string, sentence: string): void {
  if (spawnSync(command, ["--version"], { stdio: "ignore" }).status !== 0) fail(sentence);
}

const sources = hashSources();
if (existsSync(addon) && existsSync(stamp) && readFileSync(stamp, "utf8") === sources) {
  console.log("native/reverse-http.node is up to date");
  process.exit(0);
}
requireTool(
  "cargo",
  "Cannot build the native engine: there is no Rust compiler. Install one from https://rustup.rs, or your system's rustc and cargo, 1.88 or later",
);
requireTool(
  "cc",
  "Cannot build the native engine: there is no C compiler. Install one, for example with apt install build-essential, or xcode-select --install",
);
console.log("Building the native engine; the first time takes a few minutes");
const library = process.platform === "darwin" ? "libreverse_http_native.dylib" : "libreverse_http_native.so";
const built = spawnSync("cargo", COMMAND, {
  cwd: crate,
  stdio: "inherit",
  env: { ...process.env, CARGO_TARGET_DIR: join(crate, "target") },
});
if (built.status !== 0) fail("Cannot build the native engine: see what the compiler says above");
// renamed into place: a program that has the old one loaded keeps it
copyFileSync(join(crate, "target", "release", library), `${addon}.new`);
renameSync(`${addon}.new`, addon);
mkdirSync(join(crate, "target"), { recursive: true });
writeFileSync(stamp, sources);
