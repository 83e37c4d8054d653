// Opens a tunnel through an agent: picks the connection, bounds the wait, and maps the agent's response.
import { type Authority, formatAuthority, formatDestination, type Network } from "../shared/address/authority.ts";
import { encodeUdpRequest, isUdpEstablished, UDP_ESTABLISHED_HEAD } from "../shared/http/connect_udp.ts";
import { encodeHead, type Fields, HeadError, parseResponseHead, values } from "../shared/http/head.ts";
import { parseProxyStatus } from "../shared/http/proxy_status.ts";
import { CONNECTION_ESTABLISHED_HEAD, ReceivedResponse } from "../shared/http/status.ts";
import { DATAGRAMS_FEATURE, TRACE_FEATURE, UDP_FEATURE } from "../shared/link/message.ts";
import { NetError } from "../shared/net/errors.ts";
import { printable } from "../shared/net/printable.ts";
import { addressAttributes } from "../shared/tracing/attributes.ts";
import { traceFields } from "../shared/tracing/context.ts";
import { inSpan, type Span } from "../shared/tracing/span.ts";
import { clientDisconnected, TunnelError, type TunnelErrorType } from "../shared/tunnel/errors.ts";
import type { TunnelRequest, Upstream } from "../shared/tunnel/request.ts";
import type { DestinationFailures } from "./agents/destination_failures.ts";
import type { AgentRegistry, ConnectedAgent } from "./agents/registry.ts";
import type { PendingRequests, StalledAgentMonitor } from "./agents/stalled_agents.ts";

/** Maximum number of agents that one request tries when they cannot reach the destination. */
const MAX_ATTEMPTS = 5;
/** Errors before anything has reached the destination: another agent with the same id may reach it. */
const RETRYABLE_ERRORS: readonly TunnelErrorType[] = [
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
  timeoutMs: number;
}

/**
 * Opens a tunnel through the agent. A dead connection is replaced by the agent's next one. If several agents share the id and one cannot
 * reach the destination, the next one is tried, and for some time the failed one is avoided.
 * @throws {TunnelError | NetError}
 */
export async function dialAgent(
  { agents, monitor, failures, timeoutMs }: DialContext,
  request: TunnelRequest,
  draining: boolean,
): Promise<Upstream> {
  const deadline = performance.now() + timeoutMs;
  const destination = formatDestination(request.destination, request.network);
  const excluded = new Set<ConnectedAgent>();
  const isAvoided = (agent: ConnectedAgent) => failures.isAvoided(agent, destination);
  let [attempts, lost, refusal]: [number, unknown, TunnelError | undefined] = [0, undefined, undefined];
  let isTooOld = false;
  for (let agent; (agent = agents.pick(request.agentId, excluded, isAvoided)) !== undefined;) {
    if (!canServe(agent, request)) {
      excluded.add(agent);
      isTooOld = true;
      continue;
    }
    failures.started(agent, destination);
    try {
      const timeoutMs = Math.max(1, deadline - performance.now());
      const span = request.trace?.child("client", "dial agent", () => ({
        "reverse_http.agent.id": request.agentId,
        "reverse_http.agent.connection": agent.id,
        "reverse_http.link": agent.connection.transport,
        ...addressAttributes("network.peer", agent.connection.remote),
      }));
      const upstream = await inSpan(span, () => openTunnel(agent, request, span, destination, timeoutMs, monitor));
      failures.succeeded(agent, destination);
      return upstream;
    } catch (cause) {
      excluded.add(agent);
      if (!isCancelled(request)) recordError(agent, cause);
      if (cause instanceof TunnelError && isRetryable(cause)) {
        refusal = cause;
        for (const other of agents.others(agent)) excluded.add(other); // the same process would fail again
        if (agents.pick(request.agentId, excluded) === undefined && attempts === 0) break; // there is no other agent
        failures.failed(agent, destination);
        if (++attempts >= MAX_ATTEMPTS || performance.now() >= deadline) break;
        continue;
      }
      if (!(cause instanceof NetError)) throw cause;
      if (isCancelled(request)) throw cause; // by the client or its credentials; the agent may be fine
      if (cause.code === "abandoned") throw agentLinkError(cause); // the client has disconnected; the agent may be fine
      lost = cause;
      // a slow agent may still open the tunnel: a second attempt would reach the destination twice
      if (!["closed", "reset", "cancelled"].includes(cause.code)) {
        if (agents.pick(request.agentId, excluded) !== undefined) failures.failed(agent, destination);
        break;
      }
    }
  }
  if (refusal !== undefined) throw refusal;
  if (lost !== undefined) throw agentLinkError(lost);
  if (isTooOld) throw new TunnelError("http_upgrade_failed", "The agent does not relay UDP: its version is too old");
  if (draining) throw new TunnelError("destination_unavailable", "The proxy is shutting down", { retryAfterMs: 1_000 });
  throw new TunnelError("destination_unavailable", "The agent is not connected to this proxy");
}

/** For operators: the last failure of a tunnel through the agent. */
function recordError(agent: ConnectedAgent, cause: unknown): void {
  const error = agentLinkError(cause);
  if (!(error instanceof TunnelError) || (cause instanceof NetError && cause.code === "abandoned")) return;
  agent.lastError = { at: new Date().toISOString(), error: error.type, reason: printable(error.message) };
}

/** An agent that has not announced UDP would take the request for a tunnel, or for an error. */
function canServe({ hello }: ConnectedAgent, { network }: TunnelRequest): boolean {
  return network === "tcp" || hello?.features?.includes(UDP_FEATURE) === true;
}

