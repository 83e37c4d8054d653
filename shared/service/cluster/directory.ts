// The list of a cluster's members in the store. A store can neither list nor compare and swap, so there is a fixed number of places: a member
// takes a free one, renews it as agents' entries are renewed, and reads all of them to find the others.
import { messageOf } from "../../log/error_message.ts";
import type { Logger } from "../../log/logger.ts";
import type { Store } from "../../store/store.ts";
import type { ClusterKey } from "./key.ts";
import type { Entry, Member } from "./member.ts";

/** Places, which is the largest number of members. */
export const MAX_MEMBERS = 64;
/** Time in milliseconds for which a member is remembered whose entry has expired: operators shall see that it does not answer. */
const MEMORY_MS = 600_000;
/** Age in milliseconds up to which the list serves requests. */
const MAX_AGE_MS = 2_000;

export interface DirectoryOptions {
  readonly store: Pick<Store, "set" | "renew" | "lookup">;
  readonly key: Pick<ClusterKey, "signMember" | "readMember" | "poll">;
  /** This process. */
  readonly self: () => Member;
  /** Lifetime of an entry in milliseconds; it is renewed every third of that time. */
  readonly ttlMs: number;
  readonly log: Logger;
  /** Monotonic clock in milliseconds. Default `performance.now`. */
  readonly now?: () => number;
}

/** The key of a place. No agent has it, because it contains spaces. */
const keyOf = (place: number) => `reverse-http member ${place}`;

export class Directory {
  readonly #options: DirectoryOptions;
  readonly #now: () => number;
  /** The last entries of members by address, and when they were last seen. */
  readonly #known = new Map<string, Entry & { readonly seenAt: number }>();
  #place?: number;
  /** The entry of this process. */
  #entry?: string;
  #readAt = -Infinity;
  #reading?: Promise<void>;
  #renewing?: Promise<void>;
  #timer?: ReturnType<typeof setInterval>;
  #isFull = false;

  constructor(options: DirectoryOptions) {
    this.#options = options;
    this.#now = options.now ?? (() => performance.now());
  }

  /** Keeps the entry of this process until {@link close}. */
  start(): void {
    this.#timer = setInterval(() => void this.#renewSoon(), this.#options.ttlMs / 3); // never rejects
    void this.#renewSoon();
  }

  /** Writes the entry after what it says of this process has changed. Never rejects. */
  async announce(): Promise<void> {
    await this.#renewing;
    await this.#renewSoon();
  }

  #renewSoon(): Promise<void> {
    return this.#renewing ??= this.renew().finally(() => this.#renewing = undefined);
  }

  /** Renews the entry, and reads those of others. Never rejects: the store's failures are reported by the store. */
  async renew(): Promise<void> {
    const { key, log } = this.#options;
    await key.poll();
    try {
      await this.#register();
    } catch (error) {
      log.debug("the entry of this member could not be stored", { reason: messageOf(error) });
    }
    await this.#read();
  }

  async #register(): Promise<void> {
    const { store, key, self, log } = this.#options;
    const own = self();
    const entry = this.#entry = await key.signMember(own, this.#entry);
    const holds = async (place: number) => await store.lookup(keyOf(place)) === entry;
    if (this.#place !== undefined) {
      await store.renew(keyOf(this.#place), entry);
      if (await holds(this.#place)) return;
    }
    this.#place = undefined;
    for (let place = 0; place < MAX_MEMBERS; place++) {
      const found = await store.lookup(keyOf(place));
      if (found === undefined) await store.renew(keyOf(place), entry);
      else {
        const other = await key.readMember(found);
        // the entry of this process before its restart, or that of a member that has left
        if (other?.member.address !== own.address && !other?.isLeaving) continue;
        await store.set(keyOf(place), entry);
      }
      if (!await holds(place)) continue;
      this.#place = place;
      this.#isFull = false;
      return;
    }
    if (!this.#isFull) log.warn("the cluster has no room for this member: others do not ask it", { limit: MAX_MEMBERS });
    this.#isFull = true;
  }

  /** The other members, by address. Those that were known before are returned while the store cannot be read. */
  async list(): Promise<Member[]> {
    if (this.#now() - this.#readAt >= MAX_AGE_MS) await (this.#reading ??= this.#read().finally(() => this.#reading = undefined));
    const own = this.#options.self().address;
    return [...this.#known.values()].filter(({ member, isLeaving }) => !isLeaving && member.address !== own).map(({ member }) => member)
      .sort((a, b) => a.address < b.address ? -1 : 1);
  }

  /** Never rejects. */
  async #read(): Promise<void> {
    const { store, key } = this.#options;
    const places = await Promise.allSettled(Array.from({ length: MAX_MEMBERS }, (_, place) => store.lookup(keyOf(place))));
    const entries = places.flatMap((read) => read.status === "fulfilled" && read.value !== undefined ? [read.value] : []);
    const read = (await Promise.all(entries.map((entry) => key.readMember(entry)))).filter((entry) => entry !== undefined);
    const now = this.#now();
    for (const entry of read) {
      const { address } = entry.member;
      // an older one is a copy, or of a place that the member no longer has
      if (entry.at >= (this.#known.get(address)?.at ?? 0)) this.#known.set(address, { ...entry, seenAt: now });
    }
    for (const [address, { seenAt }] of this.#known) if (now - seenAt >= MEMORY_MS) this.#known.delete(address);
    while (this.#known.size > 2 * MAX_MEMBERS) this.#known.delete(this.#known.keys().next().value!);
    this.#readAt = now;
  }

  /** Leaves: others need not ask it any more. Never rejects. */
  async close(): Promise<void> {
    const { store, key, self } = this.#options;
    clearInterval(this.#timer);
    await this.#renewing;
    if (this.#place === undefined) return;
    try {
      await store.set(keyOf(this.#place), await key.signMember({ ...self(), isLeaving: true }));
    } catch {
      // the entry expires
    }
  }
}
