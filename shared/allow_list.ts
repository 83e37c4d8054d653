// Which destinations may be reached: patterns of hosts, zones and networks, each with an optional port or range.
import ipaddr from "ipaddr.js";
import { isIPv6 } from "node:net";
import { aliasesOf, canonicalHost, isAddress } from "./host_address.ts";
import type { Authority } from "./http/head.ts";

type Address = ipaddr.IPv4 | ipaddr.IPv6;

interface Pattern {
  matches(name: string, address: Address | undefined, zone: string | undefined): boolean;
  readonly ports: readonly [first: number, last: number];
}

/** Tells whether a destination may be reached. */
export interface AllowList {
  /** Whether any pattern matches host and port together; an empty list allows all. */
  allows(destination: Authority): boolean;
}

/**
 * An allow-list of `patterns`; an empty one allows everything. A destination is allowed if any pattern matches its host and port together.
 * Names compare without case and without a trailing dot and match host and zone patterns only. Addresses match address and network patterns
 * only; they compare as the address that is connected to, in whatever form they are written ({@link canonicalHost}). A pattern with an IPv6
 * zone (RFC 4007 §11) matches in that zone only.
 * @throws {RangeError} naming the first pattern that cannot be read
 */
export function createAllowList(patterns: readonly string[]): AllowList {
  const parsed = patterns.map(parsePattern);
  return {
    allows: ({ host, port }) => parsed.length === 0 || matchesAny(parsed, canonicalHost(host), port),
  };
}

/** Tells whether a destination must not be reached. */
export interface DenyList {
  /** Whether any pattern matches host and port together; an empty list denies nothing. */
  denies(destination: Authority): boolean;
}

/**
 * A deny-list of `patterns`, which match as those of an allow-list, and every alias of an address as well: an address is also denied where
 * only the form it is written in, or the IPv4 address inside it, is on the list.
 * @throws {RangeError} naming the first pattern that cannot be read
 */
export function createDenyList(patterns: readonly string[]): DenyList {
  const parsed = patterns.map(parsePattern);
  return {
    denies: ({ host, port }) => aliasesOf(host).some((alias) => matchesAny(parsed, alias, port)),
  };
}

function matchesAny(patterns: readonly Pattern[], host: string, port: number): boolean {
  const address = parseAddress(host);
  const name = normalizeName(host);
  const zone = zoneOf(host);
  return patterns.some(({ ports, matches }) => ports[0] <= port && port <= ports[1] && matches(name, address, zone));
}

/**
 * The networks among the patterns that hold for every port, `address/bits`: for who can compare nothing but addresses.
 * @throws {RangeError} as {@link createAllowList}
 */
export function networksOf(patterns: readonly string[]): string[] {
  return patterns.flatMap((pattern) => {
    const { ports: [first, last] } = parsePattern(pattern);
    const { host = "", bits } = splitPattern(pattern) ?? {};
    const address = zoneOf(host) === undefined ? parseIPv6(host) ?? parseAddress(host) : undefined;
    if (!address || first > 1 || last < 65_535) return [];
    return [`${address.toString()}/${bits ?? (address.kind() === "ipv4" ? 32 : 128)}`];
  });
}

function parsePattern(pattern: string): Pattern {
  const fail = (why: string) => new RangeError(`Cannot use the allow-list pattern ${JSON.stringify(pattern)}: ${why}`);
  const parts = splitPattern(pattern);
  if (!parts?.host) throw fail("it is not a host, zone or network");
  const { host, bits: networkBits, ports, bracketed } = parts;
  const range = parsePorts(ports);
  if (!range) throw fail(`${JSON.stringify(ports)} is not a port or a range of ports`);
  if (host.startsWith("*.") && networkBits === undefined && !bracketed) return { ports: range, matches: matchZone(host.slice(2), fail) };
  const address = parseAddress(host);
  if (networkBits !== undefined) return { ports: range, matches: matchNetwork(host, Number(networkBits), fail) };
  if (bracketed && !(address && host.includes(":"))) throw fail(`${JSON.stringify(host)} is not an IPv6 address`);
  if (address) {
    const canonical = canonicalHost(host);
    return { ports: range, matches: matchAddress(parseAddress(canonical)!, zoneOf(canonical)) };
  }
  return { ports: range, matches: matchName(host, fail) };
}

