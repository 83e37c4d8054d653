// The files that commands for keys and tokens read and write.
import type { Terminal } from "./command.ts";
import { KeyError, parsePrivateKey, type SigningKey } from "../auth/keys.ts";
import { ConfigError } from "../config/option.ts";
import { describeFileError, describeWriteError, readText } from "../files/read.ts";
import { writeFileAtomically } from "../files/write.ts";

/** Limit on its size, in bytes. */
const MAX_KEY = 64 * 1024;

/** Default name of the private key. */
export const PRIVATE_KEY_FILE = "auth-key-private.pem";

/**
 * Reads a private key for tokens, from standard input if the file is `-`.
 * @throws {ConfigError}
 */
export async function readKey(file: string, terminal: Terminal): Promise<SigningKey> {
  try {
    return parsePrivateKey(file === "-" ? await terminal.read() : await readText(file, MAX_KEY));
  } catch (cause) {
    if (cause instanceof ConfigError) throw cause;
    if (cause instanceof KeyError) throw new ConfigError(`Cannot use --in ${JSON.stringify(file)}: ${cause.message}`, { cause });
    throw new ConfigError(`Cannot read --in ${JSON.stringify(file)}: ${describeFileError(cause)}`, { cause });
  }
}

/**
 * Writes to a file, or to standard output with a final newline.
 * @throws {ConfigError} if the file exists, without `force`
 */
export async function writeOutput(
  text: string,
  { file, mode, force, what = `--out ${JSON.stringify(file)}` }: { file: string; mode: number; force: boolean; what?: string },
  terminal: Terminal,
): Promise<void> {
  if (file === "-") return terminal.write(text.endsWith("\n") ? text : `${text}\n`);
  try {
    await writeFileAtomically(file, text, { mode, existing: force ? "replace" : "fail" });
  } catch (cause) {
    if ((cause as NodeJS.ErrnoException).code !== "EEXIST") {
      throw new Error(`Cannot write ${what}: ${describeWriteError(cause)}`, { cause });
    }
    throw new ConfigError(`Cannot write ${what}: the file exists; --force replaces it`, { cause });
  }
}
