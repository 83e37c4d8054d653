// Supervises the workers of a service: starts them, restarts those that end, and passes on what the service is asked to do. It has no network
// and no state of the service.
import { spawn } from "node:child_process";
import { randomBytes, randomUUID } from "node:crypto";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { Backoff } from "../async/backoff.ts";
import { ConfigError } from "../config/option.ts";
import { describeWriteError } from "../files/read.ts";
import { messageOf } from "../log/error_message.ts";
import type { Logger } from "../log/logger.ts";
import type { Supervisor } from "../service/supervisor.ts";
import type { BoundAddresses, WorkerPeer } from "../service/worker.ts";
import type { Start } from "./restart.ts";
import { encodeLine, type FromWorker, type ToWorker, WORKER_VARIABLE } from "./worker_messages.ts";

/** Time in milliseconds for a worker to start. */
const START_TIMEOUT_MS = 120_000;
/** Time in milliseconds without a sign of life after which a worker is killed, if the service manager demands none sooner. */
const WATCHDOG_MS = 30_000;
/** A worker that has run for this time in milliseconds is restarted at once when it ends. */
const STABLE_MS = 60_000;
const GENERATIONS = 256;

/** The child process as the supervisor sees it. */
export interface WorkerChild {
  readonly pid?: number;
  /** Sends a line. Never throws. */
  send(line: string): void;
  kill(): void;
}

/** What a child process tells. */
export interface WorkerChildEvents {
  line(text: string): void;
  /** Called once, also if the process could not be started. `code` is missing if a signal has ended it. */
  ended(end: { readonly code?: number; readonly reason: string }): void;
}

export interface WorkersOptions {
  readonly count: number;
  /** A directory that only this user can enter. */
  readonly directory: string;
  /** Starts a process. */
  readonly spawn: (events: WorkerChildEvents) => WorkerChild;
  readonly log: Logger;
  /** The service manager that has started the service. */
  readonly supervisor?: Supervisor;
  /** Time in milliseconds without a sign of life after which a worker is killed; what the service manager demands if that is less. Default: 30 s. */
  readonly watchdogMs?: number;
  /** Of restarts. Default: 100 ms at first, 30 s at most. */
  readonly backoff?: () => Pick<Backoff, "next" | "reset">;
}

/** A place that one process after the other has. */
interface Slot {
  readonly index: number;
  readonly backoff: Pick<Backoff, "next" | "reset">;
  generation: number;
  child?: WorkerChild;
  /** Where other workers link to it; missing until it has joined. */
  peer?: WorkerPeer;
  isReady: boolean;
  startedAt: number;
  aliveAt: number;
  status: string;
  timer?: ReturnType<typeof setTimeout>;
}

/** The workers of a service, until all have ended. */
export class Workers {
  /** Resolves with the exit code when all workers have ended. */
  readonly ended: Promise<number>;
  readonly #options: WorkersOptions;
  readonly #slots: Slot[];
  readonly #secret = randomBytes(32).toString("base64url");
  readonly #instance = randomUUID();
  readonly #end = Promise.withResolvers<number>();
  readonly #watch: ReturnType<typeof setInterval>;
  readonly #watchdogMs: number;
  #checkedAt = performance.now();
  #addresses?: BoundAddresses;
  #generation = -1;
  #isFirst = true;
  /** All workers have been ready. */
  #hasStarted = false;
  #stops = 0;
  #exitCode = 0;
  #reloading = new Set<Slot>();
  #closesWithinMs = 0;

