// Certificates by ACME for published names, one for each: an order that fails for one name delays no other one. Names come from options, and
// from agents whose tokens allow them; a visitor's request never causes an order.
import { covers as certificateCovers } from "../tls/acme/certificate.ts";
import type { HostTls } from "../net/tls.ts";
import { messageOf } from "../log/error_message.ts";
import { acmeNameProblem, type AcmeOptions } from "../tls/acme/options.ts";
import { Orderer, type OrdererOptions } from "../tls/acme/orderer.ts";
import { AcmeState } from "../tls/acme/state.ts";
import { readCertificates, readPrivateKey } from "../tls/pem.ts";
import type { CertifiedKey, TlsCheck } from "../tls/reloadable_tls.ts";
import type { ServiceCertificates } from "./service_certificates.ts";

/** New names of agents in an hour: authorities limit the certificates of a domain in a week. */
const MAX_NEW = 20;
const HOUR_MS = 3_600_000;
/** Interval in milliseconds at which names that wait are tried again. */
const RETRY_MS = 60_000;

/** What the orders of a service have in common. */
export type CommonOrderOptions = Pick<
  OrdererOptions,
  "email" | "authorities" | "solver" | "lease" | "allowed" | "log" | "signal" | "onOrder"
>;

/**
 * Returns what exchanges a certificate with others who share the store, and never rejects; `undefined` if no other process shares it.
 * @param onChange called when another one has been received
 */
export type ShareCertificate = (
  state: AcmeState,
  names: readonly string[],
  onChange: () => Promise<void>,
) => (() => Promise<void>) | undefined;

export interface HostOrdersOptions extends CommonOrderOptions {
  readonly options: Pick<AcmeOptions, "domain" | "dnsCommand">;
  /** How many names of agents get certificates at once. */
  readonly publishedNames: number;
  /** The state directory. */
  readonly path: string;
  /** URL of the first authority's directory. */
  readonly directory: string;
  /** Checks certificates. */
  readonly net: Pick<TlsCheck, "checkServerTls">;
  /** Reports when certificates expire. */
  readonly certificates: Pick<ServiceCertificates, "watch">;
  readonly share: ShareCertificate;
  /** Called with all certificates when one has changed. */
  readonly use: (hosts: readonly HostTls[]) => void;
  /** Milliseconds since 1970. Default `Date.now`. */
  readonly now?: () => number;
}

/** A name whose certificate is ordered. */
interface Host {
  readonly stopping: AbortController;
  readonly state: AcmeState;
  orderer?: Orderer;
  sync?: () => Promise<void>;
  tls?: CertifiedKey;
  unwatch?: () => void;
  running: Promise<void>;
}

export class HostOrders {
  readonly #given: HostOrdersOptions;
  readonly #now: () => number;
  readonly #hosts = new Map<string, Host>();
  /** Names of agents without a certificate that are beyond the limits. */
  #waiting: readonly string[] = [];
  /** When new names of agents were first ordered. */
  #recent: number[] = [];
  #timer?: ReturnType<typeof setInterval>;
  #work = Promise.resolve();

  constructor(given: HostOrdersOptions) {
    this.#given = given;
    this.#now = given.now ?? Date.now;
    given.signal.addEventListener("abort", () => this.#stop());
  }

  /** The names whose certificates are ordered. */
  get names(): string[] {
    return [...this.#hosts.keys()];
  }

  /** Sets the names that are needed. Those of agents are bounded. */
  want(configured: readonly string[], published: readonly string[]): void {
    this.#work = this.#work.then(() => this.#want(configured, published)).catch((error) => {
      this.#given.log.error("certificates of published names cannot be ordered", { reason: messageOf(error) });
    });
  }

