// Decides when an open session changes its transport: to TLS when QUIC fails and TLS gets through, or for bulk data where TLS is faster, and
// back to QUIC when that works again or is the better one; also to another connection over QUIC where only the packets of the open one are lost.
// The new session is open before the old one is left. A session over QUIC is probed when its proxy is silent, whatever the policy. Knows
// neither how to connect nor what becomes of the old session.
import { setTimeout as sleep } from "node:timers/promises";
import type { Logger } from "../../shared/log/logger.ts";
import { CloseCode, KEEP_ALIVE_MS } from "../../shared/link/link.ts";
import type { AgentSession, SessionKind, SessionStats } from "../../shared/net/session.ts";
import { BULK, type BulkLimits, BulkMeter } from "./bulk.ts";
import type { TransportPolicy } from "./policy.ts";
import { messageOf } from "../../shared/log/error_message.ts";

/** The session, as far as it is watched. */
export interface WatchedSession {
  readonly transport: SessionKind;
  /** Why its transport was chosen, if that was not the first choice. */
  readonly linkReason?: string;
  /** Chooses the interval of its pings. Default: the engine pings. */
  readonly keepAlive?: { readonly intervalMs: number };
  /** Age of the unanswered ping in milliseconds; 0 without one. */
  readonly silentMs: number;
  /** Sends a ping unless one is unanswered. */
  pingIfDue(): void;
  /** Resolves with whether the proxy's process is gone. */
  probe(): Promise<boolean>;
  close(): void;
  stats(): SessionStats;
}

export interface FailoverOptions<S extends { close(): void }> {
  /** Address of the proxy. */
  readonly address: string;
  readonly session: WatchedSession;
  readonly policy: TransportPolicy;
  /**
   * Connects over a transport, without authentication. If QUIC is `silent`, any transport is better that the network passes: a WebSocket in
   * place of TLS.
   */
  readonly connect: (kind: "quic" | "tls", signal: AbortSignal, reason?: ChangeReason) => Promise<AgentSession>;
  readonly authenticate: (connection: AgentSession, reason: ChangeReason) => Promise<S>;
  /** Whether TLS connects to the proxy without an outbound proxy, whose path is another one than that of QUIC. */
  readonly isDirect: () => Promise<boolean>;
  /** Moves data over a transport and returns the milliseconds that took. */
  readonly probe: (kind: SessionKind, signal: AbortSignal) => Promise<number>;
  readonly log: Logger;
  /** Interval of the engine's pings, in milliseconds. Default 3000. */
  readonly keepAliveMs?: number;
  /** Default: as documented. */
  readonly timing?: FailoverTiming;
}

/**
 * Why a link changes its transport. `blocked`: QUIC did not connect; `remembered`: the link last ran over TLS; `silent`: it does not answer
 * any more; `lossy`: it loses packets and is slower than TLS; `bulk`: much data over a short path without loss; `recovered`: QUIC works again,
 * or there is no bulk data any more.
 */
export type ChangeReason = "blocked" | "remembered" | "silent" | "lossy" | "bulk" | "recovered";

/** When a transport counts as failed. Times are in milliseconds. */
export interface FailoverTiming {
  /** Interval at which a session on QUIC is checked while the link is busy, and while it is idle. */
  readonly tick: number;
  readonly idleTick: number;
  /** Time without a byte from the proxy after which it is pinged if the link was busy recently; otherwise QUIC's own pings come in time. */
  readonly quietBusy: number;
  readonly quietIdle: number;
  /** Time for which a link counts as busy after it has moved data. */
  readonly busy: number;
  /** QUIC is suspect when a ping is unanswered and nothing else has come for this time, or for four round trips. */
  readonly silent: number;
  /**
   * Time for another connection over QUIC once one over TLS is open, or three round trips up to a maximum: the proxy closes the waiting
   * connection if it does not authenticate within 3 s.
   */
  readonly grace: number;
  readonly maxGrace: number;
  /** Time without a byte from the proxy after which another connection over QUIC is opened. */
  readonly reopen: number;
  /** Delay before the next attempt over TLS while QUIC is suspect. */
  readonly retry: number;
  /** Time for TLS to connect where a probe says that the proxy's process is gone: the network may only reject UDP. */
  readonly leave: number;
  /** Window in which losses are counted. */
  readonly lossWindow: number;
  /** Interval between comparisons of a lossy QUIC with TLS. */
  readonly comparison: number;
  readonly bulk: BulkLimits;
}

