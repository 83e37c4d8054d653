// The store in Redis or Valkey. The same contract as in memcached, under keys of its own: a Redis server is often shared with others.
import { Redis } from "ioredis";
import { Guard, type StoreEvents } from "./guard.ts";
import { type Cache, renewIn, type Store } from "./store.ts";

export interface RedisOptions extends StoreEvents {
  /** `redis://[user:password@]host[:port][/database]`, or `rediss:` with TLS. */
  url: string;
  /** Authorities to trust instead of the system's, PEM. */
  ca?: string;
  /** Longest wait in milliseconds for one call. */
  timeoutMs: number;
  /** How long an entry lives without renewal, in milliseconds. */
  ttlMs: number;
  /** The longest pause, in milliseconds, between two attempts to reach a server that is down. Default 5000. */
  maxPauseMs?: number;
}

const KEY_PREFIX = "reverse-http:agent:";
/** Most bytes without a whole reply: that to a lookup has an address in it. The library would keep all of a longer one. */
const MAX_REPLY = 64 * 1024;

export function createRedisStore(options: RedisOptions): Store {
  const { url, ca, timeoutMs, ttlMs, onServer, onCall, maxPauseMs } = options;
  const { host } = new URL(url);
  let connection: Redis | undefined;
  // a call's own error says only that the connection is closed
  let lastError: string | undefined;
  let received = 0;
  const discard = () => {
    connection?.disconnect();
    connection = undefined;
  };
  const guard = new Guard({ name: `redis at ${host}`, timeoutMs, maxPauseMs, onServer, onCall, discard });
  const connect = () => {
    [lastError, received] = [undefined, 0];
    const redis = new Redis(url, {
      keyPrefix: KEY_PREFIX,
      connectTimeout: timeoutMs,
      retryStrategy: null, // the guard decides when it is tried again
      maxRetriesPerRequest: 0,
      ...ca === undefined ? {} : { tls: { ca } },
    });
    // what waits for it is told; without a listener it would be printed
    redis.on("error", (error: Error) => lastError = error.message);
    redis.on("connect", () =>
      redis.stream.on("data", (bytes: Uint8Array) => {
        if (received > MAX_REPLY) {
          lastError = `A reply has more than ${MAX_REPLY} bytes`;
          redis.disconnect();
        }
        received += bytes.length; // what came at once may be many replies
      }));
    redis.on("end", () => {
      if (connection === redis) connection = undefined;
    });
    return redis;
  };
  const run = <T>(operation: string, call: (redis: Redis) => Promise<T>) =>
    guard.run(operation, async () => {
      try {
        const result = await call(connection ??= connect());
        received = 0;
        return result;
      } catch (cause) {
        throw lastError === undefined ? cause : new Error(lastError, { cause });
      }
    });
  const cache: Cache = {
    get: (key) => run("look an agent up", async (redis) => await redis.get(key) ?? undefined),
    set: (key, value) => run("write an agent's entry", async (redis) => void await redis.set(key, value, "PX", ttlMs)),
    add: (key, value) => run("add an agent's entry", async (redis) => void await redis.set(key, value, "PX", ttlMs, "NX")),
    touch: (key) => run("renew an agent's entry", async (redis) => void await redis.pexpire(key, ttlMs)),
  };
  return {
    set: cache.set,
    renew: (agentId, address) => renewIn(cache, agentId, address),
    lookup: cache.get,
    close() {
      guard.close();
      discard();
    },
  };
}
