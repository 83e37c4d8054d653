// The admin servers of the compiled executables: metrics, health and agents.
import assert from "node:assert/strict";
import { hostname } from "node:os";
import { describe, it } from "node:test";
import { AGENT_ID, eventually, Site, storeArgs } from "../../testing/programs.ts";
import { ask, connectHead, openTunnel, Origin } from "../../testing/sockets.ts";
import { StoreServer } from "../../testing/store_servers.ts";

const SERVED = "--admin.listen-address=:0";
const get = (address: string, path: string) => ask(address, `GET ${path} HTTP/1.1\r\nHost: localhost\r\n\r\n`);

/** Series with their values. */
async function metrics(address: string): Promise<Record<string, number>> {
  const { status, body } = await get(address, "/metrics");
  assert.equal(status, 200);
  const series = body.split("\n").filter((line) => line !== "" && !line.startsWith("#"));
  return Object.fromEntries(series.map((line) => {
    const space = line.lastIndexOf(" ");
    return [line.slice(0, space), Number(line.slice(space + 1))];
  }));
}

async function until(check: () => Promise<boolean>): Promise<void> {
  let [asking, held] = [false, false];
  await eventually(() => {
    if (!asking && !held) {
      asking = true;
      void check().catch(() => false).then((result) => [asking, held] = [false, result]);
    }
    return held;
  }, () => "It never came to pass");
}

