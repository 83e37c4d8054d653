// The commands doctor: each mistake of a table is named, with its remedy, on the network in memory.
import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { startAgent } from "../../agent/agent.ts";
import { diagnoseAgent } from "../../agent/doctor.ts";
import { agentOptions } from "../../agent/options.ts";
import { diagnoseClient } from "../../client/doctor.ts";
import { clientOptions } from "../../client/options.ts";
import { diagnoseLoadBalancer } from "../../lb/doctor.ts";
import { lbOptions } from "../../lb/options.ts";
import { diagnoseProxy } from "../../proxy/doctor.ts";
import { proxyOptions } from "../../proxy/options.ts";
import { type Proxy, startProxy } from "../../proxy/proxy.ts";
import { type PartialValues, withDefaults } from "../../shared/config/defaults.ts";
import type { ValuesOf } from "../../shared/config/option.ts";
import { CommandFailure } from "../../shared/cli/command.ts";
import { report } from "../../shared/cli/diagnosis.ts";
import type { Finding } from "../../shared/cli/findings.ts";
import { NetError, type NetErrorCode } from "../../shared/net/errors.ts";
import type { Net } from "../../shared/net/net.ts";
import { makeAuthority } from "../../testing/certificates.ts";
import { LogBook, netWith, withNet } from "../../testing/network.ts";
import { eventually, Folder } from "../../testing/programs.ts";
import { fakeTerminal } from "../../testing/terminal.ts";
import { makeTokenKey } from "../../testing/tokens.ts";

const DAY_MS = 86_400_000;
const ID = "4711";
const key = makeTokenKey();
const [agentToken, clientToken] = [await key.sign({ role: "agent" }), await key.sign()];
const strange = makeTokenKey();
const [strangeAgent, strangeClient] = [await strange.sign({ role: "agent" }), await strange.sign()];

type Given<O extends Parameters<typeof withDefaults>[0]> = PartialValues<ValuesOf<O>>;

/** A proxy that verifies tokens, and the agent 4711 if `hasAgent`. */
interface Scene {
  readonly net: Net;
  readonly folder: Folder;
  readonly proxy: Proxy;
}

async function inScene(use: (scene: Scene) => Promise<void>, { hasAgent = false, auth = "jwt" as "jwt" | "noauth" } = {}): Promise<void> {
  using folder = new Folder();
  await withNet(async (net) => {
    const publicKey = [folder.write("public.pem", key.publicPem)];
    const proxy = await startProxy(
      withDefaults(proxyOptions, {
        httpProxy: { listenAddress: "127.0.0.1:0" },
        agentServer: { listenAddress: "127.0.0.1:0" },
        auth: { type: auth, ...auth === "jwt" && { jwt: { publicKey } } },
      }),
      { net, log: new LogBook() },
    );
    if (hasAgent) {
      const options = withDefaults(agentOptions, {
        agentClient: { serverAddress: [proxy.agentAddress] },
        auth: { type: "jwt", jwt: { token: agentToken } },
      });
      await startAgent(options, { net, log: new LogBook() });
      await eventually(() => proxy.agents === 1, () => "the agent is not connected");
    }
    await use({ net, folder, proxy });
    await proxy.close();
  });
}

const failing = (code: NetErrorCode, message: string, cause?: NetError) => () => Promise.reject(new NetError(code, message, { cause }));
const silent = failing("timed-out", "Cannot connect to 127.0.0.1:1: no response within 4000 ms");
const rejected = failing(
  "timed-out",
  "Cannot connect to 127.0.0.1:1: no response within 4000 ms",
  new NetError("refused", "Cannot send to 127.0.0.1:1: the port is closed (ICMP)"),
);
const pinned = failing("tls", "Cannot connect to 127.0.0.1:1: the certificate aabb is not the pinned one");
const foreign = failing("tls", "Cannot connect to 127.0.0.1:1: invalid peer certificate: UnknownIssuer");
const expired = failing("tls", "Cannot connect to 127.0.0.1:1: invalid peer certificate: certificate expired: verification time 1 (UNIX)");

interface Mistake {
  readonly name: string;
  readonly check: string;
  /** Matches details and remedy. */
  readonly says: RegExp;
  readonly result?: Finding["result"];
}

