// deno-lint-ignore-file require-await -- stores answer with promises, this one at once
// A store inside one process: for programs that embed proxies and a load balancer together, and for tests.
import { type Cache, renewIn, type Store } from "./store.ts";

/** How a store in memory keeps its entries. */
export interface MemoryStoreOptions {
  /** How long an entry lives without renewal, in milliseconds. Default 30000. */
  ttlMs?: number;
  /** Milliseconds from any fixed point. Default `performance.now`. */
  now?: () => number;
}

/**
 * A store that the proxies and load balancers of one process share.
 * @example
 * ```ts
 * import { createMemoryStore } from "@reverse-http/reverse-http";
 *
 * const store = createMemoryStore();
 * await store.set("4711", "127.0.0.1:3128");
 * console.log(await store.lookup("4711"), await store.lookup("4712"));
 * // prints: 127.0.0.1:3128 undefined
 * store.close();
 * ```
 */
export function createMemoryStore({ ttlMs = 30_000, now = () => performance.now() }: MemoryStoreOptions = {}): Store {
  const entries = new Map<string, { value: string; endsAt: number }>();
  const alive = (key: string) => {
    const entry = entries.get(key);
    if (entry && entry.endsAt > now()) return entry;
    entries.delete(key);
    return undefined;
  };
  const put = (key: string, value: string) => void entries.set(key, { value, endsAt: now() + ttlMs });
  const cache: Cache = {
    get: async (key) => alive(key)?.value,
    set: async (key, value) => put(key, value),
    async add(key, value) {
      if (!alive(key)) put(key, value);
    },
    async touch(key) {
      const entry = alive(key);
      if (entry) entry.endsAt = now() + ttlMs;
    },
  };
  return {
    set: cache.set,
    renew: (agentId, address) => renewIn(cache, agentId, address),
    lookup: cache.get,
    close: () => entries.clear(),
  };
}
