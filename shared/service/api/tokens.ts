// The tokens of operators: a file with one `ROLE NAME TOKEN` per line, read again when it has changed. They are kept as hashes.
import { createHash } from "node:crypto";
import { ConfigError } from "../../config/option.ts";
import { PolledFile } from "../../files/polled_file.ts";
import { describeFileError, readText } from "../../files/read.ts";
import { SecretFiles } from "../../files/secret_files.ts";
import type { Logger } from "../../log/logger.ts";
import { type Role, ROLES } from "./types.ts";

/** An authenticated user of the API. */
export interface Operator {
  /** For the log. */
  readonly name: string;
  readonly role: Role;
  /** The person's id at the identity provider. */
  readonly subject?: string;
}

/** Longest file in bytes. */
const MAX_FILE = 256 * 1024;
/** Shortest token in characters: one of 128 bits in base64. */
const MIN_TOKEN = 22;
/** Minimum interval between two looks at the file, in milliseconds. */
const POLL_MS = 1_000;
const OPTION = "--admin.token-file";

/** Operators by the hash of their token. A look-up by hash takes the same time for all wrong tokens. */
type Operators = ReadonlyMap<string, Operator>;

export class TokenFile {
  readonly #file: PolledFile<Operators>;
  readonly #log: Logger;
  readonly #secrets: SecretFiles;
  #polledAt = -Infinity;

  private constructor(name: string, log: Logger) {
    this.#file = new PolledFile(name, readTokens);
    this.#log = log;
    this.#secrets = new SecretFiles(log);
  }

  /** @throws {ConfigError} if it cannot be read, or a line is invalid */
  static async open(name: string, log: Logger): Promise<TokenFile> {
    const tokens = new TokenFile(name, log);
    try {
      await tokens.#file.poll();
    } catch (cause) {
      throw new ConfigError(`Cannot use ${OPTION} ${JSON.stringify(name)}: ${describeFileError(cause)}`, { cause });
    }
    await tokens.#secrets.check(OPTION, name);
    return tokens;
  }

  /** The operator with this token, if any. A file that has become invalid is logged, and its previous content stays in force. */
  async find(token: string): Promise<Operator | undefined> {
    const now = performance.now();
    if (now - this.#polledAt >= POLL_MS) {
      this.#polledAt = now;
      try {
        if (await this.#file.poll()) await this.#secrets.check(OPTION, this.#file.name);
      } catch (error) {
        this.#log.error("token file cannot be used; its previous content stays in force", {
          file: this.#file.name,
          reason: describeFileError(error),
        });
      }
    }
    return this.#file.value.get(hashOf(token));
  }
}

/** @throws {Error} naming the first invalid line, without its token */
async function readTokens(file: string): Promise<Operators> {
  const operators = new Map<string, Operator>();
  const lines = (await readText(file, MAX_FILE)).split(/\r?\n/);
  lines.forEach((line, i) => {
    const text = line.replace(/(?:^|\s)#.*$/, "").trim();
    if (text === "") return;
    const fail = (why: string) => new Error(`line ${i + 1}: ${why}`);
    const [role, name, token, ...more] = text.split(/\s+/);
    const known = ROLES.find((known) => known === role);
    if (known === undefined) throw fail(`it does not begin with ${ROLES.join(" or ")}; write ROLE NAME TOKEN`);
    if (name === undefined || token === undefined || more.length > 0) throw fail("it has not three words; write ROLE NAME TOKEN");
    if (!/^[\w.@-]{1,64}$/.test(name)) throw fail("the name is not up to 64 letters, digits, dots, dashes and @");
    if (!/^[\x21-\x7e]+$/.test(token) || token.length < MIN_TOKEN) {
      throw fail(`the token has less than ${MIN_TOKEN} characters, or others than ASCII; openssl rand -hex 32 makes one`);
    }
    operators.set(hashOf(token), { name, role: known });
  });
  if (operators.size === 0) throw new Error("it has no token; write lines of ROLE NAME TOKEN");
  return operators;
}

function hashOf(token: string): string {
  return createHash("sha256").update(token).digest("hex");
}
