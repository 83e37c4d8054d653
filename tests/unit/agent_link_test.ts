// Proxies and agents on the in-memory network: versions of the link, migration, and which agent gets the next tunnel.
import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { type Agent, startAgent } from "../../agent/agent.ts";
import { agentOptions } from "../../agent/options.ts";
import { type Proxy, startProxy } from "../../proxy/proxy.ts";
import { proxyOptions } from "../../proxy/options.ts";
import { Backoff } from "../../shared/async/backoff.ts";
import { type PartialValues, withDefaults } from "../../shared/config/defaults.ts";
import { encodeHead } from "../../shared/http/head.ts";
import { encodeErrorResponse, ProxyError } from "../../shared/http/status.ts";
import { encodeFrame } from "../../shared/link/frame.ts";
import {
  agentTransport,
  ALPN,
  authenticate,
  CloseCode,
  controlFrames,
  PROXY_TRANSPORT,
  receiveCredentials,
} from "../../shared/link/link.ts";
import { decodeMessage, encodeMessage } from "../../shared/link/message.ts";
import type { Net } from "../../shared/net/net.ts";
import type { AgentSession, QuicTransport, SessionListener, SessionTransport } from "../../shared/net/session.ts";
import type { Duplex } from "../../shared/net/stream.ts";
import { createMemoryStore } from "../../shared/store/memory.ts";
import type { Store } from "../../shared/store/store.ts";
import { bytes, isPending, listenTcp, pause, portOf, readTextExactly, type TcpServer, within } from "../conformance/support.ts";
import { udpHead } from "../../testing/masque.ts";
import { eventually } from "../../testing/programs.ts";
import { ask, connectTo, LogBook, netThatCounts, netWith, Queue, readUntil, withNet } from "../../testing/network.ts";
import { AGENT_ID, checkTunnel, connectRequest, openTunnel, type Tunnel } from "./tunnels.ts";

const [V2, V1] = ALPN as [string, string];
const HELLO = { version: "raw", instance: "raw", host: "", labels: {} };
const ESTABLISHED = encodeHead("HTTP/1.1 200 Connection established", []);

type ProxyChoices = PartialValues<ReturnType<typeof withDefaults<typeof proxyOptions>>>;
type AgentChoices = PartialValues<ReturnType<typeof withDefaults<typeof agentOptions>>>;

/** Lifetime of an entry in milliseconds: short, so that it is renewed during a test. */
const ENTRY_MS = 150;

/** Where a proxy tells which agents it holds, and under which address of its own. */
interface Entries {
  store: Store;
  address: string;
}

interface RunningProxy {
  proxy: Proxy;
  log: LogBook;
}

async function runProxy(net: Net, given: ProxyChoices = {}, address = "127.0.0.1:0", entries?: Entries): Promise<RunningProxy> {
  const log = new LogBook();
  const options = withDefaults(proxyOptions, { ...given, httpProxy: { listenAddress: "127.0.0.1:0" } });
  options.agentServer.listenAddress = address;
  if (entries) options.store = { ...options.store, httpProxyAddress: entries.address, ttl: ENTRY_MS };
  return { proxy: await startProxy(options, { net, log, store: entries?.store }), log };
}

async function runAgent(net: Net, servers: string[], given: AgentChoices = {}): Promise<{ agent: Agent; log: LogBook }> {
  const log = new LogBook();
  const options = withDefaults(agentOptions, { ...given, auth: { noauth: { agentId: AGENT_ID } } });
  options.agentClient.serverAddress = servers;
  const backoff = () => new Backoff({ initialMs: 10, maxMs: 50 });
  return { agent: await startAgent(options, { net, log, backoff, random: () => 0 }), log };
}

/** Where a proxy made of its connections listens. */
async function listenAsProxy(net: Net, version: string, transport: QuicTransport = {}): Promise<SessionListener> {
  const tls = { cert: "", key: "" };
  return await net.listenQuic({ address: "127.0.0.1:0", tls, alpn: [version], transport: { ...PROXY_TRANSPORT, ...transport } });
}

/** An agent made of a connection; its connection and, with version 2, its control stream. */
async function rawAgent(
  net: Net,
  address: string,
  { alpn = [V2], instance = "raw", id = AGENT_ID } = {},
): Promise<{ connection: AgentSession; control?: Duplex }> {
  const connection = await net.connectQuic({
    host: "127.0.0.1",
    port: portOf(address),
    tls: {},
    alpn,
    transport: agentTransport(10_000),
    timeoutMs: 5_000,
  });
  const hello = { version: "raw", instance, host: "", labels: {} };
  return { connection, control: await within(authenticate(connection, bytes(id), hello)) };
}

/** Answers one request with 200: the stream is the tunnel. */
async function serveOne(connection: AgentSession): Promise<Duplex> {
  const [incoming] = (await within(connection.acceptRequests()))!;
  await incoming!.stream.write(ESTABLISHED);
  return incoming!.stream;
}

