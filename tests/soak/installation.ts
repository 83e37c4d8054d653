// The installation of a soak: two proxies, a load balancer, two servers of the store, and three agents, each behind a bad network. It has
// the parts, the operations on them, and their resource usage, and is independent of the traffic.
import { readdirSync } from "node:fs";
import { Part } from "../../testing/cluster.ts";
import { AGENT, LB, openDescriptors, type Program, PROXY, residentMiB, Site } from "../../testing/programs.ts";
import { ask, openTunnel, Origin, type Wire } from "../../testing/sockets.ts";
import { freePort, StoreServer } from "../../testing/store_servers.ts";
import { UdpRelay } from "../../testing/udp_relay.ts";

/** Agents, and the numbers of the proxies that they are connected to. */
export const AGENTS = { one: [0], two: [1], both: [0, 1] } as const;
export type AgentName = keyof typeof AGENTS;
export const NAMES = Object.keys(AGENTS) as AgentName[];

/** Agents that are connected to a proxy. */
export function heldBy(proxy: number): AgentName[] {
  return NAMES.filter((name) => (AGENTS[name] as readonly number[]).includes(proxy));
}

/** The resources of an idle process. */
export interface ResourceUse {
  readonly name: string;
  readonly tunnels: number;
  /** Connections between agents and proxies; none for a load balancer. */
  readonly links: number;
  readonly descriptors: number;
  readonly threads: number;
  readonly residentMiB: number;
}

const ADMIN = "--admin.listen-address=127.0.0.1:0";
/** Short drains. */
const DRAIN = "--drain.timeout=3s";
/** Time in milliseconds in which every part must have recovered after a fault. */
const WELL_WITHIN_MS = 30_000;

async function echo(wire: Wire): Promise<void> {
  for (let data; (data = await wire.next()) !== null;) await wire.write(data);
  wire.finish();
}

/** The installation; `await using` ends it. */
export class Installation implements AsyncDisposable {
  /** Every process that was ever started. */
  readonly programs: Program[] = [];
  readonly caches: StoreServer[] = [];
  readonly proxies: (Part & { readonly clients: string })[] = [];
  readonly agents = {} as Record<AgentName, Part>;
  readonly relays = {} as Record<AgentName, UdpRelay[]>;
  lb!: Part;
  lbClients!: string;
  #echo!: Origin;

  private constructor(private readonly site: Site) {}

  static async start(seed: number): Promise<Installation> {
    const installation = new Installation(await Site.create());
    try {
      await installation.#start(seed);
      return installation;
    } catch (error) {
      await installation[Symbol.asyncDispose]();
      throw error;
    }
  }

