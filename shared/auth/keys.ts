// Keys that sign and verify tokens, in PEM (as common tools write it) and JWKS. Knows neither files nor tokens.
import { Buffer } from "node:buffer";
import { createPrivateKey, createPublicKey, generateKeyPairSync, type KeyObject } from "node:crypto";
import { calculateJwkThumbprint, importJWK, type JWK } from "jose";
import { type PemBlock, PemError, type PemKind, readPem } from "../net/pem.ts";

/**
 * Signature algorithms (RFC 7518 §3.1, RFC 8037, RFC 9864): ECDSA with P-256, RSA of at least 2048 bits, Ed25519. `Ed25519` is the newer name
 * of `EdDSA` with that curve. Tokens are signed under the old name, which all implementations know.
 */
export const ALGORITHMS = ["ES256", "RS256", "EdDSA", "Ed25519"] as const;
/** The algorithm of a key. */
export type Algorithm = Exclude<TokenAlgorithm, "Ed25519">;
/** The algorithm name in a token or a JWK. */
export type TokenAlgorithm = (typeof ALGORITHMS)[number];

/** The key algorithm of a signature algorithm. */
export function keyAlgorithm(algorithm: TokenAlgorithm): Algorithm {
  return algorithm === "Ed25519" ? "EdDSA" : algorithm;
}

/** A text without a usable key. */
export class KeyError extends Error {
  override readonly name = "KeyError";
}

/** A public key and its algorithm. */
export interface VerificationKey {
  /** Thumbprint (RFC 7638): identical for the same key from any source. */
  readonly id: string;
  /** Key id in a JWKS. A token's `kid` only hints which key to try first (RFC 7515 §4.1.4). */
  readonly kid?: string;
  readonly algorithm: Algorithm;
  readonly key: CryptoKey;
}

export interface SigningKey {
  readonly algorithm: Algorithm;
  readonly key: KeyObject;
}

const MIN_RSA_BITS = 2048;
/** As in the Go original. */
const NEW_RSA_BITS = 4096;

/** Generates a private key in PEM: SEC 1 for ES256, PKCS #1 for RS256, PKCS #8 for EdDSA. */
export function generatePrivateKey(algorithm: TokenAlgorithm): string {
  const pem = (key: KeyObject, type: "sec1" | "pkcs1" | "pkcs8") => String(key.export({ type, format: "pem" }));
  switch (keyAlgorithm(algorithm)) {
    case "ES256":
      return pem(generateKeyPairSync("ec", { namedCurve: "P-256" }).privateKey, "sec1");
    case "RS256":
      return pem(generateKeyPairSync("rsa", { modulusLength: NEW_RSA_BITS }).privateKey, "pkcs1");
    case "EdDSA":
      return pem(generateKeyPairSync("ed25519").privateKey, "pkcs8");
  }
}

/** The public key in PEM (SPKI). */
export function publicKeyOf({ key }: SigningKey): string {
  return String(createPublicKey(key).export({ type: "spki", format: "pem" }));
}

/**
 * Parses an unencrypted private key: `EC PRIVATE KEY` (SEC 1), `RSA PRIVATE KEY` (PKCS #1) or `PRIVATE KEY` (PKCS #8).
 * @throws {KeyError}
 */
export function parsePrivateKey(text: string): SigningKey {
  const [block] = readBlocks(text, "private key") as [PemBlock];
  if (block.label === "ENCRYPTED PRIVATE KEY" || block.hasHeaders) {
    throw new KeyError("its private key is encrypted; openssl pkey -in FILE -out NEW decrypts it");
  }
  const key = readKey(() => createPrivateKey(block.text), block.label);
  return { algorithm: algorithmOf(key), key };
}

/**
 * Parses public keys: PEM blocks `PUBLIC KEY` (SPKI), which the Go original labels `EC PUBLIC KEY`, or a JWKS (RFC 7517 §5), whose keys for
 * other purposes and algorithms are skipped.
 * @throws {KeyError} if there is no usable key, an invalid key, or a private key
 */
