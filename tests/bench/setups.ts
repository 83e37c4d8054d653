// Sets up what a scenario loads: a proxy and an agent, with lb or a long path if the scenario needs them, another tool, or a baseline. It
// measures nothing.
import { Buffer } from "node:buffer";
import { connect } from "node:net";
import { join } from "node:path";
import { makeAuthority } from "../../testing/certificates.ts";
import { freePort } from "../../testing/store_servers.ts";
import type { Network, Side } from "./network.ts";
import type { Held, Launcher, LoadResult, Program } from "./processes.ts";
import { TOOLS, type ToolSubject } from "./tools.ts";

const AGENT_ID = "bench";
const NEIGHBOUR_ID = "neighbour";
/** Such a program runs, nearly, only while no other wants the processor. */
const LEAST_PRIORITY = ["nice", "-n", "19"];

/** Programs with the command line of reverse-http. */
export interface PairSubject {
  readonly kind: "pair";
  readonly name: string;
  /** Commands without options. */
  readonly proxy: readonly string[];
  readonly agent: readonly string[];
  readonly lb: readonly string[];
}

/** What is measured. */
export type Subject = PairSubject | ToolSubject | { readonly kind: LimitKind; readonly name: string };

/**
 * Baselines that no program of the same parts can exceed: `tcp` is the origin without anything between, `hops` two processes that only relay
 * from TCP over quinn to TCP, `bare` sender and receiver on quinn itself.
 */
export type LimitKind = "tcp" | "hops" | "bare";

/** What is between client, proxy and agent. */
export interface Topology {
  /** Clients reach the proxy through lb and a store. */
  readonly lb?: boolean;
  /** Clients send datagrams to a published UDP port. */
  readonly udp?: boolean;
  /** Delay of each datagram, each way, and the share of them that is lost. */
  readonly link?: { readonly delayMs: number; readonly loss: number };
  /** A second agent of the same proxy. */
  readonly neighbour?: {
    /** Of the proxy. Other programs do not know them. */
    readonly proxyOptions?: readonly string[];
    /** Its clients, agent and origin take only the processor time that is left, as if they had machines of their own. */
    readonly yields?: boolean;
  };
}

/** The processes between client and origin. */
export interface Pair {
  /** Or the server of another tool, or the ingress of a baseline. */
  readonly proxy: Program;
  /** Or the client of another tool, or the egress of a baseline. */
  readonly agent: Program;
  readonly lb?: Program;
  /** From the start of the proxy's process until it accepts connections. */
  readonly listeningMs?: number;
  /** From the start of the agent's process until a tunnel can be opened. */
  readonly connectedMs?: number;
}

type Load = (mode: string, ...options: (string | number)[]) => Promise<LoadResult>;

/** What a scenario works on. */
export interface Setup {
  /** Missing if there is nothing between client and origin. */
  readonly pair?: Pair;
  readonly load: Load;
  /** The same through the neighbour, if there is one. */
  readonly loadNeighbour?: Load;
  readonly hold: (tunnels: number) => Promise<Held>;
  /** Idle agents. */
  readonly swarm: (agents: number) => Promise<Held>;
  /** Returns the problems of the programs. */
  readonly stop: () => Promise<string[]>;
}

type Files = Record<"ca" | "cert" | "key", string>;

/** Makes setups, one at a time. */
export class Setups {
  private constructor(
    readonly launcher: Launcher,
    private readonly network: Network,
    private readonly origin: string,
    private readonly files: Files,
  ) {}

  static async open(launcher: Launcher, network: Network): Promise<Setups> {
    const authority = await makeAuthority("Bench CA");
    const { cert, key } = await authority.issue({ names: ["localhost", network.near.host, network.far.host] });
    const files = { ca: authority.cert, cert, key };
    const paths = Object.fromEntries(Object.entries(files).map(([name, text]) => [name, launcher.write(`${name}.pem`, text)])) as Files;
    return new Setups(launcher, network, await startOrigin(launcher, network.far), paths);
  }

  /** Every process is new, so that no run affects the next. */
  async make(subject: Subject, topology: Topology = {}): Promise<Setup> {
    switch (subject.kind) {
      case "pair":
        return await this.#makePair(subject, topology);
      case "tool":
        return await this.#makeTool(subject, topology);
      case "tcp":
        return this.#setup(["--target", this.origin], []);
      case "hops":
        return await this.#makeHops(topology);
      case "bare": {
        const { launcher, network: { far }, files } = this;
        const args = ["bare", "--host", far.host, "--cert", files.cert, "--key", files.key];
        const { program, said } = await launcher.serve("bare", args, far.prefix);
        return this.#setup(["--quic", String(said.listening), "--ca", files.ca], [program]);
      }
    }
  }

