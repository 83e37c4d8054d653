// The store in memcached, on one server or several. The client library keeps half a reply, or a request that nobody answers, for ever:
// here each of its connections is thrown away at the first sign of trouble, and every wait has an end.
import type { Buffer } from "node:buffer";
import { createHash } from "node:crypto";
import memjs from "memjs";
import { parseAuthority } from "../http/head.ts";
import { Guard, type StoreEvents } from "./guard.ts";
import { type Cache, renewIn, type Store, StoreError } from "./store.ts";

export interface MemcachedOptions extends StoreEvents {
  /** `host:port` of every server, the same list in every process that shares the store; the port is 11211 where it is left out. */
  addresses: readonly string[];
  /** Longest wait in milliseconds for one call. */
  timeoutMs: number;
  /** How long an entry lives without renewal, in milliseconds. memcached counts whole seconds: it is rounded up. */
  ttlMs: number;
  /** The longest pause, in milliseconds, between two attempts to reach a server that is down. Default 5000. */
  maxPauseMs?: number;
}

/** @throws {HeadError} for an address that is none */
export function createMemcachedStore(options: MemcachedOptions): Store {
  const servers = options.addresses.map((address) => new MemcachedServer(address, options));
  const serverOf = (key: string) => servers[placeOf(key, options.addresses)]!;
  return {
    set: (agentId, address) => serverOf(agentId).set(agentId, address),
    renew: (agentId, address) => renewIn(serverOf(agentId), agentId, address),
    lookup: (agentId) => serverOf(agentId).get(agentId),
    close: () => servers.forEach((server) => server.close()),
  };
}

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

class MemcachedServer implements Cache {
  readonly #guard: Guard;
  readonly #connect: () => { client: memjs.Client; server: memjs.Server };
  readonly #expires: number;
  #connection: { client: memjs.Client; server: memjs.Server } | undefined;

  constructor(address: string, { timeoutMs, ttlMs, maxPauseMs, onServer, onCall }: MemcachedOptions) {
    const { host, port } = parseAuthority(address, 11_211);
    this.#expires = Math.ceil(ttlMs / 1_000);
    this.#guard = new Guard({
      name: `memcached at ${address}`,
      timeoutMs,
      maxPauseMs,
      onServer,
      onCall,
      discard: () => this.#discard(),
    });
    this.#connect = () => {
      // the guard's own time-out comes first
      const seconds = timeoutMs / 1_000 + 1;
      const server = new BoundedServer(host, port, undefined, undefined, { timeout: seconds, conntimeout: seconds, keepAlive: true });
      return { server, client: new memjs.Client([server], { retries: 1, logger: { log() {} } }) };
    };
  }

  get(key: string): Promise<string | undefined> {
    return this.#run("look an agent up", async (client) => (await client.get(key)).value?.toString("utf8"));
  }

  set(key: string, value: string): Promise<void> {
    return this.#run("write an agent's entry", async (client) => void await client.set(key, value, { expires: this.#expires }));
  }

  add(key: string, value: string): Promise<void> {
    return this.#run("add an agent's entry", async (client) => void await client.add(key, value, { expires: this.#expires }));
  }

  touch(key: string): Promise<void> {
    return this.#run("renew an agent's entry", async (client) => void await client.touch(key, this.#expires));
  }

  close(): void {
    this.#guard.close();
    this.#discard();
  }

  #run<T>(operation: string, call: (client: memjs.Client) => Promise<T>): Promise<T> {
    return this.#guard.run(operation, () => call((this.#connection ??= this.#connect()).client));
  }

  #discard(): void {
    const connection = this.#connection;
    this.#connection = undefined;
    // closes the socket at once, and rejects what waits for it
    (connection?.server as { error(error: Error): void } | undefined)?.error(new StoreError("The connection was given up"));
  }
}
