// The events of all members of a cluster as one stream. It runs while there are watchers, and says whose events are missing.
import { setTimeout as sleep } from "node:timers/promises";
import type { Member } from "../cluster/member.ts";
import type { Members } from "../cluster/members.ts";
import { differs } from "../change.ts";
import { EventHub, MAX_BATCH } from "../live/events.ts";
import { describe } from "./cluster.ts";
import { type Batch, type MemberAnswer, type Topic, TOPICS } from "./types.ts";

/** Interval in milliseconds at which members are looked up, and silent ones are tried again. */
const RETRY_MS = 2_000;

/** A load balancer's agents and tunnels are those of the proxies once more. */
const OF_LB: readonly Topic[] = ["failures", "actions"];

const topicsOf = ({ service }: Pick<Member, "service">) => service === "lb" ? OF_LB : TOPICS;

export class ClusterEvents {
  readonly hub = new EventHub((isWatched) => isWatched ? this.#start() : this.#stop());
  readonly #cluster: Pick<Members, "self" | "others" | "follow">;
  readonly #own: EventHub;
  /** The other members, by address. */
  readonly #others = new Map<string, { readonly member: Member; answer: MemberAnswer; readonly stop: AbortController }>();
  #stopping?: AbortController;
  #unwatchOwn?: () => void;

  /** @param own the events of this service; when they end, so do these */
  constructor(cluster: Pick<Members, "self" | "others" | "follow">, own: EventHub) {
    this.#cluster = cluster;
    this.#own = own;
  }

  /** Sends the list of members to all subscribers. */
  announce(): void {
    const members = [describe(this.#cluster.self), ...[...this.#others.values()].map(({ answer }) => answer)];
    this.hub.sendNow("members", () => ({ members }));
  }

  #start(): void {
    const { self } = this.#cluster;
    this.#unwatchOwn = this.#own.watch({
      topics: new Set(topicsOf(self)),
      send: (topic, json) => this.#take(self, topic, json),
      end: () => this.hub.close(),
    });
    this.#stopping = new AbortController();
    void this.#findMembers(this.#stopping.signal); // never rejects
  }

  #stop(): void {
    this.#stopping?.abort();
    this.#unwatchOwn?.();
    for (const { stop } of this.#others.values()) stop.abort();
    this.#others.clear();
  }

  /** Never rejects. */
  async #findMembers(signal: AbortSignal): Promise<void> {
    while (!signal.aborted) {
      const members = await this.#cluster.others();
      if (signal.aborted) return;
      let isChanged = false;
      for (const [address, { member, stop }] of this.#others) {
        if (members.some((other) => !differs(other, member))) continue;
        stop.abort();
        isChanged = this.#others.delete(address);
      }
      for (const member of members) {
        if (this.#others.has(member.address)) continue;
        const other = { member, answer: { ...describe(member), error: "no response yet" }, stop: new AbortController() };
        this.#others.set(member.address, other);
        isChanged = true;
        void this.#follow(member, other.stop.signal); // never rejects
      }
      if (isChanged) this.announce();
      await sleep(RETRY_MS, undefined, { signal }).catch(() => {}); // stopping
    }
  }

  /** Never rejects. */
  async #follow(member: Member, signal: AbortSignal): Promise<void> {
    const answered = (error?: string) => {
      const other = this.#others.get(member.address);
      if (signal.aborted || other === undefined || other.answer.error === error) return;
      other.answer = { ...describe(member), error };
      this.announce();
    };
    while (!signal.aborted) {
      const topics = topicsOf(member);
      answered(
        await this.#cluster.follow(member, {
          topics,
          signal,
          opened: () => answered(),
          take: (name, json) => {
            const topic = topics.find((topic) => topic === name);
            if (topic !== undefined && !signal.aborted) this.#take(member, topic, json);
          },
        }),
      );
      await sleep(RETRY_MS, undefined, { signal }).catch(() => {}); // stopping
    }
  }

  /**
   * Takes an event of a member. Each has an equal share of a batch, so that a busy one does not displace the others.
   * @throws {Error} if it is not a valid message of a member
   */
  #take({ address: member }: Member, topic: string, json: string): void {
    const event: unknown = JSON.parse(json);
    if (!isObject(event)) throw new SyntaxError("an event is no object");
    if (topic === "sample") return this.hub.sendNow("sample", () => ({ ...event, member }));
    const { events, omitted } = event as Partial<Batch<unknown>>;
    if (!Array.isArray(events) || typeof omitted !== "number") throw new SyntaxError("an event is no batch");
    const shown = events.slice(0, Math.ceil(MAX_BATCH / (this.#others.size + 1)));
    const name = topic as Exclude<Topic, "sample">;
    for (const each of shown) if (isObject(each)) this.hub.publish(name, () => ({ ...each, member }));
    this.hub.omit(name, events.length - shown.length + omitted);
  }
}

function isObject(value: unknown): value is object {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}
