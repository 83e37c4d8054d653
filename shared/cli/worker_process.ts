// A worker's side of the conversation with the process that supervises it.
import { createInterface } from "node:readline";
import type { Supervisor } from "../service/supervisor.ts";
import type { BoundAddresses, Worker, WorkerPeer } from "../service/worker.ts";
import { encodeLine, type FromWorker, type ToWorker } from "./worker_messages.ts";

/** The process of a worker. */
export interface WorkerProcessOptions {
  readonly input: NodeJS.ReadableStream & { destroy(): unknown };
  readonly write: (text: string) => void;
  /** The supervising process has ended. `directory` is the one that all workers share, if it has said that. */
  readonly onOrphaned: (directory: string | undefined) => void;
}

/** What the supervising process tells this worker, and is told. */
export class WorkerProcess {
  readonly worker: Worker;
  readonly supervisor: Supervisor;
  /** Resolves when the worker is asked to stop. */
  readonly stopped: Promise<void>;
  /** Resolves when it is asked again. */
  readonly stoppedAgain: Promise<void>;
  readonly #write: (text: string) => void;
  readonly #left = new Set<number>();
  readonly #linking = Promise.withResolvers<readonly WorkerPeer[]>();
  readonly #stops = [Promise.withResolvers<void>(), Promise.withResolvers<void>()] as const;
  #stopCount = 0;
  /** Ends the conversation. */
  #close!: () => void;
  #reload?: () => void;
  #isReloadAsked = false;

  private constructor({ worker, watchdogMs }: ToWorker & { do: "start" }, write: (text: string) => void) {
    this.#write = write;
    [this.stopped, this.stoppedAgain] = [this.#stops[0].promise, this.#stops[1].promise];
    this.worker = {
      ...worker,
      join: async (own) => {
        this.#send({ is: "joining", ...own });
        return await this.#linking.promise;
      },
      hasLeft: (generation) => this.#left.has(generation),
      ask: (what) => this.#send({ is: "asking", what }),
    };
    let [status, sentAt] = ["", -Infinity];
    this.supervisor = {
      watchdogMs,
      ready: () => this.#send({ is: "ready" }),
      reloading: () => {},
      stopping: () => {},
      handedOver: () => {},
      status: (text) => {
        if (text !== status) this.#send({ is: "status", text });
        status = text;
      },
      alive: () => {
        const now = performance.now();
        if (now - sentAt < watchdogMs / 4) return;
        sentAt = now;
        this.#send({ is: "alive" });
      },
    };
  }

  /** Waits for the first message. */
  static async start({ input, write, onOrphaned }: WorkerProcessOptions): Promise<WorkerProcess> {
    const started = Promise.withResolvers<WorkerProcess>();
    let process: WorkerProcess | undefined;
    const end = () => onOrphaned(process?.worker.directory);
    const lines = createInterface({ input });
    lines.on("line", (line) => {
      const message = JSON.parse(line) as ToWorker;
      if (message.do === "start") {
        process = new WorkerProcess(message, write);
        process.#close = () => {
          lines.off("close", end);
          lines.close();
          input.destroy();
        };
        started.resolve(process);
      } else if (process) process.#take(message);
    });
    lines.on("close", end);
    return await started.promise;
  }

  #take(message: Exclude<ToWorker, { do: "start" }>): void {
    switch (message.do) {
      case "link":
        return this.#linking.resolve(message.peers);
      case "forget":
        return void this.#left.add(message.generation);
      case "stop":
        return this.#stops[Math.min(this.#stopCount++, 1)]!.resolve();
      case "reload":
        this.#isReloadAsked = this.#reload === undefined;
        return this.#reload?.();
    }
  }

  /** Sets what `reload` does, also if it was asked for before. */
  onReload(reload: () => void): void {
    this.#reload = reload;
    if (this.#isReloadAsked) reload();
    this.#isReloadAsked = false;
  }

  /** Listens to the supervising process no more, so that this one can end. */
  close(): void {
    this.#close();
  }

  /** The service runs, at these addresses. */
  ready(addresses: BoundAddresses | undefined, closesWithinMs: number): void {
    this.#send({ is: "ready", addresses, closesWithinMs });
  }

  #send(message: FromWorker): void {
    this.#write(encodeLine(message));
  }
}
