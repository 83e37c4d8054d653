// The audit log: a file with one line of JSON for each start and end of a tunnel, each refusal, and each action of an operator. Every start has
// an end: a restart writes the ends that a crash has left out. Another program may rotate the file.
import { Buffer } from "node:buffer";
import { createReadStream } from "node:fs";
import { type FileHandle, open, stat } from "node:fs/promises";
import { createInterface } from "node:readline";
import { setTimeout as sleep } from "node:timers/promises";
import { messageOf } from "../log/error_message.ts";
import type { Logger } from "../log/logger.ts";
import { TunnelError } from "../tunnel/errors.ts";

/** Maximum number of characters that wait to be written. Ends of tunnels are kept beyond it: there are no more of them than of starts. */
const MAX_QUEUED = 4 << 20;
/** Interval in milliseconds at which the file is looked at: it may have been rotated. */
const ROTATION_INTERVAL_MS = 1_000;
/** Pause in milliseconds after a failed write. */
const RETRY_MS = 1_000;
const NEWLINE = 10;
/** Maximum number of tunnels of an earlier process whose ends are looked for. */
const MAX_UNFINISHED = 1_000_000;

/** The start of a tunnel. */
export interface AuditStart {
  /** Id of the request, as in the log. Clients may choose it, and use it for several requests. */
  readonly id: string;
  /** Id of the tunnel, as in the admin API: unique among all processes. */
  readonly tunnel: string;
  /** Id of the trace that the request belongs to. */
  readonly trace_id?: string;
  readonly client: string;
  /** The trusted proxy in between. */
  readonly peer?: string;
  readonly agent?: string;
  /** The id of the client's token. */
  readonly token?: string;
  /** Who the client is: an id that never changes, and the name that people know. */
  readonly subject?: string;
  readonly name?: string;
  readonly protocol?: string;
  readonly network?: string;
  readonly destination?: string;
}

/** How a tunnel has ended. */
export interface AuditEnd {
  /** The id in the start record. */
  readonly id: string;
  readonly tunnel: string;
  /** `completed`; `failed` before it was open, or `broken` after; `lost` if the process has ended without a record of it. */
  readonly outcome: "completed" | "failed" | "broken" | "lost";
  /** Error type of RFC 9209. */
  readonly error?: string;
  readonly reason?: string;
  readonly sent?: number;
  readonly received?: number;
  readonly durationMs?: number;
}

/** A request that was refused before anything was dialled. */
export interface AuditRefusal extends AuditStart {
  readonly status?: number;
  readonly error?: string;
  readonly reason?: string;
}

/** An operator's action. */
export interface AuditAction {
  /** The operator's name. */
  readonly by: string;
  /** The person's id at the identity provider. */
  readonly subject?: string;
  readonly action: string;
  /** What it was applied to. */
  readonly target?: string;
  /** The operator's address, or `unix`. */
  readonly remote: string;
  /** The member of the cluster through which it came. */
  readonly through?: string;
}

export interface AuditOptions {
  /** Created if it does not exist, readable by its owner alone. */
  readonly file: string;
  /** Whether a tunnel is refused while its start cannot be written. Default: records are lost instead, and counted. */
  readonly strict?: boolean;
  /** Name of the service, in each record. */
  readonly service: string;
  readonly log: Logger;
  /** Whether an earlier process may still have tunnels open in the file, whose ends it writes itself. Default `false`. */
  readonly hasPredecessor?: boolean;
  /**
   * This process among several that append to the file; its index is in each record. The first one that starts writes the ends that all have
   * left out, and one that replaces another those of that one. Default: there is one process.
   */
  readonly worker?: { readonly index: number; readonly isFirst: boolean };
  /** The log of this process that this one replaces. Default: none. */
  readonly previous?: AuditLog;
  /** Called with the number of records written or lost. */
  readonly count?: (outcome: "written" | "lost", records: number) => void;
}

interface Line {
  readonly event: string;
  readonly text: string;
}

/** Appends records to the file until it is closed. */
export class AuditLog {
  readonly #options: AuditOptions;
  /** Starts whose end is not recorded yet, by {@link AuditStart.tunnel}. */
  readonly #unfinished = new Map<string, AuditStart>();
  readonly #timer: ReturnType<typeof setInterval>;
  #file: FileHandle;
  /** Size of the file in bytes, up to the last complete write. */
  #size: number;
  #queue: Line[] = [];
  #queued = 0;
  /** The batch being collected; resolves when it has been written. */
  #batch = Promise.withResolvers<boolean>();
  #writing?: Promise<void>;
  /** The last write was incomplete. */
  #isTorn: boolean;
  #hasFailed = false;
  #isRotated = false;
  /** Another process appends to the file, too. */
  #isShared: boolean;
  readonly #closing = new AbortController();

