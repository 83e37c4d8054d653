// The store's options, for the proxy and lb alike, and the store that they describe.
import { readFile } from "node:fs/promises";
import { NOT_GIVEN } from "../config/common_options.ts";
import { ConfigError, defineOptions } from "../config/option.ts";
import { checkRemote } from "../address/host_port.ts";
import type { StoreEvents } from "./circuit_breaker.ts";
import { createMemcachedStore } from "./memcached.ts";
import { createRedisStore } from "./redis.ts";
import { withTimeout } from "../async/with_timeout.ts";
import type { ServedStore, Store } from "./store.ts";

const atLeast = (least: number, text: string) => (ms: number) => ms >= least ? undefined : `it must be ${text} or more`;

export const storeServerOptions = defineOptions({
  "store.key-prefix": {
    kind: "string",
    default: "",
    description:
      "Stands before every key in the store, the same for all proxies and lbs; empty as in the Go project, whose keys are agent ids.",
    check: (prefix) =>
      /^[!-~]{0,64}$/.test(prefix) ? undefined : `${JSON.stringify(prefix)} has other than visible ASCII characters, or more than 64`,
  },
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
    check: checkRedisUrl,
  },
  "store.redis.timeout": {
    kind: "duration",
    default: "1s",
    description: "Longest wait for an answer of Redis.",
    check: atLeast(1, "1ms"),
  },
  "store.redis.tls.file.root-ca": {
    guards: NOT_GIVEN,
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
  return checkRemote(address, 11_211);
}

/** Why Redis cannot be reached by it. It never quotes the URL: there may be a password in it. */
function checkRedisUrl(text: string): string | undefined {
  const url = URL.parse(text);
  if (!/^rediss?:/i.test(text)) return "it is not a redis: or rediss: URL";
  if (!url || url.host === "") {
    return "it is not a URL; in its user and password, percent-encode what is neither a letter nor a digit: / is %2F, # %23, ? %3F, @ %40, % %25";
  }
  if (!isDecodable(url.username) || !isDecodable(url.password)) {
    return "its user or password has a % that is not followed by two hexadecimal digits; % itself is %25";
  }
  // ioredis takes what it cannot read for database 0
  if (!/^\/?$|^\/[0-9]{1,9}$/.test(url.pathname)) return "its database, after the last /, is not a number; in a password, / is %2F";
  return undefined;
}

function isDecodable(text: string): boolean {
  try {
    decodeURIComponent(text);
    return true;
  } catch {
    return false;
  }
}

/** The part of the options that describes a store. */
export interface StoreOptions {
  type: "none" | "memcached" | "redis";
  keyPrefix: string;
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

/** How often the store is asked whether it answers, in milliseconds, and how long the start waits for that. */
const PROBE_MS = 5_000;
const FIRST_PROBE_MS = 1_000;

/** Has it asked until it is closed, so that its state is known before the first client comes. */
async function probed(store: ServedStore): Promise<Store> {
  let timer: ReturnType<typeof setTimeout> | undefined;
  let closed = false;
  const probe = async (): Promise<void> => {
    await store.probe();
    if (!closed) timer = setTimeout(probe, PROBE_MS);
  };
  await withTimeout(FIRST_PROBE_MS, probe());
  return {
    ...store,
    close() {
      closed = true;
      clearTimeout(timer);
      store.close();
    },
  };
}

/** The store that the options describe, `undefined` for none. It is known whether its servers answer, unless they take long for it. */
export async function openStore(options: StoreOptions, ttlMs: number, events: StoreEvents): Promise<Store | undefined> {
  const { redisCa } = await checkStoreOptions(options);
  // a cache that is empty again is to be full within a third of an entry's life
  const common = { ...events, ttlMs, keyPrefix: options.keyPrefix, maxPauseMs: Math.min(5_000, ttlMs / 6) };
  switch (options.type) {
    case "none":
      return undefined;
    case "memcached":
      return await probed(createMemcachedStore({ ...common, addresses: options.memcached.address, timeoutMs: options.memcached.timeout }));
    case "redis":
      return await probed(createRedisStore({ ...common, url: options.redis.url, ca: redisCa, timeoutMs: options.redis.timeout }));
  }
}
