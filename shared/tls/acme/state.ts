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
  /** When this was written. */
  readonly at: number;
  /** URL of the directory of the authority that has issued the certificate. Missing: that of the options. */
  readonly issuer?: string;
}

/** Limit on the size of a file, in bytes. */
const MAX_FILE = 1024 * 1024;

export class AcmeState {
  /** Name of the authority: its host, and a digest of the URL. */
  readonly authority: string;
  /** Each authority has its own folder: a certificate of a test authority is not used by mistake. */
  readonly #folder: string;
  /** The file of the certificate. */
  readonly #own: string;

  /**
   * @param path the state directory
   * @param directory the authority's URL
   * @param host a published name with a certificate of its own. Default: the service's names
   */
  constructor(path: string, directory: string, host?: string) {
    const { hostname } = new URL(directory);
    this.authority = `${hostname.replace(/[^0-9a-z.-]/gi, "_")}-${createHash("sha256").update(directory).digest("hex").slice(0, 8)}`;
    this.#folder = join(path, "acme", this.authority);
    this.#own = host === undefined ? this.#folder : join(this.#folder, "hosts", host.replace("*", "_"));
  }

  /** The file with the certificate chain and its key. */
  get certificateFile(): string {
    return join(this.#own, "certificate.pem");
  }

  /**
   * Creates the folder, and finds out whether it can be written.
   * @throws {ConfigError}
   */
  async open(): Promise<void> {
    try {
      await mkdir(this.#own, { recursive: true, mode: 0o700 });
      await access(this.#own, constants.W_OK);
    } catch (cause) {
      throw new ConfigError(`Cannot use --acme.domain: ${this.#own}: ${describeWriteError(cause)}; set --state-dir`, { cause });
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
    const text = await this.accountText();
    try {
      return parsePrivateKey(text);
    } catch (cause) {
      throw new Error(`${this.#accountFile}: ${messageOf(cause)}; delete it to register another account`, { cause });
    }
  }

  /** The same, PEM. */
  async accountText(): Promise<string> {
    const text = await this.#read(this.#accountFile);
    if (text !== undefined) return text;
    await writeFileAtomically(this.#accountFile, generatePrivateKey("ES256"), { mode: 0o600, existing: "keep" });
    return await readText(this.#accountFile, MAX_FILE); // another process may have been first
  }

  async writeAccount(text: string): Promise<void> {
    await writeFileAtomically(this.#accountFile, text, { mode: 0o600, existing: "replace" });
  }

  /** The content of {@link certificateFile}, if there is one. */
  async certificate(): Promise<string | undefined> {
    return await this.#read(this.certificateFile);
  }

  async writeCertificate(chain: string, key: string): Promise<void> {
    await this.restoreCertificate(`${chain.trim()}\n${key.trim()}\n`);
  }

  /** Writes what {@link certificate} of another one has returned. */
  async restoreCertificate(text: string): Promise<void> {
    await writeFileAtomically(this.certificateFile, text, { mode: 0o600, existing: "replace" });
  }

  async attempts(): Promise<Attempts> {
    const text = await this.#read(this.#attemptsFile);
    try {
      return readAttempts(JSON.parse(text ?? "{}"));
    } catch {
      return readAttempts(undefined); // it was edited
    }
  }

  async writeAttempts(attempts: Attempts): Promise<void> {
    await writeFileAtomically(this.#attemptsFile, `${JSON.stringify(attempts)}\n`, { mode: 0o600, existing: "replace" });
  }

  get #accountFile(): string {
    return join(this.#folder, "account.pem");
  }

  get #attemptsFile(): string {
    return join(this.#own, "attempts.json");
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

/** Attempts as they were stored; none if they cannot be used. */
export function readAttempts(stored: unknown): Attempts {
  const none = { failures: 0, earliest: 0, retryAfter: 0, at: 0 };
  if (typeof stored !== "object" || stored === null) return none;
  const { failures, earliest, retryAfter, at, issuer } = { ...none, ...stored as Partial<Attempts> };
  if (![failures, earliest, retryAfter, at].every(Number.isFinite)) return none;
  return { failures, earliest, retryAfter, at, ...typeof issuer === "string" && { issuer } };
}
