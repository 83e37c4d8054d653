// The options of the load balancer.
import {
  adminOptions,
  auditOptions,
  authOptions,
  drainDelayOptions,
  drainOptions,
  frontOptions,
  handoverOptions,
  hostWhitelistOptions,
  logOptions,
  NOT_GIVEN,
  providerOptions,
  reloadOptions,
  socksOptions,
  threadOptions,
} from "../shared/config/common_options.ts";
import { clusterOptions } from "../shared/config/cluster_options.ts";
import { defineOptions, type ValuesOf } from "../shared/config/option.ts";
import { formatHostPort, splitHostPort } from "../shared/address/host_port.ts";
import { agentNameOptions } from "../shared/frontend/agent_names.ts";
import { trustedProxyOptions } from "../shared/frontend/client_address.ts";
import { forwardOptions } from "../shared/frontend/forwards/forwards.ts";
import { addressLimitOptions, clientLimitOptions } from "../shared/limits/options.ts";
import { storeServerOptions } from "../shared/store/options.ts";
import { acmeOptions } from "../shared/tls/acme/options.ts";
import { tracingOptions } from "../shared/tracing/options.ts";
import { operatorOptions } from "../shared/service/operators/options.ts";

const lbAcmeOptions = {
  ...acmeOptions,
  "acme.domain": {
    ...acmeOptions["acme.domain"],
    description:
      "Names of this lb for which it obtains a certificate by ACME (RFC 8555) and renews it, for clients, with http-proxy.tls.enable. Setting it " +
      "agrees to the authority's terms of service.",
  },
};

/** Limit on the ports of all records of `published`: each has a listener. */
const MAX_PUBLISHED_PORTS = 1_024;

function portProblem(port: number): string | undefined {
  return port >= 1 && port <= 65_535 ? undefined : `${port} is not 1 to 65535`;
}

/** Returns why ranges of ports are none, or `undefined`. */
function rangesProblem(records: readonly object[]): string | undefined {
  let ports = 0;
  for (const { listen, lastPort, port } of records as readonly PublishedRecord[]) {
    const first = splitHostPort(listen).port;
    const last = lastPort ?? first;
    if (lastPort !== undefined && first === 0) return `the record that listens on ${listen} has last-port, and no first one`;
    if (last < first) return `the record that listens on ${listen} has last-port=${last}, which is before it`;
    if ((port ?? first) + last - first > 65_535) return `the record that listens on ${listen} has ports of agents beyond 65535`;
    ports += last - first + 1;
  }
  return ports <= MAX_PUBLISHED_PORTS ? undefined : `the records have ${ports} ports; the limit is ${MAX_PUBLISHED_PORTS}`;
}

const positive = (ms: number) => ms > 0 ? undefined : "it must be more than zero";