function expectFinding(findings: readonly Finding[], { name, check, says, result = "failed" }: Mistake): void {
  const found = findings.filter((finding) => finding.check === check && finding.result === result);
  const texts = found.map(({ details, remedy }) => `${details} → ${remedy}`);
  assert.ok(texts.some((text) => says.test(text)), `${name}: ${JSON.stringify(findings, null, 1)}`);
  for (const { result, remedy, details } of findings) {
    if (result === "failed") assert.ok(remedy, `${name}: no remedy for ${details}`);
    for (const token of [agentToken, clientToken]) assert.ok(!`${details} ${remedy}`.includes(token.slice(0, 40)));
  }
}

describe("doctor agent", () => {
  const rows: (Mistake & { given?: Given<typeof agentOptions>; net?: Partial<Net>; token?: string; now?: number; auth?: "noauth" })[] = [
    {
      name: "UDP dropped",
      net: { connectQuic: silent },
      check: "UDP",
      result: "note",
      says: /^dropped.* → allow UDP port \d+ .*; until then the agent uses TLS$/,
    },
    {
      name: "UDP rejected",
      net: { connectQuic: rejected },
      check: "UDP",
      result: "note",
      says: /^rejected: .* → start the proxy, or let firewalls allow UDP port/,
    },
    {
      name: "UDP and TCP dropped",
      net: { connectQuic: silent, connectTlsLink: silent },
      check: "UDP",
      says: /^dropped.* → allow UDP port \d+/,
    },
    { name: "TCP dropped", net: { connectTlsLink: silent }, check: "TLS (TCP)", says: /no response.* → .*firewalls allow TCP/ },
    {
      name: "wrong pin",
      net: { connectQuic: pinned, connectTlsLink: pinned },
      check: "QUIC (UDP)",
      says: /not the pinned one → .*pin-sha256; the proxy logs its pin/,
    },
    {
      name: "TLS inspection",
      net: { connectQuic: silent, connectTlsLink: foreign },
      check: "TLS (TCP)",
      says: /UnknownIssuer → .*a middlebox inspects TLS/,
    },
    {
      name: "certificate expired",
      net: { connectQuic: expired },
      check: "QUIC (UDP)",
      says: /certificate expired.* → .*set the clock of this machine/,
    },
    {
      name: "clock a day ahead",
      now: Date.now() + DAY_MS - 60_000,
      check: "clock",
      says: /this machine is 863\d\d s ahead of the proxy.* → set the clock/,
    },
    {
      name: "clock a day behind",
      now: Date.now() - DAY_MS,
      check: "token",
      says: /not valid before .*the clock of this machine is at .* → set the clock of this machine/,
    },
    { name: "token expired", now: Date.now() + 2 * DAY_MS, check: "token", says: /^it expired at .* → create a new token/ },
    { name: "role swapped", token: clientToken, check: "configuration", says: /has the role "client" → create one for an agent/ },
    {
      name: "token of another key",
      token: strangeAgent,
      check: "credentials",
      says: /401 .* → .*accept these credentials\?/,
    },
    { name: "token at a proxy without authentication", auth: "noauth", check: "credentials", says: /400 .* → .*--auth\.type=noauth here/ },
    {
      name: "token file missing",
      token: "file:/nonexistent/token",
      check: "configuration",
      says: /file:\/nonexistent\/token: the file does not exist → /,
    },
    {
      name: "name unknown",
      given: { agentClient: { serverAddress: ["no.such.name:1"] } },
      check: "name",
      says: /→ correct the name in --agent-client\.server-address/,
    },
    {
      name: "name server silent",
      given: { agentClient: { serverAddress: ["no.such.name:1"] } },
      net: { resolve: failing("name-timed-out", "Cannot resolve no.such.name: no answer") },
      check: "name",
      says: /→ allow this machine to reach its name servers/,
    },
    {
      name: "proxy not running",
      given: { agentClient: { serverAddress: ["127.0.0.1:1"] } },
      check: "TLS (TCP)",
      says: /no program listens there → is the proxy running there/,
    },
  ];
  for (const { given, net: replaced = {}, token = agentToken, now = Date.now(), auth = "jwt", ...mistake } of rows) {
    it(`names: ${mistake.name}`, () =>
      inScene(async ({ net, proxy }) => {
        const options = withDefaults(agentOptions, { auth: { type: "jwt", jwt: { token } } });
        options.agentClient.serverAddress = given?.agentClient?.serverAddress ?? [proxy.agentAddress];
        expectFinding(await diagnoseAgent(options, { net: netWith(net, replaced), now: () => now }), mistake);
      }, { auth }));
  }

  it("finds nothing wrong where nothing is, and tells versions and clock", () =>
    inScene(async ({ net, proxy }) => {
      const options = withDefaults(agentOptions, {
        agentClient: { serverAddress: [proxy.agentAddress] },
        auth: { type: "jwt", jwt: { token: agentToken } },
      });
      const findings = await diagnoseAgent(options, { net });
      assert.deepEqual(findings.filter(({ result }) => result === "failed"), []);
      const details = (check: string) => findings.find((finding) => finding.check === check)?.details ?? "";
      assert.match(details("version"), /^reverse-http\/\d/);
      assert.match(details("proxy"), /^reverse-http\/\d/);
      assert.deepEqual([details("UDP"), details("clock")], ["open", "within 0 s of the proxy's"]);
      assert.match(details("token"), /^role agent, agent "4711", jti [0-9a-f-]{36}, expires 20/);
    }));
});

