// The options of certificates from an ACME authority, and what they require of each other.
import { isIP } from "node:net";
import { ConfigError, defineOptions, type ValuesOf } from "../../config/option.ts";

const IN_PROGRESS = "orders in progress, and the state directory, belong to it";

export const acmeOptions = defineOptions({
  "acme.domain": {
    restart: IN_PROGRESS,
    kind: "list",
    description:
      "Names of this proxy for which it obtains a certificate by ACME (RFC 8555) and renews it, for agents and, with http-proxy.tls.enable, for " +
      "clients, where no certificate file is set. By setting it you agree to the authority's terms of service.",
    check: (names) => names.map(acmeNameProblem).find((problem) => problem !== undefined),
  },
  "acme.email": {
    restart: IN_PROGRESS,
    kind: "string",
    description: "E-mail address for messages of the authority; by default none.",
    check: (email) => /^[!-~]+@[!-~]+$/.test(email) ? undefined : `${JSON.stringify(email)} is not an e-mail address`,
  },
  "acme.directory": {
    restart: IN_PROGRESS,
    kind: "string",
    default: "https://acme-v02.api.letsencrypt.org/directory",
    description: "URL of the authority's directory; by default Let's Encrypt.",
    check: directoryProblem,
  },
  "acme.profile": {
    restart: IN_PROGRESS,
    kind: "string",
    description: "Certificate profile of the authority, such as shortlived; by default the authority chooses.",
  },
  "acme.challenge": {
    restart: IN_PROGRESS,
    kind: "string",
    default: "http-01",
    choices: ["http-01", "tls-alpn-01"],
    description:
      "Challenge by which control of the names is proved, unless acme.dns-command is set: at acme.http-listen-address (http-01), or at the TLS ports of clients and " +
      "of forwards with network=https, one of which must be reached at port 443 of each name (tls-alpn-01).",
  },
  "acme.http-listen-address": {
    restart: IN_PROGRESS,
    kind: "address",
    default: ":80",
    description:
      "TCP address that answers the authority's HTTP-01 challenges, and nothing else. It must be reached at port 80 of each name.",
  },
  "acme.dns-command": {
    restart: IN_PROGRESS,
    kind: "file",
    description:
      "Program that proves control of the names by DNS-01 instead, called as PROGRAM present|cleanup NAME VALUE for a TXT record; needed for " +
      "wildcards.",
  },
  "acme.file.root-ca": {
    restart: IN_PROGRESS,
    kind: "file",
    description: "Authorities to trust for the URL of the directory, PEM; by default the runtime's.",
  },
  "acme.eab.key-id": { restart: IN_PROGRESS, kind: "string", description: "Key id of an external account, if the authority requires one." },
  "acme.eab.hmac-key": {
    restart: IN_PROGRESS,
    kind: "string",
    secret: true,
    description: "Key of the external account, base64url.",
    check: hmacKeyProblem,
  },
  "acme.fallback.directory": {
    restart: IN_PROGRESS,
    kind: "string",
    description:
      "URL of the directory of another authority, which is used when the first one has failed twice, or at once if there is no valid certificate.",
    check: directoryProblem,
  },
  "acme.fallback.file.root-ca": {
    restart: IN_PROGRESS,
    kind: "file",
    description: "Authorities to trust for that URL, PEM; by default the runtime's.",
  },
  "acme.fallback.eab.key-id": { restart: IN_PROGRESS, kind: "string", description: "Key id of an external account there." },
  "acme.fallback.eab.hmac-key": {
    restart: IN_PROGRESS,
    kind: "string",
    secret: true,
    description: "Key of that account, base64url.",
    check: hmacKeyProblem,
  },
  "acme.store-key-file": {
    restart: IN_PROGRESS,
    kind: "file",
    description:
      "File with a secret of at least 32 characters that all proxies and lbs of the store share: they have one account and one certificate, " +
      "sealed with it in the store. Several lines replace a secret: the first one seals. By default each orders its own.",
  },
});

