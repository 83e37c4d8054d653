// Keys of tokens: every form that tools write is read, and what is no public key is told apart and named.
import assert from "node:assert/strict";
import { createPublicKey, generateKeyPairSync, type KeyObject } from "node:crypto";
import { describe, it } from "node:test";
import {
  ALGORITHMS,
  generatePrivateKey,
  keyAlgorithm,
  KeyError,
  parsePrivateKey,
  parsePublicKeys,
  publicKeyOf,
} from "../../shared/auth/keys.ts";

const EC = generateKeyPairSync("ec", { namedCurve: "P-256" }).privateKey;
const RSA = generateKeyPairSync("rsa", { modulusLength: 2048 }).privateKey;
const ED = generateKeyPairSync("ed25519").privateKey;

/** Made by the Go original's `auth key`: a private key, and its public one under the label of its own. */
const GO_PRIVATE = `-----BEGIN EC PRIVATE KEY-----
MHcCAQEEIF1cuVJp4Dm0y32RBqJFmbCJRPW72SRRqvxK+UixZspyoAoGCCqGSM49
AwEHoUQDQgAEvnAhG4XhLOpHaq5jT/c74rltWRVQyN+KyhqvBNp1cZWH2NHmvbVJ
M4ZYaf/xKWuSwiOYW5qmt6i3bcs6ZjOuXA==
-----END EC PRIVATE KEY-----
`;
const GO_PUBLIC = `-----BEGIN EC PUBLIC KEY-----
MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEvnAhG4XhLOpHaq5jT/c74rltWRVQ
yN+KyhqvBNp1cZWH2NHmvbVJM4ZYaf/xKWuSwiOYW5qmt6i3bcs6ZjOuXA==
-----END EC PUBLIC KEY-----
`;

function pem(key: KeyObject, type: "sec1" | "pkcs1" | "pkcs8" | "spki"): string {
  return String(key.export({ type, format: "pem" } as never));
}

function spki(key: KeyObject): string {
  return pem(createPublicKey(key), "spki");
}

function jwk(key: KeyObject, more: object = {}): object {
  return { ...createPublicKey(key).export({ format: "jwk" }), ...more };
}

describe("parsePrivateKey()", () => {
  const forms: [what: string, text: string, algorithm: string][] = [
    ["SEC 1", pem(EC, "sec1"), "ES256"],
    [
      "SEC 1 after its parameters",
      `-----BEGIN EC PARAMETERS-----\nBggqhkjOPQMBBw==\n-----END EC PARAMETERS-----\n${pem(EC, "sec1")}`,
      "ES256",
    ],
    ["SEC 1 of the Go original", GO_PRIVATE, "ES256"],
    ["PKCS #1", pem(RSA, "pkcs1"), "RS256"],
    ["PKCS #8 of an EC key", pem(EC, "pkcs8"), "ES256"],
    ["PKCS #8 of an RSA key", pem(RSA, "pkcs8"), "RS256"],
    ["PKCS #8 of an Ed25519 key", pem(ED, "pkcs8"), "EdDSA"],
    ["PKCS #8 with CRLF", pem(EC, "pkcs8").replaceAll("\n", "\r\n"), "ES256"],
  ];
  for (const [what, text, algorithm] of forms) {
    it(`reads ${what}`, () => assert.equal(parsePrivateKey(text).algorithm, algorithm));
  }

  const wrong: [what: string, text: string, named: RegExp][] = [
    ["an empty text", "", /no PRIVATE KEY in PEM$/],
    ["a public key", spki(EC), /no PRIVATE KEY in PEM, but PUBLIC KEY/],
    [
      "an encrypted key",
      String(EC.export({ type: "pkcs8", format: "pem", cipher: "aes-256-cbc", passphrase: "x" })),
      /is encrypted; openssl pkey/,
    ],
    ["another curve", pem(generateKeyPairSync("ec", { namedCurve: "P-384" }).privateKey, "sec1"), /secp384r1.*P-256/],
    ["a short RSA key", pem(generateKeyPairSync("rsa", { modulusLength: 1024 }).privateKey, "pkcs1"), /1024 bits.*2048/],
    ["a spoilt key", pem(EC, "pkcs8").replace(/\n(M.{10}).{20}/, "\n$1AAAAAAAAAAAAAAAAAAAA"), /PRIVATE KEY cannot be read/],
  ];
  for (const [what, text, named] of wrong) {
    it(`refuses ${what}, and says so`, () =>
      assert.throws(() => parsePrivateKey(text), (error) => error instanceof KeyError && named.test(error.message)));
  }
});

