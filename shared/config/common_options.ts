// Options that several executables share.
import { isIP } from "node:net";
import { LOG_FORMATS, LOG_LEVELS } from "../log/logger.ts";
import { createAllowList, networksOf, parsePorts, refuseAmbiguous } from "../address/allow_list.ts";
import { checkRemote } from "../address/host_port.ts";
import { defineOptions, pemContentProblem, type ValuesOf } from "./option.ts";
import { urlProblem } from "./url.ts";

/** `guards` of pattern lists. */
export const LIST_WORDS = "write all for every destination, or none";
/** `guards` of other options. */
export const NOT_GIVEN = "leave it out if you do not need it";

export const logOptions = defineOptions({
  "log.format": {
    reload: "at once",
    kind: "string",
    default: "text",
    choices: LOG_FORMATS,
    env: "LOG_FORMAT",
    description: "Log format: text for people, json for machines.",
  },
  "log.level": {
    reload: "at once",
    kind: "string",
    default: "info",
    choices: LOG_LEVELS,
    env: "LOG_LEVEL",
    description: "Lowest level that is logged.",
  },
});

export const threadOptions = defineOptions({
  "threads": {
    restart: "the threads are started once",
    kind: "integer",
    default: "0",
    description: "Threads that encrypt and move the bytes of tunnels, up to 64; 0: one for every two processors, 16 at most.",
    check: (threads) => threads <= 64 ? undefined : `${threads} is not 0 to 64`,
  },
});

/** Congestion control of the agent link, for the data that this side sends. */
export const CONGESTION_CONTROL = {
  reload: "new connections",
  kind: "string",
  default: "cubic",
  choices: ["cubic", "cubic-loss-tolerant", "newreno", "bbr"],
  description:
    "Congestion control: cubic (RFC 9438) and newreno (RFC 9002) slow down on every loss; cubic-loss-tolerant ignores up to 2 % of losses while no queue builds up, which is unfair to other traffic on the link; bbr follows the delivery rate and fills small buffers.",
} as const;

/** The keep-alive of either end of an agent's connection. */
export const KEEP_ALIVE = {
  reload: "new connections",
  kind: "duration",
  default: "3s",
  zero: "auto",
  description:
    "Interval of pings between agent and proxy, 1s to 25s; a connection ends after three intervals and 1s of silence. Of both ends' settings the shorter one counts. With auto at both ends, agents ping over QUIC as rarely as the NATs on the way permit.",
  check: (ms: number) => ms === 0 || (ms >= 1_000 && ms <= 25_000) ? undefined : `${ms} ms is not 1s to 25s, or auto`,
} as const;

/** What clients of proxy and lb may reach. */
export const hostWhitelistOptions = defineOptions({
  "http-proxy.host-whitelist": {
    reload: "new tunnels",
    cuts: true,
    guards: LIST_WORDS,
    kind: "list",
    description: "Destinations that clients may reach; by default all; none allows nothing.",
    check: checkPatterns,
  },
});

/** HTTP/2 and TLS on the client listeners of proxy and lb. */
export const frontOptions = defineOptions({
  "http-proxy.http2-listen-address": {
    reload: "at once",
    kind: "address",
    description:
      "TCP address that clients dial with HTTP/2, over TLS if http-proxy.tls.enable is set, otherwise with prior knowledge; by default none.",
  },
  "http-proxy.tls.enable": {
    reload: "new connections",
    guards: NOT_GIVEN,
    kind: "boolean",
    default: "false",
    description: "Accept TLS from clients; needs a key and a certificate.",
  },
  "http-proxy.tls.refresh": {
    reload: "at once",
    kind: "duration",
    default: "0s",
    description: "Interval at which these files are checked for changes and reloaded; 0s: every 5 s.",
  },
  "http-proxy.tls.key-password": {
    reload: "new connections",
    kind: "string",
    secret: true,
    description: "Password of the private key, if it is encrypted.",
  },
  "http-proxy.tls.file.key": { reload: "new connections", kind: "file", description: "Private key, PEM." },
  "http-proxy.tls.file.cert": { reload: "new connections", kind: "file", description: "Certificate chain, PEM." },
  "http-proxy.tls.cert-dir": {
    restart: "the directory is watched from the start; what changes in it needs no restart",
    kind: "file",
    description:
      "Directory with certificates for the names that clients and visitors ask for (SNI), at all TLS ports of clients and forwards; others get " +
      "the certificate of the port. NAME.pem with its key, NAME.crt and NAME.key, or NAME/fullchain.pem and NAME/privkey.pem.",
  },
  "http-proxy.tls.file.client-ca": {
    reload: "new connections",
    guards: NOT_GIVEN,
    kind: "file",
    description: "Require client certificates issued by these authorities, PEM.",
  },
  "http-proxy.tls.client-auth": {
    reload: "new connections",
    guards: NOT_GIVEN,
    kind: "string",
    default: "required",
    choices: ["required", "optional"],
    description: "Whether clients need such a certificate, or may also present none; needs client-ca.",
  },
  "http-proxy.tls.file.client-crl": {
    reload: "new connections",
    guards: NOT_GIVEN,
    kind: "file",
    description: "Reject client certificates on these revocation lists, PEM; needs client-ca.",
  },
});

