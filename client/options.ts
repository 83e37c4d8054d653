// The options of clients: how they find the proxy and authenticate, which may be in the environment and in the user's profile, and those of
// each command.
import { checkPins, NOT_GIVEN } from "../shared/config/common_options.ts";
import { joinProblem } from "../shared/config/join.ts";
import { CLIENT_ENV_PREFIX, defineOptions, type Options, type ValuesOf } from "../shared/config/option.ts";
import { urlProblem } from "../shared/config/url.ts";
import { checkRemote } from "../shared/address/host_port.ts";
import { checkAgentSuffix } from "../shared/frontend/agent_names.ts";
import { parseRoute } from "./routes.ts";

/** The options of every command that opens tunnels, by name. */
export const clientOptions = defineOptions({
  "join": {
    kind: "string",
    secret: true,
    env: `${CLIENT_ENV_PREFIX}JOIN`,
    description:
      "String of reverse-http invite --client, which sets proxy, agent, pin and token; or file:NAME for a file that has it. Flags and variables " +
      "take precedence over it, and it over the profile.",
    check: (text) => joinProblem(text, "client"),
  },
  "proxy": {
    kind: "string",
    env: `${CLIENT_ENV_PREFIX}PROXY`,
    description: "Address of the proxy or lb, host:port. Any proxy that serves CONNECT will do.",
    check: (text) => checkRemote(text),
  },
  "http2": {
    kind: "boolean",
    env: `${CLIENT_ENV_PREFIX}HTTP2`,
    default: "false",
    description:
      "Open all tunnels on one connection over HTTP/2; proxy is then the address of --http-proxy.http2-listen-address. A proxy that does not " +
      "support it there is used over HTTP/1.1, with a connection for each tunnel.",
  },
  "agent-id": {
    kind: "string",
    env: `${CLIENT_ENV_PREFIX}AGENT_ID`,
    description: "Id of the agent that reaches the destinations; by default the one that a token or the destination's name carries.",
  },
  "token": {
    kind: "string",
    secret: true,
    env: `${CLIENT_ENV_PREFIX}TOKEN`,
    description:
      "The client's token, or file:NAME, which is read for each connection; only the latter on the command line. By default none.",
  },
  "token-command": {
    kind: "string",
    env: `${CLIENT_ENV_PREFIX}TOKEN_COMMAND`,
    description: "Command for the shell that prints the client's token, run for each connection, instead of token.",
  },
  "issuer": {
    kind: "string",
    env: `${CLIENT_ENV_PREFIX}ISSUER`,
    description:
      "URL of the OpenID Connect issuer at which reverse-http login signs in, instead of a token; https, or http to this machine. By default none.",
    check: urlProblem,
  },
  "client-id": {
    kind: "string",
    env: `${CLIENT_ENV_PREFIX}CLIENT_ID`,
    description: "Client id at the issuer, which must permit the device grant for it.",
  },
  "client-secret": {
    kind: "string",
    secret: true,
    env: `${CLIENT_ENV_PREFIX}CLIENT_SECRET`,
    description: "The client's secret at the issuer, or file:NAME, if the issuer requires one; by default none.",
  },
  "scopes": {
    kind: "list",
    env: `${CLIENT_ENV_PREFIX}SCOPES`,
    default: "openid,profile,offline_access",
    description: "Scopes to request from the issuer; offline_access is for tokens that can be renewed.",
  },
  "audience": {
    kind: "string",
    env: `${CLIENT_ENV_PREFIX}AUDIENCE`,
    description: "Parameter audience for the issuer, if it needs one for the access token; by default none.",
  },
  "resource": {
    kind: "string",
    env: `${CLIENT_ENV_PREFIX}RESOURCE`,
    description: "Parameter resource (RFC 8707) for the issuer, if it needs one for the access token; by default none.",
  },
  "token-kind": {
    kind: "string",
    env: `${CLIENT_ENV_PREFIX}TOKEN_KIND`,
    default: "id",
    choices: ["id", "access"],
    description: "Token of the issuer that is sent to the proxy: the ID token, whose audience is client-id, or the access token.",
  },
  "session-file": {
    kind: "file",
    env: `${CLIENT_ENV_PREFIX}SESSION_FILE`,
    description:
      "File in which reverse-http login stores the issuer's tokens, and later ones that renew them; by default beside the profile.",
  },
  "connect-timeout": {
    kind: "duration",
    env: `${CLIENT_ENV_PREFIX}CONNECT_TIMEOUT`,
    default: "30s",
    description: "Timeout for opening a tunnel: the connection to the proxy and its response together.",
    check: (ms) => ms > 0 ? undefined : "it must be more than zero",
  },
  "tls.enable": {
    guards: NOT_GIVEN,
    kind: "boolean",
    env: `${CLIENT_ENV_PREFIX}TLS_ENABLE`,
    default: "false",
    description: "Connect to the proxy over TLS.",
  },
  "tls.insecure-skip-verify": {
    kind: "boolean",
    env: `${CLIENT_ENV_PREFIX}TLS_INSECURE_SKIP_VERIFY`,
    default: "false",
    description: "Accept any certificate of the proxy, without verification.",
  },
  "tls.pin-sha256": {
    guards: NOT_GIVEN,
    kind: "list",
    env: `${CLIENT_ENV_PREFIX}TLS_PIN_SHA256`,
    description:
      "Accepted SHA-256 hashes of the proxy's certificate, 64 hexadecimal digits each, or of its public key, sha256/ and base64, which a renewed " +
      "certificate may keep; without root-ca they replace all other checks of it.",
    check: checkPins,
  },
  "tls.file.root-ca": {
    guards: NOT_GIVEN,
    kind: "file",
    env: `${CLIENT_ENV_PREFIX}TLS_FILE_ROOT_CA`,
    description: "Certificate authorities to trust, PEM; by default the system's.",
  },
  "tls.file.key": { kind: "file", env: `${CLIENT_ENV_PREFIX}TLS_FILE_KEY`, description: "Private key of the client's certificate, PEM." },
  "tls.file.cert": {
    kind: "file",
    env: `${CLIENT_ENV_PREFIX}TLS_FILE_CERT`,
    description: "The client's certificate chain, PEM, if the proxy requires one.",
  },
  "tls.key-password": {
    kind: "string",
    secret: true,
    env: `${CLIENT_ENV_PREFIX}TLS_KEY_PASSWORD`,
    description: "Password of the private key, if it is encrypted.",
  },
});

