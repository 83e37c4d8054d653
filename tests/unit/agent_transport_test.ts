// An agent and its proxies over the network in memory, where QUIC does not connect, falls silent, or works again.
import assert from "node:assert/strict";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, describe, it } from "node:test";
import { type Agent, startAgent } from "../../agent/agent.ts";
import { agentOptions } from "../../agent/options.ts";
import { type Proxy, startProxy } from "../../proxy/proxy.ts";
import { proxyOptions } from "../../proxy/options.ts";
import { Backoff } from "../../shared/async/backoff.ts";
import { type PartialValues, withDefaults } from "../../shared/config/defaults.ts";
import { ALPN, CREDENTIALS_ALPN, PROXY_TRANSPORT, TLS_ALPN } from "../../shared/link/link.ts";
import { PROBE_ALPN, runProbe } from "../../shared/link/probe.ts";
import { NetError } from "../../shared/net/errors.ts";
import type { Net } from "../../shared/net/net.ts";
import type { AgentSession, ConnectQuicOptions, SessionListener } from "../../shared/net/session.ts";
import type { Duplex } from "../../shared/net/stream.ts";
import { eventually } from "../../testing/programs.ts";
import { ask, instead, LogBook, netWith, withNet } from "../../testing/network.ts";
import { AGENT_ID, checkTunnel, openTunnel } from "./tunnels.ts";
import { listenTcp, portOf, within } from "../conformance/support.ts";

const ADMIN = "127.0.0.1:9090";

type ProxyChoices = PartialValues<ReturnType<typeof withDefaults<typeof proxyOptions>>>;
type AgentChoices = PartialValues<ReturnType<typeof withDefaults<typeof agentOptions>>>;

async function runProxy(net: Net, given: ProxyChoices = {}): Promise<{ proxy: Proxy; log: LogBook }> {
  const log = new LogBook();
  const options = withDefaults(proxyOptions, { httpProxy: { listenAddress: "127.0.0.1:0" }, ...given });
  if (given.agentServer?.listenAddress === undefined) options.agentServer.listenAddress = "127.0.0.1:0";
  return { proxy: await startProxy(options, { net, log }), log };
}

async function runAgent(
  net: Net,
  servers: string[],
  given: AgentChoices = {},
  stateDirectory?: string,
): Promise<{ agent: Agent; log: LogBook }> {
  const log = new LogBook();
  const options = withDefaults(agentOptions, { ...given, auth: { noauth: { agentId: AGENT_ID } } });
  options.agentClient.serverAddress = servers;
  const backoff = () => new Backoff({ initialMs: 10, maxMs: 50 });
  return { agent: await startAgent(options, { net, log, backoff, random: () => 0, stateDirectory }), log };
}

/** The network between an agent and its proxies: UDP may be dropped before a connection, or on one that is open. */
interface Udp {
  net: Net;
  isBlocked: boolean;
  attempts: number;
}

function networkWithUdp(net: Net, isBlocked: boolean): Udp {
  const connectQuic = async (options: ConnectQuicOptions): Promise<AgentSession> => {
    udp.attempts++;
    const session = udp.isBlocked ? await silence(options.signal!) : await net.connectQuic(options);
    const stream = (inner: Duplex): Duplex =>
      instead(inner, {
        read: async () => {
          const data = await inner.read();
          return udp.isBlocked ? await new Promise<null>(() => {}) : data;
        },
      });
    return instead(session, { openStream: async () => stream(await session.openStream()) });
  };
  const udp: Udp = { net: netWith(net, { connectQuic, probeUdp: () => Promise.resolve(undefined) }), isBlocked, attempts: 0 };
  return udp;
}

/** An attempt that nothing comes of. */
function silence(signal: AbortSignal): Promise<never> {
  return new Promise((_, reject) => signal.addEventListener("abort", () => reject(new NetError("cancelled", "It was cancelled"))));
}

/** The connections in a report of /agents. */
async function reports(net: Net): Promise<{ link: string; linkReason?: string; tunnels: number }[]> {
  return JSON.parse((await ask(net, ADMIN, "GET /agents HTTP/1.1\r\nHost: a\r\n\r\n")).body);
}