/** SOCKS on proxy and lb. */
export const socksOptions = defineOptions({
  "socks.listen-address": {
    reload: "at once",
    kind: "address",
    description: "TCP address for SOCKS 5 only, without TLS; by default none, as http-proxy.listen-address accepts SOCKS 5 too.",
  },
  "socks.udp-ports": {
    reload: "new tunnels",
    kind: "string",
    description: "Ports for UDP ASSOCIATE, first-last; each association needs one. By default the system chooses.",
    check: (text) => parsePorts(text) ? undefined : `${JSON.stringify(text)} is not a range of ports, such as 40000-40999`,
  },
  "socks.udp-address": {
    reload: "new tunnels",
    kind: "string",
    description:
      "Address, without a port, to which clients of UDP ASSOCIATE send datagrams, where NAT or a container changes it; by default the one to " +
      "which they have connected.",
    check: (text) => isIP(text) > 0 ? undefined : `${JSON.stringify(text)} is not an IP address`,
  },
});

/** The pin of a public key. */
export const PIN_OF_KEY = /^sha256\/[A-Za-z0-9+/]{43}=$/;

/** A `check` for lists of pins. */
export function checkPins(pins: string[]): string | undefined {
  const bad = pins.find((pin) => !PIN_OF_KEY.test(pin) && !/^[0-9a-f]{64}$/i.test(pin.replaceAll(":", "")));
  return bad === undefined
    ? undefined
    : `${JSON.stringify(bad)} is not the SHA-256 of a public key, sha256/ and 44 characters of base64, or of a ` +
      "certificate: 64 hexadecimal digits, with or without colons";
}

/** The first phase of a stop, of proxy and lb. */
export const drainDelayOptions = defineOptions({
  "drain.delay": {
    reload: "at once",
    kind: "duration",
    default: "0s",
    description:
      "Time to keep serving after SIGTERM while readiness already fails, so that load balancers notice; drain.timeout begins after it. 0s: none.",
  },
});

/** Options of every service for reloads. */
export const reloadOptions = defineOptions({
  "reload.forbidden": {
    reload: "at once",
    kind: "string",
    default: "cut",
    choices: ["cut", "keep"],
    description:
      "What a reload does with open tunnels and agents' connections that changed options forbid: cut them, or keep them until they end.",
  },
});

export const drainOptions = defineOptions({
  "drain.timeout": {
    reload: "at once",
    kind: "duration",
    default: "30s",
    description: "Time for open tunnels to finish on SIGTERM, before they are reset; 0s resets them at once.",
  },
});

/** Longest delay of a timer, in milliseconds. */
const MAX_HANDOVER_MS = 24 * 24 * 3_600_000;

