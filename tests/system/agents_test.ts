// How agents connect, disconnect, reconnect and replace each other, with the compiled executables.
import assert from "node:assert/strict";
import { createSocket } from "node:dgram";
import { describe, it } from "node:test";
import { AGENT, AGENT_ID, Pair, Site } from "../../testing/programs.ts";
import { ask, connectHead, dial, openTunnel, Origin } from "../../testing/sockets.ts";

describe("proxy", () => {
  it("closes the old connection when an agent with the same id connects, and sends clients to the new one", async () => {
    await using pair = await Pair.start({ agent: ["--agent-client.host-whitelist=127.0.0.9"] });
    await using origin = await Origin.start();
    const { clients } = pair.addresses;
    assert.equal((await ask(clients, connectHead(origin.authority))).status, 403);
    await pair.site.startAgent(pair.addresses);
    const { reason } = await pair.agent.waitFor("not connected");
    pair.agent.signal("SIGKILL"); // before it comes back
    assert.match(String(reason), /409 closing old connection/);
    using _tunnel = await openTunnel(clients, origin.authority);
    await pair.proxy.waitFor("agent disconnected", { agent: AGENT_ID, reason: "closed by the proxy: 409 closing old connection" });
    await pair.proxy.waitFor("agent connected", { agent: AGENT_ID }, 2);
    assert.equal(pair.proxy.logged("agent connected", { agent: AGENT_ID }).length, 2);
  });

  it("resets the tunnels of the old connection", async () => {
    await using pair = await Pair.start();
    await using origin = await Origin.start();
    using client = await openTunnel(pair.addresses.clients, origin.authority);
    const server = await origin.accept();
    await pair.site.startAgent(pair.addresses);
    assert.equal(await client.ending(), "ECONNRESET");
    assert.equal(await server.ending(), "ECONNRESET");
  });

  it("separates agents with different ids", async () => {
    await using pair = await Pair.start({ agent: ["--agent-client.host-whitelist=127.0.0.9"] });
    await using origin = await Origin.start();
    await pair.site.startAgent(pair.addresses, [], "4712");
    const { clients } = pair.addresses;
    assert.equal((await ask(clients, connectHead(origin.authority))).status, 403);
    using _tunnel = await openTunnel(clients, origin.authority, { id: "4712" });
    assert.deepEqual(pair.proxy.logged("agent disconnected"), []);
  });

  it("logs an agent that does not trust it, and does not count it as connected", async () => {
    await using pair = await Pair.start();
    await using other = await Site.create();
    // over TLS it gives up what it has begun meanwhile, which may be logged first
    const stranger = pair.site.start(AGENT, [...other.agentArgs(pair.addresses, "4712"), "--agent-client.transport=quic"]);
    const { reason } = await stranger.waitFor("not connected");
    assert.match(String(reason), /--agent-client\.tls\.file\.root-ca/);
    const failed = await pair.proxy.waitFor("agent handshake failed");
    assert.match(String(failed.reason), /^the agent does not accept this proxy, and its log says why: /);
    assert.deepEqual(pair.proxy.logged("agent connected", { agent: "4712" }), []);
  });
});

