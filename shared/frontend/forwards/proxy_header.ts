// The PROXY protocol header (haproxy.org, proxy-protocol.txt) that a forward sends to its destination in front of the client's bytes.
import ipaddr from "ipaddr.js";
import { hostOf } from "../../limits/addresses.ts";

/** The versions, and none of them. */
export const PROXY_HEADERS = ["none", "v1", "v2"] as const;
export type ProxyHeaderVersion = Exclude<(typeof PROXY_HEADERS)[number], "none">;

/**
 * The header for a connection from `source` to `destination`, both `host:port` or `[host]:port`. An IPv4-mapped address is sent as IPv4; if
 * only one of both is IPv4, as IPv6. A zone is left out.
 */
export function encodeProxyHeader(version: ProxyHeaderVersion, source: string, destination: string): Uint8Array {
  const ends = [source, destination].map((text) => ({ address: ipaddr.process(hostOf(text).replace(/%.*/, "")), port: portOf(text) }));
  const isIPv4 = ends.every(({ address }) => address.kind() === "ipv4");
  const addresses = ends.map(({ address }) => isIPv4 ? address : toIPv6(address));
  const ports = ends.map(({ port }) => port);
  if (version === "v1") {
    const texts = addresses.map((address) => address.toString());
    return new TextEncoder().encode(`PROXY TCP${isIPv4 ? 4 : 6} ${texts.join(" ")} ${ports.join(" ")}\r\n`);
  }
  const block = [...addresses.flatMap((address) => address.toByteArray()), ...ports.flatMap((port) => [port >> 8, port & 0xff])];
  return Uint8Array.of(...SIGNATURE, PROXY_COMMAND, isIPv4 ? TCP4 : TCP6, 0, block.length, ...block);
}

/** The first bytes of version 2. */
const SIGNATURE = [0x0d, 0x0a, 0x0d, 0x0a, 0x00, 0x0d, 0x0a, 0x51, 0x55, 0x49, 0x54, 0x0a];
/** Version 2, for a connection of a client. */
const PROXY_COMMAND = 0x21;
/** Address family and transport. */
const TCP4 = 0x11;
const TCP6 = 0x21;

function portOf(text: string): number {
  return Number(text.slice(text.lastIndexOf(":") + 1));
}

function toIPv6(address: ipaddr.IPv4 | ipaddr.IPv6): ipaddr.IPv6 {
  return address.kind() === "ipv6" ? address as ipaddr.IPv6 : (address as ipaddr.IPv4).toIPv4MappedAddress();
}
