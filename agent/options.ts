// The agent's options.
import {
  adminOptions,
  agentProviderOptions,
  checkPatterns,
  checkPins,
  CONGESTION_CONTROL,
  drainOptions,
  handoverOptions,
  KEEP_ALIVE,
  LIST_WORDS,
  logOptions,
  NOT_GIVEN,
  providerOptions,
  reloadOptions,
  threadOptions,
} from "../shared/config/common_options.ts";
import { joinProblem } from "../shared/config/join.ts";
import { ConfigError, defineOptions, type ValuesOf } from "../shared/config/option.ts";
import { checkRemote, isWildcard } from "../shared/address/host_port.ts";
import { agentTunnelLimitOptions } from "../shared/limits/options.ts";
import { checkLabels } from "../shared/link/message.ts";
import { publishOptions } from "../shared/frontend/forwards/published.ts";
import { checkOutboundProxy } from "./outbound_proxy.ts";
import { parseWebSocketUrl } from "./transport/web_socket_url.ts";
import { tracingOptions } from "../shared/tracing/options.ts";
import { operatorOptions } from "../shared/service/operators/options.ts";

/** The definitions of the agent's options, by name. */
export const agentOptions = defineOptions({
  "join": {
    reload: "at once",
    kind: "string",
    secret: true,
    description:
      "String of reverse-http invite, which sets the proxy's address and pin, and the agent's credentials; or file:NAME for a file that has it. " +
      "Flags and variables take precedence over it, and it takes precedence over the configuration file.",
    check: (text) => joinProblem(text, "agent"),
  },
  "agent-client.server-address": {
    reload: "at once",
    kind: "list",
    default: "localhost:4242",
    description: "Addresses of proxies, or of a UDP load balancer in front of them; repeatable or comma-separated.",
    check: checkServers,
  },
  "agent-client.transport": {
    reload: "at once",
    kind: "string",
    default: "auto",
    choices: ["auto", "quic", "tls", "websocket"],
    description:
      "Transport of connections to proxies: quic (UDP), tls (TCP), websocket (HTTP), or auto: QUIC, and the others where it does not work.",
  },
  "agent-client.websocket-url": {
    reload: "at once",
    kind: "string",
    description:
      "URL at which the proxy accepts WebSockets, such as wss://proxy.example/reverse-http; without a host, as in wss:///reverse-http, it is at the host of each proxy.",
    check: checkWebSocketUrl,
  },
  "agent-client.proxy": {
    reload: "at once",
    kind: "string",
    secret: true,
    description:
      "Outbound proxy for TCP: `http://user:password@host:port` or `socks5:`; file:NAME for a file with the URL, read at every connect; none; by default that of HTTPS_PROXY, ALL_PROXY and NO_PROXY.",
    check: checkOutboundProxy,
  },
  "agent-client.quic-probe-interval": {
    reload: "at once",
    kind: "duration",
    default: "60s",
    description:
      "Interval at which an agent with transport auto probes QUIC while it uses another one; it grows to 10m while probes fail; 0s: never.",
  },
  "agent-client.connections": {
    reload: "at once",
    kind: "integer",
    default: "1",
    description: "Number of proxies to connect to, each at an address of its own; every address of a name counts as a proxy.",
    check: (count) => count >= 1 && count <= 64 ? undefined : `${count} is not 1 to 64`,
  },
  "agent-client.connect-timeout": {
    reload: "new tunnels",
    kind: "duration",
    default: "9s",
    description: "Timeout for a connection to a destination; the proxy itself waits no longer than its --agent-server.agent.dial-timeout.",
    check: (ms) => ms > 0 ? undefined : "it must be more than zero",
  },
  "agent-client.congestion-control": CONGESTION_CONTROL,
  "agent-client.keep-alive": KEEP_ALIVE,
  "agent-client.labels": {
    reload: "at once",
    kind: "list",
    description: "Labels that the proxy shows with the agent: name=value, repeatable or comma-separated.",
    check: checkLabelTexts,
  },
  ...publishOptions,
  "agent-client.host-whitelist": {
    reload: "new tunnels",
    cuts: true,
    guards: LIST_WORDS,
    kind: "list",
    description: "Allow-list of the agent's destinations; by default all; none allows nothing.",
    check: checkPatterns,
  },
  "agent-client.host-denylist": {
    reload: "new tunnels",
    cuts: true,
    guards: LIST_WORDS,
    kind: "list",
    description:
      "Destinations that the agent never connects to; takes precedence over host-whitelist. Names are resolved and their addresses checked too.",
    check: checkPatterns,
  },
  "agent-client.tls.insecure-skip-verify": {
    reload: "at once",
    kind: "boolean",
    default: "false",
    description: "Accept any certificate of the proxy, without verification.",
  },
  "agent-client.tls.pin-sha256": {
    reload: "at once",
    guards: NOT_GIVEN,
    kind: "list",
    description:
      "Accepted SHA-256 hashes of the proxy's certificate, 64 hexadecimal digits each, or of its public key, sha256/ and base64, which a renewed " +
      "certificate may keep; without root-ca they replace all other checks of it.",
    check: checkPins,
  },
  "agent-client.tls.refresh": {
    reload: "at once",
    kind: "duration",
    default: "0s",
    description: "Interval at which these files are checked for changes; 0s: every 5 s. They are also read at each connection attempt.",
  },
  "agent-client.tls.file.root-ca": {
    reload: "at once",
    guards: NOT_GIVEN,
    kind: "file",
    description: "Certificate authorities to trust, PEM; by default the system's.",
  },
  "agent-client.tls.key-password": {
    reload: "at once",
    kind: "string",
    secret: true,
    description: "Password of the private key, if it is encrypted.",
  },
  "agent-client.tls.file.key": { reload: "at once", kind: "file", description: "Private key of the agent's certificate, PEM." },
  "agent-client.tls.file.cert": {
    reload: "at once",
    kind: "file",
    description: "The agent's certificate chain, PEM, if the proxy requires one.",
  },
  "auth.type": {
    reload: "at once",
    guards: NOT_GIVEN,
    kind: "string",
    default: "noauth",
    choices: ["noauth", "jwt", "oidc"],
    description:
      "How the agent authenticates: by its id (noauth), a token (jwt), or tokens that it gets from an OpenID Connect issuer (oidc).",
  },
  "auth.noauth.agent-id": { reload: "at once", kind: "string", description: "The agent's id, with --auth.type=noauth." },
  "auth.jwt.token": {
    reload: "at once",
    kind: "string",
    secret: true,
    description: "The agent's token, or file:NAME, which is read at every connect.",
    check: (text) => /^file:\s*eyJ/.test(text) ? "file: is followed by a token; write the token alone, or the name of its file" : undefined,
  },
  "auth.oidc.issuer": {
    ...providerOptions["auth.oidc.issuer"],
    description: "URL of the issuer of the agent's tokens; https, or http to this machine.",
  },
  "auth.oidc.client-id": {
    reload: "at once",
    kind: "string",
    description: "The agent's client id at the issuer, for the client credentials grant.",
  },
  "auth.oidc.client-secret": {
    reload: "at once",
    kind: "string",
    secret: true,
    description: "The client's secret at the issuer, or file:NAME, which is read for each token.",
  },
  "auth.oidc.client-key-file": {
    reload: "at once",
    kind: "file",
    description: "Private key, PEM, with which the agent authenticates there instead (private_key_jwt, RFC 7523), read for each token.",
  },
  "auth.oidc.scopes": { reload: "at once", kind: "list", description: "Scopes to request from the issuer; by default none." },
  "auth.oidc.requested-audience": {
    reload: "at once",
    kind: "string",
    description: "Parameter audience for the issuer, if it needs one; by default none.",
  },
  "auth.oidc.requested-resource": {
    reload: "at once",
    kind: "string",
    description: "Parameter resource (RFC 8707) for the issuer, if it needs one; by default none.",
  },
  "auth.oidc.agent-id-claim": {
    ...agentProviderOptions["auth.oidc.agent-id-claim"],
    description: "Claim with the agent's id, as at the proxy; only for the agent's own log.",
  },
  "state-dir": {
    restart: "its files are in use while the agent runs",
    kind: "file",
    description:
      "Directory in which the agent remembers across restarts where QUIC does not work, and which keys a pinned proxy has announced; by default " +
      "the system's or the user's state directory.",
  },
  ...agentTunnelLimitOptions,
  ...drainOptions,
  ...handoverOptions,
  ...reloadOptions,
  ...adminOptions,
  ...operatorOptions,
  ...tracingOptions,
  ...threadOptions,
  ...logOptions,
});

