// Virtual hosts: which forward takes an HTTP request, by its host and path. Opens nothing.
import { type AllowList, createAllowList } from "../../address/allow_list.ts";
import type { Forward } from "./forwards.ts";
import { HostCertificates } from "./host_certificates.ts";
import { normalizeName, patternsOf } from "./server_names.ts";

/** Which forward takes a request, and why. */
export interface HostMatch {
  readonly forward: Forward;
  /** The pattern of its `host` that fits; `undefined` for a record without one. */
  readonly host?: string;
  /** The prefix of its `path` that fits; `undefined` for a record without one. */
  readonly path?: string;
}

/** A prefix of paths, and the forward behind it. */
interface Route extends HostMatch {
  /** Normalized, without a slash at the end. */
  readonly prefix: string;
}

/** The lists `allow` of forwards. */
export function allowListsOf(forwards: readonly Forward[]): ReadonlyMap<Forward, AllowList> {
  return new Map(forwards.map((forward) => [forward, createAllowList(forward.allow)]));
}

/** The key of forwards for every host. */
const ANY_HOST = "";

/** The forwards of HTTP requests that share a listener. */
export class VirtualHosts {
  /** By pattern of the host, normalized. The longest prefix is first. */
  readonly #byHost = new Map<string, Route[]>();
  /** Without any files it has the certificate of the clients' port. */
  readonly certificates: HostCertificates;
  /** Who may use each forward. */
  readonly allowed: ReadonlyMap<Forward, AllowList>;

  /** @throws {RangeError} if two of `forwards` take the same requests */
  constructor(readonly listen: string, readonly network: "http" | "https", readonly forwards: readonly Forward[]) {
    for (const forward of forwards) {
      for (const host of forward.host.length > 0 ? forward.host : [undefined]) {
        for (const path of forward.path.length > 0 ? forward.path : [undefined]) this.#add({ forward, host, path, prefix: prefixOf(path) });
      }
    }
    for (const routes of this.#byHost.values()) routes.sort((a, b) => b.prefix.length - a.prefix.length);
    this.certificates = new HostCertificates(listen, forwards);
    this.allowed = allowListsOf(forwards);
  }

  #add(route: Route): void {
    const key = route.host === undefined ? ANY_HOST : normalizeName(route.host);
    const routes = this.#byHost.get(key) ?? [];
    if (routes.some(({ prefix }) => prefix === route.prefix)) {
      const host = key === ANY_HOST ? "no host" : `host=${key}`;
      const path = route.prefix === "" ? "no path" : `path=${route.prefix}`;
      throw new RangeError(`two records that listen on ${this.listen} have ${host} and ${path}`);
    }
    this.#byHost.set(key, [...routes, route]);
  }

  /** Whether it depends on the path. */
  get isByPath(): boolean {
    return this.forwards.some(({ path }) => path.length > 0);
  }

  /**
   * The forward for a request: an exact name precedes the zone with most labels, that shorter ones, and these records without `host`. Of
   * records for the same host, that with the longest prefix of the path.
   * @param host without a port; `undefined` if the request names none
   * @param path normalized by {@link normalizePath}
   */
  match(host: string | undefined, path: string): HostMatch | undefined {
    for (const pattern of [...host === undefined ? [] : patternsOf(host), ANY_HOST]) {
      const found = this.#byHost.get(pattern)?.find(({ prefix }) => isBelow(path, prefix));
      if (found) return found;
    }
    return undefined;
  }
}

/** Whether whole segments of `path` are the prefix. Parameters of a segment (RFC 3986 §3.3) do not count. */
function isBelow(path: string, prefix: string): boolean {
  return path.startsWith(prefix) && /^(?:[/;]|$)/.test(path.slice(prefix.length));
}

function prefixOf(path: string | undefined): string {
  return path === undefined ? "" : normalizePath(path)!.replace(/\/$/, "");
}

/**
 * The path of a request as prefixes are compared with it: as received, but without escapes of unreserved characters (RFC 3986 §6.2.2), and
 * with several slashes as one. `undefined` for a path with dot segments, in any spelling: it leads elsewhere than its prefix.
 */
export function normalizePath(path: string): string | undefined {
  const normalized = path.replace(/%[0-9a-f]{2}/gi, (code) => {
    const character = String.fromCharCode(parseInt(code.slice(1), 16));
    return /[\w.~-]/.test(character) ? character : code.toUpperCase();
  }).replace(/\/{2,}/g, "/");
  // some servers take these for slashes
  const split = normalized.replace(/%2F|%5C|\\/g, "/");
  return /\/\.\.?(?:[/;]|$)/.test(split) ? undefined : normalized;
}

/** Returns why a text is no prefix of paths, or `undefined`. */
export function pathProblem(path: string): string | undefined {
  if (/^\/[!-"$->@-~]*$/.test(path) && normalizePath(path) !== undefined) return undefined;
  return `${JSON.stringify(path)} is not a path that begins with /, without a query and dot segments`;
}
