// An index of patterns: selects the few that may match a host by its name, the name's suffixes, or the address's prefixes of each length in
// use. Whether a candidate matches is decided by the caller.
import type ipaddr from "ipaddr.js";

type Address = ipaddr.IPv4 | ipaddr.IPv6;

/** The key under which a pattern is stored. */
export type PatternKey =
  | { readonly of: "everything" }
  | { readonly of: "name"; readonly name: string }
  /** The zone and all names in it. */
  | { readonly of: "zone"; readonly name: string }
  | { readonly of: "network"; readonly address: Address; readonly bits: number };

export class PatternIndex<P extends object> {
  /** Most keys have one pattern. */
  readonly #patterns = new Map<string, P | P[]>();
  /** Prefix lengths in use, per address family. */
  readonly #lengths = { ipv4: new Set<number>(), ipv6: new Set<number>() };

  add(patternKey: PatternKey, pattern: P): void {
    if (patternKey.of === "network") this.#lengths[patternKey.address.kind()].add(patternKey.bits);
    const key = keyOf(patternKey);
    const patterns = this.#patterns.get(key);
    if (Array.isArray(patterns)) patterns.push(pattern);
    else this.#patterns.set(key, patterns === undefined ? pattern : [patterns, pattern]);
  }

  /** Whether `test` holds for any candidate. Patterns that are not tested do not match. */
  some(name: string, address: Address | undefined, test: (pattern: P) => boolean): boolean {
    for (const key of this.#keysOf(name, address)) {
      const found = this.#patterns.get(key);
      if (Array.isArray(found) ? found.some(test) : found !== undefined && test(found)) return true;
    }
    return false;
  }

  *#keysOf(name: string, address: Address | undefined): Generator<string> {
    yield EVERYTHING;
    if (address) {
      for (const bits of this.#lengths[address.kind()]) yield keyOf({ of: "network", address, bits });
      return;
    }
    yield `name ${name}`;
    yield `zone ${name}`;
    for (let dot = name.indexOf("."); dot >= 0; dot = name.indexOf(".", dot + 1)) yield `zone ${name.slice(dot + 1)}`;
  }
}

const EVERYTHING = "everything";

function keyOf(key: PatternKey): string {
  switch (key.of) {
    case "everything":
      return EVERYTHING;
    case "name":
    case "zone":
      return `${key.of} ${key.name}`;
    case "network": {
      const { address, bits } = key;
      let prefix = `${address.kind()} ${bits}`;
      for (const [index, byte] of address.toByteArray().entries()) {
        prefix += ` ${byte & (0xff00 >> Math.min(8, Math.max(0, bits - 8 * index)))}`;
      }
      return prefix;
    }
  }
}
