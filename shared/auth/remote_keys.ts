// The keys of an issuer that publishes them at a URL. They are fetched at an interval, and for a token that names an unknown key, which a
// stranger's token may do: at most once in 30 s then. If the issuer cannot be reached, the last keys serve for a bounded time.
import type { Logger } from "../log/logger.ts";
import { messageOf } from "../log/error_message.ts";
import { AuthenticationError } from "./authenticator.ts";
import { urlProblem } from "../config/url.ts";
import { describeStatus, type Fetch, fetchText, parseObject } from "./fetch.ts";
import { type IssuerKey, parseIssuerKeys } from "./keys.ts";

/** Time in milliseconds between two fetches for unknown keys. */
const COOLDOWN_MS = 30_000;
/** Tolerated difference between the issuer's clock and this one, in milliseconds. */
const CLOCK_LEEWAY_MS = 60_000;
/** Time in milliseconds for one response of the issuer. */
const TIMEOUT_MS = 5_000;
/** Largest document in bytes. */
const MAX_DOCUMENT = 512 * 1024;
/** Time in milliseconds until a failed fetch is repeated; each time twice as long. */
const FIRST_RETRY_MS = 1_000;
const LAST_RETRY_MS = 30_000;

export interface RemoteKeysOptions {
  /** Where the keys are: the URL of a JWKS, or the issuer whose discovery document (OpenID Connect Discovery 1.0) names it. */
  readonly source: { readonly jwksUrl: string } | { readonly issuer: string };
  /** Time in milliseconds after which keys are fetched again. */
  readonly refreshMs: number;
  /** Time in milliseconds for which keys serve after that, while they cannot be fetched. */
  readonly maxStaleMs: number;
  /** Called when keys have been removed, so that tokens verified with them are no longer valid. */
  readonly onRemoved: () => void;
  readonly log: Logger;
  /** Monotonic clock in milliseconds. Default `performance.now`. */
  readonly now?: () => number;
  /** Default: the runtime's. */
  readonly fetch?: Fetch;
}

export class RemoteKeys {
  readonly #options: RemoteKeysOptions;
  readonly #now: () => number;
  readonly #closing = new AbortController();
  #keys: readonly IssuerKey[] = [];
  #loadedAt = -Infinity;
  /** When they were asked for. */
  #requestedAt = -Infinity;
  /** When a token has caused a fetch last. */
  #demandedAt = -Infinity;
  #nextAt = -Infinity;
  #failures = 0;
  #loading?: Promise<void>;

  constructor(options: RemoteKeysOptions) {
    this.#options = options;
    this.#now = options.now ?? (() => performance.now());
  }

  /** Fetches the keys if that is due. Returns at once, and never throws. */
  poll(): void {
    if (this.#now() >= this.#nextAt) void this.#load(); // never rejects
  }

  /** Whether a key that a token was verified with is still published. */
  has(id: string): boolean {
    return this.#keys.some((key) => key.id === id);
  }

  /**
   * The keys that may have signed a token: those with the key id that it names, and the algorithm. If it names none, or the issuer gives no
   * ids, all with the algorithm.
   * @param ageMs time in milliseconds since the token was issued. Default: it is older than the keys.
   * @throws {AuthenticationError} as {@link ready}, and `unavailable` if its key may be newer than those that were fetched
   */
  async find(kid: string | undefined, algorithm: string, ageMs = Infinity): Promise<readonly IssuerKey[]> {
    const fits = () => this.#keys.filter((key) => key.algorithm === algorithm && (kid === undefined || (key.kid ?? kid) === kid));
    const askedAt = this.#now();
    await this.ready();
    let found = fits();
    if (found.length > 0) return found;
    await this.#demand();
    found = fits();
    // other tokens may have caused the last fetch, or the issuer is down
    if (found.length === 0 && this.#requestedAt < askedAt && ageMs - CLOCK_LEEWAY_MS < askedAt - this.#requestedAt) {
      throw new AuthenticationError(
        "unavailable",
        "The token may be signed with a key that is newer than the issuer's keys that were fetched",
      );
    }
    return found;
  }

  /**
   * Fetches the keys if there are none that are fresh enough.
   * @throws {AuthenticationError} `unavailable` if that is not possible
   */
  async ready(): Promise<void> {
    if (this.#isFresh) return;
    await (this.#loading ?? this.#demand());
    if (!this.#isFresh) throw new AuthenticationError("unavailable", `The issuer's keys cannot be fetched from ${this.#name}`);
  }

  close(): void {
    this.#closing.abort();
  }

  get #isFresh(): boolean {
    return this.#now() - this.#loadedAt < this.#options.refreshMs + this.#options.maxStaleMs;
  }

  get #name(): string {
    const { source } = this.#options;
    return "issuer" in source ? source.issuer : source.jwksUrl;
  }

  /** Fetches the keys for a token that none of them fits, unless they were fetched recently. */
  async #demand(): Promise<void> {
    const now = this.#now();
    if (now - this.#demandedAt >= COOLDOWN_MS) {
      this.#demandedAt = now;
      await this.#load();
    } else await this.#loading;
  }

  #load(): Promise<void> {
    return this.#loading ??= this.#fetch().finally(() => this.#loading = undefined);
  }

