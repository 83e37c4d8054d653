// The way in, of clients and of agents: how many at a time, how many from one address, and no more of who fails to say who it is.
import type { LogFields } from "../log.ts";
import { type AddressKeys, createAddressKeys } from "./addresses.ts";
import { FailedCredentials } from "./failed_credentials.ts";
import { type LimitName, LimitReached, type LimitReports, orNone } from "./limit.ts";
import type { AddressLimitValues } from "./options.ts";
import { LockOut, Tally } from "./tables.ts";

export interface DoorOptions {
  /** What comes in, and its limits; 0 for none. */
  all: { limit: LimitName; most: number };
  perAddress: { limit: LimitName; most: number };
  addresses: AddressLimitValues;
  /** One failed authentication of an address is forgiven in so many milliseconds. */
  forgivenMs: number;
  reports: LimitReports;
  /** Milliseconds from any fixed point. Default `performance.now`. */
  now?: () => number;
}

/** Counts those who are in. */
export class Door {
  readonly #options: DoorOptions;
  readonly #keyOf: AddressKeys;
  readonly #lockOut: LockOut;
  readonly #wrong: FailedCredentials;
  readonly #perAddress = new Tally();
  #inside = 0;

  constructor(options: DoorOptions) {
    const { authFailures, lockOut, exempt } = options.addresses;
    this.#options = options;
    this.#keyOf = createAddressKeys(exempt);
    this.#lockOut = new LockOut(orNone(authFailures), lockOut, options.forgivenMs, options.now);
    this.#wrong = new FailedCredentials(options.now);
  }

  /**
   * Lets somebody in, who is to {@link Visit.leave} at the end.
   * @param remote missing where the address is not known yet: it is told by {@link Visit.comesFrom}
   * @throws {LimitReached}
   */
  enter(remote?: string): Visit {
    const { all } = this.#options;
    if (this.#inside >= orNone(all.most)) throw this.refusal(all.limit, "There are too many connections", { most: all.most });
    const key = remote === undefined ? undefined : this.count(remote);
    this.#inside++;
    return new Visit(this, key);
  }

  /**
   * Counts one more of its address, and returns that one's key.
   * @throws {LimitReached}
   */
  count(remote: string): string | undefined {
    const { perAddress } = this.#options;
    const key = this.#keyOf(remote);
    if (key === undefined) return undefined;
    if (this.#perAddress.get(key) >= orNone(perAddress.most)) {
      throw this.refusal(perAddress.limit, "There are too many connections from this address", { address: key, most: perAddress.most });
    }
    this.#perAddress.add(key);
    return key;
  }

  /** @throws {LimitReached} where the address is locked out */
  checkLockOut(key: string): void {
    const lockedMs = this.#lockOut.lockedMs(key);
    if (lockedMs === 0) return;
    const seconds = Math.ceil(lockedMs / 1_000);
    throw this.refusal("auth-failures", "Too many authentications from this address have failed", { address: key, seconds }, seconds);
  }

  failed(key: string, credential: string | Uint8Array): void {
    if (this.#wrong.counts(key, credential)) this.#lockOut.failed(key);
  }

  left(key: string | undefined): void {
    this.#inside--;
    if (key !== undefined) this.#perAddress.remove(key);
  }

  /** Reports it. */
  refusal(limit: LimitName, message: string, fields: LogFields, retryAfterS?: number): LimitReached {
    this.#options.reports.hit(limit, fields);
    return new LimitReached(limit, message, retryAfterS);
  }
}

/** Somebody who is in. */
export class Visit {
  readonly #door: Door;
  #key: string | undefined;
  #isInside = true;

  constructor(door: Door, key: string | undefined) {
    this.#door = door;
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
  comesFrom(remote: string): void {
    this.#key ??= this.#door.count(remote);
  }

  /**
   * To be called before credentials are looked at.
   * @throws {LimitReached} where the address is locked out
   */
  checkLockOut(): void {
    if (this.key !== undefined) this.#door.checkLockOut(this.key);
  }

  /** The credential was not accepted. */
  failed(credential: string | Uint8Array): void {
    if (this.key !== undefined) this.#door.failed(this.key, credential);
  }

  leave(): void {
    if (!this.#isInside) return;
    this.#isInside = false;
    this.#door.left(this.key);
  }
}
