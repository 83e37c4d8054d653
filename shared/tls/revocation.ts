// Do revocation lists revoke what they are meant to? A list of another authority, or of yesterday, is used and revokes nothing: that has to be said.
import type { X509Certificate } from "node:crypto";
import { flagOf } from "../cli/option.ts";
import { type PemFile, unusable } from "./pem.ts";

/**
 * Checks lists (DER) against the authorities whose certificates they are to revoke.
 * @returns what is wrong but may be meant so
 * @throws {ConfigError} for one that cannot be read
 */
export async function checkRevocationLists(pem: PemFile, lists: Uint8Array[], authorities: X509Certificate[]): Promise<string[]> {
  const x509 = await loadX509();
  const subjects = authorities.map(({ raw }) => new x509.X509Certificate(new Uint8Array(raw)).subject);
  return lists.flatMap((der, index) => {
    let list;
    try {
      list = new x509.X509Crl(new Uint8Array(der));
    } catch (cause) {
      throw unusable(pem, `its revocation list ${index + 1} cannot be read: ${(cause as Error).message}`, cause);
    }
    const what = `${flagOf(pem.option)}: the revocation list of ${JSON.stringify(list.issuer)} in ${pem.file}`;
    return [
      // it may be that of an authority in between, which clients send themselves
      ...subjects.includes(list.issuer)
        ? []
        : [`${what} is by none of the authorities of the client CA, and does not revoke their certificates`],
      ...list.nextUpdate && list.nextUpdate.getTime() < Date.now()
        ? [`${what} should have been replaced by ${list.nextUpdate.toISOString()}; what was revoked since is not known`]
        : [],
    ];
  });
}

/** Only where it is needed: loading it takes longer than the rest of the start. */
export async function loadX509(): Promise<typeof import("@peculiar/x509")> {
  await import("reflect-metadata");
  return await import("@peculiar/x509");
}