/** An agent that refuses all tunnels; returns how many it was asked for. */
async function refuseAll(net: Net, { agentAddress }: Proxy, refusal: ProxyError, instance = "raw"): Promise<() => number> {
  const { connection } = await rawAgent(net, agentAddress, { instance });
  let asked = 0;
  const run = async (): Promise<void> => {
    for (let batch; (batch = await connection.acceptRequests()) !== null;) {
      for (const { stream } of batch) {
        asked++;
        await stream.write(encodeErrorResponse(refusal, "reverse-http-agent"));
        stream.close();
      }
    }
  };
  void run().catch(() => {}); // the network is closed
  return () => asked;
}

async function endTunnel({ client, server }: Tunnel): Promise<void> {
  client.closeWrite();
  server.closeWrite();
  assert.equal(await within(client.read()), null);
  client.close();
  server.close();
}

async function statusOf(net: Net, proxy: Proxy, origin: TcpServer): Promise<number> {
  return (await ask(net, proxy.clientAddress, connectRequest(origin))).status;
}

describe("agent and proxy", () => {
  it("speak version 2 with each other, and the proxy learns the agent's version and host", () =>
    withNet(async (net) => {
      const { proxy, log } = await runProxy(net);
      await runAgent(net, [proxy.agentAddress]);
      const { version, host } = await log.waitFor("agent connected", { agent: AGENT_ID });
      assert.match(String(version), /^reverse-http\/[0-9]/);
      assert.notEqual(host, "");
    }));

  it("ping as rarely as each has configured, and wait three pings long", () =>
    withNet(async (net) => {
      const told: (number | undefined)[][] = [];
      const tell = ({ transport }: { transport?: SessionTransport }) => void told.push([transport?.keepAliveMs, transport?.idleTimeoutMs]);
      const listening = netWith(net, {
        listenQuic: async (options) => (tell(options), await net.listenQuic(options)),
        listenTlsLink: async (options) => (tell(options), await net.listenTlsLink(options)),
        connectQuic: async (options) => (tell(options), await net.connectQuic(options)),
      });
      const { proxy, log } = await runProxy(listening, { agentServer: { keepAlive: 25_000 } });
      await runAgent(listening, [proxy.agentAddress], { agentClient: { keepAlive: 20_000 } });
      await log.waitFor("agent connected", { agent: AGENT_ID });
      assert.deepEqual(told, [[25_250, 76_000], [25_250, 76_000], [20_000, 61_000]]); // the agent's pings come first
    }));

  it("leave pings over QUIC to the agent where both are to choose, and wait three of the longest intervals", () =>
    withNet(async (net) => {
      const told: (number | undefined)[][] = [];
      const tell = ({ transport }: { transport?: SessionTransport }) => void told.push([transport?.keepAliveMs, transport?.idleTimeoutMs]);
      const pinged = Promise.withResolvers<void>();
      const listening = netWith(net, {
        listenQuic: async (options) => (tell(options), await net.listenQuic(options)),
        listenTlsLink: async (options) => (tell(options), await net.listenTlsLink(options)),
        connectQuic: async (options) => {
          tell(options);
          return Object.assign(await net.connectQuic(options), { ping: pinged.resolve });
        },
      });
      const { proxy } = await runProxy(listening, { agentServer: { keepAlive: 0 } });
      await runAgent(listening, [proxy.agentAddress], { agentClient: { keepAlive: 0 } });
      await within(pinged.promise);
      assert.deepEqual(told, [[0, 76_000], [25_250, 76_000], [0, 76_000]]);
    }));

  it("send at the rates that each has configured", () =>
    withNet(async (net) => {
      const told: (string | undefined)[] = [];
      const listening = netWith(net, {
        listenQuic: async (options) => {
          told.push(options.transport?.congestion);
          return await net.listenQuic(options);
        },
        connectQuic: async (options) => {
          told.push(options.transport?.congestion);
          return await net.connectQuic(options);
        },
      });
      const { proxy, log } = await runProxy(listening, { agentServer: { congestionControl: "newreno" } });
      await runAgent(listening, [proxy.agentAddress], { agentClient: { congestionControl: "bbr" } });
      await log.waitFor("agent connected");
      assert.deepEqual(told, ["newreno", "bbr"]);
    }));

  it("serve an agent of version 1", () =>
    withNet(async (net) => {
      const { proxy } = await runProxy(net);
      const { connection } = await rawAgent(net, proxy.agentAddress, { alpn: [V1] });
      assert.equal(connection.alpn, V1);
      const client = await connectTo(net, proxy.clientAddress);
      await client.write(bytes(connectRequest(await listenTcp(net))));
      await serveOne(connection);
      assert.match(await readUntil(client, "\r\n\r\n"), /^HTTP\/1\.1 200 /);
    }));

  it("refuse UDP for an agent that has not announced it, without asking it", () =>
    withNet(async (net) => {
      const { proxy } = await runProxy(net);
      for (const [alpn, instance] of [[[V1], "go"], [[V2], "old"]] as const) {
        const { connection } = await rawAgent(net, proxy.agentAddress, { alpn: [...alpn], instance });
        const asked = connection.acceptRequests();
        const answer = await ask(net, proxy.clientAddress, udpHead("127.0.0.1:53"));
        assert.equal(answer.status, 502);
        assert.match(answer.field("Proxy-Status")!, /error=http_upgrade_failed/);
        assert.match(answer.body, /^The agent does not relay UDP: its version is too old/);
        assert.ok(await isPending(asked));
      }
    }));

  it("serve a proxy of version 1", () =>
    withNet(async (net) => {
      const listener = await listenAsProxy(net, V1, { maxPeerStreams: 1 });
      const { log } = await runAgent(net, [listener.address]);
      const connection = (await within(listener.accept()))!;
      const { credentials, accept } = await within(receiveCredentials(connection));
      assert.equal(new TextDecoder().decode(credentials), AGENT_ID);
      await accept();
      await log.waitFor("connected");
      const origin = await listenTcp(net);
      const answer = await connection.request(bytes(`CONNECT 127.0.0.1:${origin.port} HTTP/1.1\r\n\r\n`), { timeoutMs: 5_000 });
      assert.match(answer.head, /^HTTP\/1\.1 200 /);
    }));
});

