// Limits connections of clients or agents: in total, per address, and after failed authentications.
import type { LogFields } from "../log/logger.ts";
import { type AddressKeys, createAddressKeys } from "./addresses.ts";
import { FailedCredentials } from "./failed_credentials.ts";
import { type LimitName, LimitReached, type LimitReporter, unlimitedIfZero } from "./limit.ts";
import type { AddressLimitValues } from "./options.ts";
import { AuthLockout, InflightCounts } from "./counters.ts";
import type { SharedLimits } from "./shared_limits.ts";

/** The key of all connections. */
const ALL = "";

export interface ConnectionLimiterOptions {
  /** Limit on all connections; 0: none. `ownMax` is that of this process alone. Default: none besides `max`. */
  all: { limit: LimitName; max: number; ownMax?: number };
  /** Limit per address; 0: none. */
  perAddress: { limit: LimitName; max: number };
  addresses: AddressLimitValues;
  /** Time in milliseconds after which one failed authentication of an address is forgiven. */
  failureRefillMs: number;
  reports: LimitReporter;
  /** The other processes of the service, for which the limits hold, too. Default: there are none. */
  shared?: SharedLimits;
  /** Monotonic clock in milliseconds. Default `performance.now`. */
  now?: () => number;
}

/** Counts connections and issues permits. */
export class ConnectionLimiter {
  #options: ConnectionLimiterOptions;
  #keyOf: AddressKeys;
  readonly #lockout: AuthLockout;
  readonly #failedCredentials: FailedCredentials;
  readonly #all: InflightCounts;
  readonly #perAddress: InflightCounts;
  readonly #tellFailure?: (key: string, hash: string) => void;

  constructor(options: ConnectionLimiterOptions) {
    const { all, perAddress, shared, addresses: { authFailures, authLockoutMax, exemptAddresses } } = options;
    this.#options = options;
    this.#all = new InflightCounts(shared?.counts(all.limit));
    this.#perAddress = new InflightCounts(shared?.counts(perAddress.limit));
    this.#keyOf = createAddressKeys(exemptAddresses);
    this.#lockout = new AuthLockout(unlimitedIfZero(authFailures), authLockoutMax, options.failureRefillMs, options.now);
    this.#failedCredentials = new FailedCredentials(options.now, shared?.credentialsKey);
    this.#tellFailure = shared?.failures(all.limit, (key, hash) => {
      if (this.#failedCredentials.isNew(hash)) this.#lockout.recordFailure(key);
    });
  }

  /** Changes the maxima, lockouts and exempt addresses. Open connections stay. */
  update(max: { readonly all: number; readonly own?: number; readonly perAddress: number }, addresses: AddressLimitValues): void {
    const [all, perAddress] = [
      { ...this.#options.all, max: max.all, ownMax: max.own },
      { ...this.#options.perAddress, max: max.perAddress },
    ];
    this.#options = { ...this.#options, all, perAddress, addresses };
    this.#keyOf = createAddressKeys(addresses.exemptAddresses);
    this.#lockout.update(unlimitedIfZero(addresses.authFailures), addresses.authLockoutMax);
  }

  /**
   * Admits a connection, which calls {@link ConnectionPermit.release} when it ends.
   * @param remote its address; if that is unknown yet, {@link ConnectionPermit.setRemote} sets it later
   * @throws {LimitReached}
   */
  acquire(remote?: string): ConnectionPermit {
    const { limit, max, ownMax = Infinity } = this.#options.all;
    const reached = this.#all.own(ALL) >= ownMax ? ownMax : this.#all.get(ALL) >= unlimitedIfZero(max) ? max : undefined;
    if (reached !== undefined) throw this.reject(limit, "There are too many connections", { max: reached });
    const key = remote === undefined ? undefined : this.count(remote);
    this.#all.add(ALL, unlimitedIfZero(max));
    return new ConnectionPermit(this, key);
  }

  /**
   * Counts one more connection of an address and returns its key; `undefined` for an exempt address.
   * @throws {LimitReached}
   */
  count(remote: string): string | undefined {
    const { perAddress } = this.#options;
    const key = this.#keyOf(remote);
    if (key === undefined) return undefined;
    const max = unlimitedIfZero(perAddress.max);
    if (this.#perAddress.get(key) >= max) {
      throw this.reject(perAddress.limit, "There are too many connections from this address", { address: key, max: perAddress.max });
    }
    this.#perAddress.add(key, max);
    return key;
  }

  /** @throws {LimitReached} while the address is locked out */
  checkLockout(key: string): void {
    const lockedMs = this.#lockout.lockedMs(key);
    if (lockedMs === 0) return;
    const seconds = Math.ceil(lockedMs / 1_000);
    throw this.reject("auth-failures", "Too many authentications from this address have failed", { address: key, seconds }, lockedMs);
  }

  recordFailure(key: string, credential: string | Uint8Array): void {
    const hash = this.#failedCredentials.hashOf(key, credential);
    if (!this.#failedCredentials.isNew(hash)) return;
    this.#lockout.recordFailure(key);
    this.#tellFailure?.(key, hash);
  }

  released(key: string | undefined): void {
    this.#all.remove(ALL);
    this.uncount(key);
  }

  /** The inverse of {@link count}. */
  uncount(key: string | undefined): void {
    if (key !== undefined) this.#perAddress.remove(key);
  }

  /** Reports a rejection and returns its error. */
  reject(limit: LimitName, message: string, fields: LogFields, retryAfterMs?: number): LimitReached {
    this.#options.reports.record(limit, fields);
    return new LimitReached(limit, message, retryAfterMs);
  }
}

/** The permit of one connection. */
export class ConnectionPermit {
  readonly #limiter: ConnectionLimiter;
  #key: string | undefined;
  #isReleased = false;

  constructor(limiter: ConnectionLimiter, key: string | undefined) {
    this.#limiter = limiter;
    this.#key = key;
  }

  /** Key of the address; `undefined` if it is exempt or unknown. */
  get key(): string | undefined {
    return this.#key;
  }

  /**
   * Sets the address when it becomes known, or replaces it.
   * @throws {LimitReached}
   */
  setRemote(remote: string): void {
    this.#limiter.uncount(this.#key);
    this.#key = undefined;
    this.#key = this.#limiter.count(remote);
  }

  /**
   * Checks for a lockout. Called before the credentials are verified.
   * @throws {LimitReached} while the address is locked out
   */
  checkLockout(): void {
    if (this.key !== undefined) this.#limiter.checkLockout(this.key);
  }

  /** Records a failed authentication. */
  recordFailure(credential: string | Uint8Array): void {
    if (this.key !== undefined) this.#limiter.recordFailure(this.key, credential);
  }

  release(): void {
    if (this.#isReleased) return;
    this.#isReleased = true;
    this.#limiter.released(this.key);
  }
}
