// Agents over TLS through real load balancers between them and the proxy, with the compiled executables: bytes, ends, and long silence.
import assert from "node:assert/strict";
import { randomBytes } from "node:crypto";
import { existsSync, readFileSync } from "node:fs";
import { describe, it } from "node:test";
import { pinOf } from "../../testing/certificates.ts";
import { Haproxy, withHaproxy } from "../../testing/haproxy.ts";
import { check } from "../../testing/load.ts";
import { NGINX, Nginx, STREAM_MODULE } from "../../testing/nginx.ts";
import { Mitmproxy, withMitmproxy } from "../../testing/mitmproxy.ts";
import { AGENT, AGENT_ID, runToEnd, Site } from "../../testing/programs.ts";
import { dial, openTunnel, Origin, type Wire } from "../../testing/sockets.ts";
import { TcpRelay } from "../../testing/tcp_relay.ts";

const OVER_TLS = "--agent-client.transport=tls";
const BYTES = 5_000_000;
/** Longer than the interval of the link's pings (3 s), and shorter than its idle timeout (10 s). */
const SILENCE_MS = 4_000;

async function echo(wire: Wire): Promise<void> {
  for (let data; (data = await wire.next()) !== null;) await wire.write(data);
}

interface Balancer extends AsyncDisposable {
  readonly addresses: readonly string[];
}

const BALANCERS: Record<string, { skip: string | false; start: (servers: readonly string[]) => Promise<Balancer> }> = {
  "HAProxy": { skip: withHaproxy, start: (servers) => Haproxy.start(servers, SILENCE_MS) },
  "nginx": {
    skip: existsSync(NGINX) && existsSync(STREAM_MODULE) ? false : "there is no nginx with its stream module",
    start: (servers) => Nginx.start(servers.map((server) => ({ transport: "tcp", servers: [server], timeout: `${SILENCE_MS}ms` }))),
  },
};

describe("an agent over TLS", () => {
  for (const [name, { skip, start }] of Object.entries(BALANCERS)) {
    it(`sends and receives everything through ${name}, and each direction ends on its own`, { skip }, async () => {
      await using site = await Site.create();
      await using origin = await Origin.start();
      const { proxy, addresses } = await site.startProxy();
      await using balancer = await start([String((await proxy.waitFor("listening")).agentsTcp)]);
      await site.startAgent({ ...addresses, agents: balancer.addresses[0]! }, [OVER_TLS]);
      using client = await openTunnel(addresses.clients, origin.authority);
      const server = await origin.accept();
      const [up, down] = [randomBytes(BYTES), randomBytes(BYTES)];
      const sent = Promise.all([client.write(up).then(() => client.finish()), server.write(down)]);
      assert.ok((await server.readAll()).equals(up));
      assert.ok((await client.read(BYTES)).equals(down));
      await sent;
      server.finish("the end");
      assert.equal((await client.readAll()).toString(), "the end");
    });

    it(`stays connected through ${name}, which closes silent connections, without a byte of its tunnels`, { skip }, async () => {
      await using site = await Site.create();
      await using origin = await Origin.start(echo);
      await using silent = await Origin.start();
      const { proxy, addresses } = await site.startProxy();
      await using balancer = await start([String((await proxy.waitFor("listening")).agentsTcp), silent.authority]);
      const agent = await site.startAgent({ ...addresses, agents: balancer.addresses[0]! }, [OVER_TLS]);
      using tunnel = await openTunnel(addresses.clients, origin.authority);
      await check(tunnel);
      // twice as long as the balancer keeps a silent connection, by its own clock
      for (let i = 0; i < 2; i++) {
        using other = await dial(balancer.addresses[1]!);
        await silent.accept();
        await other.next().catch(() => null);
      }
      await check(tunnel);
      assert.equal(agent.logged("not connected").length, 0);
      assert.equal(proxy.logged("agent disconnected").length, 0);
    });
  }

  it("sends a ClientHello of more than one packet, which may arrive in two segments, and agrees on X25519MLKEM768", async () => {
    await using site = await Site.create();
    const { proxy, addresses } = await site.startProxy();
    await using relay = await TcpRelay.start("127.0.0.1:0", String((await proxy.waitFor("listening")).agentsTcp));
    relay.splitAt = 1_000;
    await site.startAgent({ ...addresses, agents: relay.address }, [OVER_TLS]);
    assert.ok(relay.firstToServer!.length > 1_400, `the ClientHello has ${relay.firstToServer!.length} bytes`);
    assert.equal(groupOf(relay.firstToClient!), 0x11ec);
  });
});

