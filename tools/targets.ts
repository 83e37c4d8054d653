// The platforms of the executables, and their names in each toolchain.
import process from "node:process";

/** One platform. */
export interface Target {
  /** Rust's name. */
  readonly rust: string;
  /** The name for `bun build --compile`. */
  readonly bun: Bun.Build.CompileTarget;
  /** The names in archives and packages. */
  readonly os: "linux" | "darwin";
  readonly arch: "amd64" | "arm64";
  /** The C library, on Linux. */
  readonly libc?: "glibc" | "musl";
  /** The oldest version that an executable runs on, of the C library (Linux) or the system (macOS). Bun's executables require the same. */
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
 * Parses the values of `--target`: names, or `all`.
 * @throws {Error} for an unknown name
 */
export function parseTargets(values: readonly string[]): TargetName[] {
  const names = values.flatMap((value) => value.split(","));
  if (names.includes("all")) return NAMES;
  for (const name of names) {
    if (!Object.hasOwn(TARGETS, name)) throw new Error(`Cannot use --target ${name}: choose from ${NAMES.join(", ")}, all`);
  }
  return [...new Set(names)] as TargetName[];
}

/** The platform in the names of archives: `linux_amd64`, `linux_amd64_musl`. */
export function platformOf(name: TargetName): string {
  const { os, arch, libc }: Target = TARGETS[name];
  return `${os}_${arch}${libc === "musl" ? "_musl" : ""}`;
}

/** This machine's target; `undefined` if it has none. */
export function hostTarget(): TargetName | undefined {
  return NAMES.find((name) => name === `${process.platform}-${process.arch}`);
}
