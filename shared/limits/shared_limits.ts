// The limits of a service that is several processes: each counts its own clients, and the processes tell each other what they have counted, so
// that a limit holds for all of them. They tell it some milliseconds later, and only what may reach a limit.
import { createHmac } from "node:crypto";
import type { OtherCounts } from "./counters.ts";

/** Interval in milliseconds at which the other processes are told. */
const TELL_MS = 50;
/** The part of its share of a limit from which on a process tells what it counts: the others together may count as much without telling. */
const UNTOLD_PART = 1 / 8;
/** Entries that are told at once: the other process bounds what it reads. */
const MAX_ENTRIES = 500;

type Entries<T> = Readonly<Record<string, readonly (readonly [key: string, value: T])[]>>;

/** What a process tells the others, by the name of the limit and the key. */
export interface LimitNews {
  /** How many it counts now. */
  readonly counts?: Entries<number>;
  /** How many it has permitted since it told last. */
  readonly taken?: Entries<number>;
  /** Failed authentications, and the hashes of their credentials. */
  readonly failed?: Entries<string>;
}

/** Counts of one limit, here and at the others. */
class SharedCounts implements OtherCounts {
  /** What the others are told: the count, and the limit. */
  readonly #told = new Map<string, { readonly count: number; readonly max: number }>();
  readonly #changes = new Map<string, number>();
  readonly #sum = new Map<string, number>();
  /** By process. */
  readonly #others = new Map<unknown, Map<string, number>>();

  /** @param untold the part of a limit that is not told */
  constructor(private readonly untold: number, private readonly onChange: () => void) {}

  get(key: string): number {
    return this.#sum.get(key) ?? 0;
  }

  changed(key: string, count: number, max = this.#told.get(key)?.max ?? Infinity): void {
    const isNear = count > max * this.untold;
    if (!isNear && !this.#told.has(key)) return;
    if (isNear) this.#told.set(key, { count, max });
    else this.#told.delete(key);
    this.#changes.set(key, isNear ? count : 0);
    this.onChange();
  }

  takeChanges(): [string, number][] {
    const changes = [...this.#changes];
    this.#changes.clear();
    return changes;
  }

  get all(): [string, number][] {
    return Array.from(this.#told, ([key, { count }]) => [key, count]);
  }

  /** Another process counts `count`. */
  set(process: unknown, key: string, count: number): void {
    const counts = this.#others.get(process) ?? new Map<string, number>();
    this.#others.set(process, counts);
    const sum = this.get(key) - (counts.get(key) ?? 0) + count;
    if (count > 0) counts.set(key, count);
    else counts.delete(key);
    if (sum > 0) this.#sum.set(key, sum);
    else this.#sum.delete(key);
  }

  /** Another process has ended. */
  forget(process: unknown): void {
    for (const key of [...this.#others.get(process)?.keys() ?? []]) this.set(process, key, 0);
    this.#others.delete(process);
  }
}

/** The limits of a process among several, until it is closed. */
export class SharedLimits {
  /** Key of hashes that all processes compare. */
  readonly credentialsKey: Uint8Array;
  readonly #tell: (news: LimitNews) => void;
  readonly #untold: number;
  readonly #counts = new Map<string, SharedCounts>();
  readonly #taken = new Map<string, Map<string, { count: number; readonly rate: number }>>();
  readonly #failed = new Map<string, [string, string][]>();
  readonly #onTaken = new Map<string, (key: string, count: number) => void>();
  readonly #onFailed = new Map<string, (key: string, hash: string) => void>();
  #timer?: ReturnType<typeof setTimeout>;
  #isClosed = false;

  /**
   * @param processes number of all
   * @param secret known to all
   * @param tell tells all others
   */
  constructor(readonly processes: number, secret: string, tell: (news: LimitNews) => void) {
    this.credentialsKey = createHmac("sha256", secret).update("failed credentials").digest();
    this.#tell = tell;
    this.#untold = UNTOLD_PART / processes;
  }

  /** What the others count for a limit. */
  counts(limit: string): OtherCounts {
    const counts = new SharedCounts(this.#untold, () => this.#schedule());
    this.#counts.set(limit, counts);
    return counts;
  }

  /**
   * Returns what to call when a rate, per second, has permitted something.
   * @param onTaken the others have permitted as much
   */
  rate(limit: string, onTaken: (key: string, count: number) => void): (key: string, rate: number) => void {
    const taken = new Map<string, { count: number; rate: number }>();
    this.#taken.set(limit, taken);
    this.#onTaken.set(limit, onTaken);
    return (key, rate) => {
      const entry = taken.get(key);
      if (entry) entry.count++;
      else taken.set(key, { count: 1, rate });
      this.#schedule();
    };
  }

  /**
   * Returns what to call when an authentication has failed.
   * @param onFailed one has failed at another process
   */
  failures(limit: string, onFailed: (key: string, hash: string) => void): (key: string, hash: string) => void {
    const failed: [string, string][] = [];
    this.#failed.set(limit, failed);
    this.#onFailed.set(limit, onFailed);
    return (key, hash) => {
      failed.push([key, hash]);
      this.#schedule();
    };
  }

  #schedule(): void {
    if (this.#isClosed) return;
    this.#timer ??= setTimeout(() => {
      this.#timer = undefined;
      for (const news of inParts(this.#takeNews())) this.#tell(news);
    }, TELL_MS);
  }

  #takeNews(): LimitNews {
    const counts = entriesOf(this.#counts, (table) => table.takeChanges());
    const taken = entriesOf(this.#taken, (keys) => {
      const near = [...keys].filter(([, { count, rate }]) => count > rate * TELL_MS / 1_000 * this.#untold);
      keys.clear();
      return near.map(([key, { count }]): [string, number] => [key, count]);
    });
    const failed = entriesOf(this.#failed, (list) => list.splice(0));
    return { counts, taken, failed };
  }

  /** What a process is told first. */
  get snapshot(): LimitNews[] {
    return [...inParts({ counts: entriesOf(this.#counts, (table) => table.all) })];
  }

  /** Another process has told. */
  told(process: unknown, { counts = {}, taken = {}, failed = {} }: LimitNews): void {
    for (const [limit, entries] of Object.entries(counts)) {
      for (const [key, count] of entries) this.#counts.get(limit)?.set(process, key, count);
    }
    for (const [limit, entries] of Object.entries(taken)) {
      for (const [key, count] of entries) this.#onTaken.get(limit)?.(key, count);
    }
    for (const [limit, entries] of Object.entries(failed)) {
      for (const [key, hash] of entries) this.#onFailed.get(limit)?.(key, hash);
    }
  }

  /** What another process counts has ended. */
  forget(process: unknown): void {
    for (const counts of this.#counts.values()) counts.forget(process);
  }

  close(): void {
    this.#isClosed = true;
    clearTimeout(this.#timer);
  }
}

function entriesOf<Table, T>(tables: ReadonlyMap<string, Table>, read: (table: Table) => [string, T][]): Entries<T> {
  return Object.fromEntries(Array.from(tables, ([limit, table]) => [limit, read(table)]));
}

/** The entries in parts of limited size. */
function* inParts(news: LimitNews): Iterable<LimitNews> {
  for (const kind of ["counts", "taken", "failed"] as const) {
    for (const [limit, entries] of Object.entries(news[kind] ?? {})) {
      for (let at = 0; at < entries.length; at += MAX_ENTRIES) yield { [kind]: { [limit]: entries.slice(at, at + MAX_ENTRIES) } };
    }
  }
}
