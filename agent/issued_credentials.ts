// The agent's tokens from an issuer: each is renewed ahead of its end, and shown on the open connections.
import type { Fetch } from "../shared/auth/fetch.ts";
import { Backoff } from "../shared/async/backoff.ts";
import { messageOf } from "../shared/log/error_message.ts";
import type { Logger } from "../shared/log/logger.ts";
import { type Credentials, requestCredentials } from "./credentials.ts";
import type { AgentOptions } from "./options.ts";
import type { Session } from "./session.ts";

export interface IssuedCredentialsOptions {
  readonly auth: AgentOptions["auth"];
  readonly sessions: Iterable<Pick<Session, "renewCredentials">>;
  readonly log: Logger;
  /** Delays after failures. Default 1 s to 15 s. */
  readonly backoff?: Backoff;
  /** Milliseconds since 1970. Default `Date.now`. */
  readonly now?: () => number;
  /** Default: the runtime's. */
  readonly fetch?: Fetch;
}

/** A token is renewed when this share of its lifetime is over. */
const RENEWAL_SHARE = 2 / 3;
/** Shortest time in milliseconds between two tokens, and the time that a token must be valid to be used for a connection. */
const MIN_LIFETIME_MS = 1_000;
/** The limit of timers. */
const MAX_TIMER_MS = 2 ** 31 - 1;

/** Renews tokens until it is closed, from the first call of {@link read} on. */
export class IssuedCredentials {
  readonly #options: IssuedCredentialsOptions;
  readonly #backoff: Backoff;
  readonly #now: () => number;
  #current?: Credentials;
  #asking?: Promise<Credentials>;
  /** The last failure, which counts until the next attempt. */
  #failure?: unknown;
  #timer?: ReturnType<typeof setTimeout>;
  #isClosed = false;

  constructor(options: IssuedCredentialsOptions) {
    this.#options = options;
    this.#backoff = options.backoff ?? new Backoff({ initialMs: 1_000, maxMs: 15_000 });
    this.#now = options.now ?? Date.now;
  }

  /**
   * The token for a new connection.
   * @throws {IssuerError | ConfigError} if there is no valid one; it is requested again later
   */
  async read(): Promise<Credentials> {
    if (this.#current !== undefined && this.#now() < this.#current.expiresAt - MIN_LIFETIME_MS) return this.#current;
    if (this.#failure !== undefined) throw this.#failure;
    return await this.#ask();
  }

  close(): void {
    this.#isClosed = true;
    clearTimeout(this.#timer);
  }

  #ask(): Promise<Credentials> {
    return this.#asking ??= this.#request().finally(() => this.#asking = undefined);
  }

  async #request(): Promise<Credentials> {
    const { auth, log, sessions, fetch } = this.#options;
    const { issuer } = auth.oidc;
    try {
      const credentials = await requestCredentials(auth, this.#now, fetch);
      this.#current = credentials;
      this.#failure = undefined;
      this.#backoff.reset();
      const { agentId: agent, expiresAt, bytes } = credentials;
      log.info("token obtained", { agent, issuer, until: Number.isFinite(expiresAt) ? new Date(expiresAt).toISOString() : undefined });
      this.#askIn(Math.max(MIN_LIFETIME_MS, (expiresAt - this.#now()) * RENEWAL_SHARE));
      for (const session of sessions) await session.renewCredentials(bytes);
      return credentials;
    } catch (error) {
      // an issuer that is down for an hour is one line
      if (this.#failure === undefined) log.warn("token cannot be obtained; trying again", { issuer, reason: messageOf(error) });
      this.#failure = error;
      this.#askIn(this.#backoff.next());
      throw error;
    }
  }

  #askIn(ms: number): void {
    clearTimeout(this.#timer);
    if (this.#isClosed) return;
    this.#timer = setTimeout(() => void this.#ask().catch(() => {}), Math.min(ms, MAX_TIMER_MS)); // it has logged the error
  }
}