describe("an agent", () => {
  it("releases the streams of a connection that has ended", () =>
    withNet(async (net) => {
      const { counting, open } = netThatCounts(net);
      const { proxy, log } = await runProxy(net);
      const { agent } = await runAgent(counting, [proxy.agentAddress]);
      await log.waitFor("agent connected");
      await agent.close();
      assert.equal(open.size, 0);
    }));

  it("releases the streams of a connection that was refused", () =>
    withNet(async (net) => {
      const listener = await listenAsProxy(net, V2);
      const { counting, open } = netThatCounts(net);
      const { log } = await runAgent(counting, [listener.address]);
      const connection = (await within(listener.accept()))!;
      await within(receiveCredentials(connection));
      connection.close(CloseCode.unauthorized, "authentication failed");
      await log.waitFor("not connected");
      await eventually(() => open.size === 0, () => `${open.size} streams are kept`, 5_000);
    }));
});

describe("a proxy", () => {
  for (
    const [what, frame] of Object.entries({
      "something else than a hello": Uint8Array.of(0, 0, 0, 1, 4),
      "a hello that is malformed": encodeFrame(bytes("\0{}")),
      "a frame that is too long": Uint8Array.of(0, 1, 0, 0),
    })
  ) {
    it(`closes an agent whose first control frame is ${what}, with 422`, () =>
      withNet(async (net) => {
        const { proxy, log } = await runProxy(net);
        const connection = await net.connectQuic({
          host: "127.0.0.1",
          port: portOf(proxy.agentAddress),
          tls: {},
          alpn: [V2],
          timeoutMs: 5_000,
        });
        const stream = await connection.openStream();
        await stream.write(encodeFrame(bytes(AGENT_ID)));
        const control = await connection.openStream();
        await control.write(frame);
        assert.equal((await within(connection.closed)).code, CloseCode.malformed);
        await log.waitFor("agent refused");
        assert.equal(proxy.agents, 0);
      }));
  }

  it("closes an agent that violates the protocol later, with 422, and removes it", () =>
    withNet(async (net) => {
      const { proxy, log } = await runProxy(net);
      const { connection, control } = await rawAgent(net, proxy.agentAddress);
      await control!.write(Uint8Array.of(0, 0, 0, 0));
      assert.equal((await within(connection.closed)).code, CloseCode.malformed);
      await log.waitFor("agent violated the protocol", { agent: AGENT_ID });
      await log.waitFor("agent disconnected", { agent: AGENT_ID });
      assert.equal(proxy.agents, 0);
    }));

  for (
    const [what, frames] of Object.entries({
      "one that it refuses": [encodeFrame(new Uint8Array())],
      "one that ends its first frame early": [Uint8Array.of(0, 0, 0, 9)],
      "one that says no hello": [encodeFrame(bytes(AGENT_ID)), Uint8Array.of(0, 0, 0, 1, 4)],
      "one that breaks the rules later": [
        encodeFrame(bytes(AGENT_ID)),
        encodeFrame(encodeMessage({ type: "hello", hello: HELLO })),
        new Uint8Array(9),
      ],
      "one that opens one more stream": [
        encodeFrame(bytes(AGENT_ID)),
        encodeFrame(encodeMessage({ type: "hello", hello: HELLO })),
        Uint8Array.of(1),
        Uint8Array.of(1),
      ],
    })
  ) {
    it(`releases the streams of an agent that has disconnected: ${what}`, () =>
      withNet(async (net) => {
        const { counting, open } = netThatCounts(net);
        const { proxy } = await runProxy(counting);
        const connection = await net.connectQuic({
          host: "127.0.0.1",
          port: portOf(proxy.agentAddress),
          tls: {},
          alpn: [V2],
          timeoutMs: 5_000,
        });
        for (const frame of frames) {
          const stream = await connection.openStream();
          await stream.write(frame).catch(() => {}); // it may have been refused already
          stream.closeWrite();
        }
        await within(connection.closed);
        await eventually(() => open.size === 0, () => `${open.size} streams are kept`, 5_000);
      }));
  }

  it("lets the tunnels of an older connection of the same process finish, and closes that of another process", () =>
    withNet(async (net) => {
      const { proxy, log } = await runProxy(net);
      const origin = await listenTcp(net);
      const first = await rawAgent(net, proxy.agentAddress, { instance: "one" });
      const client = await connectTo(net, proxy.clientAddress);
      await client.write(bytes(connectRequest(origin)));
      const tunnel = await serveOne(first.connection);
      await readUntil(client, "\r\n\r\n");
      await rawAgent(net, proxy.agentAddress, { instance: "one" });
      await log.waitFor("agent connected", {}, 2);
      await client.write(bytes("on"));
      assert.equal(await readTextExactly(tunnel, 2), "on");
      await rawAgent(net, proxy.agentAddress, { instance: "two" });
      assert.equal((await within(first.connection.closed)).code, CloseCode.replaced);
    }));

  it("ends an older connection of the same process that does not respond, even if QUIC has not given it up, and no other", () =>
    withNet(async (net) => {
      const { proxy, log } = await runProxy(net);
      const dead = await rawAgent(net, proxy.agentAddress, { instance: "one" });
      const alive = await rawAgent(net, proxy.agentAddress, { instance: "one" });
      const answering = (async () => {
        const frames = controlFrames(alive.control!);
        for (let frame; (frame = await frames.next()) !== null;) {
          const message = decodeMessage(frame);
          if (message?.type === "ping") await alive.control!.write(encodeFrame(encodeMessage({ type: "pong", data: message.data })));
        }
      })().catch(() => {}); // its connection ends with the test
      await rawAgent(net, proxy.agentAddress, { instance: "one" });
      assert.equal((await within(dead.connection.closed, "it was not ended", 15_000)).code, CloseCode.replaced);
      await log.waitFor("agent disconnected", { reason: `closed by the proxy: ${CloseCode.replaced} it does not answer` });
      assert.ok(await isPending(alive.connection.closed));
      alive.connection.close(CloseCode.shutdown, "");
      await answering;
    }));

  it("refuses one of two agents with the same id that replace each other, until the other has gone", () =>
    withNet(async (net) => {
      const { proxy, log } = await runProxy(net);
      const connect = (instance: string) => rawAgent(net, proxy.agentAddress, { instance });
      let kept: AgentSession | undefined;
      for (let round = 0; round < 3; round++) {
        await connect("one");
        kept = (await connect("two")).connection;
      }
      await assert.rejects(connect("one"));
      const { host, keptHost } = await log.waitFor("agent refused: another agent has the same id");
      assert.deepEqual([host, keptHost], [HELLO.host, HELLO.host]);
      kept!.close(CloseCode.shutdown, "");
      await log.waitFor("agent disconnected", {}, 6);
      await connect("one");
    }));

  it("does not treat a surplus connection with the same id as a replacement if several agents may share it", () =>
    withNet(async (net) => {
      const { proxy, log } = await runProxy(net, { agentServer: { agent: { multiple: true } } });
      for (let i = 0; i < 66; i++) await rawAgent(net, proxy.agentAddress, { instance: `raw-${i}` });
      await log.waitFor("agent disconnected", {}, 2);
      assert.deepEqual([log.logged("agent replaced"), log.logged("agents with the same id replace each other")], [[], []]);
    }));

  it("skips an agent that has disconnected, within one request", () =>
    withNet(async (net) => {
      const { proxy, log } = await runProxy(net, { agentServer: { agent: { multiple: true } } });
      const origin = await listenTcp(net);
      await runAgent(net, [proxy.agentAddress]);
      await log.waitFor("agent connected");
      // the newest of equals is asked first, and goes instead of answering
      const { connection } = await rawAgent(net, proxy.agentAddress);
      await log.waitFor("agent connected", {}, 2);
      const dying = within(connection.acceptRequests()).then(() => connection.close(0, "killed"));
      await checkTunnel(await openTunnel(net, proxy, origin));
      await dying;
    }));

  it("skips an agent that is silent, within one request", () =>
    withNet(async (net) => {
      const { proxy, log } = await runProxy(net, { agentServer: { agent: { multiple: true } } });
      const origin = await listenTcp(net);
      await runAgent(net, [proxy.agentAddress]);
      await log.waitFor("agent connected");
      // the newest of equals is asked first, and answers neither that nor a ping
      const { connection } = await rawAgent(net, proxy.agentAddress);
      await log.waitFor("agent connected", {}, 2);
      const asked = within(connection.acceptRequests());
      await checkTunnel(await openTunnel(net, proxy, origin));
      await asked;
      await checkTunnel(await openTunnel(net, proxy, origin));
      assert.ok(await isPending(connection.acceptRequests()), "it was asked again");
    }));

  const broken = {
    "refused": new ProxyError(502, "connection_refused", "refused the connection"),
    "unroutable": new ProxyError(502, "destination_ip_unroutable", "cannot be reached"),
    "an unknown name": new ProxyError(502, "dns_error", "has a name that is not known"),
    "a time-out": new ProxyError(504, "connection_timeout", "did not answer in time"),
    "a limit": new ProxyError(503, "connection_limit_reached", "has no descriptors left"),
  };
  for (const [what, refusal] of Object.entries(broken)) {
    it(`asks the other agent if one cannot reach the destination, and that one only occasionally: ${what}`, () =>
      withNet(async (net) => {
        const { proxy, log } = await runProxy(net, { agentServer: { agent: { multiple: true } } });
        const origin = await listenTcp(net);
        await runAgent(net, [proxy.agentAddress]);
        await log.waitFor("agent connected");
        const asked = await refuseAll(net, proxy, refusal);
        await log.waitFor("agent connected", {}, 2);
        for (let i = 0; i < 100; i++) await endTunnel(await openTunnel(net, proxy, origin));
        assert.ok(asked() >= 1 && asked() <= 3, `it was asked ${asked()} times`);
      }));
  }

  const final = {
    "what is not allowed": new ProxyError(403, "http_request_denied", "is not on the allow-list"),
    "what it may have begun": new ProxyError(502, "proxy_internal_error", "Internal error"),
  };
  for (const [what, refusal] of Object.entries(final)) {
    it(`does not ask another agent for ${what}`, () =>
      withNet(async (net) => {
        const { proxy, log } = await runProxy(net, { agentServer: { agent: { multiple: true } } });
        const origin = await listenTcp(net);
        await runAgent(net, [proxy.agentAddress]);
        await log.waitFor("agent connected");
        await refuseAll(net, proxy, refusal);
        await log.waitFor("agent connected", {}, 2);
        assert.equal(await statusOf(net, proxy, origin), refusal.status);
      }));
  }

  it("asks at most five agents for one request, and responds with the last one's error", () =>
    withNet(async (net) => {
      const { proxy, log } = await runProxy(net, { agentServer: { agent: { multiple: true } } });
      const origin = await listenTcp(net);
      const counts = [];
      for (let i = 0; i < 8; i++) counts.push(await refuseAll(net, proxy, new ProxyError(502, "connection_refused", "no"), `raw-${i}`));
      await log.waitFor("agent connected", {}, 8);
      assert.equal(await statusOf(net, proxy, origin), 502);
      assert.equal(counts.reduce((sum, count) => sum + count(), 0), 5);
    }));

  it("asks an agent that reconnects meanwhile if its old connection is silent", () =>
    withNet(async (net) => {
      const { proxy } = await runProxy(net);
      const origin = await listenTcp(net);
      const old = await rawAgent(net, proxy.agentAddress);
      const client = await connectTo(net, proxy.clientAddress);
      await client.write(bytes(connectRequest(origin)));
      await within(old.connection.acceptRequests());
      const { connection } = await rawAgent(net, proxy.agentAddress);
      const server = await serveOne(connection);
      assert.match(await readUntil(client, "\r\n\r\n"), /^HTTP\/1\.1 200 /);
      await checkTunnel({ client, server });
      assert.ok(await isPending(old.connection.closed), "the tunnels of the old connection were cut off");
    }));

  it("responds with 502 if the last agent disconnects instead of responding", () =>
    withNet(async (net) => {
      const { proxy, log } = await runProxy(net);
      const { connection } = await rawAgent(net, proxy.agentAddress);
      await log.waitFor("agent connected");
      void connection.acceptRequests().then(() => connection.close(0, "killed"));
      assert.equal(await statusOf(net, proxy, await listenTcp(net)), 502);
    }));

  it("distributes tunnels over agents with one id by the number that each has open", () =>
    withNet(async (net) => {
      const { proxy, log } = await runProxy(net, { agentServer: { agent: { multiple: true } } });
      const origin = await listenTcp(net);
      const served = new Queue<string>();
      for (const instance of ["a", "b"]) {
        const { connection } = await rawAgent(net, proxy.agentAddress, { instance });
        void (async () => {
          for (let batch; (batch = await connection.acceptRequests());) {
            for (const { stream } of batch) {
              await stream.write(ESTABLISHED);
              served.push(instance);
              void stream.read().then(() => stream.close(), () => {}); // the network is closed
            }
          }
        })();
      }
      await log.waitFor("agent connected", {}, 2);
      const clients: Duplex[] = [];
      const open = async (): Promise<string> => {
        const client = await connectTo(net, proxy.clientAddress);
        clients.push(client);
        await client.write(bytes(connectRequest(origin)));
        await readUntil(client, "\r\n\r\n");
        return await served.next();
      };
      assert.deepEqual([await open(), await open(), await open(), await open()], ["b", "a", "b", "a"]);
      // both of b's end: it has the fewest for the next two
      for (const client of [clients[0]!, clients[2]!]) {
        client.closeWrite();
        while (await within(client.read()) !== null);
      }
      await log.waitFor("request", {}, 2);
      assert.deepEqual([await open(), await open()], ["b", "b"]);
    }));
});

