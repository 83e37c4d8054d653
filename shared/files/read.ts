// What is said of files that cannot be read or written, and how much of them is read.
import { Buffer } from "node:buffer";
import { open } from "node:fs/promises";

/**
 * The file's bytes, at most `limit` of them: a device or a pipe may have no end.
 * @throws {Error} where it cannot be read, or has more
 */
export async function readBytes(file: string, limit: number): Promise<Uint8Array> {
  const handle = await open(file);
  try {
    const parts: Uint8Array[] = [];
    for (let size = 0;;) {
      const { bytesRead, buffer } = await handle.read(new Uint8Array(65_536));
      if (bytesRead === 0) return Buffer.concat(parts);
      size += bytesRead;
      if (size > limit) throw new Error(`it has more than ${limit} bytes, and that is the limit`);
      parts.push(buffer.subarray(0, bytesRead));
    }
  } finally {
    await handle.close();
  }
}

/** Why: in words where they are known. */
export function describeFileError(error: unknown): string {
  const { code, message } = error as NodeJS.ErrnoException;
  return REASONS[code ?? ""] ?? message;
}

const REASONS: Readonly<Record<string, string>> = {
  ENOENT: "there is no such file",
  EISDIR: "it is a directory",
  EACCES: "this user may not read it",
  EPERM: "this user may not read it",
  ENOTDIR: "a part of its path is no directory",
  ELOOP: "its links lead nowhere",
  EMFILE: "the process has no descriptor left",
};

/** The same of what cannot be written. */
export function describeWriteError(error: unknown): string {
  const { code, message } = error as NodeJS.ErrnoException;
  return WRITE_REASONS[code ?? ""] ?? describeFileError({ code, message });
}

const WRITE_REASONS: Readonly<Record<string, string>> = {
  ENOENT: "there is no such directory",
  EACCES: "this user may not write there",
  EPERM: "this user may not write there",
  EROFS: "the file system is read-only",
  ENOSPC: "the disk is full",
  EDQUOT: "the user's share of the disk is full",
};
