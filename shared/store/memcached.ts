// The store in memcached, on one or several servers.
import { createHash } from "node:crypto";
import { splitHostPort } from "../address/host_port.ts";
import { CircuitBreaker, type StoreEvents } from "./circuit_breaker.ts";
import { MemcachedConnection } from "./memcached_connection.ts";
import { type Cache, PROBE_KEY, renewIn, type ServedStore } from "./store.ts";

export interface MemcachedOptions extends StoreEvents {
  /** `host:port` of every server, identical in all processes that share the store. Default port 11211. */
  addresses: readonly string[];
  /** Prefix of all keys, which separates them from other programs' keys. Default: none. */
  keyPrefix?: string;
  /** Timeout of a call in milliseconds. */
  timeoutMs: number;
  /** Lifetime of an entry without renewal, in milliseconds, rounded up to whole seconds. */
  ttlMs: number;
  /** Longest delay in milliseconds between attempts to reach a server that is down. Default 5000. */
  maxRetryDelayMs?: number;
}

/** @throws {RangeError} for an invalid address */
export function createMemcachedStore(options: MemcachedOptions): ServedStore {
  const { addresses, keyPrefix = "" } = options;
  const servers = addresses.map((address) => new MemcachedServer(address, options));
  const serverOf = (key: string) => servers[serverIndex(key, addresses)]!;
  const keyOf = (agentId: string) => prefixed(keyPrefix, agentId);
  return {
    set: (agentId, address) => serverOf(agentId).set(keyOf(agentId), address),
    renew: (agentId, address) => renewIn(serverOf(agentId), keyOf(agentId), address),
    lookup: (agentId) => serverOf(agentId).get(keyOf(agentId)),
    probe: async () => void await Promise.allSettled(servers.map((server) => server.probe())),
    close: () => servers.forEach((server) => server.close()),
  };
}

/** Longest key in bytes. */
const MAX_KEY = 250;
/** A space or a line end in a key would end the command. */
// deno-lint-ignore no-control-regex -- matches forbidden characters
const FORBIDDEN = /^$|[\x00-\x20\x7f]/;

/** Prefixes an id. An id that does not fit into a key is replaced by its hash. */
function prefixed(prefix: string, id: string): string {
  const key = `${prefix}${id}`;
  if (!FORBIDDEN.test(id) && new TextEncoder().encode(key).length <= MAX_KEY) return key;
  return `${prefix}sha256:${createHash("sha256").update(id).digest("hex")}`;
}

/**
 * The index of the server for `key`, by rendezvous hashing: adding or removing a server moves only the keys of that server.
 */
export function serverIndex(key: string, addresses: readonly string[]): number {
  if (addresses.length === 1) return 0;
  const weights = addresses.map((address) => createHash("sha256").update(`${address}\n${key}`).digest("hex"));
  return weights.reduce((best, weight, index) => weight > weights[best]! ? index : best, 0);
}

class MemcachedServer implements Cache {
  readonly #breaker: CircuitBreaker<MemcachedConnection>;
  /** Lifetime of an entry in seconds. */
  readonly #ttlS: number;

  constructor(address: string, { timeoutMs, ttlMs, maxRetryDelayMs, onServer, onCall }: MemcachedOptions) {
    const { host, port } = splitHostPort(address, 11_211);
    this.#ttlS = Math.ceil(ttlMs / 1_000);
    this.#breaker = new CircuitBreaker({
      name: `memcached at ${address}`,
      timeoutMs,
      maxRetryDelayMs,
      onServer,
      onCall,
      connect: (onEnd) => new MemcachedConnection(host, port, onEnd),
      disconnect: (connection) => connection.close("the connection was discarded"),
    });
  }

  get(key: string): Promise<string | undefined> {
    return this.#breaker.run("look up an agent", (connection) => connection.get(key));
  }

  set(key: string, value: string): Promise<void> {
    return this.#breaker.run("write an agent's entry", (connection) => connection.set(key, value, this.#ttlS));
  }

  add(key: string, value: string): Promise<void> {
    return this.#breaker.run("add an agent's entry", (connection) => connection.add(key, value, this.#ttlS));
  }

  touch(key: string): Promise<void> {
    return this.#breaker.run("renew an agent's entry", (connection) => connection.touch(key, this.#ttlS));
  }

  async probe(): Promise<void> {
    await this.#breaker.run("probe the store", (connection) => connection.get(prefixed("", PROBE_KEY)));
  }

  close(): void {
    this.#breaker.close();
  }
}
