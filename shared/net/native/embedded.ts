// Loads the native engine from inside a compiled executable: a file beside the executable first, else the one it carries.
import { chmodSync, mkdtempSync, readFileSync, rmSync, statSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import process from "node:process";

const NAME = "reverse-http.node";

/**
 * The addon's exports. What the executable carries is unpacked into a folder of its own, which nobody else can write to, and deleted once
 * it is loaded: a file that somebody else left is never used, and none stays behind.
 * @param asset the addon as it is embedded
 * @throws {Error} where there is no folder that it can be loaded from
 */
export function loadEmbedded(asset: string): unknown {
  const bytes = readFileSync(asset);
  const beside = join(dirname(process.execPath), NAME);
  if (isCopy(beside, bytes)) return load(beside);
  const problems: string[] = [];
  for (const folder of new Set([tmpdir(), process.env.XDG_RUNTIME_DIR, "/dev/shm", "/run", "/var/tmp"])) {
    if (!folder) continue;
    try {
      return loadFrom(folder, bytes);
    } catch (error) {
      problems.push(`${folder}: ${error instanceof Error ? error.message : error}`);
    }
  }
  throw new Error(
    `Cannot unpack the native engine: put ${NAME} beside the executable, or set TMPDIR to a folder that is writable and not mounted noexec (${
      problems.join("; ")
    })`,
  );
}

/** Nothing else is loaded: a library that is cut short or damaged takes the whole process with it. */
function isCopy(file: string, bytes: Uint8Array): boolean {
  try {
    const { size } = statSync(file);
    return size === bytes.length && readFileSync(file).equals(bytes);
  } catch {
    return false; // not there, or not readable
  }
}

function loadFrom(folder: string, bytes: Uint8Array): unknown {
  const own = mkdtempSync(join(folder, "reverse-http-")); // mode 0700
  try {
    const file = join(own, NAME);
    writeFileSync(file, bytes, { mode: 0o500, flag: "wx" });
    chmodSync(file, 0o500); // whatever the umask
    return load(file);
  } finally {
    rmSync(own, { recursive: true, force: true });
  }
}

function load(file: string): unknown {
  const module = { exports: {} };
  process.dlopen(module, file);
  return module.exports;
}
