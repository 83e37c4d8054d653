// Entries of a store that only those can read and write who share a secret: certificates have private keys, and the store may be readable.
import { Buffer } from "node:buffer";
import { webcrypto } from "node:crypto";
import { ConfigError } from "../../config/option.ts";
import { PolledFile } from "../../files/polled_file.ts";
import { describeFileError } from "../../files/read.ts";
import { SecretFiles } from "../../files/secret_files.ts";
import { readSharedSecrets } from "../../files/shared_secrets.ts";
import type { Logger } from "../../log/logger.ts";
import type { SharedStore } from "./solvers.ts";

const crypto = webcrypto as unknown as Crypto;
const OPTION = "--acme.store-key-file";
const FORMAT = "sealed1.";
const NONCE_BYTES = 12;

/** The secrets of a file, read again when it changes. */
export class StoreSecrets {
  readonly #file: PolledFile<readonly CryptoKey[]>;

  private constructor(file: PolledFile<readonly CryptoKey[]>, private readonly log: Logger) {
    this.#file = file;
  }

  /** @throws {ConfigError} if the file cannot be read, or has no usable secret */
  static async open(name: string, log: Logger): Promise<StoreSecrets> {
    const file = new PolledFile(name, async (name) => await Promise.all((await readSharedSecrets(name)).map(deriveKey)));
    try {
      await file.poll();
    } catch (cause) {
      throw new ConfigError(`Cannot use ${OPTION} ${JSON.stringify(name)}: ${describeFileError(cause)}`, { cause });
    }
    await new SecretFiles(log).check(OPTION, name);
    return new StoreSecrets(file, log);
  }

  /** The first one seals. A file that has become invalid is logged, and its previous content stays in force. Never rejects. */
  async current(): Promise<readonly CryptoKey[]> {
    await this.#file.poll().catch((error) => {
      this.log.error("the key for certificates in the store cannot be used; its previous content stays in force", {
        file: this.#file.name,
        reason: describeFileError(error),
      });
    });
    return this.#file.value;
  }
}

/** One secret may have several uses, so the key is for this one alone. */
async function deriveKey(secret: Uint8Array<ArrayBuffer>): Promise<CryptoKey> {
  const base = await crypto.subtle.importKey("raw", secret, "HKDF", false, ["deriveKey"]);
  const info = new TextEncoder().encode("reverse-http acme store");
  return await crypto.subtle.deriveKey(
    { name: "HKDF", hash: "SHA-256", salt: new Uint8Array(0), info },
    base,
    { name: "AES-GCM", length: 256 },
    false,
    ["encrypt", "decrypt"],
  );
}

export class SealedStore {
  readonly #shared: SharedStore;
  readonly #secrets: StoreSecrets;

  constructor(shared: SharedStore, secrets: StoreSecrets) {
    this.#shared = shared;
    this.#secrets = secrets;
  }

  /** A store whose values are sealed, for answers to challenges: who else writes some could prove control of the names. */
  get values(): SharedStore {
    const { store, ttlMs } = this.#shared;
    return {
      ttlMs,
      store: {
        set: (name, value) => this.write(name, { value }),
        renew: (name, value) => store.renew(name, value),
        lookup: async (name) => {
          const { value } = await this.read(name) ?? {};
          return typeof value === "string" ? value : undefined;
        },
      },
    };
  }

  /**
   * The object at `name`; `undefined` if there is none, or one that others have written.
   * @throws {StoreError}
   */
  async read(name: string): Promise<Readonly<Record<string, unknown>> | undefined> {
    const text = await this.#shared.store.lookup(name);
    if (!text?.startsWith(FORMAT)) return undefined;
    const bytes = new Uint8Array(Buffer.from(text.slice(FORMAT.length), "base64url"));
    for (const key of await this.#secrets.current()) {
      try {
        const content = await crypto.subtle.decrypt(
          { name: "AES-GCM", iv: bytes.subarray(0, NONCE_BYTES), additionalData: new TextEncoder().encode(name) },
          key,
          bytes.subarray(NONCE_BYTES),
        );
        const value: unknown = JSON.parse(new TextDecoder().decode(content));
        return typeof value === "object" && value !== null ? value as Record<string, unknown> : undefined;
      } catch {
        // of another secret
      }
    }
    return undefined;
  }

  /** @throws {StoreError} */
  async write(name: string, value: object): Promise<void> {
    const [key] = await this.#secrets.current();
    const iv = crypto.getRandomValues(new Uint8Array(NONCE_BYTES));
    const additionalData = new TextEncoder().encode(name); // an entry is valid in its place only
    const content = new TextEncoder().encode(JSON.stringify(value));
    const sealed = await crypto.subtle.encrypt({ name: "AES-GCM", iv, additionalData }, key!, content);
    await this.#shared.store.set(name, FORMAT + Buffer.concat([iv, new Uint8Array(sealed)]).toString("base64url"));
  }
}
