// The admin server for operators: liveness, readiness, metrics, and agents, on an address of its own.
import { HeadError, parseRequestHead } from "../http/head.ts";
import type { Metrics } from "./metrics.ts";
import type { Net, SessionKind, SessionStats, TcpListener } from "../net/types.ts";
import { type Response, startResponder } from "./responder.ts";

/** Readiness, and the reasons against it. Ready at first. */
export class Health {
  readonly #problems = new Map<string, string>();

  /** `cause` is one of a few fixed words, `reason` describes it for people. */
  setUnready(cause: string, reason: string = cause): void {
    this.#problems.set(cause, reason);
  }

  /** Clears one cause. */
  setReady(cause: string): void {
    this.#problems.delete(cause);
  }

  /** Reasons by cause; empty when ready. */
  get problems(): ReadonlyMap<string, string> {
    return this.#problems;
  }
}

/** One connection of an agent, or one of an agent's own to a proxy. */
export interface AgentReport {
  readonly id: string;
  /** The peer's address. */
  readonly address: string;
  /** What carries the connection; lb does not know. */
  readonly link?: SessionKind;
  /** Why the agent chose it, if it was not the first choice; only the agent knows. */
  readonly linkReason?: string;
  /** Address of the outbound proxy between the agent and its proxy, if any; only the agent knows. */
  readonly via?: string;
  /** The peer's version, if it sent one. */
  readonly version?: string;
  /** The agent's host name and labels, if it sent them. */
  readonly host?: string;
  readonly labels?: Readonly<Record<string, string>>;
  /** When the connection was authenticated; ISO 8601. */
  readonly since?: string;
  /** Tunnels open. */
  readonly tunnels?: number;
  /** Bytes in UDP payloads, or on the TCP connection. */
  readonly sentBytes?: number;
  readonly receivedBytes?: number;
  /** Round-trip time in milliseconds. */
  readonly rttMs?: number;
}

/** The part of a report about a session. */
export function reportOf(
  since: Date,
  tunnels: number,
  { sentBytes, receivedBytes, rttMs }: SessionStats,
): Omit<AgentReport, "id" | "address"> {
  return { since: since.toISOString(), tunnels, sentBytes, receivedBytes, rttMs: Math.round(rttMs * 1_000) / 1_000 };
}

export interface AdminServerOptions {
  listener: TcpListener;
  health: Health;
  metrics: Metrics;
  agents: () => Iterable<AgentReport>;
}

/** Serves requests until it is closed. */
export interface AdminServer {
  /** The address bound. */
  readonly address: string;
  close(): Promise<void>;
}

/**
 * Listens on `address`, `host:port`. Without a host it listens on loopback only. Returns `undefined` without an address.
 * @throws {NetError} as `listenTcp` of the network
 */
export async function listenAdmin(net: Net, address: string | undefined): Promise<TcpListener | undefined> {
  if (!address) return undefined;
  // reachable from other hosts only on request: 0.0.0.0:9090
  return await net.listenTcp({ address: address.replace(/^:/, "127.0.0.1:"), maxPendingHeads: 64 });
}

export function startAdminServer(options: AdminServerOptions): AdminServer {
  const { listener } = options;
  const respondTo = (head: string | undefined) => respond(options, head).catch(() => json(500, { error: "internal error" }));
  return { address: listener.address, ...startResponder(listener, respondTo) };
}

async function respond({ health, metrics, agents }: AdminServerOptions, head: string | undefined): Promise<Response> {
  let request;
  try {
    request = parseRequestHead(head ?? "");
  } catch (error) {
    return json(error instanceof HeadError ? error.status : 400, { error: "the request head is malformed" });
  }
  if (request.method !== "GET" && request.method !== "HEAD") return json(405, { error: "only GET and HEAD are served" });
  const [path, query] = request.target.split("?", 2);
  switch (path) {
    case "/healthz":
      return json(200, { status: "ok" });
    case "/readyz":
      return readiness(health, new URLSearchParams(query).getAll("exclude"));
    case "/metrics":
      return { status: 200, type: "text/plain; version=0.0.4; charset=utf-8", body: await metrics.registry.metrics() };
    case "/agents":
      return json(200, [...agents()]);
    default:
      return json(404, { error: "there are /healthz, /readyz, /metrics and /agents" });
  }
}

/** `?exclude=store` ignores a cause, as in Kubernetes' own servers: a shared store that fails would take all instances out at once. */
function readiness({ problems }: Health, excluded: readonly string[]): Response {
  const left = [...problems].filter(([cause]) => !excluded.includes(cause));
  return json(left.length === 0 ? 200 : 503, { ready: left.length === 0, problems: Object.fromEntries(problems) });
}

function json(status: number, value: unknown): Response {
  return { status, type: "application/json", body: `${JSON.stringify(value)}\n` };
}
