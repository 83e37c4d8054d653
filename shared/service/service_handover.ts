// A service that takes over from an earlier process, and that a later one can take over from.
import { getPriority } from "node:os";
import { ConfigError } from "../config/option.ts";
import type { ServiceContext } from "./context.ts";
import { type HandoverDeps, type HandoverState, Predecessor, type Replaceable, Successors } from "./handover.ts";

/** What a hand-over needs of the service. */
export interface HandoverSteps {
  readonly isDraining: () => boolean;
  /** Starts a new process that takes over, as `start` of {@link Replaceable}. Default: it is not known how. */
  readonly startSuccessor?: Replaceable["start"];
  /** Runs what must not happen during a reload. */
  readonly exclusively?: Replaceable["exclusively"];
  /** Takes over sockets with a name in the file system. */
  readonly takeOver: () => Promise<void>;
  /** Another process serves. */
  readonly released: (pid: number | undefined) => void;
  /** Drains the service until `finish` resolves. */
  readonly drain: (finish: () => Promise<void>) => Promise<void>;
}

/** The hand-overs of a service, if its options name a socket for them. */
export class ServiceHandover {
  /** Passed on to a process that takes over. */
  state: HandoverState = {};
  /** Waits for open tunnels when another process has taken over, and calls `settle` when nothing more can move. Required for a hand-over. */
  finish?: (settle: () => void) => Promise<void>;
  /** Resolves when another process has taken over, and this one serves only open tunnels. */
  readonly done: Promise<void>;
  readonly #service: ServiceContext;
  readonly #steps: HandoverSteps;
  #deps?: HandoverDeps;
  #predecessor?: Predecessor;
  /** Ids of earlier processes that have handed over, one after the other, to this one. */
  #earlier: readonly number[] = [];
  #isSettled = true;
  #isDone = false;
  #resolveDone: () => void = () => {};

  constructor(service: ServiceContext, steps: HandoverSteps) {
    this.#service = service;
    this.#steps = steps;
    this.done = new Promise((resolve) => this.#resolveDone = resolve);
  }

  /** The process that this one takes over from, if any. */
  get predecessor(): Predecessor | undefined {
    return this.#predecessor;
  }

  /** Whether another process has taken over, and this one serves only open tunnels. */
  get isDone(): boolean {
    return this.#isDone;
  }

  /** Ids of processes that have handed over, and still have open tunnels. */
  get earlier(): readonly number[] {
    return this.#earlier = this.#earlier.filter(exists);
  }

  /** @throws {ConfigError | Error} as `find` of {@link Predecessor} */
  async findPredecessor(path: string): Promise<void> {
    const { net, name: service, log, metrics } = this.#service;
    if (net.handover === undefined) throw new ConfigError("Cannot use --handover.socket: this network has no sockets of the system");
    this.#deps = { path, sockets: net.handover, service, log };
    this.#predecessor = await Predecessor.find(this.#deps);
    metrics.gauge(
      "reverse_http_handover_earlier_processes",
      "Processes that have handed over, and still finish what is open there.",
      () => this.earlier.length,
    );
  }

  /**
   * Takes over from the predecessor, and waits for successors.
   * @throws {ConfigError | Error} as `takeOver` of {@link Predecessor} and `listen` of {@link Successors}
   */
  async complete(): Promise<void> {
    if (this.#deps === undefined) return;
    const predecessor = this.#predecessor;
    const { isDraining, startSuccessor: start, exclusively, takeOver, released, drain } = this.#steps;
    if (predecessor) {
      this.#isSettled = false;
      void predecessor.settled.then(() => this.#isSettled = true);
      await predecessor.takeOver();
      const { pid, state: { [EARLIER]: before = "" } } = predecessor;
      this.#earlier = [...pid === undefined ? [] : [pid], ...before.split(",").map(Number).filter((id) => id > 0)];
      await takeOver();
    }
    const successors = await Successors.listen(this.#deps, {
      state: () => ({ ...this.state, [EARLIER]: this.earlier.join() }),
      refusal: () => isDraining() ? "it is stopping" : this.#isSettled ? undefined : "it has not finished taking over from another process",
      start,
      exclusively,
      released: (pid) => {
        this.#isDone = true;
        void this.#predecessor?.supersede();
        this.#resolveDone();
        released(pid);
      },
      finish: (settle) => drain(() => this.finish!(settle)),
    });
    this.#service.adopt(successors, (own) => own.close());
  }
}

/** The ids of earlier processes, in the state that is passed on. */
const EARLIER = "earlier";

/** Whether there is such a process. Its id may be another one's by now, which is rare, and harmless for a number that operators see. */
function exists(pid: number): boolean {
  try {
    getPriority(pid);
    return true;
  } catch {
    return false;
  }
}
