// A proxy of several processes at the same addresses, with the compiled executables. Linux only.
import assert from "node:assert/strict";
import type { RemoteInfo } from "node:dgram";
import { existsSync, readdirSync, readFileSync } from "node:fs";
import { connect } from "node:http2";
import process from "node:process";
import { describe, it } from "node:test";
import { check } from "../../testing/load.ts";
import { UdpServer } from "../../testing/masque.ts";
import { freeAddress } from "../../testing/nginx.ts";
import {
  type Addresses,
  AGENT,
  AGENT_ID,
  eventually,
  type LogEntry,
  type Program,
  PROXY,
  REVERSE_HTTP,
  runToEnd,
  Site,
} from "../../testing/programs.ts";
import { ask, credentials, dial, openTunnel, Origin, type Wire } from "../../testing/sockets.ts";
import { credentials as login, methods, request } from "../../testing/socks.ts";
import { speakAsClient, SpeakingOrigin } from "../../testing/streams.ts";
import { ServiceManager } from "../../testing/supervisor.ts";
import { makeTokenKey } from "../../testing/tokens.ts";
import { UdpRelay } from "../../testing/udp_relay.ts";

const onLinux = { skip: process.platform === "linux" ? false : "other systems do not distribute connections over processes" };
/** Attempts after which the kernel has chosen each of two workers, but for one of 10^17 runs. */
const MAX_ATTEMPTS = 60;

/** An echo server. */
async function echo(wire: Wire): Promise<void> {
  for (let data; (data = await wire.next()) !== null;) await wire.write(data);
  wire.finish();
}

/** Starts a proxy of two workers, and waits until both serve. */
async function startWorkers(
  site: Site,
  args: readonly string[] = [],
  more: Record<string, string> = {},
): Promise<{ proxy: Program; addresses: Addresses; pids: number[] }> {
  const env = { PATH: "/usr/bin:/bin", HOME: "/nonexistent", TMPDIR: site.folder.path, ...more };
  const proxy = site.start(PROXY, [...site.proxyArgs(), "--workers=2", ...args], { env });
  const { pids } = await proxy.waitFor("workers serve");
  // each process writes its own lines
  const [one, two] = [await proxy.waitFor("listening", { worker: 0 }), await proxy.waitFor("listening", { worker: 1 })];
  assert.deepEqual([one.agents, one.clients, one.socks], [two.agents, two.clients, two.socks]);
  const addresses = { agents: String(one.agents), clients: String(one.clients) };
  return { proxy, addresses, pids: String(pids).split(",").map(Number) };
}

/** Which worker holds the agent. */
async function holderOf(proxy: Program, agent: string): Promise<number> {
  return Number((await proxy.waitFor("agent connected", { agent })).worker);
}

/** Starts agents until each worker holds one; returns their ids by worker. */
async function startAgents(site: Site, proxy: Program, addresses: Addresses, args: readonly string[] = []): Promise<[string, string]> {
  const held: string[] = [];
  for (let count = 0; held[0] === undefined || held[1] === undefined; count++) {
    assert.ok(count < MAX_ATTEMPTS, "one worker holds all agents");
    const id = `site${count}`;
    await site.startAgent(addresses, ["--agent-client.host-whitelist=127.0.0.1,udp:127.0.0.1", ...args], id);
    held[await holderOf(proxy, id)] ??= id;
  }
  return [held[0]!, held[1]!];
}

/** Repeats `use` until it has gone through each worker, as the lines of the log say that match. */
async function throughEach(proxy: Program, line: Partial<LogEntry>, use: () => Promise<void>): Promise<void> {
  const lines = () => proxy.logged("request", line);
  const before = lines().length;
  const workers = new Set<unknown>();
  for (let count = 1; workers.size < 2; count++) {
    assert.ok(count <= MAX_ATTEMPTS, `only the worker ${[...workers].join()} was used`);
    await use();
    await proxy.waitFor("request", line, before + count);
    for (const { worker } of lines().slice(before)) workers.add(worker);
  }
}

/** A client that finishes first gets the response. */
async function finishFirst(wire: Wire): Promise<void> {
  wire.finish("question");
  assert.equal((await wire.readAll()).toString(), "question");
}