  private constructor(options: AuditOptions, file: FileHandle, size: number, isTorn: boolean) {
    this.#options = options;
    this.#file = file;
    this.#size = size;
    this.#isTorn = isTorn;
    this.#isShared = options.hasPredecessor === true || options.worker !== undefined;
    this.#timer = setInterval(() => void this.reopen(), ROTATION_INTERVAL_MS);
    this.#timer.unref();
  }

  /**
   * Opens the file, and writes an end with the outcome `lost` for each tunnel that an earlier process has left open in it.
   * @throws {Error} of the file system, if it cannot be read and written
   */
  static async open(options: AuditOptions): Promise<AuditLog> {
    const file = await open(options.file, "a+", 0o600);
    try {
      const { size } = await file.stat();
      const isTorn = size > 0 && (await file.read(new Uint8Array(1), 0, 1, size - 1)).buffer[0] !== NEWLINE;
      const isInUse = options.hasPredecessor || (options.previous !== undefined && options.previous.#options.file === options.file);
      const unfinished = size > 0 && !isInUse ? await readUnfinished(options.file, (worker) => isOurs(worker, options)) : []; // a device has no size
      const audit = new AuditLog(options, file, size, isTorn);
      for (const tunnel of unfinished) audit.#put("end", { ...tunnel, outcome: "lost", reason: "the process ended without a record" });
      return audit;
    } catch (error) {
      await file.close();
      throw error;
    }
  }

  /**
   * Records that a tunnel is opened.
   * @throws {TunnelError} if it cannot be recorded and that is required; there must be no tunnel then, and no end
   */
  async start(start: AuditStart): Promise<void> {
    const isQueued = this.#put("start", start);
    if (isQueued) this.#unfinished.set(start.tunnel, start);
    if (!this.#options.strict) return;
    if (isQueued && await this.#batch.promise) return;
    this.#unfinished.delete(start.tunnel);
    throw new TunnelError("proxy_internal_error", "The audit log cannot be written");
  }

  /** Another process appends to the file from now on, too. */
  share(): void {
    this.#isShared = true;
  }

  /** Records the end of a tunnel that was started. */
  end(end: AuditEnd): void {
    if (this.#unfinished.delete(end.tunnel)) this.#put("end", end);
  }

  refused(refusal: AuditRefusal): void {
    this.#put("refused", refusal);
  }

  /** Records an operator's action. */
  action(action: AuditAction): void {
    this.#put("action", action);
  }

  /** Opens the file again if another one, or none, has its name. Tunnels that are open are recorded in the new file, too. */
  async reopen(): Promise<void> {
    if (this.#isRotated) return;
    try {
      const { ino } = await stat(this.#options.file);
      if (ino === (await this.#file.stat()).ino) return;
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== "ENOENT") return; // the next look finds it
    }
    this.#isRotated = true;
    await (this.#writing ??= this.#drain());
  }

  /** Lets `next` record the ends of the tunnels that are open. */
  continueIn(next: AuditLog): void {
    for (const [id, start] of this.#unfinished) {
      next.#unfinished.set(id, start);
      next.#put("open", start);
    }
    this.#unfinished.clear();
  }

  /** Writes what is queued, and closes the file. Tunnels that are open then are `lost`. */
  async close(): Promise<void> {
    clearInterval(this.#timer);
    this.#closing.abort();
    for (const { id, tunnel } of [...this.#unfinished.values()]) {
      this.end({ id, tunnel, outcome: "lost", reason: "the service was closed" });
    }
    await this.#writing;
    await this.#file.close().catch(() => {});
  }

  /** Returns whether there was room. */
  #put(event: string, fields: object): boolean {
    const text = this.#format(event, fields);
    if (event !== "end" && this.#queued + text.length > MAX_QUEUED) {
      this.#lose(1, "records arrive faster than they can be written");
      return false;
    }
    this.#queue.push({ event, text });
    this.#queued += text.length;
    this.#writing ??= this.#drain();
    return true;
  }

  #format(event: string, fields: object): string {
    const { service, worker } = this.#options;
    return `${JSON.stringify({ time: new Date().toISOString(), event, service, worker: worker?.index, ...fields })}\n`;
  }

  async #drain(): Promise<void> {
    await Promise.resolve(); // what is recorded now shares a write
    while (this.#queue.length > 0 || this.#isRotated) {
      if (this.#isRotated) await this.#rotate();
      const [lines, batch] = [this.#queue, this.#batch];
      [this.#queue, this.#queued, this.#batch] = [[], 0, Promise.withResolvers()];
      const isWritten = lines.length === 0 || await this.#append(lines);
      batch.resolve(isWritten);
      if (!isWritten) await this.#retryLater(lines);
    }
    this.#writing = undefined;
  }

  async #append(lines: readonly Line[]): Promise<boolean> {
    const { log, file, count } = this.#options;
    const bytes = Buffer.from((this.#isTorn ? "\n" : "") + lines.map(({ text }) => text).join(""));
    try {
      await this.#file.appendFile(bytes);
    } catch (error) {
      await this.#takeBack();
      this.#reportFailure(messageOf(error));
      return false;
    }
    this.#isTorn = false;
    this.#size += bytes.length;
    if (this.#hasFailed) log.info("audit log is written again", { file });
    this.#hasFailed = false;
    count?.("written", lines.length);
    return true;
  }

  /** Removes what an incomplete write has left: with `strict`, there are no tunnels to the starts in it, and otherwise it is written again. */
  async #takeBack(): Promise<void> {
    try {
      const { size } = await this.#file.stat();
      if (size > this.#size && !this.#isShared) return await this.#file.truncate(this.#size);
      this.#size = size; // another program has truncated it, or it is a device
      this.#isTorn = size > 0;
    } catch {
      this.#isTorn = true; // a new line ends what is left
    }
  }

  /** Queues lines again that could not be written. With `strict`, what they start was refused, so only ends are kept. */
  async #retryLater(lines: readonly Line[]): Promise<void> {
    const kept = this.#closing.signal.aborted ? [] : lines.filter(({ event }) => event === "end" || !this.#options.strict);
    if (kept.length < lines.length) this.#options.count?.("lost", lines.length - kept.length);
    this.#queue.unshift(...kept);
    this.#queued += kept.reduce((sum, { text }) => sum + text.length, 0);
    await sleep(RETRY_MS, undefined, { signal: this.#closing.signal }).catch(() => {}); // closing
  }

  async #rotate(): Promise<void> {
    this.#isRotated = false;
    const { file, log } = this.#options;
    try {
      const next = await open(file, "a", 0o600);
      await this.#file.close();
      this.#file = next;
      this.#size = (await next.stat()).size;
      this.#isTorn = false;
    } catch (error) {
      return log.error("audit log cannot be opened again", { file, error: messageOf(error) });
    }
    const tunnels = [...this.#unfinished.values()].map((start) => ({ event: "open", text: this.#format("open", start) }));
    this.#queue.unshift(...tunnels);
    log.info("audit log was rotated", { file, open: tunnels.length });
  }

  #lose(records: number, reason: string): void {
    this.#options.count?.("lost", records);
    this.#reportFailure(reason);
  }

  #reportFailure(reason: string): void {
    const { log, file } = this.#options;
    if (!this.#hasFailed) log.error("audit log cannot be written", { file, reason });
    this.#hasFailed = true;
  }
}

/** Names a tunnel. Records of versions before this one have the id only. */
type TunnelName = Pick<AuditStart, "id"> & Partial<Pick<AuditStart, "tunnel">>;

interface TunnelRecord extends TunnelName {
  readonly event: "start" | "open" | "end";
  /** The index of the worker that has written it. */
  readonly worker?: number;
}

/** Whether this process writes the ends that the worker with an index has left out. */
function isOurs(index: number | undefined, { worker, previous }: AuditOptions): boolean {
  return worker === undefined || index === worker.index || (worker.isFirst && previous === undefined);
}

/** The tunnels that have a start but no end in the file, in their order, of workers that are `wanted`. */
async function readUnfinished(file: string, wanted: (worker: number | undefined) => boolean): Promise<Iterable<TunnelName>> {
  const unfinished = new Map<string, TunnelName>();
  for await (const line of createInterface({ input: createReadStream(file, "utf8"), crlfDelay: Infinity })) {
    const record = parseRecord(line);
    if (record === undefined) continue;
    const { event, id, tunnel, worker } = record;
    const key = tunnel ?? id;
    if (event === "end") unfinished.delete(key);
    else if (unfinished.size < MAX_UNFINISHED && wanted(worker)) unfinished.set(key, { id, tunnel });
  }
  return unfinished.values();
}

/** The start, end or open tunnel of a line; `undefined` for other records and lines that are incomplete. */
function parseRecord(line: string): TunnelRecord | undefined {
  try {
    const { event, id, tunnel, worker } = JSON.parse(line) as Readonly<Record<string, unknown>>;
    if ((event === "start" || event === "open" || event === "end") && typeof id === "string") {
      return {
        event,
        id,
        tunnel: typeof tunnel === "string" ? tunnel : undefined,
        worker: typeof worker === "number" ? worker : undefined,
      };
    }
  } catch {
    // a line that was written incompletely
  }
  return undefined;
}
