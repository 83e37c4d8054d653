// The store in Redis or Valkey. Its keys have a fixed prefix, because a Redis server is often shared with other programs.
import { Redis } from "ioredis";
import { CircuitBreaker, type StoreEvents } from "./circuit_breaker.ts";
import { type Cache, PROBE_KEY, renewIn, type ServedStore } from "./store.ts";

export interface RedisOptions extends StoreEvents {
  /** `redis://[user:password@]host[:port][/database]`, or `rediss:` with TLS. */
  url: string;
  /** Precedes the fixed prefix of the keys. Default: none. */
  keyPrefix?: string;
  /** Certificate authorities to trust instead of the runtime's, PEM. */
  ca?: string;
  /** Timeout of a call in milliseconds. */
  timeoutMs: number;
  /** Lifetime of an entry without renewal, in milliseconds. */
  ttlMs: number;
  /** Longest delay in milliseconds between attempts to reach a server that is down. Default 5000. */
  maxRetryDelayMs?: number;
}

const KEY_PREFIX = "reverse-http:agent:";
/** Limit on the bytes of an incomplete reply, which is an address at most. The library would buffer any length. */
const MAX_REPLY = 64 * 1024;

/** Idle time in milliseconds before a TCP keep-alive, which also keeps the connection open in firewalls. */
const KEEPALIVE_MS = 15_000;

/** A connection, and the error that the library omits from failed calls. */
interface Connection {
  readonly redis: Redis;
  lastError?: string;
  /** Bytes since the last complete reply. */
  received: number;
}

export function createRedisStore(options: RedisOptions): ServedStore {
  const { ca, timeoutMs, ttlMs, keyPrefix = "", onServer, onCall, maxRetryDelayMs } = options;
  // ioredis uses TLS for "rediss:" in lower case only, as this returns it
  const { host, href: url } = new URL(options.url);
  const connect = (onEnd: () => void): Connection => {
    const redis = new Redis(url, {
      keyPrefix: `${keyPrefix}${KEY_PREFIX}`,
      connectTimeout: timeoutMs,
      keepAlive: KEEPALIVE_MS,
      retryStrategy: null, // the circuit breaker decides when to reconnect
      maxRetriesPerRequest: 0,
      // Redis proxies support few commands besides those used here
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
    // treats a rejected password or database as an error, too: the library would continue without it
    redis.on("error", (error: Error) => fail(error.message));
    redis.on("connect", () =>
      redis.stream.on("data", (bytes: Uint8Array) => {
        if (connection.received > MAX_REPLY) fail(`A reply has more than ${MAX_REPLY} bytes`);
        connection.received += bytes.length; // one chunk may contain many replies
      }));
    redis.on("end", onEnd);
    return connection;
  };
  const breaker = new CircuitBreaker({
    name: `redis at ${host}`,
    timeoutMs,
    maxRetryDelayMs,
    onServer,
    onCall,
    connect,
    disconnect: ({ redis }) => redis.disconnect(),
  });
  const run = <T>(operation: string, call: (redis: Redis) => Promise<T>) =>
    breaker.run(operation, async (connection) => {
      try {
        const result = await call(connection.redis);
        connection.received = 0;
        return result;
      } catch (cause) {
        throw connection.lastError === undefined ? cause : new Error(connection.lastError, { cause });
      }
    });
  const cache: Cache = {
    get: (key) => run("look up an agent", (redis) => redis.get(key).then((value) => value ?? undefined, noEntryOfOtherType)),
    set: (key, value) => run("write an agent's entry", async (redis) => void await redis.set(key, value, "PX", ttlMs)),
    add: (key, value) => run("add an agent's entry", async (redis) => void await redis.set(key, value, "PX", ttlMs, "NX")),
    touch: (key) => run("renew an agent's entry", async (redis) => void await redis.pexpire(key, ttlMs)),
  };
  return {
    set: cache.set,
    renew: (agentId, address) => renewIn(cache, agentId, address),
    lookup: cache.get,
    probe: () => run("probe the store", (redis) => redis.get(PROBE_KEY)).then(() => {}, () => {}),
    close: () => breaker.close(),
  };
}

/** A key of another type is not an entry, and the server that says so works. */
function noEntryOfOtherType(error: Error): undefined {
  if (!error.message.startsWith("WRONGTYPE ")) throw error;
}
