// Credentials in use. Their connections and tunnels end when they expire, or are no longer accepted.
import type { Identity } from "./authenticator.ts";
import type { RevocationFile } from "./revocation_file.ts";

interface Entry<C> {
  readonly credentials: C;
  readonly closesAt: number;
  readonly controller: AbortController;
}

export class LiveCredentials<C> {
  readonly #current = new Set<Entry<C>>();

  /**
   * Adds credentials until they are released. Each use of the same credentials is added.
   * @param closesAt when to close their connections and tunnels, in milliseconds since 1970; `Infinity`: never
   */
  add(credentials: C, closesAt: number): Required<Pick<Identity, "signal" | "release">> {
    const entry: Entry<C> = { credentials, closesAt, controller: new AbortController() };
    this.#current.add(entry);
    return { signal: entry.controller.signal, release: () => void this.#current.delete(entry) };
  }

  /** The credentials of each use. */
  all(): C[] {
    return Array.from(this.#current, ({ credentials }) => credentials);
  }

  /** Ends the credentials that close at `now` or earlier. */
  closeExpired(now: number): void {
    for (const entry of this.#current) {
      if (entry.closesAt <= now) this.#end(entry, "The token has expired");
    }
  }

  /** Ends the credentials for which `problemOf` gives a reason, for the log. */
  closeIf(problemOf: (credentials: C) => string | undefined): void {
    for (const entry of this.#current) {
      const why = problemOf(entry.credentials);
      if (why !== undefined) this.#end(entry, why);
    }
  }

  #end(entry: Entry<C>, why: string): void {
    this.#current.delete(entry);
    entry.controller.abort(new Error(why));
  }
}

/**
 * Calls `tick` at each whole second of the wall clock `now` until the result is called: tokens expire at whole seconds, and waking at each
 * keeps that exact even if the clock is set.
 */
export function everySecond(now: () => number, tick: () => void): () => void {
  let timer: ReturnType<typeof setTimeout>;
  const schedule = () => timer = setTimeout(wake, 1000 - now() % 1000);
  const wake = () => {
    schedule();
    tick();
  };
  schedule();
  return () => clearTimeout(timer);
}

export interface WatchOptions<C> {
  /** The list that is polled. Default: there is none. */
  readonly revocations?: RevocationFile;
  /** Why the list, or anything else, no longer accepts credentials. */
  readonly problemOf: (credentials: C) => string | undefined;
  /** Milliseconds since 1970. */
  readonly now: () => number;
  /** Called each second. */
  readonly tick?: () => void;
}

/** Ends credentials that expire, and those that a new revocation list names, until `close`. `reload` polls the list; it never rejects. */
export function watchCredentials<C>(live: LiveCredentials<C>, { revocations, problemOf, now, tick }: WatchOptions<C>): {
  reload(): Promise<void>;
  close(): void;
} {
  let reloading: Promise<void> | undefined;
  const reloadList = async () => {
    if (await revocations?.poll()) live.closeIf(problemOf);
  };
  const reload = () => reloading ??= reloadList().finally(() => reloading = undefined);
  const close = everySecond(now, () => {
    live.closeExpired(now());
    tick?.();
    void reload();
  });
  return { reload, close };
}
