// Tunnels: how many there may be, in all and of one agent and one client, and how long each may live. One timer for all of them.
import { ProxyError } from "../http/status.ts";
import type { LogFields } from "../log/logger.ts";
import type { Net, Rate } from "../net/types.ts";
import { Bandwidth } from "./bandwidth.ts";
import { type LimitName, LimitReached, type LimitReporter, unlimitedIfZero } from "./limit.ts";
import type { TunnelLimitValues } from "./options.ts";
import { BufferBudget, type Buffers, MemoryWatermark } from "./resources.ts";
import { InflightCounts } from "./counters.ts";

export interface TunnelLimitsOptions extends TunnelLimitValues {
  /** Most at a time, in all, through one agent, of one client; 0 or missing for no limit. */
  tunnels: number;
  tunnelsPerAgent?: number;
  tunnelsPerClient?: number;
  /** Bytes a second of all tunnels together, of those through one agent, of one client; missing or 0 for no limit. */
  bandwidth?: string;
  bandwidthPerAgent?: string;
  bandwidthPerClient?: string;
  createRate: Net["createRate"];
  /** Who copies them. Default: what they buffer is not limited. */
  buffers?: Buffers;
  reports: LimitReporter;
  /** Milliseconds from any fixed point. Default `performance.now`. */
  now?: () => number;
}

/** A tunnel that is asked for. */
export interface TunnelRequest {
  readonly agentId?: string;
  readonly client?: string;
  /** Aborted when the tunnel is to end for other reasons. */
  readonly signal?: AbortSignal;
}

/** A tunnel that counts. */
export interface OpenTunnel {
  /** Aborted when it is to end, with the `Error` that says why; missing where it may go on for ever. */
  readonly signal?: AbortSignal;
  /** For the copy. */
  readonly rates: readonly Rate[];
  /** For who copies without that: waits until so many bytes may go. */
  pace(bytes: number): Promise<void>;
  /** Ends it when `progress` stays the same for too long: for who copies without that. */
  watchProgress(progress: () => number): void;
  /** The copy ended it for its silence. */
  recordIdle(): void;
  /** The copy ended it for what it buffered. */
  recordCut(): void;
  close(): void;
}

/** One of them, as {@link TunnelLimits} looks at it. */
class TrackedTunnel implements OpenTunnel {
  readonly rates: readonly Rate[];
  /** Of those rates, the one that is its own. */
  readonly ownRate: Rate | undefined;
  readonly agentId: string;
  readonly client: string;
  startedAt = 0;
  /** Where it may not go on for ever. */
  ending?: AbortController;
  progress?: { readonly read: () => number; last: number; since: number };
  readonly #limits: TunnelLimits;
  readonly #signal: AbortSignal | undefined;
  #onEnd?: () => void;
  #isOpen = true;

  constructor(
    limits: TunnelLimits,
    agentId: string,
    client: string,
    signal: AbortSignal | undefined,
    own: Rate | undefined,
    rates: Rate[],
  ) {
    this.#limits = limits;
    this.agentId = agentId;
    this.client = client;
    this.#signal = signal;
    this.ownRate = own;
    this.rates = rates;
  }

  get signal(): AbortSignal | undefined {
    return this.ending?.signal ?? this.#signal;
  }

