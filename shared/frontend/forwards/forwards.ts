// Forwards: destinations that are published at addresses of their own. Defines the option, and which forward a connection takes. Opens
// nothing.
import type { AllowList } from "../../address/allow_list.ts";
import { checkRemote } from "../../address/host_port.ts";
import { AuthenticationError, checkAgentId } from "../../auth/authenticator.ts";
import { checkNetworks } from "../../config/common_options.ts";
import { defineOptions, type ValuesOf } from "../../config/option.ts";
import { PROXY_HEADERS } from "./proxy_header.ts";
import { namePatternProblem, normalizeName, patternsOf } from "./server_names.ts";
import { allowListsOf, pathProblem, VirtualHosts } from "./virtual_hosts.ts";

/** A `check` for lists: `problem` returns why an item is invalid, or `undefined`. */
const eachItem = (problem: (item: string) => string | undefined) => (items: readonly string[]) =>
  items.map(problem).find((found) => found !== undefined);

export const forwardOptions = defineOptions({
  "forward": {
    reload: "new tunnels",
    cuts: true,
    kind: "records",
    description: "Publish a destination of an agent at an address of its own, for clients without proxy support.",
    keys: {
      "listen": { kind: "address", description: "Address for clients." },
      "network": {
        kind: "string",
        default: "tcp",
        choices: ["tcp", "udp", "http", "https"],
        description:
          "Protocol of clients: tcp; udp, for which the agent's allow-list needs a pattern with udp:; or http and https, whose requests are " +
          "forwarded separately by host and path. TLS of https ends here.",
      },
      "agent": { kind: "string", description: "The agent's id.", check: agentIdProblem },
      "to": { kind: "string", description: "Destination, host:port, as the agent reaches it.", check: (to) => checkRemote(to) },
      "to-protocol": {
        kind: "string",
        default: "http/1.1",
        choices: ["http/1.1", "h2c"],
        description:
          "Protocol of the destination: http/1.1; or h2c, HTTP/2 without TLS, as for servers of gRPC. WebSockets use HTTP/1.1 with both.",
      },
      "sni": {
        kind: "list",
        description:
          "TLS server names of its clients: name, or *.zone for all names below; records with different names can share listen, and one " +
          "without names takes all others. TLS is forwarded without decryption.",
        check: eachItem(namePatternProblem),
      },
      "host": {
        kind: "list",
        description: "Hosts of its requests: name, or *.zone for all names below; a record without hosts takes all others.",
        check: eachItem(namePatternProblem),
      },
      "path": {
        kind: "list",
        description:
          "Paths of its requests, such as /api with all paths below; the longest match counts; a record without paths takes all others of its hosts.",
        check: eachItem(pathProblem),
      },
      "auth": {
        kind: "string",
        default: "none",
        choices: ["none", "token", "mtls"],
        description:
          "Whether requests need credentials for the agent in Authorization, as clients of the proxy do (token; needs auth.type=jwt or " +
          "auth.clients), or a client certificate, whose subject the policy applies to (mtls; needs client-ca-file or that of http-proxy.tls).",
      },
      "allow": {
        kind: "list",
        description: "Addresses and networks of clients that may connect; all: everyone; by default everyone, with a warning.",
        check: checkNetworks({ words: true }),
      },
      "proxy-protocol": {
        kind: "string",
        default: "none",
        choices: PROXY_HEADERS,
        description: "Header of the PROXY protocol that is sent to the destination before the client's data: none, v1 or v2.",
      },
      "token-file": {
        kind: "file",
        optional: true,
        description: "File with a client's token for the agent, read for each connection; lb needs one with auth.type=jwt.",
      },
      "cert-file": {
        kind: "file",
        optional: true,
        description:
          "Certificate chain for https, PEM, for the hosts of this record. That of a record without host, or else the first one, is also used for " +
          "all other hosts with the same listen. By default that of http-proxy.tls.",
      },
      "key-file": { kind: "file", optional: true, description: "Private key of cert-file, PEM." },
      "acme": {
        kind: "boolean",
        optional: true,
        description:
          "Obtain a certificate for each of the hosts by ACME, with the options acme.*, for https; *.zone needs acme.dns-command.",
      },
      "client-ca-file": {
        kind: "file",
        optional: true,
        description: "Require client certificates of these authorities for the same hosts, PEM; needs cert-file.",
      },
    },
    check: (forwards) => {
      try {
        groupForwards(forwards as unknown as readonly Forward[]);
        return undefined;
      } catch (error) {
        if (!(error instanceof RangeError)) throw error;
        return error.message;
      }
    },
  },
});

/** One record of the option. */
export type Forward = ValuesOf<typeof forwardOptions>["forward"][number];

/** The hosts that get certificates by ACME. */
export function acmeHosts(forwards: readonly Forward[]): string[] {
  return [...new Set(forwards.filter(({ acme }) => acme).flatMap(({ host }) => host.map(normalizeName)))];
}

