// What the supervising process and its workers say to each other: one JSON object per line, on the worker's standard input and output. Both
// are the same program, so nothing is checked.
import type { BoundAddresses, Worker, WorkerPeer } from "../service/worker.ts";

/** Marks a process as a worker. Its environment differs in nothing else. */
export const WORKER_VARIABLE = "_REVERSE_HTTP_WORKER";

/** To a worker. */
export type ToWorker =
  /** The first message. */
  | {
    readonly do: "start";
    readonly worker: Omit<Worker, "join" | "hasLeft" | "ask">;
    /** As {@link Supervisor.watchdogMs}. */
    readonly watchdogMs: number;
  }
  /** The response to `join`. */
  | { readonly do: "link"; readonly peers: readonly WorkerPeer[] }
  /** Another worker has ended. */
  | { readonly do: "forget"; readonly generation: number }
  | { readonly do: "stop" | "reload" };

/** From a worker. */
export type FromWorker =
  | ({ readonly is: "joining" } & Pick<WorkerPeer, "address" | "pin">)
  | { readonly is: "ready"; readonly addresses?: BoundAddresses; readonly closesWithinMs?: number }
  | { readonly is: "alive" }
  | { readonly is: "status"; readonly text: string }
  /** It asks for what all workers do. */
  | { readonly is: "asking"; readonly what: "stop" | "reload" };

/** Encodes a message. */
export function encodeLine(message: ToWorker | FromWorker): string {
  return `${JSON.stringify(message)}\n`;
}
