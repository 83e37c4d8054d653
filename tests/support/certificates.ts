// Certificates made on the spot, for tests and the demo: an authority, what it issues, and what it revokes.
import "reflect-metadata";
import * as x509 from "@peculiar/x509";
import { createHash, webcrypto } from "node:crypto";
import { isIP } from "node:net";

const ALGORITHM = { name: "ECDSA", namedCurve: "P-256", hash: "SHA-256" };
const DAY_MS = 86_400_000;

/** A certificate and its private key, both PEM. */
export interface Issued {
  cert: string;
  key: string;
  /** As in the certificate, hexadecimal. */
  serialNumber: string;
}

export interface Authority extends Issued {
  /** `names` are DNS names and addresses; negative `days` make a certificate that has expired. Default one day. */
  issue(options: { names: string[]; days?: number }): Promise<Issued>;
  /** A revocation list, PEM. */
  revocationList(serialNumbers: string[]): Promise<string>;
}

/** An authority of its own. */
export async function makeAuthority(name = "Test CA"): Promise<Authority> {
  const crypto = webcrypto as unknown as Crypto;
  x509.cryptoProvider.set(crypto);
  const keys = await crypto.subtle.generateKey(ALGORITHM, true, ["sign", "verify"]);
  const cert = await x509.X509CertificateGenerator.createSelfSigned({
    name: `CN=${name}`,
    keys,
    signingAlgorithm: ALGORITHM,
    ...validity(10),
    extensions: [
      new x509.BasicConstraintsExtension(true, 1, true),
      new x509.KeyUsagesExtension(x509.KeyUsageFlags.keyCertSign | x509.KeyUsageFlags.cRLSign, true),
      await x509.SubjectKeyIdentifierExtension.create(keys.publicKey),
    ],
  });
  return {
    cert: cert.toString("pem"),
    key: await exportKey(keys.privateKey),
    serialNumber: cert.serialNumber,
    async issue({ names, days = 1 }) {
      const own = await crypto.subtle.generateKey(ALGORITHM, true, ["sign", "verify"]);
      const issued = await x509.X509CertificateGenerator.create({
        subject: `CN=${names[0]}`,
        issuer: cert.subject,
        publicKey: own.publicKey,
        signingKey: keys.privateKey,
        signingAlgorithm: ALGORITHM,
        ...validity(days),
        extensions: [
          new x509.BasicConstraintsExtension(false, undefined, true),
          new x509.SubjectAlternativeNameExtension(names.map((value) => ({ type: isIP(value) ? "ip" as const : "dns" as const, value }))),
          new x509.ExtendedKeyUsageExtension([x509.ExtendedKeyUsage.serverAuth, x509.ExtendedKeyUsage.clientAuth]),
          await x509.AuthorityKeyIdentifierExtension.create(keys.publicKey),
        ],
      });
      return { cert: issued.toString("pem"), key: await exportKey(own.privateKey), serialNumber: issued.serialNumber };
    },
    async revocationList(serialNumbers) {
      const list = await x509.X509CrlGenerator.create({
        issuer: cert.subject,
        thisUpdate: new Date(Date.now() - DAY_MS),
        nextUpdate: new Date(Date.now() + DAY_MS),
        entries: serialNumbers.map((serialNumber) => ({ serialNumber, revocationDate: new Date() })),
        signingKey: keys.privateKey,
        signingAlgorithm: ALGORITHM,
        extensions: [await x509.AuthorityKeyIdentifierExtension.create(keys.publicKey)],
      });
      return x509.PemConverter.encode(list.rawData, "X509 CRL"); // its own toString writes "CRL", which nobody reads
    },
  };
}

/** SHA-256 of a certificate, hexadecimal. */
export function pinOf(cert: string): string {
  return createHash("sha256").update(new Uint8Array(new x509.X509Certificate(cert).rawData)).digest("hex");
}

function validity(days: number): { notBefore: Date; notAfter: Date } {
  const end = Date.now() + days * DAY_MS;
  return { notBefore: new Date(Math.min(Date.now(), end) - DAY_MS), notAfter: new Date(end) };
}

async function exportKey(key: CryptoKey): Promise<string> {
  return x509.PemConverter.encode(await webcrypto.subtle.exportKey("pkcs8", key), "PRIVATE KEY");
}
