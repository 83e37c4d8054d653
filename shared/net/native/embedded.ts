// Loads the native addon of a compiled executable: an identical file beside the executable, or else the embedded one.
import { chmodSync, mkdtempSync, readFileSync, rmSync, statSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import process from "node:process";

const NAME = "reverse-http.node";

/**
 * Loads the addon and returns its exports. The embedded file is unpacked into a new private directory and deleted once it is loaded, so that
 * no other user can replace it and no file stays behind.
 * @param asset path of the embedded addon
 * @throws {Error} if there is no directory to load it from
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
    `Cannot unpack the native engine: put ${NAME} beside the executable, or set TMPDIR to a directory that is writable and not mounted noexec (${
      problems.join("; ")
    })`,
  );
}

/** Whether the file is identical to the embedded addon: loading a truncated or damaged library would crash the process. */
function isCopy(file: string, bytes: Uint8Array): boolean {
  try {
    const { size } = statSync(file);
    return size === bytes.length && readFileSync(file).equals(bytes);
  } catch {
    return false; // missing or not readable
  }
}

function loadFrom(folder: string, bytes: Uint8Array): unknown {
  const directory = mkdtempSync(join(folder, "reverse-http-")); // mode 0700
  try {
    const file = join(directory, NAME);
    writeFileSync(file, bytes, { mode: 0o500, flag: "wx" });
    chmodSync(file, 0o500); // regardless of the umask
    return load(file);
  } finally {
    rmSync(directory, { recursive: true, force: true });
  }
}

function load(file: string): unknown {
  const module = { exports: {} };
  process.dlopen(module, file);
  return module.exports;
}
