// Certificates of a service that an ACME authority issues: opens what ordering them needs, and answers challenges.
import { ConfigError } from "../config/option.ts";
import type { StateDirectory } from "../files/state_directory.ts";
import type { Solver } from "../tls/acme/client.ts";
import { Lease } from "../tls/acme/lease.ts";
import { acmeNameProblem, type AcmeOptions, checkAcmeOptions } from "../tls/acme/options.ts";
import { type Authority, Orderer } from "../tls/acme/orderer.ts";
import { SealedStore, StoreSecrets } from "../tls/acme/sealed_store.ts";
import { checkCommand, createCommandSolver, HttpSolver, type SharedStore } from "../tls/acme/solvers.ts";
import { AcmeState } from "../tls/acme/state.ts";
import { StateSharing } from "../tls/acme/state_sharing.ts";
import { type TlsAlpnOptions, TlsAlpnSolver } from "../tls/acme/tls_alpn.ts";
import { messageOf } from "../log/error_message.ts";
import { type Logger, silentLogger } from "../log/logger.ts";
import { readCertificates } from "../tls/pem.ts";
import { readPemFile } from "../tls/reloadable_tls.ts";
import { type CommonOrderOptions, HostOrders, type HostOrdersOptions, type ShareCertificate } from "./acme_hosts.ts";
import { serveTcp } from "./http_server.ts";
import type { ServiceRuntime } from "./runtime.ts";

/** Limit on waiting requests at the port for challenges. */
const MAX_PENDING = 256;
/** The longest interval in milliseconds at which proxies exchange certificates. */
const SYNC_MS = 3_000;

/** What ordering needs of the service. */
export interface AcmeStart {
  /** Sets the certificates with which the service's TLS ports answer challenges. */
  readonly useChallenges: TlsAlpnOptions["use"];
  /** Sets the certificates of published names. */
  readonly useHosts: HostOrdersOptions["use"];
  /** The store shared with services that answer each other's challenges. Default: none. */
  readonly shared?: SharedStore;
}

/** The certificates of a service. */
export interface Acme {
  /** The file with the chain of the service's own names, and its key; `undefined` if it has none. The file may not exist yet. */
  readonly certificateFile?: string;
  /**
   * Listens for challenges, and orders certificates until the service closes or another process takes over.
   * @throws {NetError} as `listenTcp` of the network
   */
  start(runtime: ServiceRuntime, start: AcmeStart): Promise<void>;
  /** Sets the published names that need a certificate, from the options and from agents. */
  want(configured: readonly string[], published: readonly string[]): void;
  /** Orders nothing more: another process does. */
  release(): Promise<void>;
}

/** The checked options and the contents of their files. */
interface Opened {
  readonly options: AcmeOptions;
  readonly path: string;
  readonly authorities: readonly [Authority, ...Authority[]];
  /** Those of the authorities; the first one has the service's certificate, too. */
  readonly accounts: readonly [AcmeState, ...AcmeState[]];
  readonly secrets?: StoreSecrets;
  readonly publishedNames: number;
}

export interface OpenAcme {
  readonly directory: StateDirectory;
  /** Published names that get certificates. */
  readonly hosts: readonly string[];
  /** How many names of agents get certificates. Default: none. */
  readonly publishedNames?: number;
  readonly hasStore: boolean;
  /** Default: it is only a check, and nothing is written. */
  readonly log?: Logger;
}

/**
 * Reads the files of the options and prepares the state directory; `undefined` if nothing needs a certificate.
 * @throws {ConfigError}
 */
