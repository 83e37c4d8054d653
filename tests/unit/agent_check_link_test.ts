// What `agent --check-link` finds on the network in memory, and the table that it prints.
import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { checkLink, type LinkReport } from "../../agent/check_link.ts";
import { readCredentials } from "../../agent/credentials.ts";
import { type Finding, formatFindings } from "../../shared/cli/findings.ts";
import { agentOptions } from "../../agent/options.ts";
import { DIRECT } from "../../agent/outbound_proxy.ts";
import { proxyOptions } from "../../proxy/options.ts";
import { type Proxy, startProxy } from "../../proxy/proxy.ts";
import { startAgent } from "../../agent/agent.ts";
import { AuthenticationError, type Authenticator } from "../../shared/auth/authenticator.ts";
import { withDefaults } from "../../shared/config/defaults.ts";
import { ALPN, TLS_ALPN } from "../../shared/link/link.ts";
import { NetError } from "../../shared/net/errors.ts";
import type { Net } from "../../shared/net/net.ts";
import { eventually } from "../../testing/programs.ts";
import { LogBook, netWith, withNet } from "../../testing/network.ts";

const ID = "4711";

async function runProxy(net: Net, authenticator?: Authenticator): Promise<{ proxy: Proxy; log: LogBook }> {
  const log = new LogBook();
  const options = withDefaults(proxyOptions, {
    httpProxy: { listenAddress: "127.0.0.1:0" },
    agentServer: { listenAddress: "127.0.0.1:0" },
  });
  return { proxy: await startProxy(options, { net, log, authenticator }), log };
}

function optionsFor(servers: string[], transport: "auto" | "quic" | "tls" = "auto") {
  const options = withDefaults(agentOptions, { agentClient: { transport }, auth: { noauth: { agentId: ID } } });
  options.agentClient.serverAddress = servers;
  return options;
}

async function check(net: Net, servers: string[], transport?: "auto" | "quic" | "tls"): Promise<LinkReport> {
  const options = optionsFor(servers, transport);
  return await checkLink({ net, options, tls: {}, credentials: await readCredentials(options.auth), outbound: DIRECT });
}

/** Each check with its result. */
function results({ findings }: LinkReport): string[] {
  return findings.map(({ check, result }) => `${check}: ${result}`);
}

function found({ findings }: LinkReport, check: string): Finding {
  const finding = findings.find((finding) => finding.check === check);
  assert.ok(finding, `there is no ${check}`);
  return finding;
}

const dropped = () => Promise.reject(new NetError("timed-out", "Cannot connect to 127.0.0.1:1: no response within 4000 ms"));

