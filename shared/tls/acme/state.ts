// What is kept of an ACME authority in the state directory, readable by this user only: the account's key, the certificate with its key, and
// when the next order is allowed.
import { createHash } from "node:crypto";
import { constants } from "node:fs";
import { access, mkdir } from "node:fs/promises";
import { join } from "node:path";
import { generatePrivateKey, parsePrivateKey, type SigningKey } from "../../auth/keys.ts";
import { ConfigError } from "../../config/option.ts";
import { describeFileError, describeWriteError, readText } from "../../files/read.ts";
import { writeFileAtomically } from "../../files/write.ts";
import { messageOf } from "../../log/error_message.ts";

/** The orders so far. */
export interface Attempts {
  /** Failures since the last certificate. */
  readonly failures: number;
  /** No order before this time, in milliseconds since 1970. A reload overrides it. */
  readonly earliest: number;
  /** The same, as the authority has asked. */
  readonly retryAfter: number;
}

/** Limit on the size of a file, in bytes. */
const MAX_FILE = 1024 * 1024;

export class AcmeState {
  /** Each authority has its own folder: a certificate of a test authority is not used by mistake. */
  readonly #folder: string;

  /**
   * @param path the state directory
   * @param directory the authority's URL
   */
  constructor(path: string, directory: string) {
    const { hostname } = new URL(directory);
    const name = `${hostname.replace(/[^0-9a-z.-]/gi, "_")}-${createHash("sha256").update(directory).digest("hex").slice(0, 8)}`;
    this.#folder = join(path, "acme", name);
  }

  /** The file with the certificate chain and its key. */
  get certificateFile(): string {
    return join(this.#folder, "certificate.pem");
  }

  /**
   * Creates the folder, and finds out whether it can be written.
   * @throws {ConfigError}
   */
  async open(): Promise<void> {
    try {
      await mkdir(this.#folder, { recursive: true, mode: 0o700 });
      await access(this.#folder, constants.W_OK);
    } catch (cause) {
      throw new ConfigError(`Cannot use --acme.domain: ${this.#folder}: ${describeWriteError(cause)}; set --state-dir`, { cause });
    }
    await this.accountKey().catch((cause: Error) => {
      throw new ConfigError(`Cannot use --acme.domain: ${cause.message}`, { cause });
    });
  }

  /**
   * The key of the account, which is created if it is missing.
   * @throws {Error} which names the file
   */
  async accountKey(): Promise<SigningKey> {
    const file = join(this.#folder, "account.pem");
    let text = await this.#read(file);
    if (text === undefined) {
      await writeFileAtomically(file, generatePrivateKey("ES256"), { mode: 0o600, existing: "keep" });
      text = await readText(file, MAX_FILE); // another process may have been first
    }
    try {
      return await parsePrivateKey(text);
    } catch (cause) {
      throw new Error(`${file}: ${messageOf(cause)}; delete it to register another account`, { cause });
    }
  }

  /** The content of {@link certificateFile}, if there is one. */
  async certificate(): Promise<string | undefined> {
    return await this.#read(this.certificateFile);
  }

  async writeCertificate(chain: string, key: string): Promise<void> {
    await writeFileAtomically(this.certificateFile, `${chain.trim()}\n${key.trim()}\n`, { mode: 0o600, existing: "replace" });
  }

  async attempts(): Promise<Attempts> {
    const none = { failures: 0, earliest: 0, retryAfter: 0 };
    const text = await this.#read(this.#attemptsFile);
    try {
      const { failures, earliest, retryAfter } = { ...none, ...JSON.parse(text ?? "{}") };
      if ([failures, earliest, retryAfter].every(Number.isFinite)) return { failures, earliest, retryAfter };
    } catch {
      // the next line
    }
    return none; // it was edited
  }

  async writeAttempts(attempts: Attempts): Promise<void> {
    await writeFileAtomically(this.#attemptsFile, `${JSON.stringify(attempts)}\n`, { mode: 0o600, existing: "replace" });
  }

  get #attemptsFile(): string {
    return join(this.#folder, "attempts.json");
  }

  async #read(file: string): Promise<string | undefined> {
    try {
      return await readText(file, MAX_FILE);
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code === "ENOENT") return undefined;
      throw new Error(`${file}: ${describeFileError(error)}`, { cause: error });
    }
  }
}
