// Keys for limits by address: an IPv4 address, or the /64 network of an IPv6 address, which one customer controls (RFC 6177).
import ipaddr from "ipaddr.js";
import { createAllowList } from "../address/allow_list.ts";
import { RecentKeys } from "./counters.ts";

/** Returns the key of `remote` (`host:port` or `[host]:port`); `undefined` for an exempt address. */
export type AddressKeys = (remote: string) => string | undefined;

/** @param exempt allow-list patterns of addresses without limits, such as load balancers */
export function createAddressKeys(exempt: readonly string[]): AddressKeys {
  const list = exempt.length > 0 ? createAllowList(exempt) : undefined;
  // parsing an address costs more than the limits themselves
  const cache = new RecentKeys<{ key: string | undefined }>();
  return (remote) => {
    const host = hostOf(remote);
    let entry = cache.get(host);
    if (!entry) cache.set(host, entry = { key: list?.allows({ host, port: 1 }) ? undefined : keyOf(host) });
    return entry.key;
  };
}

/** The host of `host:port` or `[host]:port`; the port may be missing. */
export function hostOf(remote: string): string {
  if (remote.startsWith("[")) return remote.slice(1, remote.indexOf("]"));
  const end = remote.lastIndexOf(":");
  return end < 0 ? remote : remote.slice(0, end);
}

function keyOf(host: string): string {
  if (!host.includes(":") || !ipaddr.IPv6.isValid(host)) return host;
  const address = ipaddr.IPv6.parse(host);
  if (address.isIPv4MappedAddress()) return address.toIPv4Address().toString();
  return `${address.parts.slice(0, 4).map((part) => part.toString(16)).join(":")}::/64`;
}
