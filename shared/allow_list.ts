// Which destinations may be reached: patterns of hosts, zones and networks, each with an optional port or range.
import ipaddr from "ipaddr.js";
import type { Authority } from "./http/head.ts";

type Address = ipaddr.IPv4 | ipaddr.IPv6;

interface Pattern {
  matches(host: string, address: Address | undefined): boolean;
  readonly ports: readonly [first: number, last: number];
}

/** Tells whether a destination may be reached. */
export interface AllowList {
  allows(destination: Authority): boolean;
}

/**
 * An allow-list of `patterns`; an empty one allows everything. A destination is allowed if any pattern matches its host and port together.
 * Names compare without case and without a trailing dot and match host and zone patterns only; addresses match address and network
 * patterns only, an IPv4-mapped IPv6 address as the IPv4 address it is.
 * @throws {RangeError} naming the first pattern that cannot be read
 */
export function createAllowList(patterns: readonly string[]): AllowList {
  const parsed = patterns.map(parsePattern);
  return {
    allows({ host, port }) {
      if (parsed.length === 0) return true;
      const address = parseAddress(host);
      const name = normalizeName(host);
      return parsed.some(({ ports, matches }) => ports[0] <= port && port <= ports[1] && matches(name, address));
    },
  };
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
  if (networkBits !== undefined) {
    const bits = Number(networkBits);
    if (!address) throw fail(`${JSON.stringify(host)} is not an address`);
    const most = address.kind() === "ipv4" ? 32 : 128;
    if (bits > most) throw fail(`/${networkBits} is longer than ${most} bits`);
    return { ports: range, matches: (_, other) => other !== undefined && other.kind() === address.kind() && other.match(address, bits) };
  }
  if (bracketed && !(address && host.includes(":"))) throw fail(`${JSON.stringify(host)} is not an IPv6 address`);
  if (address) {
    return {
      ports: range,
      matches: (_, other) => other !== undefined && other.toNormalizedString() === address.toNormalizedString(),
    };
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
  if (!host.includes(":") || !ipaddr.IPv6.isValid(host)) return undefined;
  const address = ipaddr.IPv6.parse(host.split("%")[0]!);
  return address.isIPv4MappedAddress() ? address.toIPv4Address() : address;
}

function normalizeName(name: string): string {
  return name.toLowerCase().replace(/\.$/, "");
}

const NAME = /^[0-9a-z_](?:[0-9a-z_.-]*[0-9a-z_])?$/;

function checkName(name: string, fail: (why: string) => RangeError): string {
  const normalized = normalizeName(name);
  if (!NAME.test(normalized) || normalized.includes("..") || /^[0-9.]+$/.test(normalized)) {
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
