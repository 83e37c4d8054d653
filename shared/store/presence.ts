// Keeps a proxy's entries in the store: written when an agent comes, renewed while it stays. What the store does is nobody's business here
// but its own: no agent waits for it, and none is lost with it.
import type { Store } from "./store.ts";

export interface PresencePublisherOptions {
  store: Store;
  /** Where lb reaches this proxy, `host:port`. */
  address: string;
  /** How long an entry lives without renewal, in milliseconds; it is renewed every third of that time. */
  ttlMs: number;
  /** A write that failed; it is tried again until it is done or the agent is gone. */
  onFailure?: (failure: { agentId: string; error: unknown }) => void;
}

/** Announces agents until it is closed. */
export interface PresencePublisher {
  /** The agent has connected here: its entry is this proxy's from now on. */
  add(agentId: string): void;
  /** The agent is no longer here: its entry ends by itself. */
  remove(agentId: string): void;
  /** Writes nothing more. */
  close(): void;
}

/** What is to be written for one agent, and when; while that waits or is under way, never. */
interface Entry {
  readonly agentId: string;
  task: "set" | "renew";
  dueAt: number;
}

/** Writes under way at a time: many agents that come at once do not become as many requests. */
const MAX_WRITES = 64;

export function startPresencePublisher({ store, address, ttlMs, onFailure }: PresencePublisherOptions): PresencePublisher {
  const intervalMs = ttlMs / 3;
  const tickMs = Math.min(500, intervalMs / 4);
  const entries = new Map<string, Entry>();
  /** Pending writes. Agents without an entry come before renewals. */
  const waiting = { set: new Set<Entry>(), renew: new Set<Entry>() };
  let underWay = 0;
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
    for (const queue of [waiting.set, waiting.renew]) {
      for (const entry of queue) {
        if (underWay >= MAX_WRITES) return;
        queue.delete(entry);
        underWay++;
        void write(entry).then(() => { // never rejects
          underWay--;
          pump();
        });
      }
    }
  };

  const enqueue = (entry: Entry): void => {
    entry.dueAt = Infinity;
    waiting[entry.task].add(entry);
  };

  const drop = (agentId: string): void => {
    const entry = entries.get(agentId);
    if (!entry) return;
    entries.delete(agentId);
    waiting[entry.task].delete(entry);
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
      for (const all of [entries, waiting.set, waiting.renew]) all.clear();
    },
  };
}
