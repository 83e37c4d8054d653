// Running services are replaced by new processes under load, with the compiled executables: nothing is cut, and nothing refused.
// REVERSE_HTTP_TEST_LOAD=full makes it 20 hand-overs with 200 tunnels.
import assert from "node:assert/strict";
import type { RemoteInfo } from "node:dgram";
import process from "node:process";
import { describe, it } from "node:test";
import { check, Load } from "../../testing/load.ts";
import { AGENT, AGENT_ID, eventually, LB, type Program, PROXY, REVERSE_HTTP, runToEnd, Site, storeArgs } from "../../testing/programs.ts";
import { UdpServer } from "../../testing/masque.ts";
import { openTunnel, Origin, type Wire } from "../../testing/sockets.ts";
import { StoreServer } from "../../testing/store_servers.ts";
import { ServiceManager } from "../../testing/supervisor.ts";

const FULL = process.env["REVERSE_HTTP_TEST_LOAD"] === "full";
const { handOvers, tunnels, perSecond } = FULL
  ? { handOvers: 20, tunnels: 200, perSecond: 200 }
  : { handOvers: 2, tunnels: 24, perSecond: 20 };
/** Age in milliseconds at which tunnels end: the others outlive a few hand-overs. */
const TUNNEL_LIFE_MS = 30_000;

/** An echo server. */
async function echo(wire: Wire): Promise<void> {
  for (let data; (data = await wire.next()) !== null;) await wire.write(data);
  wire.finish();
}

/** Starts a process that takes over from `old`, and waits until it has. */
async function replace(site: Site, old: Program, file: string, args: readonly string[]): Promise<Program> {
  const next = site.start(file, args);
  await next.waitFor("taken over", { pid: old.pid });
  await old.waitFor("handed over", { pid: next.pid });
  return next;
}

