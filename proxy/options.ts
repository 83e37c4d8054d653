// The options of the proxy.
import {
  adminOptions,
  agentProviderOptions,
  auditOptions,
  authOptions,
  CONGESTION_CONTROL,
  drainDelayOptions,
  drainOptions,
  frontOptions,
  handoverOptions,
  hostWhitelistOptions,
  KEEP_ALIVE,
  logOptions,
  NOT_GIVEN,
  policyOptions,
  providerOptions,
  reloadOptions,
  socksOptions,
  threadOptions,
} from "../shared/config/common_options.ts";
import { clusterOptions } from "../shared/config/cluster_options.ts";
import { checkListenAddress, defineOptions, ValueError, type ValuesOf } from "../shared/config/option.ts";
import { agentNameOptions } from "../shared/frontend/agent_names.ts";
import { trustedProxyOptions } from "../shared/frontend/client_address.ts";
import { forwardOptions } from "../shared/frontend/forwards/forwards.ts";
import { checkRemote, isWildcard } from "../shared/address/host_port.ts";
import { addressLimitOptions, agentLimitOptions, clientLimitOptions } from "../shared/limits/options.ts";
import { CONFLICT_RULES } from "./agents/conflicts.ts";
import { STORE_TTL, storeServerOptions } from "../shared/store/options.ts";
import { acmeOptions, publishedAcmeOptions } from "../shared/tls/acme/options.ts";
import { tracingOptions } from "../shared/tracing/options.ts";
import { operatorOptions } from "../shared/service/operators/options.ts";

