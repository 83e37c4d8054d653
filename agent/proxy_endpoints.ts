// The addresses of proxies and their use: selects where to connect next.
import type { ResolveOptions } from "../shared/net/tcp.ts";

import { splitHostPort } from "../shared/address/host_port.ts";

/** A proxy, identified by its address. */
export interface ProxyEndpoint {
  /** `host:port`, for display and identity. */
  readonly address: string;
  /** A name or an address; IPv6 without brackets. */
  readonly host: string;
  readonly port: number;
  /** Name that the proxy's certificate must contain. */
  readonly serverName: string;
}

/** Resolves a name to all its addresses. */
export type Resolve = (host: string, options: ResolveOptions) => Promise<readonly string[]>;

/** Timeout for resolving a proxy's name, in milliseconds. */
const RESOLVE_TIMEOUT_MS = 5_000;

interface Use {
  /** Connections and attempts. */
  active: number;
  /** Connections that are being replaced because the proxy goes away. */
  leaving: number;
  /** Number of its last lease; 0: never leased. */
  lastLease: number;
}

/** Leases endpoints so that two connections never share one while another is free. */
export class ProxyEndpoints {
  readonly #addresses: readonly string[];
  readonly #resolve?: Resolve;
  readonly #uses = new Map<string, Use>();
  #leases = 0;

  /**
   * @param addresses `host:port`, `[host]:port`
   * @param resolve expands each name to one endpoint per address; without it, each name is one endpoint
   */
  constructor(addresses: readonly string[], resolve?: Resolve) {
    this.#addresses = addresses;
    this.#resolve = resolve;
  }

  /** The endpoints as configured, before names are expanded. */
  get all(): readonly ProxyEndpoint[] {
    return this.#addresses.map(endpointOf);
  }

  /**
   * Leases the endpoint with the fewest connections, then the fewest connections being replaced, then the least recently leased. It is in use
   * until {@link release}.
   */
  async acquire(): Promise<ProxyEndpoint> {
    const all = (await Promise.all(this.#addresses.map((address) => this.#expand(address)))).flat();
    for (const address of this.#uses.keys()) if (!all.some((target) => target.address === address)) this.#forget(address);
    const rank = (target: ProxyEndpoint) => this.#uses.get(target.address) ?? { active: 0, leaving: 0, lastLease: 0 };
    const [first] = all.toSorted((a, b) => {
      const [x, y] = [rank(a), rank(b)];
      return x.active - y.active || x.leaving - y.leaving || x.lastLease - y.lastLease;
    });
    const use = rank(first!);
    this.#uses.set(first!.address, { ...use, active: use.active + 1, lastLease: ++this.#leases });
    return first!;
  }

  /** Leases an endpoint again that is in use. */
  share({ address }: ProxyEndpoint): void {
    const use = this.#uses.get(address);
    if (use) use.active++;
  }

  /** Returns the lease of a connection that has ended. */
  release({ address }: ProxyEndpoint, was: "active" | "leaving"): void {
    const use = this.#uses.get(address);
    if (use) use[was]--;
  }

  /** Marks a leased connection as being replaced. */
  markLeaving({ address }: ProxyEndpoint): void {
    const use = this.#uses.get(address);
    if (!use) return;
    use.active--;
    use.leaving++;
  }

  /** Drops an unused address that its name no longer has. */
  #forget(address: string): void {
    const { active, leaving } = this.#uses.get(address)!;
    if (active === 0 && leaving === 0) this.#uses.delete(address);
  }

  async #expand(address: string): Promise<ProxyEndpoint[]> {
    const named = endpointOf(address);
    const { host, port, serverName } = named;
    // a name that cannot be resolved is left to the network, which reports the error
    const addresses = await this.#resolve?.(host, { timeoutMs: RESOLVE_TIMEOUT_MS, isConfigured: true }).catch(() => []) ?? [];
    if (addresses.length === 0) return [named];
    return [...new Set(addresses)].map((ip) => ({
      address: ip.includes(":") ? `[${ip}]:${port}` : `${ip}:${port}`,
      host: ip,
      port,
      serverName,
    }));
  }
}

/** The endpoint of `host:port`. */
export function endpointOf(address: string): ProxyEndpoint {
  const { host, port } = splitHostPort(address);
  return { address, host, port, serverName: withoutZone(host) };
}

/** Removes a zone (RFC 4007 §11), which is local to this machine and not part of certificates. */
export function withoutZone(host: string): string {
  return host.includes(":") ? host.replace(/%.*/, "") : host;
}
