// Shows proxies the agent's newer credentials while it is connected: a token file that another program renews.
import { PolledFile } from "../shared/files/polled_file.ts";
import { messageOf } from "../shared/log/error_message.ts";
import type { Logger } from "../shared/log/logger.ts";
import type { Session } from "./session.ts";
import type { Credentials } from "./credentials.ts";

export interface CredentialsWatchOptions {
  readonly file: string;
  /** Reads the credentials in the file. A failure is logged once for each version of the file. */
  readonly read: () => Promise<Credentials>;
  readonly sessions: Iterable<Session>;
  /** Time in milliseconds between two looks at the file. */
  readonly intervalMs: number;
  readonly log: Logger;
}

/** Looks for newer credentials until it is closed. */
export class CredentialsWatch {
  readonly #options: CredentialsWatchOptions;
  readonly #file: PolledFile<Credentials>;
  readonly #timer: ReturnType<typeof setInterval>;
  /** Those in the file; `undefined` while it is invalid. */
  #credentials?: Credentials;
  #isLooking = false;

  constructor(options: CredentialsWatchOptions) {
    this.#options = options;
    this.#file = new PolledFile(options.file, options.read);
    this.#timer = setInterval(() => void this.look(), options.intervalMs);
  }

  /** Shows each session the credentials that it does not have yet. Never rejects. */
  async look(): Promise<void> {
    if (this.#isLooking) return;
    this.#isLooking = true;
    const { sessions, log } = this.#options;
    try {
      if (await this.#file.poll()) this.#credentials = this.#file.value;
      if (this.#credentials === undefined) return;
      for (const session of sessions) await session.renewCredentials(this.#credentials.bytes);
    } catch (error) {
      this.#credentials = undefined;
      log.warn("credentials cannot be read again", { reason: messageOf(error) });
    } finally {
      this.#isLooking = false;
    }
  }

  close(): void {
    clearInterval(this.#timer);
  }
}