async function metric(net: Net, series: string): Promise<number | undefined> {
  const { body } = await ask(net, ADMIN, "GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n");
  const line = body.split("\n").find((line) => line.startsWith(`${series} `));
  return line === undefined ? undefined : Number(line.slice(series.length + 1));
}

describe("an agent", () => {
  it("connects over TLS where QUIC is silent, and says so in its log, its report and its metrics", () =>
    withNet(async (net) => {
      const { proxy, log } = await runProxy(net);
      const udp = networkWithUdp(net, true);
      const { log: agentLog } = await runAgent(udp.net, [proxy.agentAddress], { admin: { listenAddress: ADMIN } });
      await log.waitFor("agent connected", { agent: AGENT_ID, link: "tls" });
      await agentLog.waitFor("link changed", { proxy: proxy.agentAddress, from: "quic", to: "tls", reason: "blocked" });
      await agentLog.waitFor("connected", { link: "tls" });
      const origin = await listenTcp(net);
      await checkTunnel(await openTunnel(net, proxy, origin));
      assert.deepEqual((await reports(net)).map(({ link, linkReason, tunnels }) => [link, linkReason, tunnels]), [["tls", "blocked", 1]]);
      assert.equal(await metric(net, 'reverse_http_links_active{link="tls"}'), 1);
      assert.equal(await metric(net, 'reverse_http_links_active{link="quic"}'), 0);
      assert.equal(await metric(net, 'reverse_http_link_changes_total{link="tls",reason="blocked"}'), 1);
    }));

  for (const url of ["ws:///agents", "ws://127.0.0.1/agents"]) {
    it(`connects within a WebSocket at ${url} where QUIC and TLS fail, and returns to QUIC`, () =>
      withNet(async (net) => {
        const { proxy, log } = await runProxy(net, {
          agentServer: { tcpListenAddress: "none", websocketPath: "/agents" },
          httpProxy: { listenAddress: "127.0.0.1:80" },
        });
        const udp = networkWithUdp(net, true);
        const { log: agentLog } = await runAgent(udp.net, [proxy.agentAddress], {
          agentClient: { websocketUrl: url, quicProbeInterval: 20 },
        });
        await log.waitFor("agent connected", { link: "websocket" });
        await agentLog.waitFor("link changed", { from: "quic", to: "websocket", reason: "blocked" });
        udp.isBlocked = false;
        await agentLog.waitFor("link changed", { from: "websocket", to: "quic", reason: "recovered" });
        await log.waitFor("agent connected", { link: "quic" });
      }));
  }

  it("says why it cannot connect within a WebSocket, once", () =>
    withNet(async (net) => {
      const refusing = { agentServer: { tcpListenAddress: "none" }, httpProxy: { listenAddress: "127.0.0.1:80" } };
      const { proxy, log: proxyLog } = await runProxy(net, refusing);
      const { log } = await runAgent(networkWithUdp(net, true).net, [proxy.agentAddress], {
        agentClient: { websocketUrl: "ws:///agents" },
      });
      const { reason } = await log.waitFor("the proxy cannot be reached within a WebSocket");
      assert.match(
        String(reason),
        /the response to the WebSocket request for \/agents is 405 .*; does --agent-client\.websocket-url lead to/,
      );
      await proxyLog.waitFor("request", { status: 405 }, 2);
      assert.equal(log.logged("the proxy cannot be reached within a WebSocket").length, 1);
    }));

  it("connects over TLS where QUIC is rejected", () =>
    withNet(async (net) => {
      const { proxy, log } = await runProxy(net);
      const connectQuic = () => Promise.reject(new NetError("tls", "no application protocol", { remote: true }));
      const { log: agentLog } = await runAgent(netWith(net, { connectQuic }), [proxy.agentAddress]);
      await log.waitFor("agent connected", { link: "tls" });
      await agentLog.waitFor("link changed", { to: "tls", reason: "blocked", error: "no application protocol" });
    }));

  it("returns to QUIC when that works, and cuts no tunnel", () =>
    withNet(async (net) => {
      const { proxy, log } = await runProxy(net, { admin: { listenAddress: ADMIN } });
      const udp = networkWithUdp(net, true);
      const { agent, log: agentLog } = await runAgent(udp.net, [proxy.agentAddress], { agentClient: { quicProbeInterval: 20 } });
      await log.waitFor("agent connected", { link: "tls" });
      const origin = await listenTcp(net);
      const old = await openTunnel(net, proxy, origin);
      udp.isBlocked = false;
      await agentLog.waitFor("link changed", { from: "tls", to: "quic", reason: "recovered" });
      await log.waitFor("agent connected", { link: "quic" });
      await log.waitFor("agent is draining");
      const next = await openTunnel(net, proxy, origin);
      const links = (await reports(net)).map(({ link, tunnels }) => [link, tunnels]);
      assert.deepEqual(links.sort(), [["quic", 1], ["tls", 1]]);
      await checkTunnel(old);
      await checkTunnel(next);
      assert.equal(agent.proxies.length, 2);
      for (const end of [old.client, old.server]) end.closeWrite();
      assert.equal(await within(old.client.read()), null);
      await log.waitFor("agent disconnected", { reason: "closed by the agent: 0 shutting down" });
      assert.equal(agent.proxies.length, 1);
      await checkTunnel(next);
      assert.equal(log.logged("agent disconnected").length, 1);
    }));

  it("goes on over TLS where QUIC falls silent, and its id stays reachable", () =>
    withNet(async (net) => {
      const { proxy, log } = await runProxy(net);
      const udp = networkWithUdp(net, false);
      const { log: agentLog } = await runAgent(udp.net, [proxy.agentAddress], { agentClient: { quicProbeInterval: 0 } });
      await log.waitFor("agent connected", { link: "quic" });
      udp.isBlocked = true;
      await eventually(() => agentLog.logged("link changed", { to: "tls", reason: "silent" }).length === 1, () => "it stays", 15_000);
      await log.waitFor("agent connected", { link: "tls" });
      const origin = await listenTcp(net);
      await checkTunnel(await openTunnel(net, proxy, origin));
    }));

  it("tries TLS first after a restart where QUIC did not work", async () => {
    const root = await mkdtemp(join(tmpdir(), "reverse-http-transport-"));
    after(() => rm(root, { recursive: true, force: true }));
    await withNet(async (net) => {
      const { proxy, log } = await runProxy(net);
      const first = networkWithUdp(net, true);
      const { agent, log: agentLog } = await runAgent(first.net, [proxy.agentAddress], {}, root);
      await agentLog.waitFor("connected", { link: "tls" });
      await agent.close();
      const second = networkWithUdp(net, true);
      const { log: nextLog } = await runAgent(second.net, [proxy.agentAddress], {}, root);
      await nextLog.waitFor("link changed", { to: "tls", reason: "remembered" });
      await log.waitFor("agent connected", { link: "tls" }, 2);
      assert.equal(second.attempts, 0);
    });
  });

  it("moves to another proxy over TLS when its own stops", () =>
    withNet(async (net) => {
      const [a, b] = [await runProxy(net), await runProxy(net)];
      const udp = networkWithUdp(net, true);
      await runAgent(udp.net, [a.proxy.agentAddress, b.proxy.agentAddress], { agentClient: { transport: "tls" } });
      await a.log.waitFor("agent connected", { link: "tls" });
      await within(a.proxy.drain());
      await b.log.waitFor("agent connected", { link: "tls" });
      assert.equal(udp.attempts, 0);
    }));

  it("uses QUIC alone with --agent-client.transport=quic", () =>
    withNet(async (net) => {
      const { proxy, log } = await runProxy(net);
      const connectQuic = () => Promise.reject(new NetError("refused", "no QUIC", { remote: true }));
      const { log: agentLog } = await runAgent(netWith(net, { connectQuic }), [proxy.agentAddress], { agentClient: { transport: "quic" } });
      await agentLog.waitFor("not connected", {}, 2);
      assert.equal(log.logged("agent connected").length, 0);
    }));

  it("behaves as over QUIC alone where the proxy has no TCP port", () =>
    withNet(async (net) => {
      const { proxy, log } = await runProxy(net, { agentServer: { tcpListenAddress: "none" } });
      assert.equal(proxy.agentTcpAddress, undefined);
      const { log: agentLog } = await runAgent(net, [proxy.agentAddress]);
      await log.waitFor("agent connected", { link: "quic" });
      await proxy.close();
      const { reason } = await agentLog.waitFor("not connected", {}, 2);
      assert.match(String(reason), /refuses connections: the proxy is shutting down or has too many handshakes; retrying$/);
      assert.equal(agentLog.logged("link changed").length, 0);
    }));

  it("moves to TLS for bulk data over a short path, and cuts no tunnel", () =>
    withNet(async (net) => {
      const { proxy, log } = await runProxy(net);
      let sentBytes = 0;
      const connectQuic = async (options: ConnectQuicOptions): Promise<AgentSession> => {
        const session = await net.connectQuic(options);
        // more at each measurement than any limit
        return instead(session, { stats: () => ({ ...session.stats(), rttMs: 1, sentBytes: sentBytes += 1e9, receivedBytes: sentBytes }) });
      };
      const { log: agentLog } = await runAgent(netWith(net, { connectQuic }), [proxy.agentAddress], { admin: { listenAddress: ADMIN } });
      await log.waitFor("agent connected", { link: "quic" });
      const origin = await listenTcp(net);
      const old = await openTunnel(net, proxy, origin);
      const isMoved = () => log.logged("agent connected", { link: "tls" }).length > 0;
      await eventually(isMoved, () => JSON.stringify(agentLog.entries)); // traffic is measured for some seconds
      await agentLog.waitFor("link changed", { from: "quic", to: "tls", reason: "bulk" });
      await checkTunnel(old);
      await checkTunnel(await openTunnel(net, proxy, origin));
      const links = (await reports(net)).map(({ link, linkReason }) => [link, linkReason]);
      assert.deepEqual(links, [["quic", undefined], ["tls", "bulk"]]);
    }));

  it("names what answers over TLS where that is not the proxy", () =>
    withNet(async (net) => {
      const { port } = await listenTcp(net, { tls: { cert: "", key: "" } });
      const { log } = await runAgent(networkWithUdp(net, true).net, [`127.0.0.1:${port}`]);
      const { reason } = await log.waitFor("the proxy cannot be reached over TLS");
      assert.match(String(reason), /it speaks another protocol$/);
    }));
});