/** The hand-over of a running service to a new process. */
export const handoverOptions = defineOptions({
  "handover.socket": {
    restart: "the next process looks for it there",
    kind: "file",
    description:
      "Unix socket of this service alone, by which a new process with the same options takes over its listeners: a second one that is " +
      "started, or that SIGUSR2 starts. The old process serves its open tunnels until they end. Only the service's user can open the socket. " +
      "Off by default.",
  },
  "handover.timeout": {
    reload: "at once",
    kind: "duration",
    default: "24h",
    description: "Time after a hand-over for tunnels of the old process to finish, before they are reset.",
    check: (ms) => ms > 0 && ms <= MAX_HANDOVER_MS ? undefined : "it is not more than zero and up to 24d",
  },
});

/** As on the command line: `--handover.socket` is `socket`. */
export type HandoverOptions = ValuesOf<typeof handoverOptions>["handover"];

/** Authentication of agents and clients, on the side that verifies credentials. */
export const authOptions = defineOptions({
  "auth.type": {
    reload: "at once",
    cuts: true,
    guards: NOT_GIVEN,
    kind: "string",
    default: "noauth",
    choices: ["noauth", "jwt", "oidc"],
    description: "Authentication: none (noauth), by tokens (jwt), or by tokens of an OpenID Connect issuer (oidc).",
  },
  "auth.clients": {
    reload: "at once",
    cuts: true,
    guards: NOT_GIVEN,
    kind: "list",
    description:
      "Identity providers for clients, tried in this order: jwt, oidc, htpasswd, webhook, mtls. By default clients are authenticated as auth.type says.",
    check: checkProviders,
  },
  "auth.jwt.public-key": {
    reload: "at once",
    cuts: true,
    kind: "list",
    default: "auth-key-public.pem",
    description: "Public key files that verify tokens, PEM or JWKS; list several to rotate keys. Reloaded when they change.",
    check: (files) => files.length === 0 || files.includes("") ? "a file name is empty" : files.map(pemContentProblem).find(Boolean),
  },
  "auth.jwt.audience": {
    reload: "at once",
    cuts: true,
    guards: NOT_GIVEN,
    kind: "string",
    description: "Audience that tokens must have in aud; by default any.",
  },
  "auth.jwt.on-expiry": {
    reload: "at once",
    cuts: true,
    kind: "string",
    default: "close-agents",
    choices: ["close-agents", "close", "keep"],
    description:
      "What an expired token closes: connections of agents, which only proxies have (close-agents), tunnels of clients too (close), or nothing (keep).",
  },
  "auth.jwt.revocation-file": {
    reload: "at once",
    cuts: true,
    guards: NOT_GIVEN,
    kind: "file",
    description:
      "File with the jti of one revoked token per line, or name: or sub: of all tokens of a person or an agent; what was opened with such a token is closed at once. Reloaded when it changes.",
  },
});

