// Bandwidth limits: the rates that tunnels with the same key share.
import { parseBandwidth } from "../config/bandwidth.ts";
import type { Net } from "../net/net.ts";
import type { Rate } from "../net/relay.ts";

/** Burst of an idle rate, in seconds' worth of bytes. */
const BURST_S = 0.25;

/** A rate that tunnels with the same key share. */
export interface SharedRate {
  readonly rate: Rate;
  /** Called once by each user. */
  release(): void;
}

interface Entry {
  readonly rate: Rate;
  users: number;
  isStale: boolean;
}

/** Rates by key. A rate is kept briefly after its last user, so that reconnecting does not refill it. */
export class Bandwidth {
  #bytesPerSecond: number;
  readonly #createRate: Net["createRate"];
  #rates = new Map<string, Entry>();
  /** Rates of earlier limits that are still used. */
  readonly #former = new Set<Entry>();

  /** @param text option value; 0 for no limit */
  constructor(text: string, createRate: Net["createRate"]) {
    this.#bytesPerSecond = parseBandwidth(text);
    this.#createRate = createRate;
  }

  get size(): number {
    return this.#rates.size + this.#former.size;
  }

  /** Changes the limit of new users. Others keep the rate that they have. */
  update(text: string): void {
    const bytesPerSecond = parseBandwidth(text);
    if (bytesPerSecond === this.#bytesPerSecond) return;
    this.#bytesPerSecond = bytesPerSecond;
    for (const entry of this.#rates.values()) {
      if (entry.users > 0) this.#former.add(entry);
      else entry.rate.close();
    }
    this.#rates = new Map();
  }

  /** A rate for one user, who closes it; `undefined` without a limit. */
  create(bytesPerSecond = this.#bytesPerSecond): Rate | undefined {
    return bytesPerSecond > 0 ? this.#createRate({ bytesPerSecond, burst: bytesPerSecond * BURST_S }) : undefined;
  }

  /**
   * The shared rate of the key, for one more user; `undefined` without a limit.
   * @param bytesPerSecond the same for each use of a key. Default: that of the option
   */
  join(key: string, bytesPerSecond?: number): SharedRate | undefined {
    let entry = this.#rates.get(key);
    if (entry === undefined) {
      const rate = this.create(bytesPerSecond);
      if (rate === undefined) return undefined;
      entry = { rate, users: 0, isStale: false };
      this.#rates.set(key, entry);
    }
    entry.users++;
    const joined = entry;
    return { rate: joined.rate, release: () => this.#release(joined) };
  }

  #release(entry: Entry): void {
    entry.users--;
    entry.isStale = false;
    if (entry.users === 0 && this.#former.delete(entry)) entry.rate.close();
  }

  /** Removes rates without users since the previous call. Called once per second, in which an idle rate refills anyway. */
  tick(): void {
    for (const [key, shared] of this.#rates) {
      if (shared.users > 0) continue;
      if (shared.isStale) {
        shared.rate.close();
        this.#rates.delete(key);
      }
      shared.isStale = true;
    }
  }

  close(): void {
    for (const { rate } of [...this.#rates.values(), ...this.#former]) rate.close();
    this.#rates.clear();
    this.#former.clear();
  }
}
