// From a client's request to a stream of its agent: which connection is asked, how long, and what its answer means.
import type { DialRequest } from "../shared/front/front.ts";
import { encodeHead, formatAuthority, HeadError, parseResponseHead, values } from "../shared/http/head.ts";
import { parseProxyStatus, Refusal } from "../shared/http/status.ts";
import { NetError } from "../shared/net/errors.ts";
import type { Duplex } from "../shared/net/types.ts";
import { type AgentRegistry, type HeldAgent, SILENT_AFTER_MS } from "./agent_registry.ts";

/** Every so many milliseconds in which an agent does not answer it is asked whether it is there, where another one could answer. */
const PATIENCE_MS = 500;

/** Asks the agent for a tunnel, by one connection after the other as long as they turn out to be dead. */
export async function dialAgent(agents: AgentRegistry, request: DialRequest, timeoutMs: number, draining: boolean): Promise<Duplex> {
  const deadline = performance.now() + timeoutMs;
  const passed = new Set<HeldAgent>();
  let lost: unknown;
  for (let agent; (agent = agents.pick(request.agentId, passed)) !== undefined;) {
    passed.add(agent);
    const hasOther = () => agents.pick(request.agentId, passed) !== undefined;
    try {
      return await openTunnel(agent, request, Math.max(1, deadline - performance.now()), hasOther);
    } catch (cause) {
      if (!(cause instanceof NetError)) throw cause;
      lost = cause;
      // one that is alive and slow may be doing what it was asked for
      if (!["closed", "reset", "cancelled"].includes(cause.code)) break;
    }
  }
  if (lost !== undefined) throw toRefusal(lost);
  if (draining) throw new Refusal(503, "destination_unavailable", "The proxy is shutting down", [["Retry-After", "1"]]);
  throw new Refusal(502, "destination_unavailable", "The agent is not connected to this proxy");
}

/**
 * Aborted where an agent that takes long to answer does not even answer a ping, for its network may be gone without a word, and there is
 * another one by now, as one that has come back meanwhile.
 */
function signalOfDeath({ control }: HeldAgent, hasOther: () => boolean): { signal: AbortSignal; release: () => void } | undefined {
  if (!control) return undefined;
  const death = new AbortController();
  const timer = setInterval(() => {
    if (!hasOther()) return;
    if (control.silentMs >= SILENT_AFTER_MS) death.abort();
    else control.probe();
  }, PATIENCE_MS);
  return { signal: death.signal, release: () => clearInterval(timer) };
}

/** @throws {NetError} as `exchange` of a connection */
async function openTunnel(
  agent: HeldAgent,
  { id, destination, done }: DialRequest,
  timeoutMs: number,
  hasOther: () => boolean,
): Promise<Duplex> {
  const authority = formatAuthority(destination);
  if (agent.identity.allowList?.allows(destination) === false) {
    throw new Refusal(403, "http_request_denied", `${authority} is not on the allow-list of the agent's credentials`);
  }
  const head = encodeHead(`CONNECT ${authority} HTTP/1.1`, [
    ["Host", authority],
    ["Proxy-Connection", "keep-alive"],
    ["X-Request-Id", id],
  ]);
  const death = signalOfDeath(agent, hasOther);
  agent.tunnels++;
  agent.askedAt = performance.now();
  let opened = false;
  try {
    const answer = await agent.connection.exchange(head, { timeoutMs, signal: death?.signal });
    const refusal = readAnswer(answer.head);
    if (refusal) {
      answer.stream.close();
      throw refusal;
    }
    opened = true;
    void done.then(() => agent.tunnels--);
    return answer.stream;
  } finally {
    death?.release();
    if (!opened) agent.tunnels--;
  }
}

function toRefusal(cause: unknown): unknown {
  if (!(cause instanceof NetError)) return cause;
  if (cause.code === "timed-out") return new Refusal(504, "http_response_timeout", "The agent did not answer in time", [], { cause });
  return new Refusal(502, "connection_terminated", "The connection to the agent was lost", [], { cause });
}

/** The agent's own refusal is passed on: status and cause. */
function readAnswer(head: string): Refusal | undefined {
  let response;
  try {
    response = parseResponseHead(head);
  } catch (cause) {
    if (!(cause instanceof HeadError)) throw cause;
    return new Refusal(502, "http_response_incomplete", "The agent's answer is malformed", [], { cause });
  }
  if (response.status >= 200 && response.status < 300) return undefined;
  const { error, details } = parseProxyStatus(response.fields);
  switch (response.status) {
    case 403:
      return new Refusal(403, error ?? "http_request_denied", details ?? "The agent does not allow this destination");
    case 504:
      return new Refusal(504, error ?? "connection_timeout", details ?? "The agent's connection to the destination timed out");
    case 503: {
      const [seconds = ""] = values(response.fields, "retry-after");
      const fields = [["Retry-After", /^[0-9]{1,9}$/.test(seconds) ? seconds : "1"]] as const;
      return new Refusal(503, error ?? "destination_unavailable", details ?? "The agent cannot reach the destination now", fields);
    }
    case 400:
    case 502:
      return new Refusal(response.status, error ?? "destination_unavailable", details ?? "The agent cannot reach the destination");
    default:
      return new Refusal(502, error ?? "destination_unavailable", details ?? `The agent answered with status ${response.status}`);
  }
}
