// Where is this agent, as lb knows it: the store's answers, each good for a second, the last of them where the store has none, and which
// proxies there are where it errs. It does not connect to anything: whoever does says which addresses have proved right or wrong.
import type { Store } from "../shared/store/store.ts";

export interface LocatorOptions {
  store: Store;
  /** How long an answer is good for, in milliseconds. Default 1000. */
  maxAgeMs?: number;
  /** Most agents remembered; the one asked for least recently is forgotten. Default 10000. */
  limit?: number;
  /** Milliseconds from any fixed point. Default `performance.now`. */
  now?: () => number;
}

interface CacheEntry {
  readonly address: string;
  readonly checkedAt: number;
  /** Where the agent was not, whatever the store says, when it was found at `address`. */
  readonly wrong?: ReadonlySet<string>;
}

/** How long the store's word holds that an agent is nowhere, in milliseconds: an agent that connects then is found by this much later. */
const NOWHERE_MS = 500;

/** Proxies remembered, and for how many milliseconds since the store named them last. */
const MAX_PROXIES = 64;
const PROXY_LIFE_MS = 600_000;

export class Locator {
  readonly #store: Store;
  readonly #maxAgeMs: number;
  readonly #limit: number;
  readonly #now: () => number;
  /** The one asked for least recently first. */
  readonly #known = new Map<string, CacheEntry>();
  readonly #asking = new Map<string, Promise<string | undefined>>();
  /** When the store named them last; the one that was suggested least recently first. */
  readonly #proxies = new Map<string, number>();
  /** Agents that the store does not know, and when it said so. */
  readonly #nowhere = new Map<string, number>();
  /** Agents that were sought in vain, and when. */
  readonly #missing = new Map<string, number>();

  constructor({ store, maxAgeMs = 1_000, limit = 10_000, now = () => performance.now() }: LocatorOptions) {
    this.#store = store;
    this.#maxAgeMs = maxAgeMs;
    this.#limit = limit;
    this.#now = now;
  }

  /**
   * The address of the proxy that holds the agent. Many who ask at once ask the store once. A store that fails or was started empty does
   * not make an agent unknown that was there: its last address is used until it proves wrong.
   * @throws {StoreError} when the store fails and there is no last address
   */
  async locate(agentId: string): Promise<string | undefined> {
    const known = this.#known.get(agentId);
    if (known && this.#now() - known.checkedAt < this.#maxAgeMs) {
      this.#remember(agentId, known);
      return known.address;
    }
    if (!known && this.#now() - (this.#nowhere.get(agentId) ?? -Infinity) < NOWHERE_MS) return undefined;
    let asking = this.#asking.get(agentId);
    if (!asking) {
      asking = this.#ask(agentId).finally(() => this.#asking.delete(agentId));
      this.#asking.set(agentId, asking);
    }
    return await asking;
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

  /** The agent is not at `address`: whoever asks next gets what the store says then. */
  invalidate(agentId: string, address: string): void {
    if (this.#known.get(agentId)?.address === address) this.#known.delete(agentId);
  }

  /**
   * Proxies that may hold the agent though the store does not say so, `count` at most and none of `tried`: an entry goes on naming a proxy
   * that is gone until it ends, even where another one holds the agent. None within a second after {@link recordMiss}.
   */
  alternatives(agentId: string, tried: ReadonlySet<string>, count: number): string[] {
    const now = this.#now();
    if (now - (this.#missing.get(agentId) ?? -Infinity) < this.#maxAgeMs) return [];
    for (const [address, namedAt] of this.#proxies) if (now - namedAt >= PROXY_LIFE_MS) this.#proxies.delete(address);
    const others = [...this.#proxies].filter(([address]) => !tried.has(address)).slice(0, Math.max(0, count));
    // the next ones to be asked are others
    for (const [address, namedAt] of others) {
      this.#proxies.delete(address);
      this.#proxies.set(address, namedAt);
    }
    return others.map(([address]) => address);
  }

  /** The agent was found at `address`, and not where it was sought before that: until then the store's word holds. */
  record(agentId: string, address: string, wrong: ReadonlySet<string>): void {
    this.#missing.delete(agentId);
    this.#remember(agentId, { address, checkedAt: this.#now(), wrong });
  }

  /** The agent is nowhere. */
  recordMiss(agentId: string): void {
    this.#missing.delete(agentId);
    put(this.#missing, agentId, this.#now(), this.#limit);
  }

  /** What is remembered, agent ids with addresses. */
  *[Symbol.iterator](): Iterator<readonly [agentId: string, address: string]> {
    for (const [agentId, { address }] of this.#known) yield [agentId, address];
  }
}

/** Of more than `limit` the first goes. */
function put<V>(map: Map<string, V>, key: string, value: V, limit: number): void {
  map.set(key, value);
  if (map.size > limit) map.delete(map.keys().next().value!);
}
