// Proxies and agents that are restarted, killed and duplicated under load, with the compiled executables and nginx in front of the proxies.
import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { check } from "../../testing/load.ts";
import { Nginx } from "../../testing/nginx.ts";
import { type Addresses, AGENT_ID, eventually, type LogEntry, Pair, type Program, Site, storeArgs } from "../../testing/programs.ts";
import { ask, connectHead, dial, openTunnel, Origin, type Wire } from "../../testing/sockets.ts";
import { StoreServer } from "../../testing/store_servers.ts";

/** An echo server. */
async function echo(wire: Wire): Promise<void> {
  for (let data; (data = await wire.next()) !== null;) await wire.write(data);
  wire.finish();
}

/** Ends both directions cleanly. */
async function finish(tunnel: Wire): Promise<void> {
  tunnel.finish();
  assert.equal((await tunnel.readAll()).length, 0);
  tunnel[Symbol.dispose]();
}

interface Running {
  proxy: Program;
  addresses: Addresses;
}

/** The proxy that an agent connected to last, as in a store's entry. */
function holderOf(id: string, proxies: readonly Running[]): Running {
  const last = ({ proxy }: Running) => String(proxy.logged("agent connected", { agent: id }).at(-1)?.["@timestamp"] ?? "");
  return proxies.reduce((a, b) => last(b) > last(a) ? b : a);
}

/** Opens a tunnel as a load balancer does: if the agent's proxy has gone, looks it up once more. */
async function openBalanced(id: string, proxies: readonly Running[], authority: string): Promise<Wire> {
  const first = holderOf(id, proxies);
  try {
    return await openTunnel(first.addresses.clients, authority, { id });
  } catch (error) {
    // what is logged comes a moment later
    await eventually(() => holderOf(id, proxies) !== first, () => `no other proxy has ${id}: ${error}`);
    return await openTunnel(holderOf(id, proxies).addresses.clients, authority, { id });
  }
}

describe("a rolling restart of two proxies behind a UDP load balancer", () => {
  it("cuts no tunnel and fails no request", async () => {
    await using site = await Site.create();
    await using origin = await Origin.start(echo);
    const proxies: Running[] = [await site.startProxy(), await site.startProxy()];
    await using nginx = await Nginx.start([{ transport: "udp", servers: proxies.map(({ addresses }) => addresses.agents) }]);
    const ids = ["one", "two", "three", "four"];
    await Promise.all(ids.map((id) => site.startAgent({ agents: nginx.addresses[0]!, clients: "" }, [], id)));

    const failures: string[] = [];
    let [requests, isOver] = [0, false];
    const load = ids.map(async (id) => {
      while (!isOver) {
        requests++;
        try {
          const tunnel = await openBalanced(id, proxies, origin.authority);
          await check(tunnel);
          await finish(tunnel);
        } catch (error) {
          failures.push(`${id}: ${error}`);
        }
        await new Promise((resolve) => setTimeout(resolve, 20));
      }
    });
    for (const i of [0, 1]) {
      const { proxy, addresses } = proxies[i]!;
      const here = ids.filter((id) => holderOf(id, proxies).proxy === proxy);
      const tunnels = await Promise.all(ids.map((id) => openBalanced(id, proxies, origin.authority)));
      proxy.signal("SIGTERM");
      const other = proxies[1 - i]!;
      // each agent of this proxy comes to the other while its tunnels go on
      await eventually(() => here.every((id) => holderOf(id, proxies) === other), () => "the agents have not moved");
      await Promise.all(tunnels.map(check));
      assert.deepEqual(proxy.logged("stopped"), []);
      await Promise.all(tunnels.map(finish));
      assert.equal((await proxy.ended).exitCode, 0);
      proxies[i] = await site.startProxy([], addresses);
      const before = requests;
      await eventually(() => requests > before + 20, () => "there were no requests");
    }
    isOver = true;
    await Promise.all(load);
    assert.deepEqual(failures, []);
    assert.ok(requests > 50, `there were ${requests} requests only`);
  });
});

describe("SIGTERM", () => {
  it("ends a proxy after its last tunnel, not before; a second signal ends it at once", async () => {
    await using pair = await Pair.start();
    await using origin = await Origin.start(echo);
    const tunnel = await openTunnel(pair.addresses.clients, origin.authority);
    pair.proxy.signal("SIGTERM");
    await pair.proxy.waitFor("no other proxy for the agents");
    await check(tunnel);
    await finish(tunnel);
    assert.equal((await pair.proxy.ended).exitCode, 0);

    const { proxy } = await pair.site.startProxy([], pair.addresses);
    await proxy.waitFor("agent connected");
    using second = await openTunnel(pair.addresses.clients, origin.authority);
    proxy.signal("SIGTERM");
    await proxy.waitFor("draining");
    await check(second);
    proxy.signal("SIGTERM");
    assert.equal((await proxy.ended).exitCode, 1);
  });

  it("ends an agent after its last tunnel, while a new one with its id takes over", async () => {
    await using pair = await Pair.start();
    await using origin = await Origin.start(echo);
    const { clients } = pair.addresses;
    const tunnel = await openTunnel(clients, origin.authority);
    pair.agent.signal("SIGTERM");
    await pair.proxy.waitFor("agent is draining");
    // until another one is there, it serves
    await finish(await openTunnel(clients, origin.authority));
    const other = await pair.site.startAgent(pair.addresses, ["--agent-client.host-whitelist=127.0.0.9"]);
    assert.equal((await ask(clients, connectHead(origin.authority))).status, 403, "the one that stops was asked");
    await check(tunnel);
    assert.deepEqual(other.logged("not connected"), []);
    await finish(tunnel);
    assert.equal((await pair.agent.ended).exitCode, 0);
    await pair.proxy.waitFor("agent disconnected", { agent: AGENT_ID, reason: "closed by the agent: 0 shutting down" });
  });
});

