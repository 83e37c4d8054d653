// SOCKS 5 with the compiled executables: replies that mean what happened, segments, limits, lb. clients_test.ts has real clients.
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import process from "node:process";
import { describe, it } from "node:test";
import { join } from "node:path";
import { AGENT, AGENT_ID, Pair, type Program, ROOT, runToEnd, Site } from "../../testing/programs.ts";
import { ask, type ClientTls, connectHead, dial, dialTls, openTunnel, Origin, type Wire } from "../../testing/sockets.ts";
import { credentials, methods, reply, request, requestOf } from "../../testing/socks.ts";
import { freePort, StoreServer } from "../../testing/store_servers.ts";
import { makeTicket, makeTokenKey } from "../../testing/tokens.ts";

const SOCKS = "--socks.listen-address=127.0.0.1:0";
const onLinux = { skip: process.platform === "linux" ? false : "only Linux counts segments for programs" };

/** The SOCKS port of a program. */
async function socksOf(program: Program): Promise<string> {
  return String((await program.waitFor("listening")).socks);
}

/** Connects and authenticates; the status of the credentials is 0. */
async function login(address: string, id = AGENT_ID, password = "x", tls?: ClientTls): Promise<Wire> {
  const wire = tls ? await dialTls(address, tls) : await dial(address);
  await wire.write(methods(0, 2));
  assert.deepEqual([...await wire.read(2)], [5, 2]);
  await wire.write(credentials(id, password));
  assert.deepEqual([...await wire.read(2)], [1, 0]);
  return wire;
}

/** The reply to a request. */
async function replyTo(address: string, message: Uint8Array, id?: string): Promise<number[]> {
  using wire = await login(address, id);
  await wire.write(message);
  return [...await wire.read(10)];
}

/** What a client gets until it is closed. */
async function answerTo(address: string, ...messages: Uint8Array[]): Promise<number[]> {
  using wire = await dial(address);
  for (const message of messages) await wire.write(message);
  return [...await wire.readAll()];
}

/** A tunnel to `origin`, whose client finishes first. */
async function echo(address: string, origin: Origin, { password, tls }: { password?: string; tls?: ClientTls } = {}): Promise<void> {
  using wire = await login(address, AGENT_ID, password, tls);
  await wire.write(request(origin.host, origin.port));
  assert.deepEqual([...await wire.read(10)], reply(0));
  const server = await origin.accept();
  wire.finish("ping");
  assert.equal((await server.readAll()).toString(), "ping");
  server.finish("pong");
  assert.equal((await wire.readAll()).toString(), "pong");
}

