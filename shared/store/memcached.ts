// The store in memcached, on one server or several. The client library keeps half a reply, or a request that nobody answers, for ever:
// here each of its connections is thrown away at the first sign of trouble, and every wait has an end.
import type { Buffer } from "node:buffer";
import { createHash } from "node:crypto";
import memjs from "memjs";
import { splitHostPort } from "../address/host_port.ts";
import { CircuitBreaker, type StoreEvents } from "./circuit_breaker.ts";
import { type Cache, PROBE_KEY, renewIn, type ServedStore, StoreError } from "./store.ts";

export interface MemcachedOptions extends StoreEvents {
  /** `host:port` of every server, the same list in every process that shares the store; the port is 11211 where it is left out. */
  addresses: readonly string[];
  /** Before every agent id in the keys, so that no agent's entry is another program's. Default none. */
  keyPrefix?: string;
  /** Longest wait in milliseconds for one call. */
  timeoutMs: number;
  /** How long an entry lives without renewal, in milliseconds. memcached counts whole seconds: it is rounded up. */
  ttlMs: number;
  /** The longest pause, in milliseconds, between two attempts to reach a server that is down. Default 5000. */
  maxPauseMs?: number;
}

/** @throws {RangeError} for an address that is none */
export function createMemcachedStore(options: MemcachedOptions): ServedStore {
  const { addresses, keyPrefix = "" } = options;
  const servers = addresses.map((address) => new MemcachedServer(address, options));
  const serverOf = (key: string) => servers[placeOf(key, addresses)]!;
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

/** An id that is too long behind the prefix stands there as its hash. */
function prefixed(prefix: string, agentId: string): string {
  const key = `${prefix}${agentId}`;
  return new TextEncoder().encode(key).length <= MAX_KEY ? key : `${prefix}sha256:${createHash("sha256").update(agentId).digest("hex")}`;
}

/** Seconds of silence after which the connection is probed, which also keeps firewalls from forgetting it. */
const KEEPALIVE_S = 15;

/**
 * The index of the server that has `key`: the one of the highest weight (rendezvous hashing). Where a server is added or taken away, only
 * the keys move that it gets or had.
 */
export function placeOf(key: string, addresses: readonly string[]): number {
  if (addresses.length === 1) return 0;
  const weights = addresses.map((address) => createHash("sha256").update(`${address}\n${key}`).digest("hex"));
  return weights.reduce((best, weight, index) => weight > weights[best]! ? index : best, 0);
}

/** Most bytes of one reply: that to a lookup has an address in it. The library would copy all of a longer one again with each packet. */
const MAX_REPLY = 64 * 1024;

class BoundedServer extends memjs.Server {
  override responseHandler(data: Buffer): void {
    super.responseHandler(data);
    if (this.responseBuffer.length > MAX_REPLY) this.error(new StoreError(`A reply has more than ${MAX_REPLY} bytes`));
  }
}

/** A server of the library has one connection, and a client one server. */
interface Connection {
  readonly client: memjs.Client;
  readonly server: memjs.Server;
}

class MemcachedServer implements Cache {
  readonly #guard: CircuitBreaker<Connection>;
  readonly #expires: number;

  constructor(address: string, { timeoutMs, ttlMs, maxPauseMs, onServer, onCall }: MemcachedOptions) {
    const { host, port } = splitHostPort(address, 11_211);
    // the guard's own time-out comes first
    const seconds = timeoutMs / 1_000 + 1;
    this.#expires = Math.ceil(ttlMs / 1_000);
    this.#guard = new CircuitBreaker({
      name: `memcached at ${address}`,
      timeoutMs,
      maxPauseMs,
      onServer,
      onCall,
      connect: () => {
        const keepAlive = { keepAlive: true, keepAliveDelay: KEEPALIVE_S };
        const server = new BoundedServer(host, port, undefined, undefined, { timeout: seconds, conntimeout: seconds, ...keepAlive });
        return { server, client: new memjs.Client([server], { retries: 1, logger: { log() {} } }) };
      },
      // closes the socket at once, and rejects what waits for it
      disconnect: ({ server }) => (server as unknown as { error(error: Error): void }).error(new StoreError("The connection was given up")),
    });
  }

  get(key: string): Promise<string | undefined> {
    return this.#guard.run("look an agent up", async ({ client }) => (await client.get(key)).value?.toString("utf8"));
  }

  set(key: string, value: string): Promise<void> {
    return this.#guard.run("write an agent's entry", async ({ client }) => void await client.set(key, value, { expires: this.#expires }));
  }

  add(key: string, value: string): Promise<void> {
    return this.#guard.run("add an agent's entry", async ({ client }) => void await client.add(key, value, { expires: this.#expires }));
  }

  touch(key: string): Promise<void> {
    return this.#guard.run("renew an agent's entry", async ({ client }) => void await client.touch(key, this.#expires));
  }

  async probe(): Promise<void> {
    await this.#guard.run("ask the store", ({ client }) => client.get(PROBE_KEY));
  }

  close(): void {
    this.#guard.close();
  }
}
