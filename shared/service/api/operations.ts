// What a service shows to operators and does for them. The service implements it; routes.ts serves it.
import type { SignedOut } from "../../auth/authenticator.ts";
import type { Logger, LogLevelControl } from "../../log/logger.ts";
import type { AuditLog } from "../audit.ts";
import type { ConfigurationState } from "../configuration.ts";
import type { Health } from "../health.ts";
import type { Members } from "../cluster/members.ts";
import type { Activity, Population } from "../live/activity.ts";
import type { ActionRecord, AgentState, DisconnectRequest, ServiceName } from "./types.ts";

/** What differs between the services. */
export interface ServiceOperations {
  /** Connections, then those that have ended recently. */
  agents(): AgentState[];
  population(): Population;
  /**
   * Closes connections of an agent. Returns their number. Missing if the service holds none.
   * @throws {ActionRefused}
   */
  disconnect?(request: DisconnectRequest, by: string): number;
  /** Stops gracefully. */
  drain(): Promise<void>;
}

export interface Operations extends ServiceOperations {
  readonly service: ServiceName;
  readonly startedAt: Date;
  readonly activity: Activity;
  readonly health: Health;
  readonly isDraining: boolean;
  /** Ids of processes that have handed over to this one, and still have open tunnels. */
  readonly earlierProcesses: readonly number[];
  /** Missing if the embedding program has its own logger. */
  readonly logLevel?: LogLevelControl;
  readonly log: Logger;
  /** Missing if the embedding program has set the options. */
  readonly configuration?: ConfigurationState;
  /** The other members. Missing if the service answers for itself alone. */
  readonly cluster?: Members;
  /** Records actions. Default: only the log does. */
  readonly audit?: Pick<AuditLog, "action">;
  /** As {@link Authenticator.revoke}. Missing if the service does not authenticate, or by a scheme without revocation. */
  revoke?(tokenId: string, comment: string): Promise<number>;
  /** As {@link Authenticator.signOut}. Missing if no logout tokens are accepted. */
  signOut?(logoutToken: string): Promise<SignedOut | undefined>;
  /** Reads certificates, keys, and the files of the authenticator again. */
  reload(): Promise<void>;
}

/** The service cannot carry out the action; the message says why. */
export class ActionRefused extends Error {
  override readonly name = "ActionRefused";
}

/** Logs an action of an operator, and sends it as an event. */
export function recordAction({ activity, log, audit }: Operations, record: Omit<ActionRecord, "at">, remote: string): void {
  const { by, subject, action, target, through } = record;
  log.info("operator action", { by, subject, action, target, remote, through });
  audit?.action({ by, subject, action, target, remote, through });
  activity.events.publish("actions", () => ({ at: new Date().toISOString(), ...record }));
}