describe("agent", () => {
  it("increases its delay each time that another agent with its id replaces it", async () => {
    await using pair = await Pair.start({ proxy: ["--agent-server.agent.on-conflict=replace"] });
    const second = await pair.site.startAgent(pair.addresses);
    // while both are there, each that connects evicts the other
    const rounds = 4;
    for (const agent of [pair.agent, second]) {
      await agent.waitFor("not connected", {}, rounds);
      const waits = agent.logged("not connected").slice(0, rounds);
      for (const [round, { reason, retryInMs }] of waits.entries()) {
        assert.match(String(reason), /409/);
        // between half of and the whole of a bound that doubles
        assert.ok(Number(retryInMs) >= 250 * 2 ** round && Number(retryInMs) <= 500 * 2 ** round, `wait ${round} is ${retryInMs} ms`);
      }
    }
    // the first of each, and one for each wait that is over
    const waits = pair.agent.logged("not connected").length + second.logged("not connected").length;
    const connections = pair.proxy.logged("agent connected").length;
    assert.ok(connections <= 2 + waits, `${connections} connections, ${waits} waits`);
  });

  it("reconnects when its proxy is restarted on the same addresses", async () => {
    await using site = await Site.create();
    await using origin = await Origin.start();
    const { proxy, addresses } = await site.startProxy();
    const agent = await site.startAgent(addresses);
    assert.equal((await proxy.stop()).exitCode, 0);
    await agent.waitFor("not connected");
    const { proxy: restarted } = await site.startProxy([], addresses);
    await restarted.waitFor("agent connected", { agent: AGENT_ID });
    await agent.waitFor("connected", {}, 2);
    using _tunnel = await openTunnel(addresses.clients, origin.authority);
  });

  it("reconnects when its proxy was killed and restarted, which resets the old connection", async () => {
    await using site = await Site.create();
    const { proxy, addresses } = await site.startProxy();
    const agent = await site.startAgent(addresses);
    proxy.signal("SIGKILL");
    await proxy.ended;
    const { proxy: restarted } = await site.startProxy([], addresses);
    const { reason } = await agent.waitFor("not connected");
    assert.match(String(reason), /^reset by peer/, "it has waited for the silence to be long enough");
    await restarted.waitFor("agent connected", { agent: AGENT_ID });
    await agent.waitFor("connected", {}, 2);
  });
});

for (const signal of ["SIGTERM", "SIGINT"] as const) {
  describe(signal, () => {
    it("stops the proxy with exit code 0 without a drain; agents are notified and clients reset", async () => {
      await using pair = await Pair.start({ proxy: ["--drain.timeout=0s"] });
      await using origin = await Origin.start();
      using client = await openTunnel(pair.addresses.clients, origin.authority);
      const server = await origin.accept();
      using unfinished = await dial(pair.addresses.clients);
      await unfinished.write("CONNECT ");
      const { exitCode, stdout } = await pair.proxy.stop(signal);
      assert.equal(exitCode, 0);
      assert.equal(stdout, "");
      assert.equal(pair.proxy.logged("stopping", { signal }).length, 1);
      assert.equal(pair.proxy.logged("stopped").length, 1);
      const { reason } = await pair.agent.waitFor("not connected");
      assert.match(String(reason), /0 shutting down/);
      assert.equal(await client.ending(), "ECONNRESET");
      assert.equal(await server.ending(), "ECONNRESET");
      await unfinished.ending();
    });

    it("stops the agent with exit code 0 without a drain; the proxy is notified and resets its clients", async () => {
      await using pair = await Pair.start({ agent: ["--drain.timeout=0s"] });
      await using origin = await Origin.start();
      using client = await openTunnel(pair.addresses.clients, origin.authority);
      const server = await origin.accept();
      const { exitCode } = await pair.agent.stop(signal);
      assert.equal(exitCode, 0);
      await pair.proxy.waitFor("agent disconnected", { agent: AGENT_ID, reason: "closed by the agent: 0 shutting down" });
      assert.equal(await client.ending(), "ECONNRESET");
      assert.equal(await server.ending(), "ECONNRESET");
      assert.equal((await ask(pair.addresses.clients, connectHead(origin.authority))).status, 502);
    });

    it("stops an agent that waits for its next attempt with exit code 0", async () => {
      await using pair = await Pair.start();
      await using other = await Site.create();
      const agent = other.start(AGENT, other.agentArgs(pair.addresses));
      await agent.waitFor("not connected"); // it does not trust this proxy
      assert.equal((await agent.stop(signal)).exitCode, 0);
    });

    it("stops an agent during a handshake with exit code 0", async () => {
      await using site = await Site.create();
      const silent = createSocket("udp4");
      try {
        const called = new Promise((resolve) => silent.once("message", resolve));
        await new Promise<void>((resolve) => silent.bind(0, "127.0.0.1", resolve));
        const agent = site.start(AGENT, site.agentArgs({ agents: `127.0.0.1:${silent.address().port}`, clients: "" }));
        await called;
        assert.equal((await agent.stop(signal)).exitCode, 0);
      } finally {
        silent.close();
      }
    });
  });
}
