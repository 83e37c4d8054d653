// The admin server of a service, and its cluster, whose members answer operators for each other.
import type { ClusterOptions } from "../config/cluster_options.ts";
import type { AdminOptions } from "../config/common_options.ts";
import { ConfigError } from "../config/option.ts";
import { messageOf } from "../log/error_message.ts";
import type { Store } from "../store/store.ts";
import { Admin, type AdminServices, createWorkerHandler } from "./admin.ts";
import type { Change } from "./change.ts";
import { type Cluster, openCluster } from "./cluster/cluster.ts";
import { WorkerMembers, type WorkerRoute } from "./cluster/workers.ts";
import type { Members } from "./cluster/members.ts";
import type { ServiceContext } from "./context.ts";
import { type Connection, type Handler, serveRequest } from "./http_server.ts";
import type { OperatorOptions } from "./operators/options.ts";
import type { ServiceCertificates } from "./service_certificates.ts";
import type { ServiceHandover } from "./service_handover.ts";

/** The access of operators to a service. */
export class ServiceAdmin {
  readonly #service: ServiceContext;
  readonly #handover: ServiceHandover;
  readonly #certificates: ServiceCertificates;
  #admin?: Admin;
  #stopRenewal?: () => void;
  #cluster?: Cluster;
  #services?: AdminServices;
  #workers?: WorkerMembers;
  readonly #workerHandler = Promise.withResolvers<Handler>();

  constructor(service: ServiceContext, handover: ServiceHandover, certificates: ServiceCertificates) {
    this.#service = service;
    this.#handover = handover;
    this.#certificates = certificates;
  }

  /** The address bound for operators. */
  get address(): string | undefined {
    return this.#admin?.address;
  }

  /**
   * Listens for operators, if the options name an address or a socket; requests wait until {@link serve}.
   * @throws {ConfigError}
   * @throws {NetError} as `listenTcp` of the network
   */
  async listen(options: AdminOptions & OperatorOptions): Promise<void> {
    const { net, log, activity } = this.#service;
    this.#service.defer(async () => {
      activity.close(); // ends streams of events
      await this.#admin?.close();
    });
    if (!this.#servesOperators) return;
    this.#admin = await Admin.open(options, net, log, { hasPredecessor: this.#handover.predecessor !== undefined });
    this.#renewCertificate();
  }

  /** Renews the certificate of the admin server, and no longer that of the one before. */
  #renewCertificate(): void {
    this.#stopRenewal?.();
    this.#stopRenewal = undefined;
    const admin = this.#admin;
    const { tls } = admin ?? {};
    if (admin === undefined || tls === undefined) return;
    const stops = [
      this.#certificates.watch("admin", () => tls.current.cert),
      this.#certificates.refresh(tls, () => 0, (renewed) => {
        admin.useTls(renewed);
        void this.#cluster?.announce(); // never rejects
      }),
    ];
    this.#stopRenewal = () => {
      for (const stop of stops) stop();
    };
  }

  /**
   * Prepares another admin server. What both listen on stays open.
   * @throws {ConfigError}
   * @throws {NetError} as {@link listen}
   */
  async prepare(change: Change, options: AdminOptions & OperatorOptions): Promise<void> {
    if (!this.#servesOperators) return;
    const { net, log } = this.#service;
    const previous = this.#admin;
    if (previous && !previous.listensAt(options.listenAddress)) this.refuseInCluster("--admin.listen-address");
    const next = await Admin.open(options, net, log, { previous });
    change.onRevert(() => next?.close(previous));
    change.onCommit(() => {
      this.#admin = next;
      if (this.#services) next?.serve(this.#services);
      this.#renewCertificate();
      void this.#cluster?.announce(); // never rejects
      previous?.close(next).catch((error) => log.error("admin server cannot be closed", { reason: messageOf(error) }));
    });
  }

  /**
   * Joins the cluster that the options name, so that each member answers operators for all; after {@link listen}.
   * @param ttlMs lifetime in milliseconds of an entry in the store
   * @throws {ConfigError}
   */
  async joinCluster(options: ClusterOptions, store: Store | undefined, ttlMs: number): Promise<void> {
    const { net, log, name: service } = this.#service;
    if (service === "agent") throw new Error("agents know no store");
    const cluster = await openCluster(options, { net, store, ttlMs, log, service, bound: this.address, pin: () => this.#admin?.pin });
    if (cluster) this.#cluster = this.#service.adopt(cluster, (own) => own.close());
  }

  /** One of several workers serves operators, and asks the others. */
  get #servesOperators(): boolean {
    return (this.#service.worker?.index ?? 0) === 0;
  }

  /** Asks the other workers of the service, each by its link. */
  useWorkers(routes: () => Iterable<WorkerRoute>): void {
    const { worker } = this.#service;
    if (worker) this.#workers = new WorkerMembers(worker.index, routes);
  }

  /** Serves a request of another worker on behalf of an operator. Never rejects. */
  async serveWorker(connection: Connection): Promise<void> {
    const handle = await this.#workerHandler.promise;
    await serveRequest(connection, { isLocal: false, listening: "worker" }, handle);
  }

  /** The other members. */
  get cluster(): Members | undefined {
    return this.#workers ?? this.#cluster;
  }

  /** Serves operators, if {@link listen} has opened something. */
  serve(services: AdminServices): void {
    this.#services = services;
    this.#admin?.serve(services);
    if (!this.#servesOperators) this.#workerHandler.resolve(createWorkerHandler(services));
    this.#cluster?.start();
  }

  /** Takes the socket over from a predecessor. */
  async takeOver(): Promise<void> {
    await this.#admin?.takeOver();
  }

  /** @throws {ConfigError} if the other members of a cluster rely on the option */
  refuseInCluster(option: string): void {
    if (this.#cluster) throw new ConfigError(`Cannot change ${option} without a restart: --admin.cluster.key-file is set`);
  }
}
