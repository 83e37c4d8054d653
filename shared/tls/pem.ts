// Parses and checks certificates, private keys and revocation lists in PEM files. Errors name the option, the file and the line, and never
// quote a key. Uses neither files nor the network.
import { createPrivateKey, type KeyObject, X509Certificate } from "node:crypto";
import { ConfigError, flagOf } from "../config/option.ts";
import { type PemBlock, PemError, type PemKind, readPem } from "../net/pem.ts";

/** The content of the file that an option names. */
export interface PemFile {
  /** Without the dashes: `agent-server.tls.file.cert`. */
  readonly option: string;
  /** File name. */
  readonly file: string;
  /** The content, one character per byte. */
  readonly text: string;
}

/** The certificates of a file. */
export interface Certificates {
  /** At least one. */
  readonly all: readonly X509Certificate[];
  /** The certificates only, as plain PEM for the network. */
  readonly text: string;
}

/**
 * Parses the certificates in a file, at least one. A chain's file may also contain its key; a file of authorities nothing else.
 * @throws {ConfigError}
 */
export function readCertificates(pem: PemFile, kind: "chain" | "authorities"): Certificates {
  const certificates = blocks(pem, kind);
  const all = certificates.map((block) => {
    try {
      return new X509Certificate(block.text);
    } catch (cause) {
      throw unusable(pem, `line ${block.line}: the certificate cannot be read: ${(cause as Error).message}`, cause);
    }
  });
  return { all, text: textOf(certificates) };
}

/**
 * Parses the private key in a file: PKCS #8, PKCS #1 or SEC 1. `password` decrypts an encrypted key and is the value of `passwordOption`;
 * without that option, encrypted keys are rejected.
 * @throws {ConfigError}
 */
export function readPrivateKey(pem: PemFile, password?: string, passwordOption?: string): KeyObject {
  const [block] = blocks(pem, "private key") as [PemBlock];
  const encrypted = block.label === "ENCRYPTED PRIVATE KEY" || block.hasHeaders;
  if (encrypted && passwordOption === undefined) {
    throw unusable(pem, "the key is encrypted, and no option sets its password; openssl pkey -in FILE -out NEW decrypts it");
  }
  if (encrypted && !password) throw unusable(pem, `the key is encrypted: ${flagOf(passwordOption!)} is required`);
  try {
    const key = createPrivateKey({ key: block.text, format: "pem", passphrase: encrypted ? password : undefined });
    checkKind(pem, key);
    return key;
  } catch (cause) {
    if (cause instanceof ConfigError) throw cause;
    if (!encrypted) throw unusable(pem, "the private key is damaged or of an unsupported type", cause);
    const wrong = /bad.?decrypt/i.test((cause as Error).message);
    const why = wrong
      ? `the password of ${flagOf(passwordOption!)} is wrong`
      : `it cannot be decrypted: ${flagOf(passwordOption!)} is wrong, ` +
        "or its encryption is not supported on every platform; use AES with PBKDF2";
    throw unusable(pem, why, cause);
  }
}

const CURVES = ["prime256v1", "secp384r1", "secp521r1"];
const MIN_RSA_BITS = 2048;

/** @throws {ConfigError} for a key type that the network does not support */
function checkKind(pem: PemFile, { asymmetricKeyType: type, asymmetricKeyDetails: details }: KeyObject): void {
  const { modulusLength: bits, namedCurve: curve } = details ?? {};
  if (type === "rsa" && bits !== undefined && bits < MIN_RSA_BITS) {
    throw unusable(pem, `its RSA key has ${bits} bits; at least ${MIN_RSA_BITS} are required`);
  }
  const supported = type === "rsa" || type === "ed25519" || type === "ec" && (curve === undefined || CURVES.includes(curve));
  if (!supported) throw unusable(pem, `its key is ${curve ?? type}; RSA, P-256, P-384, P-521 or Ed25519 is required`);
}

/** The revocation lists of a file, as blocks and as plain PEM. */
export interface RevocationLists {
  /** At least one. */
  readonly all: readonly PemBlock[];
  readonly text: string;
}

