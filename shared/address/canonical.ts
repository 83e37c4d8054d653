// Canonical addresses: destination rules compare the address a connection goes to, not its notation.
import ipaddr from "ipaddr.js";
import { isIPv4, isIPv6 } from "node:net";

type Address = ipaddr.IPv4 | ipaddr.IPv6;

const UNSPECIFIED_IPV4 = "0.0.0.0";

/** An address, and its zone (RFC 4007 §11) if it is a link-local one. */
export interface Literal {
  readonly address: Address;
  readonly zone?: string;
}

/**
 * Returns the address that a connection to `host` goes to, in its usual notation; names are returned unchanged. Accepts every notation that
 * inet_aton(3) accepts, and maps the unspecified address to loopback. Keeps the zone of link-local addresses only.
 */
export function canonicalHost(host: string): string {
  if (isIPv4(host) && host !== UNSPECIFIED_IPV4) return host; // the usual notation already
  const literal = canonicalAddress(host);
  return literal ? format(literal) : host;
}

/** The same as an address; `undefined` for a name. */
export function canonicalAddress(host: string): Literal | undefined {
  const literal = parseLiteral(host);
  return literal && withZone(connected(literal.address), literal.zone);
}

/**
 * Returns every address by which a deny rule may name the host: as written, as connected to, and the IPv4 address embedded in an IPv6
 * address (NAT64, 6to4, IPv4-compatible and IPv4-translated addresses); none for a name.
 */
export function aliasesOf(host: string): Literal[] {
  const literal = parseLiteral(host);
  if (!literal) return [];
  const { address, zone } = literal;
  const all = new Set([address, connected(address)]);
  for (const inner of embedded(address)) all.add(inner).add(connected(inner));
  return [...all].map((each) => withZone(each, zone));
}

/** Whether `host` is an address in any notation, and thus never looked up. */
export function isAddress(host: string): boolean {
  return parseLiteral(host) !== undefined;
}

function parseLiteral(host: string): { address: Address; zone: string | undefined } | undefined {
  if (!/^[0-9]|:/.test(host)) return undefined; // a name, at once: policies have many of them
  const [, text, zone] = /^([^%]*)(?:%([0-9A-Za-z._~-]+))?$/.exec(host) ?? [];
  if (text === undefined) return undefined;
  if (text.includes(":")) {
    const address = parseIPv6(text);
    return address && { address: unmapped(address), zone };
  }
  const address = zone === undefined ? parseIPv4(text) : undefined;
  return address && { address, zone: undefined };
}

/** Parses an address without a zone. The library treats `::10.0.0.1` as IPv4-mapped (RFC 4291 §2.5.5 does not). */
export function parseIPv6(text: string): ipaddr.IPv6 | undefined {
  if (!isIPv6(text)) return undefined;
  const [before = "", after] = text.split("::");
  const [first, last] = [partsOf(before), after === undefined ? [] : partsOf(after)];
  return new ipaddr.IPv6([...first, ...Array.from({ length: 8 - first.length - last.length }, () => 0), ...last]);
}

const IPV4_MAPPED = ipaddr.IPv6.parse("::ffff:0:0");

/** The IPv4 address of an IPv4-mapped one. The library's own test compares an address with every special range. */
export function unmapped(address: ipaddr.IPv6): Address {
  return address.match(IPV4_MAPPED, 96) ? address.toIPv4Address() : address;
}

/** The groups of 16 bits; an IPv4 address at the end is two. */
function partsOf(text: string): number[] {
  if (text === "") return [];
  return text.split(":").flatMap((part) => {
    if (!part.includes(".")) return [parseInt(part, 16)];
    const [a = 0, b = 0, c = 0, d = 0] = part.split(".").map(Number);
    return [a << 8 | b, c << 8 | d];
  });
}

/** Parses up to four numbers, each decimal, octal or hexadecimal; the last one fills the remaining bytes. Ignores a trailing dot. */
function parseIPv4(text: string): ipaddr.IPv4 | undefined {
  if (isIPv4(text)) return new ipaddr.IPv4(text.split(".").map(Number));
  const parts = text.replace(/\.$/, "").split(".");
  if (parts.length > 4 || !parts.every((part) => /^(?:0x[0-9a-f]*|0[0-7]*|[1-9][0-9]*)$/i.test(part))) return undefined;
  const numbers = parts.map((part) =>
    /^0x/i.test(part) ? Number(`0x0${part.slice(2)}`) : part.startsWith("0") ? parseInt(part, 8) : Number(part)
  );
  const last = numbers.pop()!;
  const bytesLeft = 4 - numbers.length;
  if (last >= 256 ** bytesLeft || numbers.some((number) => number > 255)) return undefined;
  const rest = Array.from({ length: bytesLeft }, (_, i) => Math.floor(last / 256 ** (bytesLeft - 1 - i)) % 256);
  return new ipaddr.IPv4([...numbers, ...rest]);
}

/** The system connects to loopback for the unspecified address. */
function connected(address: Address): Address {
  const parts = "octets" in address ? address.octets : address.parts;
  if (parts.some((part) => part !== 0)) return address;
  return address.kind() === "ipv4" ? new ipaddr.IPv4([127, 0, 0, 1]) : ipaddr.IPv6.parse("::1");
}

/** The bytes of the embedded IPv4 address, per network; byte 8 is skipped (RFC 6052 §2.2). */
const CARRIERS: readonly (readonly [network: ipaddr.IPv6, bits: number, at: readonly number[]])[] = [
  [ipaddr.IPv6.parse("::"), 96, [12, 13, 14, 15]], // IPv4-compatible, RFC 4291 §2.5.5.1
  [ipaddr.IPv6.parse("::ffff:0:0:0"), 96, [12, 13, 14, 15]], // IPv4-translated, RFC 2765 §2.1
  [ipaddr.IPv6.parse("64:ff9b::"), 96, [12, 13, 14, 15]], // NAT64, RFC 6052 §2.1
  [ipaddr.IPv6.parse("64:ff9b:1::"), 48, [12, 13, 14, 15]], // local-use NAT64, RFC 8215
  [ipaddr.IPv6.parse("64:ff9b:1::"), 48, [6, 7, 9, 10]],
  [ipaddr.IPv6.parse("2002::"), 16, [2, 3, 4, 5]], // 6to4, RFC 3056 §2
];

function embedded(address: Address): ipaddr.IPv4[] {
  if (address.kind() === "ipv4") return [];
  const carriers = CARRIERS.filter(([network, bits]) => (address as ipaddr.IPv6).match(network, bits));
  if (carriers.length === 0) return [];
  const bytes = address.toByteArray();
  // the unspecified address and loopback are in the network of IPv4-compatible ones
  if (bytes.at(-1)! <= 1 && bytes.slice(0, -1).every((byte) => byte === 0)) return [];
  return carriers.map(([, , at]) => new ipaddr.IPv4(at.map((i) => bytes[i]!)));
}

function format({ address, zone }: Literal): string {
  return zone === undefined ? address.toString() : `${address.toString()}%${zone}`;
}

function withZone(address: Address, zone: string | undefined): Literal {
  return { address, zone: zone !== undefined && address.kind() === "ipv6" && isScoped(address as ipaddr.IPv6) ? zone : undefined };
}

/** Link-local unicast, and interface-local or link-local multicast. */
function isScoped(address: ipaddr.IPv6): boolean {
  const [first] = address.parts as [number];
  return (first & 0xffc0) === 0xfe80 || ((first & 0xff00) === 0xff00 && [1, 2].includes(first & 0xf));
}
