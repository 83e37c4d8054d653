// The store in Redis or Valkey. The same contract as in memcached, under keys of its own: a Redis server is often shared with others.
import { Redis } from "ioredis";
import { CircuitBreaker, type StoreEvents } from "./circuit_breaker.ts";
import { type Cache, PROBE_KEY, renewIn, type ServedStore } from "./store.ts";

export interface RedisOptions extends StoreEvents {
  /** `redis://[user:password@]host[:port][/database]`, or `rediss:` with TLS. */
  url: string;
  /** Before the keys' own prefix. Default none. */
  keyPrefix?: string;
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

/** Milliseconds of silence after which the connection is probed, which also keeps firewalls from forgetting it. */
const KEEPALIVE_MS = 15_000;

/** A connection, and what the library does not say in the errors of calls. */
interface Connection {
  readonly redis: Redis;
  lastError?: string;
  /** Bytes since the last whole reply. */
  received: number;
}

export function createRedisStore(options: RedisOptions): ServedStore {
  const { url, ca, timeoutMs, ttlMs, keyPrefix = "", onServer, onCall, maxPauseMs } = options;
  const { host } = new URL(url);
  const connect = (onEnd: () => void): Connection => {
    const redis = new Redis(url, {
      keyPrefix: `${keyPrefix}${KEY_PREFIX}`,
      connectTimeout: timeoutMs,
      keepAlive: KEEPALIVE_MS,
      retryStrategy: null, // the guard decides when it is tried again
      maxRetriesPerRequest: 0,
      // proxies of Redis know little more than the commands that are used here
      protocol: 2,
      enableReadyCheck: false,
      disableClientInfo: true,
      ...ca === undefined ? {} : { tls: { ca } },
    });
    const connection: Connection = { redis, received: 0 };
    const fail = (reason: string) => {
      connection.lastError ??= reason;
      redis.disconnect();
    };
    // what waits for it is told. A password or database that is refused is an error like others: the library would go on without it
    redis.on("error", (error: Error) => fail(error.message));
    redis.on("connect", () =>
      redis.stream.on("data", (bytes: Uint8Array) => {
        if (connection.received > MAX_REPLY) fail(`A reply has more than ${MAX_REPLY} bytes`);
        connection.received += bytes.length; // what came at once may be many replies
      }));
    redis.on("end", onEnd);
    return connection;
  };
  const guard = new CircuitBreaker({
    name: `redis at ${host}`,
    timeoutMs,
    maxPauseMs,
    onServer,
    onCall,
    connect,
    disconnect: ({ redis }) => redis.disconnect(),
  });
  const run = <T>(operation: string, call: (redis: Redis) => Promise<T>) =>
    guard.run(operation, async (connection) => {
      try {
        const result = await call(connection.redis);
        connection.received = 0;
        return result;
      } catch (cause) {
        throw connection.lastError === undefined ? cause : new Error(connection.lastError, { cause });
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
    probe: () => run("ask the store", (redis) => redis.get(PROBE_KEY)).then(() => {}, () => {}),
    close: () => guard.close(),
  };
}