/** An idle link is looked at as rarely as QUIC's own pings permit. */
const timingOf = (keepAliveMs: number): FailoverTiming => ({
  tick: 250,
  idleTick: Math.max(1_000, keepAliveMs / 3),
  quietBusy: 500,
  quietIdle: keepAliveMs + 1_000,
  busy: 10_000,
  silent: 1_200,
  grace: 500,
  maxGrace: 2_000,
  reopen: keepAliveMs + 1_000,
  retry: 1_000,
  leave: 1_000,
  lossWindow: 10_000,
  comparison: 300_000,
  bulk: BULK,
});
/** Bytes in a tick that make a link busy; pings are smaller. */
const BUSY_BYTES = 2_048;
/**
 * QUIC is suspect when one of these fractions of at least that number of packets was lost in a window. Where the network drops large
 * packets, few are sent and most are lost.
 */
const LOSSES = [{ fraction: 0.1, packets: 200 }, { fraction: 0.5, packets: 10 }];
/** QUIC is too slow when it takes this many times as long as TLS, and at least this many milliseconds more. */
const SLOWER = { factor: 2, leastMs: 100 };

/** Watches one session until it is closed. */
export class Failover<S extends { close(): void }> {
  /** Resolves with the session to continue with; otherwise it stays pending. */
  readonly replaced: Promise<S>;
  readonly #options: FailoverOptions<S>;
  readonly #replace: (session: S) => void;
  readonly #closing = new AbortController();
  #timer?: ReturnType<typeof setTimeout>;
  /** The last change of the bytes received, and when it was seen. */
  #received = { bytes: 0, at: performance.now() };
  /** Bytes moved until the last tick, and when the link was last busy. */
  #moved = { bytes: 0, busyAt: -Infinity };
  /** Packets at the start of the current window. */
  #window = { sent: 0, lost: 0, at: performance.now() };
  #nextComparisonAt = 0;
  readonly #bulk: BulkMeter;
  /** The session is on TLS for bulk data, and not because QUIC does not work. */
  #isForBulk: boolean;
  #isProbing = false;
  #isReopening = false;

  constructor(options: FailoverOptions<S>) {
    this.#options = options;
    this.#bulk = new BulkMeter(this.#timing.bulk);
    this.#isForBulk = options.session.transport === "tls" && options.session.linkReason === "bulk";
    const { promise, resolve } = Promise.withResolvers<S>();
    this.replaced = promise;
    this.#replace = resolve;
    if (options.policy.isAutomatic || options.session.transport === "quic") this.#schedule();
  }

