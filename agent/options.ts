// The agent's options, each once.
import { checkPatterns, logOptions } from "../shared/cli/common_options.ts";
import { defineOptions, type ValuesOf } from "../shared/cli/option.ts";

const CERTIFICATES = "Client certificates";
const JWT = "Authentication by JWT";

export const agentOptions = defineOptions({
  "agent-client.server-address": {
    kind: "address",
    default: "localhost:4242",
    description: "Address of the proxy, or of a UDP load balancer before several.",
    check: (address) =>
      address.startsWith(":") || address.endsWith(":0") ? `${JSON.stringify(address)} lacks a host or a port to connect to` : undefined,
  },
  "agent-client.host-whitelist": {
    kind: "list",
    description: "Destinations that the agent connects to; empty allows all.",
    check: checkPatterns,
  },
  "agent-client.tls.insecure-skip-verify": { kind: "boolean", default: "false", description: "Accept any certificate of the proxy." },
  "agent-client.tls.refresh": {
    kind: "duration",
    default: "0s",
    notBuilt: "Refreshing certificates",
    description: "Reload these files at this interval; 0s never.",
  },
  "agent-client.tls.file.root-ca": { kind: "file", description: "Authorities to trust, PEM; by default the system's." },
  "agent-client.tls.file.key": { kind: "file", notBuilt: CERTIFICATES, description: "Private key of the agent's certificate, PEM." },
  "agent-client.tls.file.cert": { kind: "file", notBuilt: CERTIFICATES, description: "The agent's certificate chain, PEM." },
  "auth.type": {
    kind: "string",
    default: "noauth",
    choices: ["noauth", "jwt"],
    notBuilt: JWT,
    description: "How the agent says who it is.",
  },
  "auth.noauth.agent-id": { kind: "string", description: "The agent's id, with --auth.type noauth." },
  "auth.jwt.token": {
    kind: "string",
    secret: true,
    notBuilt: JWT,
    description: "The agent's token, or file:NAME, which is read at every connect.",
  },
  ...logOptions,
});

/** As on the command line: `--agent-client.server-address` is `agentClient.serverAddress`; durations in milliseconds. */
export type AgentOptions = ValuesOf<typeof agentOptions>;
