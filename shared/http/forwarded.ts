// The Forwarded field (RFC 7239): for whom a proxy asks. It knows its syntax, and not who may be believed.
import { isIPv4, isIPv6 } from "node:net";
import { HeadError } from "./head.ts";

/** Most characters of all Forwarded fields of a request, and most proxies that they may name. */
const MAX_LENGTH = 4_096;
const MAX_ELEMENTS = 32;

/** `parameter=value`, the value a token or a quoted string, and what follows it. Addresses are taken without quotes too. */
const PAIR = /[ \t]*(?:([!#$%&'*+.^_`|~0-9A-Za-z-]+)=(?:"((?:[^"\\]|\\.)*)"|([^\s",;=\\]+)))?[ \t]*(;|,|$)/y;

/**
 * The nodes of the `for` parameters, one for each proxy, the nearest last; `undefined` where one says nothing of it. Each field is read on its
 * own: what a client has sent cannot hide what a proxy has added in another one.
 * @throws {HeadError}
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

/** An address, and the port where it is told. */
export interface Node {
  /** Of IPv6 without brackets. */
  readonly host: string;
  readonly port?: number;
}

/** The address that a node is; `undefined` for `unknown`, for an obfuscated one, and for what is none. */
export function parseNode(text: string): Node | undefined {
  if (isIPv6(text) && !text.includes("%")) return { host: text };
  const [, v6, v4, port] = /^(?:\[([0-9a-fA-F:.]+)\]|([0-9.]+))(?::([0-9]{1,5}|_[A-Za-z0-9._-]+))?$/.exec(text) ?? [];
  const host = v6 !== undefined && isIPv6(v6) ? v6 : v4 !== undefined && isIPv4(v4) ? v4 : undefined;
  if (host === undefined) return undefined;
  const number = Number(port);
  return number >= 1 && number <= 65_535 ? { host, port: number } : { host };
}

/** The value of a Forwarded field for `client`, `host:port` or `[host]:port`, with the port or without. A zone means nothing elsewhere. */
export function formatForwarded(client: string): string {
  return `for="${client.replace(/%[^\]]*(?=\])/, "")}"`;
}
