// Keeps a proxy's entries in the store: written when an agent comes, renewed while it stays. What the store does is nobody's business here
// but its own: no agent waits for it, and none is lost with it.
import type { Store } from "./store.ts";

export interface AnnouncerOptions {
  store: Store;
  /** Where lb reaches this proxy, `host:port`. */
  address: string;
  /** How long an entry lives without renewal, in milliseconds; it is renewed every third of that time. */
  ttlMs: number;
  /** A write that failed; it is tried again until it is done or the agent is gone. */
  onFailure?: (failure: { agentId: string; error: unknown }) => void;
}

/** Announces agents until it is closed. */
export interface Announcer {
  /** The agent has connected here: its entry is this proxy's from now on. */
  add(agentId: string): void;
  /** The agent is no longer here: its entry ends by itself. */
  remove(agentId: string): void;
  /** Writes nothing more. */
  close(): void;
}

/** What is to be written for one agent, and when; while that is under way, never. */
interface Entry {
  task: "set" | "renew";
  dueAt: number;
}

/** Renewals under way at a time. */
const BATCH = 64;

export function startAnnouncer({ store, address, ttlMs, onFailure }: AnnouncerOptions): Announcer {
  const intervalMs = ttlMs / 3;
  const entries = new Map<string, Entry>();
  let closed = false;

  const write = async (agentId: string, entry: Entry): Promise<void> => {
    const { task } = entry;
    const startedAt = performance.now();
    entry.dueAt = Infinity;
    try {
      await store[task](agentId, address);
      entry.task = "renew";
      entry.dueAt = startedAt + intervalMs;
    } catch (error) {
      entry.dueAt = performance.now() + tickMs;
      if (!closed && entries.get(agentId) === entry) onFailure?.({ agentId, error });
    }
  };

  /** Some at a time, so that many agents do not become as many requests at once. */
  const writeDue = async (): Promise<void> => {
    const now = performance.now();
    const due = [...entries].filter(([, { dueAt }]) => dueAt <= now);
    for (let start = 0; start < due.length && !closed; start += BATCH) {
      const batch = due.slice(start, start + BATCH).filter(([agentId, entry]) => entries.get(agentId) === entry);
      await Promise.all(batch.map(([agentId, entry]) => write(agentId, entry)));
    }
  };

  const tickMs = Math.min(500, intervalMs / 4);
  let writing = false;
  const timer = setInterval(async () => {
    if (writing) return;
    writing = true;
    await writeDue();
    writing = false;
  }, tickMs);

  return {
    add(agentId) {
      if (closed) return;
      const entry: Entry = { task: "set", dueAt: 0 };
      entries.set(agentId, entry);
      void write(agentId, entry); // never rejects
    },
    remove: (agentId) => void entries.delete(agentId),
    close() {
      closed = true;
      clearInterval(timer);
      entries.clear();
    },
  };
}
