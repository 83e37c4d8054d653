// Keeps one connection to a proxy: makes it, waits for its end or for the proxy's wish to be left, and makes the next one. It knows neither
// how a connection is made nor the other connections of the agent.
import { setTimeout as sleep } from "node:timers/promises";
import { Backoff } from "../shared/async/backoff.ts";
import { CloseCode } from "../shared/link/link.ts";
import type { Logger } from "../shared/log/logger.ts";
import type { QuicClosed } from "../shared/net/types.ts";
import { describeEnd, isTimeout, isUnavailable } from "./failure.ts";
import type { Session } from "./session.ts";
import type { ProxyEndpoint, ProxyEndpoints } from "./proxy_endpoints.ts";

export interface ReconnectorOptions {
  targets: ProxyEndpoints;
  /** Makes a connection that the proxy has accepted, when there has been none for so many milliseconds. */
  open: (target: ProxyEndpoint, outageMs: number) => Promise<Session>;
  /** What to tell people of a connection that was not made. */
  describe: (error: unknown, target: ProxyEndpoint) => string;
  onConnected: (session: Session) => void;
  /** Milliseconds that a connection must have lived for the next wait to be the shortest again. */
  settledAfterMs: number;
  /** For the waits after attempts that fail. */
  backoff: Backoff;
  /** For the waits after connections that a proxy has ended in good order, before they had settled. */
  reconnectBackoff: Backoff;
  /** Whether clients reach the agent through another connection of it, whose proxy stays. */
  hasOtherConnection: () => boolean;
  /** From 0 up to, not including, 1. */
  random: () => number;
  log: Logger;
  /** Ends it. The connections that there are stay. */
  signal: AbortSignal;
}

/** After a lost connection that had settled, the first attempt comes within so many milliseconds: thousands of agents lose theirs at once. */
const RETURN_WITHIN_MS = 2_000;
/** Attempts to get away from a proxy that come in quick succession: behind a load balancer of two proxies half of them meet the same one. */
const MAX_FAILOVERS = 16;
const ESCAPE_WAIT_MS = 20;
/** Then an attempt comes after 1 s, and after longer and longer times up to 30 s: the connection goes on meanwhile. */
const STAY_BACKOFF = { initialMs: 1_000, maxMs: 30_000 };

/**
 * The longest wait for a proxy that refuses connections, in milliseconds, and by which part of the outage it grows. A proxy that has said that
 * it shuts down is likely to be back within seconds.
 */
const REFUSED = { atLeastMs: 2_000, part: 10 };
const RESTARTING = { atLeastMs: 1_000, part: 30 };

/** What came of one connection, and when to try the next. */
interface Outcome {
  readonly reason: string;
  readonly waitMs: number;
}

/** A connection whose proxy goes away. It goes on until the proxy ends it. */
interface Leaving {
  readonly session: Session;
  /** When to try elsewhere, and to come back once the proxy has ended it. */
  readonly waitMs: number;
  /** For the waits once there seems to be no other proxy. */
  readonly backoff: Backoff;
  attempts: number;
}

/** Keeps a connection until `signal` is aborted. */
export class Reconnector {
  readonly #options: ReconnectorOptions;
  /** The connection that is to be replaced, and goes on meanwhile. */
  #leaving?: Leaving;
  /** Since when it has been looking for a proxy. */
  #since = performance.now();
  /** Whether the proxy has said that it shuts down. */
  #isRestarting = false;

  constructor(options: ReconnectorOptions) {
    this.#options = options;
  }

  /** Never rejects. */
  async run(): Promise<void> {
    const { backoff, log, signal } = this.#options;
    while (!signal.aborted) {
      try {
        await this.#round();
      } catch (error) {
        // whatever it was, the agent goes on looking for its proxy
        log.error("attempt failed", { error: error instanceof Error ? error.stack ?? error.message : String(error) });
        await pause(backoff.next(), signal);
      }
    }
  }

