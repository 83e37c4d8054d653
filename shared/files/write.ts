// Writes files atomically: a reader sees the old content or the new one, never a part of either.
import { randomBytes } from "node:crypto";
import { constants, copyFile, link, open, rename, rm } from "node:fs/promises";

/** How to write a file. */
export interface WriteOptions {
  /** Permissions of the new file, from its creation on. */
  readonly mode: number;
  /** An existing file: replace it, keep it, or fail with `EEXIST`. */
  readonly existing: "replace" | "keep" | "fail";
}

/**
 * Writes a whole file, also across a power failure: the data is on disk before the file has its name.
 * @throws {Error} of the file system; no temporary file stays behind
 */
export async function writeFileAtomically(file: string, text: string, { mode, existing }: WriteOptions): Promise<void> {
  const temporary = `${file}.${randomBytes(6).toString("hex")}`;
  try {
    const handle = await open(temporary, "wx", mode);
    try {
      await handle.writeFile(text);
      await handle.sync();
    } finally {
      await handle.close();
    }
    if (existing === "replace") await rename(temporary, file);
    else await publish(temporary, file, existing);
  } finally {
    await rm(temporary, { force: true });
  }
}

/** Gives `temporary` the name `file` unless that exists. */
async function publish(temporary: string, file: string, existing: "keep" | "fail"): Promise<void> {
  try {
    await link(temporary, file);
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException;
    if (code === "EEXIST" && existing === "keep") return;
    if (code === "EEXIST") throw error;
    // the file system has no hard links
    if (existing === "keep") await rename(temporary, file);
    else await copyFile(temporary, file, constants.COPYFILE_EXCL);
  }
}
