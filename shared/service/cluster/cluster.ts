// The cluster as one member sees it: asks the others on behalf of an operator, and says which of them did not answer. A member that is asked
// answers for itself, so requests never travel further than one hop.
import { hostname } from "node:os";
import { isLoopback } from "../../address/host_port.ts";
import { ConfigError } from "../../config/option.ts";
import type { AdminOptions } from "../../config/common_options.ts";
import { type Logger, silentLogger } from "../../log/logger.ts";
import type { Net } from "../../net/net.ts";
import type { Store } from "../../store/store.ts";
import type { ClusterOptions } from "../../config/cluster_options.ts";
import { Directory } from "./directory.ts";
import { ClusterKey, type MemberRequest, type VerifiedRequest } from "./key.ts";
import type { Member } from "./member.ts";
import { type ClusterRequest, Members, type PreparedRequest } from "./members.ts";

export interface ClusterDeps {
  readonly net: Net;
  readonly store: Store;
  /** Lifetime in milliseconds of entries in the store. */
  readonly ttlMs: number;
  readonly log: Logger;
  readonly service: Member["service"];
  /** The admin address as bound. */
  readonly bound: string;
  /** The pin of its key; `undefined` for plain HTTP. */
  pin(): string | undefined;
}

export class Cluster extends Members {
  readonly key: ClusterKey;
  readonly #deps: ClusterDeps;
  readonly #address: string;
  readonly #directory: Directory;

  /** @param address where others reach this member; default: as bound, with the host name for a wildcard */
  constructor(key: ClusterKey, address: string | undefined, deps: ClusterDeps) {
    super();
    this.key = key;
    this.#deps = deps;
    this.#address = address ?? deps.bound.replace(/^(0\.0\.0\.0|\[::\])(?=:[0-9]+$)/, hostname());
    const { store, ttlMs, log } = deps;
    this.#directory = new Directory({ store, key, self: () => this.self, ttlMs, log });
  }

  /** This process. */
  override get self(): Member {
    const pin = this.#deps.pin();
    return { address: this.#address, service: this.#deps.service, host: hostname(), ...pin !== undefined && { pin } };
  }

  start(): void {
    const { log } = this.#deps;
    log.info("joining the cluster of operators", { address: this.#address });
    if (isLoopback(this.#address)) {
      log.warn("members on other machines cannot reach this one", {
        address: this.#address,
        remedy: "set --admin.listen-address to an address of a network for operators",
      });
    }
    this.#directory.start();
  }

  /** Tells the others that {@link self} has changed. Never rejects. */
  async announce(): Promise<void> {
    await this.#directory.announce();
  }

  /** The other members. */
  override async others(): Promise<Member[]> {
    return await this.#directory.list();
  }

  /** A request as the member will see it. */
  protected override async prepare(member: Member, { operator, method, path, body }: Omit<ClusterRequest, "to">): Promise<PreparedRequest> {
    const { pathname, search } = new URL(`http://localhost/api/v1/${path}`);
    const [target, content] = [`${pathname}${search}`, body === undefined ? "" : JSON.stringify(body)];
    const request = { to: member.address, from: this.#address, operator, method, target, body: content };
    const authorization = `${CLUSTER_SCHEME} ${await this.key.signRequest(request)}`;
    return { net: this.#deps.net, method, target, body: content, authorization };
  }

  /** The operator on whose behalf a member asks; see {@link ClusterKey.verifyRequest}. */
  async verify(token: string, request: Pick<MemberRequest, "method" | "target" | "body">): Promise<VerifiedRequest> {
    return await this.key.verifyRequest(token, { ...request, to: this.#address });
  }

  async close(): Promise<void> {
    await this.#directory.close();
  }
}

/** The scheme of Authorization between members. */
export const CLUSTER_SCHEME = "Cluster";

/**
 * Opens the cluster that the options name; `undefined` for none.
 * @throws {ConfigError}
 */
export async function openCluster(
  options: ClusterOptions,
  deps: Omit<ClusterDeps, "bound" | "store"> & { readonly bound?: string; readonly store?: Store },
): Promise<Cluster | undefined> {
  const { bound, store, log } = deps;
  const key = await openKey(options, { hasStore: store !== undefined, hasAddress: bound !== undefined }, log);
  return key && new Cluster(key, options.address, { ...deps, bound: bound!, store: store! });
}

/**
 * Checks the options, and the file that they refer to.
 * @throws {ConfigError}
 */
export async function checkClusterOptions(
  { admin, store }: { readonly admin: AdminOptions & { readonly cluster: ClusterOptions }; readonly store: { readonly type: string } },
): Promise<void> {
  await openKey(admin.cluster, { hasStore: store.type !== "none", hasAddress: admin.listenAddress !== undefined }, silentLogger);
}

/** @throws {ConfigError} */
async function openKey(
  { keyFile, address }: ClusterOptions,
  { hasStore, hasAddress }: { readonly hasStore: boolean; readonly hasAddress: boolean },
  log: Logger,
): Promise<ClusterKey | undefined> {
  if (keyFile === undefined) {
    if (address !== undefined) throw new ConfigError("Cannot use --admin.cluster.address: --admin.cluster.key-file is not set");
    return undefined;
  }
  const fail = (why: string) => new ConfigError(`Cannot use --admin.cluster.key-file: ${why}`);
  if (!hasStore) throw fail("members find each other in a store, and --store.type names none");
  if (!hasAddress) throw fail("members ask each other at --admin.listen-address, which is not set");
  return await ClusterKey.open(keyFile, log);
}
