// Finds the few of many patterns that a host may match, without asking each: names by themselves, zones by the ends of the name, and networks by
// the address's prefix in each length that there is. What a pattern is, and whether it matches, is not known here.
import type ipaddr from "ipaddr.js";

type Address = ipaddr.IPv4 | ipaddr.IPv6;

/** Under what a pattern is found. */
export type PatternKey =
  | { readonly of: "everything" }
  | { readonly of: "name"; readonly name: string }
  /** The zone itself, and all names in it. */
  | { readonly of: "zone"; readonly name: string }
  | { readonly of: "network"; readonly address: Address; readonly bits: number };

export class PatternIndex<P> {
  readonly #patterns = new Map<string, P[]>();
  /** Lengths of prefixes, for each kind of address. */
  readonly #lengths = { ipv4: new Set<number>(), ipv6: new Set<number>() };

  add(place: PatternKey, pattern: P): void {
    if (place.of === "network") this.#lengths[place.address.kind()].add(place.bits);
    const key = keyOf(place);
    const known = this.#patterns.get(key);
    if (known) known.push(pattern);
    else this.#patterns.set(key, [pattern]);
  }

  /** Whether `test` holds for any of the patterns that may match: all of the others do not. */
  some(name: string, address: Address | undefined, test: (pattern: P) => boolean): boolean {
    for (const key of this.#keysOf(name, address)) {
      if (this.#patterns.get(key)?.some(test)) return true;
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

function keyOf(place: PatternKey): string {
  switch (place.of) {
    case "everything":
      return EVERYTHING;
    case "name":
    case "zone":
      return `${place.of} ${place.name}`;
    case "network": {
      const { address, bits } = place;
      const prefix = address.toByteArray().map((byte, index) => byte & (0xff00 >> Math.min(8, Math.max(0, bits - 8 * index))));
      return `${address.kind()} ${bits} ${prefix.join(".")}`;
    }
  }
}