describe("doctor client", () => {
  const rows: (Mistake & {
    given?: Given<typeof clientOptions>;
    net?: Partial<Net>;
    now?: number;
    hasAgent?: boolean;
    to?: { host: string; port: number };
  })[] = [
    { name: "no agent", check: "agent", says: /not connected.* → start the agent, or correct --agent-id/ },
    {
      name: "nothing at the destination",
      hasAgent: true,
      to: { host: "127.0.0.1", port: 1 },
      check: "destination",
      says: /refuse.* → start the server there/,
    },
    {
      name: "token of another key",
      given: { token: strangeClient },
      check: "credentials",
      says: /407.* → create a token with the key of this proxy/,
    },
    { name: "no token", given: { token: undefined }, check: "credentials", says: /407/ },
    {
      name: "an agent's token",
      given: { token: agentToken },
      check: "token",
      says: /it is for the role "agent", and is used by a client → .*invite --client/,
    },
    { name: "token expired", now: Date.now() + 2 * DAY_MS, check: "token", says: /^it expired at .* → create a new token/ },
    { name: "clock a day behind", now: Date.now() - DAY_MS, check: "token", says: /not valid before .* → set the clock/ },
    {
      name: "token of another agent",
      given: { agentId: "4712" },
      check: "token",
      says: /for the agent "4711", not for "4712" → use --agent-id of the token/,
    },
    {
      name: "wrong port",
      given: { proxy: "127.0.0.1:1" },
      check: "TCP",
      says: /no program listens there → start the proxy there, or correct the port/,
    },
    { name: "firewall", net: { connectTcp: silent }, check: "TCP", says: /no response.* → let firewalls allow TCP/ },
    { name: "unknown name", given: { proxy: "no.such.name:3128" }, check: "name", says: /→ correct the name in --proxy/ },
    {
      name: "TLS to a plain port",
      given: { tls: { enable: true, insecureSkipVerify: true } },
      check: "TLS",
      says: /→ leave out --tls\.enable/,
    },
    {
      name: "pin without TLS",
      given: { tls: { pinSha256: ["ab".repeat(32)] } },
      check: "configuration",
      says: /--tls\.enable is not set/,
    },
    {
      name: "HTTP/2 at the port for HTTP/1.1",
      given: { http2: true },
      net: { connectHttp2: () => Promise.reject(new NetError("not-http2", "The server does not speak HTTP/2", { remote: true })) },
      check: "HTTP/2",
      says: /not spoken there.* → set --proxy to the address of --http-proxy\.http2-listen-address/,
    },
    { name: "no proxy", given: { proxy: undefined }, check: "configuration", says: /--proxy is required/ },
    {
      name: "token command fails",
      given: { token: undefined, tokenCommand: "exit 3" },
      check: "configuration",
      says: /--token-command: it ended with 3/,
    },
  ];
  for (const { given = {}, net: replaced = {}, now = Date.now(), hasAgent, to, ...mistake } of rows) {
    it(`names: ${mistake.name}`, () =>
      inScene(async ({ net, proxy }) => {
        const options = { ...withDefaults(clientOptions, { proxy: proxy.clientAddress, token: clientToken, agentId: ID }) };
        const { tls, ...others } = given;
        Object.assign(options, others);
        Object.assign(options, { tls: { ...options.tls, ...tls } });
        expectFinding(await diagnoseClient(options, to, { net: netWith(net, replaced), now: () => now }), mistake);
      }, { hasAgent }));
  }

  it("finds nothing wrong where nothing is, without a destination", () =>
    inScene(async ({ net, proxy }) => {
      const findings = await diagnoseClient(
        withDefaults(clientOptions, { proxy: proxy.clientAddress, token: clientToken, agentId: ID }),
        undefined,
        { net },
      );
      assert.deepEqual(findings.map(({ check, result }) => `${check}: ${result}`), [
        "version: ok",
        "token: ok",
        "TCP: ok",
        "credentials: ok",
        "agent: ok",
      ]);
    }, { hasAgent: true }));
});

