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
};