/** As on the command line: `--agent-client.server-address` is `agentClient.serverAddress`; durations in milliseconds. */
export type AgentOptions = ValuesOf<typeof agentOptions>;

/** Parses labels of the form `name=value`. */
export function parseLabels(texts: readonly string[]): Record<string, string> {
  return Object.fromEntries(texts.map((text) => [text.slice(0, text.indexOf("=")), text.slice(text.indexOf("=") + 1)]));
}

function checkLabelTexts(texts: readonly string[]): string | undefined {
  const malformed = texts.find((text) => text.indexOf("=") < 1);
  if (malformed !== undefined) return `${JSON.stringify(malformed)} is not name=value`;
  const labels = parseLabels(texts);
  return Object.keys(labels).length < texts.length ? "a name has two values" : checkLabels(labels);
}

function checkWebSocketUrl(text: string): string | undefined {
  try {
    parseWebSocketUrl(text);
  } catch (error) {
    if (!(error instanceof RangeError)) throw error;
    return error.message;
  }
}

/** @throws {ConfigError} for options that exclude each other */
export function checkTransport({ agentClient: { transport, websocketUrl } }: AgentOptions): void {
  if (transport === "websocket" && websocketUrl === undefined) {
    throw new ConfigError("Cannot use --agent-client.transport websocket: --agent-client.websocket-url is needed too");
  }
  if (websocketUrl !== undefined && transport !== "websocket" && transport !== "auto") {
    throw new ConfigError(`Cannot use --agent-client.websocket-url: --agent-client.transport is ${transport}`);
  }
}

function checkServers(addresses: readonly string[]): string | undefined {
  if (addresses.length === 0) return "at least one address is required";
  return addresses.map(checkServer).find((problem) => problem !== undefined);
}

function checkServer(address: string): string | undefined {
  return checkRemote(address) ?? (isWildcard(address) ? `${address} is the wildcard address; write 127.0.0.1 for this machine` : undefined);
}
