// Distinguishes repeated wrong credentials (a misconfigured program) from new ones (guessing). Stores keyed hashes, never credentials.
import { createHmac, randomBytes } from "node:crypto";
import { RecentKeys } from "./counters.ts";

/** A repeated wrong credential counts once in this time, in milliseconds. */
const COUNTED_ONCE_MS = 60_000;

/** Remembers the latest wrong credentials of each address. */
export class FailedCredentials {
  readonly #key = randomBytes(32);
  readonly #countedAt = new RecentKeys<number>();
  readonly #now: () => number;

  /** @param now monotonic clock in milliseconds */
  constructor(now: () => number = () => performance.now()) {
    this.#now = now;
  }

  get size(): number {
    return this.#countedAt.size;
  }

  /** Whether this failure of `address` counts: not if the same credential has counted recently. */
  isNew(address: string, credential: string | Uint8Array): boolean {
    const hash = createHmac("sha256", this.#key).update(`${address}\n`).update(credential).digest("base64url");
    const [now, countedAt] = [this.#now(), this.#countedAt.get(hash)];
    if (countedAt !== undefined && now - countedAt < COUNTED_ONCE_MS) return false;
    this.#countedAt.set(hash, now);
    return true;
  }
}