export async function openAcme(
  options: AcmeOptions,
  { directory: { path }, hosts, hasStore, publishedNames = 0, log }: OpenAcme,
): Promise<Acme | undefined> {
  const hasHosts = hosts.length > 0 || publishedNames > 0;
  checkAcmeOptions(options, hasHosts);
  checkHosts(hosts, options);
  const { domain, directory, profile, eab, file, fallback, dnsCommand, storeKeyFile } = options;
  if (domain.length === 0 && !hasHosts) return undefined;
  if (path === undefined) throw new ConfigError("Cannot use --acme.domain: there is no state directory; set --state-dir");
  if (storeKeyFile !== undefined && !hasStore) throw new ConfigError("Cannot use --acme.store-key-file: there is no store");
  if (dnsCommand !== undefined) {
    await checkCommand(dnsCommand).catch((cause: Error) => {
      throw new ConfigError(`Cannot use --acme.dns-command ${dnsCommand}: ${cause.message}`, { cause });
    });
  }
  const authorityOf = async (directory: string, group: string, { rootCa }: { readonly rootCa?: string }, account: AcmeOptions["eab"]) => {
    const { keyId, hmacKey } = account;
    return {
      directory,
      ca: rootCa && readCertificates(await readPemFile(`${group}.file.root-ca`, rootCa), "authorities").text,
      external: keyId === undefined || hmacKey === undefined ? undefined : { keyId, hmacKey },
      state: new AcmeState(path, directory),
    };
  };
  const first = await authorityOf(directory, "acme", file, eab);
  const others = fallback.directory === undefined
    ? []
    : [await authorityOf(fallback.directory, "acme.fallback", fallback.file, fallback.eab)];
  const secrets = storeKeyFile === undefined ? undefined : await StoreSecrets.open(storeKeyFile, log ?? silentLogger);
  const accounts = [first.state, ...others.map(({ state }) => state)] as const;
  if (log) { for (const state of accounts) await state.open(); }
  return new ServiceAcme({
    options,
    path,
    authorities: [{ ...first, profile }, ...others],
    accounts,
    secrets,
    publishedNames,
  });
}

/** @throws {ConfigError} for a host for which no certificate can be obtained */
function checkHosts(hosts: readonly string[], { dnsCommand }: AcmeOptions): void {
  for (const host of hosts) {
    const why = acmeNameProblem(host) !== undefined
      ? "authorities issue certificates for public names only"
      : host.startsWith("*.") && dnsCommand === undefined
      ? "authorities validate wildcards by DNS only; set --acme.dns-command"
      : undefined;
    if (why !== undefined) throw new ConfigError(`Cannot use acme of the --forward for host=${host}: ${why}`);
  }
}

class ServiceAcme implements Acme {
  readonly #opened: Opened;
  readonly #stopping = new AbortController();
  readonly #running: Promise<void>[] = [];
  #hosts?: HostOrders;
  #wanted: readonly [configured: readonly string[], published: readonly string[]] = [[], []];

  constructor(opened: Opened) {
    this.#opened = opened;
  }

  get certificateFile(): string | undefined {
    const { options: { domain }, accounts: [state] } = this.#opened;
    return domain.length === 0 ? undefined : state.certificateFile;
  }

