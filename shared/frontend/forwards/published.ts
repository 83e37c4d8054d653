// Forwards that agents ask for: the option of an agent, which has a part of the keys of the proxy's own, and the forward that a request becomes.
import { splitHostPort } from "../../address/host_port.ts";
import { checkValue, defineOptions, type ValuesOf } from "../../config/option.ts";
import { MAX_PUBLISHED, type PublishRequest } from "../../link/message.ts";
import { type Forward, forwardOptions, groupForwards } from "./forwards.ts";
import { normalizeName } from "./server_names.ts";

const { network, to, "to-protocol": toProtocol, sni, host, path, auth, allow, "proxy-protocol": proxyProtocol } =
  forwardOptions.forward.keys;

/** Bytes of all records in an agent's hello, which has a limit of its own. */
const MAX_BYTES = 4_096;

export const publishOptions = defineOptions({
  "agent-client.publish": {
    reload: "at once",
    kind: "records",
    description: "Ask the proxies to publish a destination at a port of theirs while the agent is connected; its token must allow that.",
    keys: {
      "listen": { kind: "address", description: "Port at the proxy, written :5432.", check: portProblem },
      network,
      to,
      "to-protocol": toProtocol,
      sni,
      host,
      path,
      auth,
      allow,
      "proxy-protocol": proxyProtocol,
    },
    check: recordsProblem,
  },
});

/** One record of the option. */
export type PublishRecord = ValuesOf<typeof publishOptions>["agentClient"]["publish"][number];

function recordsProblem(records: readonly object[]): string | undefined {
  const own = records as readonly PublishRecord[];
  if (own.length > MAX_PUBLISHED) return `there are ${own.length} records; the limit is ${MAX_PUBLISHED}`;
  const bytes = new TextEncoder().encode(JSON.stringify(own.map(publishRequest))).length;
  if (bytes > MAX_BYTES) return `the records have ${bytes} bytes as JSON; the limit is ${MAX_BYTES}`;
  try {
    groupForwards(own.map((record) => ({ ...record, agent: "" })));
    return undefined;
  } catch (error) {
    if (!(error instanceof RangeError)) throw error;
    return error.message;
  }
}

function portProblem(address: string): string | undefined {
  const { host, port } = splitHostPort(address);
  return host === "" && port > 0 ? undefined : `${JSON.stringify(address)} is not a port, written :5432`;
}

/** How a record is sent: without keys that have their default. */
export function publishRequest(record: PublishRecord): PublishRequest {
  return Object.fromEntries(
    Object.entries(record).filter(([key, value]) => Array.isArray(value) ? value.length > 0 : value !== DEFAULTS[key]),
  );
}

const DEFAULTS: Readonly<Record<string, unknown>> = {
  network: network.default,
  toProtocol: toProtocol.default,
  auth: auth.default,
  proxyProtocol: proxyProtocol.default,
};

/**
 * The forward that an agent asks for, if it is valid.
 * @param request of its hello
 * @throws {ValueError}
 */
export function publishedForward(request: PublishRequest, agent: string): Forward {
  const [record] = checkValue(publishOptions["agent-client.publish"], [request]) as unknown as [PublishRecord];
  return { ...record, agent };
}

/** The network, port and names of a forward, as a token allows them. */
export function claimOf({ network, listen, sni, host }: Forward): [network: "tcp" | "udp", port: number, names: string[]] {
  return [network === "udp" ? "udp" : "tcp", splitHostPort(listen).port, [...sni, ...host].map(normalizeName)];
}
