// Allow-lists and deny-lists of destinations: patterns of hosts, zones and networks, each with an optional port or range, for TCP or UDP.
import ipaddr from "ipaddr.js";
import { isIPv4, isIPv6 } from "node:net";
import { domainToASCII } from "node:url";
import { aliasesOf, canonicalAddress, isAddress, type Literal, parseIPv6 as parseAddress, unmapped } from "./canonical.ts";
import { quoteAddress } from "./host_port.ts";
import type { Authority, Network } from "./authority.ts";
import { PatternIndex, type PatternKey } from "./pattern_index.ts";

type Address = ipaddr.IPv4 | ipaddr.IPv6;

interface Pattern {
  /** Key in the {@link PatternIndex}, which finds the patterns that match a host, whatever its zone. */
  readonly key: PatternKey;
  /** Zone of an IPv6 address. Default: any. */
  readonly zone?: string;
  readonly ports: readonly [first: number, last: number];
  readonly networks: readonly Network[];
}

type HostPattern = Omit<Pattern, "ports" | "networks">;

/** Decides which destinations are allowed. */
export interface AllowList {
  /**
   * Whether any pattern matches the host and the port; an empty list allows everything. Lists of your own must look at `network` too: without
   * it a list that was made for TCP allows UDP.
   * @param network Default `tcp`
   */
  allows(destination: Authority, network?: Network): boolean;
}

/**
 * Creates an allow-list. A destination is allowed if any pattern matches both its host and its port. An empty list allows everything, as
 * `all` alone does; `none` alone allows nothing. Any other pattern is for TCP, and for UDP if it begins with `udp:`, as `udp:10.0.0.53:53` and
 * `udp:all` do: a list that was written for TCP allows no UDP. Names match host and zone patterns only, ignoring case and a trailing dot. Addresses match
 * address and network patterns only, in any notation ({@link canonicalAddress}). A pattern with an IPv6 zone (RFC 4007 §11) matches in that
 * zone only.
 * @throws {RangeError} naming the first invalid pattern
 * @example
 * ```ts
 * import { createAllowList } from "@reverse-http/reverse-http";
 *
 * const list = createAllowList(["*.internal:443", "10.0.0.0/8"]);
 * console.log(list.allows({ host: "git.internal", port: 443 }), list.allows({ host: "10.1.2.3", port: 22 }));
 * // prints: true true
 * console.log(list.allows({ host: "git.internal", port: 22 }), list.allows({ host: "10.1.2.3", port: 53 }, "udp"));
 * // prints: false false
 * ```
 */
export function createAllowList(patterns: readonly string[]): AllowList {
  const index = indexOf(parsePatterns(patterns, TCP));
  return {
    allows: ({ host, port }, network = "tcp") => patterns.length === 0 || matchesAny(index, host, canonicalAddress(host), port, network),
  };
}

/** Decides which destinations are denied. */
export interface DenyList {
  /** Whether any pattern matches the host and the port; an empty list denies nothing. `network`: default `tcp`. */
  denies(destination: Authority, network?: Network): boolean;
}

/**
 * Creates a deny-list. Patterns match as in an allow-list, but without `udp:` over TCP and UDP, and also every alias of an address ({@link aliasesOf}): its literal notation, and
 * an IPv4 address embedded in it.
 * @throws {RangeError} naming the first invalid pattern
 */
export function createDenyList(patterns: readonly string[]): DenyList {
  const index = indexOf(parsePatterns(patterns, EITHER));
  return {
    denies: ({ host, port }, network = "tcp") => aliasesOrName(host).some((alias) => matchesAny(index, host, alias, port, network)),
  };
}

type NumberedPattern = Omit<Pattern, "key"> & { readonly id: number };

function isSame(a: NumberedPattern, b: NumberedPattern): boolean {
  return a.ports[0] === b.ports[0] && a.ports[1] === b.ports[1] && a.networks === b.networks && a.zone === b.zone;
}

/** Numbered patterns of destinations. Finds those that match without trying each. */
export class DestinationPatterns {
  readonly #index = new PatternIndex<NumberedPattern>();
  readonly #ids = new Map<string, number>();
  readonly #isDeny: boolean;
  #size = 0;

