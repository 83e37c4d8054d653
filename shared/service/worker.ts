// What a worker knows of the processes that serve with it at the same addresses (docs/adr/0021-workers.md). The command line implements it.

/** Another worker, as the supervising process knows it. */
export interface WorkerPeer {
  /** 0 to {@link Worker.count} - 1; a process that replaces another one has its index. */
  readonly index: number;
  /** Identifies the process. */
  readonly generation: number;
  /** Where it accepts links of other workers, `host:port`. */
  readonly address: string;
  /** SHA-256 of its certificate there, 64 hexadecimal digits. */
  readonly pin: string;
}

/** Addresses that the first worker has bound, for the others: the system chooses ports once. */
export interface BoundAddresses {
  readonly agents: string;
  readonly agentsTcp?: string;
  readonly clients: string;
  readonly http2?: string;
  readonly socks?: string;
  readonly forwards: readonly string[];
}

/** One of several processes that are one service. */
export interface Worker {
  /** That with index 0 serves operators and orders certificates. */
  readonly index: number;
  readonly count: number;
  /** 0 to 255; no other process of the service that runs has it. */
  readonly generation: number;
  /** Whether no other process of the service has listened yet. */
  readonly isFirst: boolean;
  /** A directory that only this user can enter, and that all workers share. */
  readonly directory: string;
  /** By which workers know each other. */
  readonly secret: string;
  /** Identifies the service for agents. */
  readonly instance: string;
  /** Missing for the first worker. */
  readonly addresses?: BoundAddresses;
  /** Tells the others where this worker accepts links. Resolves with those that have joined before, which it connects to. */
  join(own: Pick<WorkerPeer, "address" | "pin">): Promise<readonly WorkerPeer[]>;
  /** Whether the process of a peer has ended. */
  hasLeft(generation: number): boolean;
  /** Has all workers stop, or reload. */
  ask(what: "stop" | "reload"): void;
}