/** As on the command line: `--agent-id` is `agentId`; durations in milliseconds. */
export type ClientOptions = ValuesOf<typeof clientOptions>;

/** Flags of `connect`. */
export const connectOptions = defineOptions({
  "ssh-config": { kind: "boolean", description: "Print the lines of ssh_config(5) that use this command, and exit." },
});

/** Flags of `forward`. */
export const forwardOptions = defineOptions({
  "exec": {
    kind: "string",
    description:
      "Command for the shell, run once all addresses listen; its exit code is passed on. Its environment has FORWARD_ADDRESS, FORWARD_HOST and " +
      "FORWARD_PORT, and for further forwards FORWARD_ADDRESS_2 and so on.",
  },
  "file": { kind: "file", description: "File with one forward per line, in addition to those of the command line; # begins a comment." },
  "wait": {
    kind: "duration",
    default: "0s",
    description:
      "Time to wait until a tunnel for each forward can be opened, before connections are relayed and a command runs; without one by then, the " +
      "exit code is that of connect. 0s: do not wait.",
  },
  "json": { kind: "boolean", description: "Write events as JSON, one per line: listening, opened, closed, failed, warning." },
});

/** Options of `forward` that may be in the profile. */
const forwardDefaults = defineOptions({
  "forwards": {
    kind: "list",
    env: `${CLIENT_ENV_PREFIX}FORWARDS`,
    description: "Forwards, if the command line has none and no --file.",
  },
});
export const forwardProfile = { ...clientOptions, ...forwardDefaults };

/** Options of `socks` that may be in the profile. */
const socksOptions = defineOptions({
  "agent-suffix": {
    kind: "string",
    env: `${CLIENT_ENV_PREFIX}AGENT_SUFFIX`,
    description:
      "Suffix, such as .rhttp, of destinations that name their agent, independent of the proxy's option: db.site7.rhttp is db as the agent site7 resolves " +
      "it. By default none.",
    check: checkAgentSuffix,
  },
  "map": {
    kind: "list",
    env: `${CLIENT_ENV_PREFIX}MAP`,
    description:
      "Agents of destinations, each PATTERN=AGENT with a pattern as of allow-lists: *.corp=site7. The first that matches takes precedence over " +
      "agent-id.",
    check: (texts) => texts.map(routeProblem).find((problem) => problem !== undefined),
  },
});
export const socksProfile = { ...clientOptions, ...socksOptions };

/** The options of each command that are in the documents, by its heading. */
export const CLIENTS: Readonly<Record<string, Options>> = {
  "connect, forward and socks": clientOptions,
  "connect": connectOptions,
  "forward": { ...forwardOptions, ...forwardDefaults },
  "socks": socksOptions,
};

function routeProblem(text: string): string | undefined {
  try {
    parseRoute(text);
    return undefined;
  } catch (error) {
    if (!(error instanceof RangeError)) throw error;
    return error.message;
  }
}
