// Reports the state of the store's servers: changes in the log, the readiness, and the metrics.
import type { Logger } from "../log/logger.ts";
import type { StoreEvents } from "../store/circuit_breaker.ts";
import type { Health } from "./health.ts";
import type { Metrics } from "./metrics.ts";

/** Maximum length in characters of a server's own error message. */
const MAX_REASON = 200;

export function reportStore(log: Logger, health: Health, metrics: Metrics): StoreEvents {
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

function explain(reason: string): string {
  const short = reason.slice(0, MAX_REASON);
  return /^(WRONGPASS|NOAUTH|NOPERM)|invalid.*password/i.test(reason) ? `authentication failed: ${short}` : short;
}
