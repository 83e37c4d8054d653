// Agents that connect within WebSockets, with the compiled executables: directly, and through nginx, which has a certificate of its own.
import assert from "node:assert/strict";
import process from "node:process";
import { describe, it } from "node:test";
import { makeAuthority, pinOf } from "../../testing/certificates.ts";
import { check } from "../../testing/load.ts";
import { freeAddress, NginxHttp } from "../../testing/nginx.ts";
import { Squid, USER_IN_URL } from "../../testing/outbound_proxies.ts";
import { AGENT, type Program, PROXY, runToEnd, Site, storeArgs } from "../../testing/programs.ts";
import { ask, assertRefused, openTunnel, Origin, type Wire } from "../../testing/sockets.ts";
import { StoreServer } from "../../testing/store_servers.ts";

const onLinux = { skip: process.platform === "linux" ? false : "Squid's helpers are where Debian has them" };
const PATH = "/reverse-http";
const OVER_WEB_SOCKET = "--agent-client.transport=websocket";
const LARGE = 20 << 20;

async function echo(wire: Wire): Promise<void> {
  for (let data; (data = await wire.next()) !== null;) await wire.write(data);
  wire.finish();
}

/** A proxy that has no other TCP port for agents than that of clients. */
async function startProxy(site: Site, more: readonly string[] = []) {
  return await site.startProxy([
    `--agent-server.websocket-path=${PATH}`,
    "--agent-server.tcp-listen-address=none",
    "--admin.listen-address=127.0.0.1:0",
    ...more,
  ]);
}

/** The options of an agent that connects at `address` in a WebSocket. */
function within(address: string, scheme: "ws" | "wss" = "ws"): string[] {
  return [OVER_WEB_SOCKET, `--agent-client.websocket-url=${scheme}://${address}${PATH}`];
}

async function admin(program: Program, path: string): Promise<string> {
  const { admin } = await program.waitFor("listening");
  return (await ask(String(admin), `GET ${path} HTTP/1.1\r\nHost: a\r\n\r\n`)).body;
}

/** Sends data both ways and ends one direction after the other. */
async function transfer(clients: string, origin: Origin): Promise<void> {
  using client = await openTunnel(clients, origin.authority);
  const data = crypto.getRandomValues(new Uint8Array(64 << 10));
  const sending = (async () => {
    for (let sent = 0; sent < LARGE; sent += data.length) await client.write(data);
    client.finish();
  })();
  const received = await client.readAll();
  await sending;
  assert.equal(received.length, LARGE);
  for (let at = 0; at < LARGE; at += data.length) assert.equal(received.subarray(at, at + data.length).compare(data), 0);
}