/** The definitions of the proxy's options, by name. */
export const proxyOptions = defineOptions({
  "agent-server.listen-address": { reload: "at once", kind: "address", default: ":4242", description: "UDP address that agents dial." },
  "agent-server.tcp-listen-address": {
    reload: "at once",
    kind: "string",
    description:
      "TCP address that agents dial over TLS where UDP is blocked; by default listen-address; none: agents connect over QUIC only.",
    check: checkTcpListenAddress,
  },
  "agent-server.share-client-port": {
    reload: "new connections",
    kind: "boolean",
    default: "false",
    description: "Accept agents over TLS on http-proxy.listen-address too, by ALPN; needs --http-proxy.tls.enable.",
  },
  "agent-server.websocket-path": {
    reload: "at once",
    kind: "string",
    description: "Path, such as /reverse-http, at which http-proxy.listen-address accepts agents within WebSockets; by default none.",
    check: (path) => /^\/[!-"$->@-~]*$/.test(path) ? undefined : `${JSON.stringify(path)} is not a path that begins with /`,
  },
  "agent-server.public-address": {
    reload: "at once",
    kind: "list",
    description:
      "Addresses, host:port, at which agents reach the proxy, for invitations and advice; by default an address of this machine, which is a guess.",
    check: (addresses) => addresses.map(checkPublic).find((problem) => problem !== undefined),
  },
  "agent-server.tls.file.key": {
    reload: "new connections",
    kind: "file",
    description:
      "The server's private key, PEM; without key and certificate the proxy obtains them as acme.domain says, or makes its own and keeps them.",
  },
  "agent-server.tls.file.cert": { reload: "new connections", kind: "file", description: "The server's certificate chain, PEM." },
  "agent-server.tls.file.next-cert": {
    reload: "at once",
    kind: "file",
    description:
      "Certificate, PEM, that will replace cert: its public key's pin is sent to agents that trust the proxy by a pin, which store it.",
  },
  "agent-server.tls.file.client-ca": {
    reload: "new connections",
    guards: NOT_GIVEN,
    kind: "file",
    description: "Require certificates of these authorities from agents, PEM.",
  },
  "agent-server.tls.file.client-crl": {
    reload: "new connections",
    guards: NOT_GIVEN,
    kind: "file",
    description: "Reject certificates on these revocation lists, PEM; needs client-ca.",
  },
  "agent-server.tls.key-password": {
    reload: "new connections",
    kind: "string",
    secret: true,
    description: "Password of the private key, if it is encrypted.",
  },
  "agent-server.tls.refresh": {
    reload: "at once",
    kind: "duration",
    default: "0s",
    description: "Interval at which these files are checked for changes and reloaded; 0s: every 5 s.",
  },
  "agent-server.tls.agent-id-from": {
    reload: "at once",
    cuts: true,
    guards: NOT_GIVEN,
    kind: "string",
    default: "none",
    choices: ["none", "san", "cn"],
    description:
      "Name in an agent's certificate that must be its id: a subject alternative name (DNS, URI or e-mail), the common name, or none.",
  },
  "agent-server.congestion-control": CONGESTION_CONTROL,
  "agent-server.keep-alive": KEEP_ALIVE,
  "agent-server.agent.dial-timeout": {
    reload: "new tunnels",
    kind: "duration",
    default: "10s",
    description: "Timeout for opening a tunnel through agents.",
    check: (ms) => ms > 0 ? undefined : "it must be more than zero",
  },
  "agent-server.agent.multiple": {
    reload: "new connections",
    kind: "boolean",
    default: "false",
    description: "Let several agents share one id, and spread tunnels over them. Otherwise the newest replaces the others.",
  },
  "agent-server.agent.on-conflict": {
    reload: "new connections",
    kind: "string",
    default: "keep-last",
    choices: CONFLICT_RULES,
    description:
      "Which of two agents with one id stays when they have replaced each other three times: the one that came last or first, for as long as it " +
      "is connected, or neither (replace).",
  },
  "http-proxy.listen-address": { reload: "at once", kind: "address", default: ":3128", description: "TCP address that clients dial." },
  "http-proxy.public-address": {
    reload: "at once",
    kind: "string",
    description:
      "Address, host:port, at which clients reach the proxy or the lb before it, for invitations and advice; by default the host of agent-server.public-address.",
    check: checkPublic,
  },
  ...frontOptions,
  ...trustedProxyOptions,
  ...agentNameOptions,
  ...socksOptions,
  ...hostWhitelistOptions,
  ...forwardOptions,
  ...authOptions,
  ...providerOptions,
  ...agentProviderOptions,
  ...policyOptions,
  "store.type": {
    reload: "at once",
    kind: "string",
    default: "none",
    choices: ["none", "memcached", "redis"],
    description: "Store in which proxies publish their agents for lb.",
  },
  "store.http-proxy-address": {
    reload: "at once",
    kind: "address",
    description: "Address at which lb reaches this proxy; by default the listen address, with this host's name if that has none.",
    check: checkPublished,
  },
  "store.ttl": STORE_TTL,
  ...storeServerOptions,
  "state-dir": {
    restart: "its files are in use while the service runs",
    kind: "file",
    description:
      "Directory that keeps the proxy's own certificates across restarts; by default the system's or the user's state directory.",
  },
  ...acmeOptions,
  ...publishedAcmeOptions,
  ...clientLimitOptions,
  ...agentLimitOptions,
  ...addressLimitOptions,
  ...drainDelayOptions,
  ...drainOptions,
  ...handoverOptions,
  ...reloadOptions,
  ...adminOptions,
  ...operatorOptions,
  ...tracingOptions,
  ...clusterOptions,
  ...auditOptions,
  "workers": {
    restart: "the processes are started once",
    kind: "integer",
    default: "1",
    description:
      "Processes that serve at the same addresses, each with its own thread for new tunnels: one for every two processors at most. Limits hold " +
      "for all together, except bandwidth per client, which each has for itself. 1: this process alone. More need Linux and the executable.",
    check: (workers) => workers >= 1 && workers <= 64 ? undefined : `${workers} is not 1 to 64`,
  },
  ...threadOptions,
  ...logOptions,
});

/** Value of `agent-server.tcp-listen-address` without a listener. */
export const NO_LISTENER = "none";

function checkTcpListenAddress(text: string): string | undefined {
  if (text === NO_LISTENER) return undefined;
  try {
    checkListenAddress(text);
  } catch (error) {
    if (!(error instanceof ValueError)) throw error;
    return `${error.message}, and not ${NO_LISTENER}`;
  }
}

/** As on the command line: `--agent-server.listen-address` is `agentServer.listenAddress`; durations in milliseconds. */
export type ProxyOptions = ValuesOf<typeof proxyOptions>;

/** Returns why nothing can connect to `address`, or `undefined`. */
function checkPublic(address: string): string | undefined {
  return checkRemote(address) ?? (isWildcard(address) ? `${address} is the wildcard address, to which nothing can connect` : undefined);
}

/** Returns why lb cannot connect to `address`, or `undefined`. */
function checkPublished(address: string): string | undefined {
  return checkRemote(address) ??
    (isWildcard(address)
      ? `${address} is the wildcard address, to which lb cannot connect; write a name or address of this machine`
      : undefined);
}
