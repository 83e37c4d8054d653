// Tunnels: how many there may be, in all and of one agent and one client, and how long each may live. One timer for all of them.
import { Refusal } from "../http/status.ts";
import type { LogFields } from "../log.ts";
import type { Net, Rate } from "../net/types.ts";
import { Bandwidth } from "./bandwidth.ts";
import { type LimitName, LimitReached, type LimitReports, orNone } from "./limit.ts";
import type { TunnelLimitValues } from "./options.ts";
import { MemoryWatch } from "./resources.ts";
import { Tally } from "./tables.ts";

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
  reports: LimitReports;
  /** Milliseconds from any fixed point. Default `performance.now`. */
  now?: () => number;
}

/** A tunnel that is asked for. */
export interface TunnelRequest {
  readonly agentId?: string;
  readonly client?: string;
  /** Aborted when the tunnel is to end for other reasons. */
  readonly ends?: AbortSignal;
}

/** A tunnel that counts. */
export interface OpenTunnel {
  /** Aborted when it is to end, with the `Error` that says why; missing where it may go on for ever. */
  readonly ends?: AbortSignal;
  /** For the copy. */
  readonly rates: readonly Rate[];
  /** For who copies without that: waits until so many bytes may go. */
  pace(bytes: number): Promise<void>;
  /** Ends it when `progress` stays the same for too long: for who copies without that. */
  watch(progress: () => number): void;
  /** The copy ended it for its silence. */
  wasIdle(): void;
  close(): void;
}

interface Aging {
  readonly startedAt: number;
  readonly ending: AbortController;
  /** Listens no more to what else may end it. */
  readonly detach: () => void;
  progress?: { read: () => number; last: number; since: number };
}

/** How often they are looked at, in milliseconds. */
const LOOK_MS = 1_000;

/** Counts tunnels, and ends those that are too old, until it is closed. */
export class TunnelLimits {
  readonly #options: TunnelLimitsOptions;
  readonly #now: () => number;
  readonly #memory: MemoryWatch;
  readonly #perAgent = new Tally();
  readonly #perClient = new Tally();
  readonly #bandwidth: { readonly [of in "tunnel" | "all" | "agent" | "client"]: Bandwidth };
  /** The oldest first. */
  readonly #aging = new Set<Aging>();
  readonly #timer: ReturnType<typeof setInterval>;
  #open = 0;

  constructor(options: TunnelLimitsOptions) {
    this.#options = options;
    this.#now = options.now ?? (() => performance.now());
    this.#memory = new MemoryWatch(options.memory);
    const bandwidth = (text = "0") => new Bandwidth(text, options.createRate);
    this.#bandwidth = {
      tunnel: bandwidth(options.bandwidthPerTunnel),
      client: bandwidth(options.bandwidthPerClient),
      agent: bandwidth(options.bandwidthPerAgent),
      all: bandwidth(options.bandwidth),
    };
    this.#timer = setInterval(() => this.look(), LOOK_MS);
  }

  /** Milliseconds of silence after which a tunnel is to end; 0 for never. */
  get idleMs(): number {
    return this.#options.tunnelIdle;
  }

  /** @throws {LimitReached} */
  open({ agentId = "", client = "", ends }: TunnelRequest): OpenTunnel {
    const { tunnels, tunnelsPerAgent = 0, tunnelsPerClient = 0, tunnelLife } = this.#options;
    if (this.#memory.refuses(this.#open)) {
      throw this.#refusal("memory", "There is no memory for more tunnels", { mostBytes: this.#memory.limit });
    }
    if (this.#open >= orNone(tunnels)) throw this.#refusal("tunnels", "There are too many tunnels", { most: tunnels });
    if (this.#perAgent.get(agentId) >= orNone(tunnelsPerAgent)) {
      throw this.#refusal("tunnels-per-agent", "There are too many tunnels through this agent", { agent: agentId, most: tunnelsPerAgent });
    }
    if (this.#perClient.get(client) >= orNone(tunnelsPerClient)) {
      throw this.#refusal("tunnels-per-client", "There are too many tunnels of this client", { agent: agentId, most: tunnelsPerClient });
    }
    this.#open++;
    this.#perAgent.add(agentId);
    this.#perClient.add(client);
    let aging = tunnelLife > 0 ? this.#age(ends) : undefined;
    let isOpen = true;
    const share = this.#share(agentId, client);
    return {
      get ends() {
        return aging?.ending.signal ?? ends;
      },
      rates: share.rates,
      pace: async (bytes) => {
        for (const rate of share.rates) await rate.take(bytes);
      },
      watch: (read) => {
        if (this.idleMs === 0) return;
        aging ??= this.#age(ends);
        aging.progress = { read, last: read(), since: this.#now() };
      },
      wasIdle: () => this.#options.reports.hit("tunnel-idle"),
      close: () => {
        if (!isOpen) return;
        isOpen = false;
        this.#open--;
        this.#perAgent.remove(agentId);
        this.#perClient.remove(client);
        share.leave();
        if (!aging) return;
        this.#aging.delete(aging);
        aging.detach();
      },
    };
  }

  /** What a tunnel has of the bandwidth, the narrowest share first: what waits for that is not taken from the others yet. */
  #share(agentId: string, client: string): { rates: readonly Rate[]; leave: () => void } {
    const { tunnel, client: ofClient, agent, all } = this.#bandwidth;
    const own = tunnel.create();
    const rates = [own, ofClient.join(client), agent.join(agentId), all.join("")].filter((rate) => rate !== undefined);
    const leave = () => {
      own?.close();
      ofClient.leave(client);
      agent.leave(agentId);
      all.leave("");
    };
    return { rates, leave };
  }

  #age(ends: AbortSignal | undefined): Aging {
    const ending = new AbortController();
    const end = () => ending.abort(ends?.reason);
    const aging: Aging = { startedAt: this.#now(), ending, detach: () => ends?.removeEventListener("abort", end) };
    this.#aging.add(aging);
    if (ends?.aborted) end();
    ends?.addEventListener("abort", end, { once: true });
    return aging;
  }

  /** What it does once a second: ends what is too old or too silent, and looks at the memory. */
  look(): void {
    const { tunnelLife, tunnelIdle, reports } = this.#options;
    const now = this.#now();
    this.#memory.look();
    for (const bandwidth of Object.values(this.#bandwidth)) bandwidth.look();
    reports.flush();
    for (const aging of this.#aging) {
      const { startedAt, ending, progress } = aging;
      if (tunnelLife > 0 && now - startedAt >= tunnelLife) {
        reports.hit("tunnel-life");
        this.#aging.delete(aging);
        ending.abort(new LimitReached("tunnel-life", "The tunnel has reached its longest life"));
      } else if (progress && tunnelIdle > 0) {
        const read = progress.read();
        if (read !== progress.last) Object.assign(progress, { last: read, since: now });
        else if (now - progress.since >= tunnelIdle) {
          reports.hit("tunnel-idle");
          this.#aging.delete(aging);
          ending.abort(new Refusal(504, "http_response_timeout", `Nothing was sent or received for ${tunnelIdle} ms`));
        }
      }
    }
  }

  close(): void {
    clearInterval(this.#timer);
    for (const bandwidth of Object.values(this.#bandwidth)) bandwidth.close();
  }

  #refusal(limit: LimitName, message: string, fields: LogFields): LimitReached {
    this.#options.reports.hit(limit, fields);
    return new LimitReached(limit, message);
  }
}
