// What proxy, load balancer and agent share: metrics, health, limit reports, watchdog, admin server, TLS refresh, drain, and one owner that
// closes everything in one order.
import { setTimeout as sleep } from "node:timers/promises";
import type { Authenticator } from "../auth/authenticator.ts";
import { ReplaceableAuthenticator } from "../auth/replaceable.ts";
import { type AuthOptions, createAuthenticator } from "../auth/scheme.ts";
import { LimitReporter } from "../limits/limit.ts";
import { isolateLogger } from "../log/isolate.ts";
import { describeWriteError } from "../files/read.ts";
import { LogLimit } from "../log/limit.ts";
import { messageOf } from "../log/error_message.ts";
import type { LogFields, Logger, LogLevelControl } from "../log/logger.ts";
import type { Net } from "../net/net.ts";
import { ConfigError } from "../config/option.ts";
import { openPolicy, type Policy } from "../policy/policy.ts";
import { openStore, type StoreOptions } from "../store/options.ts";
import type { StoreEvents } from "../store/circuit_breaker.ts";
import type { Store } from "../store/store.ts";
import { type Reloadable, startTlsRefresh } from "../tls/reloadable_tls.ts";
import type { TracingOptions } from "../tracing/options.ts";
import { openTracer } from "../tracing/otlp.ts";
import type { Tracer } from "../tracing/span.ts";
import type { ClusterOptions } from "../config/cluster_options.ts";
import type { AdminOptions, HandoverOptions } from "../config/common_options.ts";
import { AuditLog } from "./audit.ts";
import { Admin, type AdminServices } from "./admin.ts";
import type { Change } from "./change.ts";
import type { ServiceOperations } from "./api/operations.ts";
import type { ServiceName } from "./api/types.ts";
import { type HandoverDeps, type HandoverState, Predecessor, Successors } from "./handover.ts";
import { Health } from "./health.ts";
import { Activity } from "./live/activity.ts";
import { CertificateExpiry } from "./certificate_expiry.ts";
import { type Cluster, openCluster } from "./cluster/cluster.ts";
import { type ConfigurationState, reportConfiguration } from "./configuration.ts";
import { Metrics } from "./metrics.ts";
import type { OperatorOptions } from "./operators/options.ts";
import { ResourceStack } from "./resource_stack.ts";
import { reportStore } from "./store_report.ts";
import type { Supervisor } from "./supervisor.ts";
import { startWatchdog } from "./watchdog.ts";

/** What a service needs besides its options. */
export interface ServiceDeps {
  readonly net: Net;
  /** Whether the service closes `net` after everything else, also when its start fails. Default: the caller closes it. */
  readonly ownsNet?: boolean;
  readonly log: Logger;
  /** Changes the level of `log`. Default: operators cannot. */
  readonly logLevel?: LogLevelControl;
  /** Receives the service's state while it runs. */
  readonly supervisor?: Supervisor;
  /** The state of its configuration, for metrics. Default: it is not reported. */
  readonly configuration?: ConfigurationState;
}

/** Values of the options `audit.*`. */
interface AuditOptions {
  readonly file?: string;
  readonly strict: boolean;
}

type CountAudit = (outcome: "written" | "lost", records: number) => void;

/** What a drain does after readiness has failed. */
export interface Drain {
  /** Logged when the drain starts. */
  readonly fields: LogFields;
  /** Time in milliseconds to keep serving, so that load balancers notice. */
  readonly delayMs: number;
  /** Waits for what is running; the service closes after it. */
  readonly finish: () => Promise<void>;
}

/**
 * Starts a service: `start` opens what it needs in the runtime. When `start` fails, everything it opened is closed. If a process listens at
 * `handover.socket`, the service takes over from it once it has started, and from then on another process can take over from it.
 * @throws what `start` throws
 * @throws {ConfigError} if the socket cannot be used
 * @throws {Error} if the other process refuses
 */
export async function startService<T>(
  name: ServiceName,
  deps: ServiceDeps,
  start: (runtime: ServiceRuntime) => Promise<T>,
  handover?: Pick<HandoverOptions, "socket">,
): Promise<T> {
  const resources = new ResourceStack();
  try {
    const runtime = new ServiceRuntime(name, deps, resources);
    if (handover?.socket !== undefined) await runtime.findPredecessor(handover.socket);
    const service = await start(runtime);
    await runtime.completeHandover();
    return service;
  } catch (error) {
    await resources.disposeAsync().catch(() => {}); // the first error is the cause
    throw error;
  }
}

