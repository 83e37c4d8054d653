// Bytes a second: the values of options, and the rates that tunnels of one key share.
import type { Net, Rate } from "../net/types.ts";

/** A rate that was not used lets so much through at once, in seconds. */
const BURST_S = 0.25;

const UNITS = { "": 1, KiB: 1 << 10, MiB: 1 << 20, GiB: 1 << 30 };
const BANDWIDTH = /^([0-9]{1,12})(KiB|MiB|GiB)?$/;

/** Why the option's value cannot be used. */
export function checkBandwidth(text: string): string | undefined {
  return BANDWIDTH.test(text) ? undefined : `${JSON.stringify(text)} is not like 500000, 512KiB, 10MiB or 1GiB, or 0`;
}

/** Rates by key, each as long as it has users and a little longer: who comes back at once does not find it full again. */
export class Bandwidth {
  readonly #bytesPerSecond: number;
  readonly #createRate: Net["createRate"];
  readonly #rates = new Map<string, { readonly rate: Rate; users: number; isOld: boolean }>();

  /** @param text as an option has it; 0 for no limit */
  constructor(text: string, createRate: Net["createRate"]) {
    const [, number, unit] = BANDWIDTH.exec(text) ?? [];
    this.#bytesPerSecond = Number(number ?? 0) * UNITS[(unit ?? "") as keyof typeof UNITS];
    this.#createRate = createRate;
  }

  get size(): number {
    return this.#rates.size;
  }

  /** A rate for one user alone, who is to close it. */
  create(): Rate | undefined {
    const bytesPerSecond = this.#bytesPerSecond;
    return bytesPerSecond > 0 ? this.#createRate({ bytesPerSecond, burst: bytesPerSecond * BURST_S }) : undefined;
  }

  /** The rate of the key, for one more user, who is to {@link release} it. */
  join(key: string): Rate | undefined {
    const shared = this.#rates.get(key);
    if (shared) {
      shared.users++;
      return shared.rate;
    }
    const rate = this.create();
    if (rate) this.#rates.set(key, { rate, users: 1, isOld: false });
    return rate;
  }

  release(key: string): void {
    const shared = this.#rates.get(key);
    if (!shared) return;
    shared.users--;
    shared.isOld = false;
  }

  /** Forgets those that had no user between two calls. To be called once a second: in a shorter time a rate has filled again. */
  tick(): void {
    for (const [key, shared] of this.#rates) {
      if (shared.users > 0) continue;
      if (shared.isOld) {
        shared.rate.close();
        this.#rates.delete(key);
      }
      shared.isOld = true;
    }
  }

  close(): void {
    for (const { rate } of this.#rates.values()) rate.close();
    this.#rates.clear();
  }
}
