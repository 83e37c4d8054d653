// Where the agent connects to: what the allow-list has and the deny-list has not, by name and by address. It knows no tunnels.
import { networkInterfaces } from "node:os";
import { createAllowList, createDenyList } from "../shared/address/allow_list.ts";
import { canonicalHost, isAddress } from "../shared/address/canonical.ts";
import { type Authority, formatAuthority } from "../shared/http/head.ts";
import { ProxyError } from "../shared/http/status.ts";
import { NetError } from "../shared/net/errors.ts";
import type { ConnectTcpOptions } from "../shared/net/types.ts";
import type { Resolve } from "./proxy_endpoints.ts";

export interface DestinationPolicyOptions {
  /** Patterns; none allow all. */
  allow: readonly string[];
  /** Patterns of what is refused all the same. */
  deny: readonly string[];
  /** Every address of a name. */
  resolve: Resolve;
  /** Names of this machine's network interfaces by their numbers. Default: as the system has them. */
  zones?: () => ReadonlyMap<string, string>;
}

/** What the agent may reach. */
export interface DestinationPolicy {
  /**
   * Where to connect to, within `timeoutMs` for all of it. `signal` gives up.
   * @throws {ProxyError} 403
   * @throws {NetError} as `connectTcp` of the network
   */
  resolve(destination: Authority, timeoutMs: number, signal?: AbortSignal): Promise<Address>;
}

/** An address to connect to, and how long that may take. */
export type Address = Pick<ConnectTcpOptions, "host" | "port" | "addresses" | "timeoutMs">;

/** An address that was checked is the one that is connected to: a name server cannot give another one in between (DNS rebinding). */
export function createDestinationPolicy({ allow, deny, resolve, zones = interfaceNames }: DestinationPolicyOptions): DestinationPolicy {
  const allowed = createAllowList(allow);
  const denied = deny.length > 0 ? createDenyList(deny) : undefined;
  return {
    async resolve(destination, timeoutMs, signal) {
      const authority = formatAuthority(destination);
      const { port } = destination;
      const host = canonicalHost(destination.host);
      const spellings = withZoneSpellings(host, zones);
      if (!spellings.some((each) => allowed.allows({ host: each, port }))) {
        throw new ProxyError(403, "http_request_denied", `${authority} is not on the allow-list of the agent`);
      }
      if (!denied) return { host, port, timeoutMs };
      const isDenied = (address: string) => withZoneSpellings(address, zones).some((each) => denied.denies({ host: each, port }));
      // the form in which it was written may be denied too
      if (isDenied(destination.host) || isDenied(host)) throw prohibited(`${authority} is on the deny-list of the agent`);
      if (isAddress(host)) return { host, port, timeoutMs };
      const startedAt = performance.now();
      const addresses = await lookUp(resolve, host, timeoutMs, signal);
      const left = addresses.filter((address) => !isDenied(address)).map(canonicalHost);
      if (left.length === 0) throw prohibited(`${authority} has an address that is on the deny-list of the agent`);
      return { host, port, addresses: left, timeoutMs: Math.max(1, Math.round(timeoutMs - (performance.now() - startedAt))) };
    },
  };
}

/** An address in a zone, by the name and by the number of its interface. */
function withZoneSpellings(host: string, zones: () => ReadonlyMap<string, string>): string[] {
  const [address, zone] = host.split("%") as [string, string?];
  if (zone === undefined) return [host];
  const others = [...zones()].flatMap(([number, name]) => number === zone ? [name] : name === zone ? [number] : []);
  return [host, ...others.map((other) => `${address}%${other}`)];
}

function interfaceNames(): ReadonlyMap<string, string> {
  const numbered = Object.entries(networkInterfaces()).flatMap(([name, addresses = []]) =>
    addresses.flatMap(({ scopeid }) => scopeid ? [[String(scopeid), name] as const] : [])
  );
  return new Map(numbered);
}

function prohibited(message: string): ProxyError {
  return new ProxyError(403, "destination_ip_prohibited", message);
}

async function lookUp(resolve: Resolve, host: string, timeoutMs: number, signal: AbortSignal | undefined): Promise<readonly string[]> {
  let timer: ReturnType<typeof setTimeout> | undefined;
  const late = new Promise<never>((_, reject) => {
    const error = new NetError("name-timed-out", `Cannot connect to ${host}: its name was not looked up in ${timeoutMs} ms`);
    timer = setTimeout(() => reject(error), timeoutMs);
  });
  try {
    const found = await Promise.race([late, resolve(host, { timeoutMs, signal })]);
    if (found.length === 0) throw new NetError("unknown-host", `Cannot connect to ${host}: the name has no address`);
    return found;
  } catch (cause) {
    if (cause instanceof NetError) throw cause;
    throw new NetError("unknown-host", `Cannot connect to ${host}: the name is unknown (${(cause as Error).message})`, { cause });
  } finally {
    clearTimeout(timer);
  }
}
