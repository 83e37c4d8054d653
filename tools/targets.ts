// The platforms that executables are made for, and what each toolchain calls them.
import process from "node:process";

/** One platform. */
export interface Target {
  /** As Rust names it. */
  readonly rust: string;
  /** As `bun build --compile` names it. */
  readonly bun: Bun.Build.CompileTarget;
  /** As archives and packages name them. */
  readonly os: "linux" | "darwin";
  readonly arch: "amd64" | "arm64";
  /** The C library of a Linux. */
  readonly libc?: "glibc" | "musl";
  /** The oldest that an executable runs on: C library on Linux, system on macOS. Bun's own executables need no less. */
  readonly oldest: string;
}

export const TARGETS = {
  "linux-x64": {
    rust: "x86_64-unknown-linux-gnu",
    bun: "bun-linux-x64-baseline",
    os: "linux",
    arch: "amd64",
    libc: "glibc",
    oldest: "2.17",
  },
  "linux-arm64": { rust: "aarch64-unknown-linux-gnu", bun: "bun-linux-arm64", os: "linux", arch: "arm64", libc: "glibc", oldest: "2.17" },
  "linux-x64-musl": {
    rust: "x86_64-unknown-linux-musl",
    bun: "bun-linux-x64-baseline-musl",
    os: "linux",
    arch: "amd64",
    libc: "musl",
    oldest: "1.2",
  },
  "linux-arm64-musl": {
    rust: "aarch64-unknown-linux-musl",
    bun: "bun-linux-arm64-musl",
    os: "linux",
    arch: "arm64",
    libc: "musl",
    oldest: "1.2",
  },
  "darwin-x64": { rust: "x86_64-apple-darwin", bun: "bun-darwin-x64", os: "darwin", arch: "amd64", oldest: "13.0" },
  "darwin-arm64": { rust: "aarch64-apple-darwin", bun: "bun-darwin-arm64", os: "darwin", arch: "arm64", oldest: "13.0" },
} as const satisfies Record<string, Target>;

export type TargetName = keyof typeof TARGETS;

const NAMES = Object.keys(TARGETS) as TargetName[];

/**
 * What `--target` was given: names, or `all`.
 * @throws {Error} for a name that is none
 */
export function parseTargets(values: readonly string[]): TargetName[] {
  const names = values.flatMap((value) => value.split(","));
  if (names.includes("all")) return NAMES;
  for (const name of names) {
    if (!Object.hasOwn(TARGETS, name)) throw new Error(`Cannot use --target ${name}: it is none of ${NAMES.join(", ")}, all`);
  }
  return [...new Set(names)] as TargetName[];
}

/** As archives are named: `linux_amd64`, `linux_amd64_musl`. */
export function platformOf(name: TargetName): string {
  const { os, arch, libc }: Target = TARGETS[name];
  return `${os}_${arch}${libc === "musl" ? "_musl" : ""}`;
}

/** This machine's, where it is one of them. */
export function hostTarget(): TargetName | undefined {
  return NAMES.find((name) => name === `${process.platform}-${process.arch}`);
}
