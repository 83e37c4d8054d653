// Where is this agent? The contract of the shared store, and the one rule that all stores renew by. It knows no server.

/**
 * Entries by agent id: the address of the proxy that holds the agent, as `host:port`. An entry lives for a fixed time and is never deleted:
 * who holds an agent renews its entry, and one that nobody renews ends by itself.
 */
export interface Store {
  /**
   * The agent is at `address` from now on, whatever was there: the newest wins.
   * @throws {StoreError}
   */
  set(agentId: string, address: string): Promise<void>;
  /**
   * The agent is still at `address`: an entry that is missing is added again, one with this address lives on, and one with another is left
   * alone, because the agent's newer connection is there.
   * @throws {StoreError}
   */
  renew(agentId: string, address: string): Promise<void>;
  /**
   * The address, `undefined` where there is no entry.
   * @throws {StoreError}
   */
  lookup(agentId: string): Promise<string | undefined>;
  /** Lets go of its connections; what is under way rejects. */
  close(): void;
}

/** A store on servers, which can be asked whether they answer. */
export interface ServedStore extends Store {
  /** Asks every server something; the store's events tell the result. Never rejects. */
  probe(): Promise<void>;
}

/** A key to ask for, of no agent: its id would have white space. */
export const PROBE_KEY = "reverse-http probe";

/** The store did not do what it was asked for. The message names the server and what went wrong. */
export class StoreError extends Error {
  /** Always that. */
  override readonly name = "StoreError";
}

/** What a cache offers, each step atomic and each life begun anew. */
export interface Cache {
  get(key: string): Promise<string | undefined>;
  set(key: string, value: string): Promise<void>;
  /** Nothing where there is an entry. */
  add(key: string, value: string): Promise<void>;
  /** Nothing where there is no entry. */
  touch(key: string): Promise<void>;
}

/**
 * {@link Store.renew} in the steps that every cache has. Between them an entry may change: then it is another proxy's, and living a little
 * longer does it no harm.
 */
export async function renewIn(cache: Cache, key: string, value: string): Promise<void> {
  const found = await cache.get(key);
  if (found === undefined) await cache.add(key, value);
  else if (found === value) await cache.touch(key);
}
