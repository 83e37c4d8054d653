// The way in, of clients and of agents: how many at a time, how many from one address, and no more of who fails to say who it is.
import type { LogFields } from "../log/logger.ts";
import { type AddressKeys, createAddressKeys } from "./addresses.ts";
import { FailedCredentials } from "./failed_credentials.ts";
import { type LimitName, LimitReached, type LimitReporter, unlimitedIfZero } from "./limit.ts";
import type { AddressLimitValues } from "./options.ts";
import { AuthLockout, InflightCounts } from "./counters.ts";

export interface ConnectionLimiterOptions {
  /** What comes in, and its limits; 0 for none. */
  all: { limit: LimitName; max: number };
  perAddress: { limit: LimitName; max: number };
  addresses: AddressLimitValues;
  /** One failed authentication of an address is forgiven in so many milliseconds. */
  failureRefillMs: number;
  reports: LimitReporter;
  /** Milliseconds from any fixed point. Default `performance.now`. */
  now?: () => number;
}

/** Counts those who are in. */
export class ConnectionLimiter {
  readonly #options: ConnectionLimiterOptions;
  readonly #keyOf: AddressKeys;
  readonly #lockout: AuthLockout;
  readonly #failedCredentials: FailedCredentials;
  readonly #perAddress = new InflightCounts();
  #open = 0;

  constructor(options: ConnectionLimiterOptions) {
    const { authFailures, authLockoutMax, exemptAddresses } = options.addresses;
    this.#options = options;
    this.#keyOf = createAddressKeys(exemptAddresses);
    this.#lockout = new AuthLockout(unlimitedIfZero(authFailures), authLockoutMax, options.failureRefillMs, options.now);
    this.#failedCredentials = new FailedCredentials(options.now);
  }

  /**
   * Lets somebody in, who is to {@link ConnectionPermit.release} at the end.
   * @param remote missing where the address is not known yet: it is told by {@link ConnectionPermit.setRemote}
   * @throws {LimitReached}
   */
  acquire(remote?: string): ConnectionPermit {
    const { all } = this.#options;
    if (this.#open >= unlimitedIfZero(all.max)) throw this.refusal(all.limit, "There are too many connections", { most: all.max });
    const key = remote === undefined ? undefined : this.count(remote);
    this.#open++;
    return new ConnectionPermit(this, key);
  }

  /**
   * Counts one more of its address, and returns that one's key.
   * @throws {LimitReached}
   */
  count(remote: string): string | undefined {
    const { perAddress } = this.#options;
    const key = this.#keyOf(remote);
    if (key === undefined) return undefined;
    if (this.#perAddress.get(key) >= unlimitedIfZero(perAddress.max)) {
      throw this.refusal(perAddress.limit, "There are too many connections from this address", { address: key, most: perAddress.max });
    }
    this.#perAddress.add(key);
    return key;
  }

  /** @throws {LimitReached} where the address is locked out */
  checkLockout(key: string): void {
    const lockedMs = this.#lockout.lockedMs(key);
    if (lockedMs === 0) return;
    const seconds = Math.ceil(lockedMs / 1_000);
    throw this.refusal("auth-failures", "Too many authentications from this address have failed", { address: key, seconds }, seconds);
  }

  recordFailure(key: string, credential: string | Uint8Array): void {
    if (this.#failedCredentials.isNew(key, credential)) this.#lockout.recordFailure(key);
  }

  released(key: string | undefined): void {
    this.#open--;
    if (key !== undefined) this.#perAddress.remove(key);
  }

  /** Reports it. */
  refusal(limit: LimitName, message: string, fields: LogFields, retryAfterS?: number): LimitReached {
    this.#options.reports.record(limit, fields);
    return new LimitReached(limit, message, retryAfterS);
  }
}

/** Somebody who is in. */
export class ConnectionPermit {
  readonly #limiter: ConnectionLimiter;
  #key: string | undefined;
  #isHeld = true;

  constructor(limiter: ConnectionLimiter, key: string | undefined) {
    this.#limiter = limiter;
    this.#key = key;
  }

  /** Of the address, in tables; `undefined` where none of the limits by address applies. */
  get key(): string | undefined {
    return this.#key;
  }

  /**
   * The address has become known.
   * @throws {LimitReached}
   */
  setRemote(remote: string): void {
    this.#key ??= this.#limiter.count(remote);
  }

  /**
   * To be called before credentials are looked at.
   * @throws {LimitReached} where the address is locked out
   */
  checkLockout(): void {
    if (this.key !== undefined) this.#limiter.checkLockout(this.key);
  }

  /** The credential was not accepted. */
  recordFailure(credential: string | Uint8Array): void {
    if (this.key !== undefined) this.#limiter.recordFailure(this.key, credential);
  }

  release(): void {
    if (!this.#isHeld) return;
    this.#isHeld = false;
    this.#limiter.released(this.key);
  }
}