/** The running service. Resources close in the reverse order of their opening. */
export class ServiceRuntime {
  readonly net: Net;
  /** Never throws. */
  readonly log: Logger;
  readonly metrics: Metrics;
  readonly health = new Health();
  /** What the service does, for operators. */
  readonly activity: Activity;
  /** Resolves when the service has closed. */
  readonly closed: Promise<void>;
  /** Resolves when another process has taken over, and this one only finishes what is open. */
  readonly handedOver: Promise<void>;
  readonly limitReporter: LimitReporter;
  /** Limits log lines that unauthenticated peers can cause. */
  readonly logLimit: LogLimit;
  /** Describes the service's state in one line, for the supervisor. */
  describe?: () => string;
  /** Passed on to a process that takes over. */
  handoverState: HandoverState = {};
  /** Finishes what is open when another process has taken over, and calls `settle` when nothing more can move there. Required for a hand-over. */
  onHandedOver?: (settle: () => void) => Promise<void>;
  #predecessor?: Predecessor;
  #handover?: HandoverDeps;
  #isSettled = true;
  #isHandedOver = false;
  readonly #supervisor?: Supervisor;
  readonly #resources: ResourceStack;
  readonly #reloads: (() => Promise<void> | void)[] = [];
  readonly #tlsRefreshes = new Set<{ reload(): Promise<void>; close(): Promise<void> }>();
  readonly #expiry: CertificateExpiry;
  readonly #closing = new AbortController();
  readonly #name: ServiceName;
  readonly #logLevel?: LogLevelControl;
  readonly #startedAt = new Date();
  #resolveClosed: () => void = () => {};
  #resolveHandedOver: () => void = () => {};
  readonly #configuration?: ConfigurationState;
  #authenticator?: Authenticator;
  /** That of the options. */
  #ownAuthenticator?: ReplaceableAuthenticator;
  /** Those that were replaced, and whose identities may still be used. */
  readonly #retired: Authenticator[] = [];
  #policy?: Policy;
  #store?: Store;
  #storeEvents?: StoreEvents;
  #audit?: AuditLog;
  #countAudit?: CountAudit;
  #admin?: Admin;
  #cluster?: Cluster;
  #services?: AdminServices;
  #isDraining = false;
  #drained?: Promise<void>;
  #closed?: Promise<void>;

