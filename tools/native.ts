// Builds the native engine if its sources have changed: native/reverse-http.node for this machine or, with --target, the released one of a
// platform. Runs under Deno and Bun.
import { createHash } from "node:crypto";
import { spawnSync } from "node:child_process";
import { copyFileSync, existsSync, globSync, mkdirSync, readFileSync, renameSync, writeFileSync } from "node:fs";
import { homedir } from "node:os";
import { dirname, join } from "node:path";
import process from "node:process";
import { parseArgs } from "node:util";
import { patchCrates, PATCHES } from "./crates.ts";
import { parseTargets, type Target, type TargetName, TARGETS } from "./targets.ts";

const root = join(import.meta.dirname!, "..");
const crate = join(root, "native");
const cache = join(crate, "target");

/** How cargo is called; a change of it causes a build, too. */
interface Recipe {
  readonly command: readonly string[];
  readonly env: Readonly<Record<string, string>>;
  /** The library that cargo builds. */
  readonly library: string;
  /** The file to which the library is copied. */
  readonly addon: string;
  /** The file with the hash of the sources that `addon` was built from. */
  readonly stamp: string;
}

/** The build for this machine, with its own compiler and linker. `NATIVE_PROFILE=dev-fast` selects another profile than `release`. */
function hostRecipe(): Recipe {
  const profile = process.env.NATIVE_PROFILE || "release";
  const library = process.platform === "darwin" ? "libreverse_http_native.dylib" : "libreverse_http_native.so";
  return {
    command: ["build", "--profile", profile, "--locked"],
    env: {},
    library: join(cache, profile, library),
    addon: join(crate, "reverse-http.node"),
    stamp: join(cache, "sources.sha256"),
  };
}

/** The build for a platform, on any machine: linked by zig against its oldest libraries, or for macOS on a Mac by Apple's linker. */
function targetRecipe(name: TargetName): Recipe {
  const { rust, os, libc, oldest }: Target = TARGETS[name];
  const onMacs = os === "darwin" && process.platform === "darwin";
  const sysroot = output("rustc", ["--print", "sysroot"]);
  const std = join(sysroot, "lib", "rustlib", rust, "lib");
  const sources = join(sysroot, "lib", "rustlib", "src", "rust");
  const command = [onMacs ? "build" : "zigbuild", "--release", "--locked", "--target", libc === "glibc" ? `${rust}.${oldest}` : rust];
  const env: Record<string, string> = {
    // without paths of this machine: the same addon in any folder
    CARGO_ENCODED_RUSTFLAGS: [
      ...[[root, "/reverse-http"], [cargoHome(), "/cargo"], [sources, "/rust"]].map(([from, to]) => `--remap-path-prefix=${from}=${to}`),
      // a shared library uses the libc of the program that loads it
      ...libc === "musl" ? ["-Ctarget-feature=-crt-static"] : [],
    ].join("\x1f"),
    CFLAGS: `-ffile-prefix-map=${cargoHome()}=/cargo -ffile-prefix-map=${cache}=/target`,
    SOURCE_DATE_EPOCH: "0",
  };
  if (os === "darwin") env.MACOSX_DEPLOYMENT_TARGET = oldest;
  // rustc's own libraries, for its tool that strips what is for a Mac: elsewhere than on one, that tool does not find them
  if (process.platform === "linux") env.LD_LIBRARY_PATH = [join(sysroot, "lib"), process.env.LD_LIBRARY_PATH].filter(Boolean).join(":");
  if (!existsSync(std)) {
    if (!existsSync(join(sources, "library", "std"))) {
      throw new Error(
        `Cannot build the native engine for ${name}: Rust's standard library for ${rust} is not there (${std}). ` +
          `Run rustup target add ${rust}, or rustup component add rust-src to build it from its sources`,
      );
    }
    command.push("-Z", "build-std=std,panic_unwind");
    env.RUSTC_BOOTSTRAP = "1"; // for -Z with a stable compiler
  }
  const folder = join(cache, "addons", name);
  return {
    command,
    env,
    library: join(cache, rust, "release", os === "darwin" ? "libreverse_http_native.dylib" : "libreverse_http_native.so"),
    addon: join(folder, "reverse-http.node"),
    stamp: join(folder, "sources.sha256"),
  };
}

const cargoHome = () => process.env.CARGO_HOME ?? join(homedir(), ".cargo");

function output(command: string, args: readonly string[]): string {
  return spawnSync(command, args, { encoding: "utf8" }).stdout?.trim() ?? "";
}

function hashSources({ command, env }: Recipe): string {
  const hash = createHash("sha256").update([...command, ...Object.keys(env)].join(" ")).update(process.platform + process.arch);
  const patches = PATCHES.map((file) => join("patches", file));
  for (const file of [...globSync("src/**/*.rs", { cwd: crate }), ...patches, "Cargo.toml", "Cargo.lock", "build.rs"].sort()) {
    hash.update(file).update("\0").update(readFileSync(join(crate, file)));
  }
  return hash.digest("hex");
}

function requireTool(command: string, args: readonly string[], sentence: string): void {
  if (spawnSync(command, args, { stdio: "ignore" }).status !== 0) throw new Error(`Cannot build the native engine: ${sentence}`);
}

/**
 * Builds the addon if its sources have changed, and returns its file.
 * @param target the platform of the release; by default it is built for this machine only
 * @throws {Error} if a tool is missing or the compiler fails
 */
export function buildNative(target?: TargetName): string {
  requireTool(
    "cargo",
    ["--version"],
    "there is no Rust compiler. Install one from https://rustup.rs, or your system's rustc and cargo, 1.88 or later",
  );
  patchCrates();
  const recipe = target === undefined ? hostRecipe() : targetRecipe(target);
  const { command, env, library, addon, stamp } = recipe;
  const sources = hashSources(recipe);
  const shown = addon.slice(root.length + 1);
  if (existsSync(addon) && existsSync(stamp) && readFileSync(stamp, "utf8") === sources) {
    console.log(`${shown} is up to date`);
    return addon;
  }
  requireTool(
    "cc",
    ["--version"],
    "there is no C compiler. Install one, for example with apt install build-essential, or xcode-select --install",
  );
  if (command[0] === "zigbuild") {
    requireTool("cargo-zigbuild", ["--version"], "there is no cargo-zigbuild. Run pip install ziglang cargo-zigbuild");
  }
  console.log(`Building the native engine${target === undefined ? "" : ` for ${target}`}; the first time takes a few minutes`);
  const built = spawnSync("cargo", command, {
    cwd: crate,
    stdio: "inherit",
    env: { ...process.env, ...env, CARGO_TARGET_DIR: cache },
  });
  if (built.status !== 0) throw new Error("Cannot build the native engine: the compiler's messages are above");
  mkdirSync(dirname(addon), { recursive: true });
  // renamed into place: programs that have loaded the old one keep it
  copyFileSync(library, `${addon}.new`);
  renameSync(`${addon}.new`, addon);
  writeFileSync(stamp, sources);
  return addon;
}

if (import.meta.main) {
  try {
    const { values } = parseArgs({ options: { target: { type: "string", multiple: true } } });
    if (values.target === undefined) buildNative();
    else parseTargets(values.target).forEach(buildNative);
  } catch (error) {
    console.error(error instanceof Error ? error.message : error);
    process.exit(1);
  }
}