  async #round(): Promise<void> {
    const { targets, signal } = this.#options;
    const target = await targets.acquire();
    const outcome = await this.#connect(target);
    if (!signal.aborted) await this.#wait(target, outcome);
  }

  async #connect(target: ProxyEndpoint): Promise<Outcome> {
    const { open, describe, targets } = this.#options;
    let session;
    try {
      session = await open(target, performance.now() - this.#since);
    } catch (error) {
      targets.release(target, "active");
      const reason = describe(error, target);
      return { reason, waitMs: this.#leaving?.session.isOpen ? this.#waitToLeave(this.#leaving) : this.#waitAfter(error) };
    }
    void this.#leaving?.session.reportMigration(true); // never rejects
    this.#leaving = undefined;
    this.#isRestarting = false;
    return await this.#keep(session, target);
  }

  /** In milliseconds, after an attempt to get away that has failed. The attempts that come late are for a proxy that was not there before. */
  #waitToLeave(leaving: Leaving): number {
    if (++leaving.attempts < MAX_FAILOVERS) return this.#jitter(ESCAPE_WAIT_MS) + ESCAPE_WAIT_MS / 2;
    void leaving.session.reportMigration(this.#options.hasOtherConnection()); // never rejects. There is nowhere to go: the proxy need not wait
    return leaving.backoff.next();
  }

  /** In milliseconds, after an attempt that has failed while there is no connection. */
  #waitAfter(error: unknown): number {
    const { backoff } = this.#options;
    const outageMs = performance.now() - this.#since;
    if (isTimeout(error)) return backoff.afterSilence(outageMs);
    const waitMs = backoff.next();
    if (!isUnavailable(error)) return waitMs;
    const { atLeastMs, part } = this.#isRestarting ? RESTARTING : REFUSED;
    const longestMs = Math.max(atLeastMs, outageMs / part);
    return Math.min(waitMs, longestMs / 2 + this.#jitter(longestMs / 2));
  }

  /** Until the connection ends, or is to be replaced. */
  async #keep(session: Session, target: ProxyEndpoint): Promise<Outcome> {
    const { onConnected, targets, backoff, reconnectBackoff, settledAfterMs, random } = this.#options;
    const start = performance.now();
    const ended = session.closed.then((closed) => {
      targets.release(target, session.isLeaving ? "leaving" : "active");
      return closed;
    });
    onConnected(session);
    const end = await Promise.race([ended, session.goaway]);
    this.#since = performance.now();
    const hasSettled = performance.now() - start >= settledAfterMs;
    if (hasSettled) reconnectBackoff.reset();
    if (!("cause" in end)) {
      session.isLeaving = true;
      targets.markLeaving(target);
      if (hasSettled) backoff.reset();
      // A proxy that sends all agents away at once must not be tried again immediately.
      const waitMs = (hasSettled ? 0 : reconnectBackoff.next()) + this.#jitter(end.withinMs);
      this.#leaving = { session, waitMs, backoff: new Backoff({ ...STAY_BACKOFF, random }), attempts: 0 };
      return { reason: `the proxy goes away: ${end.reason}`, waitMs };
    }
    const reason = describeEnd(end);
    this.#isRestarting = isShutDown(end);
    // two agents with one id must not take each other's place for ever: who was replaced waits longer each time
    const replaced = end.remote && end.code === CloseCode.replaced;
    // a proxy has no part in a silence, which takes a while to be noticed, too
    const silent = end.cause === "timed-out";
    if (!silent && (!hasSettled || replaced)) return { reason, waitMs: this.#isRestarting ? reconnectBackoff.next() : backoff.next() };
    backoff.reset();
    return { reason, waitMs: this.#jitter(RETURN_WITHIN_MS) };
  }

  async #wait(target: ProxyEndpoint, { reason, waitMs }: Outcome): Promise<void> {
    const { backoff, log, signal } = this.#options;
    const leaving = this.#leaving;
    if (!leaving || leaving.session.isOpen) {
      const fields = { proxy: target.address, reason, retryInMs: Math.round(waitMs) };
      if (!leaving) log.warn("not connected", fields);
      else if (leaving.attempts === 0) log.info("reconnecting", fields);
      else log.debug("reconnecting", fields); // many attempts, and nothing is lost yet
      await pause(waitMs, signal, leaving?.session.closed);
      if (!leaving || leaving.session.isOpen || signal.aborted) return;
    }
    // the proxy is gone at last, and may soon be there again
    const end = await leaving.session.closed;
    this.#leaving = undefined;
    this.#since = performance.now();
    this.#isRestarting = isShutDown(end);
    backoff.reset();
    await this.#wait(target, { reason: describeEnd(end), waitMs: leaving.waitMs });
  }

  #jitter(ms: number): number {
    return this.#options.random() * ms;
  }
}

/** The proxy has ended the connection, and not because of this agent. */
function isShutDown({ code, remote, cause }: QuicClosed): boolean {
  return remote && cause === "application" && code === CloseCode.shutdown;
}

/** Waits, until `signal` is aborted or `end` comes at the latest. */
async function pause(ms: number, signal: AbortSignal, end?: Promise<unknown>): Promise<void> {
  const ended = new AbortController();
  const stop = () => ended.abort();
  signal.addEventListener("abort", stop, { once: true });
  void end?.then(stop);
  await sleep(ms, undefined, { signal: ended.signal }).catch(() => {}); // that it is over
  signal.removeEventListener("abort", stop);
}