function splitPattern(pattern: string): { host?: string; bits?: string; ports?: string; bracketed: boolean } | null {
  const bracketed = /^\[([^\]]*)\](?:\/([0-9]{1,3}))?(?::(.*))?$/.exec(pattern);
  if (bracketed) return { host: bracketed[1], bits: bracketed[2], ports: bracketed[3], bracketed: true };
  const network = /^([^/[\]]+)\/([0-9]{1,3})(?::(.*))?$/.exec(pattern);
  if (network) return { host: network[1], bits: network[2], ports: network[3], bracketed: false };
  if (pattern.split(":").length > 2) return { host: pattern, bracketed: false }; // IPv6 without brackets has no port
  const name = /^([^/[\]:]+)(?::(.*))?$/.exec(pattern);
  return name && { host: name[1], ports: name[2], bracketed: false };
}

function parsePorts(text: string | undefined): [number, number] | null {
  if (text === undefined) return [1, 65_535];
  const match = /^([0-9]{1,5})(?:-([0-9]{1,5}))?$/.exec(text);
  if (!match) return null;
  const first = Number(match[1]);
  const last = Number(match[2] ?? match[1]);
  return first >= 1 && first <= last && last <= 65_535 ? [first, last] : null;
}

/** `undefined` for what is no address in its usual form: `127.1` and `0x7f000001` are names here. */
function parseAddress(host: string): Address | undefined {
  if (ipaddr.IPv4.isValidFourPartDecimal(host)) return ipaddr.IPv4.parse(host);
  const address = parseIPv6(host);
  return address?.isIPv4MappedAddress() ? address.toIPv4Address() : address;
}

/** Without its zone. By way of a URL: the library takes `::10.0.0.1` for IPv4-mapped, which it is not (RFC 4291 §2.5.5). */
function parseIPv6(host: string): ipaddr.IPv6 | undefined {
  const [, address] = /^([0-9a-f:.]+)(?:%[0-9A-Za-z._~-]+)?$/i.exec(host) ?? [];
  // asked first: the URLs of one runtime take more
  if (address === undefined || !isIPv6(address)) return undefined;
  return ipaddr.IPv6.parse(new URL(`http://[${address}]`).hostname.slice(1, -1));
}

function zoneOf(host: string): string | undefined {
  return host.includes(":") ? host.split("%")[1] : undefined;
}

function matchAddress(address: Address, zone: string | undefined): Pattern["matches"] {
  const normalized = address.toNormalizedString();
  return (_, other, otherZone) => other?.toNormalizedString() === normalized && (zone === undefined || zone === otherZone);
}

function matchNetwork(host: string, bits: number, fail: (why: string) => RangeError): Pattern["matches"] {
  if (zoneOf(host) !== undefined) throw fail("a network has no zone");
  let address = parseAddress(host);
  if (!address) throw fail(`${JSON.stringify(host)} is not an address`);
  const most = host.includes(":") ? 128 : 32;
  if (bits > most) throw fail(`/${bits} is longer than ${most} bits`);
  if (address.kind() === "ipv4" && most === 128) {
    // IPv4-mapped: a network of IPv4 where all 96 bits of the prefix are in it
    if (bits >= 96) bits -= 96;
    else address = parseIPv6(host)!;
  }
  return (_, other) => other !== undefined && other.kind() === address.kind() && other.match(address, bits);
}

function normalizeName(name: string): string {
  return name.toLowerCase().replace(/\.$/, "");
}

const NAME = /^[0-9a-z_](?:[0-9a-z_.-]*[0-9a-z_])?$/;

function checkName(name: string, fail: (why: string) => RangeError): string {
  const normalized = normalizeName(name);
  if (!NAME.test(normalized) || normalized.includes("..") || /^[0-9.]+$/.test(normalized) || isAddress(normalized)) {
    throw fail(`${JSON.stringify(name)} is not a name or an address`);
  }
  return normalized;
}

function matchName(name: string, fail: (why: string) => RangeError): Pattern["matches"] {
  const normalized = checkName(name, fail);
  return (host, address) => address === undefined && host === normalized;
}

/** The zone itself too. */
function matchZone(zone: string, fail: (why: string) => RangeError): Pattern["matches"] {
  const normalized = checkName(zone, fail);
  return (host, address) => address === undefined && (host === normalized || host.endsWith(`.${normalized}`));
}
