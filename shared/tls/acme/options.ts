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
      "clients, where no certificate file is set. Setting it agrees to the authority's terms of service.",
    check: (names) => names.map(nameProblem).find((problem) => problem !== undefined),
  },
  "acme.email": {
    restart: IN_PROGRESS,
    kind: "string",
    description: "Address at which the authority reaches you; by default none.",
    check: (email) => /^[!-~]+@[!-~]+$/.test(email) ? undefined : `${JSON.stringify(email)} is not an e-mail address`,
  },
  "acme.directory": {
    restart: IN_PROGRESS,
    kind: "string",
    default: "https://acme-v02.api.letsencrypt.org/directory",
    description: "URL of the authority's directory; by default Let's Encrypt.",
    check: (url) => URL.parse(url)?.protocol === "https:" ? undefined : `${JSON.stringify(url)} is not an https URL`,
  },
  "acme.profile": {
    restart: IN_PROGRESS,
    kind: "string",
    description: "Profile of the certificate that the authority offers, such as shortlived; by default the authority chooses.",
  },
  "acme.challenge": {
    restart: IN_PROGRESS,
    kind: "string",
    default: "http-01",
    choices: ["http-01", "tls-alpn-01"],
    description:
      "How control of the names is proved, unless by acme.dns-command: at acme.http-listen-address (http-01), or at the TLS ports of clients and " +
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
    check: (key) => /^[\w-]+=*$/.test(key) ? undefined : "it is not base64url",
  },
});

/** As on the command line: `--acme.domain` is `domain`. */
export type AcmeOptions = ValuesOf<typeof acmeOptions>["acme"];

function nameProblem(name: string): string | undefined {
  if (isIP(name) || /^(?:\*\.)?(?:[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?\.)+[a-z0-9-]{2,63}$/i.test(name)) return undefined;
  return `${JSON.stringify(name)} is neither a name such as proxy.example, *.proxy.example, nor an address`;
}

/**
 * Checks options that depend on each other.
 * @throws {ConfigError}
 */
export function checkAcmeOptions({ domain, email, profile, challenge, dnsCommand, file, eab }: AcmeOptions): void {
  if (domain.length === 0) {
    const given = {
      email,
      profile,
      challenge: challenge === "http-01" ? undefined : challenge,
      "dns-command": dnsCommand,
      "file.root-ca": file.rootCa,
      "eab.key-id": eab.keyId,
      "eab.hmac-key": eab.hmacKey,
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
  if ((eab.keyId === undefined) !== (eab.hmacKey === undefined)) {
    const [given, missing] = eab.keyId === undefined ? ["hmac-key", "key-id"] : ["key-id", "hmac-key"];
    throw new ConfigError(`Cannot use --acme.eab.${given}: --acme.eab.${missing} is required too`);
  }
}
