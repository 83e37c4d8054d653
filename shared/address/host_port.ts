// `host:port` as options and configuration have it. One parser for what listens, what is connected to, and what only checks.
import { isIPv4, isIPv6 } from "node:net";
import { domainToASCII } from "node:url";

export interface HostPort {
  /** A name or an address; IPv6 without brackets, with its zone. Empty where none is named. */
  readonly host: string;
  /** 0 to 65535. */
  readonly port: number;
}

/**
 * Reads `host:port`, `[IPv6]:port` or `:port`; the port must be there unless `defaultPort` is.
 * @throws {RangeError} that says why the text is none of these, and what to write
 */
export function splitHostPort(text: string, defaultPort?: number): HostPort {
  const quoted = JSON.stringify(text);
  const match = /^(?:\[([^\]]*)\]|([^:[\]]*))(?::([0-9]{1,5}))?$/.exec(text);
  const [, bracketed, plain = "", digits] = match ?? [];
  if (!match || (digits === undefined && (defaultPort === undefined || text === ""))) {
    throw new RangeError(`${quoted} is not host:port, [host]:port or :port${advise(text)}`);
  }
  const port = Number(digits ?? defaultPort);
  if (port > 65_535) throw new RangeError(`${quoted} has a port above 65535`);
  if (bracketed !== undefined && !isBracketed(bracketed)) {
    throw new RangeError(`${quoted} has something else than an IPv6 address in its brackets`);
  }
  if (plain !== "" && !isHost(plain)) throw new RangeError(`${quoted} has a host that is neither a name nor an address${advise(text)}`);
  return { host: bracketed ?? plain, port };
}

/** Why nothing can be connected to at `text`; `undefined` where something can. */
export function checkRemote(text: string, defaultPort?: number): string | undefined {
  try {
    const { host, port } = splitHostPort(text, defaultPort);
    return host === "" || port === 0 ? `${JSON.stringify(text)} lacks a host or a port to connect to` : undefined;
  } catch (error) {
    if (!(error instanceof RangeError)) throw error;
    return error.message;
  }
}

/** The text that {@link splitHostPort} reads. */
export function formatHostPort({ host, port }: HostPort): string {
  return host.includes(":") ? `[${host}]:${port}` : `${host}:${port}`;
}

/** An IPv6 address, with a zone or without (RFC 4007 §11). */
function isBracketed(text: string): boolean {
  const [, address = "", zone] = /^([^%]*)(?:%(.*))?$/.exec(text) ?? [];
  return isIPv6(address) && (zone === undefined || /^[0-9A-Za-z._~-]+$/.test(zone));
}

/** Letters, digits, hyphens, underscores and dots, as DNS and hosts files have them. */
function isHost(text: string): boolean {
  if (/^[0-9.]+$/.test(text)) return isIPv4(text);
  const labels = text.replace(/\.$/, "").split(".");
  return text.length <= 254 && labels.every((label) => /^[0-9A-Za-z_](?:[0-9A-Za-z_-]{0,61}[0-9A-Za-z_])?$/.test(label));
}

function advise(text: string): string {
  if (text !== text.trim()) return "; there is a blank at its beginning or end";
  if (/^[0-9]{1,5}$/.test(text)) return `; write :${text}`;
  const [, rest] = /^[a-z][a-z0-9+.-]*:\/\/(?:[^/@]*@)?([^/?#]*)/i.exec(text) ?? [];
  if (rest) return `; write ${rest} alone`;
  const [, host] = /^[^@/]*@([^/]+)/.exec(text) ?? [];
  if (host) return `; write ${host} without a user`;
  if (/^[^/]+\//.test(text)) return "; an address has no path";
  if (text.split(":").length > 2 && !text.includes("[")) return "; an IPv6 address stands in brackets before its port";
  // deno-lint-ignore no-control-regex -- ASCII
  const ascii = /[^\x00-\x7f]/.test(text) ? domainToASCII(text.replace(/:[0-9]*$/, "")) : "";
  if (ascii !== "") return `; write ${ascii}${/:[0-9]*$/.exec(text)?.[0] ?? ""}`;
  return text !== "" && !text.includes(":") ? "; its port is missing" : "";
}
