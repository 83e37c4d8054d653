// UDP through agents, with the compiled executables: datagrams, losses, ends and limits of flows.
import assert from "node:assert/strict";
import { randomBytes } from "node:crypto";
import { createSocket, type Socket } from "node:dgram";
import { once } from "node:events";
import process from "node:process";
import { describe, it } from "node:test";
import { capsule, datagram, UdpFlow, udpHead, UdpServer } from "../../testing/masque.ts";
import { AGENT_ID, eventually, openDescriptors, Pair, type Program, Site, storeArgs } from "../../testing/programs.ts";
import { SocksAssociation, socksDatagram } from "../../testing/socks.ts";
import { ask, assertRefused, openTunnel, Origin } from "../../testing/sockets.ts";
import { StoreServer } from "../../testing/store_servers.ts";
import { type Direction, UdpRelay } from "../../testing/udp_relay.ts";

const onLinux = { skip: process.platform === "linux" ? false : "only Linux has /proc" };
/** The longest UDP payload over IPv4. */
const LONGEST = 65_507;

const LINKS = ["quic", "tls"] as const;

/** The response to a DNS query (RFC 1035 §4.1): the query with one A record. */
function resolve(query: Buffer): Buffer {
  const answer = Buffer.from(query);
  answer.writeUInt16BE(0x8180, 2);
  answer.writeUInt16BE(1, 6);
  return Buffer.concat([answer, Buffer.from([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 192, 0, 2, 7])]);
}

for (const link of LINKS) {
  describe(`UDP over ${link}`, () => {
    const args = [`--agent-client.transport=${link}`];

    it("carries datagrams of every length whole, in both directions, and counts them", async () => {
      await using pair = await Pair.start({ agent: args });
      await using server = await UdpServer.start((payload) => payload);
      {
        using flow = await UdpFlow.open(pair.addresses.clients, server.authority);
        assert.match(flow.head, /^HTTP\/1\.1 101 .*\r\nUpgrade: connect-udp\r\nCapsule-Protocol: \?1\r\n/s);
        for (const length of [0, 1, 62, 63, 64, 1_200, 1_472, 16_383, 16_384, LONGEST]) {
          const payload = randomBytes(length);
          await flow.send(payload);
          assert.ok((await flow.receive()).equals(payload), `${length} bytes are not the same`);
        }
      }
      const { datagramsSent, datagramsReceived, datagramsDropped } = await pair.agent.waitFor("tunnel", { network: "udp", status: 101 });
      assert.deepEqual([datagramsSent, datagramsReceived, datagramsDropped], [10, 10, 0]);
      await pair.proxy.waitFor("request", { network: "udp", method: "GET", destination: server.authority, status: 101, error: undefined });
    });

    it("drops the oldest of more datagrams than the client reads, whole ones, and counts them", async () => {
      await using pair = await Pair.start({ agent: args });
      await using server = await UdpServer.start();
      const [sent, length] = [1_200, 40_000];
      let last = -1;
      let received = 0;
      {
        using flow = await UdpFlow.open(pair.addresses.clients, server.authority, datagram("hello"), 0);
        const { from } = await server.receive();
        flow.wire.socket.pause();
        for (let n = 0; n < sent; n++) {
          const payload = Buffer.alloc(length, n);
          payload.writeUInt32BE(n);
          await server.send(payload, from);
        }
        // the system drops what it has no room for, so that one may be lost
        const ending = setInterval(() => void server.send("end", from), 20);
        flow.wire.socket.resume();
        for (let payload; (payload = await flow.receive()).length !== 3; received++) {
          const n = payload.readUInt32BE();
          assert.ok(n > last, `${n} comes after ${last}`);
          assert.ok(payload.length === length && payload.at(-1) === n % 256, "it was cut");
          last = n;
        }
        clearInterval(ending);
      }
      const { datagramsReceived, datagramsDropped } = await pair.agent.waitFor("tunnel", { network: "udp" });
      assert.ok(Number(datagramsReceived) > received, `${datagramsReceived} received, ${received} of them by the client`);
      assert.ok(Number(datagramsDropped) > 0 && Number(datagramsDropped) + received <= sent, `${datagramsDropped} dropped`);
    });
  });
}

