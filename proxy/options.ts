// The proxy's options, each once.
import { checkPatterns, logOptions } from "../shared/cli/common_options.ts";
import { defineOptions, type ValuesOf } from "../shared/cli/option.ts";

const CLIENT_TLS = "TLS for clients";
const JWT = "Authentication by JWT";
const STORE = "The shared store";

export const proxyOptions = defineOptions({
  "agent-server.listen-address": { kind: "address", default: ":4242", description: "UDP address that agents dial." },
  "agent-server.tls.file.key": { kind: "file", description: "The server's private key, PEM." },
  "agent-server.tls.file.cert": { kind: "file", description: "The server's certificate chain, PEM." },
  "agent-server.tls.file.client-ca": {
    kind: "file",
    notBuilt: "Client certificates",
    description: "Require a certificate of this authority, PEM.",
  },
  "agent-server.tls.file.client-crl": {
    kind: "file",
    notBuilt: "Client certificates",
    description: "Refuse certificates on this revocation list, PEM.",
  },
  "agent-server.tls.refresh": {
    kind: "duration",
    default: "0s",
    notBuilt: "Refreshing certificates",
    description: "Reload these files at this interval; 0s never.",
  },
  "agent-server.agent.dial-timeout": {
    kind: "duration",
    default: "10s",
    description: "Longest wait for a stream to an agent and its answer.",
    check: (ms) => ms > 0 ? undefined : "it must be more than zero",
  },
  "http-proxy.listen-address": { kind: "address", default: ":3128", description: "TCP address that clients dial." },
  "http-proxy.tls.enable": { kind: "boolean", default: "false", notBuilt: CLIENT_TLS, description: "Speak TLS to clients." },
  "http-proxy.tls.refresh": {
    kind: "duration",
    default: "0s",
    notBuilt: CLIENT_TLS,
    description: "Reload these files at this interval; 0s never.",
  },
  "http-proxy.tls.key-password": { kind: "string", secret: true, notBuilt: CLIENT_TLS, description: "Password of the private key." },
  "http-proxy.tls.file.key": { kind: "file", notBuilt: CLIENT_TLS, description: "Private key, PEM." },
  "http-proxy.tls.file.cert": { kind: "file", notBuilt: CLIENT_TLS, description: "Certificate chain, PEM." },
  "http-proxy.tls.file.client-ca": {
    kind: "file",
    notBuilt: CLIENT_TLS,
    description: "Require a client certificate of this authority, PEM.",
  },
  "http-proxy.tls.file.client-crl": {
    kind: "file",
    notBuilt: CLIENT_TLS,
    description: "Refuse certificates on this revocation list, PEM.",
  },
  "http-proxy.host-whitelist": {
    kind: "list",
    description: "Destinations that clients may reach; empty allows all.",
    check: checkPatterns,
  },
  "auth.type": {
    kind: "string",
    default: "noauth",
    choices: ["noauth", "jwt"],
    notBuilt: JWT,
    description: "How agents and clients say who they are.",
  },
  "auth.jwt.public-key": { kind: "file", default: "auth-key-public.pem", notBuilt: JWT, description: "Key that verifies tokens, PEM." },
  "auth.jwt.audience": { kind: "string", notBuilt: JWT, description: "Audience that tokens must have." },
  "store.type": {
    kind: "string",
    default: "none",
    choices: ["none", "memcached"],
    notBuilt: STORE,
    description: "Where proxies tell each other which agents they hold.",
  },
  "store.http-proxy-address": {
    kind: "string",
    notBuilt: STORE,
    description: "Where lb reaches this proxy; by default the listen address.",
  },
  "store.memcached.address": { kind: "string", default: "localhost:11211", notBuilt: STORE, description: "Address of memcached." },
  "store.memcached.timeout": { kind: "duration", default: "1s", notBuilt: STORE, description: "Longest wait for memcached." },
  ...logOptions,
});

/** As on the command line: `--agent-server.listen-address` is `agentServer.listenAddress`; durations in milliseconds. */
export type ProxyOptions = ValuesOf<typeof proxyOptions>;
