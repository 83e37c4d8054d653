// Files in PEM as certificates, keys and revocation lists that fit together. Every fault is an error that names option, file and line, and never
// shows a key. Where the texts come from, and who they are shown to, is not known here.
import { createPrivateKey, type KeyObject, X509Certificate } from "node:crypto";
import { ConfigError, flagOf } from "../config/option.ts";
import { type PemBlock, PemError, type PemKind, readPem } from "../net/pem.ts";

/** What an option's file holds. */
export interface PemFile {
  /** Without the dashes: `agent-server.tls.file.cert`. */
  readonly option: string;
  /** Its name. */
  readonly file: string;
  /** One character a byte. */
  readonly text: string;
}

/** What was read of a file. */
export interface Certificates {
  /** At least one. */
  readonly all: readonly X509Certificate[];
  /** These alone, in plain PEM: nothing else of the file goes on to the network. */
  readonly text: string;
}

/**
 * The certificates in the file, one at least. A chain's file may hold its key too; one of authorities nothing else.
 * @throws {ConfigError}
 */
export function readCertificates(pem: PemFile, kind: "chain" | "authorities"): Certificates {
  const found = blocks(pem, kind);
  const all = found.map((block) => {
    try {
      return new X509Certificate(block.text);
    } catch (cause) {
      throw unusable(pem, `line ${block.line}: the certificate cannot be read: ${(cause as Error).message}`, cause);
    }
  });
  return { all, text: textOf(found) };
}

/**
 * The private key in the file: PKCS #8, PKCS #1 or SEC 1. `password` is for one that is encrypted, and belongs to `passwordOption`; without an
 * option for it, the key cannot be encrypted.
 * @throws {ConfigError}
 */
export function readPrivateKey(pem: PemFile, password?: string, passwordOption?: string): KeyObject {
  const [block] = blocks(pem, "private key") as [PemBlock];
  const encrypted = block.label === "ENCRYPTED PRIVATE KEY" || block.hasHeaders;
  if (encrypted && passwordOption === undefined) {
    throw unusable(pem, "the key is encrypted, and there is no option for its password; openssl pkey -in FILE -out NEW decrypts it");
  }
  if (encrypted && !password) throw unusable(pem, `the key is encrypted: ${flagOf(passwordOption!)} is needed`);
  try {
    const key = createPrivateKey({ key: block.text, format: "pem", passphrase: encrypted ? password : undefined });
    checkKind(pem, key);
    return key;
  } catch (cause) {
    if (cause instanceof ConfigError) throw cause;
    if (!encrypted) throw unusable(pem, "the private key is damaged, or of a kind that cannot be used", cause);
    const wrong = /bad.?decrypt/i.test((cause as Error).message);
    const why = wrong
      ? `the password of ${flagOf(passwordOption!)} is wrong`
      : `it cannot be decrypted: ${flagOf(passwordOption!)} is wrong, ` +
        "or the encryption is none that every platform knows, as AES with PBKDF2 is";
    throw unusable(pem, why, cause);
  }
}

const CURVES = ["prime256v1", "secp384r1", "secp521r1"];
const MIN_RSA_BITS = 2048;

/** @throws {ConfigError} for a key that the network does not know */
function checkKind(pem: PemFile, { asymmetricKeyType: type, asymmetricKeyDetails: details }: KeyObject): void {
  const { modulusLength: bits, namedCurve: curve } = details ?? {};
  if (type === "rsa" && bits !== undefined && bits < MIN_RSA_BITS) {
    throw unusable(pem, `its RSA key has ${bits} bits, and ${MIN_RSA_BITS} is the least`);
  }
  const known = type === "rsa" || type === "ed25519" || type === "ec" && (curve === undefined || CURVES.includes(curve));
  if (!known) throw unusable(pem, `its key is ${curve ?? type}, and RSA, P-256, P-384, P-521 or Ed25519 is needed`);
}

/** Revocation lists: each in DER with its place, and all in plain PEM. */
export interface RevocationLists {
  /** At least one. */
  readonly all: readonly PemBlock[];
  readonly text: string;
}

/**
 * The revocation lists in the file, one at least.
 * @throws {ConfigError}
 */
export function readRevocationLists(pem: PemFile): RevocationLists {
  const all = blocks(pem, "revocation lists");
  return { all, text: textOf(all) };
}

/** To whom a certificate is shown: what it must be good for differs. */
export type Side = "server" | "client";

/** The purposes of RFC 5280 §4.2.1.12. */
const PURPOSES: Readonly<Record<Side, string>> = { server: "1.3.6.1.5.5.7.3.1", client: "1.3.6.1.5.5.7.3.2" };

/**
 * Checks that the key is that of the first certificate, which has not expired.
 * @throws {ConfigError}
 * @returns what is wrong but may be meant so
 */
export function checkIdentity(
  cert: PemFile,
  chain: readonly X509Certificate[],
  key: PemFile,
  privateKey: KeyObject,
  side: Side,
): string[] {
  const [own, ...others] = chain as [X509Certificate, ...X509Certificate[]];
  if (!own.checkPrivateKey(privateKey)) {
    const order = others.some((other) => other.checkPrivateKey(privateKey))
      ? "; the certificate of the key must come first in the file"
      : "";
    throw unusable(key, `the key does not belong to the certificate ${nameOf(own)} of ${flagOf(cert.option)} ${cert.file}${order}`);
  }
  const now = Date.now();
  if (Date.parse(own.validTo) < now) {
    throw unusable(cert, `the certificate ${nameOf(own)} has expired on ${iso(own.validTo)}; if it has not, this machine's clock is wrong`);
  }
  const warnings: string[] = [];
  const warn = (certificate: X509Certificate, why: string) =>
    warnings.push(`${flagOf(cert.option)}: the certificate ${nameOf(certificate)} of ${cert.file} ${why}`);
  if (Date.parse(own.validFrom) > now) {
    // a machine without a clock of its own may be right about everything but the time
    warn(own, `is not valid before ${iso(own.validFrom)}`);
  }
  if (own.ca) {
    const who = side === "server"
      ? "agents and lb take it only where their root-ca has this very certificate"
      : "a proxy of this program refuses it";
    warn(own, `is that of an authority (CA:TRUE): ${who}`);
  }
  if (side === "server" && own.subjectAltName === undefined) {
    warn(own, "has no subject alternative name: agents and lb can take it only by its pin, or without verification");
  }
  const purposes = own.keyUsage as readonly string[] | undefined;
  if (purposes !== undefined && purposes.length > 0 && !purposes.includes(PURPOSES[side])) {
    warn(own, `has an extended key usage without that of TLS ${side}s: it is refused`);
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

/** On one line. */
function nameOf({ subject }: X509Certificate): string {
  return JSON.stringify((subject ?? "").replace(/\n/g, ", "));
}

function iso(date: string): string {
  return new Date(date).toISOString();
}
