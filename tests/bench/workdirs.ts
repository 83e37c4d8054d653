// Puts together what a scenario loads: a proxy and an agent, with lb or a long way between them where it wants that, or one of the limits
// they are compared with. It measures nothing.
import { Buffer } from "node:buffer";
import { connect } from "node:net";
import { makeAuthority } from "../../testing/certificates.ts";
import { freePort } from "../../testing/store_servers.ts";
import type { Held, Launcher, LoadResult, Program } from "./processes.ts";

const AGENT_ID = "bench";
const NEIGHBOUR_ID = "neighbour";
/** What has it gets a processor where nobody else wants one, nearly. */
const LEAST_PRIORITY = ["nice", "-n", "19"];

/** What is measured. */
export type Subject =
  | {
    readonly kind: "pair";
    readonly name: string;
    /** The commands, without options. */
    readonly proxy: string;
    readonly agent: string;
    readonly lb?: string;
  }
  | { readonly kind: LimitKind; readonly name: string };

/**
 * What nothing that is built of the same parts can exceed: `tcp` is the origin without anything between, `hops` what leads from TCP over
 * quinn to TCP and does nothing else, `bare` sender and receiver on quinn itself.
 */
export type LimitKind = "tcp" | "hops" | "bare";

/** What is between proxy and agent, and before them. */
export interface Surroundings {
  /** Clients reach the proxy through lb and a store. */
  readonly lb?: boolean;
  /** Each datagram takes so long, each way, and a share of them is lost. */
  readonly link?: { readonly delayMs: number; readonly loss: number };
  /** A second agent of the same proxy. */
  readonly neighbour?: {
    /** Of the proxy. None but this program knows them. */
    readonly proxyOptions?: readonly string[];
    /** Its clients, agent and origin take only what processors others leave, as if they had machines of their own. */
    readonly yields?: boolean;
  };
}

/** The processes that are between client and origin; of the limit's hops, the two ends. */
export interface Pair {
  readonly proxy: Program;
  readonly agent: Program;
  readonly lb?: Program;
  /** From the start of the proxy's process until it takes connections. */
  readonly listeningMs?: number;
  /** From the start of the agent's process until a tunnel can be opened. */
  readonly connectedMs?: number;
}

type Load = (mode: string, ...options: (string | number)[]) => Promise<LoadResult>;

/** What a scenario works on. */
export interface Place {
  /** Missing where there is nothing between. */
  readonly pair?: Pair;
  readonly load: Load;
  /** The same through the neighbour, where there is one. */
  readonly loadNeighbour?: Load;
  readonly hold: (tunnels: number) => Promise<Held>;
  /** Agents that do nothing. */
  readonly flock: (agents: number) => Promise<Held>;
  /** What went wrong with the programs. */
  readonly stop: () => Promise<string[]>;
}

type Files = Record<"ca" | "cert" | "key", string>;

/** Makes places, one at a time. */
export class Places {
  private constructor(readonly launcher: Launcher, readonly origin: string, readonly files: Files) {}

  static async open(launcher: Launcher): Promise<Places> {
    const authority = await makeAuthority("Bench CA");
    const { cert, key } = await authority.issue({ names: ["localhost", "127.0.0.1"] });
    const files = { ca: authority.cert, cert, key };
    const paths = Object.fromEntries(Object.entries(files).map(([name, text]) => [name, launcher.write(`${name}.pem`, text)])) as Files;
    const { listening } = await launcher.keep(["origin"]);
    return new Places(launcher, String(listening), paths);
  }

  /** Everything in it is fresh: what one load left behind does not weigh on the next. */
  async make(subject: Subject, surroundings: Surroundings = {}): Promise<Place> {
    switch (subject.kind) {
      case "pair":
        return await this.#makePair(subject, surroundings);
      case "tcp":
        return this.#place(["--target", this.origin], []);
      case "hops":
        return await this.#makeHops(surroundings);
      case "bare": {
        const { program, said } = await this.launcher.serve("bare", ["bare", "--cert", this.files.cert, "--key", this.files.key]);
        return this.#place(["--quic", String(said.listening), "--ca", this.files.ca], [program]);
      }
    }
  }