describe("a proxy that drains", () => {
  it("asks its agents to connect elsewhere, cuts no tunnel, and closes when the last has ended", () =>
    withNet(async (net) => {
      const [a, b] = [await runProxy(net), await runProxy(net)];
      const origin = await listenTcp(net);
      const { log } = await runAgent(net, [a.proxy.agentAddress, b.proxy.agentAddress]);
      await a.log.waitFor("agent connected");
      const tunnel = await openTunnel(net, a.proxy, origin);
      const draining = a.proxy.drain();
      assert.equal(a.proxy.draining, true);
      await b.log.waitFor("agent connected");
      await checkTunnel(tunnel);
      await endTunnel(await openTunnel(net, b.proxy, origin));
      assert.deepEqual(a.log.logged("stopped"), []);
      await endTunnel(tunnel);
      await within(draining);
      assert.equal(a.log.logged("stopped").length, 1);
      assert.deepEqual(log.logged("not connected"), []);
    }));

  it("serves clients until its agents have found another proxy", () =>
    withNet(async (net) => {
      const { proxy, log } = await runProxy(net);
      const origin = await listenTcp(net);
      const { connection, control } = await rawAgent(net, proxy.agentAddress);
      await log.waitFor("agent connected");
      const draining = proxy.drain();
      await readUntil(control!, "shutting down");
      const client = await connectTo(net, proxy.clientAddress);
      await client.write(bytes(connectRequest(origin)));
      const tunnel = await serveOne(connection);
      await readUntil(client, "\r\n\r\n");
      await control!.write(encodeFrame(Uint8Array.of(4))); // moved
      while (
        await net.connectTcp({ host: "127.0.0.1", port: portOf(proxy.clientAddress), timeoutMs: 5_000 }).then(() => true, () => false)
      );
      await client.write(bytes("on"));
      assert.equal(await readTextExactly(tunnel, 2), "on");
      client.close();
      tunnel.close();
      await within(draining);
    }));

  for (const [body, waits] of [[[1], false], [[], true]] as const) {
    const answer = waits ? "one of the first has found another proxy" : "the first have nowhere to go";
    it(`${waits ? "waits" : "does not wait"} for thousands of agents when ${answer}`, () =>
      withNet(async (net) => {
        const { proxy } = await runProxy(net);
        const agents = [];
        for (let i = 0; i < 200; i++) agents.push(await rawAgent(net, proxy.agentAddress, { id: `a${i}` }));
        let draining = true;
        const drained = proxy.drain().then(() => draining = false);
        // some are told first: most of these answer, and none of the others
        const told: Duplex[] = [];
        const some = Promise.withResolvers<void>();
        const all = Promise.withResolvers<void>();
        for (const { control } of agents) {
          void readUntil(control!, "shutting down").then(() => {
            if (told.push(control!) === 80) some.resolve();
            if (told.length === agents.length) all.resolve();
          }, () => {}); // closed without being told
        }
        await within(some.promise);
        for (const control of told) void control.write(encodeFrame(Uint8Array.of(4, ...body))).catch(() => {}); // moved, and it may be over
        if (!waits) return void await within(drained);
        await within(all.promise);
        assert.ok(draining);
        for (const { connection } of agents) connection.close(0, "");
        await within(drained);
      }));
  }

  it("does not wait for agents that find no other proxy", () =>
    withNet(async (net) => {
      const { proxy, log } = await runProxy(net);
      const { log: agentLog } = await runAgent(net, [proxy.agentAddress]);
      await log.waitFor("agent connected");
      await within(proxy.drain());
      const { reason } = await agentLog.waitFor("not connected");
      assert.match(String(reason), /0 shutting down/);
    }));

  it("resets the remaining tunnels after drain.timeout", () =>
    withNet(async (net) => {
      const { proxy, log } = await runProxy(net, { drain: { timeout: 50 } });
      await runAgent(net, [proxy.agentAddress]);
      await log.waitFor("agent connected");
      const { client, server } = await openTunnel(net, proxy, await listenTcp(net));
      await within(proxy.drain());
      await assert.rejects(within(client.read()), { code: "reset" });
      await assert.rejects(within(server.read()), { code: "reset" });
    }));

  it("serves as before during drain.delay, and is not ready", () =>
    withNet(async (net) => {
      const { proxy, log } = await runProxy(net, { drain: { delay: 60_000 } });
      const origin = await listenTcp(net);
      const draining = proxy.drain();
      assert.equal(proxy.draining, true);
      await runAgent(net, [proxy.agentAddress]);
      await log.waitFor("agent connected");
      await endTunnel(await openTunnel(net, proxy, origin));
      await within(proxy.close());
      await within(draining);
    }));

  it("keeps agents of version 1, which cannot be asked to move, until the end", () =>
    withNet(async (net) => {
      const { proxy, log } = await runProxy(net);
      const { connection } = await rawAgent(net, proxy.agentAddress, { alpn: [V1] });
      await log.waitFor("agent connected");
      const client = await connectTo(net, proxy.clientAddress);
      await client.write(bytes(connectRequest(await listenTcp(net))));
      const tunnel = await serveOne(connection);
      await readUntil(client, "\r\n\r\n");
      const draining = proxy.drain();
      await client.write(bytes("on"));
      assert.equal(await readTextExactly(tunnel, 2), "on");
      client.closeWrite();
      tunnel.close();
      await within(draining);
      assert.equal((await within(connection.closed)).code, CloseCode.shutdown);
    }));

  it("accepts no more agents", () =>
    withNet(async (net) => {
      const { proxy, log } = await runProxy(net);
      const { control } = await rawAgent(net, proxy.agentAddress);
      await log.waitFor("agent connected");
      const draining = proxy.drain();
      await readUntil(control!, "shutting down");
      await assert.rejects(rawAgent(net, proxy.agentAddress), { code: "refused" });
      await proxy.close();
      await within(draining);
    }));
});

