// What to do about a failed TLS handshake with a proxy.
import { flagOf } from "../config/option.ts";
import type { NetError } from "../net/errors.ts";

/** The options that advice names, without dashes. */
export interface TlsOptionNames {
  /** Group of the options of TLS: `agent-client.tls`. */
  readonly group: string;
  /** The option with the proxy's address. */
  readonly address: string;
}

/** Returns the remedy; `undefined` if the certificate is not the cause. `rootCa` is the file of authorities, if there is one. */
export function tlsAdvice(
  { message, remote }: NetError,
  { group, address }: TlsOptionNames,
  rootCa: string | undefined,
): string | undefined {
  if (!/certificate|UnknownCA/i.test(message)) return undefined; // also alerts about this end's (RFC 8446 §6.2)
  const tls = flagOf(group);
  if (remote) return `the proxy requires a client certificate that it accepts: set ${tls}.file.cert and its key`;
  if (message.includes("is not the pinned one")) {
    return `the proxy's certificate does not match ${tls}.pin-sha256; the proxy logs its pin on startup`;
  }
  if (/certificate (?:not valid yet|expired)/.test(message)) {
    return "if the certificate should be valid now, set the clock of this machine";
  }
  const authority = `${tls}.file.root-ca`;
  if (message.includes("CA:TRUE")) {
    return `${authority} must contain this very certificate, or the proxy must use one without CA:TRUE`;
  }
  if (message.includes("not valid for name")) {
    return `use a name of the certificate in ${flagOf(address)}, or pin the certificate with ${tls}.pin-sha256`;
  }
  if (rootCa) return `the certificate must be issued by an authority of ${authority}`;
  return `unless this system trusts the certificate's authority, set ${tls}.pin-sha256, which a proxy with a self-signed ` +
    `certificate logs on startup, or set ${authority}`;
}

/** Whether Node.js refuses a certificate with this error code because it does not know the authority. */
export function isUnknownIssuer(code: string | undefined): boolean {
  return UNKNOWN_ISSUERS.has(code ?? "");
}

const UNKNOWN_ISSUERS: ReadonlySet<string> = new Set([
  "DEPTH_ZERO_SELF_SIGNED_CERT",
  "SELF_SIGNED_CERT_IN_CHAIN",
  "UNABLE_TO_GET_ISSUER_CERT_LOCALLY",
  "UNABLE_TO_VERIFY_LEAF_SIGNATURE",
]);
