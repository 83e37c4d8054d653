// Opens a tunnel through an agent: picks the connection, bounds the wait, and maps the agent's response.
import { clientDisconnected } from "../shared/frontend/http_forward.ts";
import type { DialRequest, Upstream } from "../shared/frontend/dialer.ts";
import { encodeHead, type Fields, formatAuthority, HeadError, parseResponseHead, values } from "../shared/http/head.ts";
import { parseProxyStatus, type ProxyErrorType } from "../shared/http/proxy_status.ts";
import { CONNECTION_ESTABLISHED_HEAD, ProxyError } from "../shared/http/status.ts";
import { NetError } from "../shared/net/errors.ts";
import type { DestinationFailures } from "./agents/failures.ts";
import type { AgentRegistry, ConnectedAgent } from "./agents/registry.ts";
import type { StalledAgentMonitor } from "./agents/stalled_agents.ts";

/** Maximum number of agents that one request tries when they cannot reach the destination. */
const MAX_ATTEMPTS = 5;
/** Errors before anything has reached the destination: another agent with the same id may reach it. */
const RETRYABLE_ERRORS: readonly ProxyErrorType[] = [
  "connection_refused",
  "connection_timeout",
  "connection_limit_reached",
  "destination_ip_unroutable",
  "destination_unavailable",
  "dns_error",
];

/** What `dialAgent` works with. */
export interface DialContext {
  readonly agents: AgentRegistry;
  readonly monitor: StalledAgentMonitor;
  readonly failures: DestinationFailures;
  /** Timeout in milliseconds over all agents that are tried. */
  readonly timeoutMs: number;
}

/**
 * Opens a tunnel through the agent. A dead connection is replaced by the agent's next one. If several agents share the id and one cannot
 * reach the destination, the next one is tried, and for some time the failed one is avoided.
 * @throws {ProxyError}
 */
export async function dialAgent(
  { agents, monitor, failures, timeoutMs }: DialContext,
  request: DialRequest,
  draining: boolean,
): Promise<Upstream> {
  const deadline = performance.now() + timeoutMs;
  const destination = formatAuthority(request.destination);
  const excluded = new Set<ConnectedAgent>();
  const isAvoided = (agent: ConnectedAgent) => failures.isAvoided(agent, destination);
  let [attempts, lost, refusal]: [number, unknown, ProxyError | undefined] = [0, undefined, undefined];
  for (let agent; (agent = agents.pick(request.agentId, excluded, isAvoided)) !== undefined;) {
    excluded.add(agent);
    failures.started(agent, destination);
    try {
      const upstream = await openTunnel(agent, request, Math.max(1, deadline - performance.now()), monitor);
      failures.succeeded(agent, destination);
      return upstream;
    } catch (cause) {
      if (cause instanceof ProxyError && isRetryable(cause)) {
        refusal = cause;
        for (const other of agents.others(agent)) excluded.add(other); // the same process would fail again
        if (agents.pick(request.agentId, excluded) === undefined && attempts === 0) break; // there is no other agent
        failures.failed(agent, destination);
        if (++attempts >= MAX_ATTEMPTS || performance.now() >= deadline) break;
        continue;
      }
      if (!(cause instanceof NetError)) throw cause;
      if (isCancelled(request)) throw cause; // by the client or its credentials; the agent may be fine
      if (cause.code === "abandoned") throw toProxyError(cause); // the client has disconnected; the agent may be fine
      lost = cause;
      // a slow agent may still open the tunnel: a second attempt would reach the destination twice
      if (!["closed", "reset", "cancelled"].includes(cause.code)) {
        if (agents.pick(request.agentId, excluded) !== undefined) failures.failed(agent, destination);
        break;
      }
    }
  }
  if (refusal !== undefined) throw refusal;
  if (lost !== undefined) throw toProxyError(lost);
  if (draining) throw new ProxyError(503, "destination_unavailable", "The proxy is shutting down", [["Retry-After", "1"]]);
  throw new ProxyError(502, "destination_unavailable", "The agent is not connected to this proxy");
}

