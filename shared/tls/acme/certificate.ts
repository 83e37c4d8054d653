// Certificates of an ACME authority: the request for one, its id, and when it should be renewed.
import { Buffer } from "node:buffer";
import { createPrivateKey, createPublicKey, webcrypto, type X509Certificate } from "node:crypto";
import { isIP } from "node:net";
import { loadX509 } from "../x509.ts";
import type { RenewalInfo } from "./client.ts";

const ALGORITHM = { name: "ECDSA", namedCurve: "P-256", hash: "SHA-256" };
const crypto = webcrypto as unknown as Crypto;

/**
 * Creates a certificate request (PKCS #10) in DER.
 * @param key ECDSA P-256, PEM
 */
export async function createRequest(names: readonly string[], key: string): Promise<Uint8Array> {
  const x509 = await loadX509();
  const [privateKey, publicKey] = [createPrivateKey(key), createPublicKey(key)];
  const keys = {
    privateKey: await crypto.subtle.importKey("pkcs8", bytesOf(privateKey.export({ type: "pkcs8", format: "der" })), ALGORITHM, true, [
      "sign",
    ]),
    publicKey: await crypto.subtle.importKey("spki", bytesOf(publicKey.export({ type: "spki", format: "der" })), ALGORITHM, true, [
      "verify",
    ]),
  };
  const request = await x509.Pkcs10CertificateRequestGenerator.create({
    keys,
    signingAlgorithm: ALGORITHM,
    extensions: [
      new x509.SubjectAlternativeNameExtension(names.map((value) => ({ type: isIP(value) ? "ip" as const : "dns" as const, value }))),
    ],
  }, crypto);
  return new Uint8Array(request.rawData);
}

function bytesOf(der: Buffer): Uint8Array<ArrayBuffer> {
  return new Uint8Array(der);
}

/** Whether a certificate is for all of `names`. */
export function covers({ subjectAltName = "" }: X509Certificate, names: readonly string[]): boolean {
  const known = (subjectAltName ?? "").split(", ").map((name) => name.replace(/^(?:DNS|IP Address):/, "").toLowerCase());
  return names.every((name) => known.includes(name.toLowerCase()));
}

/** The id of a certificate for renewal information (RFC 9773 §4.1); `undefined` if it has no authority key identifier. */
export async function idOf(certificate: X509Certificate): Promise<string | undefined> {
  const x509 = await loadX509();
  const { keyId } = new x509.X509Certificate(bytesOf(certificate.raw)).getExtension(x509.AuthorityKeyIdentifierExtension) ?? {};
  if (keyId === undefined) return undefined;
  const hex = certificate.serialNumber.padStart(certificate.serialNumber.length + certificate.serialNumber.length % 2, "0");
  const serial = Buffer.from(/^[89a-f]/i.test(hex) ? `00${hex}` : hex, "hex"); // a DER integer with that bit would be negative
  return `${Buffer.from(keyId, "hex").toString("base64url")}.${serial.toString("base64url")}`;
}

/** A certificate with less than this lifetime in milliseconds is renewed after half of it, others after two thirds. */
const SHORT_LIVED_MS = 10 * 86_400_000;

/** When to renew a certificate if the authority does not say, in milliseconds since 1970. */
export function renewalTime({ validFrom, validTo }: X509Certificate): number {
  const [start, end] = [Date.parse(validFrom), Date.parse(validTo)];
  return start + (end - start) * (end - start < SHORT_LIVED_MS ? 1 / 2 : 2 / 3);
}

/**
 * A moment in the authority's window, in milliseconds since 1970, but early enough for further attempts before the end of the certificate.
 * @param random in [0, 1)
 */
export function timeWithin({ start, end }: RenewalInfo, { validFrom, validTo }: X509Certificate, random: number): number {
  const [from, to] = [Date.parse(validFrom), Date.parse(validTo)];
  return Math.min(start + random * (end - start), to - (to - from) / 10);
}
