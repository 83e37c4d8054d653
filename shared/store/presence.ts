// Publishes a proxy's agents in the store: an entry is written when an agent connects and renewed while it stays. Agents neither wait for the
// store nor depend on it.
import type { Store } from "./store.ts";

export interface PresencePublisherOptions {
  store: Store;
  /** Address at which lb reaches this proxy, `host:port`. */
  address: string;
  /** Lifetime of an entry without renewal, in milliseconds; it is renewed every third of that time. */
  ttlMs: number;
  /** A write has failed. It is retried until it succeeds or the agent disconnects. */
  onFailure?: (failure: { agentId: string; error: unknown }) => void;
}

/** Publishes agents until it is closed. */
export interface PresencePublisher {
  /** Publishes an agent that has connected; its entry then names this proxy. */
  add(agentId: string): void;
  /** Stops renewing the entry of an agent that has disconnected, so that it expires. */
  remove(agentId: string): void;
  /** Stops all writes. Entries expire. */
  close(): void;
}

/** The next write for one agent. While a write is queued or in progress, `dueAt` is `Infinity`. */
interface Entry {
  readonly agentId: string;
  task: "set" | "renew";
  dueAt: number;
}

/** Limit on concurrent writes, when many agents connect at once. */
const MAX_WRITES = 64;

export function startPresencePublisher({ store, address, ttlMs, onFailure }: PresencePublisherOptions): PresencePublisher {
  const intervalMs = ttlMs / 3;
  const tickMs = Math.min(500, intervalMs / 4);
  const entries = new Map<string, Entry>();
  /** Queued writes. New entries come before renewals. */
  const queues = { set: new Set<Entry>(), renew: new Set<Entry>() };
  let inFlight = 0;
  let closed = false;

  const write = async (entry: Entry): Promise<void> => {
    const { agentId, task } = entry;
    const startedAt = performance.now();
    try {
      await store[task](agentId, address);
      entry.task = "renew";
      entry.dueAt = startedAt + intervalMs;
    } catch (error) {
      entry.dueAt = performance.now() + tickMs;
      if (!closed && entries.get(agentId) === entry) onFailure?.({ agentId, error });
    }
  };

  const pump = (): void => {
    for (const queue of [queues.set, queues.renew]) {
      for (const entry of queue) {
        if (inFlight >= MAX_WRITES) return;
        queue.delete(entry);
        inFlight++;
        void write(entry).then(() => { // never rejects
          inFlight--;
          pump();
        });
      }
    }
  };

  const enqueue = (entry: Entry): void => {
    entry.dueAt = Infinity;
    queues[entry.task].add(entry);
  };

  const drop = (agentId: string): void => {
    const entry = entries.get(agentId);
    if (!entry) return;
    entries.delete(agentId);
    queues[entry.task].delete(entry);
  };

  const timer = setInterval(() => {
    const now = performance.now();
    for (const entry of entries.values()) if (entry.dueAt <= now) enqueue(entry);
    pump();
  }, tickMs);

  return {
    add(agentId) {
      if (closed) return;
      drop(agentId);
      const entry: Entry = { agentId, task: "set", dueAt: 0 };
      entries.set(agentId, entry);
      enqueue(entry);
      pump();
    },
    remove: drop,
    close() {
      closed = true;
      clearInterval(timer);
      for (const collection of [entries, queues.set, queues.renew]) collection.clear();
    },
  };
}
