// What proxy, load balancer and agent share: one owner of everything that they open, which drains and closes it in one order.
import { setTimeout as sleep } from "node:timers/promises";
import type { HandoverOptions } from "../config/common_options.ts";
import { LimitReporter } from "../limits/limit.ts";
import { isolateLogger } from "../log/isolate.ts";
import { LogLimit } from "../log/limit.ts";
import type { LogFields, Logger, LogLevelControl } from "../log/logger.ts";
import type { Net } from "../net/net.ts";
import type { TracingOptions } from "../tracing/options.ts";
import { openTracer } from "../tracing/otlp.ts";
import type { Tracer } from "../tracing/span.ts";
import { AccessControl } from "./access_control.ts";
import type { ServiceOperations } from "./api/operations.ts";
import type { ServiceName } from "./api/types.ts";
import { type ConfigurationState, reportConfiguration } from "./configuration.ts";
import type { ServiceContext } from "./context.ts";
import { Health } from "./health.ts";
import { Activity } from "./live/activity.ts";
import { Metrics } from "./metrics.ts";
import { ResourceStack } from "./resource_stack.ts";
import { ServiceAdmin } from "./service_admin.ts";
import { ServiceAudit } from "./service_audit.ts";
import { ServiceCertificates } from "./service_certificates.ts";
import { ServiceHandover } from "./service_handover.ts";
import { ServiceStore } from "./service_store.ts";
import type { Supervisor } from "./supervisor.ts";
import { startWatchdog } from "./watchdog.ts";
import type { Worker } from "./worker.ts";

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
  /** Starts a new process that takes over. Resolves with the reason if it has ended without that. Default: it is not known how. */
  readonly startSuccessor?: () => Promise<string>;
  /** This process among several that are the service. Default: it is the only one. */
  readonly worker?: Worker;
}

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
    if (handover?.socket !== undefined) await runtime.handover.findPredecessor(handover.socket);
    const service = await start(runtime);
    await runtime.handover.complete();
    return service;
  } catch (error) {
    await resources.disposeAsync().catch(() => {}); // the first error is the cause
    throw error;
  }
}

/** The running service. Resources close in the reverse order of their opening. */
export class ServiceRuntime implements ServiceContext {
  readonly name: ServiceName;
  readonly net: Net;
  readonly worker?: Worker;
  readonly log: Logger;
  readonly metrics: Metrics;
  readonly health = new Health();
  readonly activity: Activity;
  readonly certificates: ServiceCertificates;
  readonly handover: ServiceHandover;
  readonly access: AccessControl;
  readonly admin: ServiceAdmin;
  readonly store: ServiceStore;
  readonly audit: ServiceAudit;
  /** Resolves when the service has closed. */
  readonly closed: Promise<void>;
  readonly limitReporter: LimitReporter;
  /** Limits log lines that unauthenticated peers can cause. */
  readonly logLimit: LogLimit;
  /** Describes the service's state in one line, for the supervisor. */
  describe?: () => string;
  readonly #resources: ResourceStack;
  readonly #reloads: (() => Promise<void> | void)[] = [];
  readonly #closing = new AbortController();
  readonly #logLevel?: LogLevelControl;
  readonly #startedAt = new Date();
  readonly #configuration?: ConfigurationState;
  #resolveClosed: () => void = () => {};
  #isDraining = false;
  #drained?: Promise<void>;
  #closed?: Promise<void>;

  constructor(
    name: ServiceName,
    { net, ownsNet = false, log, logLevel, supervisor, configuration, startSuccessor, worker }: ServiceDeps,
    resources: ResourceStack,
  ) {
    this.#resources = resources;
    this.name = name;
    this.#logLevel = logLevel;
    this.#configuration = configuration;
    this.closed = new Promise((resolve) => this.#resolveClosed = resolve);
    if (ownsNet) this.defer(() => net.close());
    this.net = net;
    this.worker = worker;
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
    this.activity = this.adopt(new Activity(net), (activity) => activity.close());
    this.certificates = new ServiceCertificates(this);
    this.logLimit = this.adopt(new LogLimit({ log: this.log }), (limit) => limit.close());
    this.handover = new ServiceHandover(this, {
      isDraining: () => this.#isDraining,
      startSuccessor,
      exclusively: configuration?.turns && ((task) => configuration.turns!.run(task)),
      takeOver: () => this.admin.takeOver(),
      released: (pid) => {
        this.audit.log?.share();
        if (pid !== undefined) supervisor?.handedOver(pid);
        if (configuration) configuration.successor = { pid };
      },
      drain: (finish) => this.drain({ fields: { reason: "another process has taken over" }, delayMs: 0, finish }),
    });
    this.access = new AccessControl(this);
    this.admin = new ServiceAdmin(this, this.handover, this.certificates);
    this.store = new ServiceStore(this, this.admin);
    this.audit = new ServiceAudit(this, this.handover);
  }

  defer(close: () => void | Promise<void>): void {
    this.#resources.defer(close);
  }

  adopt<T>(resource: T, close: (resource: T) => void | Promise<void>): T {
    return this.#resources.adopt(resource, close);
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
    const tracer = await openTracer(options, { service: `reverse-http-${this.name}`, log, count });
    return tracer && this.adopt(tracer, (own) => own.close());
  }

  /** Serves operators, if `listen` of {@link admin} has opened something. */
  serveAdmin(own: ServiceOperations): void {
    const { name: service, health, metrics, activity, log, access, admin, audit } = this;
    const isDraining = () => this.#isDraining;
    const earlier = () => this.handover.earlier;
    admin.serve({
      ...own,
      health,
      metrics,
      activity,
      log,
      service,
      startedAt: this.#startedAt,
      logLevel: this.#logLevel,
      configuration: this.#configuration,
      get audit() {
        return audit.log;
      },
      get isDraining() {
        return isDraining();
      },
      get earlierProcesses() {
        return earlier();
      },
      get revoke() {
        return access.revoke;
      },
      get signOut() {
        return access.signOut;
      },
      reload: () => this.#configuration?.reload?.() ?? this.reload(),
      cluster: admin.cluster,
    });
  }

  onReload(reload: () => Promise<void> | void): void {
    this.#reloads.push(reload);
  }

  /** Reads certificates, keys, the files of the authenticator, and the policy again; not the configuration. */
  async reload(): Promise<void> {
    await Promise.all(this.#reloads.map((reload) => reload()));
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