  #setup(
    route: readonly string[],
    programs: readonly Program[],
    more: { pair?: Pair; agents?: string; link?: Held; loadNeighbour?: Load } = {},
  ): Setup {
    const { launcher, files, network: { near, far } } = this;
    return {
      pair: more.pair,
      load: this.#loadBy(route),
      loadNeighbour: more.loadNeighbour,
      hold: (tunnels) => launcher.hold(["idle", ...route, "--tunnels", String(tunnels)], near.prefix),
      swarm: (agents) => launcher.hold(["swarm", "--quic", more.agents!, "--ca", files.ca, "--agents", String(agents)], far.prefix),
      stop: async () => {
        const problems = [];
        for (const program of programs) problems.push(await program.stop());
        await more.link?.close();
        return problems.filter((problem) => problem !== undefined);
      },
    };
  }

  #loadBy(route: readonly string[], priority: readonly string[] = []): Load {
    const prefix = [...this.network.near.prefix, ...priority];
    return (mode, ...options) => this.launcher.load([mode, ...route, ...options.map(String)], prefix);
  }

  async #makeHops({ link }: Topology): Promise<Setup> {
    const { launcher, files, network: { near, far } } = this;
    const ingress = ["ingress", "--host", near.host, "--cert", files.cert, "--key", files.key];
    const proxy = await launcher.serve("ingress", ingress, near.prefix);
    const path = await this.#linkTo(String(proxy.said.agents), link);
    const egress = ["egress", "--quic", path.address, "--ca", files.ca, "--target", this.origin];
    const agent = await launcher.serve("egress", egress, far.prefix);
    const pair = { proxy: proxy.program, agent: agent.program };
    return this.#setup(["--target", String(proxy.said.clients)], [agent.program, proxy.program], { pair, link: path.held });
  }

  async #makeTool({ tool, path }: ToolSubject, { udp = false }: Topology): Promise<Setup> {
    const { launcher, origin, network: { near, far } } = this;
    const [server, entrance] = await freeAddresses(near, 2) as [string, string];
    const commands = TOOLS[tool].ends({ path, server, entrance, origin, udp, write: (name, text) => launcher.write(name, text) });
    const proxy = launcher.start(`${tool}-server`, commands.server, { prefix: near.prefix, anyExitCode: true });
    await proxy.until(5, () => acceptsConnections(server));
    const agent = launcher.start(`${tool}-client`, commands.client, { prefix: far.prefix, anyExitCode: true });
    // the load waits for a UDP port
    if (!udp) await agent.until(5, () => acceptsConnections(entrance));
    return this.#setup(["--target", entrance], [agent, proxy], { pair: { proxy, agent } });
  }

  /** Where the agent finds `address`: the relay, if the path must be longer than the network makes it. */
  async #linkTo(address: string, link: Topology["link"]): Promise<{ address: string; held?: Held }> {
    const { launcher, network: { near, relayDelayMs } } = this;
    const { delayMs, loss } = link ?? { delayMs: relayDelayMs, loss: 0 };
    if (delayMs === 0 && loss === 0) return { address };
    const args = ["link", "--host", near.host, "--to", address, "--delay-ms", String(delayMs), "--loss", String(loss)];
    const held = await launcher.hold(args, near.prefix);
    return { address: String(held.opened.listening), held };
  }

  async #makePair(subject: PairSubject, topology: Topology): Promise<Setup> {
    const { launcher, files, origin, network: { near, far } } = this;
    const { neighbour, udp = false } = topology;
    const addresses = await freeAddresses(near, 5) as [string, string, string, string, string];
    const [agents, clients, lbClients, store, published] = addresses;
    const front = topology.lb ? await this.#startStore(store, clients, lbClients) : undefined;
    const proxyStarted = performance.now();
    const proxyOptions = [
      `--agent-server.listen-address=${agents}`,
      `--http-proxy.listen-address=${clients}`,
      `--agent-server.tls.file.cert=${files.cert}`,
      `--agent-server.tls.file.key=${files.key}`,
      ...(front?.proxyOptions ?? []),
      ...(neighbour?.proxyOptions ?? []),
      ...(udp ? ["--forward", `listen=${published},network=udp,agent=${AGENT_ID},to=${origin},allow=all`] : []),
    ];
    const prefix = [...near.prefix, ...exempt(near, far)];
    const proxy = launcher.start("proxy", [...subject.proxy, ...proxyOptions], { prefix });
    await proxy.until(2, () => acceptsConnections(clients));
    const listeningMs = performance.now() - proxyStarted;
    const lb = front && launcher.start("lb", [...subject.lb, ...front.lbOptions], { prefix });
    await lb?.until(5, () => acceptsConnections(front!.clients));
    const path = await this.#linkTo(agents, topology.link);
    const agentStarted = performance.now();
    const entrance = front?.clients ?? clients;
    const startAgent = async (id: string, priority: readonly string[] = []) => {
      // in the environment, where an agent that does not know the option ignores it
      const tolerant = topology.link ? ["env", "REVERSE_HTTP_AGENT_CLIENT_CONGESTION_CONTROL=cubic-loss-tolerant"] : [];
      const agentOptions = [
        `--agent-client.server-address=${path.address}`,
        `--agent-client.tls.file.root-ca=${files.ca}`,
        `--auth.noauth.agent-id=${id}`,
      ];
      const agent = launcher.start("agent", [...subject.agent, ...agentOptions], { prefix: [...far.prefix, ...priority, ...tolerant] });
      await agent.until(5, () => opensTunnels(entrance, origin, id));
      return agent;
    };
    const agent = await startAgent(AGENT_ID);
    const connectedMs = performance.now() - agentStarted;
    const programs = [lb, agent, proxy, front?.store].filter((program) => program !== undefined);
    const routeOf = (id: string, target: string) => ["--target", target, "--proxy", entrance, "--user", `${id}:x`];
    const more = { pair: { proxy, agent, lb, listeningMs, connectedMs }, agents, link: path.held };
    if (udp) return this.#setup(["--target", published], programs, more);
    if (neighbour === undefined) return this.#setup(routeOf(AGENT_ID, origin), programs, more);
    const priority = neighbour.yields ? LEAST_PRIORITY : [];
    const other = await startAgent(NEIGHBOUR_ID, priority);
    const loadNeighbour = this.#loadBy(routeOf(NEIGHBOUR_ID, await startOrigin(launcher, far, priority)), priority);
    return this.#setup(routeOf(AGENT_ID, origin), [other, ...programs], { ...more, loadNeighbour });
  }

  /** A store, and the options by which proxy and lb use it. */
  async #startStore(address: string, proxyClients: string, clients: string) {
    const [host, port] = address.split(":") as [string, string];
    const { launcher, network: { near } } = this;
    const store = launcher.start("memcached", ["memcached", "-u", "nobody", "-l", host, "-p", port, "-U", "0"], near);
    await store.until(5, () => acceptsConnections(address));
    const options = ["--store.type=memcached", `--store.memcached.address=${address}`];
    return {
      store,
      clients,
      proxyOptions: [...options, `--store.http-proxy-address=${proxyClients}`],
      lbOptions: [...options, `--http-proxy.listen-address=${clients}`],
    };
  }
}

