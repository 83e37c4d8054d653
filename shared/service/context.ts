// The interface of a running service for its parts.
import type { Logger } from "../log/logger.ts";
import type { Net } from "../net/net.ts";
import type { ServiceName } from "./api/types.ts";
import type { Health } from "./health.ts";
import type { Activity } from "./live/activity.ts";
import type { Metrics } from "./metrics.ts";
import type { Worker } from "./worker.ts";

/** A running service, for its parts. */
export interface ServiceContext {
  readonly name: ServiceName;
  readonly net: Net;
  /** This process among several that are the service. Default: it is the only one. */
  readonly worker?: Worker;
  /** Never throws. */
  readonly log: Logger;
  readonly metrics: Metrics;
  readonly health: Health;
  /** The live state of the service, for operators. */
  readonly activity: Activity;
  /** Calls `close` when the service closes, in the reverse order of opening. */
  defer(close: () => void | Promise<void>): void;
  /** Returns `resource`, which the service closes. */
  adopt<T>(resource: T, close: (resource: T) => void | Promise<void>): T;
  /** Calls `reload` whenever files are read again. */
  onReload(reload: () => Promise<void> | void): void;
}
