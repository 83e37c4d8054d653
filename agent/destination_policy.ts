// Decides which destinations the agent connects to, by allow-list and deny-list, names and addresses. Knows no tunnels.
import { networkInterfaces } from "node:os";
import { createAllowList, createDenyList } from "../shared/address/allow_list.ts";
import { type Authority, formatDestination, type Network } from "../shared/address/authority.ts";
import { canonicalHost, isAddress } from "../shared/address/canonical.ts";
import { NetError } from "../shared/net/errors.ts";
import type { ConnectTcpOptions } from "../shared/net/tcp.ts";
import { TunnelError } from "../shared/tunnel/errors.ts";
import type { Resolve } from "./proxy_endpoints.ts";

export interface DestinationPolicyOptions {
  /** Allow-list patterns; an empty list allows all. */
  allow: readonly string[];
  /** Deny-list patterns, which take precedence. */
  deny: readonly string[];
  /** Resolves a name to all its addresses. */
  resolve: Resolve;
  /** Names of the machine's network interfaces by index. Default: the system's. */
  zones?: () => ReadonlyMap<string, string>;
}

/** The destinations that the agent may reach. */
export interface DestinationPolicy {
  /**
   * Checks a destination and returns the addresses to connect to. `timeoutMs` applies to lookup and connection together. `signal` cancels.
   * @throws {TunnelError} for a destination that is not allowed
   * @throws {NetError} as `connectTcp` of the network
   */
  resolve(destination: Authority, network: Network, timeoutMs: number, signal?: AbortSignal): Promise<Address>;
}

/** The address to connect to, and the remaining timeout. */
export type Address = Pick<ConnectTcpOptions, "host" | "port" | "addresses" | "timeoutMs">;

/** Creates the policy. With a deny-list, a name is resolved once and connected to by the checked addresses, which prevents DNS rebinding. */
export function createDestinationPolicy({ allow, deny, resolve, zones = interfaceNames }: DestinationPolicyOptions): DestinationPolicy {
  const allowed = createAllowList(allow);
  const denied = deny.length > 0 ? createDenyList(deny) : undefined;
  return {
    async resolve(destination, network, timeoutMs, signal) {
      const authority = formatDestination(destination, network);
      const { port } = destination;
      const host = canonicalHost(destination.host);
      const spellings = withZoneSpellings(host, zones);
      if (!spellings.some((each) => allowed.allows({ host: each, port }, network))) {
        throw new TunnelError("http_request_denied", `${authority} is not on the allow-list of the agent`);
      }
      if (!denied) return { host, port, timeoutMs };
      const isDenied = (address: string) => withZoneSpellings(address, zones).some((each) => denied.denies({ host: each, port }, network));
      // the notation in the request may be denied too
      if (isDenied(destination.host) || isDenied(host)) throw prohibited(`${authority} is on the deny-list of the agent`);
      if (isAddress(host)) return { host, port, timeoutMs };
      const startedAt = performance.now();
      const addresses = await lookUp(resolve, host, timeoutMs, signal);
      const permitted = addresses.filter((address) => !isDenied(address)).map(canonicalHost);
      if (permitted.length === 0) throw prohibited(`${authority} has an address that is on the deny-list of the agent`);
      return { host, port, addresses: permitted, timeoutMs: Math.max(1, Math.round(timeoutMs - (performance.now() - startedAt))) };
    },
  };
}

/** The spellings of an address with a zone: by interface name and by index. */
function withZoneSpellings(host: string, zones: () => ReadonlyMap<string, string>): string[] {
  if (!host.includes("%")) return [host];
  const [address, zone] = host.split("%") as [string, string];
  const others = [...zones()].flatMap(([number, name]) => number === zone ? [name] : name === zone ? [number] : []);
  return [host, ...others.map((other) => `${address}%${other}`)];
}

function interfaceNames(): ReadonlyMap<string, string> {
  const numbered = Object.entries(networkInterfaces()).flatMap(([name, addresses = []]) =>
    addresses.flatMap(({ scopeid }) => scopeid ? [[String(scopeid), name] as const] : [])
  );
  return new Map(numbered);
}

function prohibited(message: string): TunnelError {
  return new TunnelError("destination_ip_prohibited", message);
}

async function lookUp(resolve: Resolve, host: string, timeoutMs: number, signal: AbortSignal | undefined): Promise<readonly string[]> {
  let timer: ReturnType<typeof setTimeout> | undefined;
  const timeout = new Promise<never>((_, reject) => {
    const error = new NetError("name-timed-out", `Cannot connect to ${host}: the name lookup timed out after ${timeoutMs} ms`);
    timer = setTimeout(() => reject(error), timeoutMs);
  });
  try {
    const addresses = await Promise.race([timeout, resolve(host, { timeoutMs, signal })]);
    if (addresses.length === 0) throw new NetError("unknown-host", `Cannot connect to ${host}: the name has no address`);
    return addresses;
  } catch (cause) {
    if (cause instanceof NetError) throw cause;
    throw new NetError("unknown-host", `Cannot connect to ${host}: the name is unknown (${(cause as Error).message})`, { cause });
  } finally {
    clearTimeout(timer);
  }
}
