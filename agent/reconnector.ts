// Keeps one connection to a proxy: connects, waits for the end or a goaway, and reconnects. Knows neither how to connect nor the agent's
// other connections.
import { setTimeout as sleep } from "node:timers/promises";
import { Backoff } from "../shared/async/backoff.ts";
import { CloseCode } from "../shared/link/link.ts";
import type { Logger } from "../shared/log/logger.ts";
import type { SessionClosed } from "../shared/net/session.ts";
import { describeClose, isRefused, isUnreachable } from "./connection_errors.ts";
import type { Goaway, Session } from "./session.ts";
import type { ProxyEndpoint, ProxyEndpoints } from "./proxy_endpoints.ts";

/** Finds a better session with the same proxy. */
export interface SessionWatch {
  /** Resolves with an authenticated session that takes the place of the watched one; otherwise it stays pending. */
  readonly replaced: Promise<Session>;
  close(): void;
}

export interface ReconnectorOptions {
  targets: ProxyEndpoints;
  /** Connects and authenticates. `outageMs` is the time without a connection so far. */
  open: (target: ProxyEndpoint, outageMs: number) => Promise<Session>;
  /** Describes a failed attempt for the log. */
  describe: (error: unknown, target: ProxyEndpoint) => string;
  onConnected: (session: Session) => void;
  /** Watches a session for as long as it is kept. Default: none is replaced. */
  watch?: (session: Session, target: ProxyEndpoint) => SessionWatch;
  /** Lifetime of a connection, in milliseconds, that resets the backoff. */
  settledAfterMs: number;
  /** Backoff after failed attempts. */
  backoff: Backoff;
  /** Backoff after short connections that a proxy has closed cleanly. */
  reconnectBackoff: Backoff;
  /** Whether the agent has another connection that is not being replaced. */
  hasOtherConnection: () => boolean;
  /** Random number in [0, 1). */
  random: () => number;
  log: Logger;
  /** Ends the loop. Open connections stay open. */
  signal: AbortSignal;
}

/** Maximum delay before reconnecting after losing a long-lived connection, in milliseconds; thousands of agents may lose theirs at once. */
const RECONNECT_SPREAD_MS = 2_000;
/** Quick attempts to find another proxy after a goaway: behind a load balancer of two proxies, half of them reach the same one. */
const MAX_FAILOVERS = 16;
const FAILOVER_DELAY_MS = 20;
/** Backoff of further attempts, while the connection stays open. */
const MIGRATION_BACKOFF = { initialMs: 1_000, maxMs: 30_000 };

/**
 * Upper bound of the delay for a proxy that refuses connections: at least `minMs`, or the outage divided by `divisor`. A proxy that has
 * announced its shutdown is probably back within seconds.
 */
const REFUSED = { minMs: 2_000, divisor: 10 };
const RESTARTING = { minMs: 1_000, divisor: 30 };

/** Why an attempt or a connection ended, and the delay before the next attempt. */
interface Outcome {
  readonly reason: string;
  readonly waitMs: number;
}

/** A connection that is being replaced. It stays open until the proxy closes it. */
interface Leaving {
  readonly session: Session;
  /** Delay before connecting elsewhere, and before reconnecting once the proxy has closed it. */
  readonly waitMs: number;
  /** Backoff once there seems to be no other proxy. */
  readonly backoff: Backoff;
  attempts: number;
}

/** Keeps a connection until `signal` is aborted. */
export class Reconnector {
  readonly #options: ReconnectorOptions;
  /** The connection that is being replaced. */
  #leaving?: Leaving;
  /** Start of the outage. */
  #outageSince = performance.now();
  /** Whether the proxy has announced its shutdown. */
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
        // keep reconnecting after any error
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
      session = await open(target, performance.now() - this.#outageSince);
    } catch (error) {
      targets.release(target, "active");
      const reason = describe(error, target);
      return { reason, waitMs: this.#leaving?.session.isOpen ? this.#migrationDelay(this.#leaving) : this.#retryDelay(error) };
    }
    void this.#leaving?.session.reportMigration(true); // never rejects
    this.#leaving = undefined;
    this.#isRestarting = false;
    return await this.#keep(session, target);
  }

  /** Delay in milliseconds after a failed attempt to find another proxy. Later attempts may find a proxy that has started since. */
  #migrationDelay(leaving: Leaving): number {
    if (++leaving.attempts < MAX_FAILOVERS) return this.#jitter(FAILOVER_DELAY_MS) + FAILOVER_DELAY_MS / 2;
    void leaving.session.reportMigration(this.#options.hasOtherConnection()); // never rejects; the proxy need not wait any longer
    return leaving.backoff.next();
  }

