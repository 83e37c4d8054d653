// Shows proxies the agent's newer credentials while it is connected: a token file that another program renews.
import { messageOf } from "../shared/log/error_message.ts";
import type { Logger } from "../shared/log/logger.ts";
import type { Session } from "./session.ts";
import type { Credentials } from "./credentials.ts";

export interface CredentialsWatchOptions {
  /** Reads the credentials. A failure is logged once, and retried. */
  readonly read: () => Promise<Credentials>;
  readonly sessions: Iterable<Session>;
  /** Time in milliseconds between two looks at the file. */
  readonly intervalMs: number;
  readonly log: Logger;
}

/** Looks for newer credentials until it is closed. */
export class CredentialsWatch {
  readonly #options: CredentialsWatchOptions;
  readonly #timer: ReturnType<typeof setInterval>;
  #isLooking = false;
  #reported = "";

  constructor(options: CredentialsWatchOptions) {
    this.#options = options;
    this.#timer = setInterval(() => void this.look(), options.intervalMs);
  }

  /** Shows each session the credentials that it does not have yet. Never rejects. */
  async look(): Promise<void> {
    if (this.#isLooking) return;
    this.#isLooking = true;
    const { read, sessions, log } = this.#options;
    try {
      const { bytes } = await read();
      for (const session of sessions) await session.renewCredentials(bytes);
      this.#reported = "";
    } catch (error) {
      const reason = messageOf(error);
      if (reason !== this.#reported) log.warn("credentials cannot be read again", { reason });
      this.#reported = reason;
    } finally {
      this.#isLooking = false;
    }
  }

  close(): void {
    clearInterval(this.#timer);
  }
}
