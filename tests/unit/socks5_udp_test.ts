// UDP ASSOCIATE of SOCKS 5 on the frontend's own pipeline, with a network that hands out the flows: the reply, the flows, limits and the end.
import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { createAllowList } from "../../shared/address/allow_list.ts";
import { type Authenticator, createNoAuth } from "../../shared/auth/authenticator.ts";
import { withDefaults } from "../../shared/config/defaults.ts";
import { Frontend, type FrontendOptions } from "../../shared/frontend/server.ts";
import { createSocks5Proxy } from "../../shared/frontend/socks5/socks5.ts";
import { Associations, type SocksUdpOptions } from "../../shared/frontend/socks5/udp.ts";
import { ClientLimits } from "../../shared/limits/client_limits.ts";
import { LimitReporter } from "../../shared/limits/limit.ts";
import { addressLimitOptions, clientLimitOptions, type ClientLimitValues } from "../../shared/limits/options.ts";
import { NetError } from "../../shared/net/errors.ts";
import type { Incoming } from "../../shared/net/listener.ts";
import type { Net } from "../../shared/net/net.ts";
import type { Duplex } from "../../shared/net/stream.ts";
import type { ListenUdpOptions, UdpListener } from "../../shared/net/udp.ts";
import type { TunnelRequest } from "../../shared/tunnel/request.ts";
import { portOf, readAll, readExactly, readToError, until, within } from "../conformance/support.ts";
import { connectTo, LogBook, netWith, Queue, streamPair, withNet } from "../../testing/network.ts";
import { credentials, methods, reply, request, requestOf } from "../../testing/socks.ts";
import { recordDials } from "./tunnels.ts";

/** The socket of an association, whose flows the test begins. */
class FakeSocket implements UdpListener {
  readonly address: string;
  readonly dropped = 3;
  readonly #flows = new Queue<Incoming[] | null>();
  /** The ends of the flows that the test has. */
  readonly #clients: Duplex[] = [];
  isClosed = false;

  constructor(readonly options: ListenUdpOptions, port: number) {
    this.address = options.address.replace(/:0$/, `:${port}`);
  }

  /** A flow to an IPv4 address or a name: the end with the client's datagrams. */
  begin(host: string, port = 53): Duplex {
    const { near, far } = streamPair("session");
    const header = String.fromCharCode(...request(host, port)).replace(/^.../, "\0\0\0");
    this.#clients.push(far);
    this.#flows.push([{ stream: near, head: header }]);
    return far;
  }

  accept(): Promise<Incoming[] | null> {
    return this.#flows.next();
  }

  startDraining(): void {}

  stopAccepting(): void {}

