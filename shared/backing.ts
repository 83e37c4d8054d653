// What a proxy or a load balancer decides by, opened together: who is it, and where is the agent. All of it, or nothing is left open.
import type { Authenticator } from "./auth/authenticator.ts";
import { type AuthOptions, createAuthenticator } from "./auth/scheme.ts";
import type { Logger } from "./log.ts";
import type { StoreEvents } from "./store/guard.ts";
import { openStore, type StoreOptions } from "./store/options.ts";
import type { Store } from "./store/store.ts";

export interface BackingOptions {
  auth: AuthOptions;
  store: StoreOptions;
  /** How long an entry of the store lives without renewal, in milliseconds. */
  ttlMs: number;
  storeEvents: StoreEvents;
  log: Logger;
}

export interface Backing {
  readonly authenticator: Authenticator;
  /** Missing where the options name none. */
  readonly store?: Store;
  /** Ends what was opened here. */
  close(): void;
}

/**
 * What is `given` replaces what the options describe, and is not closed.
 * @throws {ConfigError}
 */
export async function openBacking(
  { auth, store, ttlMs, storeEvents, log }: BackingOptions,
  given: { readonly authenticator?: Authenticator; readonly store?: Store },
): Promise<Backing> {
  const ownAuthenticator = given.authenticator ? undefined : await createAuthenticator(auth, log);
  try {
    const ownStore = given.store ? undefined : await openStore(store, ttlMs, storeEvents);
    return {
      authenticator: given.authenticator ?? ownAuthenticator!,
      store: given.store ?? ownStore,
      close() {
        ownAuthenticator?.close?.();
        ownStore?.close();
      },
    };
  } catch (error) {
    ownAuthenticator?.close?.();
    throw error;
  }
}
