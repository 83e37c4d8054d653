// The store's options, shared by proxy and lb, and the store that they configure.
import { NOT_GIVEN } from "../config/common_options.ts";
import { ConfigError, defineOptions } from "../config/option.ts";
import { checkRemote } from "../address/host_port.ts";
import type { StoreEvents } from "./circuit_breaker.ts";
import { createMemcachedStore } from "./memcached.ts";
import { createRedisStore } from "./redis.ts";
import { withTimeout } from "../async/with_timeout.ts";
import { readPemFile } from "../tls/reloadable_tls.ts";
import { readCertificates } from "../tls/pem.ts";
import type { ServedStore, Store } from "./store.ts";

const atLeast = (minMs: number, text: string) => (ms: number) => ms >= minMs ? undefined : `it must be ${text} or more`;

export const storeServerOptions = defineOptions({
  "store.key-prefix": {
    reload: "at once",
    kind: "string",
    default: "",
    description:
      "Prefix of every key in the store, identical on all proxies and lbs; empty as in the Go project, whose keys are agent ids.",
    check: (prefix) =>
      /^[!-~]{0,64}$/.test(prefix) ? undefined : `${JSON.stringify(prefix)} must have at most 64 characters, all visible ASCII`,
  },
  "store.memcached.address": {
    reload: "at once",
    kind: "list",
    default: "localhost:11211",
    description: "Address of memcached; entries are distributed over several servers.",
    check: (addresses) => addresses.length === 0 ? "at least one address is required" : addresses.map(checkAddress).find(Boolean),
  },
  "store.memcached.timeout": {
    reload: "at once",
    kind: "duration",
    default: "1s",
    description: "Timeout of a memcached request.",
    check: atLeast(1, "1ms"),
  },
  "store.redis.url": {
    reload: "at once",
    kind: "string",
    default: "redis://localhost:6379",
    secret: true,
    description: "Redis or Valkey URL: `redis://user:password@host:port/database`, or `rediss:` with TLS.",
    check: checkRedisUrl,
  },
  "store.redis.timeout": {
    reload: "at once",
    kind: "duration",
    default: "1s",
    description: "Timeout of a Redis request.",
    check: atLeast(1, "1ms"),
  },
  "store.redis.tls.file.root-ca": {
    reload: "at once",
    guards: NOT_GIVEN,
    kind: "file",
    description: "Certificate authorities to trust with `rediss:`, PEM; by default the runtime's.",
  },
});

export const STORE_TTL = {
  reload: "at once",
  kind: "duration",
  default: "30s",
  description: "Lifetime of an entry after its proxy is gone; entries are renewed every third of that time.",
  check: atLeast(3_000, "3s"),
} as const;

/** Returns why `address` is not a server's address, or `undefined`. */
function checkAddress(address: string): string | undefined {
  return checkRemote(address, 11_211);
}

/** Returns why a Redis URL is invalid, or `undefined`. It never quotes the URL, which may contain a password. */
function checkRedisUrl(text: string): string | undefined {
  const url = URL.parse(text);
  if (!/^rediss?:/i.test(text)) return "it is not a redis: or rediss: URL";
  if (!url || url.host === "") {
    return "it is not a URL; in the user and the password, percent-encode all characters but letters and digits: / is %2F, # %23, ? %3F, @ %40, % %25";
  }
  if (!isDecodable(url.username) || !isDecodable(url.password)) {
    return "its user or password has a % that is not followed by two hexadecimal digits; % itself is %25";
  }
  if (url.port === "0") return "it has the port 0";
  if (url.hash !== "") return "it has a #; in a password, # is %23";
  // ioredis authenticates only with a password
  if (url.username !== "" && url.password === "") {
    return "it has a user without a password; a password alone is written redis://:password@host";
  }
  // ioredis would use database 0 for an invalid one
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

/** The option values that configure a store. */
export interface StoreOptions {
  type: "none" | "memcached" | "redis";
  keyPrefix: string;
  memcached: { address: string[]; timeout: number };
  redis: { url: string; timeout: number; tls: { file: { rootCa: string | undefined } } };
}

/**
 * Reads the files that the options refer to.
 * @throws {ConfigError} for an unreadable file or contradictory options
 */
export async function checkStoreOptions({ type, redis }: StoreOptions): Promise<{ redisCa?: string }> {
  const file = redis.tls.file.rootCa;
  if (type !== "redis" || file === undefined) return {};
  if (new URL(redis.url).protocol !== "rediss:") {
    throw new ConfigError("Cannot use --store.redis.tls.file.root-ca: --store.redis.url is not a rediss: URL");
  }
  return { redisCa: readCertificates(await readPemFile("store.redis.tls.file.root-ca", file), "authorities").text };
}

/** Interval of probes, and how long the start waits for the first one, in milliseconds. */
const PROBE_MS = 5_000;
const FIRST_PROBE_MS = 1_000;

/** Probes the store until it is closed, so that its state is known before the first client connects. */
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

/**
 * Opens the store that the options configure; `undefined` for none. Waits at most 1 s for the first probe.
 * @throws {ConfigError} as {@link checkStoreOptions}
 */
export async function openStore(options: StoreOptions, ttlMs: number, events: StoreEvents): Promise<Store | undefined> {
  const { redisCa } = await checkStoreOptions(options);
  // after an outage all entries must be restored within a third of their lifetime
  const common = { ...events, ttlMs, keyPrefix: options.keyPrefix, maxRetryDelayMs: Math.min(5_000, ttlMs / 6) };
  switch (options.type) {
    case "none":
      return undefined;
    case "memcached":
      return await probed(createMemcachedStore({ ...common, addresses: options.memcached.address, timeoutMs: options.memcached.timeout }));
    case "redis":
      return await probed(createRedisStore({ ...common, url: options.redis.url, ca: redisCa, timeoutMs: options.redis.timeout }));
  }
}
