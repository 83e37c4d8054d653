// Limits on tunnels: their number in total, per agent and per client, and their lifetime; refuses new ones while memory or descriptors are
// short. One timer serves all of them.
import type { Network } from "../address/authority.ts";
import type { LogFields } from "../log/logger.ts";
import type { Net } from "../net/net.ts";
import type { Rate } from "../net/relay.ts";
import { Bandwidth, type SharedRate } from "./bandwidth.ts";
import type { Quota } from "../policy/policy.ts";
import { type LimitName, LimitReached, type LimitReporter, TunnelIdle, unlimitedIfZero } from "./limit.ts";
import type { TunnelLimitValues } from "./options.ts";
import { BufferBudget, type Buffers, MemoryWatermark } from "./resources.ts";
import { InflightCounts } from "./counters.ts";
import type { SharedLimits } from "./shared_limits.ts";

export interface TunnelLimitsOptions extends TunnelLimitValues {
  /** Limits on concurrent tunnels: in total, per agent, per client. 0 or missing: no limit. */
  tunnels: number;
  tunnelsPerAgent?: number;
  tunnelsPerClient?: number;
  /** Limit on concurrent UDP flows per client, which are tunnels too. 0 or missing: no limit. */
  udpFlowsPerClient?: number;
  /** Bytes per second of all tunnels, of one agent's, of one client's. 0 or missing: no limit. */
  bandwidth?: string;
  bandwidthPerAgent?: string;
  bandwidthPerClient?: string;
  createRate: Net["createRate"];
  /** The network's buffer accounting. Default: buffers are not limited. */
  buffers?: Buffers;
  reports: LimitReporter;
  /** The other processes of the service, for which the numbers of tunnels hold, too. Default: there are none. */
  shared?: SharedLimits;
  /** Monotonic clock in milliseconds. Default `performance.now`. */
  now?: () => number;
}

/** The owner of a new tunnel. */
export interface TunnelOwner {
  readonly agentId?: string;
  readonly client?: string;
  /** The client's token, for the log. */
  readonly tokenId?: string;
  /** Default `tcp`. */
  readonly network?: Network;
  /** Limits of the policy, which tunnels with the same keys share. Default: none. */
  readonly quotas?: readonly Quota[];
  /** Aborts the tunnel for reasons other than limits. */
  readonly signal?: AbortSignal;
}

/** A tunnel that is counted. */
export interface OpenTunnel {
  /** Aborted with an `Error` when the tunnel must end; `undefined` if it may last forever. */
  readonly signal?: AbortSignal;
  /** Rates for the relay. */
  readonly rates: readonly Rate[];
  /** Waits until `bytes` may be relayed, for a relay that does not take {@link rates}. */
  pace(bytes: number): Promise<void>;
  /** Ends the tunnel if `progress` returns the same value for the idle timeout, for a relay without one. */
  watchProgress(progress: () => number): void;
  /** Records that the relay has ended the tunnel by its idle timeout. */
  recordIdle(): void;
  /** Records that the network has reset the tunnel because of its buffers. */
  recordCut(): void;
  close(): void;
}

/** A tunnel as {@link TunnelLimits} tracks it. */
class TrackedTunnel implements OpenTunnel {
  readonly rates: readonly Rate[];
  /** The rate in {@link rates} that no other tunnel shares. */
  readonly ownRate: Rate | undefined;
  readonly agentId: string;
  readonly network: Network;
  readonly client: string;
  readonly tokenId: string | undefined;
  readonly quotas: readonly Quota[];
  startedAt = 0;
  /** Age at which it ends, in milliseconds; 0: never. */
  maxAgeMs = 0;
  /** Ends the tunnel; `undefined` if it may last forever. */
  controller?: AbortController;
  progress?: { readonly read: () => number; readonly idleMs: number; last: number; since: number };
  readonly #limits: TunnelLimits;
  readonly #signal: AbortSignal | undefined;
  #onEnd?: () => void;
  #isOpen = true;

  constructor(
    limits: TunnelLimits,
    { agentId = "", client = "", tokenId, network = "tcp", quotas = NONE, signal }: TunnelOwner,
    ownRate: Rate | undefined,
    /** Those that it shares. */
    readonly shared: readonly SharedRate[],
  ) {
    this.#limits = limits;
    this.agentId = agentId;
    this.client = client;
    this.tokenId = tokenId;
    this.network = network;
    this.quotas = quotas;
    this.#signal = signal;
    this.ownRate = ownRate;
    // the narrowest first: while it blocks, nothing is taken from the shared ones
    const sharedRates = shared.length === 0 ? NONE : shared.map(({ rate }) => rate);
    this.rates = ownRate ? [ownRate, ...sharedRates] : sharedRates;
  }

  get signal(): AbortSignal | undefined {
    return this.controller?.signal ?? this.#signal;
  }

