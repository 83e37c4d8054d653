// The workers of a proxy: each tells the others which agents it holds, and passes tunnels of the others' clients on to them. Everything else
// is done by the worker that has the client: authentication, limits, logs.
import { parseAuthority } from "../../shared/address/authority.ts";
import { withTimeout } from "../../shared/async/with_timeout.ts";
import { parseUdpRequest, UDP_ESTABLISHED_HEAD } from "../../shared/http/connect_udp.ts";
import { parseRequestHead } from "../../shared/http/head.ts";
import { CONNECTION_ESTABLISHED_HEAD, encodeErrorResponse } from "../../shared/http/status.ts";
import { messageOf } from "../../shared/log/error_message.ts";
import type { Logger } from "../../shared/log/logger.ts";
import type { Incoming } from "../../shared/net/listener.ts";
import type { Net } from "../../shared/net/net.ts";
import type { SharedRate } from "../../shared/limits/bandwidth.ts";
import { type LimitNews, SharedLimits } from "../../shared/limits/shared_limits.ts";
import type { Worker } from "../../shared/service/worker.ts";
import type { TunnelError } from "../../shared/tunnel/errors.ts";
import type { ConnectedAgent } from "../agents/registry.ts";
import type { AgentAnnouncer, AgentServer } from "../agents/server.ts";
import type { StalledAgentMonitor } from "../agents/stalled_agents.ts";
import { countRequest, deniedByAgentCredentials } from "../dial.ts";
import { type WorkerLink, WorkerLinks } from "./links.ts";
import { type AgentMessage, type AgentRequest, describeAgent, parseAgentRequest, remoteAgent } from "./remote_agent.ts";

/** What links of workers are used with. */
export interface WorkerUse {
  readonly server: Pick<AgentServer, "addRemote" | "removeRemote">;
  readonly monitor: Pick<StalledAgentMonitor, "track">;
  /** The bandwidth that all tunnels through an agent share. */
  readonly rateOfAgent: (agentId: string) => SharedRate | undefined;
  /** Serves requests of other workers on behalf of operators. Must not throw. */
  readonly serveOperators: (incoming: Incoming) => void;
}

/** What workers tell each other. */
type WorkerMessage = AgentMessage | { readonly limits: LimitNews };
type Link = WorkerLink<WorkerMessage>;

/** This worker among those of a proxy, until it is closed. */
export class ProxyWorkers implements AgentAnnouncer {
  readonly links: WorkerLinks<WorkerMessage>;
  /** What the others count. */
  readonly limits: SharedLimits;
  readonly #log: Logger;
  /** The agents that this worker holds, by connection. */
  readonly #held = new Map<string, ConnectedAgent>();
  /** Those that others hold, by link and connection. */
  readonly #remote = new Map<Link, Map<string, ConnectedAgent>>();
  /** Tunnels of other workers. */
  readonly #tunnels = new Set<Promise<void>>();
  readonly #started = Promise.withResolvers<void>();
  /** Listeners that are opened from now on are the first ones at their addresses, or not. */
  readonly #shareAddresses: (isFirst: boolean) => void;
  #hasStarted = false;

  private constructor({ count, secret, directory, generation, isFirst }: Worker, net: Net, links: WorkerLinks<WorkerMessage>, log: Logger) {
    this.links = links;
    this.#shareAddresses = (isFirst) => net.shareAddresses?.({ directory, generation, isFirst });
    this.#shareAddresses(isFirst);
    this.limits = new SharedLimits(count, secret, (limits) => links.broadcast({ limits }));
    this.#log = log;
  }

  /**
   * Listens for other workers. Listeners that are opened from now on share their addresses with those of the others.
   * @throws {NetError}
   */
  static async open(worker: Worker, net: Net, log: Logger): Promise<ProxyWorkers> {
    const links = await WorkerLinks.open<WorkerMessage>(worker, net, log);
    return new ProxyWorkers(worker, net, links, log);
  }