/** Whether the request itself has ended: its credentials, its time, or its client's connection. */
function isCancelled({ client, clientSignal }: DialRequest): boolean {
  return (client ? client.copy.signal : clientSignal?.())?.aborted ?? false;
}

/** @throws {NetError} as `openTunnel` and `request` of the connection */
async function openTunnel(
  agent: ConnectedAgent,
  { id, destination, client, clientSignal }: DialRequest,
  timeoutMs: number,
  monitor: StalledAgentMonitor,
): Promise<Upstream> {
  const authority = formatAuthority(destination);
  if (agent.identity.allowList?.allows(destination) === false) {
    throw new ProxyError(403, "http_request_denied", `${authority} is not on the allow-list of the agent's credentials`);
  }
  const head = encodeHead(`CONNECT ${authority} HTTP/1.1`, [
    ["Host", authority],
    ["Proxy-Connection", "keep-alive"],
    ["X-Request-Id", id],
  ]);
  const pending = monitor.track(agent);
  const release = () => void agent.tunnels--;
  agent.tunnels++;
  agent.lastRequestAt = performance.now();
  let opened = false;
  try {
    const response = client
      ? await agent.connection.openTunnel(client.stream, head, { timeoutMs, established: CONNECTION_ESTABLISHED_HEAD }, client.copy)
      : await agent.connection.request(head, { timeoutMs, signal: clientSignal?.() });
    if ("ended" in response) {
      opened = true;
      return { ended: response.ended, release };
    }
    const refusal = readResponse(response.head);
    if (refusal) {
      response.stream.close();
      throw refusal;
    }
    opened = true;
    return { stream: response.stream, release };
  } finally {
    pending.count--;
    if (!opened) release();
  }
}

/** Whether nothing has reached the destination. */
function isRetryable({ status, error }: ProxyError): boolean {
  return status >= 502 && status <= 504 && RETRYABLE_ERRORS.includes(error);
}

function toProxyError(cause: unknown): unknown {
  if (!(cause instanceof NetError)) return cause;
  if (cause.code === "abandoned") return clientDisconnected(cause);
  if (cause.code === "timed-out") return new ProxyError(504, "http_response_timeout", "The agent did not respond in time", [], { cause });
  return new ProxyError(502, "connection_terminated", "The connection to the agent was lost", [], { cause });
}

/** Maps the agent's error response, `undefined` for success. Status and cause are forwarded. */
function readResponse(head: string): ProxyError | undefined {
  let response;
  try {
    response = parseResponseHead(head);
  } catch (cause) {
    if (!(cause instanceof HeadError)) throw cause;
    return new ProxyError(502, "http_response_incomplete", "The agent's response is malformed", [], { cause });
  }
  if (response.status >= 200 && response.status < 300) return undefined;
  const received = parseProxyStatus(response.fields);
  const refuse = (status: number, error: ProxyErrorType, message: string, fields: Fields = []) =>
    new ProxyError(status, received.error ?? error, received.details ?? message, fields, { received });
  switch (response.status) {
    case 403:
      return refuse(403, "http_request_denied", "The agent does not allow this destination");
    case 504:
      return refuse(504, "connection_timeout", "The agent's connection to the destination timed out");
    case 503: {
      const [seconds = ""] = values(response.fields, "retry-after");
      const fields = [["Retry-After", /^[0-9]{1,9}$/.test(seconds) ? seconds : "1"]] as const;
      return refuse(503, "destination_unavailable", "The agent cannot reach the destination now", fields);
    }
    case 400:
    case 502:
      return refuse(response.status, "destination_unavailable", "The agent cannot reach the destination");
    default:
      return refuse(502, "destination_unavailable", `The agent responded with status ${response.status}`);
  }
}
