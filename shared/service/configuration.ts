// What operators see of the configuration in force.
import type { Gate } from "../async/gate.ts";
import type { ChangedOption } from "../config/plan.ts";
import type { Metrics } from "./metrics.ts";

/** The state of a service's configuration, which the command line updates. */
export interface ConfigurationState {
  /** Hash of the values in force, 12 hexadecimal digits. */
  hash: string;
  /** The values in force that differ from the defaults. */
  changed: readonly ChangedOption[];
  /** Whether the last reload has succeeded. */
  isReloaded: boolean;
  /** Reads the configuration again, and all files that it names. Never rejects. Default: there is no file to read. */
  reload?: () => Promise<void>;
  /** Reloads and hand-overs take turns here: none begins while another one runs. Default: they need not. */
  readonly turns?: Gate;
  /** The process that has taken over, for a reload that was asked for meanwhile. */
  successor?: { readonly pid: number | undefined };
}

/** Reports the state in metrics. */
export function reportConfiguration(metrics: Metrics, state: ConfigurationState): void {
  metrics.gauge(
    "reverse_http_config_hash",
    "Hash of the configuration in force, without secrets, as a number.",
    () => Number.parseInt(state.hash, 16),
  );
  metrics.gauge("reverse_http_config_last_reload_successful", "Whether the last reload has succeeded.", () => Number(state.isReloaded));
}
