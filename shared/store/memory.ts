// deno-lint-ignore-file require-await -- the contract is asynchronous
// An in-memory store, for programs that embed proxies and a load balancer in one process, and for tests.
import { type Cache, renewIn, type Store } from "./store.ts";

/** Options of an in-memory store. */
export interface MemoryStoreOptions {
  /** Lifetime of an entry without renewal, in milliseconds. Default 30000. */
  ttlMs?: number;
  /** Monotonic clock in milliseconds. Default `performance.now`. */
  now?: () => number;
}

/**
 * Creates a store that the proxies and load balancers of one process share.
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
  const entries = new Map<string, { value: string; expiresAt: number }>();
  const find = (key: string) => {
    const entry = entries.get(key);
    if (entry && entry.expiresAt > now()) return entry;
    entries.delete(key);
    return undefined;
  };
  const put = (key: string, value: string) => void entries.set(key, { value, expiresAt: now() + ttlMs });
  const cache: Cache = {
    get: async (key) => find(key)?.value,
    set: async (key, value) => put(key, value),
    async add(key, value) {
      if (!find(key)) put(key, value);
    },
    async touch(key) {
      const entry = find(key);
      if (entry) entry.expiresAt = now() + ttlMs;
    },
  };
  return {
    set: cache.set,
    renew: (agentId, address) => renewIn(cache, agentId, address),
    lookup: cache.get,
    close: () => entries.clear(),
  };
}
