// The proxy's own metrics, and the agents that the admin server reports.
import { type AgentReport, reportOf } from "../shared/service/admin.ts";
import type { Metrics } from "../shared/service/metrics.ts";
import type { AgentRegistry } from "./agents/registry.ts";
import type { AgentServer } from "./agents/server.ts";

/** Registers the proxy's metrics of agents. */
export function registerProxyMetrics(metrics: Metrics, server: AgentServer): void {
  const { agents } = server;
  metrics.gauge("reverse_http_agents", "Connected agent ids.", () => agents.size);
  metrics.gauge("reverse_http_agent_id_conflicts", "Agent ids for which other agents are refused.", () => server.conflicts);
  metrics.gauge("reverse_http_agent_connections_active", "Open connections of agents.", () => [...agents].length);
  metrics.sessions(() => [...agents].map(({ connection }) => connection));
}

/** One report for each connection of an agent. */
export function reportAgents(agents: AgentRegistry): AgentReport[] {
  return [...agents].map(({ identity, connection, hello, since, tunnels }) => ({
    id: identity.agentId,
    address: connection.remote,
    link: connection.transport,
    version: hello?.version,
    host: hello?.host,
    labels: hello?.labels,
    ...reportOf(since, tunnels, connection.stats()),
  }));
}
