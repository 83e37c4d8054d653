// Orders one certificate, and decides when: if there is none, after a part of its lifetime, or when the authority says so. A certificate that
// cannot be renewed stays in use.
import type { X509Certificate } from "node:crypto";
import { setTimeout as sleep } from "node:timers/promises";
import { generatePrivateKey } from "../../auth/keys.ts";
import { messageOf } from "../../log/error_message.ts";
import type { Logger } from "../../log/logger.ts";
import { readCertificates, readPrivateKey } from "../pem.ts";
import { covers, createRequest, idOf, renewalTime, timeWithin } from "./certificate.ts";
import { AcmeClient, AcmeError, type ExternalAccount, MAX_RETRY_AFTER_MS, type Solver } from "./client.ts";
import type { Lease } from "./lease.ts";
import type { AcmeState, Attempts } from "./state.ts";

/** A certificate authority, and the account there. */
export interface Authority {
  /** URL of the directory. */
  readonly directory: string;
  /** Authorities to trust for the directory, PEM. Default: the runtime's. */
  readonly ca?: string;
  /** Default: the authority's. */
  readonly profile?: string;
  readonly external?: ExternalAccount;
  /** Has the account. */
  readonly state: Pick<AcmeState, "accountKey">;
}

export interface OrdererOptions {
  /** What the certificate is for. */
  readonly names: readonly string[];
  readonly email?: string;
  /** The second authority is used if the first one fails again, or if there is no valid certificate. */
  readonly authorities: readonly [Authority, ...Authority[]];
  readonly state: AcmeState;
  readonly solver: Solver;
  readonly lease: Lease;
  /** Exchanges the state with those who share it, before and after an order. Never rejects. Default: none shares it. */
  readonly sync?: () => Promise<void>;
  /** Nothing is ordered before. Default: at once. */
  readonly allowed?: Promise<void>;
  readonly log: Logger;
  readonly signal: AbortSignal;
  /** Called with why there is no certificate of the authority, or with `undefined` if there is one. */
  readonly onState: (problem: string | undefined) => void;
  readonly onOrder: (outcome: "issued" | "failed") => void;
  /** Called when {@link AcmeState.certificateFile} has a new certificate. Never rejects. */
  readonly onCertificate: () => Promise<void>;
  /** Milliseconds since 1970. Default `Date.now`. */
  readonly now?: () => number;
}

const MINUTE_MS = 60_000;
const HOUR_MS = 60 * MINUTE_MS;
/** Delay after a failed order, in milliseconds, which doubles each time. Authorities allow a few failures per hour. */
const BACKOFF_MS = { first: 15 * MINUTE_MS, last: 24 * HOUR_MS };
/** Time in milliseconds after a certificate in which no other one is ordered, whatever the authority's renewal information says. */
const PAUSE_MS = HOUR_MS;
/** The longest sleep in milliseconds: the clock may be set, and a machine suspended. */
const CHECK_MS = HOUR_MS;
/** Interval in milliseconds of questions for renewal information: if the authority does not say, and the bounds of what it says. */
const RENEWAL_INFO_MS = { default: 6 * HOUR_MS, least: 5 * MINUTE_MS, most: 24 * HOUR_MS };
/** Time in milliseconds until it is tried again to become the proxy that orders. */
const LEASE_RETRY_MS = 30_000;
/** Failed orders that named the certificate they replace; the authority may refuse for that. */
const MAX_REPLACING = 2;

/** The certificate in use, and its key, PEM. */
interface Current {
  readonly leaf: X509Certificate;
  readonly key: string;
}

/** What the authority says about the certificate with an id. */
interface Renewal {
  readonly id: string;
  /** When to renew it, in milliseconds since 1970; missing if it does not say. */
  readonly at?: number;
  /** When to ask again. */
  readonly askAt: number;
}

export class Orderer {
  readonly #given: OrdererOptions;
  readonly #now: () => number;
  #isAllowed: boolean;
  #renewal?: Renewal;
  #isForced = false;
  #wake = new AbortController();
  /** End of the last delay that was logged. */
  #loggedUntil = 0;

  constructor(given: OrdererOptions) {
    this.#given = given;
    this.#now = given.now ?? Date.now;
    this.#isAllowed = given.allowed === undefined;
    void given.allowed?.then(() => {
      this.#isAllowed = true;
      this.wake();
    });
  }

