// Names of servers in forwards: exact ones and zones, and the order in which patterns fit a name.
import { domainToASCII } from "node:url";
import { isAddress } from "../../address/canonical.ts";

/** Names are the same in upper and lower case, in Unicode and Punycode, and with a dot at the end (RFC 4343, RFC 5891). */
export function normalizeName(name: string): string {
  const [, star = "", rest = ""] = /^(\*\.)?(.*?)\.?$/.exec(name) ?? [];
  return `${star}${domainToASCII(rest) || rest.toLowerCase()}`;
}

/** The patterns that fit a name, normalized: the name itself, then `*.zone` for each zone above it, the longest one first. */
export function patternsOf(name: string): string[] {
  const normalized = normalizeName(name);
  const patterns = [normalized];
  for (let dot = normalized.indexOf("."); dot >= 0; dot = normalized.indexOf(".", dot + 1)) patterns.push(`*${normalized.slice(dot)}`);
  return patterns;
}

/** Returns why a pattern of a name is none, or `undefined`. */
export function namePatternProblem(pattern: string): string | undefined {
  const name = normalizeName(pattern).replace(/^\*\./, "");
  if (isAddress(name)) return `${JSON.stringify(pattern)} is an address; a record without names takes clients that use one`;
  if (/^[0-9a-z_](?:[0-9a-z_.-]{0,251}[0-9a-z_])?$/.test(name) && !name.includes("..")) return undefined;
  return `${JSON.stringify(pattern)} is neither a name nor *.zone`;
}
