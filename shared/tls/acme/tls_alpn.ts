// TLS-ALPN-01 (RFC 8737): certificates that answer an authority's challenges at the TLS port of each name, on every proxy that shares a store.
import { createHash, webcrypto } from "node:crypto";
import { setTimeout as sleep } from "node:timers/promises";
import { messageOf } from "../../log/error_message.ts";
import type { Logger } from "../../log/logger.ts";
import type { HostTls } from "../../net/tls.ts";
import type { CertifiedKey } from "../reloadable_tls.ts";
import { loadX509 } from "../x509.ts";
import type { Challenge, Solver } from "./client.ts";
import type { SharedStore } from "./solvers.ts";

const ALGORITHM = { name: "ECDSA", namedCurve: "P-256", hash: "SHA-256" };
const crypto = webcrypto as unknown as Crypto;
/** `id-pe-acmeIdentifier` (RFC 8737 §6.1). */
const ACME_IDENTIFIER = "1.3.6.1.5.5.7.1.31";
const DAY_MS = 86_400_000;

/** Key of the challenge in the store: no agent has such an id, because it contains a space. */
const KEY = "acme tls-alpn";
/** Interval in milliseconds at which a proxy looks for the challenges of others. */
const POLL_MS = 1_000;

export interface TlsAlpnOptions {
  /** The names of the service, for which others may have challenges. */
  readonly names: () => readonly string[];
  /** Sets the certificates that answer challenges from now on. */
  readonly use: (challenges: readonly HostTls[]) => void;
  /** With the proxies that answer for each other. Default: none. */
  readonly shared?: SharedStore;
  readonly log: Logger;
  readonly signal: AbortSignal;
}

/** What it presents must be answered at port 443 of each name. */
export class TlsAlpnSolver implements Solver {
  readonly type = "tls-alpn-01";
  readonly #given: TlsAlpnOptions;
  /** By name: what is answered, and whether it is this process that orders. */
  readonly #answers = new Map<string, { readonly keyAuthorization: string; readonly tls: CertifiedKey; readonly isOwn: boolean }>();

  constructor(given: TlsAlpnOptions) {
    this.#given = given;
  }

  async present({ name, keyAuthorization }: Challenge): Promise<void> {
    const { shared, signal } = this.#given;
    await this.#add(name, keyAuthorization, true);
    if (shared === undefined) return;
    await this.#publish(name, keyAuthorization);
    await sleep(2 * POLL_MS, undefined, { signal }); // until the others have it
  }

  async remove({ name }: Challenge): Promise<void> {
    this.#answers.delete(name);
    this.#use();
    if (this.#given.shared) await this.#publish(name, "");
  }

  /** Looks for the challenge of another proxy, and renews its own in the store, until the signal aborts. Never rejects. */
  async run(): Promise<void> {
    const { shared, signal, log } = this.#given;
    while (shared !== undefined && !signal.aborted) {
      try {
        await this.#look(shared);
      } catch (error) {
        log.debug("challenges of other proxies cannot be read", { reason: messageOf(error) });
      }
      await sleep(POLL_MS, undefined, { signal }).catch(() => {}); // stopping
    }
  }

  /** There is one challenge at a time: that of the proxy that has the lease. */
  async #look({ store }: SharedStore): Promise<void> {
    for (const [name, { keyAuthorization, isOwn }] of this.#answers) if (isOwn) return await this.#publish(name, keyAuthorization);
    const [name = "", keyAuthorization = ""] = (await store.lookup(KEY) ?? "").split(" ");
    const isAsked = keyAuthorization !== "" && this.#given.names().some((own) => own.replace("*.", "").toLowerCase() === name);
    const known = this.#answers.get(name);
    if (known?.isOwn || (isAsked && known?.keyAuthorization === keyAuthorization)) return;
    if (isAsked) return await this.#add(name, keyAuthorization, false);
    const before = this.#answers.size;
    for (const [other, { isOwn }] of this.#answers) if (!isOwn) this.#answers.delete(other);
    if (this.#answers.size < before) this.#use();
  }

  async #publish(name: string, keyAuthorization: string): Promise<void> {
    const { shared, log } = this.#given;
    await shared?.store.set(KEY, `${name.toLowerCase()} ${keyAuthorization}`).catch((error) => {
      log.debug("the challenge cannot be stored for other proxies", { reason: messageOf(error) });
    });
  }

  async #add(name: string, keyAuthorization: string, isOwn: boolean): Promise<void> {
    this.#answers.set(name, { keyAuthorization, tls: await createChallengeCertificate(name, keyAuthorization), isOwn });
    this.#use();
  }

  #use(): void {
    this.#given.use([...this.#answers].map(([name, { tls }]) => ({ names: [name], tls })));
  }
}

/** Creates the certificate that answers a challenge (RFC 8737 §3), with a key of its own. */
export async function createChallengeCertificate(name: string, keyAuthorization: string): Promise<CertifiedKey> {
  const x509 = await loadX509();
  const keys = await crypto.subtle.generateKey(ALGORITHM, true, ["sign", "verify"]);
  const digest = createHash("sha256").update(keyAuthorization).digest();
  const octets = new Uint8Array([0x04, digest.length, ...digest]); // an OCTET STRING
  const certificate = await x509.X509CertificateGenerator.createSelfSigned({
    name: "CN=acme-tls-alpn-01",
    keys,
    signingAlgorithm: ALGORITHM,
    notBefore: new Date(Date.now() - DAY_MS),
    notAfter: new Date(Date.now() + 7 * DAY_MS),
    extensions: [
      new x509.SubjectAlternativeNameExtension([{ type: "dns", value: name }]),
      new x509.Extension(ACME_IDENTIFIER, true, octets),
    ],
  }, crypto);
  const key = await crypto.subtle.exportKey("pkcs8", keys.privateKey);
  return { cert: certificate.toString("pem"), key: x509.PemConverter.encode(key, "PRIVATE KEY") };
}