/** Which forward takes a connection, and why. */
export interface Match {
  readonly forward: Forward;
  /** The pattern of its `sni` that fits; `undefined` for the record without one. */
  readonly pattern?: string;
}

/** The forwards of connections, or of UDP peers, that share a listener. */
export class ForwardGroup {
  /** By pattern, normalized. */
  readonly #byName = new Map<string, Match>();
  #default?: Match;
  /** Who may use each forward. */
  readonly allowed: ReadonlyMap<Forward, AllowList>;

  /** @throws {RangeError} if two of `forwards` take the same connections */
  constructor(readonly listen: string, readonly network: "tcp" | "udp", readonly forwards: readonly Forward[]) {
    for (const forward of forwards) {
      if (forward.sni.length === 0) {
        if (this.#default) throw new RangeError(`two records without sni listen on ${listen}`);
        this.#default = { forward };
      }
      for (const pattern of forward.sni) {
        const key = normalizeName(pattern);
        if (this.#byName.has(key)) throw new RangeError(`two records that listen on ${listen} have sni=${key}`);
        this.#byName.set(key, { forward, pattern });
      }
    }
    this.allowed = allowListsOf(forwards);
  }

  /** Whether it depends on the server name. */
  get isByName(): boolean {
    return this.#byName.size > 0;
  }

  /**
   * The forward for a connection: an exact name precedes the zone with most labels, and that the record without `sni`.
   * @param serverName of the ClientHello, if it has one
   */
  match(serverName?: string): Match | undefined {
    if (serverName === undefined || !this.isByName) return this.#default;
    const pattern = patternsOf(serverName).find((pattern) => this.#byName.has(pattern));
    return pattern === undefined ? this.#default : this.#byName.get(pattern);
  }
}

/**
 * The forwards by listener, in the order of the first record of each.
 * @throws {RangeError} as the constructors, and for records that do not fit together
 */
export function groupForwards(forwards: readonly Forward[]): (ForwardGroup | VirtualHosts)[] {
  const groups = new Map<string, Forward[]>();
  for (const forward of forwards) {
    checkKeys(forward);
    const key = `${forward.network === "udp" ? "udp" : "tcp"} ${forward.listen}`;
    const group = groups.get(key);
    if (group) group.push(forward);
    else groups.set(key, [forward]);
  }
  return [...groups.values()].map((sharing) => {
    const [{ listen, network }] = sharing as [Forward];
    const other = sharing.find((forward) => forward.network !== network);
    if (other) throw new RangeError(`two records that listen on ${listen} have network=${network} and network=${other.network}`);
    return network === "http" || network === "https"
      ? new VirtualHosts(listen, network, sharing)
      : new ForwardGroup(listen, network, sharing);
  });
}

/** The networks for which a key has a meaning. */
const NETWORKS_OF: readonly (readonly [key: string, networks: readonly Forward["network"][], isSet: (forward: Forward) => boolean])[] = [
  ["sni", ["tcp"], ({ sni }) => sni.length > 0],
  ["proxy-protocol", ["tcp"], ({ proxyProtocol }) => proxyProtocol !== "none"],
  ["host", ["http", "https"], ({ host }) => host.length > 0],
  ["path", ["http", "https"], ({ path }) => path.length > 0],
  ["to-protocol", ["http", "https"], ({ toProtocol }) => toProtocol !== "http/1.1"],
  ["auth", ["http", "https"], ({ auth }) => auth !== "none"],
  ["auth=mtls", ["https"], ({ auth }) => auth === "mtls"],
  ["cert-file", ["https"], ({ certFile }) => certFile !== undefined],
  ["acme", ["https"], ({ acme }) => acme === true],
  ["key-file", ["https"], ({ keyFile }) => keyFile !== undefined],
  ["client-ca-file", ["https"], ({ clientCaFile }) => clientCaFile !== undefined],
];

/** @throws {RangeError} for keys that exclude each other */
function checkKeys(forward: Forward): void {
  const { listen, network, auth, tokenFile } = forward;
  const unfit = NETWORKS_OF.find(([, networks, isSet]) => isSet(forward) && !networks.includes(network));
  if (unfit) throw new RangeError(`the record that listens on ${listen} has ${unfit[0]} and network=${network}`);
  if (forward.acme && forward.certFile !== undefined) throw new RangeError(`the record that listens on ${listen} has acme and cert-file`);
  if (forward.acme && forward.host.length === 0) throw new RangeError(`the record that listens on ${listen} has acme and no host`);
  if (auth === "token" && tokenFile !== undefined) {
    throw new RangeError(`the record that listens on ${listen} has token-file and auth=token: clients show tokens of their own`);
  }
}

function agentIdProblem(id: string): string | undefined {
  try {
    checkAgentId(id);
    return undefined;
  } catch (error) {
    if (!(error instanceof AuthenticationError)) throw error;
    return error.message.replace("Cannot use the agent id: ", "");
  }
}
