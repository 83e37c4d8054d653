// `host:port` in options: the one parser for listeners, connections and configuration checks.
import { isIPv4, isIPv6 } from "node:net";
import { domainToASCII } from "node:url";
import { isAddress } from "./canonical.ts";

export interface HostPort {
  /** A name or an address; IPv6 without brackets, with its zone. Empty for `:port`. */
  readonly host: string;
  /** 0 to 65535. */
  readonly port: number;
}

/**
 * Parses `host:port`, `[IPv6]:port` or `:port`. The port is required unless `defaultPort` is given.
 * @throws {RangeError} saying why the text is invalid and what to write instead
 */
export function splitHostPort(text: string, defaultPort?: number): HostPort {
  const quoted = quoteAddress(text);
  const match = /^(?:\[([^\]]*)\]|([^:[\]]*))(?::([0-9]{1,5}))?$/.exec(text);
  const [, bracketed, plain = "", digits] = match ?? [];
  if (!match || (digits === undefined && (defaultPort === undefined || text === ""))) {
    throw new RangeError(`${quoted} is not host:port, [host]:port or :port${advise(text)}`);
  }
  const port = Number(digits ?? defaultPort);
  if (port > 65_535) throw new RangeError(`${quoted} has a port above 65535`);
  if (bracketed !== undefined && !isBracketed(bracketed)) {
    throw new RangeError(`${quoted} has no valid IPv6 address in its brackets`);
  }
  if (plain !== "" && !isHost(plain)) throw new RangeError(`${quoted} has an invalid host${advise(text)}`);
  return { host: bracketed ?? plain, port };
}

/** Returns why `text` cannot be connected to, or `undefined` if it can. */
export function checkRemote(text: string, defaultPort?: number): string | undefined {
  try {
    const { host, port } = splitHostPort(text, defaultPort);
    return host === "" || port === 0 ? `${quoteAddress(text)} has no host or no port to connect to` : undefined;
  } catch (error) {
    if (!(error instanceof RangeError)) throw error;
    return error.message;
  }
}

/** Whether `text`, `host:port`, has the address that stands for every address of a machine: nothing can connect to it. */
export function isWildcard(text: string): boolean {
  return /^(?:0\.0\.0\.0|\[[0:]+\]):/.test(text);
}

/** Whether only this machine can connect to `address`, the bound `host:port` of a listener. */
export function isLoopback(address: string): boolean {
  return /^(127\.[0-9.]+|\[::1\]|\[::ffff:127\.[0-9.]+\]):[0-9]+$/.test(address);
}

/** Whether the listener has every address of the machine, which leaves open how others reach it. */
export function isEvery(listen: string): boolean {
  return listen.startsWith(":") || isWildcard(listen);
}

/** The address at which this machine reaches a listener. */
export function reachedHere(listen: string): string {
  const { host, port } = splitHostPort(listen);
  const isIPv6 = host.includes(":");
  return isEvery(listen) || isLoopback(listen) ? formatHostPort({ host: isIPv6 && host !== "::" ? host : "127.0.0.1", port }) : listen;
}

/** Quotes text that should be an address. If it is a URL with a password, that is masked. */
export function quoteAddress(text: string): string {
  return JSON.stringify(text.replace(/([^/@:]*):[^/@]*@/, "$1:***@"));
}

/** The inverse of {@link splitHostPort}. */
export function formatHostPort({ host, port }: HostPort): string {
  return host.includes(":") ? `[${host}]:${port}` : `${host}:${port}`;
}

/** Whether the text is an IPv6 address with an optional zone (RFC 4007 §11). */
function isBracketed(text: string): boolean {
  const [, address = "", zone] = /^([^%]*)(?:%(.*))?$/.exec(text) ?? [];
  return isIPv6(address) && (zone === undefined || /^[0-9A-Za-z._~-]+$/.test(zone));
}

/** Whether the text is a name valid in DNS or a hosts file, or an IPv4 address. */
function isHost(text: string): boolean {
  // neither a name nor in the usual notation: 0x7f000001
  if (/^[0-9.]+$/.test(text) || isAddress(text)) return isIPv4(text);
  const labels = text.replace(/\.$/, "").split(".");
  return text.length <= 254 && labels.every((label) => /^[0-9A-Za-z_](?:[0-9A-Za-z_-]{0,61}[0-9A-Za-z_])?$/.test(label));
}

function advise(text: string): string {
  if (text !== text.trim()) return "; it begins or ends with a space";
  if (/^[0-9]{1,5}$/.test(text)) return `; write :${text}`;
  const [, rest] = /^[a-z][a-z0-9+.-]*:\/\/(?:[^/@]*@)?([^/?#]*)/i.exec(text) ?? [];
  if (rest) return `; write ${rest} alone`;
  const [, host] = /^[^@/]*@([^/]+)/.exec(text) ?? [];
  if (host) return `; write ${host} without a user`;
  if (/^[^/]+\//.test(text)) return "; an address has no path";
  if (text.split(":").length > 2 && !text.includes("[")) return "; write an IPv6 address in brackets before its port";
  // deno-lint-ignore no-control-regex -- ASCII
  const ascii = /[^\x00-\x7f]/.test(text) ? domainToASCII(text.replace(/:[0-9]*$/, "")) : "";
  if (ascii !== "") return `; write ${ascii}${/:[0-9]*$/.exec(text)?.[0] ?? ""}`;
  if (text !== "" && !text.includes(":")) return "; its port is missing";
  return isAddress(text.replace(/:.*/, "")) ? "; an IPv4 address has four decimal numbers" : "";
}