/**
 * Parses the revocation lists in a file, at least one.
 * @throws {ConfigError}
 */
export function readRevocationLists(pem: PemFile): RevocationLists {
  const all = blocks(pem, "revocation lists");
  return { all, text: textOf(all) };
}

/** The role of a certificate's owner in TLS; it decides which key usage is required. */
export type Side = "server" | "client";

/** Extended key usages (RFC 5280 §4.2.1.12). */
const PURPOSES: Readonly<Record<Side, string>> = { server: "1.3.6.1.5.5.7.3.1", client: "1.3.6.1.5.5.7.3.2" };

/**
 * Checks that the key belongs to the first certificate and that this has not expired.
 * @throws {ConfigError}
 * @returns warnings about certificates that may be unusable
 */
export function checkIdentity(
  cert: PemFile,
  chain: readonly X509Certificate[],
  key: PemFile,
  privateKey: KeyObject,
  side: Side,
): string[] {
  const [leaf, ...others] = chain as [X509Certificate, ...X509Certificate[]];
  if (!leaf.checkPrivateKey(privateKey)) {
    const order = others.some((other) => other.checkPrivateKey(privateKey))
      ? "; the certificate of the key must come first in the file"
      : "";
    throw unusable(key, `the key does not belong to the certificate ${nameOf(leaf)} of ${flagOf(cert.option)} ${cert.file}${order}`);
  }
  const now = Date.now();
  if (Date.parse(leaf.validTo) < now) {
    throw unusable(
      cert,
      `the certificate ${nameOf(leaf)} expired on ${iso(leaf.validTo)}; if that is in the future, this machine's clock is wrong`,
    );
  }
  const warnings: string[] = [];
  const warn = (certificate: X509Certificate, why: string) =>
    warnings.push(`${flagOf(cert.option)}: the certificate ${nameOf(certificate)} of ${cert.file} ${why}`);
  if (Date.parse(leaf.validFrom) > now) {
    // only a warning: a machine without a battery-backed clock may have the wrong time at start
    warn(leaf, `is not valid before ${iso(leaf.validFrom)}`);
  }
  if (leaf.ca) {
    const effect = side === "server"
      ? "agents and lb accept it only if their root-ca contains this very certificate"
      : "reverse-http proxies reject it";
    warn(leaf, `is a CA certificate (CA:TRUE): ${effect}`);
  }
  if (side === "server" && leaf.subjectAltName === undefined) {
    warn(leaf, "has no subject alternative name: agents and lb accept it only by its pin, or without verification");
  }
  const purposes = leaf.keyUsage as readonly string[] | undefined;
  if (purposes !== undefined && purposes.length > 0 && !purposes.includes(PURPOSES[side])) {
    warn(leaf, `has an extended key usage without TLS ${side} authentication: peers reject it`);
  }
  for (const other of others.filter(({ validTo }) => Date.parse(validTo) < now)) {
    warnings.push(
      `${flagOf(cert.option)}: the certificate ${nameOf(other)} in the chain of ${cert.file} expired on ${iso(other.validTo)}`,
    );
  }
  return warnings;
}

/** The error for an unusable file. */
export function unusable({ option, file }: PemFile, why: string, cause?: unknown): ConfigError {
  return new ConfigError(`Cannot use ${flagOf(option)} ${file}: ${why}`, cause === undefined ? undefined : { cause });
}

function blocks(pem: PemFile, kind: PemKind): PemBlock[] {
  try {
    return readPem(pem.text, kind);
  } catch (cause) {
    if (cause instanceof PemError) throw unusable(pem, cause.message, cause);
    throw cause;
  }
}

function textOf(blocks: readonly PemBlock[]): string {
  return blocks.map(({ text }) => text).join("");
}

/** The subject on one line, quoted. */
function nameOf({ subject }: X509Certificate): string {
  return JSON.stringify((subject ?? "").replace(/\n/g, ", "));
}

function iso(date: string): string {
  return new Date(date).toISOString();
}