describe("UDP in DATAGRAM frames", () => {
  it("delivers a datagram although the one before it was lost on the way, and longer ones nonetheless", async () => {
    await using site = await Site.create();
    const { addresses } = await site.startProxy();
    await using relay = await UdpRelay.start({ server: addresses.agents });
    await site.startAgent({ ...addresses, agents: relay.address });
    await using server = await UdpServer.start();
    using flow = await UdpFlow.open(addresses.clients, server.authority);
    await flow.send("hello");
    const { payload, from } = await server.receive();
    assert.equal(String(payload), "hello");
    const whileBlocked = async (direction: Direction, send: () => Promise<void>) => {
      const { blocked } = direction.counts;
      direction.weather.blocked = true;
      await send();
      await eventually(() => direction.counts.blocked > blocked, () => "nothing was sent");
      direction.weather.blocked = false;
    };
    await whileBlocked(relay.toServer, () => server.send("lost", from));
    await server.send("next", from);
    assert.equal(String(await flow.receive()), "next");
    await whileBlocked(relay.toClient, () => flow.send("lost"));
    await flow.send("next");
    assert.equal(String((await server.receive()).payload), "next");
    const long = randomBytes(LONGEST);
    await whileBlocked(relay.toServer, () => server.send(long, from));
    assert.ok((await flow.receive()).equals(long));
  });

  it("keeps the newest datagrams at the proxy for a client that does not read, and counts the others", async () => {
    await using pair = await Pair.start({ proxy: ["--admin.listen-address=127.0.0.1:0"] });
    await using server = await UdpServer.start();
    const [sent, length] = [10_000, 5_000];
    let received = 0;
    {
      using flow = await UdpFlow.open(pair.addresses.clients, server.authority, datagram("hello"), 0);
      const { from } = await server.receive();
      flow.wire.socket.pause();
      for (let n = 0; n < sent; n++) await server.send(Buffer.alloc(length, n), from);
      const ending = setInterval(() => void server.send("end", from), 20);
      flow.wire.socket.resume();
      for (let payload; (payload = await flow.receive()).length !== 3; received++) {
        assert.ok(payload.length === length && payload[0] === payload.at(-1), "it was cut");
      }
      clearInterval(ending);
    }
    const { datagramsDropped } = await pair.proxy.waitFor("request", { network: "udp" });
    assert.ok(
      Number(datagramsDropped) > 0 && Number(datagramsDropped) + received <= sent,
      `${datagramsDropped} dropped, ${received} received`,
    );
    const { admin } = await pair.proxy.waitFor("listening");
    const { body } = await ask(String(admin), "GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n");
    assert.ok(body.includes(`\nreverse_http_udp_datagrams_total{outcome="dropped"} ${datagramsDropped}\n`));
  });
});