/**
 * Limits for each address do not apply to loopback, so that they must not apply to the two addresses of a veth either. In the environment,
 * where a program that does not know the option ignores it.
 */
function exempt(...sides: Side[]): string[] {
  return ["env", `REVERSE_HTTP_LIMITS_EXEMPT_ADDRESSES=${sides.map(({ host }) => host).join(",")}`];
}

/** The commands of the executables in a folder, as `deno task build` writes them. */
export function readBuild(name: string, folder: string, agentOptions: readonly string[]): PairSubject {
  const file = (program: string) => join(folder, `reverse-http-${program}`);
  return { kind: "pair", name, proxy: [file("proxy")], agent: [file("agent"), ...agentOptions], lb: [file("lb")] };
}

async function startOrigin(launcher: Launcher, { host, prefix }: Side, priority: readonly string[] = []): Promise<string> {
  const { listening } = await launcher.keep(["origin", "--listen", `${host}:0`], [...prefix, ...priority]);
  return String(listening);
}

/** Free ports, all different. */
async function freeAddresses({ host }: Side, count: number): Promise<string[]> {
  const ports = new Set<number>();
  while (ports.size < count) ports.add(await freePort());
  return [...ports].map((port) => `${host}:${port}`);
}

function acceptsConnections(address: string): Promise<boolean> {
  return converse(address, undefined);
}

/** Whether the proxy answers a CONNECT with 200: then the agent is connected. */
function opensTunnels(proxy: string, target: string, id: string): Promise<boolean> {
  const credentials = Buffer.from(`${id}:x`).toString("base64");
  return converse(proxy, `CONNECT ${target} HTTP/1.1\r\nHost: ${target}\r\nProxy-Authorization: Basic ${credentials}\r\n\r\n`);
}

/** Whether `address` accepts a connection, and answers `request`, if there is one, with 200. */
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
