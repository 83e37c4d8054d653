// The outbound proxy through which an agent leaves its network, from its option or from the environment. Opens no connection.
import { Buffer } from "node:buffer";
import { isDeepStrictEqual } from "node:util";
import { createAllowList } from "../shared/address/allow_list.ts";
import { isAddress } from "../shared/address/canonical.ts";
import { checkRemote, formatHostPort, type HostPort, isWildcard } from "../shared/address/host_port.ts";
import { ConfigError } from "../shared/config/option.ts";
import { describeFileError, readText } from "../shared/files/read.ts";
import { NetError } from "../shared/net/errors.ts";
import { printable } from "../shared/net/printable.ts";
import type { OutboundProxy } from "../shared/net/session.ts";
import type { AgentOptions } from "./options.ts";

/** Environment variables by name. */
export type Environment = Readonly<Record<string, string | undefined>>;

/** A server to connect to. */
export interface Server extends HostPort {
  /** Its name, if `host` is one of the name's addresses. */
  readonly serverName: string;
}

/** Decides for each server. */
export interface OutboundRoute {
  /** The proxy for TCP connections to `server`; `undefined` for a direct connection. */
  proxyFor(server: Server): OutboundProxy | undefined;
  /** File that the URL was read from. */
  readonly file?: string;
}

const FILE = "file:";
const NONE = "none";
/** Limit on the size of a file with a URL, in bytes. */
const MAX_FILE = 64 * 1024;
/** No outbound proxy for any server. */
export const DIRECT: OutboundRoute = { proxyFor: () => undefined };

/** Default ports, by scheme. Names are resolved by the proxy with both schemes of SOCKS. */
const SCHEMES: Readonly<Record<string, Pick<OutboundProxy, "protocol" | "port">>> = {
  "http:": { protocol: "http", port: 80 },
  "socks5:": { protocol: "socks5", port: 1_080 },
  "socks5h:": { protocol: "socks5", port: 1_080 },
};

/** Servers that are never behind a proxy of the environment. */
const LOOPBACK = ["localhost", "127.0.0.0/8", "::1"];

/** Returns why the value of `--agent-client.proxy` is invalid, or `undefined`. It never quotes a password. */
export function checkOutboundProxy(text: string): string | undefined {
  if (text === NONE) return undefined;
  if (text.startsWith(FILE)) {
    const isUrl = text.includes("://") || text.includes("@");
    return isUrl ? "file: is followed by a URL; write the URL alone, or the name of its file" : undefined;
  }
  const parsed = parseProxy(text);
  return typeof parsed === "string" ? parsed : undefined;
}

/**
 * Reads which outbound proxy to use: the option, or else `HTTPS_PROXY`, `ALL_PROXY` and `NO_PROXY`, also in lower case. QUIC uses none.
 * Error messages contain no password.
 * @throws {ConfigError} for an invalid URL, and for an unreadable file
 */
export async function readOutboundRoute(
  { proxy, transport }: Pick<AgentOptions["agentClient"], "proxy" | "transport">,
  environment: Environment,
): Promise<OutboundRoute> {
  if (proxy === NONE) return DIRECT;
  if (transport === "quic") {
    if (proxy === undefined) return DIRECT;
    throw new ConfigError("Cannot use --agent-client.proxy: --agent-client.transport=quic connects without it; use auto or tls");
  }
  if (proxy === undefined) return routeOfEnvironment(environment);
  const file = proxy.startsWith(FILE) ? proxy.slice(FILE.length) : undefined;
  const text = file === undefined ? proxy : await readUrl(file);
  const parsed = parseProxy(text);
  if (typeof parsed !== "string") return { proxyFor: () => parsed, file };
  throw new ConfigError(`Cannot use --agent-client.proxy${file === undefined ? "" : ` ${FILE}${file}`}: ${parsed}`);
}

async function readUrl(file: string): Promise<string> {
  try {
    return (await readText(file, MAX_FILE)).trim();
  } catch (cause) {
    throw new ConfigError(`Cannot read --agent-client.proxy ${FILE}${file}: ${describeFileError(cause)}`, { cause });
  }
}

/** An empty variable counts as unset, and so does one of spaces. */
function routeOfEnvironment(environment: Environment): OutboundRoute {
  const name = ["HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"].find((name) => environment[name]?.trim());
  if (name === undefined) return DIRECT;
  const text = environment[name]!.trim();
  const proxy = parseProxy(text.includes("://") ? text : `http://${text}`);
  if (typeof proxy === "string") {
    throw new ConfigError(`Cannot use ${name}: ${proxy}; --agent-client.proxy takes precedence, and none connects without a proxy`);
  }
  const isDirect = createBypass(environment.NO_PROXY || environment.no_proxy || "");
  return { proxyFor: (server) => isDirect(server) ? undefined : proxy };
}

/**
 * Creates the rule of a list in `NO_PROXY`, separated by commas or spaces: `*`, addresses, networks, and names, which stand for all names below
 * them too, with or without a leading dot; each with an optional port. Other items are ignored.
 */
