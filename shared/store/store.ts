// The contract of the shared store, which maps agents to proxies, and the renewal rule of all stores.

/**
 * Maps agent ids to the address of the proxy that the agent is connected to, `host:port`. An entry has a fixed lifetime and is never deleted:
 * the agent's proxy renews it, and otherwise it expires.
 */
export interface Store {
  /**
   * Sets the address of an agent; the last write wins.
   * @throws {StoreError}
   */
  set(agentId: string, address: string): Promise<void>;
  /**
   * Renews the entry of an agent that is still at `address`. A missing entry is added. An entry with another address is left unchanged, because
   * the agent has a newer connection there.
   * @throws {StoreError}
   */
  renew(agentId: string, address: string): Promise<void>;
  /**
   * Returns the address of an agent; `undefined` without an entry.
   * @throws {StoreError}
   */
  lookup(agentId: string): Promise<string | undefined>;
  /** Closes its connections. Pending calls reject. */
  close(): void;
}

/** A store on servers, which can be probed. */
export interface ServedStore extends Store {
  /** Sends a request to every server; the store's events report the results. Never rejects. */
  probe(): Promise<void>;
}

/** The key of probes. No agent has it, because it contains a space. */
export const PROBE_KEY = "reverse-http probe";

/** A failed call to the store. The message names the server and the reason. */
export class StoreError extends Error {
  /** Always `StoreError`. */
  override readonly name = "StoreError";
}

/** The operations of a cache server. Each is atomic; each write resets the entry's lifetime. */
export interface Cache {
  get(key: string): Promise<string | undefined>;
  set(key: string, value: string): Promise<void>;
  /** Does nothing if there is an entry. */
  add(key: string, value: string): Promise<void>;
  /** Resets the lifetime of an entry; does nothing without one. */
  touch(key: string): Promise<void>;
}

/**
 * Implements {@link Store.renew} with operations that every cache has. The entry may change to another proxy's between the two; extending its
 * lifetime is then harmless.
 */
export async function renewIn(cache: Cache, key: string, value: string): Promise<void> {
  const current = await cache.get(key);
  if (current === undefined) await cache.add(key, value);
  else if (current === value) await cache.touch(key);
}