describe("a UDP flow", () => {
  it("answers DNS queries through a load balancer, by name and with queries that arrive with the request", async () => {
    await using cache = await StoreServer.start("memcached");
    await using site = await Site.create();
    const { clients } = await site.startLb(cache);
    const { proxy, addresses } = await site.startProxy([...storeArgs(cache), "--store.ttl=3s"]);
    const agent = await site.startAgent(addresses);
    await using server = await UdpServer.start(resolve);
    const query = Buffer.concat([
      Buffer.from("123401000001000000000000", "hex"),
      Buffer.from("\x03www\x07example\0\0\x01\0\x01", "latin1"),
    ]);
    {
      using flow = await UdpFlow.open(clients, `localhost:${server.port}`, datagram(query));
      assert.ok((await flow.receive()).equals(resolve(query)));
    }
    for (const program of [proxy, agent]) {
      await program.waitFor(program === agent ? "tunnel" : "request", {
        network: "udp",
        destination: `localhost:${server.port}`,
        status: 101,
      });
    }
  });

  it("ends at the agent when the client has gone, with its socket", onLinux, async () => {
    await using pair = await Pair.start();
    await using server = await UdpServer.start((payload) => payload);
    const before = openDescriptors(pair.agent.pid);
    const flows = await Promise.all(Array.from({ length: 20 }, () => UdpFlow.open(pair.addresses.clients, server.authority)));
    for (const flow of flows) await flow.send("x");
    for (const flow of flows) await flow.receive();
    assert.ok(openDescriptors(pair.agent.pid) >= before + flows.length);
    for (const [i, { wire }] of flows.entries()) i % 2 === 0 ? wire.finish() : wire.reset();
    await pair.agent.waitFor("tunnel", { network: "udp" }, flows.length);
    await eventually(
      () => openDescriptors(pair.agent.pid) <= before,
      () => `${openDescriptors(pair.agent.pid)} descriptors, not ${before}`,
    );
    for (const { wire } of flows) wire[Symbol.dispose]();
  });

  it("ends in good order after the idle timeout, and not before while datagrams come", async () => {
    await using pair = await Pair.start({ agent: ["--limits.udp-idle-timeout=1s"] });
    await using server = await UdpServer.start((payload) => payload);
    using flow = await UdpFlow.open(pair.addresses.clients, server.authority);
    for (let n = 0; n < 10; n++) {
      await flow.send(String(n));
      assert.equal(String(await flow.receive()), String(n));
    }
    assert.equal(await flow.wire.ending(), "finished");
    await pair.agent.waitFor("tunnel", { network: "udp", reason: "No datagram was relayed for 1000 ms", datagramsSent: 10 });
    await pair.proxy.waitFor("request", { network: "udp", error: undefined, reason: undefined });
  });

  it("survives that nothing listens at the destination", async () => {
    await using pair = await Pair.start();
    const gone = await UdpServer.start();
    const { authority, host, port } = gone;
    await gone[Symbol.asyncDispose]();
    using flow = await UdpFlow.open(pair.addresses.clients, authority);
    for (let n = 0; n < 5; n++) await flow.send("nobody");
    await using server = await UdpServer.start((payload) => payload, host, port);
    assert.equal(server.port, port);
    // those sent before the server listened are lost, and so may be the first after an ICMP error
    const answers = flow.receive();
    const timer = setInterval(() => void flow.send("somebody"), 20);
    assert.match(String(await answers), /^(nobody|somebody)$/);
    clearInterval(timer);
  });

  it("ignores capsules and contexts that it does not know, and ends with a malformed one", async () => {
    await using pair = await Pair.start();
    await using server = await UdpServer.start((payload) => payload);
    using flow = await UdpFlow.open(pair.addresses.clients, server.authority);
    await flow.wire.write(Buffer.concat([capsule(0x2b, randomBytes(100_000)), datagram("other", 4), datagram("known")]));
    assert.equal(String(await flow.receive()), "known");
    await flow.wire.write(datagram(randomBytes(65_528)));
    assert.equal(await flow.wire.ending(), "ECONNRESET");
    const { reason, datagramsDropped } = await pair.agent.waitFor("tunnel", { network: "udp" });
    assert.match(String(reason), /^proxy: The capsules are malformed: A datagram has more bytes than UDP carries$/);
    assert.equal(datagramsDropped, 1);
  });

  it("is reset when the agent has gone", async () => {
    await using pair = await Pair.start({ agent: ["--drain.timeout=1s"] });
    await using server = await UdpServer.start((payload) => payload);
    using flow = await UdpFlow.open(pair.addresses.clients, server.authority);
    pair.agent.signal("SIGTERM");
    assert.equal(await flow.wire.ending(), "ECONNRESET");
  });
});

