// What those who operate a proxy can see of it: figures, readiness, agents.
import { type AgentReport, reportOf } from "../shared/service/admin.ts";
import type { Metrics, TunnelMetrics } from "../shared/service/metrics.ts";
import type { AgentRegistry } from "./agents/registry.ts";
import type { ProxyTls } from "./tls.ts";

/** What there is to see. */
export interface ProxyMetricsSources {
  readonly agents: AgentRegistry;
  readonly tls: ProxyTls;
  /** Clients being served. */
  readonly clients: () => number;
}

/** Registers the figures of a proxy; returns what counts its tunnels. */
export function registerProxyMetrics(metrics: Metrics, { agents, tls, clients }: ProxyMetricsSources): TunnelMetrics {
  metrics.gauge("reverse_http_agents", "Agent ids held.", () => agents.size);
  metrics.gauge("reverse_http_agent_connections", "Connections of agents held.", () => [...agents].length);
  metrics.quic(() => [...agents].map(({ connection }) => connection));
  metrics.watchCertificate("agents", () => tls.agents.current.cert);
  metrics.watchCertificate("clients", () => tls.clients?.current.cert);
  return metrics.tunnels(clients);
}

/** One line an agent's connection. */
export function reportAgents(agents: AgentRegistry): AgentReport[] {
  return [...agents].map(({ identity, connection, hello, since, tunnels }) => ({
    id: identity.agentId,
    address: connection.remote,
    version: hello?.version,
    host: hello?.host,
    labels: hello?.labels,
    ...reportOf(since, tunnels, connection.stats()),
  }));
}
