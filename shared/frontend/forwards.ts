// Forwards: destinations that are published at addresses of their own. Defines the option, and which forward a connection takes. Opens
// nothing.
import { domainToASCII } from "node:url";
import { isAddress } from "../address/canonical.ts";
import { checkRemote } from "../address/host_port.ts";
import { AuthenticationError, checkAgentId } from "../auth/authenticator.ts";
import { checkNetworks } from "../config/common_options.ts";
import { defineOptions, type ValuesOf } from "../config/option.ts";
import { PROXY_HEADERS } from "./proxy_header.ts";

export const forwardOptions = defineOptions({
  "forward": {
    kind: "records",
    description: "Publish a destination of an agent at an address of its own, for clients that use no proxy.",
    keys: {
      "listen": { kind: "address", description: "Address for clients." },
      "network": {
        kind: "string",
        default: "tcp",
        choices: ["tcp", "udp"],
        description: "Whether clients use tcp or udp; the agent's allow-list needs a pattern with udp: for the latter.",
      },
      "agent": { kind: "string", description: "The agent's id.", check: agentIdProblem },
      "to": { kind: "string", description: "Destination, host:port, as the agent reaches it.", check: (to) => checkRemote(to) },
      "sni": {
        kind: "list",
        description:
          "TLS server names that it is for, name or *.zone for all names below; records with different names can share listen, " +
          "and one without takes the rest. TLS passes unopened.",
        check: (patterns) => patterns.map(namePatternProblem).find((problem) => problem !== undefined),
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
        description: "Header of the PROXY protocol that the destination gets in front of the client's bytes: none, v1 or v2.",
      },
      "token-file": {
        kind: "file",
        optional: true,
        description: "File with a client's token for the agent, read for each connection; lb needs one with auth.type=jwt.",
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

/** Which forward takes a connection, and why. */
export interface Match {
  readonly forward: Forward;
  /** The pattern of its `sni` that fits; `undefined` for the record without one. */
  readonly pattern?: string;
}

/** The forwards that share a listener. */
export class ForwardGroup {
  /** By pattern, normalized. */
  readonly #byName = new Map<string, Match>();
  #default?: Match;

  /** @throws {RangeError} if two of `forwards` take the same connections */
  constructor(readonly listen: string, readonly network: Forward["network"], readonly forwards: readonly Forward[]) {
    for (const forward of forwards) {
      const ofTcp = forward.sni.length > 0 ? "sni" : forward.proxyProtocol !== "none" ? "proxy-protocol" : undefined;
      if (network === "udp" && ofTcp) throw new RangeError(`the record that listens on ${listen} has ${ofTcp} and network=udp`);
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
    const name = normalizeName(serverName);
    let found = this.#byName.get(name);
    for (let dot = name.indexOf("."); found === undefined && dot >= 0; dot = name.indexOf(".", dot + 1)) {
      found = this.#byName.get(`*${name.slice(dot)}`);
    }
    return found ?? this.#default;
  }
}

/**
 * The forwards by listener, in the order of the first record of each.
 * @throws {RangeError} as {@link ForwardGroup}
 */
export function groupForwards(forwards: readonly Forward[]): ForwardGroup[] {
  const groups = new Map<string, Forward[]>();
  for (const forward of forwards) {
    const key = `${forward.network} ${forward.listen}`;
    const group = groups.get(key);
    if (group) group.push(forward);
    else groups.set(key, [forward]);
  }
  return [...groups.values()].map((sharing) => new ForwardGroup(sharing[0]!.listen, sharing[0]!.network, sharing));
}

/** Names are the same in upper and lower case, in Unicode and Punycode, and with a dot at the end (RFC 4343, RFC 5891). */
function normalizeName(name: string): string {
  const [, star = "", rest = ""] = /^(\*\.)?(.*?)\.?$/.exec(name) ?? [];
  return `${star}${domainToASCII(rest) || rest.toLowerCase()}`;
}

function namePatternProblem(pattern: string): string | undefined {
  const name = normalizeName(pattern).replace(/^\*\./, "");
  if (isAddress(name)) return `${JSON.stringify(pattern)} is an address; TLS clients name no server then: leave out sni`;
  if (/^[0-9a-z_](?:[0-9a-z_.-]{0,251}[0-9a-z_])?$/.test(name) && !name.includes("..")) return undefined;
  return `${JSON.stringify(pattern)} is neither a name nor *.zone`;
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
