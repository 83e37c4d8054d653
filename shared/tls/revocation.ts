// Do revocation lists revoke what they are meant to? A list of another authority, or of yesterday, is used and revokes nothing: that has to be
// said. What is said here follows the rules by which webpki looks for a certificate's list.
import { Buffer } from "node:buffer";
import type { X509Certificate } from "node:crypto";
import { flagOf } from "../config/option.ts";
import type { PemBlock } from "../net/pem.ts";
import { type PemFile, unusable } from "./pem.ts";

/** Issuing distribution point (RFC 5280 §5.2.5): the list is for a part of the authority's certificates. */
const DISTRIBUTION_POINT = "2.5.29.28";
/** Delta CRL indicator (RFC 5280 §5.2.4): the list has only what has changed since another one. */
const DELTA = "2.5.29.27";

/**
 * Checks lists against the authorities whose certificates they are to revoke.
 * @returns what is wrong but may be meant so
 * @throws {ConfigError} for one that cannot be used
 */
export async function checkRevocationLists(
  pem: PemFile,
  lists: readonly PemBlock[],
  authorities: readonly X509Certificate[],
): Promise<string[]> {
  const x509 = await loadX509();
  const certificates = authorities.map(({ raw }) => new x509.X509Certificate(new Uint8Array(raw)));
  /** Line of the list that an authority has, by the authority's name in DER. */
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
    if (list.getExtension(DELTA)) throw unusable(pem, `line ${line}: ${what} is a delta CRL, and only complete ones can be used`);
    const isPartial = list.getExtension(DISTRIBUTION_POINT) !== null;
    if (isPartial) warn("is for a part of its authority's certificates alone: it revokes none that names another distribution point");
    const issuer = hex(list.issuerName.toArrayBuffer());
    const before = lines.get(issuer);
    // the first one found is the one that counts
    if (before !== undefined && !isPartial) {
      throw unusable(
        pem,
        `line ${line}: ${what} is there already, in line ${before}, and one list of an authority counts: keep the newest`,
      );
    }
    lines.set(issuer, line);
    const own = certificates.filter(({ subjectName }) => hex(subjectName.toArrayBuffer()) === issuer);
    // it may be that of an authority in between, which clients send themselves
    if (own.length === 0) warn("is by none of the authorities of the client CA, and does not revoke their certificates");
    else if (!(await Promise.all(own.map((authority) => isSignedBy(list, authority)))).includes(true)) {
      throw unusable(
        pem,
        `line ${line}: ${what} is not signed by the authority of that name in the client CA: every certificate would be refused`,
      );
    }
    const now = Date.now();
    if (list.thisUpdate.getTime() > now) warn(`is of a later time than this machine's clock has: ${list.thisUpdate.toISOString()}`);
    if (list.nextUpdate && list.nextUpdate.getTime() < now) {
      warn(`should have been replaced by ${list.nextUpdate.toISOString()}; what was revoked since is not known`);
    }
  }
  return warnings;
}

async function isSignedBy(list: import("@peculiar/x509").X509Crl, authority: import("@peculiar/x509").X509Certificate): Promise<boolean> {
  try {
    return await list.verify({ publicKey: authority.publicKey });
  } catch {
    return true; // by an algorithm that this library does not know: whether the engine does, it says itself
  }
}

function hex(bytes: ArrayBuffer): string {
  return Buffer.from(bytes).toString("hex");
}

/** Only where it is needed: loading it takes longer than the rest of the start. */
export async function loadX509(): Promise<typeof import("@peculiar/x509")> {
  await import("reflect-metadata");
  return await import("@peculiar/x509");
}
