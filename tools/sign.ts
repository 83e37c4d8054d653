// Signs macOS executables without an identity (ad hoc). An executable that was compiled on another system may still have the signature of
// the bare runtime, and macOS kills a program that does not match its signature. A release is signed again on a Mac, with an identity.
import { spawnSync } from "node:child_process";
import { join } from "node:path";

/** Permissions for a program that compiles code at run time and loads an addon under the hardened runtime. */
const ENTITLEMENTS = join(import.meta.dirname!, "..", "deploy", "macos", "entitlements.plist");

const SIGNERS: [command: string, args: string[]][] = [
  ["codesign", ["--force", "--sign", "-", "--entitlements", ENTITLEMENTS]],
  ["quill", ["sign", "--quiet", "--ad-hoc", "--entitlements", ENTITLEMENTS]],
];

/**
 * Signs with the first tool that is installed; prints a warning if there is none.
 * @throws {Error} if the tool fails
 */
export function signMac(file: string): void {
  for (const [command, args] of SIGNERS) {
    const result = spawnSync(command, [...args, file], { encoding: "utf8" });
    if (result.error !== undefined) continue; // not installed
    if (result.status !== 0) throw new Error(`Cannot sign ${file}: ${command} says ${result.stderr.trim()}`);
    return;
  }
  console.warn(`${file} is not signed: neither codesign nor quill is installed. It may not start on a Mac until it is signed`);
}