describe("a check of the link", () => {
  it("finds that everything passes, and is no agent", () =>
    withNet(async (net) => {
      const { proxy, log } = await runProxy(net);
      const report = await check(net, [proxy.agentAddress]);
      assert.deepEqual(results(report), [
        "configuration: ok",
        "QUIC (UDP): ok",
        "QUIC data: ok",
        "TLS (TCP): ok",
        "TLS data: ok",
        "port 443 (TCP): note",
        "credentials: ok",
        "clock: ok",
        "proxy: ok",
      ]);
      assert.equal(report.works, true);
      assert.equal(report.summary, "The agent can connect: it will use QUIC, and TLS where QUIC fails.");
      assert.deepEqual([proxy.agents, log.logged("agent connected").length, log.logged("agent refused").length], [0, 0, 0]);
    }));

  it("leaves an agent with the same id alone", () =>
    withNet(async (net) => {
      const { proxy, log } = await runProxy(net);
      await startAgent(optionsFor([proxy.agentAddress]), { net, log: new LogBook() });
      await eventually(() => proxy.agents === 1, () => "the agent is not connected");
      const report = await check(net, [proxy.agentAddress]);
      assert.equal(found(report, "credentials").result, "ok");
      assert.deepEqual([proxy.agents, log.logged("agent disconnected").length, log.logged("agent connected").length], [1, 0, 1]);
    }));

  it("finds that UDP does not pass, and says what to do", () =>
    withNet(async (net) => {
      const { proxy } = await runProxy(net);
      const report = await check(netWith(net, { connectQuic: dropped }), [proxy.agentAddress]);
      const { result, details, remedy } = found(report, "QUIC (UDP)");
      assert.deepEqual([result, details], ["failed", "Cannot connect to 127.0.0.1:1: no response within 4000 ms"]);
      assert.match(remedy!, /do firewalls allow UDP to 127\.0\.0\.1:\d+\?$/);
      assert.deepEqual([found(report, "TLS (TCP)").result, found(report, "credentials").details], ["ok", "accepted over TLS (TCP)"]);
      assert.deepEqual([report.works, report.summary], [true, "The agent can connect: it will use TLS."]);
    }));

  it("does not count a transport that the agent may not use", () =>
    withNet(async (net) => {
      const { proxy } = await runProxy(net);
      const report = await check(netWith(net, { connectQuic: dropped }), [proxy.agentAddress], "quic");
      assert.equal(found(report, "TLS (TCP)").result, "ok");
      assert.deepEqual([report.works, report.summary], [false, "The agent cannot connect."]);
    }));

  it("has a remedy for each failure if nothing passes", () =>
    withNet(async (net) => {
      const report = await check(net, ["127.0.0.1:1", "no.such.name:1"]);
      const failed = report.findings.filter(({ result }) => result === "failed");
      assert.deepEqual(failed.map(({ check, target }) => `${check} ${target}`), [
        "QUIC (UDP) 127.0.0.1:1",
        "TLS (TCP) 127.0.0.1:1",
        "name no.such.name",
      ]);
      for (const { remedy, check } of failed) assert.ok(remedy, check);
      assert.equal(report.works, false);
    }));

  it("works with one of several proxies", () =>
    withNet(async (net) => {
      const { proxy } = await runProxy(net);
      const report = await check(net, ["no.such.name:1", proxy.agentAddress]);
      assert.equal(found(report, "name").result, "failed");
      assert.equal(report.works, true);
    }));

  it("finds that the credentials are refused", () =>
    withNet(async (net) => {
      const { proxy, log } = await runProxy(net, {
        authenticateAgent: () => Promise.reject(new AuthenticationError("denied", "not this one")),
        authenticateClient: () => Promise.reject(new AuthenticationError("denied", "no client")),
      });
      const report = await check(net, [proxy.agentAddress]);
      const { result, details, remedy } = found(report, "credentials");
      assert.deepEqual([result, details], ["failed", "the proxy closed the connection: 401 authentication failed"]);
      assert.match(remedy!, /does it accept these credentials\?$/);
      assert.equal(report.works, false);
      assert.equal(log.logged("agent refused").length, 1);
    }));

  it("checks no data and no credentials with a proxy that knows only agents", () =>
    withNet(async (net) => {
      const older = (alpn: string[]) => alpn.filter((name) => [...ALPN, ...TLS_ALPN].includes(name));
      const { proxy } = await runProxy(netWith(net, {
        listenQuic: (options) => net.listenQuic({ ...options, alpn: older(options.alpn) }),
        listenTlsLink: (options) => net.listenTlsLink({ ...options, alpn: older(options.alpn) }),
      }));
      const report = await check(net, [proxy.agentAddress]);
      assert.deepEqual(results(report).filter((text) => !text.startsWith("port 443")), [
        "configuration: ok",
        "QUIC (UDP): ok",
        "QUIC data: note",
        "TLS (TCP): ok",
        "TLS data: note",
        "credentials: note",
      ]);
      assert.equal(report.works, true);
    }));

  it("asks an outbound proxy what it offers, and sends it a wrong password once", () =>
    withNet(async (net) => {
      const listener = await net.listenTcp({ address: "127.0.0.1:3128", preamble: "none" });
      void (async () => {
        for (let batch; (batch = await listener.accept()) !== null;) {
          const challenge = 'Proxy-Authenticate: Digest realm="a, NTLM", qop="auth"\r\nProxy-Authenticate: Basic realm="b", Negotiate\r\n';
          for (const { stream } of batch) await stream.write(new TextEncoder().encode(`HTTP/1.1 407 No\r\n${challenge}\r\nbody`));
        }
      })();
      let attempts = 0;
      const connectTlsLink = () => {
        attempts++;
        return Promise.reject(new NetError("outbound-proxy-credentials", "Cannot connect: it rejects the password", { remote: true }));
      };
      const options = optionsFor(["proxy.test:4242", "other.test:4242"]);
      const report = await checkLink({
        net: netWith(net, { connectTlsLink }),
        options,
        tls: {},
        credentials: await readCredentials(options.auth),
        outbound: { proxyFor: () => ({ protocol: "http", host: "127.0.0.1", port: 3128, username: "alice", password: "wrong" }) },
      });
      assert.equal(found(report, "outbound proxy").details, "reachable; it offers Digest, Basic, Negotiate");
      assert.equal(found(report, "TLS (TCP)").details, "Cannot connect: it rejects the password");
      assert.deepEqual([attempts, report.works], [1, false]);
    }));

  it("checks proxies in parallel behind an outbound proxy too, after the first", () =>
    withNet(async (net) => {
      const listener = await net.listenTcp({ address: "127.0.0.1:3128", preamble: "none" });
      void (async () => {
        for (let batch; (batch = await listener.accept()) !== null;) {
          for (const { stream } of batch) await stream.write(new TextEncoder().encode("HTTP/1.1 200 OK\r\n\r\n"));
        }
      })();
      const servers = ["a.test:4242", "b.test:4242", "c.test:4242", "d.test:4242"];
      const connecting: string[] = [];
      const { promise: allBegun, resolve: begun } = Promise.withResolvers<void>();
      const connectTlsLink = async ({ host, port }: { host: string; port: number }) => {
        if (port === 4242) connecting.push(host);
        if (connecting.length === servers.length) begun();
        if (host !== "a.test") await allBegun;
        return await dropped();
      };
      const options = optionsFor(servers);
      const report = await checkLink({
        net: netWith(net, { connectTlsLink }),
        options,
        tls: {},
        credentials: await readCredentials(options.auth),
        outbound: { proxyFor: () => ({ protocol: "http", host: "127.0.0.1", port: 3128 }) },
      });
      assert.equal(connecting[0], "a.test");
      assert.equal(report.findings.filter(({ check, result }) => check === "TLS (TCP)" && result === "failed").length, servers.length);
    }));

  it("says that a token has expired", () =>
    withNet(async (net) => {
      const options = optionsFor(["127.0.0.1:1"]);
      const credentials = { agentId: ID, bytes: new Uint8Array(), expiresAt: Date.UTC(2020, 0) };
      const { result, remedy } = found(await checkLink({ net, options, tls: {}, credentials, outbound: DIRECT }), "configuration");
      assert.equal(result, "failed");
      assert.match(remedy!, /token/);
    }));
});

