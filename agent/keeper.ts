// Keeps one connection to a proxy: makes it, waits for its end or for the proxy's wish to be left, and makes the next one. It knows neither
// how a connection is made nor the other connections of the agent.
import { setTimeout as sleep } from "node:timers/promises";
import type { Backoff } from "../shared/backoff.ts";
import { CloseCode } from "../shared/link/link.ts";
import type { Logger } from "../shared/log.ts";
import { describeEnd, isSilence } from "./failure.ts";
import type { Goaway, Session } from "./session.ts";
import type { Target, Targets } from "./targets.ts";

export interface KeeperOptions {
  targets: Targets;
  /** Makes a connection that the proxy has accepted, when there has been none for so many milliseconds. */
  open: (target: Target, outageMs: number) => Promise<Session>;
  /** What to tell people of a connection that was not made. */
  describe: (error: unknown, target: Target) => string;
  onConnected: (session: Session) => void;
  /** Milliseconds that a connection must have lived for the next wait to be the shortest again. */
  settledAfterMs: number;
  backoff: Backoff;
  /** From 0 up to, not including, 1. */
  random: () => number;
  log: Logger;
  /** Ends it. The connections that there are stay. */
  signal: AbortSignal;
}

/** After a lost connection that had settled, the first attempt comes within so many milliseconds: thousands of agents lose theirs at once. */
const RETURN_WITHIN_MS = 2_000;
/** Attempts to get away from a proxy that come in quick succession: behind a load balancer of two proxies half of them meet the same one. */
const ESCAPES = 20;
const ESCAPE_WAIT_MS = 60;

/** What came of one connection, and when to try the next. */
interface Outcome {
  readonly reason: string;
  readonly waitMs: number;
}

/** Keeps a connection until `signal` is aborted. */
export class Keeper {
  readonly #options: KeeperOptions;
  /** The connection that is to be replaced, and goes on meanwhile. */
  #old?: { readonly session: Session; readonly goaway: Goaway; readonly hasSettled: boolean; attempts: number };
  /** Since when it has been looking for a proxy. */
  #since = performance.now();

  constructor(options: KeeperOptions) {
    this.#options = options;
  }

  /** Never rejects. */
  async run(): Promise<void> {
    const { targets, signal } = this.#options;
    while (!signal.aborted) {
      const target = await targets.take();
      const outcome = await this.#connect(target);
      if (!signal.aborted) await this.#wait(target, outcome);
    }
  }

  async #connect(target: Target): Promise<Outcome> {
    const { open, describe, targets, backoff } = this.#options;
    let session;
    try {
      session = await open(target, performance.now() - this.#since);
    } catch (error) {
      targets.release(target, "active");
      const reason = describe(error, target);
      if (this.#old?.session.isOpen && ++this.#old.attempts < ESCAPES) {
        return { reason, waitMs: this.#jitter(ESCAPE_WAIT_MS) + ESCAPE_WAIT_MS / 2 };
      }
      void this.#old?.session.moved(false); // never rejects. There is nowhere to go: the proxy need not wait
      return { reason, waitMs: isSilence(error) ? backoff.afterSilence(performance.now() - this.#since) : backoff.next() };
    }
    void this.#old?.session.moved(true); // never rejects
    this.#old = undefined;
    return await this.#keep(session, target);
  }

  /** Until the connection ends, or is to be replaced. */
  async #keep(session: Session, target: Target): Promise<Outcome> {
    const { onConnected, targets, backoff, settledAfterMs } = this.#options;
    const start = performance.now();
    const over = session.closed.then((closed) => {
      targets.release(target, session.isLeaving ? "leaving" : "active");
      return closed;
    });
    onConnected(session);
    const end = await Promise.race([over, session.goaway]);
    this.#since = performance.now();
    const hasSettled = performance.now() - start >= settledAfterMs;
    if (!("cause" in end)) {
      session.isLeaving = true;
      targets.leave(target);
      this.#old = { session, goaway: end, hasSettled, attempts: 0 };
      return { reason: `the proxy goes away: ${end.reason}`, waitMs: this.#waitToReturn(this.#old) };
    }
    const reason = describeEnd(end);
    // two agents with one id must not take each other's place for ever: who was replaced waits longer each time
    const replaced = end.remote && end.code === CloseCode.replaced;
    // a proxy has no part in a silence, which takes a while to be noticed, too
    const silent = end.cause === "timed-out";
    if (!silent && (!hasSettled || replaced)) return { reason, waitMs: backoff.next() };
    backoff.reset();
    return { reason, waitMs: this.#jitter(RETURN_WITHIN_MS) };
  }

  async #wait(target: Target, { reason, waitMs }: Outcome): Promise<void> {
    const { log, signal } = this.#options;
    const old = this.#old;
    if (!old || old.session.isOpen) {
      const retryInMs = Math.round(waitMs);
      if (old) log.info("reconnecting", { proxy: target.address, reason, retryInMs });
      else log.warn("not connected", { proxy: target.address, reason, retryInMs });
      await pause(waitMs, signal, old?.session.closed);
      if (!old || old.session.isOpen || signal.aborted) return;
    }
    // the proxy is gone at last, and may soon be there anew
    this.#old = undefined;
    await this.#wait(target, { reason: describeEnd(await old.session.closed), waitMs: this.#waitToReturn(old) });
  }

  /** In milliseconds. A proxy that sends everybody away at once must not be met again and again. */
  #waitToReturn({ hasSettled, goaway }: { readonly hasSettled: boolean; readonly goaway: Goaway }): number {
    const { backoff } = this.#options;
    if (hasSettled) backoff.reset();
    return (hasSettled ? 0 : backoff.next()) + this.#jitter(goaway.withinMs);
  }

  #jitter(ms: number): number {
    return this.#options.random() * ms;
  }
}

/** Waits, until `signal` is aborted or `end` comes at the latest. */
async function pause(ms: number, signal: AbortSignal, end?: Promise<unknown>): Promise<void> {
  const over = new AbortController();
  const stop = () => over.abort();
  signal.addEventListener("abort", stop, { once: true });
  void end?.then(stop);
  await sleep(ms, undefined, { signal: over.signal }).catch(() => {}); // that it is over
  signal.removeEventListener("abort", stop);
}