/** Identity providers besides the tokens of `auth jwt token`. */
export const providerOptions = defineOptions({
  "auth.jwks.url": {
    reload: "at once",
    cuts: true,
    guards: NOT_GIVEN,
    kind: "string",
    description:
      "URL of a JWKS with keys that verify tokens, besides those of auth.jwt.public-key; https, or http to this machine. By default none.",
    check: urlProblem,
  },
  "auth.jwks.refresh": {
    reload: "at once",
    kind: "duration",
    default: "5m",
    description: "Time after which the keys of a JWKS or of the OpenID Connect issuer are fetched again.",
    check: (ms) => ms >= 1_000 ? undefined : "it must be 1s or more",
  },
  "auth.jwks.max-stale": {
    reload: "at once",
    kind: "duration",
    default: "1h",
    description: "Time after auth.jwks.refresh for which keys stay valid while they cannot be fetched; then clients get 503. 0s: none.",
  },
  "auth.oidc.issuer": {
    reload: "at once",
    cuts: true,
    guards: NOT_GIVEN,
    kind: "string",
    description: "URL of the OpenID Connect issuer, exactly as in the iss of its tokens; https, or http to this machine.",
    check: urlProblem,
  },
  "auth.oidc.audience": {
    reload: "at once",
    cuts: true,
    kind: "list",
    description: "Audiences, one of which tokens of the issuer must name: the client ids of this service at the issuer.",
  },
  "auth.oidc.name-claim": {
    reload: "at once",
    kind: "string",
    default: "preferred_username",
    description: "Claim with the person's name; dots lead into nested claims.",
  },
  "auth.oidc.groups-claim": {
    reload: "at once",
    kind: "string",
    default: "groups",
    description: "Claim with the person's groups, a name or a list; dots lead into nested claims, as in realm_access.roles.",
  },
  "auth.oidc.logout-audience": {
    reload: "at once",
    guards: NOT_GIVEN,
    kind: "list",
    description:
      "Client ids, one of which the issuer's logout tokens must name: POST /backchannel-logout of admin.listen-address then ends what was opened in " +
      "a session that has ended there. It needs auth.jwt.revocation-file. By default none is accepted.",
  },
  "auth.htpasswd.file": {
    reload: "at once",
    cuts: true,
    guards: NOT_GIVEN,
    kind: "file",
    description: "File with one user:hash per line, of bcrypt or argon2, as htpasswd -B writes it. Reloaded when it changes.",
  },
  "auth.webhook.url": {
    reload: "at once",
    cuts: true,
    guards: NOT_GIVEN,
    kind: "string",
    description: "URL of the webhook that authenticates clients; https, or http to this machine.",
    check: urlProblem,
  },
  "auth.webhook.token-file": {
    reload: "at once",
    guards: NOT_GIVEN,
    kind: "file",
    description: "File with a secret that is sent to the webhook as a Bearer token, read for each request. By default none is sent.",
  },
  "auth.webhook.connect-timeout": {
    reload: "at once",
    kind: "duration",
    default: "2s",
    description: "Timeout for a connection to the webhook, including name resolution and TLS; auth.webhook.timeout applies as well.",
    check: (ms) => ms > 0 ? undefined : "it must be more than zero",
  },
  "auth.webhook.timeout": {
    reload: "at once",
    kind: "duration",
    default: "5s",
    description:
      "Timeout for a request to the webhook until the last byte of its answer, including the time in the queue and the connection.",
    check: (ms) => ms > 0 ? undefined : "it must be more than zero",
  },
  "auth.webhook.concurrency": {
    reload: "at once",
    kind: "integer",
    default: "32",
    description: "Concurrent requests to the webhook; 256 more wait, and others get 503.",
    check: (count) => count >= 1 && count <= 1_024 ? undefined : `${count} is not 1 to 1024`,
  },
  "auth.webhook.max-stale": {
    reload: "at once",
    kind: "duration",
    default: "0s",
    description:
      "Time after maxAge for which a cached answer stays valid while the webhook does not answer; then clients get 503. 0s: none.",
  },
  "auth.mtls.subject-from": {
    reload: "at once",
    kind: "string",
    default: "cn",
    choices: ["cn", "dns", "uri", "email", "sha256"],
    description:
      "Field of a client's certificate that is its sub: the common name, the first DNS name, URI or e-mail address of the subject alternative " +
      "names, or the certificate's SHA-256.",
  },
  "auth.mtls.groups-from": {
    reload: "at once",
    kind: "string",
    default: "ou",
    choices: ["ou", "o", "none"],
    description: "Field of a client's certificate with its groups: its organizational units, its organizations, or none.",
  },
  "auth.mtls.trust-client-cert": {
    reload: "new tunnels",
    guards: NOT_GIVEN,
    kind: "boolean",
    default: "false",
    description:
      "Take the certificate of a client from the field Client-Cert (RFC 9440) of http-proxy.trusted-proxies, each of which must be an lb, or " +
      "remove the field from what its clients send.",
  },
});

/** Agents with tokens of the OpenID Connect issuer. */
export const agentProviderOptions = defineOptions({
  "auth.oidc.agent-audience": {
    reload: "at once",
    kind: "list",
    description:
      "With --auth.type=oidc, the audiences, one of which agents' tokens must name; none of them may be in auth.oidc.audience, or people could be agents.",
  },
  "auth.oidc.agent-id-claim": {
    reload: "at once",
    kind: "string",
    default: "sub",
    description: "Claim with the agent's id, with --auth.type=oidc; dots lead into nested claims.",
  },
});

/** The policy of a proxy. */
export const policyOptions = defineOptions({
  "auth.policy-file": {
    reload: "at once",
    cuts: true,
    guards: NOT_GIVEN,
    kind: "file",
    description:
      "File with rules, YAML, that say which clients may reach what through which agents, besides all lists. Reloaded when it changes; what it " +
      "no longer allows is closed. By default there are none.",
  },
});

