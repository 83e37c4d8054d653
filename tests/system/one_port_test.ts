// Agents and clients on one TCP port, with the compiled executables: which certificate and which requirements each of them meets.
import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { makeAuthority } from "../../testing/certificates.ts";
import { check } from "../../testing/load.ts";
import { AGENT, type Program, PROXY, runToEnd, Site } from "../../testing/programs.ts";
import { ask, openTunnel, Origin, type Wire } from "../../testing/sockets.ts";

const OVER_TLS = "--agent-client.transport=tls";

async function echo(wire: Wire): Promise<void> {
  for (let data; (data = await wire.next()) !== null;) await wire.write(data);
  wire.finish();
}

/** A proxy whose only TCP port is that of clients, which has a certificate of another authority. */
async function start(more: readonly string[] = []) {
  const site = await Site.create();
  const authority = await makeAuthority("Clients");
  const { cert, key } = await authority.issue({ names: ["localhost", "127.0.0.1"] });
  const { proxy, addresses } = await site.startProxy([
    "--agent-server.tcp-listen-address=none",
    "--agent-server.share-client-port",
    "--admin.listen-address=127.0.0.1:0",
    "--http-proxy.tls.enable",
    `--http-proxy.tls.file.cert=${site.folder.write("clients-cert.pem", cert)}`,
    `--http-proxy.tls.file.key=${site.folder.write("clients-key.pem", key)}`,
    ...more,
  ]);
  const { clients } = addresses;
  return { site, authority, proxy, addresses: { agents: clients, clients } };
}

async function admin(proxy: Program, path: string): Promise<string> {
  const { admin } = await proxy.waitFor("listening");
  return (await ask(String(admin), `GET ${path} HTTP/1.1\r\nHost: a\r\n\r\n`)).body;
}

describe("one TCP port for agents and clients", () => {
  it("serves both, each with its own certificate, and says so", async () => {
    const { site, authority, proxy, addresses } = await start();
    await using _ = site;
    await using origin = await Origin.start(echo);
    const { agentsTcp } = await proxy.waitFor("listening");
    assert.equal(agentsTcp, addresses.clients);
    const agent = await site.startAgent(addresses, [OVER_TLS]);
    assert.equal((await agent.waitFor("connected")).link, "tls");
    assert.match(await admin(proxy, "/agents"), /"link":"tls"/);
    using client = await openTunnel(addresses.clients, origin.authority, { tls: { ca: authority.cert } });
    await check(client);
    assert.equal((await agent.stop()).exitCode, 0);
    assert.equal((await proxy.stop()).exitCode, 0);
  });

  it("asks clients for certificates and not agents, and the other way round", async () => {
    for (const group of ["http-proxy", "agent-server"] as const) {
      const members = await makeAuthority("Members");
      const site = await Site.create();
      const { site: started, authority, proxy, addresses } = await start([
        `--${group}.tls.file.client-ca=${site.folder.write("members.pem", members.cert)}`,
      ]);
      await using _ = started;
      await using __ = site;
      await using origin = await Origin.start(echo);
      const { cert, key } = await members.issue({ names: ["member"] });
      const isAgents = group === "agent-server";
      const show = [
        `--agent-client.tls.file.cert=${site.folder.write("cert.pem", cert)}`,
        `--agent-client.tls.file.key=${site.folder.write("key.pem", key)}`,
      ];
      if (isAgents) {
        const refused = started.start(AGENT, [...started.agentArgs(addresses), OVER_TLS]);
        assert.match(String((await refused.waitFor("not connected")).reason), /the proxy requires a client certificate/);
        await proxy.waitFor("agent handshake failed");
        await refused.stop();
      }
      await started.startAgent(addresses, [OVER_TLS, ...isAgents ? show : []]);
      using client = await openTunnel(addresses.clients, origin.authority, {
        tls: { ca: authority.cert, ...isAgents ? {} : { cert, key } },
      });
      await check(client);
      if (!isAgents) await assert.rejects(openTunnel(addresses.clients, origin.authority, { tls: { ca: authority.cert } }));
    }
  });

  it("renews the agents' certificate where clients have theirs", async () => {
    const own = await makeAuthority("Renewed");
    const { site, proxy, addresses } = await start(["--agent-server.tls.refresh=20ms"]);
    await using _ = site;
    await site.startAgent(addresses, [OVER_TLS]);
    const { cert, key } = await own.issue({ names: ["localhost", "127.0.0.1"] });
    site.folder.write("key.pem", key);
    site.folder.write("cert.pem", cert);
    await proxy.waitFor("certificates reloaded");
    const agent = site.start(AGENT, [
      ...site.agentArgs(addresses, "4712"),
      OVER_TLS,
      `--agent-client.tls.file.root-ca=${site.folder.write("renewed.pem", own.cert)}`,
    ]);
    await agent.waitFor("connected");
  });

  it("is what an agent finds that tries QUIC first", async () => {
    const { site, addresses } = await start();
    await using _ = site;
    const agent = site.start(AGENT, site.agentArgs(addresses));
    assert.equal((await agent.waitFor("connected")).link, "tls");
    await agent.waitFor("link changed", { to: "tls", reason: "blocked" });
  });

  it("takes no agents unless that is configured", async () => {
    const { site, authority, addresses } = await start(["--agent-server.share-client-port=false"]);
    await using _ = site;
    const trusts = `--agent-client.tls.file.root-ca=${site.folder.write("other.pem", authority.cert)}`;
    const agent = site.start(AGENT, [...site.agentArgs(addresses), trusts, OVER_TLS]);
    assert.match(String((await agent.waitFor("not connected")).reason), /the peer has selected no protocol \(ALPN\)/);
  });

  it("needs TLS for clients", async () => {
    const site = await Site.create();
    await using _ = site;
    for (const check of [[], ["--check-config"]]) {
      const { exitCode, stderr } = await runToEnd(PROXY, [...site.proxyArgs(), "--agent-server.share-client-port", ...check]);
      assert.equal(exitCode, 2);
      assert.match(stderr, /Cannot use --agent-server\.share-client-port: --http-proxy\.tls\.enable is not set/);
    }
  });
});