/** Opens new tunnels continuously, uses each once, and records failures. */
class Requests {
  readonly failures: { at: number; error: string }[] = [];
  count = 0;
  #isOver = false;
  readonly #running: Promise<void>;

  constructor(private readonly clients: string, private readonly authority: string) {
    this.#running = this.#run();
  }

  async #run(): Promise<void> {
    while (!this.#isOver) {
      const at = Date.now();
      try {
        const tunnel = await openTunnel(this.clients, this.authority);
        await check(tunnel);
        await finish(tunnel);
        this.count++;
      } catch (error) {
        this.failures.push({ at, error: String(error) });
      }
      await new Promise((resolve) => setTimeout(resolve, 20));
    }
  }

  async more(count: number): Promise<void> {
    const before = this.count;
    await eventually(() => this.count >= before + count, () => `there were no more requests: ${JSON.stringify(this.failures.slice(-3))}`);
  }

  async stop(): Promise<void> {
    this.#isOver = true;
    await this.#running;
  }
}

const timeOf = (entry: LogEntry) => Date.parse(String(entry["@timestamp"]));

describe("a single proxy that is restarted", () => {
  it("serves new clients beside a long tunnel until --drain.timeout, and its agent reconnects soon", async () => {
    await using site = await Site.create();
    await using origin = await Origin.start(echo);
    const args = ["--drain.timeout=3s"];
    const first = await site.startProxy(args);
    const agent = await site.startAgent(first.addresses);
    using tunnel = await openTunnel(first.addresses.clients, origin.authority);
    const requests = new Requests(first.addresses.clients, origin.authority);
    await requests.more(3);
    first.proxy.signal("SIGTERM");
    await first.proxy.waitFor("no other proxy for the agents");
    await requests.more(20);
    await check(tunnel);
    const ended = tunnel.ending().then(() => Date.now());
    await first.proxy.ended;
    const { proxy } = await site.startProxy(args, first.addresses);
    await proxy.waitFor("agent connected");
    await requests.more(3);
    await requests.stop();

    const draining = timeOf(first.proxy.logged("draining")[0]!);
    const cut = await ended;
    assert.ok(cut - draining >= 2_900, `the tunnel was cut after ${cut - draining} ms`);
    assert.deepEqual(requests.failures.filter(({ at }) => at < cut - 100), [], "while it drains it serves");
    const reasons = first.proxy.logged("request", { error: "connection_terminated" }).map(({ reason }) => reason);
    assert.ok(reasons.includes("The service has stopped before the tunnel ended"), reasons.join("; "));
    // one line about the proxy that goes away, however often the agent has looked for another one
    const between = agent.entries.filter((entry) => timeOf(entry) >= draining && timeOf(entry) < cut && entry.message !== "tunnel");
    assert.deepEqual(between.map(({ message }) => message), ["reconnecting"]);
  });

  it("ends when its agent, and with it the tunnels, have gone", async () => {
    await using pair = await Pair.start({ agent: ["--drain.timeout=0s"] });
    await using origin = await Origin.start(echo);
    using tunnel = await openTunnel(pair.addresses.clients, origin.authority);
    pair.proxy.signal("SIGTERM");
    await pair.proxy.waitFor("no other proxy for the agents");
    await finish(await openTunnel(pair.addresses.clients, origin.authority));
    await check(tunnel);
    pair.agent.signal("SIGTERM");
    assert.equal(await tunnel.ending(), "ECONNRESET");
    assert.equal((await pair.proxy.ended).exitCode, 0);
  });
});