describe("doctor proxy and lb", () => {
  const proxyRows: (Mistake & { given: Given<typeof proxyOptions>; now?: number })[] = [
    { name: "open to everyone", given: {}, check: "authentication", says: /everyone .* → --auth\.type=jwt/ },
    { name: "key missing", given: { auth: { type: "jwt" } }, check: "configuration", says: /auth-key-public\.pem.*does not exist → / },
    { name: "not running", given: { auth: { type: "jwt" } }, check: "clients (TCP)", says: /no program listens there → start the proxy/ },
    { name: "address unknown", given: {}, check: "public address", result: "note", says: /is a guess|has no other address/ },
    {
      name: "address is no name",
      given: { agentServer: { publicAddress: ["no.such.name:1"] } },
      check: "name",
      says: /→ correct the name in --agent-server\.public-address/,
    },
    {
      name: "store down",
      given: { store: { type: "memcached", memcached: { address: ["127.0.0.1:1"] } } },
      check: "store",
      says: /→ start the server, let this machine reach it/,
    },
  ];
  for (const { given, ...mistake } of proxyRows) {
    it(`names: ${mistake.name}`, async () => {
      using folder = new Folder();
      await withNet(async (net) => {
        const options = withDefaults(proxyOptions, given);
        if (mistake.name === "not running") options.auth.jwt.publicKey = [folder.write("public.pem", key.publicPem)];
        expectFinding(await diagnoseProxy(options, { net }), mistake);
      });
    });
  }

  it("names: certificate expired, and one that is not valid yet", async () => {
    using folder = new Folder();
    const { cert, key: privateKey } = await (await makeAuthority()).issue({ names: ["proxy.example"] });
    const file = { cert: folder.write("cert.pem", cert), key: folder.write("key.pem", privateKey) };
    await withNet(async (net) => {
      const options = withDefaults(proxyOptions, { agentServer: { tls: { file } } });
      const at = (now: number) => diagnoseProxy(options, { net, now: () => now });
      expectFinding(await at(Date.UTC(2200, 0)), {
        name: "expired",
        check: "certificate",
        says: /→ renew --agent-server\.tls\.file\.cert/,
      });
      expectFinding(await at(Date.UTC(2000, 0)), { name: "early", check: "certificate", says: /→ set the clock/ });
    });
  });

  it("finds a running proxy", () =>
    inScene(async ({ net, proxy, folder }) => {
      const options = withDefaults(proxyOptions, {
        agentServer: { listenAddress: proxy.agentAddress },
        httpProxy: { listenAddress: proxy.clientAddress },
        auth: { type: "jwt", jwt: { publicKey: [`${folder.path}/public.pem`] } },
      });
      const findings = await diagnoseProxy(options, { net });
      assert.deepEqual(findings.filter(({ result }) => result === "failed"), []);
      assert.deepEqual(findings.slice(-2).map(({ check, result }) => `${check}: ${result}`), ["agents (UDP): ok", "clients (TCP): ok"]);
    }));

  it("names: store down, and lb not running", () =>
    withNet(async (net) => {
      const findings = await diagnoseLoadBalancer(withDefaults(lbOptions, { store: { memcached: { address: ["127.0.0.1:1"] } } }), { net });
      expectFinding(findings, { name: "store", check: "store", says: /→ start the server/ });
      expectFinding(findings, { name: "lb", check: "clients (TCP)", says: /→ start lb/ });
    }));
});

describe("the report", () => {
  const failed: Finding = { check: "name", target: "a", result: "failed", details: "unknown", remedy: "correct it" };
  const ok: Finding = { check: "TCP", target: "b", result: "ok", details: "connected" };

  it("is a table with remedies, and fails if a check has", () => {
    const terminal = fakeTerminal();
    assert.throws(
      () => report([failed, ok], { json: false }, terminal),
      (error) => error instanceof CommandFailure && error.exitCode === 1 && error.message === "",
    );
    assert.match(
      terminal.out(),
      /^CHECK {2}TARGET {2}RESULT {2}DETAILS\nname {3}a .*unknown\n {7}Remedy: correct it\nTCP.*\n\n1 of 2 checks failed\.\n$/,
    );
  });

  it("is JSON for programs", () => {
    const terminal = fakeTerminal();
    report([ok], { json: true }, terminal);
    assert.deepEqual(JSON.parse(terminal.out()), { ok: true, findings: [ok] });
  });
});