  /** Starts to track the tunnel's age, and creates a controller that also follows the tunnel's own signal. */
  track(now: number): void {
    this.startedAt = now;
    const [controller, signal] = [new AbortController(), this.#signal];
    this.controller = controller;
    if (!signal) return;
    const onEnd = this.#onEnd = () => controller.abort(signal.reason);
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

/** The key of all tunnels. */
const ALL = "";
/** Interval of the checks, in milliseconds. */
const TICK_MS = 1_000;
/** The list of a tunnel without rates, or without limits of the policy. Shared, because nearly all tunnels have none. */
const NONE: readonly never[] = [];

/** Counts tunnels and ends those that are too old or idle, until it is closed. */
export class TunnelLimits {
  #options: TunnelLimitsOptions;
  readonly #now: () => number;
  #memory: MemoryWatermark;
  #buffers?: BufferBudget;
  readonly #all: InflightCounts;
  readonly #perAgent: InflightCounts;
  readonly #perClient: InflightCounts;
  readonly #flowsPerClient: InflightCounts;
  readonly #perQuota: InflightCounts;
  readonly #bandwidth: { readonly [of in "tunnel" | "all" | "agent" | "client" | "quota"]: Bandwidth };
  /** Tunnels that may have to end, the oldest first. */
  readonly #tracked = new Set<TrackedTunnel>();
  readonly #timer: ReturnType<typeof setInterval>;

  constructor(options: TunnelLimitsOptions) {
    this.#options = options;
    this.#now = options.now ?? (() => performance.now());
    const countsOf = (limit: LimitName) => new InflightCounts(options.shared?.counts(limit));
    this.#all = countsOf("tunnels");
    this.#perAgent = countsOf("tunnels-per-agent");
    this.#perClient = countsOf("tunnels-per-client");
    this.#flowsPerClient = countsOf("udp-flows-per-client");
    this.#perQuota = countsOf("policy");
    this.#memory = new MemoryWatermark(options.memoryWatermark);
    if (options.buffers) this.#buffers = new BufferBudget(options.bufferMemory, options.buffers);
    const bandwidth = (text = "0") => new Bandwidth(text, options.createRate);
    this.#bandwidth = {
      tunnel: bandwidth(options.bandwidthPerTunnel),
      client: bandwidth(options.bandwidthPerClient),
      agent: bandwidth(options.bandwidthPerAgent),
      all: bandwidth(options.bandwidth),
      quota: bandwidth(),
    };
    this.#timer = setInterval(() => this.tick(), TICK_MS);
  }

  /** Changes the limits. Open tunnels keep the times and rates that they have. */
  update(limits: Omit<TunnelLimitsOptions, "createRate" | "buffers" | "reports" | "shared" | "now">): void {
    const before = this.#options;
    const options = this.#options = { ...before, ...limits };
    if (options.memoryWatermark !== before.memoryWatermark) this.#memory = new MemoryWatermark(options.memoryWatermark);
    if (options.buffers && options.bufferMemory !== before.bufferMemory) {
      this.#buffers = new BufferBudget(options.bufferMemory, options.buffers);
    }
    const { tunnel, client, agent, all } = this.#bandwidth;
    tunnel.update(options.bandwidthPerTunnel);
    client.update(options.bandwidthPerClient ?? "0");
    agent.update(options.bandwidthPerAgent ?? "0");
    all.update(options.bandwidth ?? "0");
  }

  /** Idle timeout of tunnels in milliseconds; 0: none. */
  get idleMs(): number {
    return this.#options.tunnelIdleTimeout;
  }

  /** @throws {LimitReached} */
  open(owner: TunnelOwner): OpenTunnel {
    const { agentId = "", client = "", network = "tcp", quotas = NONE } = owner;
    const { tunnels, tunnelsPerAgent = 0, tunnelsPerClient = 0, udpFlowsPerClient = 0, tunnelMaxDuration } = this.#options;
    const max = {
      all: unlimitedIfZero(tunnels),
      agent: unlimitedIfZero(tunnelsPerAgent),
      client: unlimitedIfZero(tunnelsPerClient),
      flows: unlimitedIfZero(udpFlowsPerClient),
    };
    if (this.#memory.refuses(this.#all.own(ALL))) {
      throw this.#reject("memory", "There is no memory for more tunnels", { maxBytes: this.#memory.limit });
    }
    if (this.#buffers?.refuses(this.#now())) {
      const { limit, usedBytes } = this.#buffers;
      const message = "The buffers of open tunnels are nearly full: clients or destinations do not read";
      throw this.#reject("buffer-memory", message, { usedBytes, maxBytes: limit });
    }
    if (this.#all.get(ALL) >= max.all) throw this.#reject("tunnels", "There are too many tunnels", { max: tunnels });
    if (this.#perAgent.get(agentId) >= max.agent) {
      throw this.#reject("tunnels-per-agent", "There are too many tunnels through this agent", { agent: agentId, max: tunnelsPerAgent });
    }
    if (this.#perClient.get(client) >= max.client) {
      throw this.#reject("tunnels-per-client", "There are too many tunnels of this client", { agent: agentId, max: tunnelsPerClient });
    }
    if (network === "udp" && this.#flowsPerClient.get(client) >= max.flows) {
      throw this.#reject("udp-flows-per-client", "There are too many UDP flows of this client", { agent: agentId, max: udpFlowsPerClient });
    }
    const full = quotas.find(({ key, tunnels }) => tunnels > 0 && this.#perQuota.get(key) >= tunnels);
    if (full) {
      const message = `The policy's limit ${JSON.stringify(full.name)} permits no more tunnels`;
      throw this.#reject("policy", message, { agent: agentId, rule: full.name, max: full.tunnels });
    }
    this.#all.add(ALL, max.all);
    this.#perAgent.add(agentId, max.agent);
    this.#perClient.add(client, max.client);
    if (network === "udp") this.#flowsPerClient.add(client, max.flows);
    for (const { key, tunnels } of quotas) this.#perQuota.add(key, unlimitedIfZero(tunnels));
    const { tunnel: each, client: ofClient, agent, all, quota } = this.#bandwidth;
    const ownRate = each.create();
    const shared: SharedRate[] = [];
    for (const { key, bytesPerSecond } of quotas) {
      const ofPolicy = quota.join(key, bytesPerSecond);
      if (ofPolicy) shared.push(ofPolicy);
    }
    for (const rate of [ofClient.join(client), agent.join(agentId), all.join("")]) if (rate) shared.push(rate);
    const tunnel = new TrackedTunnel(this, owner, ownRate, shared);
    tunnel.maxAgeMs = tunnelMaxDuration;
    if (tunnelMaxDuration > 0) this.#track(tunnel);
    return tunnel;
  }

  /** The rate that all tunnels through an agent share, for a relay that is not counted here; `undefined` if there is none. */
  rateOfAgent(agentId: string): SharedRate | undefined {
    return this.#bandwidth.agent.join(agentId);
  }

  #track(tunnel: TrackedTunnel): void {
    tunnel.track(this.#now());
    this.#tracked.add(tunnel);
  }

  /** Ends the tunnel if `read` returns the same value for the idle timeout. */
  watchProgress(tunnel: TrackedTunnel, read: () => number): void {
    const { idleMs } = this;
    if (idleMs === 0) return;
    if (!tunnel.controller) this.#track(tunnel);
    tunnel.progress = { read, idleMs, last: read(), since: this.#now() };
  }

  recordIdle(): void {
    this.#options.reports.record("tunnel-idle-timeout");
  }

  /** No local port is left for a connection to `destination`. */
  recordNoPort(destination: string): void {
    this.#options.reports.noPort(destination);
  }

  recordCut({ agentId, tokenId: jti }: TrackedTunnel): void {
    const maxBytes = this.#buffers?.limit;
    this.#options.reports.record("buffer-memory", { agent: agentId || undefined, jti, maxBytes, action: "reset" });
  }

  /** Stops counting a tunnel that has ended. */
  release(tunnel: TrackedTunnel): void {
    const { agentId, client, network, quotas, ownRate, shared } = tunnel;
    this.#all.remove(ALL);
    this.#perAgent.remove(agentId);
    this.#perClient.remove(client);
    if (network === "udp") this.#flowsPerClient.remove(client);
    for (const { key } of quotas) this.#perQuota.remove(key);
    ownRate?.close();
    for (const rate of shared) rate.release();
    this.#tracked.delete(tunnel);
  }

  /** Runs once per second: measures the memory and ends tunnels that are too old or idle. */
  tick(): void {
    const { reports } = this.#options;
    const now = this.#now();
    this.#memory.refresh();
    for (const bandwidth of Object.values(this.#bandwidth)) bandwidth.tick();
    reports.flush();
    for (const tunnel of this.#tracked) {
      const { startedAt, maxAgeMs, controller, progress } = tunnel;
      if (maxAgeMs > 0 && now - startedAt >= maxAgeMs) {
        reports.record("tunnel-max-duration");
        this.#tracked.delete(tunnel);
        controller?.abort(new LimitReached("tunnel-max-duration", "The tunnel has reached its maximum duration"));
      } else if (progress) {
        const read = progress.read();
        if (read !== progress.last) Object.assign(progress, { last: read, since: now });
        else if (now - progress.since >= progress.idleMs) {
          reports.record("tunnel-idle-timeout");
          this.#tracked.delete(tunnel);
          controller?.abort(new TunnelIdle(`Nothing was sent or received for ${progress.idleMs} ms`));
        }
      }
    }
  }

  close(): void {
    clearInterval(this.#timer);
    this.#options.reports.flush(true);
    for (const bandwidth of Object.values(this.#bandwidth)) bandwidth.close();
  }

  #reject(limit: LimitName, message: string, fields: LogFields): LimitReached {
    this.#options.reports.record(limit, fields);
    return new LimitReached(limit, message);
  }
}