  async #start(seed: number): Promise<void> {
    const { site, caches, proxies } = this;
    this.#echo = await Origin.start(echo);
    for (const _ of [1, 2]) caches.push(await StoreServer.start("memcached"));
    const store = ["--store.type=memcached", `--store.memcached.address=${caches.map(({ address }) => address).join(",")}`];
    const launch = (file: string, args: readonly string[]) => () => {
      const program = site.start(file, args);
      this.programs.push(program);
      return program;
    };
    const agentAddresses: string[] = [];
    for (const _ of [1, 2]) {
      const bound = { agents: `127.0.0.1:${await freePort()}`, clients: `127.0.0.1:${await freePort()}` };
      agentAddresses.push(bound.agents);
      // entries are renewed every second
      const args = [...site.proxyArgs(bound), ...store, "--store.ttl=3s", ADMIN, DRAIN];
      proxies.push(Object.assign(new Part(launch(PROXY, args)), { clients: bound.clients }));
    }
    this.lb = new Part(launch(LB, ["--http-proxy.listen-address=127.0.0.1:0", ...store, "--log.format=json", ADMIN, DRAIN]));
    for (const { program } of proxies) await program.waitFor("listening");
    this.lbClients = String((await this.lb.program.waitFor("listening")).clients);
    for (const name of NAMES) {
      this.relays[name] = [];
      for (const proxy of AGENTS[name]) {
        this.relays[name].push(await UdpRelay.start({ server: agentAddresses[proxy]!, seed: seed + proxy }));
      }
      const addresses = this.relays[name].map(({ address }) => address);
      const args = [`--agent-client.connections=${addresses.length}`, ADMIN, DRAIN];
      this.agents[name] = new Part(
        launch(AGENT, [...site.agentArgs({ agents: addresses.join(","), clients: "" }, name), ...args]),
        "connected",
      );
      await this.agents[name].program.waitFor("connected", {}, addresses.length);
    }
    await this.untilWell();
  }

  /** Where clients of this agent may connect. */
  entrances(name: AgentName): string[] {
    const [first, ...others] = AGENTS[name];
    return others.length > 0 ? [this.lbClients] : [this.lbClients, this.proxies[first]!.clients];
  }

  /** Resolves when a tunnel through each entrance of each agent works, and every connection of agents is there. */
  async untilWell(): Promise<void> {
    const deadline = performance.now() + WELL_WITHIN_MS;
    const works = async (name: AgentName, entrance: string) => {
      for (;;) {
        try {
          using tunnel = await openTunnel(entrance, this.#echo.authority, { id: name });
          await tunnel.write("well?");
          await tunnel.read(5);
          return;
        } catch (error) {
          if (performance.now() > deadline) throw new Error(`Agent ${name} is not well after ${WELL_WITHIN_MS} ms: ${error}`);
          await new Promise((resolve) => setTimeout(resolve, 50));
        }
      }
    };
    await Promise.all(NAMES.flatMap((name) => this.entrances(name).map((entrance) => works(name, entrance))));
    for (const [i, { program }] of this.proxies.entries()) {
      while (await figure(program, "reverse_http_agent_connections_active") !== heldBy(i).length) {
        if (performance.now() > deadline) throw new Error(`Proxy ${i + 1} does not hold ${heldBy(i)} after ${WELL_WITHIN_MS} ms`);
        await new Promise((resolve) => setTimeout(resolve, 50));
      }
    }
  }

  /** With the metrics of their tunnels and of their connections between agents and proxies. */
  #parts(): [name: string, part: Part, tunnels: string, links: string][] {
    const clients = "reverse_http_client_connections_active";
    return [
      ...this.proxies.map((part, i): [string, Part, string, string] => [
        `proxy ${i + 1}`,
        part,
        clients,
        "reverse_http_agent_connections_active",
      ]),
      ["lb", this.lb, clients, ""],
      ...NAMES.map((name): [string, Part, string, string] => [
        `agent ${name}`,
        this.agents[name],
        "reverse_http_tunnels_active",
        "reverse_http_proxy_connections_active",
      ]),
    ];
  }

  async measure(): Promise<ResourceUse[]> {
    return await Promise.all(
      this.#parts().map(async ([name, { program }, tunnels, links]) => ({
        name,
        tunnels: await figure(program, tunnels),
        links: links === "" ? 0 : await figure(program, links),
        descriptors: openDescriptors(program.pid),
        threads: readdirSync(`/proc/${program.pid}/task`).length,
        residentMiB: residentMiB(program.pid),
      })),
    );
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.site[Symbol.asyncDispose]();
    for (const relay of Object.values(this.relays).flat()) await relay[Symbol.asyncDispose]();
    for (const cache of this.caches) await cache[Symbol.asyncDispose]();
    await this.#echo?.[Symbol.asyncDispose]();
  }
}

/** A metric of a program. */
async function figure(program: Program, name: string): Promise<number> {
  const { admin } = await program.waitFor("listening");
  const { body } = await ask(String(admin), "GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n");
  return Number(body.split("\n").find((line) => line.startsWith(`${name} `))?.split(" ")[1]);
}