describe("the table of a check", () => {
  it("shows no control characters of a peer", () => {
    const [details, remedy] = ["closed: 2 \x1b]0;title\x07\u202e", "restart \x9b31m it\n"];
    const findings: Finding[] = [{ check: "name", target: "\x1b[2J", result: "failed", details, remedy }];
    const table = formatFindings(findings, "");
    // deno-lint-ignore no-control-regex -- that there are none is what is tested
    assert.doesNotMatch(table.replaceAll("\n", ""), /[\x00-\x1f\x7f-\x9f\u202e]/);
    assert.match(table, /Remedy: restart \?31m it\?\n/);
  });

  it("has aligned columns, and each remedy below its failure", () => {
    const findings: Finding[] = [
      { check: "name", target: "proxy.example", result: "ok", details: "192.0.2.1" },
      { check: "QUIC (UDP)", target: "192.0.2.1:4242", result: "failed", details: "no answer", remedy: "allow UDP" },
    ];
    assert.equal(
      formatFindings(findings, "The agent cannot connect."),
      `CHECK       TARGET          RESULT  DETAILS
name        proxy.example   ok      192.0.2.1
QUIC (UDP)  192.0.2.1:4242  failed  no answer
            Remedy: allow UDP

The agent cannot connect.
`,
    );
  });
});
