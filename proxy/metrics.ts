// The proxy's own metrics.
import type { Metrics } from "../shared/service/metrics.ts";
import type { AgentServer } from "./agents/server.ts";

/** Registers the proxy's metrics of agents. */
export function registerProxyMetrics(metrics: Metrics, server: AgentServer): void {
  const { agents } = server;
  metrics.gauge("reverse_http_agents", "Connected agent ids.", () => agents.size);
  metrics.gauge("reverse_http_agent_id_conflicts", "Agent ids for which other agents are refused.", () => server.conflicts);
  metrics.gauge("reverse_http_agent_connections_active", "Open connections of agents.", () => [...agents].length);
  metrics.sessions(() => [...agents].map(({ connection }) => connection));
}