  /** It changes with the interval of pings. */
  get #timing(): FailoverTiming {
    const { timing, session, keepAliveMs = KEEP_ALIVE_MS } = this.#options;
    return timing ?? timingOf(session.keepAlive?.intervalMs ?? keepAliveMs);
  }

  close(): void {
    clearTimeout(this.#timer);
    this.#closing.abort();
  }

  #schedule(delayMs = this.#nextCheckMs()): void {
    if (delayMs === undefined || this.#closing.signal.aborted) return;
    this.#timer = setTimeout(() => void this.#check(), delayMs); // never rejects
  }

  #nextCheckMs(): number | undefined {
    const { session, policy, address } = this.#options;
    if (this.#isForBulk) return this.#timing.idleTick;
    if (session.transport !== "quic") return policy.nextProbeMs(address);
    return this.#isBusy(performance.now()) ? this.#timing.tick : this.#timing.idleTick;
  }

  /** Whether the link has carried data recently. */
  #isBusy(now: number): boolean {
    return now - this.#moved.busyAt < this.#timing.busy;
  }

  async #check(): Promise<void> {
    const { session, log, address } = this.#options;
    let delayMs;
    try {
      if (this.#isForBulk) await this.#checkBulk();
      else if (session.transport === "quic") await this.#checkQuic();
      else await this.#tryQuic();
    } catch (error) {
      if (this.#closing.signal.aborted) return;
      log.debug("the transport stays", { proxy: address, link: session.transport, reason: messageOf(error) });
      if (session.transport === "quic") delayMs = this.#timing.retry;
    }
    this.#schedule(delayMs);
  }

  /** @throws {NetError} if TLS does not get through either */
  async #checkQuic(): Promise<void> {
    const { session, policy } = this.#options;
    const { silent, reopen, comparison } = this.#timing;
    const stats = session.stats();
    const now = performance.now();
    const isQuiet = this.#isQuiet(stats, now);
    if (isQuiet) void this.#probe(stats); // never rejects
    if (isQuiet && now - this.#received.at >= reopen) void this.#reopen(stats); // never rejects
    if (!policy.isAutomatic) return;
    if (isQuiet) session.pingIfDue();
    // the proxy's engine acknowledges a ping even while its program is busy
    if (Math.min(session.silentMs, now - this.#received.at) >= Math.max(silent, 4 * stats.rttMs)) {
      return await this.#move("tls", "silent", () => this.#isSilent(stats));
    }
    if (this.#bulk.measure(stats, now) === "bulk") return await this.#moveForBulk();
    if (!this.#isLossy(stats, now) || now < this.#nextComparisonAt) return;
    this.#nextComparisonAt = now + comparison;
    if (await this.#isSlower()) await this.#move("tls", "lossy");
  }

  /** Leaves a proxy whose process is gone: for TLS, if only UDP is rejected. Never rejects. */
  async #probe(stats: SessionStats): Promise<void> {
    const { session, policy } = this.#options;
    if (this.#isProbing) return;
    this.#isProbing = true;
    try {
      if (!await session.probe() || this.#closing.signal.aborted) return;
      const limit = AbortSignal.timeout(this.#timing.leave);
      if (policy.isAutomatic) await this.#move("tls", "silent", () => this.#isSilent(stats), limit).catch(() => {});
      if (!this.#closing.signal.aborted) session.close();
    } catch {
      // the session has ended meanwhile
    } finally {
      this.#isProbing = false;
    }
  }

  /**
   * Leaves a connection whose packets alone do not arrive, as after a NAT or a balancer has mixed up its state: another one, from another port,
   * takes over if it opens and stays open while the pings of the old one remain unanswered. Never rejects.
   */
  async #reopen({ receivedBytes, rttMs }: SessionStats): Promise<void> {
    if (this.#isReopening) return;
    this.#isReopening = true;
    const { silent, maxGrace } = this.#timing;
    const { signal } = this.#closing;
    const isStuck = async () => {
      await sleep(Math.min(maxGrace, Math.max(silent, 4 * rttMs)), undefined, { signal }).catch(() => {}); // the watch is over
      return this.#options.session.stats().receivedBytes === receivedBytes;
    };
    await this.#move("quic", "silent", isStuck, AbortSignal.timeout(maxGrace)).catch(() => {}); // the network is away
    this.#isReopening = false;
  }

  /** @throws {NetError} if TLS does not get through */
  async #moveForBulk(): Promise<void> {
    const { policy, address, isDirect } = this.#options;
    if (!policy.mayCarryBulk(address) || !await isDirect()) return;
    policy.delayBulk(address); // the next time, if this fails
    await this.#move("tls", "bulk");
  }

  /** Returns to QUIC once there is no bulk data, or the path is not short and clean any more. */
  async #checkBulk(): Promise<void> {
    const { session, policy, address } = this.#options;
    if (this.#bulk.measure(session.stats(), performance.now()) !== "over") return;
    this.#isForBulk = false; // if QUIC does not work now, it is probed as after any other failure
    policy.delayBulk(address);
    await this.#tryQuic();
  }

  /** Whether the last byte from the proxy is so old that it must be pinged. */
  #isQuiet({ sentBytes, receivedBytes }: SessionStats, now: number): boolean {
    const { quietBusy, quietIdle } = this.#timing;
    const moved = sentBytes + receivedBytes;
    if (receivedBytes !== this.#received.bytes) this.#received = { bytes: receivedBytes, at: now };
    this.#moved = { bytes: moved, busyAt: moved - this.#moved.bytes >= BUSY_BYTES ? now : this.#moved.busyAt };
    return now - this.#received.at >= (this.#isBusy(now) ? quietBusy : quietIdle);
  }

  /** Whether QUIC does not get through while TLS does. A network that was away brings both back, but an open session notices it late. */
  async #isSilent({ receivedBytes, rttMs }: SessionStats): Promise<boolean> {
    const { session, connect } = this.#options;
    const { grace, maxGrace } = this.#timing;
    const limit = AbortSignal.timeout(Math.min(maxGrace, Math.max(grace, Math.ceil(3 * rttMs))));
    const other = await connect("quic", AbortSignal.any([this.#closing.signal, limit])).catch(() => undefined);
    other?.close(CloseCode.shutdown, "");
    return !other && session.silentMs > 0 && session.stats().receivedBytes === receivedBytes;
  }

  #isLossy({ sentPackets, lostPackets }: SessionStats, now: number): boolean {
    const { sent, lost, at } = this.#window;
    if (now - at < this.#timing.lossWindow) return false;
    this.#window = { sent: sentPackets, lost: lostPackets, at: now };
    const total = sentPackets - sent;
    return LOSSES.some(({ fraction, packets }) => total >= packets && lostPackets - lost >= fraction * total);
  }

  /** @throws {NetError} if QUIC does not work yet */
  async #tryQuic(): Promise<void> {
    const { policy, address } = this.#options;
    try {
      if (await this.#isSlower()) throw new Error("QUIC works, but is slower than TLS");
      await this.#move("quic", "recovered");
    } catch (error) {
      if (!this.#closing.signal.aborted) policy.probeFailed(address);
      throw error;
    }
  }

  /**
   * Whether QUIC moves data more slowly than TLS. A transport that moves none is the slower one.
   * @throws {NetError} if neither moves any
   */
  async #isSlower(): Promise<boolean> {
    const { probe, session } = this.#options;
    const { signal } = this.#closing;
    const other = session.transport === "quic" ? "tls" : session.transport;
    const [quic, tls] = await Promise.allSettled([probe("quic", signal), probe(other, signal)]);
    if (quic.status === "rejected") {
      // on TLS, the error says why QUIC does not work; on QUIC, TLS is better if it works
      if (session.transport !== "quic" || tls.status === "rejected") throw quic.reason;
      return true;
    }
    return tls.status === "fulfilled" && quic.value > SLOWER.factor * tls.value && quic.value - tls.value >= SLOWER.leastMs;
  }

  /** Opens a session over `kind` and, if `isWanted` then still says so, replaces the watched one with it. */
  async #move(
    kind: "quic" | "tls",
    reason: ChangeReason,
    isWanted: () => Promise<boolean> = () => Promise.resolve(true),
    limit?: AbortSignal,
  ): Promise<void> {
    const { connect, authenticate } = this.#options;
    const { signal } = this.#closing;
    const connection = await connect(kind, limit ? AbortSignal.any([signal, limit]) : signal, reason);
    const isClosed = () => signal.aborted;
    if (isClosed() || !await isWanted() || isClosed()) return connection.close(CloseCode.shutdown, "");
    const session = await authenticate(connection, reason);
    if (isClosed()) return session.close();
    this.#replace(session);
    this.close();
  }
}
