// An agent that another worker holds, as it is told over a link, and its connection, which passes requests to that worker.
import { Buffer } from "node:buffer";
import type { Hello } from "../../shared/link/message.ts";
import { NetError } from "../../shared/net/errors.ts";
import type { Incoming } from "../../shared/net/listener.ts";
import type { Spliced, SpliceOptions } from "../../shared/net/relay.ts";
import type { AgentResponse, AgentSession, RequestOptions, SessionClosed, SessionKind, SessionStats } from "../../shared/net/session.ts";
import type { Duplex } from "../../shared/net/stream.ts";
import { permittedRequests } from "../agents/published_forwards.ts";
import type { ConnectedAgent } from "../agents/registry.ts";

/** What workers tell each other about the agents that they hold. */
export type AgentMessage =
  | { readonly added: AgentDescription }
  | { readonly changed: string; readonly isDraining: boolean; readonly hasMigrated: boolean }
  | { readonly removed: string };

interface AgentDescription extends Pick<ConnectedAgent, "id" | "hello" | "isDraining" | "hasMigrated"> {
  readonly agentId: string;
  readonly remote: string;
  readonly transport: SessionKind;
  /** In milliseconds since 1970. */
  readonly since: number;
}

/** An agent for other workers. */
export function describeAgent(agent: ConnectedAgent): AgentDescription {
  const { id, identity: { agentId }, connection: { remote, transport }, since, isDraining, hasMigrated } = agent;
  const hello: Hello | undefined = agent.hello && { ...agent.hello, publish: permittedRequests(agent) };
  return { id, agentId, remote, transport, since: since.getTime(), hello, isDraining, hasMigrated };
}

/** @param link the session with the worker that holds the agent */
export function remoteAgent(
  { id, agentId, remote, transport, since, hello, isDraining, hasMigrated }: AgentDescription,
  link: AgentSession,
): ConnectedAgent {
  return {
    id,
    connection: new RemoteSession(id, { remote, transport }, link),
    via: { address: remote, connection: id, link: transport },
    // its worker applies its allow-list, and has told only what it may publish
    identity: { agentId, publish: { allows: () => true } },
    credentials: new Uint8Array(0),
    since: new Date(since),
    hello,
    tunnels: 0,
    lastRequestAt: 0,
    isDraining,
    hasMigrated,
    isRemote: true,
  };
}

/** A request to an agent, as the worker gets it that holds the agent. */
export interface AgentRequest {
  /** The id of the agent's connection. */
  readonly connection: string;
  readonly timeoutMs: number;
  /** As {@link RequestOptions.datagrams}. */
  readonly datagrams: boolean;
  /** The head for the agent. */
  readonly head: Uint8Array;
}

const CR = 13;

/** Names the agent's connection in a field behind the first line of a request. */
export function encodeAgentRequest({ connection, timeoutMs, datagrams, head }: AgentRequest): Uint8Array {
  const at = head.indexOf(CR) + 2;
  const field = Buffer.from(`Worker-Agent: ${connection} ${Math.ceil(timeoutMs)} ${Number(datagrams)}\r\n`, "latin1");
  return Buffer.concat([head.subarray(0, at), field, head.subarray(at)]);
}

/** `undefined` for another request. */
export function parseAgentRequest(text: string): AgentRequest | undefined {
  const [field, connection, timeoutMs, datagrams] = /(?<=\r\n)Worker-Agent: (\S+) ([0-9]+) ([01])\r\n/.exec(text) ?? [];
  if (field === undefined || connection === undefined) return undefined;
  const head = Buffer.from(text.replace(field, ""), "latin1");
  return { connection, timeoutMs: Number(timeoutMs), datagrams: datagrams === "1", head };
}

const NO_STATS: SessionStats = { rttMs: 0, sentBytes: 0, receivedBytes: 0, sentPackets: 0, lostPackets: 0 };

/** The connection of an agent that another worker holds: only requests can be sent on it, and the other worker decides when it ends. */
class RemoteSession implements AgentSession {
  readonly transport: SessionKind;
  readonly remote: string;
  readonly alpn = "";
  readonly closed: Promise<SessionClosed>;

  constructor(
    private readonly id: string,
    { remote, transport }: Pick<AgentSession, "remote" | "transport">,
    private readonly link: AgentSession,
  ) {
    this.remote = remote;
    this.transport = transport;
    this.closed = link.closed;
  }

  async request(head: Uint8Array, options: RequestOptions): Promise<AgentResponse> {
    return await this.link.request(this.#encode(head, options), { ...options, datagrams: false });
  }

  async openTunnel(
    a: Duplex,
    head: Uint8Array,
    options: RequestOptions & { established: Uint8Array },
    splice?: SpliceOptions,
  ): Promise<AgentResponse | Spliced> {
    return await this.link.openTunnel(a, this.#encode(head, options), { ...options, datagrams: false }, splice);
  }

  #encode(head: Uint8Array, { timeoutMs, datagrams = false }: RequestOptions): Uint8Array {
    return encodeAgentRequest({ connection: this.id, timeoutMs, datagrams, head });
  }

  openStream(): Promise<Duplex> {
    return Promise.reject(new NetError("closed", "Another worker has the connection"));
  }

  acceptStream(): Promise<Duplex | null> {
    return Promise.resolve(null);
  }

  acceptRequests(): Promise<Incoming[] | null> {
    return Promise.resolve(null);
  }

  probe(): Promise<boolean> {
    return Promise.resolve(false);
  }

  ping(): void {}

  cancelRequests(): void {}

  close(): void {}

  setConnectionWindow(): void {}

  peerCredit(): undefined {
    return undefined;
  }

  stats(): SessionStats {
    return NO_STATS;
  }
}
