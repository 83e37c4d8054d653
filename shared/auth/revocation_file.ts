// The revocation list of a file that is polled. If it becomes invalid or missing, that is logged and the previous list stays in force.
import { ConfigError } from "../config/option.ts";
import { describeFileError } from "../files/read.ts";
import { PolledFile } from "../files/polled_file.ts";
import type { Logger } from "../log/logger.ts";
import { RevocationError } from "./authenticator.ts";
import type { LiveCredentials } from "./live_credentials.ts";
import { appendRevocation, appendSignOut, readRevocations, type Revocable, type Revocations, type SignOut } from "./revocations.ts";

/** The credentials in use, and the timer that reads the list and ends those that it names. */
export interface LiveRevocables {
  readonly live: Pick<LiveCredentials<Revocable>, "all">;
  readonly reload: () => Promise<void>;
}

export class RevocationFile {
  readonly #file: PolledFile<Revocations>;
  readonly #log: Logger;

  private constructor(name: string, log: Logger) {
    this.#file = new PolledFile(name, readRevocations);
    this.#log = log;
  }

  /** @throws {ConfigError} for an invalid file */
  static async open(name: string, log: Logger): Promise<RevocationFile> {
    const opened = new RevocationFile(name, log);
    try {
      await opened.#file.poll();
    } catch (cause) {
      throw new ConfigError(`Cannot use --auth.jwt.revocation-file ${JSON.stringify(name)}: ${describeFileError(cause)}`, { cause });
    }
    opened.#warnAboutForeignIds();
    return opened;
  }

  revokes(token: Revocable): boolean {
    return this.#file.value.revokes(token);
  }

  /**
   * Adds a token to the end of the file, and waits until it is in force. Returns how many live credentials that ends.
   * @throws {RevocationError} if the id is invalid, or the file cannot be written or read
   */
  async revoke(id: string, comment: string, live: LiveRevocables): Promise<number> {
    return await this.#add(() => this.revokes({ id }), live, () => appendRevocation(this.#file.name, id, comment));
  }

  /**
   * The same for the end of a session.
   * @throws {RevocationError}
   */
  async signOut(signOut: SignOut, comment: string, live: LiveRevocables): Promise<number> {
    return await this.#add(() => this.#file.value.covers(signOut), live, () => appendSignOut(this.#file.name, signOut, comment));
  }

  /** Entries that are in force already are not added again. */
  async #add(isInForce: () => boolean, { live, reload }: LiveRevocables, append: () => Promise<void>): Promise<number> {
    if (isInForce()) return 0;
    const before = live.all();
    await append();
    await reload(); // it may have read the file before
    await reload();
    if (!isInForce()) throw new RevocationError("the revocation file cannot be used; the log says why");
    return before.filter((token) => this.revokes(token)).length;
  }

  /** Returns whether there is a new list. Never rejects: errors are logged. */
  async poll(): Promise<boolean> {
    const { name } = this.#file;
    try {
      if (!await this.#file.poll()) return false;
      this.#log.info("revocation list reloaded", { file: name, revoked: this.#file.value.size });
      this.#warnAboutForeignIds();
      return true;
    } catch (error) {
      logFileError(this.#log, this.#file, error);
      return false;
    }
  }

  /** Warns of ids that this program never issues: they may belong to another issuer's tokens, or be misspelt. */
  #warnAboutForeignIds(): void {
    const { value: { foreign }, name: file } = this.#file;
    if (foreign === undefined) return;
    const { count, firstLine: line } = foreign;
    this.#log.warn("revocation file has ids that are not UUIDs: tokens of auth jwt token never have such a jti", { file, count, line });
  }
}

/** Logs why a file was not read. */
export function logFileError(log: Logger, { missing, name: file }: PolledFile<unknown>, error: unknown): void {
  const message = missing > 0 ? "authentication file is missing" : "authentication file is invalid; its previous content stays in force";
  log.error(message, { file, reason: describeFileError(error) });
}
