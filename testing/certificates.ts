// Certificates for tests and the demo, generated at run time: an authority, the certificates that it issues, and its revocation lists.
import "reflect-metadata";
import * as x509 from "@peculiar/x509";
import { createHash, createPrivateKey, createPublicKey, webcrypto } from "node:crypto";
import { isIP } from "node:net";
import { secrets } from "./secrets.ts";

const ALGORITHM = { name: "ECDSA", namedCurve: "P-256", hash: "SHA-256" };
const DAY_MS = 86_400_000;

/** A certificate and its private key, both PEM. */
export interface Issued {
  cert: string;
  key: string;
  /** The serial number, hexadecimal. */
  serialNumber: string;
}

export interface Authority extends Issued {
  issue(options: IssueOptions): Promise<Issued>;
  /** Creates a revocation list, PEM, that is valid for `days`; negative for an outdated one. Default 1. */
  revocationList(serialNumbers: string[], days?: number): Promise<string>;
}

export interface IssueOptions {
  /** Subject alternative names: DNS names, addresses, URIs and e-mail addresses, told apart by their form. May be empty. */
  names: string[];
  /** Common name. Default: the first name. */
  commonName?: string;
  /** Organizational units. Default: none. */
  units?: string[];
  /** Validity in days; negative for an expired certificate. Default 1. */
  days?: number;
  /** Days until the certificate becomes valid. Default 0. */
  startsIn?: number;
  /** Its private key, PEM. Default: a new one. */
  key?: string;
}

/** Creates a new authority. */
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
    cert: `${cert.toString("pem")}\n`,
    key: await exportKey(keys.privateKey),
    serialNumber: cert.serialNumber,
    async issue({ names, commonName = names[0], units = [], days = 1, startsIn, key }) {
      const own = key === undefined ? await crypto.subtle.generateKey(ALGORITHM, true, ["sign", "verify"]) : await importKey(key);
      const issued = await x509.X509CertificateGenerator.create({
        subject: [`CN=${commonName}`, ...units.map((unit) => `OU=${unit}`)].join(","),
        issuer: cert.subject,
        publicKey: own.publicKey,
        signingKey: keys.privateKey,
        signingAlgorithm: ALGORITHM,
        ...validity(days),
        ...startsIn === undefined ? {} : { notBefore: new Date(Date.now() + startsIn * DAY_MS) },
        extensions: [
          new x509.BasicConstraintsExtension(false, undefined, true),
          ...names.length === 0 ? [] : [new x509.SubjectAlternativeNameExtension(names.map((value) => ({ type: typeOf(value), value })))],
          new x509.ExtendedKeyUsageExtension([x509.ExtendedKeyUsage.serverAuth, x509.ExtendedKeyUsage.clientAuth]),
          await x509.AuthorityKeyIdentifierExtension.create(keys.publicKey),
        ],
      });
      return { cert: `${issued.toString("pem")}\n`, key: await exportKey(own.privateKey), serialNumber: issued.serialNumber };
    },
    async revocationList(serialNumbers, days = 1) {
      const list = await x509.X509CrlGenerator.create({
        issuer: cert.subject,
        thisUpdate: new Date(Date.now() - 10 * DAY_MS),
        nextUpdate: new Date(Date.now() + days * DAY_MS),
        entries: serialNumbers.map((serialNumber) => ({ serialNumber, revocationDate: new Date() })),
        signingKey: keys.privateKey,
        signingAlgorithm: ALGORITHM,
        extensions: [await x509.AuthorityKeyIdentifierExtension.create(keys.publicKey)],
      });
      return `${x509.PemConverter.encode(list.rawData, "X509 CRL")}\n`; // the library's toString writes "CRL", which is not a known label
    },
  };
}

export interface SelfSignedOptions extends Pick<IssueOptions, "names" | "days" | "startsIn"> {
  /** Extended key usage. Default: none, as in OpenSSL. */
  purpose?: "server" | "client";
}

/** Creates a self-signed certificate as `openssl req -x509` does: that of an authority (CA:TRUE). */
export async function makeSelfSignedAuthority({ names, days = 1, startsIn, purpose }: SelfSignedOptions): Promise<Issued> {
  const crypto = webcrypto as unknown as Crypto;
  x509.cryptoProvider.set(crypto);
  const keys = await crypto.subtle.generateKey(ALGORITHM, true, ["sign", "verify"]);
  const cert = await x509.X509CertificateGenerator.createSelfSigned({
    name: "CN=Self-signed",
    keys,
    signingAlgorithm: ALGORITHM,
    ...validity(days),
    ...startsIn === undefined ? {} : { notBefore: new Date(Date.now() + startsIn * DAY_MS) },
    extensions: [
      new x509.BasicConstraintsExtension(true, undefined, true),
      new x509.SubjectAlternativeNameExtension(names.map((value) => ({ type: typeOf(value), value }))),
      ...purpose === undefined
        ? []
        : [new x509.ExtendedKeyUsageExtension([x509.ExtendedKeyUsage[purpose === "server" ? "serverAuth" : "clientAuth"]])],
    ],
  });
  return { cert: `${cert.toString("pem")}\n`, key: await exportKey(keys.privateKey), serialNumber: cert.serialNumber };
}

/** SHA-256 of a certificate, hexadecimal. */
export function pinOf(cert: string): string {
  return createHash("sha256").update(new Uint8Array(new x509.X509Certificate(cert).rawData)).digest("hex");
}

/** SHA-256 of a certificate's public key, as RFC 7469 has it. */
export function keyPinOf(cert: string): string {
  const key = createPublicKey(cert).export({ type: "spki", format: "der" });
  return `sha256/${createHash("sha256").update(key).digest("base64")}`;
}

async function importKey(pem: string): Promise<CryptoKeyPair> {
  const { subtle } = webcrypto as unknown as Crypto;
  const spki = createPublicKey(pem).export({ type: "spki", format: "der" });
  return {
    privateKey: await subtle.importKey("pkcs8", createPrivateKey(pem).export({ type: "pkcs8", format: "der" }), ALGORITHM, true, ["sign"]),
    publicKey: await subtle.importKey("spki", spki, ALGORITHM, true, ["verify"]),
  };
}

function typeOf(name: string): "ip" | "dns" | "url" | "email" {
  if (isIP(name)) return "ip";
  if (name.includes("@")) return "email";
  return name.includes(":") ? "url" : "dns";
}

function validity(days: number): { notBefore: Date; notAfter: Date } {
  const end = Date.now() + days * DAY_MS;
  return { notBefore: new Date(Math.min(Date.now(), end) - DAY_MS), notAfter: new Date(end) };
}

async function exportKey(key: CryptoKey): Promise<string> {
  const pem = `${x509.PemConverter.encode(await webcrypto.subtle.exportKey("pkcs8", key), "PRIVATE KEY")}\n`;
  secrets.addKeys("a private key of TLS", pem);
  return pem;
}