describe("a single load balancer that is restarted", () => {
  it("serves new clients beside a long tunnel until --drain.timeout", async () => {
    await using cache = await StoreServer.start("memcached");
    await using site = await Site.create();
    await using origin = await Origin.start(echo);
    const { addresses } = await site.startProxy(storeArgs(cache));
    await site.startAgent(addresses);
    const first = await site.startLb(cache, ["--drain.timeout=3s"]);
    using tunnel = await openTunnel(first.clients, origin.authority);
    const requests = new Requests(first.clients, origin.authority);
    await requests.more(3);
    first.lb.signal("SIGTERM");
    await first.lb.waitFor("draining");
    await requests.more(20);
    await check(tunnel);
    const ended = tunnel.ending().then(() => Date.now());
    await first.lb.ended;
    await site.startLb(cache, [`--http-proxy.listen-address=${first.clients}`]);
    await requests.more(3);
    await requests.stop();

    const cut = await ended;
    const draining = timeOf(first.lb.logged("draining")[0]!);
    assert.ok(cut - draining >= 2_900, `the tunnel was cut after ${cut - draining} ms`);
    assert.deepEqual(requests.failures.filter(({ at }) => at < cut - 100), [], "while it drains it serves");
  });

  it("stops when its last client has gone", async () => {
    await using cache = await StoreServer.start("memcached");
    await using site = await Site.create();
    await using origin = await Origin.start(echo);
    const { addresses } = await site.startProxy(storeArgs(cache));
    await site.startAgent(addresses);
    const { lb, clients } = await site.startLb(cache, ["--drain.timeout=10m"]);
    const tunnel = await openTunnel(clients, origin.authority);
    lb.signal("SIGTERM");
    await lb.waitFor("draining");
    await finish(await openTunnel(clients, origin.authority));
    await check(tunnel);
    await finish(tunnel);
    assert.equal((await lb.ended).exitCode, 0);
  });

  it("refuses new clients at once with --drain.refuse-clients, and lets open tunnels finish", async () => {
    await using cache = await StoreServer.start("memcached");
    await using site = await Site.create();
    await using origin = await Origin.start(echo);
    const { addresses } = await site.startProxy(storeArgs(cache));
    await site.startAgent(addresses);
    const { lb, clients } = await site.startLb(cache, ["--drain.timeout=10m", "--drain.refuse-clients"]);
    const tunnel = await openTunnel(clients, origin.authority);
    lb.signal("SIGTERM");
    await lb.waitFor("draining");
    for (let wire; (wire = await dial(clients).catch(() => undefined)) !== undefined;) wire[Symbol.dispose]();
    await check(tunnel);
    await finish(tunnel);
    assert.equal((await lb.ended).exitCode, 0);
  });
});

describe("an agent that is restarted", () => {
  it("serves beside a long tunnel until --drain.timeout", async () => {
    await using pair = await Pair.start({ agent: ["--drain.timeout=3s"] });
    await using origin = await Origin.start(echo);
    using tunnel = await openTunnel(pair.addresses.clients, origin.authority);
    const requests = new Requests(pair.addresses.clients, origin.authority);
    await requests.more(3);
    pair.agent.signal("SIGTERM");
    await pair.proxy.waitFor("agent is draining");
    await requests.more(20);
    await check(tunnel);
    await pair.agent.ended;
    await pair.site.startAgent(pair.addresses);
    await requests.more(3);
    await requests.stop();
    const gone = timeOf(pair.proxy.logged("agent disconnected")[0]!);
    assert.deepEqual(requests.failures.filter(({ at }) => at < gone - 100), [], "while it drains it serves");
  });
});

describe("several agents with one id", () => {
  it("share the tunnels, and requests continue when one is killed", async () => {
    await using pair = await Pair.start({ proxy: ["--agent-server.agent.multiple"], agent: ["--log.level=debug"] });
    await using origin = await Origin.start(echo);
    const { clients } = pair.addresses;
    const agents = [pair.agent, await pair.site.startAgent(pair.addresses, ["--log.level=debug"])];
    const tunnels = [];
    for (let i = 0; i < 8; i++) tunnels.push(await openTunnel(clients, origin.authority));
    for (const tunnel of tunnels) await finish(tunnel);
    for (const agent of agents) await agent.waitFor("tunnel", { status: 200 }, 4);
    agents[1]!.signal("SIGKILL");
    await agents[1]!.ended;
    for (let i = 0; i < 10; i++) await finish(await openTunnel(clients, origin.authority));
  });
});

describe("an agent with several connections", () => {
  it("is reachable through every proxy, and again through one that was killed and restarted", async () => {
    await using site = await Site.create();
    await using origin = await Origin.start(echo);
    const [a, b] = [await site.startProxy(), await site.startProxy()];
    const servers = { agents: `${a.addresses.agents},${b.addresses.agents}`, clients: "" };
    const agent = await site.startAgent(servers, ["--agent-client.connections=2"]);
    await agent.waitFor("connected", {}, 2);
    for (const { addresses } of [a, b]) await finish(await openTunnel(addresses.clients, origin.authority));
    using tunnel = await openTunnel(b.addresses.clients, origin.authority);
    a.proxy.signal("SIGKILL");
    await a.proxy.ended;
    const { proxy } = await site.startProxy([], a.addresses);
    await proxy.waitFor("agent connected");
    await finish(await openTunnel(a.addresses.clients, origin.authority));
    await check(tunnel);
    assert.equal(b.proxy.logged("agent connected").length, 1);
  });
});