  /** Delay in milliseconds after a failed attempt without a connection. */
  #retryDelay(error: unknown): number {
    const { backoff } = this.#options;
    const outageMs = performance.now() - this.#outageSince;
    if (isUnreachable(error)) return backoff.delayAfterTimeout(outageMs);
    const waitMs = backoff.next();
    if (!isRefused(error)) return waitMs;
    const { minMs, divisor } = this.#isRestarting ? RESTARTING : REFUSED;
    const boundMs = Math.max(minMs, outageMs / divisor);
    return Math.min(waitMs, boundMs / 2 + this.#jitter(boundMs / 2));
  }

  /** Resolves when the connection ends or must be replaced by one elsewhere. */
  async #keep(first: Session, target: ProxyEndpoint): Promise<Outcome> {
    const { targets, backoff, reconnectBackoff, settledAfterMs, random } = this.#options;
    const start = performance.now();
    let session = first;
    let end = await this.#untilEnd(session, target);
    while ("replacement" in end) {
      session.isLeaving = true;
      targets.markLeaving(target);
      targets.share(target);
      void session.retire(); // never rejects
      session = end.replacement;
      end = await this.#untilEnd(session, target);
    }
    this.#outageSince = performance.now();
    const hasSettled = performance.now() - start >= settledAfterMs;
    if (hasSettled) reconnectBackoff.reset();
    if (!("cause" in end)) {
      session.isLeaving = true;
      targets.markLeaving(target);
      if (hasSettled) backoff.reset();
      // a proxy that migrates all agents at once must not be tried again immediately
      const waitMs = (hasSettled ? 0 : reconnectBackoff.next()) + this.#jitter(end.withinMs);
      this.#leaving = { session, waitMs, backoff: new Backoff({ ...MIGRATION_BACKOFF, random }), attempts: 0 };
      return { reason: `the proxy is going away: ${end.reason}`, waitMs };
    }
    const reason = describeClose(end);
    this.#isRestarting = isShutDown(end);
    // two agents with the same id must not replace each other in a tight loop: keep the backoff growing
    const isReplaced = end.remote && end.code === CloseCode.replaced;
    // an idle timeout is not the proxy's doing, and its detection has already taken a while
    const isIdleTimeout = end.cause === "timed-out";
    if (!isIdleTimeout && (!hasSettled || isReplaced)) {
      return { reason, waitMs: this.#isRestarting ? reconnectBackoff.next() : backoff.next() };
    }
    backoff.reset();
    return { reason, waitMs: this.#jitter(RECONNECT_SPREAD_MS) };
  }

  /** Resolves when the session ends, must be replaced by one elsewhere, or has been replaced by one with the same proxy. */
  async #untilEnd(session: Session, target: ProxyEndpoint): Promise<SessionClosed | Goaway | { replacement: Session }> {
    const { onConnected, targets, watch } = this.#options;
    const ended = session.closed.then((closed) => {
      targets.release(target, session.isLeaving ? "leaving" : "active");
      return closed;
    });
    onConnected(session);
    const watching = watch?.(session, target);
    const replaced = watching ? [watching.replaced.then((replacement) => ({ replacement }))] : [];
    const end = await Promise.race([ended, session.goaway, ...replaced]);
    watching?.close();
    if (!("replacement" in end)) void watching?.replaced.then((late) => late.close());
    return end;
  }

  async #wait(target: ProxyEndpoint, { reason, waitMs }: Outcome): Promise<void> {
    const { backoff, log, signal } = this.#options;
    const leaving = this.#leaving;
    if (!leaving || leaving.session.isOpen) {
      const fields = { proxy: target.address, reason, retryInMs: Math.round(waitMs) };
      if (!leaving) log.warn("not connected", fields);
      else if (leaving.attempts === 0) log.info("reconnecting", fields);
      else log.debug("reconnecting", fields); // many attempts, but the connection is still open
      await pause(waitMs, signal, leaving?.session.closed);
      if (!leaving || leaving.session.isOpen || signal.aborted) return;
    }
    // the proxy has closed the connection and may be back soon
    const end = await leaving.session.closed;
    this.#leaving = undefined;
    this.#outageSince = performance.now();
    this.#isRestarting = isShutDown(end);
    backoff.reset();
    await this.#wait(target, { reason: describeClose(end), waitMs: leaving.waitMs });
  }

  #jitter(ms: number): number {
    return this.#options.random() * ms;
  }
}

/** Whether the proxy has closed the connection because it shuts down. */
function isShutDown({ code, remote, cause }: SessionClosed): boolean {
  return remote && cause === "application" && code === CloseCode.shutdown;
}

/** Waits `ms` milliseconds, but no longer than until `signal` is aborted or `end` settles. */
async function pause(ms: number, signal: AbortSignal, end?: Promise<unknown>): Promise<void> {
  const ended = new AbortController();
  const stop = () => ended.abort();
  signal.addEventListener("abort", stop, { once: true });
  void end?.then(stop);
  await sleep(ms, undefined, { signal: ended.signal }).catch(() => {}); // aborted
  signal.removeEventListener("abort", stop);
}