describe("SOCKS 5", () => {
  it("opens tunnels, and replies what happened to those that it does not open", async () => {
    await using pair = await Pair.start({
      proxy: [SOCKS, "--http-proxy.host-whitelist=127.0.0.0/8,*.test"],
      agent: ["--agent-client.host-denylist=127.0.0.1:1"],
    });
    await using origin = await Origin.start();
    const address = await socksOf(pair.proxy);
    await echo(address, origin);
    await pair.proxy.waitFor("request", { protocol: "socks5", method: "CONNECT", agent: AGENT_ID, status: 200, sent: 4, received: 4 });
    const replies: [Uint8Array, code: number, error: string, id?: string][] = [
      [request("127.0.0.1", await freePort()), 5, "connection_refused"],
      [requestOf([127, 0, 0, 1], 1), 2, "destination_ip_prohibited"],
      [request("[127.0.0.1]", 1), 2, "destination_ip_prohibited"],
      [requestOf([10, 0, 0, 1], 80), 2, "http_request_denied"],
      [request("nowhere.test", 80), 4, "dns_error"],
      [request("127.0.0.1", 80), 4, "destination_unavailable", "nobody"],
      [request("127.0.0.1", 80, 2), 7, "http_request_denied"],
    ];
    for (const [message, code, error, id] of replies) {
      const { length } = pair.proxy.logged("request", { protocol: "socks5", error });
      assert.deepEqual(await replyTo(address, message, id), reply(code), error);
      await pair.proxy.waitFor("request", { protocol: "socks5", error }, length + 1);
    }
  });

  it("is recognized at the clients' port, with TLS too, beside HTTP", async () => {
    await using origin = await Origin.start();
    for (const isSecure of [false, true]) {
      await using site = await Site.create();
      const { ca, cert, key } = site.files;
      const secure = ["--http-proxy.tls.enable", `--http-proxy.tls.file.cert=${cert}`, `--http-proxy.tls.file.key=${key}`];
      const { proxy, addresses } = await site.startProxy(isSecure ? secure : []);
      await site.startAgent(addresses);
      const tls = isSecure ? { ca: readFileSync(ca, "utf8") } : undefined;
      await echo(addresses.clients, origin, { tls });
      await proxy.waitFor("request", { protocol: "socks5", status: 200 });
      using tunnel = await openTunnel(addresses.clients, origin.authority, { tls });
      await origin.accept();
      tunnel.reset();
      assert.equal((await proxy.waitFor("request", { method: "CONNECT", protocol: undefined })).status, 200);
      if (!isSecure) continue;
      using plain = await dial(addresses.clients);
      await plain.write(methods(2));
      await plain.ending();
      await proxy.waitFor("client handshake failed", { reason: "This is SOCKS 5, but this port accepts only TLS" });
    }
  });

  it("sends the reply in a segment of its own, also where the server speaks first", onLinux, async () => {
    await using pair = await Pair.start({ proxy: [SOCKS] });
    const greeting = "220 ready";
    await using origin = await Origin.start(async (wire) => {
      await wire.write(greeting);
      await wire.ending();
    });
    const [host, port] = (await socksOf(pair.proxy)).split(":");
    const script = join(ROOT, "tests", "clients", "socks_segments.py");
    const args = [script, host!, port!, AGENT_ID, origin.host, String(origin.port), greeting];
    const { exitCode, stdout, stderr } = await runToEnd("python3", args);
    assert.equal(exitCode, 0, stderr);
    assert.ok(Number(stdout) >= 4, `the method, the status, the reply and the greeting came in ${stdout.trim()} segments`);
  });

  it("counts wrong passwords with those of HTTP, and empty ones not at all", async () => {
    await using site = await Site.create();
    const key = makeTokenKey();
    const { proxy, addresses: { clients } } = await site.startProxy([
      SOCKS,
      "--auth.type=jwt",
      `--auth.jwt.public-key=${site.folder.write("public.pem", key.publicPem)}`,
      "--limits.auth-failures=3",
      "--limits.exempt-addresses=192.0.2.1",
    ]);
    const address = await socksOf(proxy);
    const password = await key.sign();
    const status = async () => (await ask(clients, connectHead("127.0.0.1:1", AGENT_ID, password))).status;
    for (let i = 0; i < 10; i++) assert.deepEqual(await answerTo(address, methods(2), credentials(AGENT_ID, "")), [5, 2, 1, 1]);
    for (let i = 0; i < 10; i++) assert.deepEqual(await answerTo(address, methods(0)), [5, 0xff]);
    assert.equal(await status(), 502);
    for (let i = 0; i < 8; i++) assert.deepEqual(await answerTo(address, methods(2), credentials(AGENT_ID, `wrong ${i}`)), [5, 2, 1, 1]);
    await proxy.waitFor("limit reached", { limit: "auth-failures", address: "127.0.0.1" });
    assert.equal(await status(), 503);
  });

  it("takes tickets as passwords, as HTTP does, also by way of lb", async () => {
    await using cache = await StoreServer.start("memcached");
    await using site = await Site.create();
    const key = makeTokenKey();
    const auth = ["--auth.type=jwt", `--auth.jwt.public-key=${site.folder.write("public.pem", key.publicPem)}`];
    const { addresses } = await site.startProxy([...auth, "--store.type=memcached", `--store.memcached.address=${cache.address}`]);
    const { lb, clients } = await site.startLb(cache, auth);
    const agentArgs = site.agentArgs(addresses).filter((arg) => !arg.startsWith("--auth."));
    const agent = site.start(AGENT, [...agentArgs, "--auth.type=jwt", `--auth.jwt.token=${await key.sign({ role: "agent" })}`]);
    await agent.waitFor("connected");
    await using origin = await Origin.start();
    const ticket = await makeTicket(key);
    for (const address of [addresses.clients, clients]) {
      await echo(address, origin, { password: ticket });
      using tunnel = await openTunnel(address, origin.authority, { password: ticket });
      await origin.accept();
      tunnel.reset();
      assert.deepEqual(await answerTo(address, methods(2), credentials("other", ticket)), [5, 2, 1, 1]);
    }
    await lb.waitFor("request", { protocol: "socks5", agent: AGENT_ID, status: 200 });
  });

  it("is served by lb too, with the credentials that its proxy checks", async () => {
    await using cache = await StoreServer.start("memcached");
    await using site = await Site.create();
    const store = ["--store.type=memcached", `--store.memcached.address=${cache.address}`];
    const { proxy, addresses } = await site.startProxy(store);
    const { lb } = await site.startLb(cache, [SOCKS]);
    await site.startAgent(addresses);
    await using origin = await Origin.start();
    const address = await socksOf(lb);
    await echo(address, origin);
    await proxy.waitFor("request", { method: "CONNECT", agent: AGENT_ID, destination: origin.authority, status: 200 });
    assert.deepEqual(await replyTo(address, request("127.0.0.1", await freePort())), reply(5));
    assert.deepEqual(await replyTo(address, request("127.0.0.1", 80), "nobody"), reply(4));
    await lb.waitFor("request", { protocol: "socks5", error: "connection_refused", status: 502 });
  });
});
