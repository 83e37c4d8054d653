// The notifications of the compiled executables to their service manager.
import assert from "node:assert/strict";
import process from "node:process";
import { describe, it } from "node:test";
import { AGENT, AGENT_ID, LB, PROXY, Site, storeArgs } from "../../testing/programs.ts";
import { openTunnel, Origin } from "../../testing/sockets.ts";
import { StoreServer } from "../../testing/store_servers.ts";
import { ServiceManager } from "../../testing/supervisor.ts";

/** Starts a program as systemd starts a unit with `Type=notify`. */
function environment({ socket }: ServiceManager, watchdogMs?: number): Record<string, string> {
  const env: Record<string, string> = { PATH: "/usr/bin:/bin", HOME: "/nonexistent", NOTIFY_SOCKET: socket };
  if (watchdogMs !== undefined) env.WATCHDOG_USEC = String(watchdogMs * 1_000);
  return env;
}

describe("a service manager", () => {
  it("is notified that the proxy listens, runs and stops, and whom it serves", async () => {
    await using manager = await ServiceManager.start();
    await using site = await Site.create();
    await using origin = await Origin.start();
    const env = environment(manager, 400);
    const proxy = site.start(PROXY, [...site.proxyArgs(), "--drain.timeout=30s", "--drain.delay=1s"], { env });
    const { agents, clients } = await proxy.waitFor("listening");
    await manager.waitFor("READY=1");
    const addresses = { agents: String(agents), clients: String(clients) };
    await site.startAgent(addresses);
    await manager.waitFor("STATUS=Serving: 1 agent, 0 clients");
    await manager.waitFor("WATCHDOG=1", 5);
    using tunnel = await openTunnel(addresses.clients, origin.authority);
    await manager.waitFor("STATUS=Serving: 1 agent, 1 client");
    proxy.signal("SIGTERM");
    await manager.waitFor("STOPPING=1");
    assert.deepEqual(manager.messages.find(([first]) => first === "STOPPING=1"), ["STOPPING=1", "EXTEND_TIMEOUT_USEC=41000000"]);
    await manager.waitFor(/^STATUS=Draining: /);
    // it is still to be known that it runs
    await manager.waitFor("WATCHDOG=1", manager.count("WATCHDOG=1") + 3);
    tunnel.reset();
    assert.equal((await proxy.ended).exitCode, 0);
    assert.equal(manager.count("READY=1"), 1);
  });

  it("is notified that an agent has started without a proxy, and when it has one", async () => {
    await using manager = await ServiceManager.start();
    await using site = await Site.create();
    const { proxy, addresses } = await site.startProxy();
    proxy.signal("SIGKILL");
    await proxy.ended;
    const agent = site.start(AGENT, site.agentArgs(addresses), { env: environment(manager) });
    await manager.waitFor("READY=1");
    await manager.waitFor(`STATUS=Connecting to ${addresses.agents}`);
    await site.startProxy([], addresses);
    await manager.waitFor(`STATUS=Connected: ${addresses.agents}, 0 tunnels`);
    await agent.stop();
    await manager.waitFor("STOPPING=1");
    assert.equal(manager.count("WATCHDOG=1"), 0); // without a request for it
  });

  const onLinux = { skip: process.platform === "linux" ? false : "only Linux has an abstract namespace" };
  it("is notified by a load balancer in the abstract namespace", onLinux, async () => {
    await using manager = await ServiceManager.start("abstract");
    await using cache = await StoreServer.start("memcached");
    await using site = await Site.create();
    site.start(LB, ["--http-proxy.listen-address=127.0.0.1:0", ...storeArgs(cache), "--log.format=json"], {
      env: environment(manager, 400),
    });
    await manager.waitFor("READY=1");
    await manager.waitFor("STATUS=Serving: 0 clients");
    await manager.waitFor("WATCHDOG=1", 3);
  });

  it("that has gone is logged once, and has no other effect", async () => {
    await using site = await Site.create();
    const env = { PATH: "/usr/bin:/bin", HOME: "/nonexistent", NOTIFY_SOCKET: "/nonexistent/notify", WATCHDOG_USEC: "400000" };
    const { addresses } = await site.startProxy();
    const agent = site.start(AGENT, site.agentArgs(addresses), { env });
    await agent.waitFor("cannot notify the service manager", { socket: "/nonexistent/notify" });
    await agent.waitFor("connected", { agent: AGENT_ID });
    await agent.stop();
    assert.equal(agent.logged("cannot notify the service manager").length, 1);
  });

  it("is not notified by a proxy that cannot start", async () => {
    await using manager = await ServiceManager.start();
    await using site = await Site.create();
    const { addresses } = await site.startProxy();
    const second = site.start(PROXY, site.proxyArgs(addresses), { env: environment(manager, 400) });
    assert.equal((await second.ended).exitCode, 1);
    assert.deepEqual(manager.messages, []);
  });
});
