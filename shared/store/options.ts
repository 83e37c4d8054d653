// The store's options, for the proxy and lb alike, and the store that they describe.
import { readFile } from "node:fs/promises";
import { ConfigError, defineOptions } from "../cli/option.ts";
import { HeadError, parseAuthority } from "../http/head.ts";
import type { Health } from "../admin.ts";
import type { Logger } from "../log.ts";
import type { Metrics } from "../metrics.ts";
import type { StoreEvents } from "./guard.ts";
import { createMemcachedStore } from "./memcached.ts";
import { createRedisStore } from "./redis.ts";
import type { Store } from "./store.ts";

const atLeast = (least: number, text: string) => (ms: number) => ms >= least ? undefined : `it must be ${text} or more`;

export const storeServerOptions = defineOptions({
  "store.memcached.address": {
    kind: "list",
    default: "localhost:11211",
    description: "Address of memcached; several share the entries among them.",
    check: (addresses) => addresses.length === 0 ? "there must be one at least" : addresses.map(checkAddress).find(Boolean),
  },
  "store.memcached.timeout": {
    kind: "duration",
    default: "1s",
    description: "Longest wait for an answer of memcached.",
    check: atLeast(1, "1ms"),
  },
  "store.redis.url": {
    kind: "string",
    default: "redis://localhost:6379",
    secret: true,
    description: "Redis or Valkey: `redis://user:password@host:port/database`, or `rediss:` with TLS.",
    check: (url) => /^rediss?:$/.test(URL.parse(url)?.protocol ?? "") ? undefined : "it is not a redis: or rediss: URL",
  },
  "store.redis.timeout": {
    kind: "duration",
    default: "1s",
    description: "Longest wait for an answer of Redis.",
    check: atLeast(1, "1ms"),
  },
  "store.redis.tls.file.root-ca": {
    kind: "file",
    description: "Authorities to trust with `rediss:`, PEM; by default the runtime's.",
  },
});

export const STORE_TTL = {
  kind: "duration",
  default: "30s",
  description: "How long an entry lives after its proxy is gone; it is renewed every third of that time.",
  check: atLeast(3_000, "3s"),
} as const;

/** Why `address` is not a server's; `undefined` where it is. */
export function checkAddress(address: string): string | undefined {
  try {
    parseAuthority(address, 11_211);
    return undefined;
  } catch (error) {
    if (!(error instanceof HeadError)) throw error;
    return `${JSON.stringify(address)} is not host:port`;
  }
}

/** The part of the options that describes a store. */
export interface StoreOptions {
  type: "none" | "memcached" | "redis";
  memcached: { address: string[]; timeout: number };
  redis: { url: string; timeout: number; tls: { file: { rootCa: string | undefined } } };
}

/**
 * Reads the files that the options name.
 * @throws {ConfigError}
 */
export async function checkStoreOptions({ type, redis }: StoreOptions): Promise<{ redisCa?: string }> {
  const file = redis.tls.file.rootCa;
  if (type !== "redis" || file === undefined) return {};
  if (!redis.url.startsWith("rediss:")) {
    throw new ConfigError("Cannot use --store.redis.tls.file.root-ca: --store.redis.url is not a rediss: URL");
  }
  try {
    return { redisCa: await readFile(file, "utf8") };
  } catch (cause) {
    throw new ConfigError(`Cannot read --store.redis.tls.file.root-ca: ${(cause as Error).message}`, { cause });
  }
}

/** Whoever operates it sees whether the store's servers answer: in the log once, in readiness, in the figures. */
export function watchServers(log: Logger, health: Health, metrics: Metrics): StoreEvents {
  const figures = metrics.store();
  const down = new Set<string>();
  return {
    onCall: figures.onCall,
    onServer(server) {
      figures.onServer?.(server);
      const { name, up, reason } = server;
      if (up) log.info("store answers again", { store: name });
      else log.warn("store does not answer", { store: name, reason });
      down[up ? "delete" : "add"](name);
      if (down.size === 0) health.readyAgain("store");
      else health.notReady("store", `no answer of ${[...down].join(", ")}`);
    },
  };
}

/** The store that the options describe, `undefined` for none. It connects when it is first used. */
export async function openStore(options: StoreOptions, ttlMs: number, events: StoreEvents): Promise<Store | undefined> {
  const { redisCa } = await checkStoreOptions(options);
  // a cache that is empty again is to be full within a third of an entry's life
  const common = { ...events, ttlMs, maxPauseMs: Math.min(5_000, ttlMs / 6) };
  switch (options.type) {
    case "none":
      return undefined;
    case "memcached":
      return createMemcachedStore({ ...common, addresses: options.memcached.address, timeoutMs: options.memcached.timeout });
    case "redis":
      return createRedisStore({ ...common, url: options.redis.url, ca: redisCa, timeoutMs: options.redis.timeout });
  }
}
