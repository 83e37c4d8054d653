// Lists of ports and names that an agent may publish, by patterns in its token.

/** Decides which ports and names an agent may publish. */
export interface PublishList {
  /**
   * Whether the patterns cover a port, for some names or, without names, for all that comes there.
   * @param names server names, or `*.zone` for all below; in lower case, without a dot at the end
   */
  allows(network: "tcp" | "udp", port: number, names: readonly string[]): boolean;
}

interface Pattern {
  readonly network: "tcp" | "udp";
  readonly ports: readonly [first: number, last: number];
  /** A name, or a zone with its dot: `.site7.example`. Missing for the whole port. */
  readonly name?: string;
}

/**
 * Creates a list. A pattern is `:5432` or `:8000-8100` for whole TCP ports, `udp:5353` for UDP ports, or `www.example:443` and
 * `*.zone.example:443` for names at a TCP port. An empty list allows nothing.
 * @throws {RangeError} naming the first invalid pattern
 * @example
 * ```ts
 * import { createPublishList } from "@reverse-http/reverse-http";
 *
 * const list = createPublishList([":5432", "*.site7.example:443"]);
 * console.log(list.allows("tcp", 5432, []), list.allows("tcp", 443, ["www.site7.example"]), list.allows("tcp", 443, []));
 * // prints: true true false
 * ```
 */
export function createPublishList(patterns: readonly string[]): PublishList {
  const parsed = patterns.map(parsePattern);
  return {
    allows(network, port, names) {
      const fitting = parsed.filter(({ network: own, ports: [first, last] }) => own === network && first <= port && port <= last);
      if (fitting.some(({ name }) => name === undefined)) return true;
      return names.length > 0 && names.every((name) => fitting.some((pattern) => covers(pattern.name!, name)));
    },
  };
}

function covers(pattern: string, name: string): boolean {
  return pattern.startsWith(".") ? name.replace(/^\*/, "").endsWith(pattern) : name === pattern;
}

const NAME = /^[0-9a-z_](?:[0-9a-z_-]*[0-9a-z_])?(?:\.[0-9a-z_](?:[0-9a-z_-]*[0-9a-z_])?)*$/;

function parsePattern(text: string): Pattern {
  const fail = (why: string) => new RangeError(`Cannot use the pattern ${JSON.stringify(text)} of what may be published: ${why}`);
  const [, given, first = "", last = first] = /^(.*):([0-9]{1,5})(?:-([0-9]{1,5}))?$/.exec(text) ?? [];
  if (given === undefined) throw fail("it is not :PORT, udp:PORT or NAME:PORT, each also with FIRST-LAST");
  const ports = [Number(first), Number(last)] as const;
  if (!(ports[0] >= 1 && ports[0] <= ports[1] && ports[1] <= 65_535)) throw fail("its ports are not in 1 to 65535");
  if (given === "udp") return { network: "udp", ports };
  if (given === "tcp") throw fail(`a whole TCP port is written :${first}, and a host of that name "tcp."`);
  if (given === "") return { network: "tcp", ports };
  const name = given.toLowerCase().replace(/\.$/, "").replace(/^\*(?=\.)/, "");
  if (!NAME.test(name.replace(/^\./, ""))) throw fail(`${JSON.stringify(given)} is neither a name nor *.zone`);
  return { network: "tcp", ports, name };
}