  async start(runtime: ServiceRuntime, { useChallenges, useHosts, shared }: AcmeStart): Promise<void> {
    const { options, path, authorities, accounts, secrets, publishedNames } = this.#opened;
    const { log, net, certificates, metrics, handover: { predecessor } } = runtime;
    const sealed = secrets && shared && new SealedStore(shared, secrets);
    const common: CommonOrderOptions = {
      email: options.email,
      authorities,
      solver: await this.#openSolver(runtime, useChallenges, sealed?.values ?? shared),
      lease: new Lease(accounts[0].authority, log, shared),
      allowed: predecessor?.settled,
      log,
      signal: this.#stopping.signal,
      onOrder: metrics.outcomes("reverse_http_acme_orders_total", "Orders of certificates by ACME: issued or failed."),
    };
    const share = createShare(sealed, accounts, log);
    runtime.defer(() => this.release());
    const hosts = this.#hosts = new HostOrders({
      ...common,
      path,
      directory: authorities[0].directory,
      share,
      use: useHosts,
      net,
      certificates,
      options,
      publishedNames,
    });
    hosts.want(...this.#wanted);
    const syncOwn = options.domain.length === 0 ? undefined : this.#orderOwn(runtime, common, share);
    runtime.onReload(() => hosts.retry());
    if (sealed && shared) {
      syncRegularly(runtime, shared.ttlMs, async () => {
        await syncOwn?.();
        await hosts.sync();
      });
    }
  }

  /** Orders the certificate of the service's own names. Returns what exchanges it with others. */
  #orderOwn(runtime: ServiceRuntime, common: CommonOrderOptions, share: ShareCertificate): (() => Promise<void>) | undefined {
    const { health, certificates } = runtime;
    const { options: { domain: names }, accounts: [state] } = this.#opened;
    const orderer = new Orderer({
      ...common,
      names,
      state,
      sync: share(state, names, () => certificates.reload()),
      onState: (problem) => problem === undefined ? health.setReady("certificate") : health.setUnready("certificate", problem),
      onCertificate: () => certificates.reload(),
    });
    health.setUnready("certificate", "the certificate has not been checked yet");
    const sync = share(state, names, async () => {
      await certificates.reload();
      orderer.wake();
    });
    this.#running.push((async () => {
      await sync?.(); // the others may have a certificate
      await orderer.run();
    })());
    runtime.onReload(() => orderer.retry());
    return sync;
  }

  want(configured: readonly string[], published: readonly string[]): void {
    this.#wanted = [configured, published];
    this.#hosts?.want(configured, published);
  }

  async release(): Promise<void> {
    this.#stopping.abort();
    await Promise.all([...this.#running, this.#hosts?.done]);
  }

  async #openSolver(runtime: ServiceRuntime, use: TlsAlpnOptions["use"], shared: SharedStore | undefined): Promise<Solver> {
    const { log } = runtime;
    const { signal } = this.#stopping;
    const { domain, challenge, dnsCommand, httpListenAddress } = this.#opened.options;
    if (dnsCommand !== undefined) return createCommandSolver(dnsCommand, log, signal);
    if (challenge === "http-01") return await listenForChallenges(runtime, httpListenAddress, new HttpSolver(log, shared));
    const names = () => [...domain, ...this.#hosts?.names ?? []];
    const solver = new TlsAlpnSolver({ names, use, shared, log, signal });
    this.#running.push(solver.run()); // never rejects
    return solver;
  }
}

/** @param accounts shared too, and before any certificate */
function createShare(sealed: SealedStore | undefined, accounts: readonly AcmeState[], log: Logger): ShareCertificate {
  if (sealed === undefined) return () => undefined;
  const accountSharing = new StateSharing(sealed, accounts);
  return (state, names, onChange) => {
    const sharing = new StateSharing(sealed, [], { state, names });
    return async () => {
      try {
        await accountSharing.sync();
        if (!await sharing.sync()) return;
        log.info("certificate received from another proxy", { names: names.join(",") });
        await onChange();
      } catch (error) {
        log.debug("certificates cannot be shared", { reason: messageOf(error) });
      }
    };
  };
}

/**
 * Exchanges certificates until the service closes, one exchange after the other.
 * @param sync never rejects
 */
function syncRegularly(runtime: ServiceRuntime, ttlMs: number, sync: () => Promise<void>): void {
  let isSyncing = false;
  const timer = setInterval(() => {
    if (isSyncing) return;
    isSyncing = true;
    void sync().then(() => isSyncing = false);
  }, Math.min(ttlMs / 3, SYNC_MS));
  runtime.defer(() => clearInterval(timer));
}

/** Answers the challenges of `solver` at `address`, and returns it. */
async function listenForChallenges(runtime: ServiceRuntime, address: string, solver: HttpSolver): Promise<HttpSolver> {
  const listener = await runtime.net.listenTcp({ address, maxPendingHeads: MAX_PENDING });
  const serving = serveTcp(listener, (request) => respond(solver, request));
  runtime.defer(async () => {
    listener.close();
    await serving;
  });
  runtime.log.info("answering challenges for certificates", { address: listener.address });
  return solver;
}

async function respond(solver: HttpSolver, { method, url }: Request): Promise<Response> {
  if (method !== "GET") return new Response("Only GET and HEAD are served\n", { status: 405, headers: { "Allow": "GET, HEAD" } });
  const answer = await solver.answer(new URL(url).pathname);
  if (answer === undefined) return new Response("There is no such challenge\n", { status: 404 });
  return new Response(answer, { headers: { "Content-Type": "application/octet-stream", "Cache-Control": "no-store" } });
}
