// Where to connect next: the addresses of proxies, who uses which, and which has not been tried for the longest time.
import type { ResolveOptions } from "../shared/net/types.ts";

import { splitHostPort } from "../shared/address/host_port.ts";

/** One proxy, as far as an address tells. */
export interface ProxyEndpoint {
  /** For people, and to tell one from another: `host:port`. */
  readonly address: string;
  /** A name or an address; IPv6 without brackets. */
  readonly host: string;
  readonly port: number;
  /** The name that the proxy's certificate must have. */
  readonly serverName: string;
}

/** Every address of a name. */
export type Resolve = (host: string, options: ResolveOptions) => Promise<readonly string[]>;

/** Longest look-up in milliseconds of a proxy's name. */
const RESOLVE_TIMEOUT_MS = 5_000;

interface Use {
  /** Connections there, or under way to it. */
  active: number;
  /** Connections there whose proxy asked to go elsewhere. */
  leaving: number;
  /** When it was taken last, in takings. */
  lastLease: number;
}

/** Hands out targets so that two connections never go to one while another is free. */
export class ProxyEndpoints {
  readonly #addresses: readonly string[];
  readonly #resolve?: Resolve;
  readonly #uses = new Map<string, Use>();
  #leases = 0;

  /**
   * @param addresses `host:port`, `[host]:port`
   * @param resolve makes targets of the addresses of each name; without it, each name is one target
   */
  constructor(addresses: readonly string[], resolve?: Resolve) {
    this.#addresses = addresses;
    this.#resolve = resolve;
  }

  /**
   * The one to try next: one that nobody uses rather than another, none that is being left if there is a choice, the least recently tried
   * of equals. It is in use until {@link release}.
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

  /** Its connection is no more. */
  release({ address }: ProxyEndpoint, was: "active" | "leaving"): void {
    const use = this.#uses.get(address);
    if (use) use[was]--;
  }

  /** Its connection is to be replaced. */
  markLeaving({ address }: ProxyEndpoint): void {
    const use = this.#uses.get(address);
    if (!use) return;
    use.active--;
    use.leaving++;
  }

  /** A name may have other addresses each time: those that it no longer has are not kept for ever. */
  #forget(address: string): void {
    const { active, leaving } = this.#uses.get(address)!;
    if (active === 0 && leaving === 0) this.#uses.delete(address);
  }

  async #expand(address: string): Promise<ProxyEndpoint[]> {
    const { host, port } = splitHostPort(address);
    const named = { address, host, port, serverName: withoutZone(host) };
    // a name that is not known now is left to the network: it says what is wrong
    const found = await this.#resolve?.(host, { timeoutMs: RESOLVE_TIMEOUT_MS, isOwn: true }).catch(() => []) ?? [];
    if (found.length === 0) return [named];
    return [...new Set(found)].map((ip) => ({
      address: ip.includes(":") ? `[${ip}]:${port}` : `${ip}:${port}`,
      host: ip,
      port,
      serverName: withoutZone(host),
    }));
  }
}

/** A zone (RFC 4007 §11) tells this machine which link to take; no certificate has it. */
function withoutZone(host: string): string {
  return host.includes(":") ? host.replace(/%.*/, "") : host;
}
