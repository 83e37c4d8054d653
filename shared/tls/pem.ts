// PEM texts (RFC 7468) as certificates, keys and revocation lists that fit together. Every fault is an error that names option and file, and
// never shows a key. Where the texts come from, and who they are shown to, is not known here.
import { createPrivateKey, type KeyObject, X509Certificate } from "node:crypto";
import { ConfigError, flagOf } from "../cli/option.ts";

/** What an option's file holds. */
export interface PemFile {
  /** Without the dashes: `agent-server.tls.file.cert`. */
  readonly option: string;
  /** Its name. */
  readonly file: string;
  readonly text: string;
}

/**
 * The certificates in the file, one at least.
 * @throws {ConfigError}
 */
export function readCertificates(pem: PemFile): X509Certificate[] {
  return blocks(pem, ["CERTIFICATE"]).map((block, index) => {
    try {
      return new X509Certificate(block);
    } catch (cause) {
      throw unusable(pem, `its certificate ${index + 1} cannot be read: ${(cause as Error).message}`, cause);
    }
  });
}

const KEY_LABELS = ["PRIVATE KEY", "ENCRYPTED PRIVATE KEY", "EC PRIVATE KEY", "RSA PRIVATE KEY"];

/**
 * The first private key in the file: PKCS #8, PKCS #1 or SEC 1. `password` is for one that is encrypted, and belongs to `passwordOption`.
 * @throws {ConfigError}
 */
export function readPrivateKey(pem: PemFile, password: string | undefined, passwordOption: string): KeyObject {
  const block = blocks(pem, KEY_LABELS)[0]!;
  const encrypted = block.includes("-----BEGIN ENCRYPTED") || /^Proc-Type: *4,ENCRYPTED/m.test(block);
  if (encrypted && !password) throw unusable(pem, `the key is encrypted: ${flagOf(passwordOption)} is needed`);
  try {
    return createPrivateKey({ key: block, format: "pem", passphrase: encrypted ? password : undefined });
  } catch (cause) {
    if (!encrypted) throw unusable(pem, "the private key is damaged, or of a kind that cannot be used", cause);
    const wrong = /bad.?decrypt/i.test((cause as Error).message);
    const why = wrong
      ? `the password of ${flagOf(passwordOption)} is wrong`
      : `it cannot be decrypted: ${flagOf(passwordOption)} is wrong, ` +
        "or the encryption is none that every platform knows, as AES with PBKDF2 is";
    throw unusable(pem, why, cause);
  }
}

/**
 * The revocation lists in the file, DER, one at least.
 * @throws {ConfigError}
 */
export function readRevocationLists(pem: PemFile): Uint8Array[] {
  return blocks(pem, ["X509 CRL"]).map((block) => new Uint8Array(Buffer.from(block.replace(/-----[^-]*-----/g, ""), "base64")));
}

/**
 * Checks that the key is that of the first certificate, which has not expired.
 * @throws {ConfigError}
 * @returns what is wrong but may be meant so
 */
export function checkIdentity(cert: PemFile, chain: X509Certificate[], key: PemFile, privateKey: KeyObject): string[] {
  const [own, ...others] = chain as [X509Certificate, ...X509Certificate[]];
  if (!own.checkPrivateKey(privateKey)) {
    const order = others.some((other) => other.checkPrivateKey(privateKey))
      ? "; the certificate of the key must come first in the file"
      : "";
    throw unusable(key, `the key does not belong to the certificate ${nameOf(own)} of ${flagOf(cert.option)} ${cert.file}${order}`);
  }
  const now = Date.now();
  if (Date.parse(own.validTo) < now) {
    throw unusable(cert, `the certificate ${nameOf(own)} has expired on ${iso(own.validTo)}`);
  }
  const warnings: string[] = [];
  if (Date.parse(own.validFrom) > now) {
    // a machine without a clock of its own may be right about everything but the time
    warnings.push(`${flagOf(cert.option)}: the certificate ${nameOf(own)} of ${cert.file} is not valid before ${iso(own.validFrom)}`);
  }
  for (const other of others.filter(({ validTo }) => Date.parse(validTo) < now)) {
    warnings.push(
      `${flagOf(cert.option)}: the certificate ${nameOf(other)} in the chain of ${cert.file} has expired on ${iso(other.validTo)}`,
    );
  }
  return warnings;
}

/** Says that a file cannot be used, and why. */
export function unusable({ option, file }: PemFile, why: string, cause?: unknown): ConfigError {
  return new ConfigError(`Cannot use ${flagOf(option)} ${file}: ${why}`, cause === undefined ? undefined : { cause });
}

/** Those with one of the labels, one at least. */
function blocks(pem: PemFile, labels: readonly string[]): string[] {
  const all = [...pem.text.matchAll(/-----BEGIN ([^\r\n-]+)-----[^]*?-----END \1-----/g)];
  const found = all.filter(([, label]) => labels.includes(label!)).map(([block]) => block);
  if (found.length > 0) return found;
  const others = [...new Set(all.map(([, label]) => label))].join(", ");
  throw unusable(pem, `it has no ${labels[0]} in PEM${others === "" ? "" : `, but ${others}`}`);
}

/** On one line. */
function nameOf({ subject }: X509Certificate): string {
  return JSON.stringify(subject.replace(/\n/g, ", "));
}

function iso(date: string): string {
  return new Date(date).toISOString();
}