describe("permission for UDP", () => {
  const refused = async (clients: string, authority: string, status: number, error: string) =>
    assertRefused(await ask(clients, udpHead(authority)), status, error);

  it("is given by udp: in allow-lists of proxy and agent, and by no pattern for TCP", async () => {
    await using server = await UdpServer.start((payload) => payload);
    await using origin = await Origin.start();
    for (const role of ["proxy", "agent"] as const) {
      const list = role === "proxy" ? "--http-proxy.host-whitelist" : "--agent-client.host-whitelist";
      await using pair = await Pair.start({ [role]: [`${list}=127.0.0.1,udp:127.0.0.1:${server.port}`] });
      const { clients } = pair.addresses;
      using _tunnel = await openTunnel(clients, origin.authority);
      using flow = await UdpFlow.open(clients, server.authority);
      await flow.send("x");
      assert.equal(String(await flow.receive()), "x");
      await refused(clients, `127.0.0.1:${server.port === 9 ? 10 : 9}`, 403, "http_request_denied");
    }
  });

  it("is taken by the agent's deny-list, with and without udp:", async () => {
    await using server = await UdpServer.start((payload) => payload);
    await using origin = await Origin.start();
    await using both = await Pair.start({ agent: ["--agent-client.host-denylist=127.0.0.0/8"] });
    await refused(both.addresses.clients, server.authority, 403, "destination_ip_prohibited");
    await refused(both.addresses.clients, `localhost:${server.port}`, 403, "destination_ip_prohibited");
    await using udp = await Pair.start({ agent: ["--agent-client.host-denylist=udp:all"] });
    await refused(udp.addresses.clients, server.authority, 403, "destination_ip_prohibited");
    using _tunnel = await openTunnel(udp.addresses.clients, origin.authority);
  });

  it("needs credentials and a well-formed request", async () => {
    await using pair = await Pair.start();
    const { clients } = pair.addresses;
    assertRefused(await ask(clients, udpHead("127.0.0.1:53", "")), 407, "http_request_denied");
    const upgrade = await ask(clients, udpHead("127.0.0.1:53").replace("Upgrade: connect-udp\r\n", ""));
    assertRefused(upgrade, 426, "http_request_error");
    assert.equal(upgrade.fields["upgrade"], "connect-udp");
    for (const authority of ["127.0.0.1:0", "a/b:53", "-:53"]) {
      assertRefused(await ask(clients, udpHead(authority)), 400, "http_request_error");
    }
  });

  it("is limited to a number of flows per client, which tunnels do not count for", async () => {
    await using pair = await Pair.start({ proxy: ["--limits.udp-flows-per-client=1"] });
    await using server = await UdpServer.start((payload) => payload);
    await using origin = await Origin.start();
    const { clients } = pair.addresses;
    using _tunnel = await openTunnel(clients, origin.authority);
    {
      using _flow = await UdpFlow.open(clients, server.authority);
      await refused(clients, server.authority, 503, "connection_limit_reached");
    }
    await pair.proxy.waitFor("request", { network: "udp", status: 101 });
    using _next = await UdpFlow.open(clients, server.authority);
  });
});

