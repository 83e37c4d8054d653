// The destination of a tunnel. Knows no client protocol.
import { isIPv6 } from "node:net";
import { MalformedRequestError } from "../tunnel/errors.ts";

/** How a destination is reached. */
export type Network = "tcp" | "udp";

/** Host and port of a destination. */
export interface Authority {
  /** A name or an address; IPv6 without brackets. */
  readonly host: string;
  /** 1 to 65535. */
  readonly port: number;
}

/**
 * Parses the authority-form of a target (RFC 9112 §3.2.3), `host:port` or `[v6]:port`. The port is required unless `defaultPort` is given. If it is required, an IPv6 address may lack its
 * brackets, as many clients write it with CONNECT: the port follows the last colon.
 * @throws {MalformedRequestError}
 */
export function parseAuthority(text: string, defaultPort?: number): Authority {
  const colon = text.lastIndexOf(":");
  const bare = text.slice(0, Math.max(colon, 0));
  if (defaultPort === undefined && bare.includes(":") && isIPv6(bare.replace(/%.*/, ""))) {
    return parseAuthority(`[${bare}]${text.slice(colon)}`);
  }
  // an IPv6 address may have a zone, escaped (RFC 6874) or, more commonly, not
  const match = /^(?:\[([0-9A-Fa-f:.]+(?:%(?:25)?[0-9A-Za-z._~-]+)?)\]|([^\s:[\]@/?#\\]+))(?::([0-9]{1,5}))?$/.exec(text);
  if (!match) throw new MalformedRequestError("The target is not host:port");
  const host = match[1]?.replace(/%25(?=.)/, "%") ?? match[2]!; // but a zone may be the number 25
  if (match[1] !== undefined && !isIPv6(host.replace(/%.*/, ""))) throw new MalformedRequestError("The target is not host:port");
  if (match[2] !== undefined && !isRegisteredName(host)) throw new MalformedRequestError("The target's host is malformed");
  const port = match[3] === undefined ? defaultPort : Number(match[3]);
  if (port === undefined) throw new MalformedRequestError("The target has no port");
  if (port < 1 || port > 65_535) throw new MalformedRequestError("The target's port is not 1 to 65535");
  return { host, port };
}

/** Whether a name is valid in DNS or a hosts file: at most 253 letters, digits, hyphens, underscores and dots. */
export function isRegisteredName(host: string): boolean {
  return host.length <= 253 && /^[0-9A-Za-z_](?:[0-9A-Za-z_.-]*[0-9A-Za-z_.])?$/.test(host) && !host.includes("..");
}

/** Formats `host:port`, with IPv6 in brackets. Escapes a zone that begins with 25, which would be read as an escape. */
export function formatAuthority({ host, port }: Authority): string {
  return host.includes(":") ? `[${host.replace("%25", "%2525")}]:${port}` : `${host}:${port}`;
}

/** Formats a destination as allow-lists write it: `host:port`, and with UDP `udp:host:port`. */
export function formatDestination(destination: Authority, network: Network): string {
  return network === "udp" ? `udp:${formatAuthority(destination)}` : formatAuthority(destination);
}