/** Where agents publish. */
export const publishedAcmeOptions = defineOptions({
  "acme.published": {
    restart: IN_PROGRESS,
    kind: "boolean",
    default: "false",
    description:
      "Obtain certificates for the hosts that agents publish with network=https, as their tokens allow: one for each exact name, at most 20 new " +
      "ones in an hour.",
  },
  "acme.published-names": {
    restart: IN_PROGRESS,
    kind: "integer",
    default: "100",
    description: "Maximum number of published names with certificates.",
    check: (count) => count >= 1 && count <= 10_000 ? undefined : `${count} is not 1 to 10000`,
  },
});

/** As on the command line: `--acme.domain` is `domain`. */
export type AcmeOptions = ValuesOf<typeof acmeOptions>["acme"];

function directoryProblem(url: string): string | undefined {
  return URL.parse(url)?.protocol === "https:" ? undefined : `${JSON.stringify(url)} is not an https URL`;
}

function hmacKeyProblem(key: string): string | undefined {
  return /^[\w-]+=*$/.test(key) ? undefined : "it is not base64url";
}

/** Why an authority could issue no certificate for a name, or `undefined`. */
export function acmeNameProblem(name: string): string | undefined {
  if (isIP(name) || /^(?:\*\.)?(?:[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?\.)+[a-z0-9-]{2,63}$/i.test(name)) return undefined;
  return `${JSON.stringify(name)} is neither a name such as proxy.example, *.proxy.example, nor an address`;
}

/**
 * Checks options that depend on each other.
 * @param hasHosts whether published names get certificates
 * @throws {ConfigError}
 */
export function checkAcmeOptions(options: AcmeOptions, hasHosts = false): void {
  const { domain, email, profile, challenge, dnsCommand, file, eab, fallback, storeKeyFile } = options;
  if (domain.length === 0 && !hasHosts) {
    const given = {
      email,
      profile,
      challenge: challenge === "http-01" ? undefined : challenge,
      "dns-command": dnsCommand,
      "file.root-ca": file.rootCa,
      "eab.key-id": eab.keyId,
      "eab.hmac-key": eab.hmacKey,
      "fallback.directory": fallback.directory,
      "store-key-file": storeKeyFile,
    };
    const [name] = Object.entries(given).find(([, value]) => value !== undefined) ?? [];
    if (name !== undefined) throw new ConfigError(`Cannot use --acme.${name}: --acme.domain is not set`);
  }
  const wildcard = domain.find((name) => name.startsWith("*."));
  if (wildcard !== undefined && dnsCommand === undefined) {
    throw new ConfigError(`Cannot use --acme.domain ${wildcard}: authorities validate wildcards by DNS only; set --acme.dns-command`);
  }
  const address = domain.find((name) => isIP(name));
  if (address !== undefined && dnsCommand !== undefined) {
    throw new ConfigError(`Cannot use --acme.dns-command: --acme.domain has ${address}, and addresses are validated by HTTP only`);
  }
  if (challenge === "tls-alpn-01" && dnsCommand !== undefined) {
    throw new ConfigError("Cannot use --acme.dns-command: --acme.challenge is tls-alpn-01");
  }
  if (challenge === "tls-alpn-01" && address !== undefined) {
    throw new ConfigError(`Cannot use --acme.domain ${address}: addresses are validated by HTTP only; leave out --acme.challenge`);
  }
  for (const [group, { keyId, hmacKey }] of [["acme", eab], ["acme.fallback", fallback.eab]] as const) {
    if ((keyId === undefined) === (hmacKey === undefined)) continue;
    const [given, missing] = keyId === undefined ? ["hmac-key", "key-id"] : ["key-id", "hmac-key"];
    throw new ConfigError(`Cannot use --${group}.eab.${given}: --${group}.eab.${missing} is required too`);
  }
  if (fallback.directory === options.directory) {
    throw new ConfigError("Cannot use --acme.fallback.directory: it is that of --acme.directory");
  }
  const unused = fallback.file.rootCa !== undefined ? "file.root-ca" : fallback.eab.keyId !== undefined ? "eab.key-id" : undefined;
  if (fallback.directory === undefined && unused !== undefined) {
    throw new ConfigError(`Cannot use --acme.fallback.${unused}: --acme.fallback.directory is not set`);
  }
}