describe("UDP for SOCKS 5", () => {
  const SOCKS = "--socks.listen-address=127.0.0.1:0";

  it("answers DNS queries and carries datagrams of every length, at both ports of proxy and lb", async () => {
    await using cache = await StoreServer.start("memcached");
    await using site = await Site.create();
    const { lb, clients } = await site.startLb(cache, [SOCKS]);
    const { proxy, addresses } = await site.startProxy([...storeArgs(cache), "--store.ttl=3s", SOCKS]);
    const agent = await site.startAgent(addresses);
    await using server = await UdpServer.start(resolve);
    await using echo = await UdpServer.start((payload) => payload);
    const query = Buffer.from("123401000001000000000000" + "03777777" + "076578616d706c65" + "0000010001", "hex");
    const socksOf = async (program: Program) => String((await program.waitFor("listening")).socks);
    for (const address of [addresses.clients, await socksOf(proxy), clients, await socksOf(lb)]) {
      using client = await SocksAssociation.open(address, AGENT_ID);
      assert.equal(client.relay.host, "127.0.0.1");
      await client.send("localhost", server.port, query);
      assert.ok((await client.receive("localhost", server.port)).equals(resolve(query)));
      for (const length of [0, 1, 1_200, 16_384, LONGEST - 10]) {
        const payload = randomBytes(length);
        await client.send("127.0.0.1", echo.port, payload);
        assert.ok((await client.receive("127.0.0.1", echo.port)).equals(payload), `${length} bytes are not the same`);
      }
    }
    const fields = { protocol: "socks5", network: "udp", method: "UDP ASSOCIATE", agent: AGENT_ID, error: undefined };
    for (const program of [proxy, lb]) {
      await program.waitFor("association", { protocol: "socks5", flows: 2, datagramsDropped: 0, reason: undefined }, 2);
      await program.waitFor("request", { ...fields, destination: `localhost:${server.port}`, status: 200 }, 2);
    }
    await agent.waitFor("tunnel", {
      network: "udp",
      destination: echo.authority,
      datagramsSent: 5,
      datagramsReceived: 5,
      datagramsDropped: 0,
    }, 4);
  });

  it("drops malformed datagrams, those of others, and those to destinations that are not allowed, and goes on", async () => {
    await using server = await UdpServer.start((payload) => payload);
    await using pair = await Pair.start({ proxy: [`--http-proxy.host-whitelist=udp:127.0.0.1:${server.port}`] });
    {
      using client = await SocksAssociation.open(pair.addresses.clients, AGENT_ID);
      await client.send("127.0.0.1", server.port, "first");
      assert.equal(String(await client.receive("127.0.0.1", server.port)), "first");
      await using stranger = await UdpServer.start();
      await client.sendRaw(socksDatagram("127.0.0.1", server.port, "stranger"), stranger.socket);
      await client.sendRaw(socksDatagram("127.0.0.1", server.port, "fragment", 1));
      await client.sendRaw(Buffer.from([0, 0, 0, 9, 1, 2, 3]));
      await client.send("127.0.0.1", 9, "refused");
      await pair.proxy.waitFor("request", { network: "udp", destination: "127.0.0.1:9", status: 403 });
      await client.send("127.0.0.1", 9, "ignored");
      await client.send("127.0.0.1", server.port, "last");
      assert.equal(String(await client.receive("127.0.0.1", server.port)), "last");
    }
    await pair.proxy.waitFor("association", { flows: 2, datagramsDropped: 4 });
    await pair.agent.waitFor("tunnel", { network: "udp", datagramsSent: 2 });
  });

  it("ends with the TCP connection, and all sockets with it", onLinux, async () => {
    await using pair = await Pair.start();
    await using server = await UdpServer.start((payload) => payload);
    const before = [pair.proxy, pair.agent].map(({ pid }) => openDescriptors(pid));
    const clients = await Promise.all(Array.from({ length: 10 }, () => SocksAssociation.open(pair.addresses.clients, AGENT_ID)));
    for (const client of clients) {
      await client.send("127.0.0.1", server.port, "x");
      await client.receive("127.0.0.1", server.port);
    }
    assert.ok(openDescriptors(pair.proxy.pid) >= before[0]! + 2 * clients.length);
    for (const [i, { wire }] of clients.entries()) i % 2 === 0 ? wire.finish() : wire.reset();
    await pair.proxy.waitFor("association", { flows: 1, reason: undefined }, clients.length);
    for (const [i, { pid }] of [pair.proxy, pair.agent].entries()) {
      await eventually(() => openDescriptors(pid) <= before[i]!, () => `${openDescriptors(pid)} descriptors, not ${before[i]}`);
    }
    await pair.proxy.waitFor("request", { network: "udp", status: 200, error: undefined }, clients.length);
    for (const client of clients) client[Symbol.dispose]();
  });
});

/** A UDP client of a forward. */
class Client implements Disposable {
  readonly #received: Buffer[] = [];

