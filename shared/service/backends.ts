// What a proxy or a load balancer decides by, opened together: who is it, and where is the agent. All of it, or nothing is left open.
import type { Authenticator } from "../auth/authenticator.ts";
import { type AuthOptions, createAuthenticator } from "../auth/scheme.ts";
import type { Logger } from "../log/logger.ts";
import type { StoreEvents } from "../store/circuit_breaker.ts";
import type { Health } from "./admin.ts";
import type { Metrics } from "./metrics.ts";
import { openStore, type StoreOptions } from "../store/options.ts";
import type { Store } from "../store/store.ts";

export interface BackendsOptions {
  auth: AuthOptions;
  store: StoreOptions;
  /** How long an entry of the store lives without renewal, in milliseconds. */
  ttlMs: number;
  log: Logger;
  health: Health;
  metrics: Metrics;
}

export interface Backends {
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
export async function openBackends(
  { auth, store, ttlMs, log, health, metrics }: BackendsOptions,
  given: { readonly authenticator?: Authenticator; readonly store?: Store },
): Promise<Backends> {
  const ownAuthenticator = given.authenticator ? undefined : await createAuthenticator(auth, log);
  try {
    const ownStore = given.store ? undefined : await openStore(store, ttlMs, reportStore(log, health, metrics));
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

/** Reports the state of the store's servers: changes in the log, the readiness, and the metrics. */
function reportStore(log: Logger, health: Health, metrics: Metrics): StoreEvents {
  const storeMetrics = metrics.store();
  const down = new Map<string, string>();
  return {
    onCall: storeMetrics.onCall,
    onServer(server) {
      storeMetrics.onServer?.(server);
      const { name, up } = server;
      const reason = explain(server.reason ?? "");
      if (up) log.info("store recovered", { store: name });
      else log.warn("store unavailable", { store: name, reason });
      if (up) down.delete(name);
      else down.set(name, reason);
      if (down.size === 0) health.setReady("store");
      else health.setUnready("store", [...down].map(([name, reason]) => `${name}: ${reason}`).join("; "));
    },
  };
}

/** Most characters of what a server says. */
const MAX_REASON = 200;

function explain(reason: string): string {
  const short = reason.slice(0, MAX_REASON);
  return /^(WRONGPASS|NOAUTH|NOPERM)|invalid.*password/i.test(reason) ? `authentication failed: ${short}` : short;
}
