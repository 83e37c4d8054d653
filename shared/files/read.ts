// Reads files with a size limit, and describes file errors.
import { Buffer } from "node:buffer";
import { closeSync, openSync, readSync } from "node:fs";
import { open } from "node:fs/promises";

/**
 * Reads a whole file of at most `limit` bytes: a device or a pipe may be endless.
 * @throws {Error} if it cannot be read or is larger
 */
export async function readBytes(file: string, limit: number): Promise<Uint8Array> {
  const handle = await open(file);
  try {
    const parts: Uint8Array[] = [];
    for (let size = 0;;) {
      const { bytesRead, buffer } = await handle.read(new Uint8Array(65_536));
      if (bytesRead === 0) return Buffer.concat(parts);
      size += bytesRead;
      if (size > limit) throw tooLarge(limit);
      parts.push(buffer.subarray(0, bytesRead));
    }
  } finally {
    await handle.close();
  }
}

/**
 * As {@link readBytes}, for text in UTF-8.
 * @throws {Error} as it
 */
export async function readText(file: string, limit: number): Promise<string> {
  return Buffer.from(await readBytes(file, limit)).toString("utf8");
}

/**
 * As {@link readBytes}, for commands and at the start.
 * @throws {Error} as it
 */
export function readBytesSync(file: string, limit: number): Uint8Array {
  const descriptor = openSync(file, "r");
  try {
    const parts: Uint8Array[] = [];
    for (let size = 0;;) {
      const part = new Uint8Array(65_536);
      const bytesRead = readSync(descriptor, part);
      if (bytesRead === 0) return Buffer.concat(parts);
      size += bytesRead;
      if (size > limit) throw tooLarge(limit);
      parts.push(part.subarray(0, bytesRead));
    }
  } finally {
    closeSync(descriptor);
  }
}

/**
 * As {@link readBytesSync}, for text in UTF-8.
 * @throws {Error} as it
 */
export function readTextSync(file: string, limit: number): string {
  return Buffer.from(readBytesSync(file, limit)).toString("utf8");
}

/**
 * Reads standard input to its end.
 * @throws {Error} if it has more than `limit` bytes
 */
export async function readStream(stream: AsyncIterable<Uint8Array | string>, limit: number): Promise<string> {
  const parts: Uint8Array[] = [];
  let size = 0;
  for await (const part of stream) {
    size += parts[parts.push(Buffer.from(part)) - 1]!.length;
    if (size > limit) throw tooLarge(limit);
  }
  return Buffer.concat(parts).toString("utf8");
}

function tooLarge(limit: number): Error {
  return new Error(`it has more than ${limit} bytes, the limit`);
}

/** Describes why a file could not be read, without its name. */
export function describeFileError(error: unknown): string {
  const { code, message } = error as NodeJS.ErrnoException;
  return REASONS[code ?? ""] ?? message;
}

const REASONS: Readonly<Record<string, string>> = {
  ENOENT: "the file does not exist",
  EISDIR: "it is a directory",
  EACCES: "this user may not read it",
  EPERM: "this user may not read it",
  ENOTDIR: "a part of its path is not a directory",
  ELOOP: "it is a loop of symbolic links",
  EMFILE: "the process has no file descriptor left",
};

/** Describes why a file could not be written, without its name. */
export function describeWriteError(error: unknown): string {
  const { code, message } = error as NodeJS.ErrnoException;
  return WRITE_REASONS[code ?? ""] ?? describeFileError({ code, message });
}

const WRITE_REASONS: Readonly<Record<string, string>> = {
  ENOENT: "the directory does not exist",
  EACCES: "this user may not write there",
  EPERM: "this user may not write there",
  EROFS: "the file system is read-only",
  ENOSPC: "the disk is full",
  EDQUOT: "the user's disk quota is exhausted",
};