  /** Runs until the signal aborts. Never rejects. */
  async run(): Promise<void> {
    const { signal, log } = this.#given;
    while (!signal.aborted) {
      this.#wake = new AbortController();
      const waitMs = await this.#step().catch((error) => {
        if (!signal.aborted) log.error("certificates cannot be ordered", { reason: messageOf(error) });
        return BACKOFF_MS.first;
      });
      if (waitMs <= 0) continue;
      await sleep(Math.min(waitMs, CHECK_MS), undefined, { signal: AbortSignal.any([signal, this.#wake.signal]) }).catch(() => {}); // woken
    }
  }

  /** Orders a certificate that is due, without the delay after a failure. */
  retry(): void {
    this.#isForced = true;
    this.wake();
  }

  /** Looks at the certificate again. */
  wake(): void {
    this.#wake.abort();
  }

  /** Orders if it is time. Returns the milliseconds until the next step. */
  async #step(): Promise<number> {
    const { names, state, lease, sync, onState } = this.#given;
    const [text, attempts] = [await state.certificate(), await state.attempts()];
    const current = this.#parse(text);
    const isComplete = current !== undefined && covers(current.leaf, names);
    onState(current && Date.parse(current.leaf.validTo) > this.#now() ? undefined : "the authority has not issued a certificate yet");
    const dueAt = isComplete ? await this.#dueAt(current, attempts) : 0;
    // for other names, a certificate is ordered at once
    const earliest = this.#isForced || (!isComplete && attempts.failures === 0) ? 0 : attempts.earliest;
    this.#isForced = false;
    // a longer delay was written while the clock was wrong
    const within = (most: number, at: number) => at <= this.#now() + most ? at : 0;
    const at = Math.max(dueAt, within(BACKOFF_MS.last, earliest), within(MAX_RETRY_AFTER_MS, attempts.retryAfter));
    const waitMs = at - this.#now();
    if (waitMs > 0) {
      if (dueAt < this.#now()) this.#logDelay(at, attempts);
      return Math.min(waitMs, (this.#renewal?.askAt ?? Infinity) - this.#now());
    }
    if (!this.#isAllowed) return CHECK_MS;
    const release = await lease.take();
    if (release === undefined) return LEASE_RETRY_MS;
    try {
      if (this.#given.signal.aborted) return 0;
      await sync?.();
      // the one that had the lease may share the state
      const isSame = await state.certificate() === text && (await state.attempts()).at === attempts.at;
      if (isSame) await this.#order(current, attempts);
      await sync?.();
    } finally {
      release();
    }
    return 0;
  }

  /** `undefined` if there is none, or none that can be used. */
  #parse(text: string | undefined): Current | undefined {
    if (text === undefined) return undefined;
    const pem = { option: "state-dir", file: this.#given.state.certificateFile, text };
    try {
      const key = readPrivateKey(pem);
      return { leaf: readCertificates(pem, "chain").all[0]!, key: String(key.export({ type: "pkcs8", format: "pem" })) };
    } catch (error) {
      this.#given.log.warn("the certificate of the authority cannot be used", { reason: messageOf(error) });
      return undefined;
    }
  }

  /** When to renew a certificate, in milliseconds since 1970. */
  async #dueAt({ leaf }: Current, { issuer }: Attempts): Promise<number> {
    const id = await idOf(leaf);
    if (id === undefined) return renewalTime(leaf);
    if (this.#renewal?.id !== id || this.#renewal.askAt <= this.#now()) {
      this.#renewal = await this.#askWhen(id, leaf, this.#authorityOf(issuer));
    }
    return this.#renewal.at ?? renewalTime(leaf);
  }

  async #askWhen(id: string, leaf: X509Certificate, authority: Authority): Promise<Renewal> {
    const next = (ms: number) => this.#now() + Math.min(Math.max(ms, RENEWAL_INFO_MS.least), RENEWAL_INFO_MS.most);
    try {
      const info = await (await this.#connect(authority)).renewalInfo(id);
      const at = info && timeWithin(info, leaf, Math.random());
      // of an unchanged window, the moment stays
      const before = this.#renewal?.id === id ? this.#renewal.at : undefined;
      const stays = info && before !== undefined && before >= info.start && before <= info.end;
      return { id, at: stays ? before : at, askAt: next(info?.retryAfterMs ?? RENEWAL_INFO_MS.default) };
    } catch (error) {
      this.#given.log.debug("the authority does not say when to renew", { reason: messageOf(error) });
      return { id, askAt: next(RENEWAL_INFO_MS.default) };
    }
  }

  #authorityOf(issuer: string | undefined): Authority {
    const { authorities } = this.#given;
    return authorities.find(({ directory }) => directory === issuer) ?? authorities[0];
  }

  async #connect({ directory, ca, state }: Authority): Promise<AcmeClient> {
    return new AcmeClient({ directory, ca, accountKey: await state.accountKey(), signal: this.#given.signal });
  }

  async #order(current: Current | undefined, before: Attempts): Promise<void> {
    const { state, log, signal, names, authorities, onOrder, onCertificate, onState } = this.#given;
    const { failures, issuer } = before;
    const earliest = this.#now() + Math.min(BACKOFF_MS.first * 2 ** Math.min(failures, 20), this.#longestDelay(current));
    const isInUse = current !== undefined && Date.parse(current.leaf.validTo) > this.#now();
    // one failure may be a short outage
    const [first, ...others] = authorities;
    const asked = isInUse && failures === 0 ? [first] : [first, ...others];
    // before the order: a program that crashes and starts again must not order each time
    await state.writeAttempts({ failures: failures + 1, earliest, retryAfter: 0, at: this.#now(), issuer });
    const retryAfters: number[] = [];
    for (const [i, authority] of asked.entries()) {
      const { host } = new URL(authority.directory);
      try {
        const leaf = await this.#request(authority, current, before);
        const next = { failures: 0, earliest: this.#now() + PAUSE_MS, retryAfter: 0, at: this.#now() };
        await state.writeAttempts({ ...next, issuer: authority.directory });
        onOrder("issued");
        await onCertificate();
        onState(undefined);
        const until = new Date(leaf.validTo).toISOString();
        return log.info("certificate issued", { names: names.join(","), authority: host, until });
      } catch (error) {
        // not the authority's fault: the next order need not wait
        if (signal.aborted) return await state.writeAttempts({ ...before, at: this.#now() });
        retryAfters.push(this.#now() + ((error instanceof AcmeError ? error.retryAfterMs : undefined) ?? 0));
        onOrder("failed");
        const isLast = i === asked.length - 1;
        const retryAfter = Math.min(...retryAfters);
        if (isLast) await state.writeAttempts({ failures: failures + 1, earliest, retryAfter, at: this.#now(), issuer });
        log.warn("certificate cannot be obtained", {
          names: names.join(","),
          authority: host,
          reason: messageOf(error),
          inUse: current && `the previous one, until ${new Date(current.leaf.validTo).toISOString()}`,
          nextOrder: isLast ? new Date(Math.max(earliest, retryAfter)).toISOString() : "now, from the next authority",
        });
      }
    }
  }

  /** In milliseconds. Several attempts fit into what is left of a certificate in use, and one that has expired is urgent. */
  #longestDelay(current: Current | undefined): number {
    if (current === undefined) return BACKOFF_MS.last;
    const quarter = (Date.parse(current.leaf.validTo) - this.#now()) / 4;
    return quarter <= 0 ? HOUR_MS : Math.min(Math.max(quarter, BACKOFF_MS.first), BACKOFF_MS.last);
  }

  /** Orders and stores a certificate. The key stays, and with it what clients have stored of it. */
  async #request(authority: Authority, current: Current | undefined, { failures, issuer }: Attempts): Promise<X509Certificate> {
    const { names, email, state, solver, log } = this.#given;
    const { directory, profile, external } = authority;
    const client = await this.#connect(authority);
    log.info("ordering a certificate", {
      names: names.join(","),
      authority: new URL(directory).host,
      challenge: solver.type,
      agreedTerms: await client.terms(),
    });
    await client.register({ email, external });
    const key = current?.key ?? generatePrivateKey("ES256");
    const replaces = current && failures < MAX_REPLACING && this.#authorityOf(issuer) === authority ? await idOf(current.leaf) : undefined;
    const text = await client.order({ names, csr: await createRequest(names, key), solver, profile, replaces });
    const pem = { option: "acme.domain", file: "(issued)", text };
    const { all: [leaf], text: chain } = readCertificates(pem, "chain");
    if (!leaf!.checkPrivateKey(readPrivateKey({ ...pem, text: key })) || !covers(leaf!, names)) {
      throw new AcmeError("the authority has issued a certificate for another key or other names");
    }
    await state.writeCertificate(chain, key);
    return leaf!;
  }

  /** A delay is logged once. */
  #logDelay(at: number, { failures }: Attempts): void {
    if (at === this.#loggedUntil) return;
    this.#loggedUntil = at;
    this.#given.log.info("the next order of a certificate is delayed", {
      until: new Date(at).toISOString(),
      failures,
      advice: "SIGHUP orders at once",
    });
  }
}
