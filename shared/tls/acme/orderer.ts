// Orders the certificate for the names of a service, and decides when: if there is none, after a part of its lifetime, or when the authority
// says so. A certificate that cannot be renewed stays in use.
import { randomUUID, type X509Certificate } from "node:crypto";
import { setTimeout as sleep } from "node:timers/promises";
import { generatePrivateKey } from "../../auth/keys.ts";
import { messageOf } from "../../log/error_message.ts";
import type { Logger } from "../../log/logger.ts";
import { readCertificates, readPrivateKey } from "../pem.ts";
import { covers, createRequest, idOf, renewalTime, timeWithin } from "./certificate.ts";
import { AcmeClient, AcmeError, MAX_RETRY_AFTER_MS, type Solver } from "./client.ts";
import type { AcmeOptions } from "./options.ts";
import type { SharedStore } from "./solvers.ts";
import type { AcmeState, Attempts } from "./state.ts";

export interface OrdererOptions {
  readonly options: AcmeOptions;
  /** Authorities to trust for the directory, PEM. Default: the runtime's. */
  readonly ca?: string;
  readonly state: AcmeState;
  readonly solver: Solver;
  /** Of several proxies that share a store, one orders at a time. */
  readonly shared?: SharedStore;
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
  readonly #lease: string;
  readonly #instance = randomUUID();
  #renewal?: Renewal;
  #isForced = false;
  #wake = new AbortController();
  /** Of the last delay that was logged. */
  #loggedUntil = 0;

  constructor(given: OrdererOptions) {
    this.#given = given;
    this.#now = given.now ?? Date.now;
    // no agent has such an id, because it contains a space
    this.#lease = `acme lease ${given.options.domain.join(",")}`;
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
    this.#wake.abort();
  }

  /** Orders if it is time. Returns the milliseconds until the next step. */
  async #step(): Promise<number> {
    const { options: { domain }, state, onState } = this.#given;
    const [text, attempts] = [await state.certificate(), await state.attempts()];
    const current = this.#parse(text);
    const isComplete = current !== undefined && covers(current.leaf, domain);
    onState(current && Date.parse(current.leaf.validTo) > this.#now() ? undefined : "the authority has not issued a certificate yet");
    const dueAt = isComplete ? await this.#dueAt(current) : 0;
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
    const release = await this.#takeLease();
    if (release === undefined) return LEASE_RETRY_MS;
    try {
      // the proxy that had the lease may use the same directory
      if (await state.certificate() === text) await this.#order(current, attempts);
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
  async #dueAt({ leaf }: Current): Promise<number> {
    const id = await idOf(leaf);
    if (id === undefined) return renewalTime(leaf);
    if (this.#renewal?.id !== id || this.#renewal.askAt <= this.#now()) this.#renewal = await this.#askWhen(id, leaf);
    return this.#renewal.at ?? renewalTime(leaf);
  }

  async #askWhen(id: string, leaf: X509Certificate): Promise<Renewal> {
    const next = (ms: number) => this.#now() + Math.min(Math.max(ms, RENEWAL_INFO_MS.least), RENEWAL_INFO_MS.most);
    try {
      const info = await (await this.#connect()).renewalInfo(id);
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

  async #connect(): Promise<AcmeClient> {
    const { options: { directory }, ca, state, signal } = this.#given;
    return new AcmeClient({ directory, ca, accountKey: await state.accountKey(), signal });
  }

  async #order(current: Current | undefined, { failures }: Attempts): Promise<void> {
    const { state, log, signal, options: { domain, directory }, onOrder, onCertificate, onState } = this.#given;
    const names = domain.join(",");
    const earliest = this.#now() + Math.min(BACKOFF_MS.first * 2 ** Math.min(failures, 20), BACKOFF_MS.last);
    // before the order: a program that crashes and starts again must not order each time
    await state.writeAttempts({ failures: failures + 1, earliest, retryAfter: 0 });
    try {
      const leaf = await this.#request(current, failures);
      await state.writeAttempts({ failures: 0, earliest: this.#now() + PAUSE_MS, retryAfter: 0 });
      onOrder("issued");
      await onCertificate();
      onState(undefined);
      log.info("certificate issued", { names, until: new Date(leaf.validTo).toISOString() });
    } catch (error) {
      if (signal.aborted) return;
      const retryAfter = this.#now() + ((error instanceof AcmeError ? error.retryAfterMs : undefined) ?? 0);
      await state.writeAttempts({ failures: failures + 1, earliest, retryAfter });
      onOrder("failed");
      log.warn("certificate cannot be obtained", {
        names,
        authority: new URL(directory).host,
        reason: messageOf(error),
        inUse: current && `the previous one, until ${new Date(current.leaf.validTo).toISOString()}`,
        nextOrder: new Date(Math.max(earliest, retryAfter)).toISOString(),
      });
    }
  }

  /** Orders and stores a certificate. The key stays, and with it what clients have stored of it. */
  async #request(current: Current | undefined, failures: number): Promise<X509Certificate> {
    const { options: { domain, email, profile, eab, directory }, state, solver, log } = this.#given;
    const client = await this.#connect();
    log.info("ordering a certificate", {
      names: domain.join(","),
      authority: new URL(directory).host,
      challenge: solver.type,
      agreedTerms: await client.terms(),
    });
    const external = eab.keyId === undefined || eab.hmacKey === undefined ? undefined : { keyId: eab.keyId, hmacKey: eab.hmacKey };
    await client.register({ email, external });
    const key = current?.key ?? generatePrivateKey("ES256");
    const text = await client.order({
      names: domain,
      csr: await createRequest(domain, key),
      solver,
      profile,
      replaces: current && failures < MAX_REPLACING ? await idOf(current.leaf) : undefined,
    });
    const pem = { option: "acme.domain", file: "(issued)", text };
    const { all: [leaf], text: chain } = readCertificates(pem, "chain");
    if (!leaf!.checkPrivateKey(readPrivateKey({ ...pem, text: key })) || !covers(leaf!, domain)) {
      throw new AcmeError("the authority has issued a certificate for another key or other names");
    }
    await state.writeCertificate(chain, key);
    return leaf!;
  }

  /** Returns what gives the lease back; `undefined` if another proxy has it. */
  async #takeLease(): Promise<(() => void) | undefined> {
    const { shared, log } = this.#given;
    if (shared === undefined) return () => {};
    const renew = () => shared.store.renew(this.#lease, this.#instance);
    try {
      await renew();
      if (await shared.store.lookup(this.#lease) !== this.#instance) return undefined;
    } catch (error) {
      log.debug("a certificate is ordered without asking the other proxies", { reason: messageOf(error) });
    }
    const timer = setInterval(() => void renew().catch(() => {}), shared.ttlMs / 3); // the store reports it
    return () => clearInterval(timer); // the entry expires
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
