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

/** A public key of another issuer's JWKS, for one of the algorithms that it may be used with. */
export interface IssuerKey extends Omit<VerificationKey, "algorithm"> {
  readonly algorithm: string;
}

/** Algorithms by the type of key or its curve (RFC 7518 §3.1, RFC 8037). None of them uses a shared secret. */
const ISSUER_ALGORITHMS: Readonly<Record<string, readonly string[]>> = {
  "RSA": ["RS256", "RS384", "RS512", "PS256", "PS384", "PS512"],
  "P-256": ["ES256"],
  "P-384": ["ES384"],
  "P-521": ["ES512"],
  "Ed25519": ["EdDSA"],
};
/** All algorithms of another issuer's tokens. */
export const SIGNATURE_ALGORITHMS: readonly string[] = [...Object.values(ISSUER_ALGORITHMS).flat(), "Ed25519"];
/** Most keys that are read from a JWKS of another issuer. */
const MAX_ISSUER_KEYS = 100;
/** Shortest modulus of an RSA key as base64url, in characters: {@link MIN_RSA_BITS}. */
const MIN_MODULUS = Math.floor(MIN_RSA_BITS / 6);

/**
 * Parses another issuer's JWKS. Keys that are not understood are passed over (RFC 7517 §5): other types, curves, purposes and algorithms,
 * secrets, and invalid ones.
 * @throws {KeyError} if it is no JWKS, or has no usable key
 */
export async function parseIssuerKeys(text: string): Promise<IssuerKey[]> {
  let jwks: { keys?: unknown } | null;
  try {
    jwks = JSON.parse(text);
  } catch {
    throw new KeyError("it is not JSON");
  }
  if (!Array.isArray(jwks?.keys)) throw new KeyError("it is not a JWKS: it has no list of keys");
  const keys = await Promise.all(jwks.keys.slice(0, MAX_ISSUER_KEYS).map(readIssuerKey));
  if (keys.flat().length === 0) throw new KeyError(`none of its keys is for ${SIGNATURE_ALGORITHMS.join(", ")}`);
  return keys.flat();
}

async function readIssuerKey(jwk: JWK | null): Promise<IssuerKey[]> {
  if (typeof jwk !== "object" || jwk === null || jwk.d !== undefined || jwk.k !== undefined) return [];
  const { kty, crv, alg, use, kid, n } = jwk;
  if (use !== undefined && use !== "sig") return [];
  if (kty === "RSA" && (typeof n !== "string" || n.length < MIN_MODULUS)) return [];
  const fitting = ISSUER_ALGORITHMS[kty === "RSA" ? kty : String(crv)] ?? [];
  const algorithms = fitting.filter((fits) => alg === undefined || alg === fits || keyAlgorithm(alg as TokenAlgorithm) === fits);
  try {
    const id = await calculateJwkThumbprint(jwk);
    return await Promise.all(algorithms.map(async (algorithm) => ({
      id,
      kid: typeof kid === "string" ? kid : undefined,
      algorithm,
      key: await importJWK({ ...jwk, alg: undefined, key_ops: undefined, ext: undefined }, algorithm) as CryptoKey,
    })));
  } catch {
    return []; // a field is missing or invalid, or the runtime does not know the curve
  }
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
