// An index of patterns: finds those that match a host by its name, the name's suffixes, or the address's prefixes of each length in use.
import type ipaddr from "ipaddr.js";

type Address = ipaddr.IPv4 | ipaddr.IPv6;

/** The key under which a pattern is stored. */
export type PatternKey =
  | { readonly of: "everything" }
  | { readonly of: "name"; readonly name: string }
  /** The zone and all names in it. */
  | { readonly of: "zone"; readonly name: string }
  | { readonly of: "network"; readonly address: Address; readonly bits: number };

type IsSame<P> = (a: P, b: P) => boolean;

/** Patterns with the same key that {@link PatternIndex.addOnce} compares. */
const MAX_COMPARED = 16;

export class PatternIndex<P extends object> {
  readonly #everything = new Patterns<"", P>();
  readonly #names = new Patterns<string, P>();
  readonly #zones = new Patterns<string, P>();
  /** By address family and prefix length, the networks by their prefix. */
  readonly #networks = { ipv4: new Map<number, Patterns<number, P>>(), ipv6: new Map<number, Patterns<string, P>>() };

  add(key: PatternKey, pattern: P): void {
    this.addOnce(key, pattern, () => false);
  }

  /** Adds the pattern, unless one of the latest with the same key is the same. Returns the one that is there. */
  addOnce(key: PatternKey, pattern: P, isSame: IsSame<P>): P {
    switch (key.of) {
      case "everything":
        return this.#everything.addOnce("", pattern, isSame);
      case "name":
        return this.#names.addOnce(key.name, pattern, isSame);
      case "zone":
        return this.#zones.addOnce(key.name, pattern, isSame);
      case "network":
        return this.#addNetwork(key.address, key.bits, pattern, isSame);
    }
  }

  #addNetwork(address: Address, bits: number, pattern: P, isSame: IsSame<P>): P {
    if (isIPv4(address)) return networksOf(this.#networks.ipv4, bits).addOnce(prefixOfIPv4(address, bits), pattern, isSame);
    return networksOf(this.#networks.ipv6, bits).addOnce(prefixOfIPv6(address, bits), pattern, isSame);
  }

  /**
   * Whether `test` holds for any pattern that matches.
   * @param name in lower case, without a dot at the end
   * @param address if the host is an address
   */
  some(name: string, address: Address | undefined, test: (pattern: P) => boolean): boolean {
    if (this.#everything.some("", test)) return true;
    if (address === undefined) return this.#someOfName(name, test);
    if (isIPv4(address)) {
      for (const [bits, networks] of this.#networks.ipv4) if (networks.some(prefixOfIPv4(address, bits), test)) return true;
    } else {
      for (const [bits, networks] of this.#networks.ipv6) if (networks.some(prefixOfIPv6(address, bits), test)) return true;
    }
    return false;
  }

  #someOfName(name: string, test: (pattern: P) => boolean): boolean {
    if (this.#names.some(name, test)) return true;
    if (this.#zones.size === 0) return false;
    for (let zone = name;;) {
      if (this.#zones.some(zone, test)) return true;
      const dot = zone.indexOf(".");
      if (dot < 0) return false;
      zone = zone.slice(dot + 1);
    }
  }
}

/** Patterns by a key. Most keys have one, which is stored without a list. */
class Patterns<K, P extends object> {
  readonly #patterns = new Map<K, P | P[]>();

  get size(): number {
    return this.#patterns.size;
  }

  addOnce(key: K, pattern: P, isSame: IsSame<P>): P {
    const patterns = this.#patterns.get(key);
    if (patterns === undefined) {
      this.#patterns.set(key, pattern);
    } else if (!Array.isArray(patterns)) {
      if (isSame(patterns, pattern)) return patterns;
      this.#patterns.set(key, [patterns, pattern]);
    } else {
      const least = Math.max(0, patterns.length - MAX_COMPARED);
      for (let i = patterns.length - 1; i >= least; i--) if (isSame(patterns[i]!, pattern)) return patterns[i]!;
      patterns.push(pattern);
    }
    return pattern;
  }

  some(key: K, test: (pattern: P) => boolean): boolean {
    const found = this.#patterns.get(key);
    return Array.isArray(found) ? found.some(test) : found !== undefined && test(found);
  }
}

function isIPv4(address: Address): address is ipaddr.IPv4 {
  return address.kind() === "ipv4";
}

function networksOf<K, P extends object>(networks: Map<number, Patterns<K, P>>, bits: number): Patterns<K, P> {
  let found = networks.get(bits);
  if (found === undefined) networks.set(bits, found = new Patterns());
  return found;
}

function prefixOfIPv4({ octets }: ipaddr.IPv4, bits: number): number {
  const [a, b, c, d] = octets as [number, number, number, number];
  return bits === 0 ? 0 : ((a << 24) | (b << 16) | (c << 8) | d) >>> (32 - bits); // a shift by 32 would be one by 0
}

function prefixOfIPv6({ parts }: ipaddr.IPv6, bits: number): string {
  let prefix = "";
  for (let at = 0; at < bits; at += 16) prefix += String.fromCharCode(parts[at / 16]! >>> Math.max(0, 16 - (bits - at)));
  return prefix;
}
