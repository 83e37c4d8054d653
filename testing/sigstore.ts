// An installation of Sigstore of its own: an authority, a log of certificates and one of signatures, which sign as `cosign sign-blob` does.
import "reflect-metadata";
import * as x509 from "@peculiar/x509";
import { Buffer } from "node:buffer";
import { createHash, generateKeyPairSync, type KeyObject, sign, webcrypto } from "node:crypto";

const ALGORITHM = { name: "ECDSA", namedCurve: "P-256", hash: "SHA-256" };
const MINUTE_MS = 60_000;
/** Extensions of certificates: the issuer of an identity (a UTF8String), and entries of logs (RFC 6962 §3.3). */
const [ISSUER, TIMESTAMPS] = ["1.3.6.1.4.1.57264.1.8", "1.3.6.1.4.1.11129.2.4.2"];

const sha256 = (data: Uint8Array | string) => createHash("sha256").update(data).digest();
const base64 = (data: Uint8Array | ArrayBuffer) => Buffer.from(data as Uint8Array).toString("base64");

/** A log, with its key. */
class Log {
  readonly #keys = generateKeyPairSync("ec", { namedCurve: "P-256" });
  readonly #spki = this.#keys.publicKey.export({ type: "spki", format: "der" });
  readonly id = sha256(this.#spki);

  sign(data: Uint8Array | string): Buffer {
    return sign("sha256", Buffer.from(data), this.#keys.privateKey);
  }

  /** Its entry in a trusted root. */
  describe(baseUrl: string): object {
    return {
      baseUrl,
      hashAlgorithm: "SHA2_256",
      publicKey: { rawBytes: base64(this.#spki), keyDetails: "PKIX_ECDSA_P256_SHA_256", validFor: { start: "2020-01-01T00:00:00Z" } },
      logId: { keyId: base64(this.id) },
    };
  }
}

export class Sigstore {
  readonly #certificates = new Log();
  readonly #signatures = new Log();
  private constructor(readonly authority: x509.X509Certificate, readonly keys: CryptoKeyPair) {}

  static async create(): Promise<Sigstore> {
    const crypto = webcrypto as unknown as Crypto;
    x509.cryptoProvider.set(crypto);
    const keys = await crypto.subtle.generateKey(ALGORITHM, true, ["sign", "verify"]);
    const authority = await x509.X509CertificateGenerator.createSelfSigned({
      name: "CN=Test Fulcio",
      keys,
      signingAlgorithm: ALGORITHM,
      notBefore: new Date(Date.now() - MINUTE_MS),
      notAfter: new Date(Date.now() + 60 * MINUTE_MS),
      extensions: [
        new x509.BasicConstraintsExtension(true, 1, true),
        new x509.KeyUsagesExtension(x509.KeyUsageFlags.keyCertSign, true),
        await x509.SubjectKeyIdentifierExtension.create(keys.publicKey),
      ],
    });
    return new Sigstore(authority, keys);
  }

  /** The content of trusted_root.json. */
  get trustedRoot(): string {
    const authority = {
      subject: { commonName: "Test Fulcio" },
      uri: "https://fulcio.test",
      certChain: { certificates: [{ rawBytes: base64(this.authority.rawData) }] },
      validFor: { start: "2020-01-01T00:00:00Z" },
    };
    return JSON.stringify({
      mediaType: "application/vnd.dev.sigstore.trustedroot+json;version=0.1",
      tlogs: [this.#signatures.describe("https://rekor.test")],
      certificateAuthorities: [authority],
      ctlogs: [this.#certificates.describe("https://ctfe.test")],
      timestampAuthorities: [],
    });
  }

  /** Signs as a workflow, and returns the bundle. */
  async sign(data: Uint8Array | string, { workflow, issuer }: { workflow: string; issuer: string }): Promise<string> {
    const { privateKey, publicKey } = generateKeyPairSync("ec", { namedCurve: "P-256" });
    const certificate = await this.#certify(publicKey, workflow, issuer);
    const signature = base64(sign("sha256", Buffer.from(data), privateKey));
    const body = Buffer.from(JSON.stringify({
      apiVersion: "0.0.1",
      kind: "hashedrekord",
      spec: {
        data: { hash: { algorithm: "sha256", value: sha256(data).toString("hex") } },
        signature: { content: signature, publicKey: { content: base64(Buffer.from(certificate.toString("pem"))) } },
      },
    }));
    const [integratedTime, logIndex, log] = [Math.floor(Date.now() / 1_000), 0, this.#signatures];
    // its keys in this order: RFC 8785
    const promise = JSON.stringify({ body: base64(body), integratedTime, logID: log.id.toString("hex"), logIndex });
    const rootHash = base64(sha256(Buffer.concat([Buffer.of(0), body])));
    const note = `rekor.test - 1\n1\n${rootHash}\n`;
    const signed = `\u2014 rekor.test ${base64(Buffer.concat([log.id.subarray(0, 4), log.sign(note)]))}\n`;
    return JSON.stringify({
      mediaType: "application/vnd.dev.sigstore.bundle.v0.3+json",
      verificationMaterial: {
        certificate: { rawBytes: base64(certificate.rawData) },
        tlogEntries: [{
          logIndex: String(logIndex),
          logId: { keyId: base64(log.id) },
          kindVersion: { kind: "hashedrekord", version: "0.0.1" },
          integratedTime: String(integratedTime),
          inclusionPromise: { signedEntryTimestamp: base64(log.sign(promise)) },
          inclusionProof: { logIndex: "0", rootHash, treeSize: "1", hashes: [], checkpoint: { envelope: `${note}\n${signed}` } },
          canonicalizedBody: base64(body),
        }],
      },
      messageSignature: { messageDigest: { algorithm: "SHA2_256", digest: base64(sha256(data)) }, signature },
    });
  }

  async #certify(key: KeyObject, workflow: string, issuer: string): Promise<x509.X509Certificate> {
    const { subtle } = webcrypto as unknown as Crypto;
    const publicKey = await subtle.importKey("spki", key.export({ type: "spki", format: "der" }), ALGORITHM, true, ["verify"]);
    const text = Buffer.from(issuer);
    const extensions = [
      new x509.KeyUsagesExtension(x509.KeyUsageFlags.digitalSignature, true),
      new x509.ExtendedKeyUsageExtension([x509.ExtendedKeyUsage.codeSigning]),
      await x509.AuthorityKeyIdentifierExtension.create(this.keys.publicKey),
      new x509.SubjectAlternativeNameExtension([{ type: "url", value: workflow }], true),
      new x509.Extension(ISSUER, false, Buffer.concat([Buffer.of(0x0c, text.length), text])),
    ];
    const validity = { notBefore: new Date(Date.now() - MINUTE_MS), notAfter: new Date(Date.now() + MINUTE_MS) };
    const create = (more: x509.Extension[]) =>
      x509.X509CertificateGenerator.create({
        serialNumber: "01",
        issuer: this.authority.subject,
        publicKey,
        signingKey: this.keys.privateKey,
        signingAlgorithm: ALGORITHM,
        ...validity,
        extensions: [...extensions, ...more],
      });
    // the log signs the certificate without its entry
    return await create([new x509.Extension(TIMESTAMPS, false, await this.#logEntry(await create([])))]);
  }

  /** A SignedCertificateTimestampList for a certificate. */
  async #logEntry(certificate: x509.X509Certificate): Promise<Buffer<ArrayBuffer>> {
    const log = this.#certificates;
    const { tbs } = certificate as unknown as { tbs: ArrayBuffer };
    const time = Buffer.alloc(8);
    time.writeBigUInt64BE(BigInt(Date.now()));
    const length = Buffer.alloc(4);
    length.writeUInt32BE(tbs.byteLength);
    const issuer = sha256(Buffer.from(await this.authority.publicKey.rawData));
    const entry = Buffer.concat([Buffer.of(0, 0), time, Buffer.of(0, 1), issuer, length.subarray(1), Buffer.from(tbs), Buffer.of(0, 0)]);
    const signature = log.sign(entry);
    const sized = (data: Buffer) => Buffer.concat([Buffer.of(data.length >> 8, data.length & 255), data]);
    const timestamp = Buffer.concat([Buffer.of(0), log.id, time, Buffer.of(0, 0, 4, 3), sized(signature)]);
    const list = sized(sized(timestamp));
    return Buffer.concat([Buffer.of(0x04, list.length), list]); // an OCTET STRING
  }
}
