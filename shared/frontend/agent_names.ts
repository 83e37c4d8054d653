// Destinations whose name carries the agent: with the suffix `.rhttp`, `db.site7.rhttp` is `db` as the agent `site7` resolves it.
import { type Authority, isRegisteredName } from "../address/authority.ts";
import { NOT_GIVEN } from "../config/common_options.ts";
import { defineOptions } from "../config/option.ts";
import { MalformedRequestError } from "../tunnel/errors.ts";

export const agentNameOptions = defineOptions({
  "http-proxy.agent-suffix": {
    reload: "new tunnels",
    cuts: true,
    guards: NOT_GIVEN,
    kind: "string",
    description:
      "Suffix, such as .rhttp, of destinations that name their agent: db.site7.rhttp is db as the agent site7 resolves it, and site7.rhttp is " +
      "the agent's own machine. By default none.",
    check: checkAgentSuffix,
  },
  "http-proxy.pac": {
    reload: "at once",
    kind: "boolean",
    default: "false",
    description:
      "Serve /proxy.pac on the clients' port, a proxy configuration for browsers: names with agent-suffix come here, others go their direct " +
      "way. Without agent-suffix all come here.",
  },
});

/** Longest suffix in characters: names have 253. */
const MAX_SUFFIX = 100;

/** Returns why names with the suffix `text` cannot carry agents, or `undefined`. */
export function checkAgentSuffix(text: string): string | undefined {
  if (!/^(?:\.[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?)+$/i.test(text) || /\.[0-9]+$/.test(text) || text.length > MAX_SUFFIX) {
    return `${JSON.stringify(text)} is not a dot and a name, as .rhttp is`;
  }
  if (/\.localhost$/i.test(text)) return `browsers send no name in ${text} to a proxy; choose another, such as .rhttp`;
  return undefined;
}

/** A destination behind the agent that its name carried. */
export interface NamedAgent {
  /** One label in lower case: an agent id with dots or upper-case letters has no name. */
  readonly agentId: string;
  /** As the agent gets it. */
  readonly destination: Authority;
}

/**
 * Splits a destination that ends with `suffix`: the label before it is the agent id, and what stands before that is the host as the agent
 * resolves it, or `localhost` for its own machine. `undefined` for any other destination, and without a suffix.
 * @throws {MalformedRequestError} if either is missing or no name
 */
export function splitAgentName({ host, port }: Authority, suffix: string | undefined): NamedAgent | undefined {
  if (suffix === undefined || host.includes(":")) return undefined; // the zone of an IPv6 address may end with anything
  const name = host.replace(/\.$/, "");
  if (!name.toLowerCase().endsWith(suffix.toLowerCase())) return undefined;
  const labels = name.slice(0, -suffix.length);
  const dot = labels.lastIndexOf(".");
  const agentId = labels.slice(dot + 1).toLowerCase();
  const inner = dot < 0 ? "localhost" : labels.slice(0, dot);
  if (!/^[0-9a-z_-]+$/.test(agentId) || !isRegisteredName(inner)) {
    throw new MalformedRequestError(`The target's host is not HOST.AGENT${suffix} or AGENT${suffix}`);
  }
  return { agentId, destination: { host: inner, port } };
}
