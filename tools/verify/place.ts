// The places on this machine in which an executable of a target can be started, and the command of each.
import { copyFileSync, cpSync, existsSync, mkdirSync, realpathSync } from "node:fs";
import { spawnSync } from "node:child_process";
import { join } from "node:path";
import process from "node:process";
import type { Folder } from "../../testing/programs.ts";
import { ROOT } from "../executables.ts";
import { hostTarget, type Target, type TargetName, TARGETS } from "../targets.ts";

/** A place to start the executables of a target. */
export interface Place {
  command(name: string): string[];
  /** The folder with its files, as the executable sees it. */
  readonly folder: string;
}

/** The libraries that programs with glibc load, and that the image has. */
const LIBRARIES = ["libc.so.6", "libm.so.6", "libdl.so.2", "libpthread.so.0", "librt.so.1"];

/** By processor: the folders of its libraries on such a machine and on another one, and its emulator. */
const PROCESSORS = {
  amd64: {
    loader: "/lib64/ld-linux-x86-64.so.2",
    own: "/lib/x86_64-linux-gnu",
    to: "/lib/x86_64-linux-gnu",
    foreign: "/usr/x86_64-linux-gnu",
    qemu: "qemu-x86_64-static",
  },
  arm64: {
    loader: "/lib/ld-linux-aarch64.so.1",
    own: "/lib/aarch64-linux-gnu",
    to: "/lib",
    foreign: "/usr/aarch64-linux-gnu",
    qemu: "qemu-aarch64-static",
  },
} as const;

const isNative = (target: TargetName) => TARGETS[target].arch === (process.arch === "x64" ? "amd64" : "arm64");

/** Directly; for another processor under qemu with that processor's libraries. */
export function inPlace(target: TargetName, folder: string): Place {
  const { qemu, foreign } = PROCESSORS[TARGETS[target].arch];
  const emulator = target === hostTarget() ? [] : [qemu, "-L", foreign];
  return { folder, command: (name) => [...emulator, join(ROOT, "dist", target, name)] };
}

/**
 * In a root with only the C library and the executable, on a read-only file system. Files that are put into `root` before a start are
 * visible.
 * @param alpine for musl: a root file system of Alpine with libstdc++
 */
export function inEmptyRoot(target: TargetName, root: Folder, alpine?: string): Place {
  const { libc }: Target = TARGETS[target];
  for (const folder of ["proc", "dev"]) mkdirSync(join(root.path, folder), { recursive: true });
  if (libc === "musl") copyMusl(alpine!, root.path);
  else copyGlibc(target, root.path);
  cpSync(join(ROOT, "dist", target), root.path, { recursive: true });
  return { folder: "", command: readOnly(target, root.path, []) };
}

/** In a container's root file system, read-only, as the user of the image. */
export function inContainer(target: TargetName, root: string, user: string): Place {
  return { folder: "/certs", command: readOnly(target, root, [`--userspec=${user}`]) };
}

/** The command that starts an executable in a read-only root. */
function readOnly(target: TargetName, root: string, options: readonly string[]): Place["command"] {
  const native = isNative(target);
  const { qemu } = PROCESSORS[TARGETS[target].arch];
  if (!native) copyFileSync(spawnSync("which", [qemu], { encoding: "utf8" }).stdout.trim(), join(root, "qemu"));
  const script = 'mount --bind "$0" "$0" && mount -t proc proc "$0/proc" && mount --bind /dev "$0/dev" && ' +
    `mount -o remount,ro,bind "$0" && ! (: >"$0/writable") 2>/dev/null && exec chroot ${options.join(" ")} "$0" "$@"`;
  const emulator = native ? [] : ["/qemu"];
  return (name) => ["unshare", "--mount", "sh", "-c", script, root, ...emulator, `/${name}`];
}

/** Copies {@link LIBRARIES} and their loader. */
export function copyGlibc(target: TargetName, root: string): void {
  const { loader, own, to, foreign } = PROCESSORS[TARGETS[target].arch];
  const native = isNative(target);
  const libraries = native ? own : join(foreign, "lib");
  for (const folder of [to, loader.slice(0, loader.lastIndexOf("/"))]) mkdirSync(join(root, folder), { recursive: true });
  for (const library of LIBRARIES) {
    if (existsSync(join(libraries, library))) copyFileSync(join(libraries, library), join(root, to, library));
  }
  copyFileSync(realpathSync(native ? loader : join(libraries, loader.split("/").at(-1)!)), join(root, loader));
}

/** Copies the loader, which is the C library, and libstdc++ with its dependencies. */
function copyMusl(alpine: string, root: string): void {
  for (const folder of ["lib", "usr/lib"]) {
    cpSync(join(alpine, folder), join(root, folder), {
      recursive: true,
      dereference: true,
      filter: (file) => file === join(alpine, folder) || /\/(ld-musl-|libc\.musl-|libstdc\+\+|libgcc_s)[^/]*$/.test(file),
    });
  }
}
