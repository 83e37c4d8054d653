// Signs executables for Macs, without an identity: what was compiled on another system may carry a signature of the bare runtime, and macOS
// ends what does not match its signature. A release is signed anew with the identity of its makers, on a Mac.
import { spawnSync } from "node:child_process";
import { join } from "node:path";

/** What a runtime that compiles at run time and loads an addon needs under the hardened runtime. */
export const ENTITLEMENTS = join(import.meta.dirname!, "..", "deploy", "macos", "entitlements.plist");

const SIGNERS: [command: string, args: string[]][] = [
  ["codesign", ["--force", "--sign", "-", "--entitlements", ENTITLEMENTS]],
  ["quill", ["sign", "--quiet", "--ad-hoc", "--entitlements", ENTITLEMENTS]],
];

/**
 * Signs with the first tool that is there; where there is none, says so.
 * @throws {Error} where the tool fails
 */
export function signMac(file: string): void {
  for (const [command, args] of SIGNERS) {
    const result = spawnSync(command, [...args, file], { encoding: "utf8" });
    if (result.error !== undefined) continue; // not there
    if (result.status !== 0) throw new Error(`Cannot sign ${file}: ${command} says ${result.stderr.trim()}`);
    return;
  }
  console.warn(`${file} is not signed: there is neither codesign nor quill. It may not start on a Mac until it is`);
}
