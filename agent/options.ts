// The agent's options, each once.
import { checkPatterns, checkPins, logOptions } from "../shared/cli/common_options.ts";
import { defineOptions, type ValuesOf } from "../shared/cli/option.ts";

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
  "agent-client.tls.pin-sha256": {
    kind: "list",
    description:
      "SHA-256 of the proxy's certificate, 64 hexadecimal digits, any of these; without root-ca it replaces all other checks of the certificate.",
    check: checkPins,
  },
  "agent-client.tls.refresh": {
    kind: "duration",
    default: "0s",
    description: "Check these files for changes at this interval, 0s never; they are read at every connect anyway.",
  },
  "agent-client.tls.file.root-ca": { kind: "file", description: "Authorities to trust, PEM; by default the system's." },
  "agent-client.tls.key-password": { kind: "string", secret: true, description: "Password of the private key, where it is encrypted." },
  "agent-client.tls.file.key": { kind: "file", description: "Private key of the agent's certificate, PEM." },
  "agent-client.tls.file.cert": { kind: "file", description: "The agent's certificate chain, PEM, where the proxy asks for one." },
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
