// The resources that a service has opened, closed in one order. Node.js 22 lacks AsyncDisposableStack, whose names this class uses.

/** Closes resources in the reverse order of their opening. */
export class ResourceStack {
  readonly #closers: (() => void | Promise<void>)[] = [];

  /** Calls `close` when the stack is disposed of. */
  defer(close: () => void | Promise<void>): void {
    this.#closers.push(close);
  }

  /** Returns `resource`, which the stack owns from now on. */
  adopt<T>(resource: T, close: (resource: T) => void | Promise<void>): T {
    this.defer(() => close(resource));
    return resource;
  }

  /**
   * Closes one resource after the other. An error does not keep the rest open.
   * @throws the first error, after everything was closed
   */
  async disposeAsync(): Promise<void> {
    const errors: unknown[] = [];
    for (let close; (close = this.#closers.pop()) !== undefined;) {
      try {
        await close();
      } catch (error) {
        errors.push(error);
      }
    }
    if (errors.length > 0) throw errors[0];
  }
}