  /** @param effect whether they match as in an allow-list or a deny-list */
  constructor(effect: "allow" | "deny") {
    this.#isDeny = effect === "deny";
  }

  /**
   * The number of the pattern, from 0 on. Equal patterns mostly have the same, in all notations.
   * @throws {RangeError} as {@link createAllowList}, and for an ambiguous pattern
   */
  add(pattern: string): number {
    let id = this.#ids.get(pattern);
    if (id === undefined) this.#ids.set(pattern, id = this.#parse(pattern));
    return id;
  }

  #parse(pattern: string): number {
    refuseAmbiguous([pattern]);
    const parsed = parseAlone(pattern, this.#isDeny ? EITHER : TCP);
    if (parsed === undefined) return this.#size++;
    const { key, zone, ports, networks } = parsed;
    const added = this.#index.addOnce(key, { zone, ports, networks, id: this.#size }, isSame);
    if (added.id === this.#size) this.#size++;
    return added.id;
  }

  /** Calls `visit` with the number of each pattern that matches, sometimes more than once. */
  match({ host, port }: Authority, network: Network, visit: (id: number) => void): void {
    const visitPattern = ({ id }: { readonly id: number }) => {
      visit(id);
      return false; // the search goes on
    };
    for (const address of this.#isDeny ? aliasesOrName(host) : [canonicalAddress(host)]) {
      matchesAny(this.#index, host, address, port, network, visitPattern);
    }
  }
}

function indexOf(patterns: readonly Pattern[]): PatternIndex<Pattern> {
  const index = new PatternIndex<Pattern>();
  for (const pattern of patterns) index.add(pattern.key, pattern);
  return index;
}

/** What a deny rule may name the host by: its addresses, or `undefined` for a name. */
function aliasesOrName(host: string): readonly (Literal | undefined)[] {
  const aliases = aliasesOf(host);
  return aliases.length > 0 ? aliases : NAME_ALONE;
}

const NAME_ALONE = [undefined];

/**
 * @param literal if the host is an address, which counts instead
 * @param accepts asked for each pattern that matches. Default: the first one does
 */
function matchesAny<P extends Omit<Pattern, "key">>(
  index: PatternIndex<P>,
  host: string,
  literal: Literal | undefined,
  port: number,
  network: Network,
  accepts: (pattern: P) => boolean = () => true,
): boolean {
  return index.some(
    normalizeName(host),
    literal?.address,
    (pattern) => {
      const { ports, networks } = pattern;
      return networks.includes(network) && ports[0] <= port && port <= ports[1] &&
        (pattern.zone === undefined || pattern.zone === literal?.zone) && accepts(pattern);
    },
  );
}

/**
 * Parses patterns that match addresses only, and returns their networks as `address/bits`. `all` and `none` alone as in an allow-list.
 * @throws {RangeError} as {@link createAllowList}, and for a name, a zone, a port or `udp:`
 */
export function networksOf(patterns: readonly string[]): string[] {
  const parsed = parsePatterns(patterns, EITHER);
  if (parsed[0] === EVERYTHING) return ["0.0.0.0/0", "::/0"];
  if (parsed.length === 0) return [];
  return patterns.map((pattern) => {
    const { host = "", bits, ports } = splitPattern(pattern) ?? {};
    const address = zoneOf(host) === undefined ? parseIPv6(host) ?? parseIp(host) : undefined;
    if (!address || ports !== undefined) throw failure(pattern, "only addresses and networks are valid here, without a port or a zone");
    return `${address.toString()}/${bits ?? (address.kind() === "ipv4" ? 32 : 128)}`;
  });
}

const TCP: readonly Network[] = ["tcp"];
const UDP: readonly Network[] = ["udp"];
const EITHER: readonly Network[] = ["tcp", "udp"];
const EVERYTHING: Pattern = { key: { of: "everything" }, ports: [1, 65_535], networks: EITHER };

/** `none` gives no pattern, `all` one that matches everything. `plain`: the networks of patterns that name none. */
function parsePatterns(patterns: readonly string[], plain: readonly Network[]): Pattern[] {
  const word = patterns.length > 1 ? patterns.find(isWord) : undefined;
  if (word !== undefined) {
    const meaning = word.toLowerCase() === "all" ? "every destination over TCP and UDP" : "no destination";
    throw failure(
      word,
      `it cannot be combined with other patterns, as it stands for ${meaning}; a host of that name is written "${word}."`,
    );
  }
  return patterns.flatMap((pattern) => parseAlone(pattern, plain) ?? []);
}

/** As {@link parsePatterns}, of a list with one. */
function parseAlone(pattern: string, plain: readonly Network[]): Pattern | undefined {
  if (isWord(pattern)) return pattern.toLowerCase() === "all" ? EVERYTHING : undefined;
  return parsePattern(pattern, plain);
}

/** Whether a pattern stands for a whole list. */
function isWord(pattern: string): boolean {
  return pattern.length <= 4 && /^(?:all|none)$/i.test(pattern);
}

function failure(pattern: string, why: string): RangeError {
  return new RangeError(`Cannot use the allow-list pattern ${quoteAddress(pattern)}: ${why}`);
}

/**
 * Rejects an IPv6 address without brackets that may be meant as one with a port: `::1:80` is neither loopback nor has it a port.
 * @throws {RangeError} naming the first such pattern
 */
export function refuseAmbiguous(patterns: readonly string[]): void {
  for (const pattern of patterns) {
    if (pattern.indexOf(":") === pattern.lastIndexOf(":")) continue; // at once: policies have many of them
    const [prefix, text] = splitNetwork(pattern);
    const withPort = isIPv6(text) ? withBrackets(text) : undefined;
    if (withPort === undefined) continue;
    const advice = `write ${prefix}[${text}] or ${prefix}${withPort}`;
    throw failure(pattern, `it is an address, but may be meant as an address and a port; ${advice}`);
  }
}

/** Adds the brackets that an IPv6 address with a port or a range of ports lacks; `undefined` if the pattern is not one. */
function withBrackets(pattern: string): string | undefined {
  if (pattern.indexOf(":") === pattern.lastIndexOf(":")) return undefined;
  const [, address, ports] = /^(.*):([0-9-]+)$/.exec(pattern) ?? [];
  return address !== undefined && isIPv6(address) && parsePorts(ports) ? `[${address}]:${ports}` : undefined;
}

/** Splits `udp:` off; a port alone may follow the name `udp`, which is a host then. */
function splitNetwork(pattern: string): [prefix: "udp:" | "", text: string] {
  const [, text] = pattern[3] === ":" ? /^udp:(?![0-9-]*$)(.+)$/i.exec(pattern) ?? [] : [];
  return text === undefined ? ["", pattern] : ["udp:", text];
}

function parsePattern(pattern: string, plain: readonly Network[]): Pattern {
  const [prefix, text] = splitNetwork(pattern);
  const networks = prefix === "" ? plain : UDP;
  if (prefix !== "" && /^all$/i.test(text)) return { ...EVERYTHING, networks };
  const fail = (why: string) => {
    const hint = advise(text)?.replace(/^write /, `write ${prefix}`);
    return failure(pattern, hint === undefined ? why : `${why}; ${hint}`);
  };
  const parts = splitPattern(text);
  if (!parts?.host) throw fail("it is not a host, zone or network");
  const ports = parsePorts(parts.ports);
  if (!ports) throw fail(`${JSON.stringify(parts.ports)} is not a port or a range of ports from 1 to 65535`);
  const { key, zone } = parseHost(parts.host, parts.bits, parts.bracketed, fail);
  return { key, zone, ports, networks };
}

function parseHost(host: string, bits: string | undefined, bracketed: boolean, fail: (why: string) => RangeError): HostPattern {
  if (bits !== undefined) return matchNetwork(host, Number(bits), fail);
  if (host.startsWith("*.") && !bracketed) return matchZone(host.slice(2), fail);
  const address = parseIp(host);
  if (bracketed && !(address && host.includes(":"))) throw fail(`${JSON.stringify(host)} is not an IPv6 address`);
  if (address) return matchAddress(canonicalAddress(host)!);
  return matchName(host, fail);
}

/** Suggests a valid pattern in place of an invalid one. */
function advise(pattern: string): string | undefined {
  const [, authority] = /^(?:[a-z][a-z0-9+.-]*:)?\/\/(?:[^/@]*@)?([^/?#]+)/i.exec(pattern) ?? [];
  if (authority !== undefined) return `write ${authority} alone`;
  if (/\s/.test(pattern.trim())) return "patterns are separated by commas";
  const [, every, at] = /^([*.]+)(:[0-9-]+)?(?::.*)?$/.exec(pattern) ?? [];
  if (every?.includes("*")) {
    const addresses = at === undefined ? "" : `, or 0.0.0.0/0${at} and [::]/0${at} for every address with this port`;
    return `write all for every destination${addresses}`;
  }
  if (/^\.[^.:/]/.test(pattern)) return `write *${pattern}`;
  const bracketed = withBrackets(pattern);
  if (bracketed !== undefined) return `write ${bracketed}`;
  if (/^(?:[0-9]{1,3}\.){1,3}(?:\*\.?)+(?::.*)?$/.test(pattern)) {
    const numbers = pattern.replace(/:.*/, "").split(".").filter((part) => part !== "*" && part !== "");
    return `write ${[...numbers, 0, 0, 0].slice(0, 4).join(".")}/${numbers.length * 8}`;
  }
  if (/^\[?(?:[0-9]+(?:\.[0-9]+)+|[0-9a-f]*:[0-9a-f:.]*)\]?-\[?[0-9a-f:.]+\]?$/i.test(pattern)) {
    return "a range of addresses is written as networks, like 10.0.0.0/29";
  }
  const [, network, mask] = /^([0-9.]+)\/([0-9]+(?:\.[0-9]+){3})$/.exec(pattern) ?? [];
  const bits = mask === undefined ? undefined : prefixOf(mask);
  if (bits !== undefined) return `write ${network}/${bits}`;
  if (/^[^:/[\]]+(?::[0-9]+)?\/(?![0-9]+$)/.test(pattern)) return "a pattern has no path";
  const [, everyPort] = /^(.+):\*$/.exec(pattern) ?? [];
  if (everyPort !== undefined) return `write ${everyPort} for all ports`;
  if (/.\*|^\*[^.]/.test(pattern)) return "* stands only at the beginning, as in *.example.com";
  const [, host = "", port = ""] = /^([^:/]*)(.*)$/.exec(pattern) ?? [];
  // deno-lint-ignore no-control-regex -- ASCII
  const ascii = /[^\x00-\x7f]/.test(host) ? domainToASCII(host) : "";
  return ascii === "" ? undefined : `write ${ascii}${port}`;
}

/** The prefix length of an IPv4 network mask. */
function prefixOf(mask: string): number | undefined {
  if (!ipaddr.IPv4.isValidFourPartDecimal(mask)) return undefined;
  return ipaddr.IPv4.parse(mask).prefixLengthFromSubnetMask() ?? undefined;
}

function splitPattern(pattern: string): { host?: string; bits?: string; ports?: string; bracketed: boolean } | null {
  const bracketed = pattern.startsWith("[") ? /^\[([^\]]*)\](?:\/([0-9]{1,3}))?(?::(.*))?$/.exec(pattern) : null;
  if (bracketed) return { host: bracketed[1], bits: bracketed[2], ports: bracketed[3], bracketed: true };
  const network = pattern.includes("/") ? /^([^/[\]]+)\/([0-9]{1,3})(?::(.*))?$/.exec(pattern) : null;
  if (network) return { host: network[1], bits: network[2], ports: network[3], bracketed: false };
  const colon = pattern.indexOf(":");
  if (colon !== pattern.lastIndexOf(":")) return { host: pattern, bracketed: false }; // no port can follow IPv6 without brackets
  const [host, ports] = colon < 0 ? [pattern, undefined] : [pattern.slice(0, colon), pattern.slice(colon + 1)];
  return /[/[\]]/.test(host) ? null : { host, ports, bracketed: false };
}

const ALL_PORTS = [1, 65_535] as const;

/** Parses `port` or `first-last`, every port if it is missing; `null` if it is neither. */
export function parsePorts(text: string | undefined): readonly [first: number, last: number] | null {
  if (text === undefined) return ALL_PORTS;
  if (!/^[0-9]{1,5}(?:-[0-9]{1,5})?$/.test(text)) return null;
  const dash = text.indexOf("-");
  const first = Number(dash < 0 ? text : text.slice(0, dash));
  const last = dash < 0 ? first : Number(text.slice(dash + 1));
  return first >= 1 && first <= last && last <= 65_535 ? [first, last] : null;
}

/** `undefined` unless the address is in its usual notation: `127.1` and `0x7f000001` are names here. */
function parseIp(host: string): Address | undefined {
  if (/^[0-9]/.test(host) && isIPv4(host)) return new ipaddr.IPv4(host.split(".").map(Number));
  if (!host.includes(":")) return undefined;
  const address = parseIPv6(host);
  return address && unmapped(address);
}

/** Drops the zone. */
function parseIPv6(host: string): ipaddr.IPv6 | undefined {
  const [, address] = /^([0-9a-f:.]+)(?:%[0-9A-Za-z._~-]+)?$/i.exec(host) ?? [];
  return address === undefined ? undefined : parseAddress(address);
}

function zoneOf(host: string): string | undefined {
  return host.includes(":") ? host.split("%")[1] : undefined;
}

function matchAddress({ address, zone }: Literal): HostPattern {
  return { key: { of: "network", address, bits: address.kind() === "ipv4" ? 32 : 128 }, zone };
}

function matchNetwork(host: string, bits: number, fail: (why: string) => RangeError): HostPattern {
  if (zoneOf(host) !== undefined) throw fail("a network has no zone");
  let address = parseIp(host);
  if (!address) throw fail(`${JSON.stringify(host)} is not an address`);
  const maxBits = host.includes(":") ? 128 : 32;
  if (bits > maxBits) throw fail(`/${bits} is longer than ${maxBits} bits`);
  if (address.kind() === "ipv4" && maxBits === 128) {
    // IPv4-mapped: an IPv4 network if it includes the whole 96-bit prefix
    if (bits >= 96) bits -= 96;
    else address = parseIPv6(host)!;
  }
  return { key: { of: "network", address, bits } };
}

function normalizeName(name: string): string {
  return (name.endsWith(".") ? name.slice(0, -1) : name).toLowerCase();
}

const NAME = /^[0-9a-z_](?:[0-9a-z_.-]*[0-9a-z_])?$/;

function checkName(name: string, fail: (why: string) => RangeError): string {
  const normalized = normalizeName(name);
  if (!NAME.test(normalized) || normalized.includes("..")) throw fail(`${JSON.stringify(name)} is not a name or an address`);
  // digits, dots and a hyphen: a truncated address, or a range of addresses
  if (/^[0-9]/.test(normalized) && (isAddress(normalized) || /^[0-9](?:[0-9.]*|[0-9]*(?:\.[0-9]+)+-[0-9.]+)$/.test(normalized))) {
    throw fail(`${JSON.stringify(name)} is not a name or an address`);
  }
  if (name.length <= 4 && /^(?:all|none)$/i.test(name)) {
    throw fail(`${name} is a whole list and takes no port; a host of that name is written "${name}."`);
  }
  if (normalized.length > 253 || (normalized.length > 63 && normalized.split(".").some((label) => label.length > 63))) {
    throw fail("a name has at most 253 characters, and 63 between two dots");
  }
  return normalized;
}

function matchName(name: string, fail: (why: string) => RangeError): HostPattern {
  return { key: { of: "name", name: checkName(name, fail) } };
}

/** Matches the zone itself too. */
function matchZone(zone: string, fail: (why: string) => RangeError): HostPattern {
  return { key: { of: "zone", name: checkName(zone, fail) } };
}