describe("a proxy of two workers", onLinux, () => {
  it("reaches each agent through each worker, for every client protocol", async () => {
    await using site = await Site.create();
    await using origin = await Origin.start(echo);
    await using udp = await UdpServer.start((payload) => payload);
    const { proxy, addresses } = await startWorkers(site, [
      "--socks.listen-address=127.0.0.1:0",
      "--http-proxy.http2-listen-address=127.0.0.1:0",
      "--http-proxy.host-whitelist=127.0.0.1,udp:127.0.0.1",
      `--forward=listen=127.0.0.1:0,agent=site0,to=${origin.authority}`,
      `--forward=listen=127.0.0.1:0,network=udp,agent=site0,to=${udp.authority}`,
    ]);
    const agents = await startAgents(site, proxy, addresses);
    const { socks, http2 } = await proxy.waitFor("listening");
    for (const agent of agents) {
      await throughEach(proxy, { agent, protocol: undefined, method: "CONNECT", status: 200 }, async () => {
        using tunnel = await openTunnel(addresses.clients, origin.authority, { id: agent });
        await finishFirst(tunnel);
      });
      await throughEach(proxy, { agent, method: "CONNECT", status: 200 }, async () => {
        const session = connect(`http://${http2}`);
        const stream = session.request({
          ":method": "CONNECT",
          ":authority": origin.authority,
          "proxy-authorization": credentials(agent).replace(/^.*?: |\r\n$/g, ""),
        });
        stream.end("question");
        let answer = "";
        for await (const data of stream) answer += String(data);
        assert.equal(answer, "question");
        session.close();
      });
      await throughEach(proxy, { agent, protocol: "socks5", status: 200 }, async () => {
        using wire = await dial(String(socks));
        await wire.write(methods(2));
        await wire.read(2);
        await wire.write(login(agent, "x"));
        await wire.read(2);
        await wire.write(request(origin.host, origin.port));
        await wire.read(10);
        await finishFirst(wire);
      });
    }
    const listens = proxy.logged("forwarding", { worker: 0 }).map(({ clients }) => String(clients));
    assert.deepEqual(proxy.logged("forwarding", { worker: 1 }).map(({ clients }) => String(clients)), listens);
    await throughEach(proxy, { agent: "site0", method: "FORWARD", status: 200 }, async () => {
      using wire = await dial(listens[0]!);
      await finishFirst(wire);
    });
    await throughEach(proxy, { agent: "site0", network: "udp", method: "GET", status: 101 }, async () => {
      using wire = await dial(addresses.clients);
      await wire.write(
        `GET /.well-known/masque/udp/${
          udp.authority.replace(":", "/")
        }/ HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: connect-udp\r\n` +
          `Capsule-Protocol: ?1\r\n${credentials("site0")}\r\n`,
      );
      assert.match(await wire.readUntil("\r\n\r\n"), /^HTTP\/1\.1 101 /);
      await wire.write(Uint8Array.of(0, 6, 0, ...new TextEncoder().encode("hello")));
      assert.equal((await wire.read(8)).subarray(3).toString(), "hello");
    });
    const client = await UdpServer.start();
    await client.send("flow", { address: "127.0.0.1", port: Number(listens[1]!.split(":")[1]) } as RemoteInfo);
    assert.equal(String((await client.receive()).payload), "flow");
    await client[Symbol.asyncDispose]();
    assert.deepEqual(proxy.entries.filter(({ level }) => level === "ERROR"), []);
  });

  it("keeps bytes, resets, refusals and plain requests as they are, also those of agents over TLS", async () => {
    await using site = await Site.create();
    await using origin = await Origin.start();
    await using speaking = await SpeakingOrigin.start();
    const { proxy, addresses } = await startWorkers(site);
    const [agent] = await startAgents(site, proxy, addresses, ["--agent-client.transport=tls"]);
    let seed = 0;
    for (const reset of [undefined, "client", "origin"] as const) {
      await throughEach(proxy, { agent, method: "CONNECT", status: 200 }, async () => {
        using tunnel = await openTunnel(addresses.clients, speaking.authority, { id: agent });
        await speakAsClient(tunnel, { seed: seed += 2, up: 3_000_001, down: 2_000_003, reset });
      });
    }
    await throughEach(proxy, { agent, method: "CONNECT", status: 200 }, async () => {
      using tunnel = await openTunnel(addresses.clients, origin.authority, { id: agent });
      (await origin.accept()).reset();
      await assert.rejects(tunnel.readAll());
    });
    await throughEach(proxy, { agent, method: "CONNECT", status: 502 }, async () => {
      const answer = await ask(addresses.clients, `CONNECT 127.0.0.1:1 HTTP/1.1\r\nHost: a\r\n${credentials(agent)}\r\n`);
      assert.match(answer.fields["proxy-status"] ?? "", /error=connection_refused/);
    });
    await throughEach(proxy, { agent, method: "GET", status: 200 }, async () => {
      const asked = ask(
        addresses.clients,
        `GET http://${origin.authority}/ HTTP/1.1\r\nHost: a\r\n${credentials(agent)}Connection: close\r\n\r\n`,
      );
      const server = await origin.accept();
      await server.readUntil("\r\n\r\n");
      await server.write("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nbody");
      assert.equal((await asked).body, "body");
    });
  });

  it("publishes ports of agents at each worker, and has them listen at another address together", async () => {
    await using site = await Site.create();
    await using origin = await Origin.start(echo);
    const key = makeTokenKey();
    const config = site.folder.write("config.yaml", "log.level: info\n");
    const { proxy, addresses } = await startWorkers(site, [
      `--config=${config}`,
      "--auth.type=jwt",
      `--auth.jwt.public-key=${site.folder.write("public.pem", key.publicPem)}`,
    ]);
    const holders = new Set<number>();
    for (let count = 0; holders.size < 2; count++) {
      assert.ok(count < MAX_ATTEMPTS, "one worker holds all agents");
      const [id, listen] = [`site${count}`, (await freeAddress()).replace(/.*:/, ":")];
      const token = site.folder.write(`${id}.jwt`, await key.sign({ agentId: id, role: "agent", publish: [listen] }));
      site.start(AGENT, [
        ...site.agentArgs(addresses, id).filter((arg) => !arg.startsWith("--auth.")),
        "--auth.type=jwt",
        `--auth.jwt.token=file:${token}`,
        `--agent-client.publish=listen=${listen},to=${origin.authority},allow=all`,
      ]);
      holders.add(await holderOf(proxy, id));
      for (const worker of [0, 1]) await proxy.waitFor("forwarding", { agent: id, worker });
      await throughEach(proxy, { agent: id, method: "FORWARD", status: 200 }, async () => {
        using wire = await dial(`127.0.0.1${listen}`);
        await finishFirst(wire);
      });
    }
    site.folder.write("config.yaml", `http-proxy.http2-listen-address: "${await freeAddress()}"\n`);
    proxy.signal("SIGHUP");
    for (const worker of [0, 1]) await proxy.waitFor("configuration reloaded", { worker });
    assert.deepEqual(proxy.entries.filter(({ level }) => level === "ERROR" || level === "WARN"), []);
  });

  it("replaces a worker that does not run", async () => {
    await using site = await Site.create();
    await using manager = await ServiceManager.start();
    const { proxy, pids } = await startWorkers(site, [], { NOTIFY_SOCKET: manager.socket, WATCHDOG_USEC: "3000000" });
    process.kill(pids[1]!, "SIGSTOP");
    await proxy.waitFor("worker does not respond", { worker: 1 });
    await proxy.waitFor("worker restarted", { worker: 1 });
    proxy.expectCutOff();
  });

  it("restarts a worker that was killed, whose agents come back, while the tunnels of the other one go on", async () => {
    await using site = await Site.create();
    await using origin = await Origin.start(echo);
    const audit = `${site.folder.path}/audit.jsonl`;
    const { proxy, addresses, pids } = await startWorkers(site, [`--audit.file=${audit}`]);
    const [lost, kept] = await startAgents(site, proxy, addresses);
    // the kernel gives some of the clients to worker 1, too: they do not depend on worker 0
    const tunnels = await Promise.all(Array.from({ length: 24 }, () => openTunnel(addresses.clients, origin.authority, { id: kept })));
    process.kill(pids[0]!, "SIGKILL");
    await proxy.waitFor("worker has ended", { worker: 0 });
    const left: Wire[] = [];
    for (const tunnel of tunnels) await check(tunnel).then(() => left.push(tunnel), () => {});
    assert.ok(left.length > 0, "no tunnel is left");
    await proxy.waitFor("worker restarted", { worker: 0 });
    const records = readFileSync(audit, "utf8").trimEnd().split("\n").map((line) => JSON.parse(line) as Record<string, unknown>);
    const workersOf = (wanted: object) => records.filter((record) => Object.entries(wanted).every(([key, value]) => record[key] === value));
    const started = workersOf({ event: "start", worker: 0 }).map(({ tunnel }) => tunnel);
    assert.ok(started.length > 0, "the worker has no tunnels");
    assert.deepEqual(workersOf({ event: "end", outcome: "lost", worker: 0 }).map(({ tunnel }) => tunnel), started);
    assert.deepEqual(workersOf({ event: "end", worker: 1, outcome: "lost" }), []);
    await proxy.waitFor("agent connected", { agent: lost }, 2);
    await throughEach(proxy, { agent: lost, status: 200 }, async () => {
      using tunnel = await openTunnel(addresses.clients, origin.authority, { id: lost });
      await finishFirst(tunnel);
    });
    for (const tunnel of left) await check(tunnel);
    for (const tunnel of tunnels) tunnel[Symbol.dispose]();
  });

  it("keeps tunnels of agents whose addresses change", async () => {
    await using site = await Site.create();
    await using origin = await Origin.start(echo);
    const { proxy, addresses } = await startWorkers(site);
    await using relay = await UdpRelay.start({ server: addresses.agents });
    await site.startAgent({ ...addresses, agents: relay.address });
    using tunnel = await openTunnel(addresses.clients, origin.authority);
    for (let count = 0; count < 8; count++) {
      await check(tunnel);
      relay.rebind();
    }
    await check(tunnel);
    assert.equal(proxy.logged("agent connected", { agent: AGENT_ID }).length, 1);
  });

  it("is one service for operators, reloads on SIGHUP, and drains on SIGTERM", async () => {
    await using site = await Site.create();
    await using origin = await Origin.start(echo);
    const admin = `${site.folder.path}/admin.sock`;
    const config = site.folder.write("config.yaml", "log.level: info\n");
    const { proxy, addresses } = await startWorkers(site, [`--admin.socket=${admin}`, `--config=${config}`]);
    const agents = await startAgents(site, proxy, addresses);
    const { stdout } = await runToEnd(REVERSE_HTTP, ["agents", `--admin=${admin}`]);
    for (const agent of agents) assert.match(stdout, new RegExp(`^${agent} `, "m"));
    site.folder.write("config.yaml", "log.level: debug\n");
    proxy.signal("SIGHUP");
    for (const worker of [0, 1]) await proxy.waitFor("configuration reloaded", { worker });
    using tunnel = await openTunnel(addresses.clients, origin.authority, { id: agents[0] });
    await check(tunnel);
    site.folder.write("config.yaml", "limits.tunnels: many\n");
    proxy.signal("SIGHUP");
    for (const worker of [0, 1]) await proxy.waitFor("reload failed; the configuration in force stays", { worker });
    await check(tunnel);
    proxy.signal("SIGTERM");
    for (const worker of [0, 1]) await proxy.waitFor("draining", { worker });
    await check(tunnel);
    tunnel.finish();
    await tunnel.readAll();
    assert.equal((await proxy.ended).exitCode, 0);
    assert.equal(proxy.logged("stopped").length, 2);
  });

  it("ends with its supervising process", async () => {
    await using site = await Site.create();
    const { proxy, pids } = await startWorkers(site);
    proxy.signal("SIGKILL");
    await eventually(() => pids.every((pid) => !existsSync(`/proc/${pid}`)), () => `a worker of ${pids.join()} still runs`);
    await proxy.ended;
    assert.deepEqual(readdirSync(site.folder.path).filter((name) => name.startsWith("reverse-http-")), []);
  });

  it("refuses what cannot be, before and after it listens", async () => {
    await using site = await Site.create();
    await using origin = await Origin.start();
    const run = async (...args: string[]) => await runToEnd(PROXY, [...site.proxyArgs(), ...args]);
    const refused = await run("--workers=2", `--handover.socket=${site.folder.path}/handover.sock`);
    assert.equal(refused.exitCode, 2);
    assert.match(refused.stderr, /Cannot use --workers 2: .*--handover\.socket/);
    const inUse = await run("--workers=2", `--http-proxy.listen-address=${origin.authority}`);
    assert.equal(inUse.exitCode, 1);
    assert.match(inUse.stderr, /Address already in use/);
    const { addresses } = await startWorkers(site);
    const second = await run("--workers=2", `--http-proxy.listen-address=${addresses.clients}`);
    assert.equal(second.exitCode, 1);
    assert.match(second.stderr, /Address already in use/);
  });
});
