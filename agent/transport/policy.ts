// Decides which transport is tried first, when an agent that is not on QUIC looks whether QUIC works again, and whether it may leave QUIC for
// bulk data. Knows no connections.
import type { SessionKind } from "../../shared/net/session.ts";
import type { StoredTransports } from "./stored_transports.ts";

/** Value of `--agent-client.transport`. */
export type TransportChoice = "auto" | SessionKind;

export interface TransportPolicyOptions {
  readonly transport: TransportChoice;
  /** Whether there is a URL for WebSockets. */
  readonly hasWebSocket?: boolean;
  readonly memory: Pick<StoredTransports, "fallbackOf" | "remember">;
  /** First interval between probes of QUIC in milliseconds; 0: none. */
  readonly probeIntervalMs: number;
  /** Random number in [0, 1). */
  readonly random: () => number;
  /** Milliseconds from any fixed point. Default `performance.now`. */
  readonly now?: () => number;
}

const FALLBACK_DELAY_MS = 300;
const RECONNECT_FALLBACK_DELAY_MS = 5_000;
const RECONNECT_RETRY_MS = 10_000;
/** The longest interval between probes is this in milliseconds, or the first one if that is longer. */
const MAX_PROBE_INTERVAL_MS = 600_000;
/** Fraction by which an interval varies, each way. */
const JITTER = 0.2;
/** Maximum number of proxies with a state; a name may have other addresses every time. */
const MAX_PROXIES = 256;
/** QUIC has settled when it has carried the link for this many milliseconds. Before, its failure doubles the interval of probes. */
const SETTLED_MS = 600_000;
/** Minimum time in milliseconds between two moves to TLS for bulk data. */
const BULK_INTERVAL_MS = 600_000;

interface ProxyState {
  /** What carries the link, or carried it last. */
  kind?: SessionKind;
  /** Interval of the next probe. */
  intervalMs: number;
  /** When the link last returned to QUIC. */
  returnedAt: number;
  /** The link is on TLS for bulk data. */
  isForBulk: boolean;
  /** When the link may next move to TLS for bulk data. */
  bulkAt: number;
}

/** Decides for each proxy, by its address. */
export class TransportPolicy {
  readonly #options: TransportPolicyOptions;
  readonly #now: () => number;
  /** The oldest is first. */
  readonly #proxies = new Map<string, ProxyState>();

  constructor(options: TransportPolicyOptions) {
    this.#options = options;
    this.#now = options.now ?? (() => performance.now());
  }

  /** Whether the link may change its transport. */
  get isAutomatic(): boolean {
    return this.#options.transport === "auto";
  }

  /** The transports to connect over, the preferred one first. */
  order(address: string): readonly SessionKind[] {
    const { transport, memory, hasWebSocket } = this.#options;
    if (transport !== "auto") return [transport];
    const remembered = memory.fallbackOf(address);
    if (remembered === undefined) return ["quic", ...this.fallbacks];
    return remembered === "websocket" && hasWebSocket ? ["tls", "websocket", "quic"] : ["tls", "quic", ...this.fallbacks.slice(1)];
  }

  /** The transports where QUIC does not work, the preferred one first. */
  get fallbacks(): readonly SessionKind[] {
    return this.#options.hasWebSocket ? ["tls", "websocket"] : ["tls"];
  }

  /** Whether the link to the proxy last ran over `kind` and not over QUIC. */
  isRemembered(address: string, kind: SessionKind): boolean {
    return this.#options.memory.fallbackOf(address) === kind;
  }

  /**
   * Time in milliseconds that a transport has before the next one starts beside it. Where QUIC has carried the link, a slow proxy is
   * more likely than a blocked network, and thousands of agents that reconnect must not connect twice.
   */
  fallbackDelayMs(address: string): number {
    return this.#proxies.get(address)?.kind === "quic" ? RECONNECT_FALLBACK_DELAY_MS : FALLBACK_DELAY_MS;
  }

  /**
   * Delay in milliseconds before the second transport is tried again while the first one is still connecting; at least `retryMs`. Where QUIC has
   * carried the link, it finds a proxy that comes back, and TLS is not needed for that.
   */
  retryMs(address: string, retryMs: number): number {
    return this.#proxies.get(address)?.kind === "quic" ? Math.max(retryMs, RECONNECT_RETRY_MS) : retryMs;
  }

  /**
   * A link is up over `kind`: the next one is opened over it first, unless it is on TLS only for bulk data. Returns what the last one was opened
   * over.
   */
  connected(address: string, kind: SessionKind, isForBulk = false): SessionKind | undefined {
    const { memory, probeIntervalMs } = this.#options;
    const state = this.#state(address);
    const { kind: before, isForBulk: wasForBulk } = state;
    state.kind = kind;
    state.isForBulk = isForBulk;
    if (!this.isAutomatic || isForBulk) return before;
    memory.remember(address, kind);
    if (before !== undefined && before !== "quic" && kind === "quic" && !wasForBulk) state.returnedAt = this.#now();
    if (before === "quic" && kind !== "quic") {
      if (this.#now() - state.returnedAt < SETTLED_MS) this.#lengthen(state);
      else state.intervalMs = probeIntervalMs;
    }
    return before;
  }

  /** Delay in milliseconds before the next probe of QUIC; `undefined` for none. */
  nextProbeMs(address: string): number | undefined {
    const { probeIntervalMs, random } = this.#options;
    if (!this.isAutomatic || probeIntervalMs === 0) return undefined;
    return this.#state(address).intervalMs * (1 - JITTER + 2 * JITTER * random());
  }

  /** Whether the link may move to TLS for bulk data. Without probes of QUIC it could not return. */
  mayCarryBulk(address: string): boolean {
    return this.isAutomatic && this.#options.probeIntervalMs > 0 && this.#now() >= this.#state(address).bulkAt;
  }

  /** The link does not move to TLS for bulk data for some time. */
  delayBulk(address: string): void {
    this.#state(address).bulkAt = this.#now() + BULK_INTERVAL_MS;
  }

  /** A probe has failed. */
  probeFailed(address: string): void {
    this.#lengthen(this.#state(address));
  }

  #lengthen(state: ProxyState): void {
    const { probeIntervalMs } = this.#options;
    state.intervalMs = Math.min(2 * state.intervalMs, Math.max(MAX_PROBE_INTERVAL_MS, probeIntervalMs));
  }

  #state(address: string): ProxyState {
    const known = this.#proxies.get(address);
    if (known) return known;
    const state = { intervalMs: this.#options.probeIntervalMs, returnedAt: -Infinity, isForBulk: false, bulkAt: -Infinity };
    this.#proxies.set(address, state);
    if (this.#proxies.size > MAX_PROXIES) this.#proxies.delete(this.#proxies.keys().next().value!);
    return state;
  }
}
