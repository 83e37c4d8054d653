// Reads an executable for macOS: its processor, its requirements, and whether its signature matches its content.
// https://github.com/apple-oss-distributions/xnu: EXTERNAL_HEADERS/mach-o/loader.h, osfmk/kern/cs_blobs.h
import { createHash } from "node:crypto";

export interface MachO {
  readonly arch: "amd64" | "arm64" | "unknown";
  /** The oldest macOS that it runs on, such as 13.0. */
  readonly oldest: string;
  readonly libraries: readonly string[];
  /** Why the code signature is invalid; `undefined` if it is valid. */
  readonly signatureProblem: string | undefined;
}

const CPUS: Record<number, MachO["arch"]> = { 0x01000007: "amd64", 0x0100000c: "arm64" };
const [LC_LOAD_DYLIB, LC_LOAD_WEAK_DYLIB, LC_CODE_SIGNATURE, LC_VERSION_MIN, LC_BUILD_VERSION] = [0xc, 0x80000018, 0x1d, 0x24, 0x32];

/**
 * Reads a 64-bit Mach-O file.
 * @throws {Error} for anything else
 */
export function readMachO(file: Buffer): MachO {
  if (file.length < 32 || file.readUInt32LE(0) !== 0xfeedfacf) throw new Error("Cannot read it: it is not a 64-bit Mach-O file");
  const libraries: string[] = [];
  let oldest = "";
  let signatureProblem: string | undefined = "there is none";
  for (let at = 32, left = file.readUInt32LE(16); left > 0; left--) {
    const [command, size] = [file.readUInt32LE(at), file.readUInt32LE(at + 4)];
    if (command === LC_LOAD_DYLIB || command === LC_LOAD_WEAK_DYLIB) {
      const start = at + file.readUInt32LE(at + 8);
      libraries.push(file.toString("utf8", start, file.indexOf(0, start)));
    } else if (command === LC_BUILD_VERSION) oldest = version(file.readUInt32LE(at + 12));
    else if (command === LC_VERSION_MIN) oldest = version(file.readUInt32LE(at + 8));
    else if (command === LC_CODE_SIGNATURE) signatureProblem = checkSignature(file, file.readUInt32LE(at + 8));
    at += size;
  }
  return { arch: CPUS[file.readUInt32LE(4)] ?? "unknown", oldest, libraries, signatureProblem };
}

const version = (packed: number) => `${packed >> 16}.${(packed >> 8) & 0xff}`;

const [SUPER_BLOB, CODE_DIRECTORY] = [0xfade0cc0, 0xfade0c02];

/** Each code directory with SHA-256 must have the hashes of all pages before the signature. Numbers are big-endian. */
function checkSignature(file: Buffer, start: number): string | undefined {
  if (start + 12 > file.length || file.readUInt32BE(start) !== SUPER_BLOB) return "its blob is broken";
  let checked = 0;
  for (let index = 0; index < file.readUInt32BE(start + 8); index++) {
    const blob = start + file.readUInt32BE(start + 16 + 8 * index);
    if (file.readUInt32BE(blob) !== CODE_DIRECTORY || file[blob + 37] !== 2) continue;
    const [hashes, count, limit] = [blob + file.readUInt32BE(blob + 16), file.readUInt32BE(blob + 28), file.readUInt32BE(blob + 32)];
    const page = 1 << file[blob + 39]!;
    if (limit !== start) return `it covers ${limit} bytes of ${start}`;
    if (count !== Math.ceil(limit / page)) return `it has ${count} hashes for ${Math.ceil(limit / page)} pages`;
    for (let n = 0; n < count; n++) {
      const actual = createHash("sha256").update(file.subarray(n * page, Math.min((n + 1) * page, limit))).digest();
      if (!actual.equals(file.subarray(hashes + 32 * n, hashes + 32 * (n + 1)))) return `page ${n} of ${count} is not what was signed`;
    }
    checked++;
  }
  return checked > 0 ? undefined : "it has no hashes with SHA-256";
}
