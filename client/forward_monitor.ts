// What happens at forwards, as lines for people, or as events in JSON for programs.
import { formatAuthority } from "../shared/address/authority.ts";
import type { Terminal } from "../shared/cli/command.ts";
import type { LogLimit } from "../shared/log/limit.ts";
import { ERRORS, limitErrors } from "./error_limit.ts";
import { destinationOf, type Forward } from "./forwards.ts";

/** A forward and its totals. */
export interface ForwardState {
  readonly forward: Forward;
  /** Where it listens. */
  address: string;
  /** Connections that have a tunnel. */
  open: number;
  /** Connections that got no tunnel, or whose tunnel broke. */
  errors: number;
  /** Bytes to the destination and from it so far; with UDP those of capsules. */
  bytes(): { readonly sent: number; readonly received: number };
}

/** How a connection has ended. */
export interface ConnectionEnd {
  readonly sent: number;
  readonly received: number;
  /** Why its tunnel broke. Missing for any other end. */
  readonly error?: string;
}

/** Receives what happens. */
export interface Monitor {
  /** All forwards listen, and connections are relayed from now on. */
  listening(states: readonly ForwardState[]): void;
  opened(state: ForwardState): void;
  closed(state: ForwardState, end: ConnectionEnd): void;
  /** A connection got no tunnel. */
  failed(state: ForwardState, error: string): void;
  /** A message about no connection. */
  report(line: string): void;
  close(): void;
}

/** Writes a line for each address and each error. Errors are limited: programs try again. */
export class LineMonitor implements Monitor {
  readonly #limit: LogLimit;

  /** @param hasOutput whether standard output is its own, and not that of a command */
  constructor(private readonly terminal: Pick<Terminal, "write" | "report">, private readonly hasOutput: boolean) {
    this.#limit = limitErrors((line) => this.report(line));
  }

  listening(states: readonly ForwardState[]): void {
    for (const { forward, address } of states) {
      const line = `${address} leads to ${destinationOf(forward)}`;
      if (this.hasOutput) this.terminal.write(`${line}\n`);
      else this.report(line);
    }
  }

  opened(): void {}

  closed({ forward }: ForwardState, { error }: ConnectionEnd): void {
    if (error !== undefined) this.#warn(`The tunnel to ${destinationOf(forward)} broke: ${error}`);
  }

  failed(_: ForwardState, error: string): void {
    this.#warn(error);
  }

  report(line: string): void {
    this.terminal.report(line);
  }

  #warn(line: string): void {
    if (this.#limit.admits(ERRORS)) this.report(line);
  }

  close(): void {
    this.#limit.close();
  }
}

/** Writes an object in JSON for each event, on a line of its own. */
export class JsonMonitor implements Monitor {
  constructor(private readonly write: (line: string) => void) {}

  listening(states: readonly ForwardState[]): void {
    for (const state of states) this.#emit("listening", state);
  }

  opened(state: ForwardState): void {
    this.#emit("opened", state);
  }

  closed(state: ForwardState, end: ConnectionEnd): void {
    this.#emit("closed", state, end);
  }

  failed(state: ForwardState, error: string): void {
    this.#emit("failed", state, { error });
  }

  report(message: string): void {
    this.write(JSON.stringify({ event: "warning", message }));
  }

  close(): void {}

  #emit(event: string, { forward: { network, destination }, address }: ForwardState, more: object = {}): void {
    this.write(JSON.stringify({ event, address, network, destination: formatAuthority(destination), ...more }));
  }
}
