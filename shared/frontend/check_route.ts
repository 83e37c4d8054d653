// What `--check-route` prints: which forward a client with this URL would use, and why. Opens nothing.
import { isAddress } from "../address/canonical.ts";
import { quoteAddress, splitHostPort } from "../address/host_port.ts";
import { ConfigError } from "../config/option.ts";
import { type Forward, type ForwardGroup, groupForwards, type Match } from "./forwards.ts";

/** Default ports of schemes. Those with a server name use TLS. */
const SCHEMES: Readonly<Record<string, { readonly port?: number; readonly isTls: boolean; readonly network: "tcp" | "udp" }>> = {
  "http:": { port: 80, isTls: false, network: "tcp" },
  "https:": { port: 443, isTls: true, network: "tcp" },
  "tcp:": { isTls: false, network: "tcp" },
  "tls:": { isTls: true, network: "tcp" },
  "udp:": { isTls: false, network: "udp" },
};

export interface RouteReport {
  readonly text: string;
  /** Whether a forward takes the client. */
  readonly isServed: boolean;
}

/**
 * Describes the way of a client, a line for each listener on the URL's port.
 * @param url https://name:port, http://name:port, tls://name:port, tcp://name:port or udp://name:port; the first two have a default port
 * @throws {ConfigError} if it is none
 */
export function checkRoute(forwards: readonly Forward[], url: string): RouteReport {
  const client = parseUrl(url);
  const groups = groupForwards(forwards).filter(({ listen, network }) =>
    network === client.network && splitHostPort(listen).port === client.port
  );
  if (groups.length === 0) return { text: `no forward listens on ${client.network} port ${client.port}\n`, isServed: false };
  const routes = groups.map((group) => routeOf(group, client));
  return { text: routes.map(({ text }) => `${text}\n`).join(""), isServed: routes.some(({ isServed }) => isServed) };
}

/** The flag `--check-route` of proxy and lb. */
export const routeDiagnosis = {
  flag: "check-route",
  takesValue: true,
  description: "Print which forward takes clients of this URL, https://name:port or tcp://name:port, and exit: with 0 if one does, else 1.",
  run({ forward }: { readonly forward: readonly Forward[] }, { write }: { write(text: string): void }, url: string): Promise<boolean> {
    const { text, isServed } = checkRoute(forward, url);
    write(text);
    return Promise.resolve(isServed);
  },
};

function routeOf(group: ForwardGroup, { isTls, serverName }: Client): RouteReport {
  const { listen, isByName } = group;
  if (isByName && !isTls) return { text: `${listen}: it has only TLS; the client is reset`, isServed: false };
  const match = group.match(serverName);
  if (match) return { text: `${listen}: ${describe(match, isByName)}`, isServed: true };
  const asked = serverName === undefined ? "without a server name" : `for the server ${serverName}`;
  return { text: `${listen}: no forward ${asked}; the client gets the TLS alert unrecognized_name`, isServed: false };
}

function describe({ forward: { agent, to, allow, proxyProtocol }, pattern }: Match, isByName: boolean): string {
  const why = pattern === undefined ? isByName ? "no sni fits, and this record has none" : "the only record" : `sni=${pattern}`;
  const who = allow.length === 0 ? "everyone" : allow.join(", ");
  const header = proxyProtocol === "none" ? "" : `, with a PROXY header (${proxyProtocol})`;
  return `${why}: to ${to} as agent ${agent}${header}; allowed: ${who}`;
}

/** What is known of a client by its URL. */
interface Client {
  readonly network: "tcp" | "udp";
  readonly port: number;
  readonly isTls: boolean;
  /** Missing without TLS, and for an address. */
  readonly serverName?: string;
}

function parseUrl(text: string): Client {
  const fail = (why: string) =>
    new ConfigError(`Cannot check the route ${quoteAddress(text)}: ${why}; write https://name:port or tcp://name:port`);
  const [, scheme = "", authority = ""] = /^([a-z]+:)\/\/(?:[^@/]*@)?([^/?#]*)/i.exec(text) ?? [];
  const known = SCHEMES[scheme.toLowerCase()];
  if (!known) throw fail("it does not begin with https://, http://, tls://, tcp:// or udp://");
  const { isTls, network } = known;
  try {
    const { host, port } = splitHostPort(authority, known.port);
    return { network, port, isTls, serverName: isTls && host !== "" && !isAddress(host) ? host : undefined };
  } catch (error) {
    throw error instanceof RangeError ? fail(error.message) : error;
  }
}