  async #want(configured: readonly string[], published: readonly string[]): Promise<void> {
    const { signal, log, publishedNames } = this.#given;
    if (signal.aborted) return;
    const fixed = new Set(configured.filter((name) => this.#canOrder(name)));
    const asked = [...new Set(published.filter((name) => this.#canOrder(name) && !fixed.has(name)))];
    const needed = new Set([...fixed, ...asked]);
    for (const [name, host] of this.#hosts) if (!needed.has(name)) this.#close(name, host);
    for (const name of fixed) await this.#open(name);
    const waiting: string[] = [];
    for (const name of asked) {
      const others = this.#hosts.size - [...fixed].filter((name) => this.#hosts.has(name)).length;
      if (this.#hosts.has(name) || (others < publishedNames && await this.#mayOrder(name))) await this.#open(name);
      else waiting.push(name);
    }
    if (waiting.length > 0 && this.#waiting.length === 0) {
      log.warn("names of agents wait for certificates", { names: waiting.length, limit: publishedNames, newInAnHour: MAX_NEW });
    }
    this.#waiting = waiting;
    clearInterval(this.#timer);
    if (waiting.length > 0) this.#timer = setInterval(() => this.want(configured, published), RETRY_MS);
  }

  /** Whether an authority could issue it, and the service's own certificate is not for it. */
  #canOrder(name: string): boolean {
    const { domain, dnsCommand } = this.#given.options;
    if (acmeNameProblem(name) !== undefined || !/[a-z]/i.test(name) || (name.startsWith("*.") && dnsCommand === undefined)) return false;
    const own = domain.map((each) => each.toLowerCase());
    return !own.includes(name) && !own.includes(name.replace(/^[^.]*/, "*"));
  }

  /** Whether a name of an agent is known, or there are few new ones. */
  async #mayOrder(name: string): Promise<boolean> {
    if (await this.#stateOf(name).certificate().catch(() => undefined) !== undefined) return true;
    const now = this.#now();
    this.#recent = this.#recent.filter((at) => now - at < HOUR_MS && at <= now);
    if (this.#recent.length >= MAX_NEW) return false;
    this.#recent.push(now);
    return true;
  }

  #stateOf(name: string): AcmeState {
    const { path, directory } = this.#given;
    return new AcmeState(path, directory, name);
  }

  async #open(name: string): Promise<void> {
    if (this.#hosts.has(name)) return;
    const { share, signal, certificates } = this.#given;
    const [state, stopping] = [this.#stateOf(name), new AbortController()];
    await state.open();
    const host: Host = { state, stopping, running: Promise.resolve() };
    this.#hosts.set(name, host);
    const changed = () => this.#load(name, host);
    host.sync = share(state, [name], async () => {
      await changed();
      host.orderer?.wake();
    });
    const orderer = new Orderer({
      ...this.#given,
      names: [name],
      state,
      sync: share(state, [name], changed),
      signal: AbortSignal.any([signal, stopping.signal]),
      onState: () => {},
      onCertificate: changed,
    });
    host.orderer = orderer;
    host.unwatch = certificates.watch(name, () => host.tls?.cert, false);
    host.running = (async () => {
      await host.sync?.();
      await changed();
      await orderer.run();
    })();
  }

  /** Reads the certificate from its file. Never rejects. */
  async #load(name: string, host: Host): Promise<void> {
    const { log, net } = this.#given;
    try {
      const text = await host.state.certificate();
      if (text === undefined || this.#hosts.get(name) !== host) return;
      const pem = { option: "state-dir", file: host.state.certificateFile, text };
      const { all: [leaf], text: cert } = readCertificates(pem, "chain");
      if (!certificateCovers(leaf!, [name])) return;
      const tls = { cert, key: String(readPrivateKey(pem).export({ type: "pkcs8", format: "pem" })) };
      net.checkServerTls(tls);
      host.tls = tls;
      this.#use();
    } catch (error) {
      log.warn("the certificate of a published name cannot be used", { name, reason: messageOf(error) });
    }
  }

  #use(): void {
    const issued = [...this.#hosts].flatMap(([name, { tls }]) => tls === undefined ? [] : [{ names: [name], tls }]);
    this.#given.use(issued);
    this.#given.log.info("certificates of published names", { names: issued.flatMap(({ names }) => names).join(",") || undefined });
  }

  #close(name: string, { stopping, unwatch, tls }: Host): void {
    this.#hosts.delete(name);
    stopping.abort();
    unwatch?.();
    if (tls !== undefined) this.#use();
  }

  /** Exchanges all certificates with others. Never rejects. */
  async sync(): Promise<void> {
    for (const { sync } of [...this.#hosts.values()]) await sync?.();
  }

  /** Orders all certificates that are due, without delays after failures. */
  retry(): void {
    for (const { orderer } of this.#hosts.values()) orderer?.retry();
  }

  #stop(): void {
    clearInterval(this.#timer);
    for (const { stopping } of this.#hosts.values()) stopping.abort();
  }

  /** Resolves when nothing is being ordered, after the signal has aborted. */
  get done(): Promise<void> {
    return this.#work.then(async () => void await Promise.all([...this.#hosts.values()].map(({ running }) => running)));
  }
}
