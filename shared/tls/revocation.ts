// Checks that revocation lists take effect: a list of another authority or an outdated one revokes nothing without an error. The checks
// follow the rules by which webpki selects the list of a certificate.
import { Buffer } from "node:buffer";
import type { X509Certificate } from "node:crypto";
import { flagOf } from "../config/option.ts";
import type { PemBlock } from "../net/pem.ts";
import { type PemFile, unusable } from "./pem.ts";
import { loadX509 } from "./x509.ts";

/** Issuing distribution point (RFC 5280 §5.2.5): the list covers a part of the authority's certificates. */
const DISTRIBUTION_POINT = "2.5.29.28";
/** Delta CRL indicator (RFC 5280 §5.2.4): the list contains only the changes since a base list. */
const DELTA = "2.5.29.27";

/**
 * Checks lists against the authorities whose certificates they should revoke.
 * @returns warnings about lists that may have no effect
 * @throws {ConfigError} for an unusable list
 */
export async function checkRevocationLists(
  pem: PemFile,
  lists: readonly PemBlock[],
  authorities: readonly X509Certificate[],
): Promise<string[]> {
  const x509 = await loadX509();
  const certificates = authorities.map(({ raw }) => new x509.X509Certificate(new Uint8Array(raw)));
  /** Line of each authority's list, by the authority's name in DER (hexadecimal). */
  const lines = new Map<string, number>();
  const warnings: string[] = [];
  for (const { der, line } of lists) {
    let list;
    try {
      list = new x509.X509Crl(der);
    } catch (cause) {
      throw unusable(pem, `line ${line}: the revocation list cannot be read: ${(cause as Error).message}`, cause);
    }
    const what = `the revocation list of ${JSON.stringify(list.issuer)}`;
    const warn = (why: string) => void warnings.push(`${flagOf(pem.option)}: ${what} in ${pem.file} ${why}`);
    if (list.getExtension(DELTA)) throw unusable(pem, `line ${line}: ${what} is a delta CRL; only complete lists are supported`);
    const isPartial = list.getExtension(DISTRIBUTION_POINT) !== null;
    if (isPartial) warn("covers only a part of its authority's certificates: it does not revoke those with another distribution point");
    const issuer = hex(list.issuerName.toArrayBuffer());
    const before = lines.get(issuer);
    // webpki uses the first match
    if (before !== undefined && !isPartial) {
      throw unusable(
        pem,
        `line ${line}: ${what} duplicates that in line ${before}; only one list per authority is used: keep the newest`,
      );
    }
    lines.set(issuer, line);
    const issuers = certificates.filter(({ subjectName }) => hex(subjectName.toArrayBuffer()) === issuer);
    // only a warning: it may be the list of an intermediate authority, whose certificate clients send
    if (issuers.length === 0) warn("is not issued by an authority in client-ca and does not revoke their certificates");
    else if (!(await Promise.all(issuers.map((authority) => isSignedBy(list, authority)))).includes(true)) {
      throw unusable(
        pem,
        `line ${line}: ${what} is not signed by the authority of that name in client-ca: every certificate would be rejected`,
      );
    }
    const now = Date.now();
    if (list.thisUpdate.getTime() > now) warn(`is dated in the future, ${list.thisUpdate.toISOString()}; check this machine's clock`);
    if (list.nextUpdate && list.nextUpdate.getTime() < now) {
      warn(`is outdated since ${list.nextUpdate.toISOString()}: later revocations are missing`);
    }
  }
  return warnings;
}

async function isSignedBy(list: import("@peculiar/x509").X509Crl, authority: import("@peculiar/x509").X509Certificate): Promise<boolean> {
  try {
    return await list.verify({ publicKey: authority.publicKey });
  } catch {
    return true; // an algorithm unknown to this library: the engine checks it
  }
}

function hex(bytes: ArrayBuffer): string {
  return Buffer.from(bytes).toString("hex");
}
