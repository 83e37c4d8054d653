// Looks up published names in the store, for the listeners of lb. Caches results for a second, and uses old ones while the store fails.
import { type Forward, ForwardGroup } from "../shared/frontend/forwards/forwards.ts";
import { claimKey, decodeClaim } from "../shared/frontend/forwards/claims.ts";
import { patternsOf } from "../shared/frontend/forwards/server_names.ts";
import { VirtualHosts } from "../shared/frontend/forwards/virtual_hosts.ts";
import type { Store } from "../shared/store/store.ts";
import { StoreError } from "../shared/store/store.ts";
import { TunnelError } from "../shared/tunnel/errors.ts";
import type { PublishedRecord } from "./options.ts";

/** Names looked up for one client: itself and the zones above it. */
const MAX_PATTERNS = 8;
/** Maximum number of lookups for one request: only the first segments of a long path count. */
const MAX_LOOKUPS = 18;
/** Longest prefix of a path that is looked up. */
const MAX_PREFIX = 256;
/** Age in milliseconds of a cached result, and the largest number of them. */
const MAX_AGE_MS = 1_000;
const MAX_CACHED = 10_000;

interface Cached {
  readonly at: number;
  readonly text: string | undefined;
}

/** The prefixes of a path at which a site can be published, none first, then the shortest. */
function prefixesOf(path = ""): string[] {
  const ends = [...path.matchAll(/(?!^)(?=[/;])|(?<![/])$/g)].map(({ index }) => index);
  return ["", ...ends.filter((end) => end > 0 && end <= MAX_PREFIX).map((end) => path.slice(0, end))];
}

export interface PublishedNamesOptions {
  /** Whether the proxies know visitors by certificates that lb has verified: they get no token of lb then. Default: they do not. */
  readonly knowsCertificates?: () => boolean;
  /** Monotonic clock in milliseconds. Default `performance.now`. */
  readonly now?: () => number;
}

export class PublishedNames {
  #store: Pick<Store, "lookup">;
  readonly #knowsCertificates: () => boolean;
  readonly #now: () => number;
  /** By key. The oldest is first. */
  readonly #cached = new Map<string, Cached>();
  readonly #asking = new Map<string, Promise<string | undefined>>();

  constructor(
    store: Pick<Store, "lookup">,
    { knowsCertificates = () => false, now = () => performance.now() }: PublishedNamesOptions = {},
  ) {
    this.#store = store;
    this.#knowsCertificates = knowsCertificates;
    this.#now = now;
  }

  /** Asks another store from now on. */
  use(store: Pick<Store, "lookup">): void {
    this.#store = store;
    this.#cached.clear();
    this.#asking.clear();
  }

  /**
   * The forward of a port for a server name, alone in its group; an empty group if there is none.
   * @param serverName of the client; `undefined` without one
   * @throws {TunnelError} if the store fails, and nothing is known
   */
  async connections({ listen, network, tokenFile }: PublishedRecord, port: number, serverName: string | undefined): Promise<ForwardGroup> {
    const transport = network === "udp" ? "udp" : "tcp";
    const forward = await this.#find(transport, port, serverName, (found) => found.network === transport);
    return new ForwardGroup(listen, transport, forward === undefined ? [] : [{ ...forward, tokenFile }]);
  }

  /**
   * The same for the host and the path of a request.
   * @param path normalized; `undefined` if it has dot segments, then no path that is published counts
   * @throws {TunnelError}
   */
  async requests(
    { listen, tokenFile }: PublishedRecord,
    network: "http" | "https",
    port: number,
    host: string | undefined,
    path: string | undefined,
  ): Promise<VirtualHosts> {
    const forward = await this.#find("tcp", port, host, (found) => found.network === network, prefixesOf(path));
    const hasOwn = forward?.auth === "token" || (forward?.auth === "mtls" && this.#knowsCertificates());
    return new VirtualHosts(listen, network, forward === undefined ? [] : [{ ...forward, tokenFile: hasOwn ? undefined : tokenFile }]);
  }

  /** An exact name precedes the zones above it, and of each the longest prefix counts. */
  async #find(
    transport: "tcp" | "udp",
    port: number,
    name: string | undefined,
    fits: (forward: Forward) => boolean,
    prefixes: readonly string[] = [""],
  ): Promise<Forward | undefined> {
    const patterns = [...name === undefined ? [] : patternsOf(name).slice(0, MAX_PATTERNS), ""];
    const tried = prefixes.slice(0, Math.floor(MAX_LOOKUPS / patterns.length)).reverse();
    const keys = patterns.flatMap((pattern) => tried.map((prefix) => claimKey(transport, port, pattern, prefix)));
    const texts = await Promise.all(keys.map((key) => this.#lookup(key)));
    return texts.map(decodeClaim).find((forward) => forward !== undefined && fits(forward));
  }

  async #lookup(key: string): Promise<string | undefined> {
    const known = this.#cached.get(key);
    if (known && this.#now() - known.at < MAX_AGE_MS) return known.text;
    let asking = this.#asking.get(key);
    if (!asking) {
      const asked = this.#ask(key, known).finally(() => {
        if (this.#asking.get(key) === asked) this.#asking.delete(key);
      });
      this.#asking.set(key, asking = asked);
    }
    return await asking;
  }

  async #ask(key: string, known: Cached | undefined): Promise<string | undefined> {
    const store = this.#store;
    let text: string | undefined;
    try {
      text = await store.lookup(key);
    } catch (cause) {
      if (!(cause instanceof StoreError)) throw cause;
      if (known) return known.text;
      throw new TunnelError("proxy_internal_error", "The store of published names cannot be reached", { cause, retryAfterMs: 1_000 });
    }
    if (store !== this.#store) return text;
    this.#cached.delete(key);
    this.#cached.set(key, { at: this.#now(), text });
    if (this.#cached.size > MAX_CACHED) this.#cached.delete(this.#cached.keys().next().value!);
    return text;
  }
}
