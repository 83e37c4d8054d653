// Whom an address stands for: a host of IPv4, or the network of IPv6 (a /64, RFC 6177) that one customer has whole.
import ipaddr from "ipaddr.js";
import { createAllowList } from "../address/allow_list.ts";
import { RecentKeys } from "./counters.ts";

/** The key of `remote`, `host:port` or `[host]:port`, in tables; `undefined` for one that is not counted by its address. */
export type AddressKeys = (remote: string) => string | undefined;

/** @param exempt patterns of an allow-list: addresses that stand for many, as load balancers do */
export function createAddressKeys(exempt: readonly string[]): AddressKeys {
  const list = exempt.length > 0 ? createAllowList(exempt) : undefined;
  // to read an address costs more than all that is done with it
  const known = new RecentKeys<{ key: string | undefined }>();
  return (remote) => {
    const host = hostOf(remote);
    let found = known.get(host);
    if (!found) known.set(host, found = { key: list?.allows({ host, port: 1 }) ? undefined : keyOf(host) });
    return found.key;
  };
}

/** The host of `host:port` or `[host]:port`, also where the port is missing. */
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
