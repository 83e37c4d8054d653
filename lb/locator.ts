// Finds the proxy of an agent. It caches the store's results for a second, falls back to the last known address when the store fails, and
// suggests other proxies when the store is wrong. It does not connect: the dialer reports which addresses were right or wrong.
import type { Store } from "../shared/store/store.ts";
import { inSpan, type Span } from "../shared/tracing/span.ts";

export interface LocatorOptions {
  store: Store;
  /** The store's name in traces: `redis`. Default: it has none. */
  system?: string;
  /** Maximum age of a cached result in milliseconds. Default 1000. */
  maxAgeMs?: number;
  /** Maximum number of agents cached; the least recently used is dropped. Default 10000. */
  limit?: number;
  /** Milliseconds from any fixed point. Default `performance.now`. */
  now?: () => number;
}

interface CacheEntry {
  readonly address: string;
  readonly checkedAt: number;
  /** Proxies that did not hold the agent when it was found at `address`, whatever the store says. */
  readonly wrong?: ReadonlySet<string>;
}

/** Time in milliseconds for which a negative result is cached: an agent that connects then is found by this much later. */
const NOWHERE_MS = 500;

/** Maximum number of proxies remembered, and for how many milliseconds after the store last named them. */
const MAX_PROXIES = 64;
const PROXY_LIFE_MS = 600_000;

export class Locator {
  #store: Store;
  #system?: string;
  readonly #maxAgeMs: number;
  readonly #limit: number;
  readonly #now: () => number;
  /** The least recently used is first. */
  readonly #known = new Map<string, CacheEntry>();
  readonly #asking = new Map<string, Promise<string | undefined>>();
  /** Proxies by the time at which the store last named them. The least recently suggested is first. */
  readonly #proxies = new Map<string, number>();
  /** Agents without an entry in the store, with the time of that result. */
  readonly #nowhere = new Map<string, number>();
  /** Agents that were not connected to any proxy, with the time of that result. */
  readonly #missing = new Map<string, number>();

  constructor({ store, system, maxAgeMs = 1_000, limit = 10_000, now = () => performance.now() }: LocatorOptions) {
    this.#store = store;
    this.#system = system;
    this.#maxAgeMs = maxAgeMs;
    this.#limit = limit;
    this.#now = now;
  }

  /** Asks another store from now on, which may name other proxies. `system` is its name in traces. */
  use(store: Store, system?: string): void {
    this.#store = store;
    this.#system = system;
    for (const known of [this.#known, this.#nowhere, this.#missing, this.#proxies]) known.clear();
  }

  /**
   * The address of the proxy that holds the agent. Concurrent calls share one lookup. If the store fails or has lost its entries, the last
   * known address is used until it proves wrong.
   * @param trace gets a span if the store is queried
   * @throws {StoreError} when the store fails and there is no known address
   */
  async locate(agentId: string, trace?: Span): Promise<string | undefined> {
    const known = this.#known.get(agentId);
    if (known && this.#now() - known.checkedAt < this.#maxAgeMs) {
      this.#remember(agentId, known);
      return known.address;
    }
    if (!known && this.#now() - (this.#nowhere.get(agentId) ?? -Infinity) < NOWHERE_MS) return undefined;
    const asking = this.#asking.get(agentId) ?? this.#ask(agentId).finally(() => this.#asking.delete(agentId));
    this.#asking.set(agentId, asking);
    const span = trace?.child("client", "look up agent", () => ({
      "db.system.name": this.#system,
      "db.operation.name": "get",
      "reverse_http.agent.id": agentId,
    }));
    return await inSpan(span, () => asking, (address) => ({ attributes: { "reverse_http.proxy": address } }));
  }

  async #ask(agentId: string): Promise<string | undefined> {
    let address: string | undefined;
    try {
      address = await this.#store.lookup(agentId);
    } catch (error) {
      if (!this.#known.has(agentId)) throw error;
    }
    const now = this.#now();
    if (address !== undefined) put(this.#proxies, address, now, MAX_PROXIES);
    const known = this.#known.get(agentId);
    if (known && (address === undefined || known.wrong?.has(address))) address = known.address;
    if (address !== undefined) {
      this.#remember(agentId, { address, checkedAt: now, wrong: known?.address === address ? known.wrong : undefined });
    } else put(this.#nowhere, agentId, now, this.#limit);
    return address;
  }

  #remember(agentId: string, known: CacheEntry): void {
    this.#nowhere.delete(agentId);
    this.#known.delete(agentId);
    put(this.#known, agentId, known, this.#limit);
  }

  /** The agent is not at `address`: the next call asks the store. */
  invalidate(agentId: string, address: string): void {
    if (this.#known.get(agentId)?.address === address) this.#known.delete(agentId);
  }

  /**
   * Other proxies that may hold the agent, at most `count` and none of `tried`: an entry names a proxy that has gone until it expires, even
   * if another one holds the agent. Empty within a second after {@link recordMiss}.
   */
  alternatives(agentId: string, tried: ReadonlySet<string>, count: number): string[] {
    const now = this.#now();
    if (now - (this.#missing.get(agentId) ?? -Infinity) < this.#maxAgeMs) return [];
    for (const [address, namedAt] of this.#proxies) if (now - namedAt >= PROXY_LIFE_MS) this.#proxies.delete(address);
    const others = [...this.#proxies].filter(([address]) => !tried.has(address)).slice(0, Math.max(0, count));
    // rotate: the next call suggests others
    for (const [address, namedAt] of others) {
      this.#proxies.delete(address);
      this.#proxies.set(address, namedAt);
    }
    return others.map(([address]) => address);
  }

  /** The agent was found at `address` and not at `wrong`, which the store's results cannot override. */
  record(agentId: string, address: string, wrong: ReadonlySet<string>): void {
    this.#missing.delete(agentId);
    this.#remember(agentId, { address, checkedAt: this.#now(), wrong });
  }

  /** No proxy held the agent. */
  recordMiss(agentId: string): void {
    this.#missing.delete(agentId);
    put(this.#missing, agentId, this.#now(), this.#limit);
  }

  /** The cached agent ids and addresses. */
  *[Symbol.iterator](): Iterator<readonly [agentId: string, address: string]> {
    for (const [agentId, { address }] of this.#known) yield [agentId, address];
  }
}

/** Drops the first entry beyond `limit`. */
function put<V>(map: Map<string, V>, key: string, value: V, limit: number): void {
  map.set(key, value);
  if (map.size > limit) map.delete(map.keys().next().value!);
}