  /** Joins the others. Resolves when the agents that they hold are known. */
  async start({ server, monitor, rateOfAgent, serveOperators }: WorkerUse): Promise<void> {
    await this.links.start({
      snapshot: () => [
        ...Array.from(this.#held.values(), (agent) => ({ added: describeAgent(agent) })),
        ...this.limits.snapshot.map((limits) => ({ limits })),
      ],
      told: (link, message) => {
        if ("limits" in message) this.limits.told(link, message.limits);
        else this.#told(link, message, server);
      },
      requested: (_link, incoming) => {
        const request = incoming.error === undefined ? parseAgentRequest(incoming.head ?? "") : undefined;
        if (request === undefined) return serveOperators(incoming);
        const tunnel = this.#relay(incoming, request, { monitor, rateOfAgent });
        this.#tunnels.add(tunnel);
        void tunnel.then(() => this.#tunnels.delete(tunnel)); // never rejects
      },
      closed: (link) => {
        for (const agent of this.#remote.get(link)?.values() ?? []) server.removeRemote(agent);
        this.#remote.delete(link);
        this.limits.forget(link);
      },
    });
    this.#shareAddresses(false); // others may open listeners of a reload, or of an agent, before this one
    this.#hasStarted = true;
    this.#started.resolve();
  }

  /** Resolves when the agents of the others are known. `undefined` if they are. */
  get whenStarted(): Promise<void> | undefined {
    return this.#hasStarted ? undefined : this.#started.promise;
  }

  added(agent: ConnectedAgent): void {
    this.#held.set(agent.id, agent);
    this.links.broadcast({ added: describeAgent(agent) });
  }

  changed({ id, isDraining, hasMigrated }: ConnectedAgent): void {
    this.links.broadcast({ changed: id, isDraining, hasMigrated });
  }

  removed({ id }: ConnectedAgent): void {
    if (this.#held.delete(id)) this.links.broadcast({ removed: id });
  }

  #told(link: Link, message: AgentMessage, server: WorkerUse["server"]): void {
    const agents = this.#remote.get(link) ?? new Map<string, ConnectedAgent>();
    this.#remote.set(link, agents);
    if ("added" in message) {
      const agent = remoteAgent(message.added, link.session);
      agents.set(agent.id, agent);
      server.addRemote(agent);
    } else if ("changed" in message) {
      const { changed, isDraining, hasMigrated } = message;
      const agent = agents.get(changed);
      if (agent) Object.assign(agent, { isDraining, hasMigrated });
    } else {
      const agent = agents.get(message.removed);
      if (agent && agents.delete(agent.id)) server.removeRemote(agent);
    }
  }

  /** Relays between a client's stream at another worker and an agent. What goes wrong here is a reset there. Never rejects. */
  async #relay({ stream }: Incoming, request: AgentRequest, use: RelayUse): Promise<void> {
    const agent = this.#held.get(request.connection);
    try {
      if (agent === undefined) return stream.reset(1); // it has just gone
      const refusal = refusalOf(agent, request);
      if (refusal) return await stream.write(encodeErrorResponse(refusal, "reverse-http-proxy"));
      await relayTunnel(agent, stream, request, use);
    } catch (error) {
      this.#log.debug("tunnel of another worker failed", { agent: agent?.identity.agentId, reason: messageOf(error) });
      stream.reset(1);
    } finally {
      stream.close();
    }
  }

  /** Resolves when there are no tunnels of other workers, after `timeoutMs` at most. */
  async idle(timeoutMs: number): Promise<void> {
    const deadline = performance.now() + timeoutMs;
    for (let leftMs = timeoutMs; this.#tunnels.size > 0 && leftMs > 0; leftMs = deadline - performance.now()) {
      await withTimeout(leftMs, Promise.all(this.#tunnels));
    }
  }

  async close(): Promise<void> {
    this.limits.close();
    await this.links.close();
  }
}

type RelayUse = Pick<WorkerUse, "monitor" | "rateOfAgent">;

/** The error if the agent's credentials do not allow the destination; `undefined` if they do. */
function refusalOf(agent: ConnectedAgent, { head }: AgentRequest): TunnelError | undefined {
  if (agent.identity.allowList === undefined) return undefined;
  const request = parseRequestHead(new TextDecoder("latin1").decode(head));
  const udp = parseUdpRequest(request);
  return deniedByAgentCredentials(agent, udp ?? parseAuthority(request.target), udp ? "udp" : "tcp");
}

const CONNECT = new TextEncoder().encode("CONNECT ");

/** @throws {NetError} */
async function relayTunnel(
  agent: ConnectedAgent,
  stream: Incoming["stream"],
  { head, timeoutMs, datagrams }: AgentRequest,
  { monitor, rateOfAgent }: RelayUse,
): Promise<void> {
  const established = CONNECT.every((byte, i) => head[i] === byte) ? CONNECTION_ESTABLISHED_HEAD : UDP_ESTABLISHED_HEAD;
  const shared = rateOfAgent(agent.identity.agentId);
  const rates = shared && [shared.rate];
  const { pending, release } = countRequest(agent, monitor);
  try {
    const response = await agent.connection
      .openTunnel(stream, head, { timeoutMs, datagrams, established }, { initialDataToA: established, rates })
      .finally(() => pending.count--);
    if ("ended" in response) return void await response.ended;
    response.stream.close();
    await stream.write(Uint8Array.from(response.head, (char) => char.charCodeAt(0)));
  } finally {
    release();
    shared?.release();
  }
}
