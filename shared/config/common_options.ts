// Options that more than one executable has.
import { LOG_FORMATS, LOG_LEVELS } from "../log/logger.ts";
import { createAllowList, networksOf } from "../address/allow_list.ts";
import { defineOptions } from "./option.ts";

/** For `guards` of lists of patterns. */
export const LIST_WORDS = "write all for every destination, or none";
/** For `guards` of all else. */
export const NOT_GIVEN = "leave it out where it is not wanted";

export const logOptions = defineOptions({
  "log.format": {
    kind: "string",
    default: "text",
    choices: LOG_FORMATS,
    env: "LOG_FORMAT",
    description: "Log lines for people (text) or machines (json).",
  },
  "log.level": {
    kind: "string",
    default: "info",
    choices: LOG_LEVELS,
    env: "LOG_LEVEL",
    description: "The least important messages that are logged.",
  },
});

/** How much the sender of what goes through the agent link lets be under way. */
export const CONGESTION_CONTROL = {
  kind: "string",
  default: "cubic",
  choices: ["cubic", "cubic-loss-tolerant", "newreno", "bbr"],
  description:
    "Congestion control: cubic (RFC 9438) and newreno (RFC 9002) slow down for every loss; cubic-loss-tolerant does not for up to 2 % without a queue, which is unfair to others on the link; bbr goes by the rate that arrives, and fills small buffers.",
} as const;

/** TLS for the clients of proxy and lb. */
export const frontTlsOptions = defineOptions({
  "http-proxy.tls.enable": {
    guards: NOT_GIVEN,
    kind: "boolean",
    default: "false",
    description: "Speak TLS to clients; needs key and certificate.",
  },
  "http-proxy.tls.refresh": { kind: "duration", default: "0s", description: "Read these files again at this interval; 0s never." },
  "http-proxy.tls.key-password": { kind: "string", secret: true, description: "Password of the private key, where it is encrypted." },
  "http-proxy.tls.file.key": { kind: "file", description: "Private key, PEM." },
  "http-proxy.tls.file.cert": { kind: "file", description: "Certificate chain, PEM." },
  "http-proxy.tls.file.client-ca": {
    guards: NOT_GIVEN,
    kind: "file",
    description: "Require certificates of these authorities from clients, PEM.",
  },
  "http-proxy.tls.file.client-crl": {
    guards: NOT_GIVEN,
    kind: "file",
    description: "Refuse certificates on these revocation lists, PEM; needs client-ca.",
  },
});

/** For `check` of a list of pins. */
export function checkPins(pins: string[]): string | undefined {
  const bad = pins.find((pin) => !/^[0-9a-f]{64}$/i.test(pin.replaceAll(":", "")));
  return bad === undefined
    ? undefined
    : `${JSON.stringify(bad)} is not the SHA-256 of a certificate: 64 hexadecimal digits, with or without colons`;
}

/** What comes first when a proxy or lb stops. */
export const drainDelayOptions = defineOptions({
  "drain.delay": {
    kind: "duration",
    default: "0s",
    description: "On SIGTERM: go on as before for so long while readiness fails, so that load balancers notice; 0s not at all.",
  },
});

export const drainOptions = defineOptions({
  "drain.timeout": {
    kind: "duration",
    default: "30s",
    description: "On SIGTERM, after that: let running tunnels finish for so long, then reset them; 0s resets them at once.",
  },
});

/** How agents and clients say who they are, to whoever verifies it. */
export const authOptions = defineOptions({
  "auth.type": {
    guards: NOT_GIVEN,
    kind: "string",
    default: "noauth",
    choices: ["noauth", "jwt"],
    description: "How agents and clients say who they are.",
  },
  "auth.jwt.public-key": {
    kind: "list",
    default: "auth-key-public.pem",
    description: "Files of the keys that verify tokens, PEM or JWKS; several while keys are exchanged. Read again when they change.",
    check: (files) => files.length === 0 || files.includes("") ? "it lacks the name of a file" : undefined,
  },
  "auth.jwt.audience": { guards: NOT_GIVEN, kind: "string", description: "Audience that tokens must have." },
  "auth.jwt.on-expiry": {
    kind: "string",
    default: "close-agents",
    choices: ["close-agents", "close", "keep"],
    description: "What ends with an expired token: the agent's connection, the client's tunnels too, or nothing that is open.",
  },
  "auth.jwt.revocation-file": {
    guards: NOT_GIVEN,
    kind: "file",
    description: "File with the jti of a revoked token on each line; what was opened with one ends at once. Read again when it changes.",
  },
});

/** For those who operate it. */
export const adminOptions = defineOptions({
  "admin.listen-address": {
    kind: "address",
    description: "TCP address for /healthz, /readyz, /metrics and /agents; without a host, for this machine alone. Not served by default.",
  },
});

/** For `check` of a list of allow-list patterns. */
export function checkPatterns(patterns: string[]): string | undefined {
  return patternProblem(
    () => createAllowList(patterns),
    "there are host, *.zone, 10.0.0.0/8 and [2001:db8::1], each with :port or :first-last or without, and all or none alone",
  );
}

const NETWORK_FORMS = "there are 10.0.0.1, 10.0.0.0/8, 2001:db8::1 and 2001:db8::/32";

/**
 * A `check` of a list of patterns that are compared with nothing but addresses.
 * @param words whether `all` and `none` can stand there, each alone
 */
export function checkNetworks({ words }: { words: boolean }): (patterns: string[]) => string | undefined {
  return (patterns) => {
    const word = words ? undefined : patterns.find((pattern) => /^(?:all|none)$/i.test(pattern));
    if (word !== undefined) return `the pattern ${JSON.stringify(word)}: it is not an address or a network; ${NETWORK_FORMS}`;
    return patternProblem(() => networksOf(patterns), words ? `${NETWORK_FORMS}, and all or none alone` : NETWORK_FORMS);
  };
}

function patternProblem(read: () => unknown, forms: string): string | undefined {
  try {
    read();
    return undefined;
  } catch (error) {
    if (!(error instanceof RangeError)) throw error;
    return `${error.message.replace(/^Cannot use the allow-list pattern/, "the pattern")}; ${forms}`;
  }
}