export function createBypass(noProxy: string): (server: Server) => boolean {
  const entries = noProxy.split(/[\s,]+/).filter((entry) => entry !== "");
  if (entries.includes("*")) return () => true;
  const lists = [...LOOPBACK, ...entries].flatMap((entry) => {
    const isNetwork = /[/[]/.test(entry) || isAddress(entry) || isAddress(entry.replace(/:[0-9]+$/, ""));
    try {
      return [createAllowList([isNetwork ? entry : `*.${entry.replace(/^\*?\.+/, "")}`])];
    } catch {
      return []; // as in other programs, which share the variable
    }
  });
  return ({ host, serverName, port }) => lists.some((list) => list.allows({ host, port }) || list.allows({ host: serverName, port }));
}

/** How long credentials that a proxy has rejected are not sent to it again, in milliseconds: many proxies lock an account after a few tries. */
const REJECTED_MS = 600_000;

/** Remembers the credentials that a proxy has rejected last. */
export class RejectedCredentials {
  readonly #now: () => number;
  #last?: { readonly proxy: OutboundProxy; readonly error: NetError; readonly at: number };

  /** @param now milliseconds from any fixed point. Default `performance.now` */
  constructor(now: () => number = () => performance.now()) {
    this.#now = now;
  }

  /**
   * Connects through `proxy`, unless it has rejected these credentials a short while ago.
   * @throws {NetError} as `connect`
   */
  async connect<T>(proxy: OutboundProxy | undefined, connect: () => Promise<T>): Promise<T> {
    const last = this.#last;
    if (proxy && last && isDeepStrictEqual(proxy, last.proxy) && this.#now() - last.at < REJECTED_MS) throw last.error;
    try {
      return await connect();
    } catch (error) {
      const isRejection = error instanceof NetError && error.code === "outbound-proxy-credentials";
      if (proxy && isRejection) this.#last = { proxy, error, at: this.#now() };
      throw error;
    }
  }
}

/** `host:port` of a proxy, for people. */
export function viaOf(proxy: OutboundProxy | undefined): string | undefined {
  return proxy && formatHostPort(proxy);
}

/** Parses a URL, or throws an error that describes the fault without the password. */
function parseProxy(given: string): OutboundProxy | string {
  const text = given.trim();
  const url = URL.parse(text);
  const shown = mask(text);
  // deno-lint-ignore no-control-regex -- URL.parse removes some of these, so that the password would be another
  if (/[\x00-\x20\x7f]/.test(text)) return `${shown} has a space or a control character; in a password, a space is %20`;
  if (!url || !/^[a-z0-9]+:\/\//i.test(text)) {
    return `${shown} is not a URL like http://user:password@host:port; in the user and the password, percent-encode all characters but ` +
      "letters and digits: / is %2F, # %23, ? %3F, @ %40, % %25";
  }
  const scheme = SCHEMES[url.protocol];
  if (!scheme) return `${shown} is neither an http: nor a socks5: URL; TLS to the proxy itself is not supported`;
  if (!/^\/?$/.test(url.pathname) || url.search !== "" || url.hash !== "") {
    return `${shown} has a path; in a password, / is %2F, # %23 and ? %3F`;
  }
  const host = url.hostname.replace(/^\[|\]$/g, "");
  const port = url.port === "" ? scheme.port : Number(url.port);
  const address = formatHostPort({ host, port });
  const problem = checkRemote(address);
  if (problem !== undefined) return problem;
  if (isWildcard(address)) return `${address} is the wildcard address; write 127.0.0.1 for this machine`;
  if (url.username === "" && url.password === "") return { ...scheme, host, port };
  try {
    const [username, password] = [decodeURIComponent(url.username), decodeURIComponent(url.password)];
    return checkCredentials(scheme.protocol, username, password) ?? { ...scheme, host, port, username, password };
  } catch {
    return "its user or password has a % that is not followed by two hexadecimal digits, or is not UTF-8; % itself is %25";
  }
}

/** RFC 7617 §2 and RFC 1929 §2. */
function checkCredentials(protocol: OutboundProxy["protocol"], username: string, password: string): string | undefined {
  // deno-lint-ignore no-control-regex -- what RFC 7617 excludes
  if (/[\x00-\x1f\x7f]/.test(username + password)) return "its user or password has a control character";
  if (protocol === "http") return username.includes(":") ? "its user has a colon" : undefined;
  const isTooLong = [username, password].some((text) => Buffer.byteLength(text) > 255);
  if (isTooLong) return "its user or password is longer than 255 bytes";
  return username === "" ? "it has a password without a user" : undefined;
}

/** Quotes a text without the part that may be a user and a password. */
function mask(text: string): string {
  if (text.includes("@")) return quote(text.replace(/^([a-z0-9+.-]*:\/\/)?.*@/is, "$1***@"));
  const hasScheme = URL.canParse(text) && text.includes("://");
  return hasScheme || !/:(?!\/\/|[0-9]+\/?$)/.test(text) ? quote(text) : "its value";
}

function quote(text: string): string {
  return JSON.stringify(printable(text));
}
