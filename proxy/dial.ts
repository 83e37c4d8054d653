// From a client's request to a stream of its agent: which connection is asked, how long, and what its answer means.
import { clientDisconnected } from "../shared/frontend/http_forward.ts";
import type { DialRequest, Upstream } from "../shared/frontend/dialer.ts";
import { encodeHead, type Fields, formatAuthority, HeadError, parseResponseHead, values } from "../shared/http/head.ts";
import { parseProxyStatus, type ProxyErrorType } from "../shared/http/proxy_status.ts";
import { CONNECTION_ESTABLISHED_HEAD, ProxyError } from "../shared/http/status.ts";
import { NetError } from "../shared/net/errors.ts";
import { type AgentRegistry, type ConnectedAgent, UNRESPONSIVE_AFTER_MS } from "./agents/registry.ts";
import type { DestinationFailures } from "./agents/failures.ts";

/** Agents that do not answer are asked whether they are there once in so many milliseconds. */
const PROBE_INTERVAL_MS = 500;

/** Agents that one request is tried at, where they say that they cannot reach the destination. */
const MAX_ATTEMPTS = 5;
/** What an agent says of a destination that nothing has reached: another agent with the same id may reach it. */
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
  /** Longest wait in milliseconds for all agents that are asked. */
  readonly timeoutMs: number;
}

/**
 * Asks the agent for a tunnel, by one connection after the other as long as they turn out to be dead. Where several agents have the id, the
 * next one is asked when one cannot reach the destination, and first for some time after that.
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
        if (agents.pick(request.agentId, excluded) === undefined && attempts === 0) break; // it is the only one
        failures.failed(agent, destination);
        if (++attempts >= MAX_ATTEMPTS || performance.now() >= deadline) break;
        continue;
      }
      if (!(cause instanceof NetError)) throw cause;
      if (cause.code === "abandoned") throw toRefusal(cause); // the client is gone, and that says nothing about the agent
      lost = cause;
      // one that is alive and slow may be doing what it was asked for
      if (!["closed", "reset", "cancelled"].includes(cause.code)) {
        if (agents.pick(request.agentId, excluded) !== undefined) failures.failed(agent, destination);
        break;
      }
    }
  }
  if (refusal !== undefined) throw refusal;
  if (lost !== undefined) throw toRefusal(lost);
  if (draining) throw new ProxyError(503, "destination_unavailable", "The proxy is shutting down", [["Retry-After", "1"]]);
  throw new ProxyError(502, "destination_unavailable", "The agent is not connected to this proxy");
}

/** A connection of an agent that was asked for tunnels. */
interface PendingRequests {
  /** Requests that it has not answered. */
  count: number;
}

/**
 * Gives up connections whose agent takes long to answer and does not even answer a ping, for its network may be gone without a word, where
 * there is another one by now, as one that has come back meanwhile. One timer for all of them, which runs as long as somebody waits, or until
 * it is closed.
 */
export class StalledAgentMonitor {
  readonly #agents: AgentRegistry;
  readonly #pending = new Map<ConnectedAgent, PendingRequests>();
  #timer?: ReturnType<typeof setInterval>;

  constructor(agents: AgentRegistry) {
    this.#agents = agents;
  }

  /** Somebody waits for its answer, until `count` is less by one again. */
  track(agent: ConnectedAgent): PendingRequests {
    let pending = this.#pending.get(agent);
    if (!pending) {
      pending = { count: 0 };
      this.#pending.set(agent, pending);
      this.#timer ??= setInterval(() => this.#probe(), PROBE_INTERVAL_MS);
    }
    pending.count++;
    return pending;
  }

  #probe(): void {
    for (const [agent, { count }] of this.#pending) {
      if (count === 0) {
        this.#pending.delete(agent);
        continue;
      }
      const { connection, control, identity: { agentId } } = agent;
      if (!control || this.#agents.pick(agentId, new Set([agent])) === undefined) continue;
      if (control.silentMs >= UNRESPONSIVE_AFTER_MS) {
        this.#pending.delete(agent);
        connection.cancelRequests();
      } else control.probe();
    }
    if (this.#pending.size === 0) this.close();
  }

  close(): void {
    clearInterval(this.#timer);
    this.#timer = undefined;
  }
}

/** @throws {NetError} as `exchange` of a connection */
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

/** Nothing has reached the destination. */
function isRetryable({ status, error }: ProxyError): boolean {
  return status >= 502 && status <= 504 && RETRYABLE_ERRORS.includes(error);
}

function toRefusal(cause: unknown): unknown {
  if (!(cause instanceof NetError)) return cause;
  if (cause.code === "abandoned") return clientDisconnected(cause);
  if (cause.code === "timed-out") return new ProxyError(504, "http_response_timeout", "The agent did not answer in time", [], { cause });
  return new ProxyError(502, "connection_terminated", "The connection to the agent was lost", [], { cause });
}

/** The agent's own refusal is passed on: status and cause. */
function readResponse(head: string): ProxyError | undefined {
  let response;
  try {
    response = parseResponseHead(head);
  } catch (cause) {
    if (!(cause instanceof HeadError)) throw cause;
    return new ProxyError(502, "http_response_incomplete", "The agent's answer is malformed", [], { cause });
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
      return refuse(502, "destination_unavailable", `The agent answered with status ${response.status}`);
  }
}