/** The values of `auth.clients`. */
const PROVIDERS = ["jwt", "oidc", "htpasswd", "webhook", "mtls"];

function checkProviders(names: string[]): string | undefined {
  const unknown = names.find((name) => !PROVIDERS.includes(name));
  if (unknown !== undefined) return `${JSON.stringify(unknown)} is not one of ${PROVIDERS.join(", ")}`;
  const twice = names.find((name, i) => names.indexOf(name) !== i);
  return twice === undefined ? undefined : `${twice} is in the list twice`;
}

/** The admin server, for operators. */
export const adminOptions = defineOptions({
  "admin.listen-address": {
    reload: "at once",
    kind: "address",
    description: "TCP address for /healthz, /readyz, /metrics, /agents and the API; without a host, on loopback only. Off by default.",
  },
  "admin.tls.file.key": {
    reload: "new connections",
    kind: "file",
    description: "Private key, PEM: with it and a certificate, admin.listen-address speaks HTTPS. Reloaded when it changes.",
  },
  "admin.tls.file.cert": { reload: "new connections", kind: "file", description: "Certificate chain, PEM." },
  "admin.tls.key-password": {
    reload: "new connections",
    kind: "string",
    secret: true,
    description: "Password of the private key, if it is encrypted.",
  },
  "admin.socket": {
    reload: "at once",
    kind: "file",
    description:
      "Unix socket for the same, which only the user of the service and root can open; they need no token. For reverse-http status, agents, " +
      "tunnels and top. Off by default.",
  },
  "admin.token-file": {
    reload: "at once",
    guards: NOT_GIVEN,
    kind: "file",
    description:
      "File with the tokens of the API on admin.listen-address, one ROLE NAME TOKEN per line, with the role viewer or operator; reloaded when " +
      "it changes. Without it the API is served on admin.socket only.",
  },
  "admin.hosts": {
    reload: "at once",
    kind: "list",
    description:
      "Names by which browsers reach the API on admin.listen-address, as in the field Host: admin.example.com, or with a port. By default " +
      "addresses and localhost.",
    check: (hosts) => hosts.map((host) => checkRemote(host, 80)).find(Boolean),
  },
});

/** As on the command line: `--admin.listen-address` is `listenAddress`. */
export type AdminOptions = ValuesOf<typeof adminOptions>["admin"];

/** The audit log of proxy and lb. */
export const auditOptions = defineOptions({
  "audit.file": {
    reload: "at once",
    kind: "string",
    optional: true,
    description:
      "File to which a line of JSON is appended for each start and end of a tunnel, each refusal, and each action of an operator. By default none.",
  },
  "audit.strict": {
    reload: "at once",
    kind: "boolean",
    default: "false",
    description: "Refuse tunnels while the audit log cannot be written; otherwise records are lost and counted.",
  },
});

/** A `check` for lists of allow-list patterns. */
export function checkPatterns(patterns: string[]): string | undefined {
  return patternProblem(
    () => {
      createAllowList(patterns);
      refuseAmbiguous(patterns);
    },
    "valid patterns are host, *.zone, 10.0.0.0/8 and [2001:db8::1], each optionally with :port or :first-last, or all or none alone",
  );
}

const NETWORK_FORMS = "valid patterns are 10.0.0.1, 10.0.0.0/8, 2001:db8::1 and 2001:db8::/32";

/**
 * A `check` for lists of patterns that match addresses only.
 * @param words whether `all` and `none`, each alone, are valid too
 */
export function checkNetworks({ words }: { words: boolean }): (patterns: string[]) => string | undefined {
  return (patterns) => {
    const word = words ? undefined : patterns.find((pattern) => /^(?:all|none)$/i.test(pattern));
    if (word !== undefined) return `the pattern ${JSON.stringify(word)} is not an address or a network; ${NETWORK_FORMS}`;
    return patternProblem(() => networksOf(patterns), words ? `${NETWORK_FORMS}, or all or none alone` : NETWORK_FORMS);
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