describe("a hand-over of a proxy", () => {
  it("cuts no tunnel and refuses no request, over QUIC and over TLS", async () => {
    await using site = await Site.create();
    await using origin = await Origin.start(echo);
    const args = [...site.proxyArgs(), `--handover.socket=${site.folder.path}/proxy.sock`, "--handover.timeout=1h"];
    let proxy = site.start(PROXY, args);
    const { agents, clients } = await proxy.waitFor("listening");
    const addresses = { agents: String(agents), clients: String(clients) };
    const ids = ["q1", "q2", "t1", "t2"];
    await Promise.all(
      ids.map((id) => site.startAgent(addresses, [`--agent-client.transport=${id.startsWith("q") ? "quic" : "tls"}`], id)),
    );
    const load = new Load({ clients: addresses.clients, destination: origin.authority, agents: ids, tunnels, perSecond });
    if (FULL) load.tunnelLifeMs = TUNNEL_LIFE_MS;
    await load.settle(0);
    const replaced: Program[] = [];
    for (let count = 0; count < handOvers; count++) {
      replaced.push(proxy);
      proxy = await replace(site, proxy, PROXY, args);
      await Promise.all(ids.map((id) => proxy.waitFor("agent connected", { agent: id })));
      await load.settle(performance.now());
    }
    await load.stop();
    const { requests, failed, cut, slowestMs } = load.report(0);
    console.log(`${handOvers} hand-overs, ${requests} requests, the slowest after ${Math.round(slowestMs)} ms`);
    assert.deepEqual({ failed, cut }, { failed: [], cut: [] });
    for (const { exitCode } of await Promise.all(replaced.map(({ ended }) => ended))) assert.equal(exitCode, 0);
    assert.deepEqual(proxy.logged("stopped"), []);
  });

  it("changes nothing if the new process cannot start, or is killed", async () => {
    await using site = await Site.create();
    await using origin = await Origin.start(echo);
    const args = [...site.proxyArgs(), `--handover.socket=${site.folder.path}/proxy.sock`, `--admin.socket=${site.folder.path}/admin.sock`];
    const proxy = site.start(PROXY, args);
    const { agents, clients } = await proxy.waitFor("listening");
    const addresses = { agents: String(agents), clients: String(clients) };
    await site.startAgent(addresses);
    using before = await openTunnel(addresses.clients, origin.authority);
    // the port of another program, which is tried only after the sockets were received
    const broken = site.start(PROXY, [...args, `--socks.listen-address=${origin.authority}`]);
    assert.equal((await broken.ended).exitCode, 1);
    await proxy.waitFor("hand-over failed, and this process goes on", { pid: broken.pid });
    const killed = site.start(PROXY, args);
    await proxy.waitFor("handing over", { pid: killed.pid });
    killed.signal("SIGKILL");
    await killed.ended;
    const other = site.start(LB, [
      "--http-proxy.listen-address=127.0.0.1:0",
      "--store.memcached.address=127.0.0.1:1",
      `--handover.socket=${site.folder.path}/proxy.sock`,
    ]);
    assert.equal((await other.ended).exitCode, 2);
    await check(before);
    // unless it had already taken over
    if (proxy.logged("handed over").length === 0) {
      await proxy.waitFor("hand-over failed, and this process goes on", { pid: killed.pid });
      using after = await openTunnel(addresses.clients, origin.authority);
      await check(after);
      await replace(site, proxy, PROXY, args);
      using last = await openTunnel(addresses.clients, origin.authority);
      await check(last);
      await check(before);
    }
  });

  it("keeps open tunnels when the new process is killed after it", async () => {
    await using site = await Site.create();
    await using origin = await Origin.start(echo);
    const args = [...site.proxyArgs(), `--handover.socket=${site.folder.path}/proxy.sock`];
    const proxy = site.start(PROXY, args);
    const { agents, clients } = await proxy.waitFor("listening");
    await site.startAgent({ agents: String(agents), clients: String(clients) });
    using tunnel = await openTunnel(String(clients), origin.authority);
    const next = await replace(site, proxy, PROXY, args);
    await next.waitFor("agent connected");
    next.signal("SIGKILL");
    await proxy.waitFor("the process that has taken over has ended", { pid: next.pid });
    await check(tunnel);
  });

  it("keeps UDP flows, and shows operators the process that finishes them", async () => {
    await using site = await Site.create();
    await using echo = await UdpServer.start((payload) => payload);
    const admin = `${site.folder.path}/admin.sock`;
    const args = [
      ...site.proxyArgs(),
      `--forward=listen=127.0.0.1:0,network=udp,agent=${AGENT_ID},to=${echo.authority}`,
      "--http-proxy.host-whitelist=udp:127.0.0.1",
      `--admin.socket=${admin}`,
      `--handover.socket=${site.folder.path}/proxy.sock`,
    ];
    const old = site.start(PROXY, args);
    const { agents, clients } = await old.waitFor("listening");
    await site.startAgent({ agents: String(agents), clients: String(clients) }, ["--agent-client.host-whitelist=udp:127.0.0.1"]);
    const { clients: listen } = await old.waitFor("forwarding");
    const to = { address: "127.0.0.1", port: Number(String(listen).split(":")[1]) } as RemoteInfo;
    await using one = await UdpServer.start();
    await using two = await UdpServer.start();
    const roundTrip = async (client: UdpServer, text: string) => {
      await client.send(text, to);
      assert.equal(String((await client.receive()).payload), text);
    };
    await roundTrip(one, "before");
    const next = await replace(site, old, PROXY, args);
    await next.waitFor("agent connected");
    await roundTrip(one, "after");
    await roundTrip(two, "new");
    const status = async () => (await runToEnd(REVERSE_HTTP, ["status", `--admin=${admin}`])).stdout;
    assert.match(await status(), new RegExp(`^handed over +by processes that finish what is open: ${old.pid}$`, "m"));
    old.signal("SIGKILL");
    await old.ended;
    assert.doesNotMatch(await status(), /handed over/);
    await roundTrip(one, "again");
  });

  it("follows SIGUSR2, and tells the service manager which process serves", async () => {
    await using manager = await ServiceManager.start();
    await using site = await Site.create();
    await using origin = await Origin.start(echo);
    const env = { PATH: "/usr/bin:/bin", HOME: "/nonexistent", NOTIFY_SOCKET: manager.socket };
    const proxy = site.start(PROXY, [...site.proxyArgs(), `--handover.socket=${site.folder.path}/proxy.sock`], { env });
    const { agents, clients } = await proxy.waitFor("listening");
    await manager.waitFor("READY=1");
    const addresses = { agents: String(agents), clients: String(clients) };
    await site.startAgent(addresses);
    using tunnel = await openTunnel(addresses.clients, origin.authority);
    proxy.signal("SIGUSR2");
    const { pid } = await proxy.waitFor("new process started");
    try {
      await proxy.waitFor("handed over", { pid });
      await manager.waitFor(`MAINPID=${pid}`);
      await manager.waitFor("READY=1", 3); // with MAINPID, and of the new process
      await check(tunnel);
      using other = await openTunnel(addresses.clients, origin.authority);
      await check(other);
    } finally {
      process.kill(Number(pid), "SIGKILL");
    }
  });
});

