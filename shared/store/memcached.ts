// The store in memcached, on one or several servers. The client library keeps partial replies and unanswered requests forever; therefore a
// connection is discarded at the first error, and every call has a timeout.
import type { Buffer } from "node:buffer";
import { createHash } from "node:crypto";
import memjs from "memjs";
import { splitHostPort } from "../address/host_port.ts";
import { CircuitBreaker, type StoreEvents } from "./circuit_breaker.ts";
import { type Cache, PROBE_KEY, renewIn, type ServedStore, StoreError } from "./store.ts";

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

/** Prefixes an agent id. An id that makes the key too long is replaced by its hash. */
function prefixed(prefix: string, agentId: string): string {
  const key = `${prefix}${agentId}`;
  return new TextEncoder().encode(key).length <= MAX_KEY ? key : `${prefix}sha256:${createHash("sha256").update(agentId).digest("hex")}`;
}

/** Idle time in seconds before a TCP keep-alive, which also keeps the connection open in firewalls. */
const KEEPALIVE_S = 15;

/**
 * The index of the server for `key`, by rendezvous hashing: adding or removing a server moves only the keys of that server.
 */
export function serverIndex(key: string, addresses: readonly string[]): number {
  if (addresses.length === 1) return 0;
  const weights = addresses.map((address) => createHash("sha256").update(`${address}\n${key}`).digest("hex"));
  return weights.reduce((best, weight, index) => weight > weights[best]! ? index : best, 0);
}

/** Limit on the bytes of a reply, which is an address at most. The library copies the whole buffer with every packet. */
const MAX_REPLY = 64 * 1024;

class BoundedServer extends memjs.Server {
  override responseHandler(data: Buffer): void {
    super.responseHandler(data);
    if (this.responseBuffer.length > MAX_REPLY) this.error(new StoreError(`A reply has more than ${MAX_REPLY} bytes`));
  }
}

/** A client of the library with one server, which has one connection. */
interface Connection {
  readonly client: memjs.Client;
  readonly server: memjs.Server;
}

class MemcachedServer implements Cache {
  readonly #breaker: CircuitBreaker<Connection>;
  /** Lifetime of an entry in seconds. */
  readonly #ttlS: number;

  constructor(address: string, { timeoutMs, ttlMs, maxRetryDelayMs, onServer, onCall }: MemcachedOptions) {
    const { host, port } = splitHostPort(address, 11_211);
    // longer than the circuit breaker's timeout
    const timeoutS = timeoutMs / 1_000 + 1;
    this.#ttlS = Math.ceil(ttlMs / 1_000);
    this.#breaker = new CircuitBreaker({
      name: `memcached at ${address}`,
      timeoutMs,
      maxRetryDelayMs,
      onServer,
      onCall,
      connect: () => {
        const keepAlive = { keepAlive: true, keepAliveDelay: KEEPALIVE_S };
        const server = new BoundedServer(host, port, undefined, undefined, { timeout: timeoutS, conntimeout: timeoutS, ...keepAlive });
        return { server, client: new memjs.Client([server], { retries: 1, logger: { log() {} } }) };
      },
      // closes the socket at once and rejects pending calls
      disconnect: ({ server }) =>
        (server as unknown as { error(error: Error): void }).error(new StoreError("The connection was discarded")),
    });
  }

  get(key: string): Promise<string | undefined> {
    return this.#breaker.run("look up an agent", async ({ client }) => (await client.get(key)).value?.toString("utf8"));
  }

  set(key: string, value: string): Promise<void> {
    return this.#breaker.run("write an agent's entry", async ({ client }) => void await client.set(key, value, { expires: this.#ttlS }));
  }

  add(key: string, value: string): Promise<void> {
    return this.#breaker.run("add an agent's entry", async ({ client }) => void await client.add(key, value, { expires: this.#ttlS }));
  }

  touch(key: string): Promise<void> {
    return this.#breaker.run("renew an agent's entry", async ({ client }) => void await client.touch(key, this.#ttlS));
  }

  async probe(): Promise<void> {
    await this.#breaker.run("probe the store", ({ client }) => client.get(PROBE_KEY));
  }

  close(): void {
    this.#breaker.close();
  }
}
