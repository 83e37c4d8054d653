// Bytes a second of the network in memory: a token bucket whose users are served in turn, a little at a time.
import { setTimeout as sleep } from "node:timers/promises";
import { NetError } from "../../shared/net/errors.ts";
import type { Rate, RateOptions } from "../../shared/net/relay.ts";

/** As the native engine has it. */
const [SMALLEST_QUANTUM, LARGEST_QUANTUM, QUANTA_A_SECOND] = [512, 64 * 1024, 100];

export class MemoryRate implements Rate {
  /** Bytes that are granted at a time. */
  readonly quantum: number;
  readonly #perMs: number;
  readonly #burst: number;
  #tokens: number;
  #at = performance.now();
  #turn: Promise<void> = Promise.resolve();
  #closed = false;

  constructor({ bytesPerSecond, burst }: RateOptions) {
    this.#perMs = Math.max(1, bytesPerSecond) / 1_000;
    this.quantum = Math.min(LARGEST_QUANTUM, Math.max(SMALLEST_QUANTUM, Math.floor(bytesPerSecond / QUANTA_A_SECOND)));
    this.#burst = this.#tokens = Math.max(burst, this.quantum);
  }

  async take(bytes: number): Promise<void> {
    if (this.#closed) throw new NetError("closed", "Cannot use the rate: it is closed");
    await this.grant(bytes);
  }

  close(): void {
    this.#closed = true;
  }

  /** As {@link take}, for a copy that has it already. */
  async grant(bytes: number): Promise<void> {
    for (let left = bytes; left > 0; left -= this.quantum) {
      await (this.#turn = this.#grantAfter(this.#turn, Math.min(left, this.quantum)));
    }
  }

  async #grantAfter(before: Promise<void>, bytes: number): Promise<void> {
    await before;
    for (;;) {
      const now = performance.now();
      this.#tokens = Math.min(this.#burst, this.#tokens + (now - this.#at) * this.#perMs);
      this.#at = now;
      if (this.#tokens >= bytes) break;
      await sleep(Math.ceil((bytes - this.#tokens) / this.#perMs));
    }
    this.#tokens -= bytes;
  }
}

/** Waits until each of these rates allows this number of bytes. */
export async function pace(rates: readonly MemoryRate[], bytes: number): Promise<void> {
  const quantum = Math.min(...rates.map((rate) => rate.quantum));
  for (let left = rates.length === 0 ? 0 : bytes; left > 0; left -= quantum) {
    for (const rate of rates) await rate.grant(Math.min(left, quantum));
  }
}