  private constructor(readonly socket: Socket) {
    socket.on("message", (payload: Buffer) => this.#received.push(payload));
  }

  static async open(address: string): Promise<Client> {
    const socket = createSocket("udp4");
    socket.connect(Number(address.split(":")[1]), "127.0.0.1");
    await once(socket, "connect");
    const client = new Client(socket);
    socket.on("error", () => {}); // nothing listens any more
    return client;
  }

  send(payload: Uint8Array | string): void {
    this.socket.send(payload);
  }

  async receive(): Promise<Buffer> {
    while (this.#received.length === 0) await once(this.socket, "message");
    return this.#received.shift()!;
  }

  /** Sends the same again and again until something comes back. */
  async retry(payload: string): Promise<string> {
    const timer = setInterval(() => this.send(payload), 50);
    try {
      this.send(payload);
      return String(await this.receive());
    } finally {
      clearInterval(timer);
    }
  }

  [Symbol.dispose](): void {
    this.socket.close();
  }
}

describe("a UDP forward", () => {
  const forwardTo = (to: string, more = "") => `--forward=listen=127.0.0.1:0,network=udp,agent=${AGENT_ID},to=${to}${more}`;
  const addressOf = async (program: Program) => String((await program.waitFor("forwarding", { network: "udp" })).clients);

  it("carries datagrams of every length between its clients and the destination, each client on a flow of its own", async () => {
    await using server = await UdpServer.start((payload) => payload);
    await using pair = await Pair.start({ proxy: [forwardTo(server.authority)], agent: ["--limits.udp-idle-timeout=1s"] });
    const address = await addressOf(pair.proxy);
    using first = await Client.open(address);
    using second = await Client.open(address);
    for (const length of [0, 1, 63, 64, 1_200, 16_384, LONGEST]) {
      for (const client of [first, second]) {
        const payload = randomBytes(length);
        client.send(payload);
        assert.ok((await client.receive()).equals(payload), `${length} bytes are not the same`);
      }
    }
    // both end when they are idle, and what comes then begins a new one
    const fields = { method: "FORWARD", network: "udp", agent: AGENT_ID, destination: server.authority, status: 200, error: undefined };
    await pair.proxy.waitFor("request", fields, 2);
    assert.equal(await first.retry("again"), "again");
    await pair.agent.waitFor("tunnel", { network: "udp", datagramsSent: 7, datagramsReceived: 7, datagramsDropped: 0 }, 2);
  });

  it("serves its clients at lb, and once an agent is there", async () => {
    await using cache = await StoreServer.start("memcached");
    await using site = await Site.create();
    await using server = await UdpServer.start(() => Buffer.from("answer"));
    const { lb } = await site.startLb(cache, [forwardTo(server.authority)]);
    const { addresses } = await site.startProxy([...storeArgs(cache), "--store.ttl=3s"]);
    using client = await Client.open(await addressOf(lb));
    client.send("nobody is there");
    await lb.waitFor("request", { network: "udp", status: 502 });
    await site.startAgent(addresses);
    assert.equal(await client.retry("now"), "answer");
  });

  it("frees its port, and ends the flows of its clients, when a reload removes it", async () => {
    await using server = await UdpServer.start((payload) => payload);
    const record = { listen: "127.0.0.1:0", network: "udp", agent: AGENT_ID, to: server.authority, allow: "all" };
    await using site = await Site.create();
    const config = site.folder.write("config.yaml", JSON.stringify({ forward: [record] }));
    const { proxy, addresses } = await site.startProxy([`--config=${config}`]);
    const agent = await site.startAgent(addresses);
    const address = await addressOf(proxy);
    using client = await Client.open(address);
    assert.equal(await client.retry("before"), "before");
    site.folder.write("config.yaml", "{}");
    proxy.signal("SIGHUP");
    await proxy.waitFor("forward closed", { clients: address });
    await agent.waitFor("tunnel", { network: "udp" });
    const socket = createSocket("udp4");
    socket.bind(Number(address.split(":").at(-1)), "127.0.0.1");
    await once(socket, "listening");
    socket.close();
  });

  it("ignores for a while the client that was refused, and logs it once", async () => {
    await using server = await UdpServer.start();
    await using pair = await Pair.start({ proxy: [forwardTo(server.authority, ",allow=192.0.2.0/24")] });
    using client = await Client.open(await addressOf(pair.proxy));
    client.send("refused");
    await pair.proxy.waitFor("request", { network: "udp", status: 403 });
    for (let n = 0; n < 10; n++) client.send("ignored");
    using other = await Client.open(await addressOf(pair.proxy));
    other.send("refused, too");
    await pair.proxy.waitFor("request", { network: "udp", status: 403 }, 2);
    assert.equal(pair.proxy.logged("request").length, 2);
  });
});
