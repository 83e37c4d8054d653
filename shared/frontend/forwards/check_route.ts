// What `--check-route` prints: which forward a client with this URL would use, and why. Opens nothing.
import { isAddress } from "../../address/canonical.ts";
import { quoteAddress, splitHostPort } from "../../address/host_port.ts";
import { ConfigError } from "../../config/option.ts";
import { type Forward, type ForwardGroup, groupForwards, type Match } from "./forwards.ts";
import { type HostMatch, normalizePath, VirtualHosts } from "./virtual_hosts.ts";

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
    (network === "udp") === (client.network === "udp") && splitHostPort(listen).port === client.port
  );
  if (groups.length === 0) return { text: `no forward listens on ${client.network} port ${client.port}\n`, isServed: false };
  const routes = groups.map((group) => group instanceof VirtualHosts ? routeOfRequest(group, client) : routeOf(group, client));
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

function describe({ forward, pattern }: Match, isByName: boolean): string {
  const why = pattern === undefined ? isByName ? "no sni fits, and this record has none" : "the only record" : `sni=${pattern}`;
  const { proxyProtocol } = forward;
  return `${why}: ${describeForward(forward, proxyProtocol === "none" ? "" : `, with a PROXY header (${proxyProtocol})`)}`;
}

function describeForward({ agent, to, allow, auth, clientCaFile }: Forward, header = ""): string {
  const who = allow.length === 0 ? "everyone" : allow.join(", ");
  const needsCertificate = auth === "mtls" || clientCaFile !== undefined;
  const secret = [...auth === "token" ? [" with a token"] : [], ...needsCertificate ? [" with a certificate"] : []].join(" and");
  return `to ${to} as agent ${agent}${header}; allowed: ${who}${secret}`;
}

function routeOfRequest(hosts: VirtualHosts, { scheme, host, path }: Client): RouteReport {
  const { listen, network, isByPath } = hosts;
  const at = (text: string, isServed = false) => ({ text: `${listen}: ${text}`, isServed });
  if (scheme !== network) return at(`it has only ${network}`);
  const normalized = normalizePath(path);
  if (normalized === undefined && isByPath) return at("the path has dot segments; the client gets 400");
  const match = hosts.match(host, normalized ?? path);
  if (match === undefined) return at(`no forward for ${host}${path}; the client gets 404`);
  return at(`${whyOf(match, hosts)}: ${describeForward(match.forward)}`, true);
}

function whyOf({ host, path }: HostMatch, { forwards }: VirtualHosts): string {
  const pairs = [...host === undefined ? [] : [`host=${host}`], ...path === undefined ? [] : [`path=${path}`]];
  if (pairs.length > 0) return pairs.join(",");
  return forwards.length === 1 ? "the only record" : "no other record fits, and this one has no host and no path";
}

/** A client, as its URL describes it. */
interface Client {
  readonly network: "tcp" | "udp";
  readonly port: number;
  readonly isTls: boolean;
  /** Missing without TLS, and for an address. */
  readonly serverName?: string;
  /** `http` or `https` if the client speaks HTTP; otherwise another scheme. */
  readonly scheme: string;
  readonly host: string;
  readonly path: string;
}

function parseUrl(text: string): Client {
  const fail = (why: string) =>
    new ConfigError(`Cannot check the route ${quoteAddress(text)}: ${why}; write https://name:port or tcp://name:port`);
  const [, scheme = "", authority = "", path = ""] = /^([a-z]+:)\/\/(?:[^@/]*@)?([^/?#]*)([^?#]*)/i.exec(text) ?? [];
  const known = SCHEMES[scheme.toLowerCase()];
  if (!known) throw fail("it does not begin with https://, http://, tls://, tcp:// or udp://");
  const { isTls, network } = known;
  try {
    const { host, port } = splitHostPort(authority, known.port);
    const serverName = isTls && host !== "" && !isAddress(host) ? host : undefined;
    return { network, port, isTls, serverName, scheme: scheme.toLowerCase().replace(":", ""), host, path: path || "/" };
  } catch (error) {
    throw error instanceof RangeError ? fail(error.message) : error;
  }
}