/** Whether the datagrams of the request may be sent in DATAGRAM frames, which exist over QUIC only. */
function usesDatagrams({ hello, connection }: ConnectedAgent, { network }: TunnelRequest): boolean {
  return network === "udp" && connection.transport === "quic" && hello?.features?.includes(DATAGRAMS_FEATURE) === true;
}

/** Whether the request itself has ended: its credentials, its time, or its client's connection. */
function isCancelled({ relay, clientSignal }: TunnelRequest): boolean {
  return (relay ? relay.splice.signal : clientSignal?.())?.aborted ?? false;
}

/**
 * @param what the destination, as formatted by `formatDestination`
 * @throws {NetError} as `openTunnel` and `request` of the connection
 */
async function openTunnel(
  agent: ConnectedAgent,
  request: TunnelRequest,
  trace: Span | undefined,
  what: string,
  timeoutMs: number,
  monitor: StalledAgentMonitor,
): Promise<Upstream> {
  const { id, network, destination, relay, clientSignal } = request;
  const denied = deniedByAgentCredentials(agent, destination, network);
  if (denied) throw denied;
  // agents of version 1, and older ones, see nothing new
  const context = agent.hello?.features?.includes(TRACE_FEATURE) ? traceFields(trace) : [];
  const datagrams = usesDatagrams(agent, request);
  const fields: Fields = [["Host", formatAuthority(destination)], ["X-Request-Id", id], ...context];
  const [head, established] = network === "udp" ? [encodeUdpRequest(destination, fields, datagrams), UDP_ESTABLISHED_HEAD] : [
    encodeHead(`CONNECT ${what} HTTP/1.1`, [
      ["Host", what],
      ["Proxy-Connection", "keep-alive"],
      ["X-Request-Id", id],
      ...context,
    ]),
    CONNECTION_ESTABLISHED_HEAD,
  ];
  const { pending, release } = countRequest(agent, monitor);
  let opened = false;
  try {
    const response = relay
      ? await agent.connection.openTunnel(relay.stream, head, { timeoutMs, datagrams, established }, relay.splice)
      : await agent.connection.request(head, { timeoutMs, datagrams, signal: clientSignal?.() });
    if ("ended" in response) {
      opened = true;
      return { ended: response.ended, release, via: agent.via };
    }
    const refusal = readResponse(response.head, network);
    if (refusal) {
      response.stream.close();
      throw refusal;
    }
    opened = true;
    return { stream: response.stream, release, via: agent.via };
  } finally {
    pending.count--;
    if (!opened) release();
  }
}

/** The error if the agent's credentials do not allow the destination; `undefined` if they do. */
export function deniedByAgentCredentials(
  { identity: { allowList } }: ConnectedAgent,
  destination: Authority,
  network: Network,
): TunnelError | undefined {
  if (allowList?.allows(destination, network) !== false) return undefined;
  const what = formatDestination(destination, network);
  return new TunnelError("http_request_denied", `${what} is not on the allow-list of the agent's credentials`);
}

/**
 * Counts a request to the agent. The caller decrements `pending.count` when the agent has responded, and calls `release` when the tunnel has
 * ended, or was not opened.
 */
export function countRequest(
  agent: ConnectedAgent,
  monitor: Pick<StalledAgentMonitor, "track">,
): { readonly pending: PendingRequests; readonly release: () => void } {
  const pending = monitor.track(agent);
  agent.tunnels++;
  agent.lastRequestAt = performance.now();
  return { pending, release: () => void agent.tunnels-- };
}

/** Whether nothing has reached the destination, and another agent may reach it. */
function isRetryable({ type, received }: TunnelError): boolean {
  const status = received instanceof ReceivedResponse ? received.status : undefined;
  return RETRYABLE_ERRORS.includes(type) && (status === undefined || status >= 500);
}

function agentLinkError(cause: unknown): unknown {
  if (!(cause instanceof NetError)) return cause;
  if (cause.code === "abandoned") return clientDisconnected(cause);
  if (cause.code === "timed-out") return new TunnelError("http_response_timeout", "The agent did not respond in time", { cause });
  return new TunnelError("connection_terminated", "The connection to the agent was lost", { cause });
}

/** The error in the agent's response, `undefined` for success. Status and cause are forwarded. */
function readResponse(head: string, network: Network): TunnelError | undefined {
  let response;
  try {
    response = parseResponseHead(head);
  } catch (cause) {
    if (!(cause instanceof HeadError)) throw cause;
    return new TunnelError("http_response_incomplete", "The agent's response is malformed", { cause });
  }
  if (network === "udp" ? isUdpEstablished(response) : response.status >= 200 && response.status < 300) return undefined;
  const received = parseProxyStatus(response.fields);
  const refuse = (status: number, type: TunnelErrorType, message: string, retryAfterMs?: number) =>
    new TunnelError(received.error ?? type, received.details ?? message, {
      received: new ReceivedResponse(received, status),
      retryAfterMs,
    });
  switch (response.status) {
    case 403:
      return refuse(403, "http_request_denied", "The agent does not allow this destination");
    case 504:
      return refuse(504, "connection_timeout", "The agent's connection to the destination timed out");
    case 503: {
      const [seconds = ""] = values(response.fields, "retry-after");
      const retryAfterMs = /^[0-9]{1,9}$/.test(seconds) ? Number(seconds) * 1_000 : 1_000;
      return refuse(503, "destination_unavailable", "The agent cannot reach the destination now", retryAfterMs);
    }
    case 400:
    case 502:
      return refuse(response.status, "destination_unavailable", "The agent cannot reach the destination");
    default:
      return refuse(502, "destination_unavailable", `The agent responded with status ${response.status}`);
  }
}
