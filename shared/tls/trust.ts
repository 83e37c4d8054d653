// How the clients of a server recognize its certificate: by an authority that systems trust, or by a pin.
import { createHash, X509Certificate } from "node:crypto";
import { rootCertificates } from "node:tls";
import { readPem } from "../net/pem.ts";

/** SHA-256 of a certificate, 64 hexadecimal digits. */
export function pinOf({ fingerprint256 }: X509Certificate): string {
  return fingerprint256.replaceAll(":", "").toLowerCase();
}

/** SHA-256 of a certificate's public key (SubjectPublicKeyInfo) as RFC 7469 §2.4 writes it: `sha256/` and base64. */
export function keyPinOf({ publicKey }: X509Certificate): string {
  return `sha256/${createHash("sha256").update(publicKey.export({ type: "spki", format: "der" })).digest("base64")}`;
}

/** The pin of the key of the first certificate in a chain in PEM. */
export function keyPinOfChain(chain: string): string {
  return keyPinOf(new X509Certificate(readPem(chain, "chain")[0]!.text));
}

/**
 * The pin of the first certificate of a chain in PEM; `undefined` if an authority has issued it that systems trust, because then it is
 * recognized without, and will be replaced within weeks.
 */
export function pinFor(chain: string): string | undefined {
  const certificates = readPem(chain, "chain").map(({ text }) => new X509Certificate(text));
  const issuers = new Set(certificates.map(({ issuer }) => issuer));
  const isPublic = rootCertificates.some((root) => issuers.has(new X509Certificate(root).subject));
  return isPublic ? undefined : pinOf(certificates[0]!);
}