export const lbOptions = defineOptions({
  "http-proxy.listen-address": { reload: "at once", kind: "address", default: ":3129", description: "TCP address that clients dial." },
  ...frontOptions,
  ...trustedProxyOptions,
  ...agentNameOptions,
  ...socksOptions,
  ...hostWhitelistOptions,
  ...forwardOptions,
  "published": {
    restart: "its listeners are opened at the start only",
    kind: "records",
    description: "Serve the forwards that agents publish at a port of the proxies; looked up in the store for each client.",
    keys: {
      "listen": { kind: "address", description: "Address for clients." },
      "network": {
        kind: "string",
        default: "tls",
        choices: ["tls", "tcp", "udp", "http", "https"],
        description:
          "How clients are routed: tls by server name, without decryption; http and https by host; tcp and udp to one agent, for a whole port.",
      },
      "last-port": {
        kind: "integer",
        optional: true,
        description: "Serve each port from that of listen to this one; by default that of listen alone.",
        check: portProblem,
      },
      "port": {
        kind: "integer",
        optional: true,
        description: "Port at which agents publish; by default that of listen. With last-port it is the first one.",
        check: portProblem,
      },
      "token-file": {
        kind: "file",
        description: "File with a client's token for all agents that publish (auth jwt token --agents), read for each connection.",
      },
    },
    check: rangesProblem,
  },
  "http-connector.connect-timeout": {
    reload: "new tunnels",
    kind: "duration",
    default: "5s",
    description: "Timeout for connecting to a proxy.",
    check: positive,
  },
  "http-connector.response-timeout": {
    reload: "new tunnels",
    kind: "duration",
    default: "15s",
    description: "Timeout for the proxy's response, once connected; set it longer than the proxy's --agent-server.agent.dial-timeout.",
    check: positive,
  },
  "http-connector.tls.enable": {
    reload: "new tunnels",
    guards: NOT_GIVEN,
    kind: "boolean",
    default: "false",
    description: "Connect to proxies over TLS.",
  },
  "http-connector.tls.insecure-skip-verify": {
    reload: "new tunnels",
    kind: "boolean",
    default: "false",
    description: "Accept any certificate of a proxy.",
  },
  "http-connector.tls.use-system-pool": {
    reload: "new tunnels",
    kind: "boolean",
    default: "false",
    description: "Trust the system's authorities as well as those of root-ca.",
  },
  "http-connector.tls.refresh": {
    reload: "at once",
    kind: "duration",
    default: "0s",
    description: "Interval at which these files are checked for changes and reloaded; 0s: every 5 s.",
  },
  "http-connector.tls.file.root-ca": {
    reload: "new tunnels",
    guards: NOT_GIVEN,
    kind: "file",
    description: "Authorities to trust, PEM; by default the system's.",
  },
  "http-connector.tls.file.key": { reload: "new tunnels", kind: "file", description: "Private key of lb's certificate for proxies, PEM." },
  "http-connector.tls.file.cert": {
    reload: "new tunnels",
    kind: "file",
    description: "The certificate chain that lb shows to proxies, PEM.",
  },
  ...authOptions,
  ...providerOptions,
  "store.type": {
    reload: "at once",
    kind: "string",
    default: "memcached",
    choices: ["memcached", "redis"],
    description: "Store in which proxies publish their agents.",
  },
  ...storeServerOptions,
  "state-dir": {
    restart: "its files are in use while the service runs",
    kind: "file",
    description: "Directory that keeps accounts and certificates of acme.*; by default the system's or the user's state directory.",
  },
  ...lbAcmeOptions,
  ...clientLimitOptions,
  ...addressLimitOptions,
  ...drainDelayOptions,
  "drain.refuse-clients": {
    reload: "at once",
    kind: "boolean",
    default: "false",
    description:
      "On SIGTERM, after drain.delay: refuse new clients at once, so that a balancer without readiness checks uses another lb. Otherwise they " +
      "are served until no client is left or drain.timeout is over.",
  },
  ...drainOptions,
  ...handoverOptions,
  ...reloadOptions,
  ...adminOptions,
  ...operatorOptions,
  ...tracingOptions,
  ...clusterOptions,
  ...auditOptions,
  ...threadOptions,
  ...logOptions,
});

/** As on the command line: `--http-proxy.listen-address` is `httpProxy.listenAddress`; durations in milliseconds. */
export type LoadBalancerOptions = ValuesOf<typeof lbOptions>;

/** One record of the option `published`. */
export type PublishedRecord = LoadBalancerOptions["published"][number];

/** The ports of a record: where lb listens, and which one of the agents is served there. */
export function publishedPorts({ listen, lastPort, port }: PublishedRecord): { readonly listen: string; readonly port: number }[] {
  const { host, port: first } = splitHostPort(listen);
  return Array.from({ length: (lastPort ?? first) - first + 1 }, (_, i) => ({
    listen: formatHostPort({ host, port: first + i }),
    port: (port ?? first) + i,
  }));
}