describe("metrics, health and agents", () => {
  it("of proxy, load balancer and agent report a tunnel, a refusal and each other", async () => {
    await using cache = await StoreServer.start("memcached");
    await using site = await Site.create();
    await using origin = await Origin.start();
    const { proxy, addresses } = await site.startProxy([SERVED, ...storeArgs(cache)]);
    const { lb, clients } = await site.startLb(cache, [SERVED]);
    const of = async (program: typeof proxy) => String((await program.waitFor("listening")).admin);
    const [proxyAdmin, lbAdmin] = [await of(proxy), await of(lb)];
    assert.match(proxyAdmin, /^127\.0\.0\.1:/);
    const agent = await site.startAgent(addresses, [SERVED, "--agent-client.labels=site=berlin,rack=4"]);
    const agentAdmin = await of(agent);
    await until(async () =>
      (await ask(clients, connectHead("127.0.0.1:1"))).fields["proxy-status"]?.includes("connection_refused") === true
    );
    {
      using client = await openTunnel(clients, origin.authority);
      const server = await origin.accept();
      await client.write("question");
      await server.read(8);
      const [held] = JSON.parse((await get(proxyAdmin, "/agents")).body);
      assert.deepEqual([held.id, held.tunnels], [AGENT_ID, 1]);
      assert.deepEqual([held.labels, held.host], [{ site: "berlin", rack: "4" }, hostname()]);
      assert.equal(proxy.logged("agent connected", { agent: AGENT_ID, labels: "site=berlin,rack=4" }).length, 1);
      assert.match(held.version, /^reverse-http\/[0-9]/);
      assert.ok(
        held.receivedBytes > 0 && held.sentBytes > 0 && held.rttMs >= 0 && Date.parse(held.since) <= Date.now(),
        JSON.stringify(held),
      );
      const [own] = JSON.parse((await get(agentAdmin, "/agents")).body);
      assert.deepEqual([own.id, own.address, own.tunnels], [AGENT_ID, addresses.agents, 1]);
      assert.deepEqual(JSON.parse((await get(lbAdmin, "/agents")).body), [{ id: AGENT_ID, address: addresses.clients }]);
      for (const admin of [proxyAdmin, lbAdmin, agentAdmin]) {
        const all = await metrics(admin);
        assert.equal(all["reverse_http_tunnels_active"], 1, admin);
        if (admin !== agentAdmin) assert.equal(all["reverse_http_client_connections_active"], 1, admin);
        assert.equal((await get(admin, "/readyz")).status, 200);
      }
      client.finish();
      await server.readAll();
      server.finish("answer");
      await client.readAll();
    }
    for (const admin of [proxyAdmin, lbAdmin, agentAdmin]) {
      await until(async () => (await metrics(admin))['reverse_http_tunnels_total{outcome="completed"}'] === 1);
      const all = await metrics(admin);
      assert.equal(all["reverse_http_tunnels_active"], 0);
      if (admin !== agentAdmin) assert.equal(all["reverse_http_client_connections_active"], 0);
      assert.ok(all['reverse_http_requests_rejected_total{status="502",error_type="connection_refused"}']! >= 1);
      assert.equal(all['reverse_http_tunnel_bytes_total{direction="sent"}'], 8);
      assert.equal(all['reverse_http_tunnel_bytes_total{direction="received"}'], 6);
      assert.equal(all["reverse_http_tunnel_setup_duration_seconds_count"], 1);
      assert.equal(all["reverse_http_tunnel_duration_seconds_count"], 1);
      assert.ok(all["process_open_fds"]! > 3);
      const names = Object.keys(all).join("\n");
      for (const secret of [AGENT_ID, origin.authority]) assert.ok(!names.includes(secret), `${secret} is a label`);
    }
    const all = await metrics(proxyAdmin);
    assert.equal(all["reverse_http_agents"], 1);
    assert.equal(all['reverse_http_agent_connections_total{outcome="accepted"}'], 1);
    assert.ok(all['reverse_http_quic_rtt_seconds{percentile="50"}']! > 0);
    assert.ok(all["reverse_http_quic_packets_sent_total"]! > 0);
    const days = (all['reverse_http_certificate_expiry_timestamp_seconds{use="agents"}']! * 1_000 - Date.now()) / 86_400_000;
    assert.ok(days > 0.9 && days < 1.1, `${days} days`);
    assert.equal((await metrics(agentAdmin))["reverse_http_proxy_connections_active"], 1);
  });

  it("report a store that is down, and its recovery", async () => {
    await using cache = await StoreServer.start("memcached");
    await using site = await Site.create();
    const { proxy, addresses } = await site.startProxy([SERVED, ...storeArgs(cache), "--store.ttl=3s"]);
    await site.startAgent(addresses);
    const admin = String((await proxy.waitFor("listening")).admin);
    assert.equal((await get(admin, "/readyz")).status, 200);
    await cache.kill();
    await proxy.waitFor("store unavailable");
    const { status, body } = await get(admin, "/readyz");
    assert.equal(status, 503);
    const { ready, problems } = JSON.parse(body);
    assert.deepEqual([ready, Object.keys(problems)], [false, ["store"]]);
    assert.ok(problems.store.startsWith(`memcached at ${cache.address}: `), problems.store);
    assert.equal((await get(admin, "/readyz?exclude=store")).status, 200);
    const all = await metrics(admin);
    assert.equal(all[`reverse_http_store_up{server="memcached at ${cache.address}"}`], 0);
    assert.ok(all["reverse_http_store_errors_total"]! >= 1);
    await cache.restart();
    await proxy.waitFor("store recovered");
    assert.equal((await get(admin, "/readyz")).status, 200);
  });

  for (const kind of ["memcached", "redis"] as const) {
    for (const part of ["proxy", "lb"] as const) {
      it(`of ${part} report from the start that ${kind} is down, and that it has recovered, without a client`, async () => {
        await using cache = await StoreServer.start(kind);
        await cache.kill();
        await using site = await Site.create();
        const program = part === "proxy"
          ? (await site.startProxy([SERVED, ...storeArgs(cache)])).proxy
          : (await site.startLb(cache, [SERVED])).lb;
        const admin = String((await program.waitFor("listening")).admin);
        const { status, body } = await get(admin, "/readyz");
        assert.equal(status, 503);
        assert.ok(JSON.parse(body).problems.store.startsWith(`${kind} at ${cache.address}: `), body);
        await cache.restart();
        await program.waitFor("store recovered");
        assert.equal((await get(admin, "/readyz")).status, 200);
      });
    }
  }

  it("report that Redis refuses the password, without showing it", async () => {
    await using cache = await StoreServer.start("redis", ["--requirepass", "right"]);
    await using site = await Site.create();
    for (const user of [":hush-hush", "default:hush-hush", ""]) {
      const { lb } = await site.startLb({ kind: "redis", address: `${user === "" ? "" : `${user}@`}${cache.address}` }, [SERVED]);
      const { status, body } = await get(String((await lb.waitFor("listening")).admin), "/readyz");
      assert.equal(status, 503);
      assert.match(JSON.parse(body).problems.store, /^redis at [0-9.:]+: authentication failed: (WRONGPASS|NOAUTH)/);
      const { reason } = await lb.waitFor("store unavailable");
      assert.match(String(reason), /^authentication failed: /);
      assert.ok(!lb.said.includes("hush-hush"), lb.said);
    }
  });

  it("of an agent report that it is not ready while it has no proxy", async () => {
    await using site = await Site.create();
    const { proxy, addresses } = await site.startProxy();
    const agent = await site.startAgent(addresses, [SERVED]);
    const admin = String((await agent.waitFor("listening")).admin);
    assert.equal((await get(admin, "/readyz")).status, 200);
    proxy.signal("SIGKILL");
    await agent.waitFor("not connected");
    const { status, body } = await get(admin, "/readyz");
    assert.equal(status, 503);
    assert.deepEqual(JSON.parse(body).problems, { proxy: "not connected to a proxy" });
  });

  for (const part of ["proxy", "load balancer"] as const) {
    it(`of a ${part} report that it is not ready while it drains`, async () => {
      await using cache = await StoreServer.start("memcached");
      await using site = await Site.create();
      await using origin = await Origin.start();
      const { proxy, addresses } = await site.startProxy([SERVED, ...storeArgs(cache)]);
      const { lb, clients } = await site.startLb(cache, [SERVED]);
      await site.startAgent(addresses);
      await until(async () =>
        JSON.parse((await get(String((await lb.waitFor("listening")).admin), "/agents")).body).length > 0 ||
        (await ask(clients, connectHead("127.0.0.1:1"))).status === 0
      );
      using client = await openTunnel(clients, origin.authority);
      const server = await origin.accept();
      const program = part === "proxy" ? proxy : lb;
      const admin = String((await program.waitFor("listening")).admin);
      program.signal("SIGTERM");
      await program.waitFor("draining");
      const { status, body } = await get(admin, "/readyz");
      assert.equal(status, 503);
      assert.deepEqual(JSON.parse(body).problems, { draining: "draining" });
      assert.equal((await get(admin, "/healthz")).status, 200);
      server.finish("done");
      client.finish();
      await client.readAll();
      assert.equal((await program.ended).exitCode, 0);
    });
  }

  it("are not served by default", async () => {
    await using site = await Site.create();
    const { proxy } = await site.startProxy();
    assert.deepEqual(proxy.logged("listening").filter(({ admin }) => admin !== undefined), []);
  });

  it("prevent the start of a proxy if their address is in use", async () => {
    await using origin = await Origin.start();
    await using site = await Site.create();
    const { proxy } = await site.startProxy([`--admin.listen-address=${origin.authority}`]).catch(() => ({ proxy: undefined }));
    assert.equal(proxy, undefined);
  });
});