  /** From `now` on it has an age, and ends when it is to end for other reasons, too. */
  age(now: number): void {
    this.startedAt = now;
    const [ending, signal] = [new AbortController(), this.#signal];
    this.ending = ending;
    if (!signal) return;
    const onEnd = this.#onEnd = () => ending.abort(signal.reason);
    if (signal.aborted) onEnd();
    signal.addEventListener("abort", onEnd, { once: true });
  }

  async pace(bytes: number): Promise<void> {
    for (const rate of this.rates) await rate.take(bytes);
  }

  watchProgress(read: () => number): void {
    this.#limits.watchProgress(this, read);
  }

  recordIdle(): void {
    this.#limits.recordIdle();
  }

  recordCut(): void {
    this.#limits.recordCut(this);
  }

  close(): void {
    if (!this.#isOpen) return;
    this.#isOpen = false;
    this.#limits.release(this);
    if (this.#onEnd) this.#signal?.removeEventListener("abort", this.#onEnd);
  }
}

/** How often they are looked at, in milliseconds. */
const TICK_MS = 1_000;

/** Counts tunnels, and ends those that are too old, until it is closed. */
export class TunnelLimits {
  readonly #options: TunnelLimitsOptions;
  readonly #now: () => number;
  readonly #memory: MemoryWatermark;
  readonly #buffers?: BufferBudget;
  readonly #perAgent = new InflightCounts();
  readonly #perClient = new InflightCounts();
  readonly #bandwidth: { readonly [of in "tunnel" | "all" | "agent" | "client"]: Bandwidth };
  /** The oldest first. */
  readonly #aging = new Set<TrackedTunnel>();
  readonly #timer: ReturnType<typeof setInterval>;
  #open = 0;

  constructor(options: TunnelLimitsOptions) {
    this.#options = options;
    this.#now = options.now ?? (() => performance.now());
    this.#memory = new MemoryWatermark(options.memoryWatermark);
    if (options.buffers) this.#buffers = new BufferBudget(options.bufferMemory, options.buffers);
    const bandwidth = (text = "0") => new Bandwidth(text, options.createRate);
    this.#bandwidth = {
      tunnel: bandwidth(options.bandwidthPerTunnel),
      client: bandwidth(options.bandwidthPerClient),
      agent: bandwidth(options.bandwidthPerAgent),
      all: bandwidth(options.bandwidth),
    };
    this.#timer = setInterval(() => this.tick(), TICK_MS);
  }

  /** Milliseconds of silence after which a tunnel is to end; 0 for never. */
  get idleMs(): number {
    return this.#options.tunnelIdleTimeout;
  }

  /** @throws {LimitReached} */
  open({ agentId = "", client = "", signal }: TunnelRequest): OpenTunnel {
    const { tunnels, tunnelsPerAgent = 0, tunnelsPerClient = 0, tunnelMaxDuration } = this.#options;
    if (this.#memory.refuses(this.#open)) {
      throw this.#refusal("memory", "There is no memory for more tunnels", { mostBytes: this.#memory.limit });
    }
    if (this.#buffers?.refuses()) {
      const { limit, usedBytes } = this.#buffers;
      const message = "Open tunnels buffer nearly all that they may: their clients or destinations do not read";
      throw this.#refusal("buffer-memory", message, { usedBytes, mostBytes: limit });
    }
    if (this.#open >= unlimitedIfZero(tunnels)) throw this.#refusal("tunnels", "There are too many tunnels", { most: tunnels });
    if (this.#perAgent.get(agentId) >= unlimitedIfZero(tunnelsPerAgent)) {
      throw this.#refusal("tunnels-per-agent", "There are too many tunnels through this agent", { agent: agentId, most: tunnelsPerAgent });
    }
    if (this.#perClient.get(client) >= unlimitedIfZero(tunnelsPerClient)) {
      throw this.#refusal("tunnels-per-client", "There are too many tunnels of this client", { agent: agentId, most: tunnelsPerClient });
    }
    this.#open++;
    this.#perAgent.add(agentId);
    this.#perClient.add(client);
    const { tunnel: each, client: ofClient, agent, all } = this.#bandwidth;
    const own = each.create();
    // the narrowest share first: what waits for that is not taken from the others yet
    const rates = [own, ofClient.join(client), agent.join(agentId), all.join("")].filter((rate) => rate !== undefined);
    const tunnel = new TrackedTunnel(this, agentId, client, signal, own, rates);
    if (tunnelMaxDuration > 0) this.#age(tunnel);
    return tunnel;
  }

  #age(tunnel: TrackedTunnel): void {
    tunnel.age(this.#now());
    this.#aging.add(tunnel);
  }

  /** Ends it when `read` stays the same for too long. */
  watchProgress(tunnel: TrackedTunnel, read: () => number): void {
    if (this.idleMs === 0) return;
    if (!tunnel.ending) this.#age(tunnel);
    tunnel.progress = { read, last: read(), since: this.#now() };
  }

  recordIdle(): void {
    this.#options.reports.record("tunnel-idle-timeout");
  }

  /** The system has no local port left for a connection to `destination`. */
  recordNoPort(destination: string): void {
    this.#options.reports.noPort(destination);
  }

  recordCut({ agentId, client }: TrackedTunnel): void {
    const mostBytes = this.#buffers?.limit;
    const jti = client === agentId ? undefined : client || undefined; // without a token, the client is known by the agent's id
    this.#options.reports.record("buffer-memory", { agent: agentId || undefined, jti, mostBytes, action: "cut" });
  }

  /** It counts no longer. */
  release(tunnel: TrackedTunnel): void {
    const { agentId, client, ownRate } = tunnel;
    this.#open--;
    this.#perAgent.remove(agentId);
    this.#perClient.remove(client);
    ownRate?.close();
    this.#bandwidth.client.release(client);
    this.#bandwidth.agent.release(agentId);
    this.#bandwidth.all.release("");
    this.#aging.delete(tunnel);
  }

  /** What it does once a second: ends what is too old or too silent, and looks at the memory. */
  tick(): void {
    const { tunnelMaxDuration, tunnelIdleTimeout, reports } = this.#options;
    const now = this.#now();
    this.#memory.refresh();
    for (const bandwidth of Object.values(this.#bandwidth)) bandwidth.tick();
    reports.flush();
    for (const tunnel of this.#aging) {
      const { startedAt, ending, progress } = tunnel;
      if (tunnelMaxDuration > 0 && now - startedAt >= tunnelMaxDuration) {
        reports.record("tunnel-max-duration");
        this.#aging.delete(tunnel);
        ending?.abort(new LimitReached("tunnel-max-duration", "The tunnel has reached its longest life"));
      } else if (progress && tunnelIdleTimeout > 0) {
        const read = progress.read();
        if (read !== progress.last) Object.assign(progress, { last: read, since: now });
        else if (now - progress.since >= tunnelIdleTimeout) {
          reports.record("tunnel-idle-timeout");
          this.#aging.delete(tunnel);
          ending?.abort(new ProxyError(504, "http_response_timeout", `Nothing was sent or received for ${tunnelIdleTimeout} ms`));
        }
      }
    }
  }

  close(): void {
    clearInterval(this.#timer);
    this.#options.reports.flush(true);
    for (const bandwidth of Object.values(this.#bandwidth)) bandwidth.close();
  }

  #refusal(limit: LimitName, message: string, fields: LogFields): LimitReached {
    this.#options.reports.record(limit, fields);
    return new LimitReached(limit, message);
  }
}
