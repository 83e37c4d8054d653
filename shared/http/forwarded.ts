// Parses and writes the Forwarded field (RFC 7239). The caller decides which peers to trust.
import { isIPv4, isIPv6 } from "node:net";
import { HeadError } from "./head.ts";

/** Limits on the characters of all Forwarded fields of a request, and on their elements. */
const MAX_LENGTH = 4_096;
const MAX_ELEMENTS = 32;

/** `parameter=value` and its separator; the value is a token or a quoted string. Unquoted addresses are accepted too. */
const PAIR = /[ \t]*(?:([!#$%&'*+.^_`|~0-9A-Za-z-]+)=(?:"((?:[^"\\]|\\.)*)"|([^\s",;=\\]+)))?[ \t]*(;|,|$)/y;

/**
 * Returns the node of each element's `for` parameter, the nearest proxy's last; `undefined` for an element without one. Each field line is
 * parsed separately, so that a client's line cannot hide what a proxy has added in another.
 * @throws {HeadError} 400
 */
export function parseForwarded(lines: readonly string[]): (string | undefined)[] {
  const fail = () => new HeadError(400, "The Forwarded field is malformed");
  if (lines.reduce((sum, line) => sum + line.length, 0) > MAX_LENGTH) throw fail();
  const nodes: (string | undefined)[] = [];
  for (const line of lines) {
    PAIR.lastIndex = 0;
    let [node, isEmpty]: [string | undefined, boolean] = [undefined, true];
    for (let end = false; !end;) {
      const match = PAIR.exec(line);
      if (!match) throw fail();
      const [, name, quoted, token, separator] = match;
      if (name !== undefined) isEmpty = false;
      if (name?.toLowerCase() === "for") {
        if (node !== undefined) throw fail(); // RFC 7239 §4: no parameter twice
        node = quoted === undefined ? token : quoted.replace(/\\(.)/g, "$1");
      }
      end = separator === "";
      if (separator === ";") continue;
      if (!isEmpty) nodes.push(node);
      if (nodes.length > MAX_ELEMENTS) throw fail();
      [node, isEmpty] = [undefined, true];
    }
  }
  return nodes;
}

/** An address with an optional port. */
export interface Node {
  /** IPv6 without brackets. */
  readonly host: string;
  readonly port?: number;
}

/** Parses a node; `undefined` for `unknown`, an obfuscated identifier, or anything else. */
export function parseNode(text: string): Node | undefined {
  if (isIPv6(text) && !text.includes("%")) return { host: text };
  const [, v6, v4, port] = /^(?:\[([0-9a-fA-F:.]+)\]|([0-9.]+))(?::([0-9]{1,5}|_[A-Za-z0-9._-]+))?$/.exec(text) ?? [];
  const host = v6 !== undefined && isIPv6(v6) ? v6 : v4 !== undefined && isIPv4(v4) ? v4 : undefined;
  if (host === undefined) return undefined;
  const number = Number(port);
  return number >= 1 && number <= 65_535 ? { host, port: number } : { host };
}

/** The value of a Forwarded field for `client`: a host with an optional port, IPv6 in brackets. Drops a zone, which is local to this host. */
export function formatForwarded(client: string): string {
  return `for="${client.replace(/%[^\]]*(?=\])/, "")}"`;
}