  #place(
    way: readonly string[],
    programs: readonly Program[],
    more: { pair?: Pair; agents?: string; link?: Held; loadNeighbour?: Load } = {},
  ): Place {
    const { launcher } = this;
    return {
      pair: more.pair,
      load: this.#loadBy(way),
      loadNeighbour: more.loadNeighbour,
      hold: (tunnels) => launcher.hold(["idle", ...way, "--tunnels", String(tunnels)]),
      flock: (agents) => launcher.hold(["flock", "--quic", more.agents!, "--ca", this.files.ca, "--agents", String(agents)]),
      stop: async () => {
        const problems = [];
        for (const program of programs) problems.push(await program.stop());
        await more.link?.close();
        return problems.filter((problem) => problem !== undefined);
      },
    };
  }

  #loadBy(way: readonly string[], priority: readonly string[] = []): Load {
    return (mode, ...options) => this.launcher.load([mode, ...way, ...options.map(String)], priority);
  }

  async #makeHops({ link }: Surroundings): Promise<Place> {
    const { launcher, files } = this;
    const proxy = await launcher.serve("ingress", ["ingress", "--cert", files.cert, "--key", files.key]);
    const way = await this.#linkTo(String(proxy.said.agents), link);
    const agent = await launcher.serve("egress", ["egress", "--quic", way.address, "--ca", files.ca, "--target", this.origin]);
    const pair = { proxy: proxy.program, agent: agent.program };
    return this.#place(["--target", String(proxy.said.clients)], [agent.program, proxy.program], { pair, link: way.held });
  }

  async #linkTo(address: string, link: Surroundings["link"]): Promise<{ address: string; held?: Held }> {
    if (link === undefined) return { address };
    const held = await this.launcher.hold(["link", "--to", address, "--delay-ms", String(link.delayMs), "--loss", String(link.loss)]);
    return { address: String(held.opened.listening), held };
  }

  async #makePair(subject: Subject & { kind: "pair" }, surroundings: Surroundings): Promise<Place> {
    const { launcher, files, origin } = this;
    const { neighbour } = surroundings;
    const [agents, clients, lbClients, store] = await freeAddresses(4) as [string, string, string, string];
    const front = surroundings.lb ? await this.#startStore(store, clients, lbClients) : undefined;
    const proxyStarted = performance.now();
    const proxy = launcher.start("proxy", subject.proxy, [
      `--agent-server.listen-address=${agents}`,
      `--http-proxy.listen-address=${clients}`,
      `--agent-server.tls.file.cert=${files.cert}`,
      `--agent-server.tls.file.key=${files.key}`,
      ...(front?.proxyOptions ?? []),
      ...(neighbour?.proxyOptions ?? []),
    ]);
    await proxy.until(2, () => takesConnections(clients));
    const listeningMs = performance.now() - proxyStarted;
    const lb = front && launcher.start("lb", subject.lb!, front.lbOptions);
    await lb?.until(5, () => takesConnections(front!.clients));
    const way = await this.#linkTo(agents, surroundings.link);
    const agentStarted = performance.now();
    const entrance = front?.clients ?? clients;
    const startAgent = async (id: string, priority: readonly string[] = []) => {
      // in the environment, where an agent that does not know the option ignores it
      const tolerant = surroundings.link ? ["env", "REVERSE_HTTP_AGENT_CLIENT_CONGESTION_CONTROL=cubic-loss-tolerant"] : [];
      const agent = launcher.start("agent", [...priority, ...tolerant, subject.agent].join(" "), [
        `--agent-client.server-address=${way.address}`,
        `--agent-client.tls.file.root-ca=${files.ca}`,
        `--auth.noauth.agent-id=${id}`,
      ]);
      await agent.until(5, () => opensTunnels(entrance, origin, id));
      return agent;
    };
    const agent = await startAgent(AGENT_ID);
    const connectedMs = performance.now() - agentStarted;
    const programs = [lb, agent, proxy, front?.store].filter((program) => program !== undefined);
    const wayOf = (id: string, target: string) => ["--target", target, "--proxy", entrance, "--user", `${id}:x`];
    const more = { pair: { proxy, agent, lb, listeningMs, connectedMs }, agents, link: way.held };
    if (neighbour === undefined) return this.#place(wayOf(AGENT_ID, origin), programs, more);
    const priority = neighbour.yields ? LEAST_PRIORITY : [];
    const other = await startAgent(NEIGHBOUR_ID, priority);
    const { listening } = await launcher.keep(["origin"], priority);
    const loadNeighbour = this.#loadBy(wayOf(NEIGHBOUR_ID, String(listening)), priority);
    return this.#place(wayOf(AGENT_ID, origin), [other, ...programs], { ...more, loadNeighbour });
  }

  /** A store, and what proxy and lb are told of it. */
  async #startStore(address: string, proxyClients: string, clients: string) {
    const [host, port] = address.split(":") as [string, string];
    const store = this.launcher.start("memcached", "memcached", ["-u", "nobody", "-l", host, "-p", port, "-U", "0"]);
    await store.until(5, () => takesConnections(address));
    const options = ["--store.type=memcached", `--store.memcached.address=${address}`];
    return {
      store,
      clients,
      proxyOptions: [...options, `--store.http-proxy-address=${proxyClients}`],
      lbOptions: [...options, `--http-proxy.listen-address=${clients}`],
    };
  }
}

/** That nobody has just now, all different. */
async function freeAddresses(count: number): Promise<string[]> {
  const ports = new Set<number>();
  while (ports.size < count) ports.add(await freePort());
  return [...ports].map((port) => `127.0.0.1:${port}`);
}

function takesConnections(address: string): Promise<boolean> {
  return converse(address, undefined);
}

/** Whether the proxy answers a CONNECT with 200: then the agent is there. */
function opensTunnels(proxy: string, target: string, id: string): Promise<boolean> {
  const credentials = Buffer.from(`${id}:x`).toString("base64");
  return converse(proxy, `CONNECT ${target} HTTP/1.1\r\nHost: ${target}\r\nProxy-Authorization: Basic ${credentials}\r\n\r\n`);
}

/** Whether `address` takes a connection, and answers `request` with 200 where there is one. */
function converse(address: string, request: string | undefined): Promise<boolean> {
  const [host, port] = address.split(":");
  return new Promise((resolve) => {
    const socket = connect(Number(port), host, () => {
      if (request === undefined) settle(true);
      else socket.write(request);
    });
    const settle = (result: boolean) => {
      socket.end();
      resolve(result);
    };
    socket.once("data", (data) => settle(data.toString("latin1").startsWith("HTTP/1.1 200")));
    socket.once("end", () => settle(false));
    socket.once("error", () => settle(false));
  });
}
