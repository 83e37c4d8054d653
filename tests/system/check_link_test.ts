// `agent --check-link` with the compiled executables: what its table says of networks that pass, block and inspect, its exit codes, and that a
// running agent is not disturbed.
import assert from "node:assert/strict";
import { once } from "node:events";
import { createServer, type Server } from "node:tls";
import type { AddressInfo } from "node:net";
import { readFileSync } from "node:fs";
import { describe, it } from "node:test";
import { type Issued, makeAuthority, pinOf } from "../../testing/certificates.ts";
import { freeAddress } from "../../testing/nginx.ts";
import { AGENT, AGENT_ID, type Ended, runToEnd, Site } from "../../testing/programs.ts";
import { openTunnel, Origin } from "../../testing/sockets.ts";
import { TcpRelay } from "../../testing/tcp_relay.ts";

/** The result in the row of a check, and its details. */
function row({ stdout }: Ended, check: string): [result: string, details: string] {
  const line = stdout.split("\n").find((line) => line.startsWith(`${check} `));
  assert.ok(line, `there is no ${check} in:\n${stdout}`);
  const [, , result, details] = line.split(/ {2,}/);
  return [result!, details!];
}

function remedies({ stdout }: Ended): number {
  return stdout.split("\n").filter((line) => line.trimStart().startsWith("Remedy: ")).length;
}

async function check(args: readonly string[]): Promise<Ended> {
  return await runToEnd(AGENT, [...args, "--check-link"]);
}

/** A server that terminates TLS with a certificate of its own, as an inspecting middlebox does. */
async function startInspection({ cert, key }: Issued): Promise<{ server: Server; address: string }> {
  const server = createServer({ cert, key, ALPNProtocols: ["reverse-http-probe/1", "reverse-http-tls/1"] }, (socket) => socket.destroy());
  server.on("tlsClientError", () => {}); // the agent refuses the certificate
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  return { server, address: `127.0.0.1:${(server.address() as AddressInfo).port}` };
}