describe("parsePublicKeys()", () => {
  it("reads SPKI, several in one text, and as the Go original labels it", async () => {
    const keys = await parsePublicKeys(spki(EC) + spki(RSA) + spki(ED) + GO_PUBLIC);
    assert.deepEqual(keys.map(({ algorithm }) => algorithm), ["ES256", "RS256", "EdDSA", "ES256"]);
    const [relabelled] = await parsePublicKeys(spki(EC).replaceAll("PUBLIC KEY", "EC PUBLIC KEY"));
    assert.equal(relabelled!.id, keys[0]!.id);
  });

  it("reads the keys of a JWKS that are for tokens, and leaves out the others", async () => {
    const keys = [
      jwk(EC, { kid: "a", alg: "ES256", use: "sig" }),
      jwk(RSA),
      jwk(ED, { alg: "EdDSA" }),
      jwk(generateKeyPairSync("ed25519").privateKey, { alg: "Ed25519" }),
      jwk(RSA, { alg: "RS512" }),
      jwk(RSA, { use: "enc" }),
      jwk(generateKeyPairSync("ec", { namedCurve: "P-384" }).privateKey),
    ];
    const found = await parsePublicKeys(JSON.stringify({ keys }));
    assert.deepEqual(found.map(({ algorithm }) => algorithm), ["ES256", "RS256", "EdDSA", "EdDSA"]);
    assert.deepEqual(found.slice(0, 3).map(({ id }) => id), (await parsePublicKeys(spki(EC) + spki(RSA) + spki(ED))).map(({ id }) => id));
  });

  const wrong: [what: string, text: string, named: RegExp][] = [
    ["an empty text", "", /no PUBLIC KEY in PEM$/],
    [
      "a private key beside a public one",
      spki(EC) + pem(EC, "pkcs8"),
      /^line 5: it is a block of PRIVATE KEY; only PUBLIC KEY is allowed; keep the private key where tokens are created/,
    ],
    [
      "a certificate",
      "-----BEGIN CERTIFICATE-----\nAA==\n-----END CERTIFICATE-----\n",
      /no PUBLIC KEY in PEM, but CERTIFICATE; openssl x509 -pubkey/,
    ],
    ["another curve", spki(generateKeyPairSync("ec", { namedCurve: "P-384" }).privateKey), /P-256/],
    ["a short RSA key", spki(generateKeyPairSync("rsa", { modulusLength: 1024 }).privateKey), /1024 bits/],
    ["a spoilt key", "-----BEGIN PUBLIC KEY-----\nMAEA\n-----END PUBLIC KEY-----\n", /PUBLIC KEY cannot be read/],
    ["a key cut short", spki(EC).slice(0, 60), /^line 1: the block of PUBLIC KEY has no END line$/],
    ["half a JSON text", '{"keys": [', /neither PEM nor JSON/],
    ["JSON without keys", "{}", /not a JWKS/],
    ["a JWKS that is empty", '{"keys": []}', /none of its keys is for ES256/],
    ["a JWKS with a private key", JSON.stringify({ keys: [EC.export({ format: "jwk" })] }), /key 0 is a private or secret key/],
    ["a JWKS with a shared secret", JSON.stringify({ keys: [{ kty: "oct", k: "AAAA" }] }), /key 0 is a private or secret key/],
    ["a JWKS with a spoilt key", JSON.stringify({ keys: [jwk(EC, { x: "AAAA" })] }), /key 0 cannot be read/],
    ["a JWKS of texts", '{"keys": ["a"]}', /key 0 is not an object/],
  ];
  for (const [what, text, named] of wrong) {
    it(`refuses ${what}, and says so`, async () => {
      await assert.rejects(parsePublicKeys(text), (error) => error instanceof KeyError && named.test(error.message));
    });
  }
});

describe("generatePrivateKey()", () => {
  const labels = { ES256: "EC PRIVATE KEY", RS256: "RSA PRIVATE KEY", EdDSA: "PRIVATE KEY", Ed25519: "PRIVATE KEY" }; // as of the Go original
  for (const algorithm of ALGORITHMS) {
    it(`makes a ${labels[algorithm]} for ${algorithm}, with a public key for the same`, async () => {
      const text = generatePrivateKey(algorithm);
      assert.ok(text.startsWith(`-----BEGIN ${labels[algorithm]}-----\n`));
      const key = parsePrivateKey(text);
      assert.equal(key.algorithm, keyAlgorithm(algorithm));
      if (algorithm === "RS256") assert.equal(key.key.asymmetricKeyDetails?.modulusLength, 4096);
      const verifiers = await parsePublicKeys(publicKeyOf(key));
      assert.deepEqual(verifiers.map((verifier) => verifier.algorithm), [keyAlgorithm(algorithm)]);
    });
  }

  it("makes another key each time", () => assert.notEqual(generatePrivateKey("ES256"), generatePrivateKey("ES256")));
});
