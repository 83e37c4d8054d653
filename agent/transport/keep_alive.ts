// Chooses how rarely an agent pings its proxy over QUIC: as rarely as the NATs and firewalls on the way keep its mapping (RFC 9308 §3.2).
// Knows neither how to connect nor how to store.
import { setTimeout as sleep } from "node:timers/promises";
import type { Logger } from "../../shared/log/logger.ts";
import { KEEP_ALIVE_MS, MAX_KEEP_ALIVE_MS } from "../../shared/link/link.ts";
import type { SessionClosed, SessionStats } from "../../shared/net/session.ts";
import type { StoredKeepAlive } from "./stored_transports.ts";

/** Remembers for each proxy, by its address, what works on the network. */
export interface StoredKeepAlives {
  keepAliveOf(address: string): StoredKeepAlive | undefined;
  rememberKeepAlive(address: string, keepAlive: StoredKeepAlive): void;
}

export interface AdaptiveKeepAliveOptions {
  /** A session over QUIC whose engine sends no pings. */
  readonly session: { readonly closed: Promise<SessionClosed>; ping(): void; stats(): SessionStats };
  /** Address of the proxy. */
  readonly address: string;
  readonly stored: StoredKeepAlives;
  readonly log: Logger;
  /** The intervals to choose from in milliseconds, the shortest first. Default 3 s to 25 s. */
  readonly intervals?: readonly number[];
  /** Time for the proxy to answer a ping, or four round trips if longer. Default 1 s. */
  readonly answerMs?: number;
}

const INTERVALS = [KEEP_ALIVE_MS, 5_000, 8_000, 12_000, 17_000, MAX_KEEP_ALIVE_MS];
const ANSWER_MS = 1_000;
/** Idle intervals that must be survived before a longer one is tried. */
const CONFIRMATIONS = 2;
/** Time in milliseconds until an interval that was too long is tried again. */
const RETRY_MS = 86_400_000;
/** A timer that is later than this, in milliseconds, says nothing about its interval: the machine was suspended. */
const MAX_DELAY_MS = 2_000;

/**
 * Pings until the session has ended. An interval in which the agent has sent nothing is a probe of the mapping: the mapping was lost if the
 * proxy then validates another path, as it sees another address (RFC 9000 §9), or if it does not answer. Then a shorter interval is chosen.
 */
export class AdaptiveKeepAlive {
  readonly #options: AdaptiveKeepAliveOptions;
  readonly #intervals: readonly number[];
  readonly #ended = new AbortController();
  /** Idle intervals of the present length that were survived. */
  #confirmed = 0;
  /** The proxy has not answered the last ping. */
  #isSilent = false;

  constructor(options: AdaptiveKeepAliveOptions) {
    this.#options = options;
    this.#intervals = options.intervals ?? INTERVALS;
    void options.session.closed.then(() => this.#ended.abort()); // never rejects
    void this.#run(); // never rejects
  }

  /** Interval of pings in milliseconds. */
  get intervalMs(): number {
    return this.#isSilent ? this.#intervals[0]! : this.#chosenMs;
  }

  get #state(): StoredKeepAlive {
    const { stored, address } = this.#options;
    return stored.keepAliveOf(address) ?? { intervalMs: this.#intervals[0]! };
  }

  get #chosenMs(): number {
    return this.#notLongerThan(this.#state.intervalMs);
  }

  #notLongerThan(ms: number): number {
    return this.#intervals.findLast((each) => each <= ms) ?? this.#intervals[0]!;
  }

  async #run(): Promise<void> {
    const { session } = this.#options;
    const { signal } = this.#ended;
    for (let pingedAt = Date.now();;) { // other clocks stop while the machine is suspended
      const ms = this.#chosenMs;
      const { sentPackets, pathChallenges } = session.stats();
      if (!await passed(pingedAt + ms - Date.now(), signal)) return;
      const isProbe = session.stats().sentPackets === sentPackets && Date.now() - pingedAt < ms + MAX_DELAY_MS;
      pingedAt = Date.now();
      const end = await this.#ping();
      if (end) {
        if (isProbe && (this.#isSilent || end.cause === "reset")) this.#shorten(ms); // another server got the ping, and does not know it
        return;
      }
      const isRebound = session.stats().pathChallenges !== pathChallenges;
      if (isRebound && isProbe) this.#shorten(ms);
      else if (isRebound) this.#choose({ intervalMs: this.#intervals[0]! }); // the network has changed
      else if (isProbe) this.#confirm(ms);
    }
  }

  /** Pings until the proxy answers. Resolves with the end of the session if that comes first. */
  async #ping(): Promise<SessionClosed | undefined> {
    const { session, answerMs = ANSWER_MS } = this.#options;
    const { signal } = this.#ended;
    const { receivedBytes, rttMs } = session.stats();
    let waitMs = Math.max(answerMs, 4 * rttMs);
    for (;;) {
      session.ping();
      if (!await passed(waitMs, signal)) return await session.closed;
      this.#isSilent = session.stats().receivedBytes === receivedBytes;
      if (!this.#isSilent) return;
      waitMs = this.intervalMs;
    }
  }

  /** The mapping has survived an interval without packets. */
  #confirm(ms: number): void {
    const { failedMs = Infinity, failedAt = 0, intervalMs } = this.#state;
    if (ms !== this.#notLongerThan(intervalMs) || ++this.#confirmed < CONFIRMATIONS) return;
    const longer = this.#intervals.find((each) => each > ms);
    if (longer === undefined || (longer >= failedMs && Date.now() - failedAt < RETRY_MS)) return;
    this.#choose({ ...this.#state, intervalMs: longer });
  }

  /** The mapping was lost within this time. */
  #shorten(ms: number): void {
    const { log, address } = this.#options;
    const intervalMs = Math.min(this.#notLongerThan(ms - 1), this.#chosenMs);
    if (ms > this.#intervals[0]!) {
      log.debug("the network forgets an idle connection", { proxy: address, afterMs: ms, keepAliveMs: intervalMs });
    }
    this.#choose({ intervalMs, failedMs: ms, failedAt: Date.now() });
  }

  #choose(state: StoredKeepAlive): void {
    this.#confirmed = 0;
    this.#options.stored.rememberKeepAlive(this.#options.address, state);
  }
}

/** Resolves after this time in milliseconds with `true`, or with `false` when `signal` aborts. */
async function passed(ms: number, signal: AbortSignal): Promise<boolean> {
  return await sleep(Math.max(0, ms), true, { signal }).catch(() => false);
}