describe("--check-link", () => {
  it("shows that everything passes, and leaves a running agent alone", async () => {
    await using site = await Site.create();
    await using origin = await Origin.start();
    const { proxy, addresses } = await site.startProxy();
    await site.startAgent(addresses);
    using open = await openTunnel(addresses.clients, origin.authority);
    using server = await origin.accept();
    const ended = await check(site.agentArgs(addresses));
    assert.equal(ended.exitCode, 0, ended.stdout + ended.stderr);
    for (const each of ["configuration", "QUIC (UDP)", "QUIC data", "TLS (TCP)", "TLS data", "credentials"]) {
      assert.equal(row(ended, each)[0], "ok", `${each} in:\n${ended.stdout}`);
    }
    const trust =
      /^handshake in .* ms; certificate of ".*" from "CN=Test CA": issued by an authority of --agent-client\.tls\.file\.root-ca$/;
    assert.match(row(ended, "QUIC (UDP)")[1], trust);
    assert.match(row(ended, "TLS (TCP)")[1], trust);
    assert.match(row(ended, "QUIC data")[1], /^64 KiB each way in .* ms; round trip .* ms; path MTU at least \d{4} bytes/);
    assert.match(ended.stdout, /it will use QUIC, and TLS where QUIC fails\.$/);
    assert.equal(ended.stderr, "");
    await open.write("still here");
    assert.equal((await server.read(10)).toString(), "still here");
    assert.equal(proxy.logged("agent connected").length, 1);
    assert.equal(proxy.logged("agent disconnected").length, 0);
  });

  it("shows that only TCP passes", async () => {
    await using site = await Site.create();
    const { proxy, addresses } = await site.startProxy();
    const { agentsTcp } = await proxy.waitFor("listening");
    const agents = await freeAddress();
    await using _relay = await TcpRelay.start(agents, String(agentsTcp));
    const ended = await check(site.agentArgs({ ...addresses, agents }));
    assert.equal(ended.exitCode, 0, ended.stdout);
    const [result, details] = row(ended, "QUIC (UDP)");
    assert.equal(result, "failed");
    assert.match(details, /no response within 4000 ms/);
    assert.deepEqual([row(ended, "TLS data")[0], row(ended, "credentials")[1], remedies(ended)], ["ok", "accepted over TLS (TCP)", 1]);
    assert.match(ended.stdout, /The agent can connect: it will use TLS\.$/);
    assert.equal((await check([...site.agentArgs({ ...addresses, agents }), "--agent-client.transport=quic"])).exitCode, 1);
  });

  it("shows that only UDP passes", async () => {
    await using site = await Site.create();
    const { addresses } = await site.startProxy(["--agent-server.tcp-listen-address=none"]);
    const ended = await check(site.agentArgs(addresses));
    assert.equal(ended.exitCode, 0, ended.stdout);
    assert.deepEqual([row(ended, "QUIC data")[0], row(ended, "TLS (TCP)")[0], remedies(ended)], ["ok", "failed", 1]);
    assert.match(ended.stdout, /The agent can connect over QUIC, but has no TLS to fall back to\.$/);
  });

  it("shows that nothing passes, and fails", async () => {
    await using site = await Site.create();
    const agents = await freeAddress();
    const ended = await check([
      ...site.agentArgs({ agents, clients: agents }),
      "--agent-client.server-address=a-name-that-is-not.invalid:4242",
    ]);
    assert.equal(ended.exitCode, 1, ended.stdout);
    for (const each of ["QUIC (UDP)", "TLS (TCP)", "name"]) assert.equal(row(ended, each)[0], "failed");
    assert.equal(remedies(ended), 3);
    assert.match(ended.stdout, /The agent cannot connect\.$/);
  });

  it("shows whether a pin matches", async () => {
    await using site = await Site.create();
    const { addresses } = await site.startProxy();
    const { cert } = site.files;
    const pinned = (pin: string) => [
      `--agent-client.server-address=${addresses.agents}`,
      `--agent-client.tls.pin-sha256=${pin}`,
      `--auth.noauth.agent-id=${AGENT_ID}`,
    ];
    const good = await check(pinned(pinOf(readFileSync(cert, "utf8"))));
    assert.equal(good.exitCode, 0, good.stdout);
    assert.match(row(good, "TLS (TCP)")[1], /: the pin matches$/);
    const wrong = await check(pinned("0".repeat(64)));
    assert.equal(wrong.exitCode, 1, wrong.stdout);
    for (const each of ["QUIC (UDP)", "TLS (TCP)"]) {
      const [result, details] = row(wrong, each);
      assert.equal(result, "failed");
      assert.match(details, /its SHA-256 is [0-9a-f]{64}, and that is not the pinned one; it is for ".*" and issued by "CN=Test CA"$/);
    }
  });

  it("names the issuer of a middlebox that inspects TLS", async () => {
    await using site = await Site.create();
    const inspector = await makeAuthority("Corporate Inspection CA");
    const { server, address } = await startInspection(await inspector.issue({ names: ["127.0.0.1"] }));
    try {
      const ended = await check(site.agentArgs({ agents: address, clients: address }));
      assert.equal(ended.exitCode, 1, ended.stdout);
      const [result, details] = row(ended, "TLS (TCP)");
      assert.equal(result, "failed");
      assert.match(details, /UnknownIssuer; it is for "CN=127\.0\.0\.1" and issued by "CN=Corporate Inspection CA"$/);
      assert.match(ended.stdout, new RegExp(`a middlebox inspects TLS: let it pass ${address} unchanged`));
    } finally {
      server.close();
    }
  });

  it("shows that credentials are refused, and none of them", async () => {
    await using site = await Site.create();
    const { proxy, addresses } = await site.startProxy(["--limits.auth-failures=1"]);
    const token = `${btoa('{"alg":"ES256"}')}.${btoa(`{"agent_id":"${AGENT_ID}","role":"agent"}`)}.c2lnbmF0dXJl`.replaceAll("=", "");
    const args = site.agentArgs(addresses).filter((arg) => !arg.startsWith("--auth."));
    const ended = await check([...args, "--auth.type=jwt", `--auth.jwt.token=${token}`]);
    assert.equal(ended.exitCode, 1, ended.stdout);
    const [result, details] = row(ended, "credentials");
    assert.deepEqual([result, details], ["failed", "the proxy closed the connection: 400 bad agent id"]);
    assert.ok(!ended.stdout.includes(token));
    assert.equal(proxy.logged("agent refused").length, 1);
  });

  it("is a mistake with an invalid configuration", async () => {
    const ended = await check(["--agent-client.server-address=127.0.0.1:1"]);
    assert.deepEqual([ended.exitCode, ended.stdout], [2, ""]);
    assert.match(ended.stderr, /--auth\.noauth\.agent-id is required/);
  });
});
