// The cluster as one member sees it: asks the others on behalf of an operator, and says which of them did not answer. A member that is asked
// answers for itself, so requests never travel further than one hop.
import { hostname } from "node:os";
import { isLoopback } from "../../address/host_port.ts";
import { ConfigError } from "../../config/option.ts";
import { printable } from "../../net/printable.ts";
import type { AdminOptions } from "../../config/common_options.ts";
import { messageOf } from "../../log/error_message.ts";
import { type Logger, silentLogger } from "../../log/logger.ts";
import type { Net } from "../../net/net.ts";
import type { Store } from "../../store/store.ts";
import type { Operator } from "../api/tokens.ts";
import type { ClusterOptions } from "../../config/cluster_options.ts";
import { askMember, followMember, type FollowOptions, type MemberResponse } from "./ask.ts";
import { Directory } from "./directory.ts";
import { ClusterKey, type MemberRequest, type VerifiedRequest } from "./key.ts";
import type { Member } from "./member.ts";

/** Time in milliseconds for the responses of all members. */
const TIMEOUT_MS = 4_000;
/** Maximum bytes of all responses to one request, and number of members queried concurrently. */
const MAX_BYTES = 64 << 20;
const MAX_PARALLEL = 16;
/** Requests of operators for the cluster that are served at once. */
const MAX_REQUESTS = 16;
/** Age in milliseconds up to which responses serve others who ask for the same. */
const MAX_AGE_MS = 1_000;
/** Longest reason of a member in a report, in characters. */
const MAX_REASON = 300;

/** A stream of events is for all who watch. */
const FOLLOWER: Operator = { name: "cluster", role: "viewer" };

/** What a member has answered, or why it did not. */
export interface Answer {
  readonly member: Member;
  readonly response?: MemberResponse;
  /** In a few words. */
  readonly error?: string;
}

/** What operators ask the others for. */
export interface ClusterRequest extends Pick<MemberRequest, "operator" | "method"> {
  /** Path and query, below `/api/v1/`. */
  readonly path: string;
  readonly body?: object;
  readonly to: readonly Member[];
}

/** Too many requests wait for other members. */
export class ClusterBusyError extends Error {
  override readonly name = "ClusterBusyError";
}

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

export class Cluster {
  readonly key: ClusterKey;
  readonly #deps: ClusterDeps;
  readonly #address: string;
  readonly #directory: Directory;
  readonly #answers = new Map<string, { readonly at: number; readonly answers: Promise<Answer[]> }>();
  #requests = 0;

  /** @param address where others reach this member; default: as bound, with the host name for a wildcard */
  constructor(key: ClusterKey, address: string | undefined, deps: ClusterDeps) {
    this.key = key;
    this.#deps = deps;
    this.#address = address ?? deps.bound.replace(/^(0\.0\.0\.0|\[::\])(?=:[0-9]+$)/, hostname());
    const { store, ttlMs, log } = deps;
    this.#directory = new Directory({ store, key, self: () => this.self, ttlMs, log });
  }

  /** This process. */
  get self(): Member {
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
  async others(): Promise<Member[]> {
    return await this.#directory.list();
  }

  /**
   * Asks members. Those who read the same within a second get the same answers.
   * @throws {ClusterBusyError}
   */
  async ask(request: ClusterRequest): Promise<Answer[]> {
    const { method, path, to } = request;
    if (method !== "GET") return await this.#askAll(request);
    const now = performance.now();
    for (const [key, { at }] of this.#answers) if (now - at >= MAX_AGE_MS) this.#answers.delete(key);
    const key = `${path} ${to.map(({ address }) => address).join()}`;
    const known = this.#answers.get(key);
    if (known) return await known.answers;
    const answers = this.#askAll(request);
    this.#answers.set(key, { at: now, answers });
    return await answers;
  }

  async #askAll(request: ClusterRequest): Promise<Answer[]> {
    if (this.#requests >= MAX_REQUESTS) throw new ClusterBusyError("too many requests wait for other members: try again");
    this.#requests++;
    try {
      const deadline = performance.now() + TIMEOUT_MS;
      const budget = { left: MAX_BYTES };
      const answers: Answer[] = [];
      const left = request.to.entries();
      const work = async () => {
        for (const [i, member] of left) answers[i] = await this.#askOne(member, request, deadline, budget);
      };
      await Promise.all(Array.from({ length: MAX_PARALLEL }, work));
      return answers;
    } finally {
      this.#requests--;
    }
  }

  /** Never rejects. */
  async #askOne(
    member: Member,
    { operator, method, path, body }: ClusterRequest,
    deadline: number,
    budget: { left: number },
  ): Promise<Answer> {
    try {
      const request = await this.#sign(member, { operator, method, path, body });
      const timeoutMs = deadline - performance.now();
      if (timeoutMs <= 0) return { member, error: "no response in time" };
      return { member, response: await askMember(member, { ...request, timeoutMs, budget }) };
    } catch (error) {
      return { member, error: reasonOf(error) };
    }
  }

  /**
   * Follows a member's stream of events, until the signal ends it.
   * @returns why there is no stream, or no longer, in a few words
   */
  async follow(
    member: Member,
    { topics, ...options }: Pick<FollowOptions, "signal" | "opened" | "take"> & { readonly topics: readonly string[] },
  ): Promise<string> {
    try {
      const request = await this.#sign(member, { operator: FOLLOWER, method: "GET", path: `events?topics=${topics.join()}` });
      await followMember(member, { ...request, ...options, timeoutMs: TIMEOUT_MS });
      return "it ended the connection";
    } catch (error) {
      return reasonOf(error);
    }
  }

  /** A request as the member will see it. */
  async #sign(member: Member, { operator, method, path, body }: Omit<ClusterRequest, "to">) {
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

function reasonOf(error: unknown): string {
  return printable(messageOf(error), MAX_REASON);
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