/** A proxy that publishes its agents in `store`. */
function announcing(net: Net, store: Store, address: string): Promise<RunningProxy> {
  return runProxy(net, {}, undefined, { store, address });
}

/** Waits until the agent's entry has this value. */
async function entryIs(store: Store, wanted: string | undefined): Promise<void> {
  for (const deadline = performance.now() + 10_000; await store.lookup(AGENT_ID) !== wanted;) {
    if (performance.now() > deadline) throw new Error(`The entry is ${await store.lookup(AGENT_ID)}, not ${wanted}`);
    await pause();
  }
}

/** Checks that the entry keeps this value through several renewals. */
async function entryStays(store: Store, wanted: string): Promise<void> {
  for (const end = performance.now() + 4 * ENTRY_MS; performance.now() < end; await pause()) {
    assert.equal(await store.lookup(AGENT_ID), wanted);
  }
}

describe("the entry of an agent in the store", () => {
  it("is renewed by a draining proxy until the agent has moved to another, which then owns it", () =>
    withNet(async (net) => {
      const store = createMemoryStore({ ttlMs: ENTRY_MS });
      const [a, b] = [await announcing(net, store, "a:1"), await announcing(net, store, "b:1")];
      const { connection, control } = await rawAgent(net, a.proxy.agentAddress, { instance: "one" });
      await entryIs(store, "a:1");
      const client = await connectTo(net, a.proxy.clientAddress);
      await client.write(bytes(connectRequest(await listenTcp(net))));
      const tunnel = await serveOne(connection);
      const draining = a.proxy.drain();
      await readUntil(control!, "shutting down");
      await entryStays(store, "a:1");
      await rawAgent(net, b.proxy.agentAddress, { instance: "one" });
      await control!.write(encodeFrame(Uint8Array.of(4))); // moved
      await entryIs(store, "b:1");
      await entryStays(store, "b:1");
      assert.deepEqual(a.log.logged("agent disconnected"), []);
      client.close();
      tunnel.close();
      await within(draining);
    }));

  it("is renewed while the proxy stops if the agent finds no other proxy", () =>
    withNet(async (net) => {
      const store = createMemoryStore({ ttlMs: ENTRY_MS });
      const { proxy, log } = await announcing(net, store, "a:1");
      const origin = await listenTcp(net);
      await runAgent(net, [proxy.agentAddress]);
      await entryIs(store, "a:1");
      const tunnel = await openTunnel(net, proxy, origin);
      const draining = proxy.drain();
      await log.waitFor("no other proxy for the agents");
      await pause(3 * ENTRY_MS);
      await entryIs(store, "a:1");
      await endTunnel(await openTunnel(net, proxy, origin));
      await checkTunnel(tunnel);
      await endTunnel(tunnel);
      await within(draining);
    }));

  it("expires when the agent drains, while its open tunnels finish", () =>
    withNet(async (net) => {
      const store = createMemoryStore({ ttlMs: ENTRY_MS });
      const { proxy, log } = await announcing(net, store, "a:1");
      const { agent } = await runAgent(net, [proxy.agentAddress]);
      await entryIs(store, "a:1");
      const tunnel = await openTunnel(net, proxy, await listenTcp(net));
      const draining = agent.drain();
      await entryIs(store, undefined);
      await checkTunnel(tunnel);
      assert.deepEqual(log.logged("agent disconnected"), []);
      await endTunnel(tunnel);
      await within(draining);
    }));
});