describe("an agent within a WebSocket", () => {
  it("serves tunnels, and shows in logs, reports and metrics how it is connected", async () => {
    await using site = await Site.create();
    await using origin = await Origin.start(echo);
    const { proxy, addresses } = await startProxy(site);
    const agent = await site.startAgent(addresses, [...within(addresses.clients), "--admin.listen-address=127.0.0.1:0"]);
    assert.equal((await agent.waitFor("connected")).link, "websocket");
    assert.equal((await proxy.waitFor("agent connected")).link, "websocket");
    await transfer(addresses.clients, origin);
    for (const program of [proxy, agent]) {
      assert.match(await admin(program, "/agents"), /"link":"websocket"/);
      assert.match(await admin(program, "/metrics"), /reverse_http_links_active\{link="websocket"\} 1/);
    }
    assert.equal((await agent.stop()).exitCode, 0);
    await proxy.waitFor("agent disconnected", { reason: "closed by the agent: 0 shutting down" });
    assert.equal((await proxy.stop()).exitCode, 0);
  });

  for (const scheme of ["ws", "wss"] as const) {
    it(`connects through nginx with ${scheme}, whose certificate does not matter`, async () => {
      await using site = await Site.create();
      await using origin = await Origin.start(echo);
      const { proxy, addresses } = await startProxy(site, ["--http-proxy.trusted-proxies=127.0.0.1"]);
      const { cert, key } = await (await makeAuthority("Middlebox")).issue({ names: ["elsewhere.example"] });
      const tls = scheme === "wss"
        ? { cert: site.folder.write("nginx-cert.pem", cert), key: site.folder.write("nginx-key.pem", key) }
        : undefined;
      await using nginx = await NginxHttp.start({ servers: [addresses.clients], path: PATH, tls });
      const agent = await site.startAgent(addresses, within(nginx.address, scheme));
      assert.equal((await agent.waitFor("connected")).link, "websocket");
      // nginx reports the client in Forwarded
      assert.match(String((await proxy.waitFor("agent connected")).remote), /^192\.0\.2\.7:/);
      await transfer(addresses.clients, origin);
      await nginx[Symbol.asyncDispose]();
      await agent.waitFor("not connected"); // without CLOSE, it is a lost connection
    });
  }

  it("connects to a proxy whose clients use TLS, and with an agent's certificate", async () => {
    await using site = await Site.create();
    await using origin = await Origin.start(echo);
    const authority = await makeAuthority("Clients");
    const { cert, key } = await authority.issue({ names: ["localhost", "127.0.0.1"] });
    const members = await makeAuthority("Members");
    const member = await members.issue({ names: ["member"] });
    const { proxy, addresses } = await startProxy(site, [
      "--http-proxy.tls.enable",
      `--http-proxy.tls.file.cert=${site.folder.write("clients-cert.pem", cert)}`,
      `--http-proxy.tls.file.key=${site.folder.write("clients-key.pem", key)}`,
      `--agent-server.tls.file.client-ca=${site.folder.write("members.pem", members.cert)}`,
    ]);
    const refused = site.start(AGENT, [...site.agentArgs(addresses), ...within(addresses.clients, "wss")]);
    assert.match(String((await refused.waitFor("not connected")).reason), /the proxy requires a client certificate that it accepts/);
    await proxy.waitFor("agent handshake failed");
    await refused.stop();
    await site.startAgent(addresses, [
      ...within(addresses.clients, "wss"),
      `--agent-client.tls.file.cert=${site.folder.write("member-cert.pem", member.cert)}`,
      `--agent-client.tls.file.key=${site.folder.write("member-key.pem", member.key)}`,
    ]);
    using client = await openTunnel(addresses.clients, origin.authority, { tls: { ca: authority.cert } });
    await check(client);
  });

  it("leaves its network through an outbound proxy", onLinux, async () => {
    await using site = await Site.create();
    await using origin = await Origin.start(echo);
    await using squid = await Squid.start(["digest"]);
    const { addresses } = await startProxy(site);
    const outbound = `--agent-client.proxy=http://${USER_IN_URL}@${squid.address}`;
    const agent = await site.startAgent(addresses, [...within(addresses.clients), outbound]);
    assert.equal((await agent.waitFor("connected")).via, squid.address);
    await transfer(addresses.clients, origin);
  });

  it("is one of the ways that --check-link checks", async () => {
    await using site = await Site.create();
    const { addresses } = await startProxy(site);
    const args = [...site.agentArgs({ ...addresses, agents: await freeAddress() }), "--check-link"];
    for (const [scheme, expected] of [["ws", 0], ["wss", 1]] as const) {
      const url = `--agent-client.websocket-url=${scheme}://${addresses.clients}${PATH}`;
      const { exitCode, stdout } = await runToEnd(AGENT, [...args, url]);
      assert.equal(exitCode, expected, stdout);
      if (expected === 0) assert.match(stdout, /WebSocket data +ws:.* ok .*64 KiB each way[^]*it will use a WebSocket\./);
      else assert.match(stdout, /WebSocket \(HTTP\) +wss:.* failed [^]*The agent cannot connect\./);
    }
  });

  it("holds its pin, also where the WebSocket leads to another proxy", async () => {
    await using site = await Site.create();
    await using other = await Site.create();
    const { addresses } = await startProxy(other);
    const pin = pinOf(await site.authority.issue({ names: ["localhost"] }).then(({ cert }) => cert));
    const agent = site.start(AGENT, [
      `--agent-client.server-address=${addresses.agents}`,
      `--agent-client.tls.pin-sha256=${pin}`,
      "--auth.noauth.agent-id=4711",
      "--log.format=json",
      ...within(addresses.clients),
    ]);
    assert.match(String((await agent.waitFor("not connected")).reason), /is not the pinned one/);
  });

  it("moves to another proxy when its own stops, and keeps its tunnels; two share an id", async () => {
    await using site = await Site.create();
    await using origin = await Origin.start(echo);
    const more = ["--drain.timeout=20s", "--agent-server.agent.multiple"];
    const [a, b] = [await startProxy(site, more), await startProxy(site, more)];
    await using nginx = await NginxHttp.start({ servers: [a, b].map(({ addresses }) => addresses.clients), path: PATH });
    const agents = await Promise.all([1, 2].map(() => site.startAgent(a.addresses, within(nginx.address))));
    // nginx gives each proxy one of the two
    await a.proxy.waitFor("agent connected");
    await b.proxy.waitFor("agent connected");
    using tunnel = await openTunnel(a.addresses.clients, origin.authority);
    a.proxy.signal("SIGTERM");
    await b.proxy.waitFor("agent connected", {}, 2);
    await check(tunnel);
    tunnel[Symbol.dispose]();
    assert.equal((await a.proxy.ended).exitCode, 0);
    assert.match(await admin(b.proxy, "/agents"), /"link":"websocket".*"link":"websocket"/s);
    for (const agent of agents) assert.equal((await agent.stop()).exitCode, 0);
  });

  it("is reached through lb", async () => {
    await using site = await Site.create();
    await using origin = await Origin.start(echo);
    await using store = await StoreServer.start("memcached");
    const { addresses } = await startProxy(site, storeArgs(store));
    await site.startAgent(addresses, within(addresses.clients));
    const { clients } = await site.startLb(store);
    await transfer(clients, origin);
  });

  it("says what is missing where there is no such path, and clients are told what is served there", async () => {
    await using site = await Site.create();
    const { addresses } = await startProxy(site, ["--agent-server.websocket-path=/elsewhere"]);
    const agent = site.start(AGENT, [...site.agentArgs(addresses), ...within(addresses.clients)]);
    const { reason } = await agent.waitFor("not connected");
    assert.match(String(reason), /the response to the WebSocket request for \/reverse-http is 405 .*--agent-server\.websocket-path\?$/);
    for (
      const [method, fields] of [
        ["GET", ""],
        [
          "POST",
          "Connection: upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n",
        ],
        ["GET", "Connection: upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 8\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"],
        ["GET", "Connection: upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: short\r\n"],
      ] as const
    ) {
      const answer = await ask(addresses.clients, `${method} /elsewhere?x HTTP/1.1\r\nHost: a\r\n${fields}\r\n`);
      assertRefused(answer, 426, "http_request_error");
      assert.deepEqual([answer.fields["upgrade"], answer.fields["sec-websocket-version"]], ["websocket", "13"]);
    }
    const fields =
      "Connection: upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
    const page = await ask(addresses.clients, `GET /elsewhere HTTP/1.1\r\nHost: a\r\n${fields}Origin: https://page.example\r\n\r\n`);
    assertRefused(page, 403, "http_request_denied");
  });

  it("refuses options that do not fit", async () => {
    await using site = await Site.create();
    const url = "--agent-client.websocket-url=wss://proxy.example/reverse-http";
    for (
      const [args, message] of [
        [[OVER_WEB_SOCKET], /Cannot use --agent-client\.transport websocket: --agent-client\.websocket-url is needed too/],
        [[url, "--agent-client.transport=tls"], /Cannot use --agent-client\.websocket-url: --agent-client\.transport is tls/],
        [["--agent-client.websocket-url=https://proxy.example/"], /it is not wss:\/\/HOST/],
        [["--agent-client.websocket-url=wss://u:hunter2@proxy.example/"], /without user, password and fragment/],
      ] as const
    ) {
      const { exitCode, stderr } = await runToEnd(AGENT, [...site.agentArgs({ agents: "127.0.0.1:1", clients: "" }), ...args]);
      assert.equal(exitCode, 2);
      assert.match(stderr, message);
      assert.doesNotMatch(stderr, /hunter2/);
    }
    const { exitCode, stderr } = await runToEnd(PROXY, [...site.proxyArgs(), "--agent-server.websocket-path=reverse-http"]);
    assert.equal(exitCode, 2);
    assert.match(stderr, /"reverse-http" is not a path that begins with \//);
  });
});