  /** Never rejects. */
  async #fetch(): Promise<void> {
    const { log, refreshMs, onRemoved } = this.#options;
    const requestedAt = this.#now();
    try {
      const { url, keys } = await this.#read();
      const [before, after] = [idsOf(this.#keys), idsOf(keys)];
      const [added, removed] = [[...after].filter((id) => !before.has(id)), [...before].filter((id) => !after.has(id))];
      this.#keys = keys;
      this.#requestedAt = requestedAt;
      this.#loadedAt = this.#now();
      this.#nextAt = this.#loadedAt + refreshMs;
      if (added.length + removed.length > 0 || this.#failures > 0) {
        log.info("issuer's keys fetched", { url, keys: after.size, added: added.length, removed: removed.length });
      }
      this.#failures = 0;
      if (removed.length > 0) onRemoved();
    } catch (error) {
      if (this.#closing.signal.aborted) return;
      this.#nextAt = this.#now() + Math.min(LAST_RETRY_MS, FIRST_RETRY_MS * 2 ** Math.min(this.#failures, 10));
      // an issuer that is down for an hour is one line
      if (this.#failures++ > 0) return;
      log.error("issuer's keys cannot be fetched; the previous ones stay in force for a time", {
        issuer: this.#name,
        reason: messageOf(error),
      });
    }
  }

  async #read(): Promise<{ url: string; keys: IssuerKey[] }> {
    const { source } = this.#options;
    const url = "issuer" in source ? await this.#discover(source.issuer) : source.jwksUrl;
    return { url, keys: await parseIssuerKeys(await this.#get(url)) };
  }

  /** The URL of the JWKS, from the issuer's discovery document. */
  async #discover(issuer: string): Promise<string> {
    const document = parseObject(await this.#get(`${issuer.replace(/\/$/, "")}/.well-known/openid-configuration`));
    const { issuer: named, jwks_uri: url } = document;
    if (named !== issuer) throw new Error(`its discovery document is of the issuer ${JSON.stringify(named)?.slice(0, 200)}`);
    const problem = typeof url === "string" ? urlProblem(url) : "it is missing";
    if (problem !== undefined) throw new Error(`the jwks_uri of its discovery document cannot be used: ${problem}`);
    return url as string;
  }

  async #get(url: string): Promise<string> {
    const { fetch = globalThis.fetch } = this.#options;
    const { status, text } = await fetchText(fetch, url, {
      timeoutMs: TIMEOUT_MS,
      maxBytes: MAX_DOCUMENT,
      signal: this.#closing.signal,
    });
    if (status !== 200) throw new Error(`${url} responded with ${describeStatus(status)}`);
    return text;
  }
}

function idsOf(keys: readonly IssuerKey[]): Set<string> {
  return new Set(keys.map(({ id }) => id));
}
