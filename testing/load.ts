// A constant load of clients on one address: open tunnels in use, and new requests at a steady rate. Records failures with their times, and
// summarizes them.
import assert from "node:assert/strict";
import { setTimeout as sleep } from "node:timers/promises";
import { openTunnel, type Wire } from "./sockets.ts";

export interface LoadOptions {
  /** Where clients connect, `host:port`. */
  clients: string;
  /** `host:port` of an echo server. */
  destination: string;
  /** Agent ids; each gets an equal share. */
  agents: readonly string[];
  /** Number of open tunnels. */
  tunnels: number;
  /** New requests per second. */
  perSecond: number;
}

/** The result of one request or tunnel; times in milliseconds of `performance.now`. */
export interface Result {
  readonly agent: string;
  readonly startedAt: number;
  readonly endedAt: number;
  readonly error?: string;
}

/** The results since some time. */
export interface Report {
  readonly requests: number;
  /** Requests without a tunnel. */
  readonly failed: readonly Result[];
  /** Tunnels, old and new, that did not end cleanly. */
  readonly cut: readonly Result[];
  /** The longest outage of an agent in milliseconds: from its first failed request to its next successful one. */
  readonly outageMs: number;
  /** The longest duration of a successful request in milliseconds. */
  readonly slowestMs: number;
}

/** Interval in milliseconds at which a tunnel is used. */
const BEAT_MS = 500;
/** Number of consecutive successful requests after which an agent counts as recovered. */
const WELL = 3;

/** The clients; they run until it is stopped. */
export class Load {
  /** Age in milliseconds at which tunnels end cleanly and are replaced. */
  tunnelLifeMs = Infinity;
  readonly #options: LoadOptions;
  readonly #results: Result[] = [];
  readonly #cuts: Result[] = [];
  /** Start times of requests in progress. */
  readonly #pending = new Set<number>();
  /** When each tunnel was last used. */
  readonly #used: number[];
  #over = false;
  readonly #running: Promise<void>[];

  constructor(options: LoadOptions) {
    this.#options = options;
    this.#used = Array.from({ length: options.tunnels }, () => -Infinity);
    this.#running = [this.#request(), ...Array.from({ length: options.tunnels }, (_, i) => this.#keepTunnel(i))];
  }

  async #request(): Promise<void> {
    const { agents, perSecond } = this.#options;
    const under = new Set<Promise<void>>();
    const start = performance.now();
    for (let count = 0; !this.#over; count++) {
      const request: Promise<void> = this.#ask(agents[count % agents.length]!).finally(() => under.delete(request));
      under.add(request);
      await sleep(Math.max(0, start + (count + 1) * 1_000 / perSecond - performance.now()));
    }
    await Promise.all(under);
  }

  async #ask(agent: string): Promise<void> {
    const startedAt = performance.now();
    const done = (results: Result[], error?: unknown) =>
      results.push({ agent, startedAt, endedAt: performance.now(), error: error === undefined ? undefined : String(error) });
    this.#pending.add(startedAt);
    try {
      using tunnel = await this.#dial(agent);
      done(this.#results);
      await check(tunnel).then(() => finish(tunnel)).catch((error) => done(this.#cuts, error));
    } catch (error) {
      done(this.#results, error);
    }
    this.#pending.delete(startedAt);
  }

  #dial(agent: string): Promise<Wire> {
    return openTunnel(this.#options.clients, this.#options.destination, { id: agent });
  }

  /** One tunnel after the other. */
  async #keepTunnel(index: number): Promise<void> {
    const agent = this.#options.agents[index % this.#options.agents.length]!;
    while (!this.#over) {
      await sleep(Math.random() * BEAT_MS); // not all at once
      let tunnel;
      try {
        tunnel = await this.#dial(agent);
      } catch {
        continue; // the requests record that
      }
      const startedAt = performance.now();
      try {
        await this.#use(tunnel, index);
      } catch (error) {
        this.#cuts.push({ agent, startedAt, endedAt: performance.now(), error: String(error) });
      }
      tunnel[Symbol.dispose]();
    }
  }

  async #use(tunnel: Wire, index: number): Promise<void> {
    const startedAt = performance.now();
    const life = Math.random(); // not all at once
    while (!this.#over && performance.now() - startedAt < this.tunnelLifeMs * life) {
      const now = performance.now();
      await check(tunnel);
      this.#used[index] = now;
      await sleep(BEAT_MS);
    }
    await finish(tunnel);
  }

  /**
   * Resolves when every agent has been reached several times in a row since `since`, all tunnels are open and in use, and every earlier
   * request has ended.
   */
  async settle(since: number, patienceMs = 30_000): Promise<void> {
    const { agents } = this.#options;
    const isWell = (agent: string) => {
      const last = this.#results.filter((result) => result.agent === agent && result.startedAt >= since).slice(-WELL);
      return last.length === WELL && last.every(({ error }) => error === undefined);
    };
    for (const deadline = performance.now() + patienceMs;; await sleep(50)) {
      const ill = agents.filter((agent) => !isWell(agent));
      const unused = this.#used.filter((at) => at < since).length;
      const hanging = [...this.#pending].filter((startedAt) => startedAt < since).length;
      if (ill.length + unused + hanging === 0) return;
      if (performance.now() < deadline) continue;
      const errors = new Set(this.report(since).failed.map(({ agent, error }) => `${agent}: ${error}`));
      throw new Error(
        `All is not well after ${patienceMs} ms: agents ${ill.join()}; ${unused} tunnels, ${hanging} requests; ${[...errors].join("\n")}`,
      );
    }
  }

  /** Summarizes requests that started, and tunnels that were cut, since then. */
  report(since: number): Report {
    const results = this.#results.filter(({ startedAt }) => startedAt >= since);
    const failed = results.filter(({ error }) => error !== undefined);
    const outages = this.#options.agents.map((agent) => {
      const own = failed.filter((result) => result.agent === agent);
      if (own.length === 0) return 0;
      const last = Math.max(...own.map(({ startedAt }) => startedAt));
      const next = results.filter((result) => result.agent === agent && result.startedAt > last).map(({ startedAt }) => startedAt);
      return Math.min(...next) - Math.min(...own.map(({ startedAt }) => startedAt));
    });
    return {
      requests: results.length,
      failed,
      cut: this.#cuts.filter(({ endedAt }) => endedAt >= since),
      outageMs: Math.max(...outages),
      slowestMs: Math.max(0, ...results.filter(({ error }) => error === undefined).map(({ startedAt, endedAt }) => endedAt - startedAt)),
    };
  }

  /** Ends all tunnels cleanly. */
  async stop(): Promise<void> {
    this.#over = true;
    await Promise.all(this.#running);
  }
}

/** Sends and receives once through a tunnel. */
export async function check(tunnel: Wire): Promise<void> {
  const word = crypto.randomUUID();
  await tunnel.write(word);
  assert.equal((await tunnel.read(word.length)).toString(), word);
}

/** Ends both directions cleanly. */
async function finish(tunnel: Wire): Promise<void> {
  tunnel.finish();
  assert.equal((await tunnel.readAll()).length, 0);
}