describe("a proxy", () => {
  it("takes agents over TCP on the port that they have over UDP", () =>
    withNet(async (net) => {
      const { proxy } = await runProxy(net, { agentServer: { listenAddress: "127.0.0.1:4242" } });
      assert.deepEqual([proxy.agentAddress, proxy.agentTcpAddress], ["127.0.0.1:4242", "127.0.0.1:4242"]);
    }));

  it("takes them on another address where that is configured", () =>
    withNet(async (net) => {
      const { proxy } = await runProxy(net, { agentServer: { tcpListenAddress: "127.0.0.1:443" } });
      assert.equal(proxy.agentTcpAddress, "127.0.0.1:443");
    }));

  it("names the option where the TCP port is taken, and opens nothing", () =>
    withNet(async (net) => {
      await net.listenTcp({ address: "127.0.0.1:4242" });
      await assert.rejects(runProxy(net, { agentServer: { listenAddress: "127.0.0.1:4242" } }), (error: NetError) => {
        assert.equal(error.code, "address-in-use");
        assert.match(error.message, /set --agent-server\.tcp-listen-address to a free address, or to none$/);
        return true;
      });
      await net.listenQuic({ address: "127.0.0.1:4242", tls: { cert: "", key: "" }, alpn: ALPN });
    }));

  it("takes agents over QUIC alone where its own clients have the TCP port", () =>
    withNet(async (net) => {
      const addresses = { agentServer: { listenAddress: "127.0.0.1:443" }, httpProxy: { listenAddress: "127.0.0.1:443" } };
      const { proxy, log } = await runProxy(net, addresses);
      assert.deepEqual([proxy.clientAddress, proxy.agentTcpAddress], ["127.0.0.1:443", undefined]);
      await log.waitFor("agents connect over QUIC only");
    }));

  it("finds a port that is free for both where the system chooses it", () =>
    withNet(async (net) => {
      let refusals = 2;
      const listenTlsLink: Net["listenTlsLink"] = async (options) => {
        if (refusals-- > 0) throw new NetError("address-in-use", "Cannot listen there: the address is in use");
        return await net.listenTlsLink(options);
      };
      const { proxy } = await runProxy(netWith(net, { listenTlsLink }));
      assert.equal(proxy.agentTcpAddress, proxy.agentAddress);
    }));

  it("stops accepting agents on both when it drains, and frees both when it closes", () =>
    withNet(async (net) => {
      const calls: string[] = [];
      const watched = (name: string, listener: SessionListener): SessionListener =>
        instead(listener, {
          stopAccepting: () => {
            calls.push(`${name} stops`);
            listener.stopAccepting();
          },
        });
      const { proxy } = await runProxy(netWith(net, {
        listenQuic: async (options) => watched("QUIC", await net.listenQuic(options)),
        listenTlsLink: async (options) => watched("TLS", await net.listenTlsLink(options)),
      }));
      await within(proxy.drain());
      assert.deepEqual(calls, ["QUIC stops", "TLS stops"]);
      await net.listenTcp({ address: proxy.agentTcpAddress! });
      await net.listenQuic({ address: proxy.agentAddress, tls: { cert: "", key: "" }, alpn: ALPN });
    }));

  for (const kind of ["quic", "tls"] as const) {
    const connect = async (net: Net, proxy: Proxy, alpn: string[]): Promise<AgentSession> => {
      const options = { host: "127.0.0.1", port: portOf(proxy.agentAddress), tls: {}, alpn, timeoutMs: 5_000 };
      return kind === "quic" ? await net.connectQuic(options) : await net.connectTlsLink(options);
    };

    it(`answers a probe over ${kind}, which is no agent`, () =>
      withNet(async (net) => {
        const { proxy, log } = await runProxy(net, { limits: { agents: 1 } });
        for (let i = 0; i < 3; i++) {
          const session = await connect(net, proxy, [PROBE_ALPN]);
          assert.ok((await within(runProbe(session))).durationMs >= 0);
          assert.equal((await within(session.closed)).code, 0);
        }
        assert.equal(proxy.agents, 0);
        assert.equal(log.logged("agent connected").length, 0);
        assert.equal(log.logged("agent refused").length, 0);
      }));

    it(`reads no more of a probe over ${kind} than it has`, () =>
      withNet(async (net) => {
        const { proxy } = await runProxy(net);
        const session = await connect(net, proxy, [PROBE_ALPN]);
        const stream = await session.openStream();
        stream.write(new Uint8Array(1 << 20)).catch(() => {}); // it is cut
        assert.deepEqual((await within(session.closed)).remote, true);
      }));

    it(`counts a probe over ${kind} as a connection while it runs`, () =>
      withNet(async (net) => {
        const { proxy } = await runProxy(net, { limits: { agents: 1 } });
        const first = await connect(net, proxy, [PROBE_ALPN]);
        const second = await connect(net, proxy, kind === "quic" ? ALPN : TLS_ALPN);
        assert.equal((await within(second.closed)).code, 503);
        first.close(0, "");
      }));
  }

  it("takes TLS agents under the limits that it has for others", () =>
    withNet(async (net) => {
      let seen: Parameters<Net["listenTlsLink"]>[0] | undefined;
      const listenTlsLink: Net["listenTlsLink"] = async (options) => await net.listenTlsLink(seen = options);
      await runProxy(netWith(net, { listenTlsLink }), { limits: { handshakes: 7, handshakesPerAddress: 3 } });
      assert.deepEqual(seen!.alpn, [CREDENTIALS_ALPN, PROBE_ALPN, ...TLS_ALPN]);
      assert.deepEqual([seen!.maxPendingHandshakes, seen!.pendingHandshakesPerAddress?.max], [7, 3]);
      assert.deepEqual(seen!.transport, { ...PROXY_TRANSPORT, keepAliveMs: 3_250, idleTimeoutMs: 10_000 });
    }));
});