  constructor(options: WorkersOptions) {
    const { count, supervisor, watchdogMs = WATCHDOG_MS, backoff = () => new Backoff({ initialMs: 100 }) } = options;
    this.#options = options;
    this.#watchdogMs = Math.min(supervisor?.watchdogMs ?? Infinity, watchdogMs);
    this.ended = this.#end.promise;
    this.#slots = Array.from({ length: count }, (_, index) => ({
      index,
      backoff: backoff(),
      generation: -1,
      isReady: false,
      startedAt: 0,
      aliveAt: 0,
      status: "",
    }));
    const intervalMs = this.#watchdogMs / 4;
    this.#watch = setInterval(() => this.#checkAlive(intervalMs), intervalMs);
    // the others need its addresses, and what it writes into the state directory
    this.#start(this.#slots[0]!);
  }

  /** Has the workers finish what is open, and end. The second time they end at once. */
  stop(): void {
    const { log, supervisor } = this.#options;
    if (++this.#stops > 2) { for (const { child } of this.#slots) child?.kill(); }
    log.info("stopping the workers", {});
    supervisor?.stopping(this.#closesWithinMs);
    for (const slot of this.#slots) {
      clearTimeout(slot.timer);
      this.#send(slot, { do: "stop" });
    }
    this.#checkEnded();
  }

  /** Has the workers read the configuration and all files again. */
  reload(): void {
    this.#options.supervisor?.reloading();
    this.#reloading = new Set(this.#slots.filter(({ isReady }) => isReady));
    for (const slot of this.#slots) this.#send(slot, { do: "reload" });
    this.#checkReloaded();
  }

  #start(slot: Slot): void {
    const { count, directory, log } = this.#options;
    const isUsed = (generation: number) => this.#slots.some(({ child, generation: used }) => child !== undefined && used === generation);
    do this.#generation = (this.#generation + 1) % GENERATIONS; while (isUsed(this.#generation));
    const now = performance.now();
    Object.assign(slot, { generation: this.#generation, isReady: false, peer: undefined, startedAt: now, aliveAt: now });
    const { index, generation } = slot;
    const child: WorkerChild = slot.child = this.#options.spawn({
      line: (text) => this.#take(slot, generation, text),
      ended: (end) => {
        if (slot.generation === generation && slot.child !== undefined) this.#ended(slot, end);
      },
    });
    log.debug("worker started", { worker: index, pid: child.pid });
    this.#send(slot, {
      do: "start",
      worker: {
        index,
        count,
        generation,
        isFirst: this.#isFirst,
        directory,
        secret: this.#secret,
        instance: this.#instance,
        addresses: this.#addresses,
      },
      watchdogMs: this.#watchdogMs,
    });
    clearTimeout(slot.timer);
    slot.timer = setTimeout(() => {
      log.error("worker does not start", { worker: index, pid: child.pid, timeoutMs: START_TIMEOUT_MS });
      child.kill();
    }, START_TIMEOUT_MS);
  }

  #take(slot: Slot, generation: number, text: string): void {
    if (slot.generation !== generation) return; // of the process before
    let message;
    try {
      message = JSON.parse(text) as FromWorker;
    } catch {
      return this.#options.log.debug("a line of a worker is incomplete", { worker: slot.index }); // it was killed
    }
    switch (message.is) {
      case "joining": {
        const { address, pin } = message;
        this.#send(slot, { do: "link", peers: this.#slots.flatMap(({ peer }) => peer ?? []) });
        slot.peer = { index: slot.index, generation, address, pin };
        return;
      }
      case "ready":
        return this.#ready(slot, message);
      case "alive":
        slot.aliveAt = performance.now();
        return;
      case "status":
        slot.status = message.text;
        this.#options.supervisor?.status(this.#slots.map(({ index, status }) => `worker ${index}: ${status}`).join("; "));
        return;
      case "asking":
        if (message.what === "reload") this.reload();
        else if (this.#stops === 0) this.stop();
    }
  }

  #ready(slot: Slot, { addresses, closesWithinMs }: FromWorker & { is: "ready" }): void {
    const { log, supervisor, count } = this.#options;
    this.#closesWithinMs = closesWithinMs ?? this.#closesWithinMs;
    if (slot.isReady) {
      this.#reloading.delete(slot);
      return this.#checkReloaded();
    }
    clearTimeout(slot.timer);
    slot.isReady = true;
    if (this.#hasStarted) return log.info("worker restarted", { worker: slot.index, pid: slot.child?.pid });
    this.#addresses ??= addresses;
    if (this.#isFirst) {
      this.#isFirst = false;
      for (const other of this.#slots) if (other !== slot && this.#stops === 0) this.#start(other);
    }
    if (!this.#slots.every(({ isReady }) => isReady)) return;
    this.#hasStarted = true;
    log.info("workers serve", { workers: count, pids: this.#slots.map(({ child }) => child?.pid).join(",") });
    supervisor?.ready();
  }

  #checkReloaded(): void {
    if (this.#hasStarted && this.#reloading.size === 0) this.#options.supervisor?.ready();
  }

  #ended(slot: Slot, { code, reason }: { readonly code?: number; readonly reason: string }): void {
    const { log } = this.#options;
    const { index, generation, child, startedAt } = slot;
    clearTimeout(slot.timer);
    Object.assign(slot, { child: undefined, peer: undefined, isReady: false, status: "restarting" });
    this.#reloading.delete(slot);
    for (const other of this.#slots) this.#send(other, { do: "forget", generation });
    if (this.#stops > 0) {
      if (code !== 0) this.#exitCode ||= code ?? 1;
      return this.#checkEnded();
    }
    log.error("worker has ended", { worker: index, pid: child?.pid, reason });
    if (!this.#hasStarted) {
      this.#exitCode = code || 1;
      return this.stop();
    }
    this.#checkReloaded();
    if (performance.now() - startedAt >= STABLE_MS) slot.backoff.reset();
    slot.timer = setTimeout(() => this.#start(slot), slot.backoff.next());
  }

  #checkEnded(): void {
    if (this.#stops === 0 || this.#slots.some(({ child }) => child !== undefined)) return;
    clearInterval(this.#watch);
    this.#end.resolve(this.#exitCode);
  }

  /** Ends workers that do not run any more, as the service manager would. */
  #checkAlive(intervalMs: number): void {
    const { log, supervisor } = this.#options;
    supervisor?.alive();
    const now = performance.now();
    const lateMs = Math.max(0, now - this.#checkedAt - intervalMs);
    this.#checkedAt = now;
    for (const slot of this.#slots) {
      slot.aliveAt += lateMs; // this process has not run either, and has not read what it was told
      const { index, child, isReady, aliveAt } = slot;
      if (child === undefined || !isReady || now - aliveAt < this.#watchdogMs) continue;
      log.error("worker does not respond", { worker: index, pid: child.pid, ms: Math.round(now - aliveAt) });
      child.kill();
    }
  }

  #send({ child }: Slot, message: ToWorker): void {
    child?.send(encodeLine(message));
  }
}

/** Starts a process of this program as a worker. */
export function spawnWorker(file: string, { args, env }: Start, { line, ended }: WorkerChildEvents): WorkerChild {
  // the service manager knows this process alone
  const { NOTIFY_SOCKET: _notify, WATCHDOG_USEC: _usec, WATCHDOG_PID: _watchdog, LISTEN_PID: _listen, ...rest } = env;
  const child = spawn(file, args, { env: { ...rest, [WORKER_VARIABLE]: "1" } as NodeJS.ProcessEnv, stdio: ["pipe", "pipe", "inherit"] });
  let isOver = false;
  const end = (code: number | undefined, reason: string) => {
    if (!isOver) ended({ code, reason });
    isOver = true;
  };
  child.once("error", (error) => end(undefined, messageOf(error)));
  child.once("exit", (code, signal) => end(code ?? undefined, signal ?? `exit code ${code}`));
  child.stdin.on("error", () => {}); // it has ended
  createInterface({ input: child.stdout }).on("line", line);
  return {
    pid: child.pid,
    send: (text) => {
      if (child.stdin.writable) child.stdin.write(text);
    },
    kill: () => void child.kill("SIGKILL"),
  };
}

/** Creates the directory that workers share, and calls `use` with it. @throws {ConfigError} */
export async function withWorkerDirectory<T>(parent: string | undefined, use: (directory: string) => Promise<T>): Promise<T> {
  const directory = await mkdtemp(join(parent || tmpdir(), "reverse-http-")).catch((cause) => {
    throw new ConfigError(`Cannot use --workers: there is no directory for their sockets: ${describeWriteError(cause)}; set TMPDIR`, {
      cause,
    });
  });
  try {
    return await use(directory);
  } finally {
    await rm(directory, { recursive: true, force: true }).catch(() => {}); // it is empty but for sockets
  }
}