describe("a middlebox that inspects TLS", () => {
  const cases = ["in front of the proxy", "as the outbound proxy"].flatMap((where) =>
    ["the authority", "the pin"].map((trust) => [where, trust] as const)
  );
  for (const [where, trust] of cases) {
    it(`${where} is refused by an agent that trusts ${trust} of the proxy, and named by its issuer`, { skip: withMitmproxy }, async () => {
      await using site = await Site.create();
      const { proxy } = await site.startProxy();
      const agentsTcp = String((await proxy.waitFor("listening")).agentsTcp);
      const isOutbound = where === "as the outbound proxy";
      await using middlebox = await Mitmproxy.start(isOutbound ? "regular" : `reverse:https://${agentsTcp}`);
      const args = [
        OVER_TLS,
        ...isOutbound
          ? [`--agent-client.server-address=${agentsTcp}`, `--agent-client.proxy=http://${middlebox.address}`]
          : [`--agent-client.server-address=${middlebox.address}`],
        trust === "the pin"
          ? `--agent-client.tls.pin-sha256=${pinOf(readFileSync(site.files.cert, "utf8"))}`
          : `--agent-client.tls.file.root-ca=${site.files.ca}`,
        `--auth.noauth.agent-id=${AGENT_ID}`,
      ];
      const issuer = /issued by "(CN=mitmproxy, O=mitmproxy|O=mitmproxy, CN=mitmproxy)"/;
      const agent = site.start(AGENT, [...args, "--log.format=json"]);
      assert.match(String((await agent.waitFor("not connected")).reason), issuer);
      const { exitCode, stdout } = await runToEnd(AGENT, [...args, "--check-link"]);
      assert.equal(exitCode, 1, stdout);
      assert.match(stdout, issuer);
      assert.equal(proxy.logged("agent connected").length, 0);
    });
  }

  it("passes a WebSocket, within which the pin of the proxy holds", { skip: withMitmproxy }, async () => {
    await using site = await Site.create();
    await using origin = await Origin.start(echo);
    const { proxy, addresses } = await site.startProxy(["--agent-server.websocket-path=/agents"]);
    await using middlebox = await Mitmproxy.start(`reverse:http://${addresses.clients}`);
    const args = (pin: string) => [
      `--agent-client.server-address=${addresses.agents}`,
      "--agent-client.transport=websocket",
      `--agent-client.websocket-url=wss://${middlebox.address}/agents`,
      `--agent-client.tls.pin-sha256=${pin}`,
      `--auth.noauth.agent-id=${AGENT_ID}`,
      "--log.format=json",
    ];
    const stranger = site.start(AGENT, args("0".repeat(64)));
    assert.match(String((await stranger.waitFor("not connected")).reason), /not the pinned one; .* issued by "CN=Test CA"/);
    await stranger.stop();
    const agent = site.start(AGENT, args(pinOf(readFileSync(site.files.cert, "utf8"))));
    await agent.waitFor("connected", { link: "websocket" });
    using tunnel = await openTunnel(addresses.clients, origin.authority);
    await check(tunnel);
    assert.equal(proxy.logged("agent connected").length, 1);
  });
});

/** The group of the key share that a ServerHello selects (RFC 8446 §4.1.3, §4.2.8). */
function groupOf(record: Uint8Array): number {
  const view = new DataView(record.buffer, record.byteOffset, record.byteLength);
  assert.deepEqual([view.getUint8(0), view.getUint8(5)], [22, 2], "a handshake record with a ServerHello");
  const session = 5 + 4 + 2 + 32;
  let at = session + 1 + view.getUint8(session) + 2 + 1 + 2;
  while (view.getUint16(at) !== 0x33) at += 4 + view.getUint16(at + 2);
  return view.getUint16(at + 4);
}
