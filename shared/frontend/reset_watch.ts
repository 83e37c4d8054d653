// Learns that a client has reset its connection while nothing reads it.
import type { NetError } from "../net/errors.ts";
import type { Duplex } from "../net/stream.ts";

/** Watches for a reset of the client's connection, from the first use of `signal` on. Most tunnels never use it. */
export class ResetWatch implements Disposable {
  readonly #stream: Duplex;
  #watching?: { readonly stop: AbortController; readonly reset: AbortController };
  /** The error that reads of the stream get. */
  reset?: NetError;

  constructor(stream: Duplex) {
    this.#stream = stream;
  }

  get signal(): AbortSignal {
    this.#watching ??= this.#watch();
    return this.#watching.reset.signal;
  }

  #watch(): { stop: AbortController; reset: AbortController } {
    const [stop, reset] = [new AbortController(), new AbortController()];
    this.#stream.whenReset(stop.signal).then((error) => {
      this.reset = error;
      reset.abort(error);
    }, () => {}); // stopped, or the stream was closed: the code that uses the stream handles that
    return { stop, reset };
  }

  [Symbol.dispose](): void {
    this.#watching?.stop.abort();
  }
}