describe("a hand-over of a load balancer", () => {
  it("cuts no tunnel and refuses no request", async () => {
    await using store = await StoreServer.start("memcached");
    await using site = await Site.create();
    await using origin = await Origin.start(echo);
    const { addresses } = await site.startProxy(storeArgs(store));
    await site.startAgent(addresses);
    const args = [
      "--http-proxy.listen-address=127.0.0.1:0",
      ...storeArgs(store),
      "--log.format=json",
      `--handover.socket=${site.folder.path}/lb.sock`,
    ];
    let lb = site.start(LB, args);
    const { clients } = await lb.waitFor("listening");
    const load = new Load({ clients: String(clients), destination: origin.authority, agents: [AGENT_ID], tunnels, perSecond });
    if (FULL) load.tunnelLifeMs = TUNNEL_LIFE_MS;
    await load.settle(0);
    for (let count = 0; count < handOvers; count++) {
      lb = await replace(site, lb, LB, args);
      await load.settle(performance.now());
    }
    await load.stop();
    const { failed, cut } = load.report(0);
    assert.deepEqual({ failed, cut }, { failed: [], cut: [] });
  });
});

describe("a hand-over of an agent", () => {
  it("cuts no tunnel and refuses no request", async () => {
    await using site = await Site.create();
    await using origin = await Origin.start(echo);
    const { proxy, addresses } = await site.startProxy();
    const ids = ["quic", "tls"];
    const argsOf = (id: string) => [
      ...site.agentArgs(addresses, id),
      `--agent-client.transport=${id}`,
      `--handover.socket=${site.folder.path}/${id}.sock`,
    ];
    const agents = ids.map((id) => site.start(AGENT, argsOf(id)));
    await Promise.all(ids.map((agent) => proxy.waitFor("agent connected", { agent })));
    const load = new Load({ clients: addresses.clients, destination: origin.authority, agents: ids, tunnels, perSecond });
    if (FULL) load.tunnelLifeMs = TUNNEL_LIFE_MS;
    await load.settle(0);
    for (let count = 0; count < handOvers; count++) {
      for (const [i, id] of ids.entries()) agents[i] = await replace(site, agents[i]!, AGENT, argsOf(id));
      await load.settle(performance.now());
    }
    await load.stop();
    const { failed, cut } = load.report(0);
    assert.deepEqual({ failed, cut }, { failed: [], cut: [] });
    await eventually(() => proxy.logged("agent disconnected").length >= ids.length * handOvers, () => "the old processes stay");
  });
});
