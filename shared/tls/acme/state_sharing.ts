// Keeps accounts, a certificate and its attempts the same in the state directories of all that share a store.
import { createHash, X509Certificate } from "node:crypto";
import { parsePrivateKey } from "../../auth/keys.ts";
import { readPem } from "../../net/pem.ts";
import { covers } from "./certificate.ts";
import type { SealedStore } from "./sealed_store.ts";
import { type AcmeState, readAttempts } from "./state.ts";

const DAY_MS = 86_400_000;

interface SharedCertificate {
  readonly state: AcmeState;
  readonly names: readonly string[];
  /** Key of its entry in the store. */
  readonly key: string;
}

export class StateSharing {
  readonly #store: SealedStore;
  readonly #accounts: readonly AcmeState[];
  readonly #certificate?: SharedCertificate;

  /**
   * @param accounts one for each authority
   * @param certificate for which names. Default: the accounts only
   */
  constructor(
    store: SealedStore,
    accounts: readonly AcmeState[],
    certificate?: { readonly state: AcmeState; readonly names: readonly string[] },
  ) {
    this.#store = store;
    this.#accounts = accounts;
    if (certificate === undefined) return;
    const { state, names } = certificate;
    const of = `${state.authority} ${names.map((name) => name.toLowerCase()).sort().join(",")}`;
    this.#certificate = { state, names, key: `acme certificate ${createHash("sha256").update(of).digest("base64url")}` };
  }

  /**
   * Takes what is newer in the store, and renews there what is not. Returns whether there is another certificate.
   * @throws {StoreError | Error} if the store or a file cannot be used
   */
  async sync(): Promise<boolean> {
    for (const state of this.#accounts) await this.#syncAccount(state);
    return this.#certificate === undefined ? false : await this.#syncCertificate(this.#certificate);
  }

  /** The account in the store counts: there is one certificate for all, and one account that may replace it. */
  async #syncAccount(state: AcmeState): Promise<void> {
    const name = `acme account ${state.authority}`;
    const { account } = await this.#store.read(name) ?? {};
    const own = await state.accountText();
    if (typeof account === "string" && account !== own && isKey(account)) return await state.writeAccount(account);
    await this.#store.write(name, { account: own });
  }

  async #syncCertificate({ state, names, key }: SharedCertificate): Promise<boolean> {
    const [found, stored, attempts] = [await this.#store.read(key) ?? {}, await state.certificate(), await state.attempts()];
    const own = startOf(stored, names) > 0 ? stored : undefined;
    const isOther = typeof found.certificate === "string" && startOf(found.certificate, names) > startOf(own, names);
    const certificate = isOther ? found.certificate as string : own;
    if (isOther) await state.restoreCertificate(certificate!);
    const theirs = readAttempts(found.attempts);
    // a later time was written while a clock was wrong
    const latest = theirs.at > attempts.at && theirs.at <= Date.now() + DAY_MS ? theirs : attempts;
    if (latest !== attempts) await state.writeAttempts(latest);
    await this.#store.write(key, { certificate, attempts: latest });
    return isOther;
  }
}

/** The later of two certificates counts: when its validity starts, in milliseconds since 1970; 0 without one for these names. */
function startOf(text: string | undefined, names: readonly string[]): number {
  if (text === undefined) return 0;
  try {
    const certificate = new X509Certificate(readPem(text, "chain")[0]!.text);
    return covers(certificate, names) ? Date.parse(certificate.validFrom) : 0;
  } catch {
    return 0;
  }
}

function isKey(text: string): boolean {
  try {
    parsePrivateKey(text);
    return true;
  } catch {
    return false;
  }
}
