// Tells those who watch what has happened: once a second, each kind of event as one text that is the same for all of them. Nothing is kept and
// nothing runs without a listener.
import type { Topic } from "../api/types.ts";

/** Events of one topic in a second; more are only counted. */
export const MAX_BATCH = 100;
const INTERVAL_MS = 1_000;
/** Those who may watch at once: operators, and the other members of a cluster. */
const MAX_WATCHERS = 96;

/** The name of an event. `members` is of a cluster only. */
export type EventName = Topic | "members";

/** One who watches. */
export interface Watcher {
  readonly topics: ReadonlySet<EventName>;
  /** Takes an event as a line of JSON. It must not wait. */
  send(name: EventName, json: string): void;
  /** There are no more events. */
  end(): void;
}

export class EventHub {
  readonly #watchers = new Set<Watcher>();
  readonly #batches = new Map<Topic, { readonly events: unknown[]; omitted: number }>();
  readonly #watched: (isWatched: boolean) => void;
  #timer?: ReturnType<typeof setInterval>;
  #isClosed = false;

  /** @param watched called when there is a first watcher, and when there are none left */
  constructor(watched: (isWatched: boolean) => void = () => {}) {
    this.#watched = watched;
  }

  /** Adds an event, which `describe` returns; it is called only if one watches. */
  publish(topic: Exclude<Topic, "sample">, describe: () => unknown): void {
    if (this.#watchers.size === 0) return;
    const batch = this.#batchOf(topic);
    if (batch.events.length < MAX_BATCH) batch.events.push(describe());
    else batch.omitted++;
  }

  /** Counts events that are not described. */
  omit(topic: Exclude<Topic, "sample">, count: number): void {
    if (this.#watchers.size > 0 && count > 0) this.#batchOf(topic).omitted += count;
  }

  #batchOf(topic: Topic): { readonly events: unknown[]; omitted: number } {
    let batch = this.#batches.get(topic);
    if (!batch) this.#batches.set(topic, batch = { events: [], omitted: 0 });
    return batch;
  }

  /** Sends an event at once. */
  sendNow(name: "sample" | "members", describe: () => unknown): void {
    if (this.#watchers.size > 0) this.#send(name, describe());
  }

  /** Returns what ends the watch; `undefined` if too many watch, or it is closed. */
  watch(watcher: Watcher): (() => void) | undefined {
    if (this.#isClosed || this.#watchers.size >= MAX_WATCHERS) return undefined;
    this.#watchers.add(watcher);
    this.#timer ??= setInterval(() => this.flush(), INTERVAL_MS);
    if (this.#watchers.size === 1) this.#watched(true);
    return () => {
      if (!this.#watchers.delete(watcher) || this.#watchers.size > 0) return;
      clearInterval(this.#timer);
      this.#timer = undefined;
      this.#batches.clear();
      this.#watched(false);
    };
  }

  /** Sends what has happened since the last call. */
  flush(): void {
    for (const [topic, batch] of this.#batches) this.#send(topic, batch);
    this.#batches.clear();
  }

  #send(name: EventName, event: unknown): void {
    const watchers = [...this.#watchers].filter(({ topics }) => topics.has(name));
    if (watchers.length === 0) return;
    const json = JSON.stringify(event);
    for (const watcher of watchers) watcher.send(name, json);
  }

  close(): void {
    this.#isClosed = true;
    this.flush();
    for (const watcher of [...this.#watchers]) watcher.end();
    clearInterval(this.#timer);
    this.#watchers.clear();
  }
}