  close(): void {
    if (this.isClosed) return;
    this.isClosed = true;
    this.#flows.push(null);
    for (const client of this.#clients) client.closeWrite();
  }
}

interface Bench {
  readonly log: LogBook;
  readonly dialled: Queue<{ request: TunnelRequest; far: Duplex }>;
  readonly sockets: Queue<FakeSocket>;
  connect(): Promise<Duplex>;
}

interface BenchOptions extends Partial<FrontendOptions> {
  readonly udp?: SocksUdpOptions;
  readonly values?: Partial<ClientLimitValues>;
  readonly listenUdp?: Net["listenUdp"];
}

function withBench(body: (bench: Bench) => Promise<void>, { udp, values, listenUdp, ...options }: BenchOptions = {}): Promise<void> {
  return withNet(async (memory) => {
    const [log, dialled, sockets] = [new LogBook(), new Queue<{ request: TunnelRequest; far: Duplex }>(), new Queue<FakeSocket>()];
    let last = 40_000;
    const listen = (options: ListenUdpOptions): Promise<UdpListener> => {
      const socket = new FakeSocket(options, ++last);
      sockets.push(socket);
      return Promise.resolve(socket);
    };
    const net = netWith(memory, { listenUdp: listenUdp ?? listen });
    const listener = await net.listenTcp({ address: "127.0.0.1:0", preamble: "socks5" });
    const defaults = { ...withDefaults(addressLimitOptions, {}).limits, ...withDefaults(clientLimitOptions, {}).limits };
    const limits = new ClientLimits({ ...defaults, ...values }, 1, {
      log,
      reports: new LimitReporter({ log }),
      createRate: (rate) => net.createRate(rate),
    });
    const frontend = new Frontend({
      net,
      log,
      limits,
      listeners: [{ listener, protocol: createSocks5Proxy({ associations: new Associations(udp) }) }],
      authenticator: createNoAuth(),
      allowList: createAllowList([]),
      dial: recordDials(dialled),
      ...options,
    });
    await body({ log, dialled, sockets, connect: () => connectTo(net, listener.address) });
    frontend.close();
    await within(frontend.done);
    limits.close();
  });
}

/** Authenticates and asks for an association. Returns the reply, of 10 bytes or more. */
async function associate(client: Duplex, ask = requestOf([0, 0, 0, 0], 0, 3), length = 10): Promise<number[]> {
  await client.write(Uint8Array.from([...methods(2), ...credentials("site", "x"), ...ask]));
  assert.deepEqual([...await readExactly(client, 4)], [5, 2, 1, 0]);
  return [...await readExactly(client, length)];
}

describe("UDP ASSOCIATE of SOCKS 5", () => {
  it("replies with the address at which the client has connected, and hears that client", () =>
    withBench(async ({ connect, sockets, log }) => {
      const client = await connect();
      assert.deepEqual(await associate(client), [5, 0, 0, 1, 127, 0, 0, 1, 40_001 >> 8, 40_001 & 0xff]);
      const { options } = await sockets.next();
      assert.deepEqual(options, { address: "127.0.0.1:0", maxPeers: 4_096, socks5: { host: "127.0.0.1", port: undefined } });
      client.close();
      const fields = { agent: "site", protocol: "socks5", flows: 0, datagramsDropped: 3, reason: undefined };
      await log.waitFor("association", fields);
      assert.equal(log.logged("request").length, 0);
    }));

  it("holds the client to the port that it announces with its own address, and to none with another", () =>
    withBench(async ({ connect, sockets }) => {
      const asked: [Uint8Array, number | undefined][] = [
        [requestOf([127, 0, 0, 1], 5_000, 3), 5_000],
        [requestOf([127, 0, 0, 1], 0, 3), undefined],
        [requestOf([192, 168, 0, 1], 5_000, 3), undefined],
        [requestOf([0, 0, 0, 0], 5_000, 3), undefined],
        [request("0", 5_000, 3), undefined],
        [request("", 0, 3), undefined],
      ];
      for (const [ask, port] of asked) {
        const client = await connect();
        assert.equal((await associate(client, ask))[1], 0);
        assert.deepEqual((await sockets.next()).options.socks5, { host: "127.0.0.1", port });
        client.close();
      }
    }));

  it("asks for each destination once, as for any tunnel, and by names that carry the agent", () =>
    withBench(async ({ connect, sockets, dialled, log }) => {
      const client = await connect();
      await associate(client);
      const socket = await sockets.next();
      const asked: [host: string, agent: string, destination: string][] = [
        ["db.internal", "site", "db.internal"],
        ["[192.0.2.1]", "site", "192.0.2.1"],
        ["db.other.rhttp", "other", "db"],
      ];
      for (const [host, agentId, destination] of asked) {
        const datagrams = socket.begin(host);
        const { request, far } = await dialled.next();
        assert.deepEqual([request.network, request.agentId, request.destination], ["udp", agentId, { host: destination, port: 53 }]);
        assert.deepEqual(request.credentials, { scheme: "basic", username: agentId, password: "x" });
        await datagrams.write(Uint8Array.of(1, 2));
        assert.deepEqual([...await readExactly(far, 2)], [1, 2]);
        datagrams.closeWrite();
        far.close();
        await log.waitFor("request", { method: "UDP ASSOCIATE", protocol: "socks5", network: "udp", agent: agentId, status: 200, sent: 2 });
      }
      client.close();
      await log.waitFor("association", { flows: 3 });
    }, {
      agentSuffix: ".rhttp",
      authenticator: {
        ...createNoAuth(),
        authenticateClient: () => ({ agentId: "site", agents: { allows: () => true } }),
      } as Authenticator,
    }));

  it("refuses a destination that is not allowed or malformed, and goes on", () =>
    withBench(async ({ connect, sockets, dialled, log }) => {
      const client = await connect();
      await associate(client);
      const socket = await sockets.next();
      const refused: [host: string, port: number, error: string][] = [
        ["192.0.2.1", 54, "http_request_denied"],
        ["192.0.2.2", 53, "http_request_denied"],
        ["a b", 53, "http_request_error"],
        ["", 53, "http_request_error"],
        ["192.0.2.1", 0, "http_request_error"],
      ];
      for (const [host, port, error] of refused) {
        const { length } = log.logged("request", { error });
        await readToError(socket.begin(host, port), "reset");
        await log.waitFor("request", { error }, length + 1);
      }
      socket.begin("192.0.2.1");
      await dialled.next();
      client.close();
    }, { allowList: createAllowList(["192.0.2.2", "udp:192.0.2.1:53"]) }));

  for (
    const [how, end] of [["finishes", (client: Duplex) => client.closeWrite()], ["is reset", (client: Duplex) => client.reset(1)]] as const
  ) {
    it(`ends with its flows and its socket when the TCP connection ${how}`, () =>
      withBench(async ({ connect, sockets, dialled, log }) => {
        const client = await connect();
        await associate(client);
        const socket = await sockets.next();
        socket.begin("192.0.2.1");
        const { far } = await dialled.next();
        await client.write(Uint8Array.of(1)); // no byte is expected, and some are ignored
        assert.equal(socket.isClosed, false);
        end(client);
        await until(() => socket.isClosed, "the socket is open");
        assert.equal((await readAll(far)).length, 0);
        far.close();
        await log.waitFor("request", { destination: "192.0.2.1:53" });
        await log.waitFor("association", { reason: undefined, flows: 1 });
      }));
  }

  it("ends when the credentials end, and when the client sends data on its TCP connection", () => {
    const ended = new AbortController();
    return withBench(async ({ connect, sockets, log }) => {
      const talkative = await connect();
      await associate(talkative);
      for (let n = 0; n < 17; n++) await within(talkative.write(new Uint8Array(4_096)));
      assert.equal((await readAll(talkative)).length, 0);
      await log.waitFor("association", { reason: "client: it sends data on the TCP connection of its association" });
      await sockets.next();
      const client = await connect();
      await associate(client);
      ended.abort(new Error("revoked"));
      assert.equal((await readAll(client)).length, 0);
      assert.ok((await sockets.next()).isClosed);
      await log.waitFor("association", { reason: "revoked" });
    }, { authenticator: { ...createNoAuth(), authenticateClient: () => ({ agentId: "site", signal: ended.signal }) } });
  });

  it("uses each port of its range for one association at a time, and names the address of the option", () =>
    withBench(async ({ connect, sockets, log }) => {
      const open = [];
      for (const port of [7_001, 7_002]) {
        const client = await connect();
        const answer = await associate(client, undefined, 22);
        assert.deepEqual(answer.slice(0, 8), [5, 0, 0, 4, 0x20, 0x01, 0x0d, 0xb8]);
        assert.deepEqual(answer.slice(-2), [port >> 8, port & 0xff]);
        assert.equal((await sockets.next()).options.address, `127.0.0.1:${port}`);
        open.push(client);
      }
      const third = await connect();
      assert.deepEqual(await associate(third), reply(1));
      await log.waitFor("request", { network: "udp", method: "UDP ASSOCIATE", reason: "No port of --socks.udp-ports is free" });
      open[1]!.close();
      await log.waitFor("association");
      const fourth = await connect();
      await associate(fourth, undefined, 22);
      assert.equal(portOf((await sockets.next()).address), 7_002);
    }, { udp: { udpPorts: "7001-7002", udpAddress: "2001:db8::1" } }));

  it("tries another port if one is in use, and tells the client of other errors", () => {
    const tried: string[] = [];
    const listenUdp: Net["listenUdp"] = ({ address }) => {
      tried.push(address);
      return Promise.reject(new NetError(tried.length < 3 ? "address-in-use" : "limit", "There are no descriptors left"));
    };
    return withBench(async ({ connect, log }) => {
      assert.deepEqual(await associate(await connect()), reply(1));
      assert.deepEqual(tried, ["127.0.0.1:7001", "127.0.0.1:7002", "127.0.0.1:7003"]);
      await log.waitFor("request", { method: "UDP ASSOCIATE", error: "connection_limit_reached" });
    }, { udp: { udpPorts: "7001-7009" }, listenUdp });
  });

  it("counts as a flow of its client", () =>
    withBench(async ({ connect, sockets, dialled, log }) => {
      const client = await connect();
      await associate(client);
      const socket = await sockets.next();
      const first = socket.begin("192.0.2.1");
      const { far } = await dialled.next();
      await readToError(socket.begin("192.0.2.2"), "reset");
      assert.deepEqual(await associate(await connect()), reply(1));
      first.closeWrite();
      far.close();
      await log.waitFor("request", { destination: "192.0.2.1:53" });
      socket.begin("192.0.2.2");
      await dialled.next();
      client.close();
    }, { values: { udpFlowsPerClient: 2 } }));
});