describe("an agent", () => {
  it("keeps connections to several proxies, and reconnects to one that was restarted", () =>
    withNet(async (net) => {
      const [a, b] = [await runProxy(net), await runProxy(net)];
      const { agent, log } = await runAgent(net, [a.proxy.agentAddress, b.proxy.agentAddress], { agentClient: { connections: 2 } });
      await log.waitFor("connected", {}, 2);
      assert.deepEqual(new Set(agent.proxies), new Set([a.proxy.agentAddress, b.proxy.agentAddress]));
      await within(a.proxy.drain());
      const restarted = await runProxy(net, {}, a.proxy.agentAddress);
      await restarted.log.waitFor("agent connected");
      await log.waitFor("connected", {}, 3);
      assert.deepEqual(new Set(agent.proxies), new Set([a.proxy.agentAddress, b.proxy.agentAddress]));
      assert.equal(b.log.logged("agent connected").length, 1);
    }));

  it("connects to another proxy when its own has gone", () =>
    withNet(async (net) => {
      const [a, b] = [await runProxy(net), await runProxy(net)];
      const { agent } = await runAgent(net, [a.proxy.agentAddress, b.proxy.agentAddress]);
      await a.log.waitFor("agent connected");
      await a.proxy.close();
      await b.log.waitFor("agent connected");
      await agent.close();
    }));

  it("lets its tunnels finish when it drains, and gets new ones until another agent with its id is connected", () =>
    withNet(async (net) => {
      const { proxy, log } = await runProxy(net);
      const origin = await listenTcp(net);
      const { agent } = await runAgent(net, [proxy.agentAddress]);
      await log.waitFor("agent connected");
      const tunnel = await openTunnel(net, proxy, origin);
      const draining = agent.drain();
      await log.waitFor("agent is draining");
      await endTunnel(await openTunnel(net, proxy, origin));
      await checkTunnel(tunnel);
      // its successor does not cut what it has
      await runAgent(net, [proxy.agentAddress], { agentClient: { hostWhitelist: ["127.0.0.9"] } });
      await log.waitFor("agent connected", {}, 2);
      await checkTunnel(tunnel);
      assert.equal(await statusOf(net, proxy, origin), 403);
      await endTunnel(tunnel);
      await within(draining);
      await log.waitFor("agent disconnected", { reason: "closed by the agent: 0 shutting down" });
      assert.deepEqual(log.logged("agent disconnected").length, 1);
    }));

  it("cuts its tunnels after drain.timeout", () =>
    withNet(async (net) => {
      const { proxy, log } = await runProxy(net);
      const { agent } = await runAgent(net, [proxy.agentAddress], { drain: { timeout: 50 } });
      await log.waitFor("agent connected");
      const { client } = await openTunnel(net, proxy, await listenTcp(net));
      await within(agent.drain());
      await assert.rejects(within(client.read()), { code: "reset" });
    }));

  it("responds with 503 to a proxy of version 1 when it drains, and lets its tunnels finish", () =>
    withNet(async (net) => {
      const listener = await listenAsProxy(net, V1);
      const { agent, log } = await runAgent(net, [listener.address]);
      const connection = (await within(listener.accept()))!;
      await (await within(receiveCredentials(connection))).accept();
      await log.waitFor("connected");
      const origin = await listenTcp(net);
      const request = bytes(`CONNECT 127.0.0.1:${origin.port} HTTP/1.1\r\n\r\n`);
      const { stream } = await connection.request(request, { timeoutMs: 5_000 });
      const draining = agent.drain();
      const refused = await connection.request(request, { timeoutMs: 5_000 });
      assert.match(refused.head, /^HTTP\/1\.1 503 [^]*\r\nRetry-After: 1\r\n/);
      await stream.write(bytes("GET / HTTP/1.1\r\n\r\n"));
      const { stream: server } = await within(origin.request());
      server.close();
      stream.close();
      await within(draining);
    }));

  it("limits its rate if a proxy asks it to move again and again", () =>
    withNet(async (net) => {
      const listener = await listenAsProxy(net, V2);
      const open = new Set<AgentSession>();
      const { agent } = await runAgent(net, [listener.address]);
      for (let i = 0; i < 20; i++) {
        const connection = (await within(listener.accept()))!;
        const { accept } = await within(receiveCredentials(connection));
        const control = (await within(connection.acceptStream()))!;
        await accept();
        await control.write(encodeFrame(bytes('\x01{"reason":"again"}')));
        open.add(connection);
        void connection.closed.then(() => open.delete(connection));
      }
      await pause();
      assert.ok(open.size <= 10, `${open.size} connections are open`);
      await agent.close();
    }));
});

describe("transport of an agent", () => {
  it("lets the proxy open more streams than the agent serves, ten thousand at least", () => {
    assert.equal(agentTransport(1).maxPeerStreams, 10_000);
    assert.ok(agentTransport(16_384).maxPeerStreams! > 16_384);
    assert.equal(agentTransport(Infinity).maxPeerStreams, 65_536);
  });
});