export async function parsePublicKeys(text: string): Promise<VerificationKey[]> {
  const trimmed = text.trim(); // also removes a byte-order mark
  return trimmed.startsWith("{") ? await parseJwks(trimmed) : await parsePublicPem(text);
}

async function parsePublicPem(text: string): Promise<VerificationKey[]> {
  return await Promise.all(
    readBlocks(text, "public keys").map(async ({ label, der }) => {
      const key = readKey(() => createPublicKey({ key: Buffer.from(der), format: "der", type: "spki" }), label);
      return await toVerificationKey(key.export({ format: "jwk" }) as JWK, algorithmOf(key));
    }),
  );
}

async function parseJwks(text: string): Promise<VerificationKey[]> {
  let jwks: { keys?: unknown };
  try {
    jwks = JSON.parse(text);
  } catch {
    throw new KeyError("it is neither PEM nor JSON");
  }
  if (!Array.isArray(jwks.keys)) throw new KeyError("it is JSON but not a JWKS: it has no list of keys");
  const keys = await Promise.all(jwks.keys.map(async (jwk: JWK | null, index) => {
    if (typeof jwk !== "object" || jwk === null) throw new KeyError(`its key ${index} is not an object`);
    if (jwk.d !== undefined || jwk.k !== undefined) {
      throw new KeyError(`its key ${index} is a private or secret key; only public keys are allowed`);
    }
    const algorithm = algorithmOfJwk(jwk);
    if (algorithm === undefined) return [];
    const key = readKey(() => createPublicKey({ key: jwk, format: "jwk" }), `key ${index}`);
    return [await toVerificationKey(jwk, algorithmOf(key), jwk.kid)];
  }));
  if (keys.flat().length === 0) throw new KeyError(`none of its keys is for ${ALGORITHMS.join(", ")}`);
  return keys.flat();
}

/** `undefined` for a key of another type or purpose. */
function algorithmOfJwk({ kty, crv, alg, use }: JWK): Algorithm | undefined {
  if (use !== undefined && use !== "sig") return undefined;
  const algorithm = kty === "RSA" ? "RS256" : crv === "P-256" ? "ES256" : crv === "Ed25519" ? "EdDSA" : undefined;
  const isFor = alg === undefined || ALGORITHMS.some((known) => known === alg && keyAlgorithm(known) === algorithm);
  return isFor ? algorithm : undefined;
}

async function toVerificationKey(jwk: JWK, algorithm: Algorithm, kid?: unknown): Promise<VerificationKey> {
  const key = await importJWK({ ...jwk, alg: undefined }, algorithm) as CryptoKey;
  return { id: await calculateJwkThumbprint(jwk), kid: typeof kid === "string" ? kid : undefined, algorithm, key };
}

function readBlocks(text: string, kind: PemKind): PemBlock[] {
  try {
    return readPem(text, kind);
  } catch (cause) {
    if (cause instanceof PemError) throw new KeyError(cause.message, { cause });
    throw cause;
  }
}

function readKey(read: () => KeyObject, what: string): KeyObject {
  try {
    return read();
  } catch (cause) {
    throw new KeyError(`its ${what} cannot be read: ${(cause as Error).message}`, { cause });
  }
}

/** The algorithm of the key. */
function algorithmOf({ asymmetricKeyType: type, asymmetricKeyDetails: details }: KeyObject): Algorithm {
  switch (type) {
    case "ec":
      if (details?.namedCurve === "prime256v1") return "ES256";
      throw new KeyError(`its key uses the curve ${details?.namedCurve}; P-256 is required`);
    case "rsa":
      if (details?.modulusLength !== undefined && details.modulusLength >= MIN_RSA_BITS) return "RS256";
      throw new KeyError(`its RSA key has ${details?.modulusLength} bits; at least ${MIN_RSA_BITS} are required`);
    case "ed25519":
      return "EdDSA";
    default:
      throw new KeyError(`its key has the type ${type}; EC, RSA or Ed25519 is required`);
  }
}
