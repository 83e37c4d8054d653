// A complete installation on loopback: nginx in front of two load balancers and two proxies, two servers of the store, and agents. Each
// part can be signalled, and restarted on its addresses.
import { setTimeout as sleep } from "node:timers/promises";
import { createMemcachedStore } from "../shared/store/memcached.ts";
import type { Store } from "../shared/store/store.ts";
import { freeAddress, Nginx } from "./nginx.ts";
import { type Addresses, AGENT, LB, type Program, PROXY, Site } from "./programs.ts";
import { ask } from "./sockets.ts";
import { StoreServer } from "./store_servers.ts";

/** A process that can be restarted with the same arguments, and so on the same addresses. */
export class Part {
  program: Program;

  /** @param ready the log message that says it is ready */
  constructor(private readonly launch: () => Program, private readonly ready = "listening") {
    this.program = launch();
  }

  /** Starts it again after its end, and waits until it is ready. */
  async restart(): Promise<void> {
    await this.program.ended;
    this.program = this.launch();
    await this.program.waitFor(this.ready);
  }

  async kill(): Promise<void> {
    this.program.signal("SIGKILL");
    await this.program.ended;
  }

  /** Kills it, calls `onGone`, and starts it again after a second. */
  async replace(onGone: () => void = () => {}): Promise<void> {
    await this.kill();
    onGone();
    await sleep(1_000);
    await this.restart();
  }
}

export interface ClusterOptions {
  /** Agents that connect through nginx. */
  single: readonly string[];
  /** Agents that are connected to both proxies. */
  double: readonly string[];
}

/** `await using` ends it. */
export class Cluster implements AsyncDisposable {
  readonly agents = new Map<string, Part>();
  /** The store, as load balancers read it. */
  readonly store: Store;

  private constructor(
    readonly site: Site,
    readonly caches: readonly StoreServer[],
    readonly proxies: readonly (Part & { readonly clients: string })[],
    readonly lbs: readonly Part[],
    readonly nginx: Nginx,
  ) {
    this.store = createMemcachedStore({ addresses: caches.map(({ address }) => address), timeoutMs: 1_000, ttlMs: 3_000 });
  }

  static async start({ single, double }: ClusterOptions): Promise<Cluster> {
    const caches = [await StoreServer.start("memcached"), await StoreServer.start("memcached")];
    const site = await Site.create();
    // entries are renewed every second
    const store = ["--store.type=memcached", `--store.memcached.address=${caches.map(({ address }) => address).join(",")}`];
    const proxyArgs = [...store, "--store.ttl=3s", "--admin.listen-address=127.0.0.1:0"];
    const addresses: Addresses[] = [];
    for (const _ of [1, 2]) addresses.push({ agents: await freeAddress(), clients: await freeAddress() });
    const startProxy = (bound: Addresses) => new Part(() => site.start(PROXY, [...site.proxyArgs(bound), ...proxyArgs]));
    const proxies = addresses.map((bound) => Object.assign(startProxy(bound), { clients: bound.clients }));
    const clients = [await freeAddress(), await freeAddress()];
    const lbArgs = [...store, "--log.format=json"];
    const lbs = clients.map((address) =>
      new Part(() => site.start(LB, [`--http-proxy.listen-address=${address}`, "--drain.refuse-clients", ...lbArgs]))
    );
    await Promise.all([...proxies, ...lbs].map(({ program }) => program.waitFor("listening")));
    const nginx = await Nginx.start([
      { transport: "udp", servers: addresses.map(({ agents }) => agents) },
      { transport: "tcp", servers: clients },
    ]);
    const cluster = new Cluster(site, caches, proxies, lbs, nginx);
    const add = (id: string, agents: string, connections: number) => {
      const args = [...site.agentArgs({ agents, clients: "" }, id), `--agent-client.connections=${connections}`];
      const part = new Part(() => site.start(AGENT, args), "connected");
      cluster.agents.set(id, part);
      return part.program.waitFor("connected", {}, connections);
    };
    await Promise.all([
      ...single.map((id) => add(id, nginx.addresses[0]!, 1)),
      ...double.map((id) => add(id, addresses.map(({ agents }) => agents).join(","), 2)),
    ]);
    return cluster;
  }

  /** The address for clients. */
  get clients(): string {
    return this.nginx.addresses[1]!;
  }

  /** Ids of the agents that are connected to a proxy. */
  async held(proxy: Part): Promise<string[]> {
    const { admin } = await proxy.program.waitFor("listening");
    const { body } = await ask(String(admin), "GET /agents HTTP/1.1\r\nHost: localhost\r\n\r\n");
    return (JSON.parse(body) as { id: string }[]).map(({ id }) => id);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.store.close();
    await this.nginx[Symbol.asyncDispose]();
    await this.site[Symbol.asyncDispose]();
    for (const cache of this.caches) await cache[Symbol.asyncDispose]();
  }
}
