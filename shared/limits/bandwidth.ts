// Bandwidth limits: the rates that tunnels with the same key share.
import { parseBandwidth } from "../config/bandwidth.ts";
import type { Net, Rate } from "../net/types.ts";

/** Burst of an idle rate, in seconds' worth of bytes. */
const BURST_S = 0.25;

/** Rates by key. A rate is kept briefly after its last user, so that reconnecting does not refill it. */
export class Bandwidth {
  readonly #bytesPerSecond: number;
  readonly #createRate: Net["createRate"];
  readonly #rates = new Map<string, { readonly rate: Rate; users: number; isStale: boolean }>();

  /** @param text option value; 0 for no limit */
  constructor(text: string, createRate: Net["createRate"]) {
    this.#bytesPerSecond = parseBandwidth(text);
    this.#createRate = createRate;
  }

  get size(): number {
    return this.#rates.size;
  }

  /** A rate for one user, who closes it; `undefined` without a limit. */
  create(bytesPerSecond = this.#bytesPerSecond): Rate | undefined {
    return bytesPerSecond > 0 ? this.#createRate({ bytesPerSecond, burst: bytesPerSecond * BURST_S }) : undefined;
  }

  /**
   * The shared rate of the key, for one more user, who calls {@link release}; `undefined` without a limit.
   * @param bytesPerSecond the same for each use of a key. Default: that of the option
   */
  join(key: string, bytesPerSecond = this.#bytesPerSecond): Rate | undefined {
    const shared = this.#rates.get(key);
    if (shared) {
      shared.users++;
      return shared.rate;
    }
    const rate = this.create(bytesPerSecond);
    if (rate) this.#rates.set(key, { rate, users: 1, isStale: false });
    return rate;
  }

  release(key: string): void {
    const shared = this.#rates.get(key);
    if (!shared) return;
    shared.users--;
    shared.isStale = false;
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
    for (const { rate } of this.#rates.values()) rate.close();
    this.#rates.clear();
  }
}
