// Distinguishes repeated wrong credentials (a misconfigured program) from new ones (guessing). Stores keyed hashes, never credentials.
import { createHmac, randomBytes } from "node:crypto";
import { RecentKeys } from "./counters.ts";

/** A repeated wrong credential counts once in this time, in milliseconds. */
const COUNTED_ONCE_MS = 60_000;

/** Remembers the latest wrong credentials of each address. */
export class FailedCredentials {
  readonly #key: Uint8Array;
  readonly #countedAt = new RecentKeys<number>();
  readonly #now: () => number;

  /**
   * @param now monotonic clock in milliseconds
   * @param key of the hashes
   */
  constructor(now: () => number = () => performance.now(), key: Uint8Array = randomBytes(32)) {
    this.#now = now;
    this.#key = key;
  }

  get size(): number {
    return this.#countedAt.size;
  }

  /** Names a credential of `address` in {@link isNew}. */
  hashOf(address: string, credential: string | Uint8Array): string {
    return createHmac("sha256", this.#key).update(`${address}\n`).update(credential).digest("base64url");
  }

  /** Whether a failure counts: not if the same credential has counted recently. */
  isNew(hash: string): boolean {
    const [now, countedAt] = [this.#now(), this.#countedAt.get(hash)];
    if (countedAt !== undefined && now - countedAt < COUNTED_ONCE_MS) return false;
    this.#countedAt.set(hash, now);
    return true;
  }
}
