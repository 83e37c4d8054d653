// Keys of tokens: those that sign and those that verify, in the PEM forms that tools write, and JWKS. It knows no file and no token.
import { Buffer } from "node:buffer";
import { createPrivateKey, createPublicKey, generateKeyPairSync, type KeyObject } from "node:crypto";
import { calculateJwkThumbprint, importJWK, type JWK } from "jose";
import { type PemBlock, PemError, type PemKind, readPem } from "../net/pem.ts";

/**
 * Algorithms of tokens (RFC 7518 §3.1, RFC 8037, RFC 9864): ECDSA with P-256, RSA of at least 2048 bits, Ed25519. `Ed25519` is the new name of
 * what `EdDSA` is here. Tokens are signed under the old name, which all implementations know.
 */
export const ALGORITHMS = ["ES256", "RS256", "EdDSA", "Ed25519"] as const;
/** What a key is for. */
export type Algorithm = Exclude<TokenAlgorithm, "Ed25519">;
/** What a token or a JWK says. */
export type TokenAlgorithm = (typeof ALGORITHMS)[number];

/** The keys that can have made a signature of this name. */
export function keyAlgorithm(algorithm: TokenAlgorithm): Algorithm {
  return algorithm === "Ed25519" ? "EdDSA" : algorithm;
}

/** Why a text holds no key that can be used. */
export class KeyError extends Error {
  override readonly name = "KeyError";
}

/** A public key, for its one algorithm. */
export interface VerificationKey {
  /** Thumbprint (RFC 7638): the same for the same key, wherever it was read. */
  readonly id: string;
  /** The name that a JWKS gives it, and a token names it by: a hint, which key to try first (RFC 7515 §4.1.4). */
  readonly kid?: string;
  readonly algorithm: Algorithm;
  readonly key: CryptoKey;
}

export interface SigningKey {
  readonly algorithm: Algorithm;
  readonly key: KeyObject;
}

const MIN_RSA_BITS = 2048;
/** As the Go original makes them. */
const NEW_RSA_BITS = 4096;

/** SEC 1 for ES256, PKCS #1 for RS256, PKCS #8 for EdDSA; PEM. */
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

/** SPKI, PEM. */
export function publicKeyOf({ key }: SigningKey): string {
  return String(createPublicKey(key).export({ type: "spki", format: "pem" }));
}

/**
 * The private key of `text`: `EC PRIVATE KEY` (SEC 1), `RSA PRIVATE KEY` (PKCS #1) or `PRIVATE KEY` (PKCS #8), not encrypted.
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
 * The public keys of `text`: PEM blocks `PUBLIC KEY` (SPKI), which the Go original labels `EC PUBLIC KEY`, or a JWKS (RFC 7517 §5). Of a
 * JWKS, keys for other purposes and algorithms are left out.
 * @throws {KeyError} where there is none, one that cannot be used, or a private one
 */
export async function parsePublicKeys(text: string): Promise<VerificationKey[]> {
  const trimmed = text.trim(); // of a byte-order mark too
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
  if (!Array.isArray(jwks.keys)) throw new KeyError("it is JSON, but no JWKS: there is no list of keys in it");
  const keys = await Promise.all(jwks.keys.map(async (jwk: JWK | null, index) => {
    if (typeof jwk !== "object" || jwk === null) throw new KeyError(`its key ${index} is not an object`);
    if (jwk.d !== undefined || jwk.k !== undefined) throw new KeyError(`its key ${index} is secret, where public ones alone are to be`);
    const algorithm = algorithmOfJwk(jwk);
    if (algorithm === undefined) return [];
    const key = readKey(() => createPublicKey({ key: jwk, format: "jwk" }), `key ${index}`);
    return [await toVerificationKey(jwk, algorithmOf(key), jwk.kid)];
  }));
  if (keys.flat().length === 0) throw new KeyError(`its keys are none for ${ALGORITHMS.join(", ")}`);
  return keys.flat();
}

/** `undefined` for a key of another kind, or for another purpose. */
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

/** The one algorithm that the key is for. */
function algorithmOf({ asymmetricKeyType: type, asymmetricKeyDetails: details }: KeyObject): Algorithm {
  switch (type) {
    case "ec":
      if (details?.namedCurve === "prime256v1") return "ES256";
      throw new KeyError(`its key is of the curve ${details?.namedCurve}, and P-256 is needed`);
    case "rsa":
      if (details?.modulusLength !== undefined && details.modulusLength >= MIN_RSA_BITS) return "RS256";
      throw new KeyError(`its RSA key has ${details?.modulusLength} bits, and ${MIN_RSA_BITS} is the least`);
    case "ed25519":
      return "EdDSA";
    default:
      throw new KeyError(`its key is of the type ${type}, and EC, RSA or Ed25519 is needed`);
  }
}