  constructor(
    name: ServiceName,
    { net, ownsNet = false, log, logLevel, supervisor, configuration }: ServiceDeps,
    resources: ResourceStack,
  ) {
    this.#resources = resources;
    this.#name = name;
    this.#supervisor = supervisor;
    this.#logLevel = logLevel;
    this.#configuration = configuration;
    this.closed = new Promise((resolve) => this.#resolveClosed = resolve);
    this.handedOver = new Promise((resolve) => this.#resolveHandedOver = resolve);
    if (ownsNet) this.defer(() => net.close());
    this.net = net;
    this.log = isolateLogger(log);
    this.metrics = new Metrics(name);
    if (configuration) reportConfiguration(this.metrics, configuration);
    this.limitReporter = new LimitReporter({ log: this.log, count: (limit, times) => this.metrics.limitHit(limit, times) });
    const watchdog = startWatchdog({
      log: this.log,
      networkStalledMs: () => net.stalledMs(),
      onStall: this.metrics.stalls(),
      supervisor,
      status: () => this.describe?.(),
    });
    this.defer(() => watchdog.close());
    this.#expiry = this.adopt(new CertificateExpiry(this.log, this.health), (expiry) => expiry.close());
    this.activity = this.adopt(new Activity(net), (activity) => activity.close());
    this.defer(async () => void await Promise.all([...this.#tlsRefreshes].map((refresh) => refresh.close())));
    this.logLimit = this.adopt(new LogLimit({ log: this.log }), (limit) => limit.close());
  }

  /** The process that this one takes over from, if any. */
  get predecessor(): Predecessor | undefined {
    return this.#predecessor;
  }

  /** Whether another process serves, and this one finishes what is open. */
  get isHandedOver(): boolean {
    return this.#isHandedOver;
  }

  /** @throws {ConfigError | Error} as `find` of {@link Predecessor} */
  async findPredecessor(path: string): Promise<void> {
    const { handover: sockets } = this.net;
    if (sockets === undefined) throw new ConfigError("Cannot use --handover.socket: this network has no sockets of the system");
    this.#handover = { path, sockets, service: this.#name, log: this.log };
    this.#predecessor = await Predecessor.find(this.#handover);
  }

  /** @throws {ConfigError | Error} as `takeOver` of {@link Predecessor} and `listen` of {@link Successors} */
  async completeHandover(): Promise<void> {
    if (this.#handover === undefined) return;
    const predecessor = this.#predecessor;
    if (predecessor) {
      this.#isSettled = false;
      void predecessor.settled.then(() => this.#isSettled = true);
      await predecessor.takeOver();
      await this.#admin?.takeOver();
    }
    const refusal = () =>
      this.#isDraining ? "it is stopping" : this.#isSettled ? undefined : "it has not finished taking over from another process";
    const successors = await Successors.listen(this.#handover, {
      state: this.handoverState,
      refusal,
      released: (pid) => {
        this.#isHandedOver = true;
        this.#resolveHandedOver();
        this.#audit?.share();
        if (pid !== undefined) this.#supervisor?.handedOver(pid);
      },
      finish: (settle) =>
        this.drain({ fields: { reason: "another process has taken over" }, delayMs: 0, finish: () => this.onHandedOver!(settle) }),
    });
    this.adopt(successors, (own) => own.close());
  }

  /** Calls `close` when the service closes, before what was opened earlier is closed. */
  defer(close: () => void | Promise<void>): void {
    this.#resources.defer(close);
  }

  /** Returns `resource`, which the service closes. */
  adopt<T>(resource: T, close: (resource: T) => void | Promise<void>): T {
    return this.#resources.adopt(resource, close);
  }

  /**
   * The authenticator that the options name. `given` replaces it and is not closed.
   * @throws {ConfigError}
   */
  async openAuthenticator(options: AuthOptions, given?: Authenticator): Promise<Authenticator> {
    if (given) {
      this.onReload(() => given.reload?.());
      this.#authenticator = given;
      return given;
    }
    const own = this.adopt(new ReplaceableAuthenticator(await createAuthenticator(options, this.log)), (own) => own.close());
    this.onReload(() => own.reload());
    this.#authenticator = own;
    this.#ownAuthenticator = own;
    return own;
  }

  /**
   * Prepares an authenticator of other options. Returns whether there is one; an authenticator of the embedding program stays. The previous
   * one works until the result of {@link retireAuthenticator} is called, after what it has accepted was verified again.
   * @throws {ConfigError}
   */
  async prepareAuthenticator(change: Change, options: AuthOptions): Promise<boolean> {
    const own = this.#ownAuthenticator;
    if (own === undefined) return false;
    const next = await createAuthenticator(options, this.log);
    change.onRevert(() => next.close?.());
    change.onCommit(() => void this.#retired.push(own.replace(next)));
    return true;
  }

  /** Closes the authenticators that were replaced. */
  closeRetired(): void {
    for (const authenticator of this.#retired.splice(0)) authenticator.close?.();
  }

  /**
   * The policy of a file, `undefined` without one.
   * @throws {ConfigError}
   */
  async openPolicy(file: string | undefined): Promise<Policy | undefined> {
    this.defer(() => this.#policy?.close());
    this.#reloads.push(() => this.#policy?.reload());
    return this.#policy = file === undefined ? undefined : await openPolicy(file, { log: this.log });
  }

  /**
   * Prepares the policy of another file; `use` is called with it. What the previous one has allowed stays until it is checked again.
   * @throws {ConfigError}
   */
  async preparePolicy(change: Change, file: string | undefined, use: (policy: Policy | undefined) => void): Promise<void> {
    const next = file === undefined ? undefined : await openPolicy(file, { log: this.log });
    change.onRevert(() => next?.close());
    change.onCommit(() => {
      this.#policy?.close();
      this.#policy = next;
      use(next);
    });
  }

  /**
   * The store that the options name, `undefined` for none. `given` replaces it and is not closed.
   * @param ttlMs lifetime in milliseconds of an entry that is not renewed
   * @throws {ConfigError}
   */
  async openStore(options: StoreOptions, ttlMs: number, given?: Store): Promise<Store | undefined> {
    if (given) return given;
    this.#storeEvents = reportStore(this.log, this.health, this.metrics);
    this.defer(() => this.#store?.close());
    return this.#store = await openStore(options, ttlMs, this.#storeEvents);
  }

  /**
   * Prepares another store; `use` is called with it, before the previous one is closed. A store of the embedding program stays.
   * @throws {ConfigError}
   */
  async prepareStore(change: Change, options: StoreOptions, ttlMs: number, use: (store: Store | undefined) => void): Promise<void> {
    if (this.#storeEvents === undefined) return;
    this.#refuseInCluster("--store");
    const next = await openStore(options, ttlMs, this.#storeEvents);
    change.onRevert(() => next?.close());
    change.onCommit(() => {
      const previous = this.#store;
      this.#store = next;
      use(next);
      previous?.close();
      this.health.setReady("store"); // the next probe knows
    });
  }

  /**
   * The audit log that the options name, `undefined` for none. What is opened later is closed before it.
   * @throws {ConfigError} if the file cannot be read and written
   */
  async openAudit(options: AuditOptions): Promise<AuditLog | undefined> {
    const count = this.metrics.outcomes("reverse_http_audit_records_total", "Records for the audit log: written or lost.");
    this.#countAudit = count;
    this.defer(() => this.#audit?.close());
    this.#reloads.push(() => this.#audit?.reopen());
    return this.#audit = await this.#openAudit(options, count);
  }

  async #openAudit({ file, strict }: AuditOptions, count: CountAudit): Promise<AuditLog | undefined> {
    if (file === undefined) {
      if (strict) throw new ConfigError("Cannot use --audit.strict without --audit.file: there is nothing to write to");
      return undefined;
    }
    try {
      const hasPredecessor = this.#predecessor !== undefined;
      return await AuditLog.open({ file, strict, service: this.#name, log: this.log, count, hasPredecessor });
    } catch (error) {
      throw new ConfigError(`Cannot use --audit.file ${file}: ${describeWriteError(error)}`, { cause: error });
    }
  }

  /**
   * The tracer that the options name, `undefined` for none. What is opened later is closed before it, and its spans are sent.
   * @throws {ConfigError}
   */
  async openTracer(options: TracingOptions): Promise<Tracer | undefined> {
    const { log, metrics } = this;
    if (options.otlpEndpoint === undefined) return undefined;
    const count = metrics.outcomes(
      "reverse_http_spans_total",
      "Spans of traces: exported, failed (not accepted by the collector) or dropped.",
    );
    const tracer = await openTracer(options, { service: `reverse-http-${this.#name}`, log, count });
    return tracer && this.adopt(tracer, (own) => own.close());
  }

  /**
   * Prepares another audit log; `use` is called with it. Tunnels that are open are recorded in it, too.
   * @throws {ConfigError} as {@link openAudit}
   */
  async prepareAudit(change: Change, options: AuditOptions, use: (audit: AuditLog | undefined) => void): Promise<void> {
    const next = await this.#openAudit(options, this.#countAudit!);
    change.onRevert(() => next?.close());
    change.onCommit(() => {
      const previous = this.#audit;
      this.#audit = next;
      if (previous && next) previous.continueIn(next);
      use(next);
      previous?.close().catch((error) => this.log.error("audit log cannot be closed", { reason: messageOf(error) }));
    });
  }

  /**
   * Listens for operators, if the options name an address or a socket; requests wait until {@link serveAdmin}.
   * @throws {ConfigError}
   * @throws {NetError} as `listenTcp` of the network
   */
  async listenAdmin(options: AdminOptions & OperatorOptions): Promise<void> {
    this.defer(async () => {
      this.activity.close(); // ends streams of events
      await this.#admin?.close();
    });
    this.#admin = await Admin.open(options, this.net, this.log, { hasPredecessor: this.#predecessor !== undefined });
  }

  /**
   * Prepares another admin server. What both listen on stays open.
   * @throws {ConfigError}
   * @throws {NetError} as {@link listenAdmin}
   */
  async prepareAdmin(change: Change, options: AdminOptions & OperatorOptions): Promise<void> {
    const previous = this.#admin;
    if (previous && !previous.listensAt(options.listenAddress)) this.#refuseInCluster("--admin.listen-address");
    const next = await Admin.open(options, this.net, this.log, { previous });
    change.onRevert(() => next?.close(previous));
    change.onCommit(() => {
      this.#admin = next;
      if (this.#services) next?.serve(this.#services);
      previous?.close(next).catch((error) => this.log.error("admin server cannot be closed", { reason: messageOf(error) }));
    });
  }

  /**
   * Joins the cluster that the options name, so that each member answers operators for all; after {@link listenAdmin}.
   * @param ttlMs lifetime in milliseconds of an entry in the store
   * @throws {ConfigError}
   */
  async joinCluster(options: ClusterOptions, store: Store | undefined, ttlMs: number): Promise<void> {
    const { net, log, adminAddress: bound } = this;
    if (this.#name === "agent") throw new Error("agents know no store");
    const cluster = await openCluster(options, { net, store, ttlMs, log, service: this.#name, bound });
    if (cluster) this.#cluster = this.adopt(cluster, (own) => own.close());
  }

  /** @throws {ConfigError} if the other members of a cluster rely on the option */
  #refuseInCluster(option: string): void {
    if (this.#cluster) throw new ConfigError(`Cannot change ${option} without a restart: --admin.cluster.key-file is set`);
  }

  /** Serves operators, if {@link listenAdmin} has opened something. */
  serveAdmin(own: ServiceOperations): void {
    const { health, metrics, activity, log } = this;
    const isDraining = () => this.#isDraining;
    const audit = () => this.#audit;
    const revoke = () => this.#authenticator?.revoke?.bind(this.#authenticator);
    this.#services = {
      ...own,
      health,
      metrics,
      activity,
      log,
      service: this.#name,
      startedAt: this.#startedAt,
      logLevel: this.#logLevel,
      get audit() {
        return audit();
      },
      get isDraining() {
        return isDraining();
      },
      get revoke() {
        return revoke();
      },
      reload: () => this.#configuration?.reload?.() ?? this.reload(),
      cluster: this.#cluster,
    };
    this.#admin?.serve(this.#services);
    this.#cluster?.start();
  }

  /** The address bound for operators. */
  get adminAddress(): string | undefined {
    return this.#admin?.address;
  }

  /**
   * Reads the files of `tls` on {@link reload}, and if they change: see {@link startTlsRefresh}. `use` receives new settings. Ends with the
   * service, or when the result is called.
   */
  refreshTls<T>(tls: Reloadable<T>, intervalMs: () => number, use?: (tls: T) => void): () => void {
    const { close } = startTlsRefresh(tls, intervalMs, use);
    const refresh = { reload: () => tls.reload(use), close };
    this.#tlsRefreshes.add(refresh);
    return () => {
      this.#tlsRefreshes.delete(refresh);
      void close(); // never rejects
    };
  }

  /**
   * Reports the expiry of a certificate that `use` sees, in metrics and ahead of its end, until the result is called; `pem` returns its chain,
   * if there is one.
   */
  watchCertificate(use: string, pem: () => string | undefined): () => void {
    const stops = [this.metrics.watchCertificate(use, pem), this.#expiry.watch(use, pem)];
    return () => {
      for (const stop of stops) stop();
    };
  }

  /** Calls `reload` on each {@link reload}. */
  onReload(reload: () => Promise<void> | void): void {
    this.#reloads.push(reload);
  }

  /** Reads certificates, keys, the files of the authenticator, and the policy again; not the configuration. */
  async reload(): Promise<void> {
    await Promise.all([this.reloadTls(), ...this.#reloads.map((reload) => reload())]);
  }

  /** Reads certificates and their keys again. */
  async reloadTls(): Promise<void> {
    await Promise.all([...this.#tlsRefreshes].map((refresh) => refresh.reload()));
    this.#expiry.check();
  }

  get isDraining(): boolean {
    return this.#isDraining;
  }

  /** Fails readiness, waits, lets running work finish, then closes. Later calls return the first call's promise. */
  drain(drain: Drain): Promise<void> {
    return this.#drained ??= this.#drain(drain);
  }

  async #drain({ fields, delayMs, finish }: Drain): Promise<void> {
    this.#isDraining = true;
    this.health.setUnready("draining");
    this.log.info("draining", fields);
    if (delayMs > 0) await sleep(delayMs, undefined, { signal: this.#closing.signal }).catch(() => {}); // closed
    try {
      await finish();
    } finally {
      await this.close();
    }
  }

  /** Closes everything at once. Later calls return the first call's promise. */
  close(): Promise<void> {
    return this.#closed ??= this.#close();
  }

  async #close(): Promise<void> {
    this.#closing.abort();
    try {
      await this.#resources.disposeAsync();
    } finally {
      this.#resolveClosed();
    }
    this.log.info("stopped");
  }
}
