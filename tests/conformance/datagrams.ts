// Flows of datagrams: what passes between the capsules of a stream and a UDP socket, for every kind of stream.
import assert from "node:assert/strict";
import { Buffer } from "node:buffer";
import type { RemoteInfo } from "node:dgram";
import { describe } from "node:test";
import type { Net } from "../../shared/net/net.ts";
import type { Duplex } from "../../shared/net/stream.ts";
import type { ConnectedFlow, FlowOptions, FlowResult, ListenUdpOptions, UdpListener } from "../../shared/net/udp.ts";
import { capsule, datagram, UdpServer } from "../../testing/masque.ts";
import {
  assertUsable,
  bytes,
  HEAD,
  isPending,
  type Kind,
  kindsOf,
  netError,
  oneByOne,
  openPair,
  type Pair,
  pattern,
  pause,
  portOf,
  readAll,
  readToError,
  type Sessions,
  sessionsOf,
  type Suite,
  until,
  within,
} from "./support.ts";

/** The longest UDP payload over IPv4. */
const LONGEST = 65_507;

interface Flow {
  /** The far end of the stream. */
  left: Duplex;
  a: Duplex;
  flow: ConnectedFlow;
}

export function datagramTests(suite: Suite): void {
  if (!suite.adapter.has.sockets) return;
  describe("a listener for datagrams", () => listenerTests(suite));
  describe("an association", () => associationTests(suite));
  for (const kind of kindsOf(suite)) describe(`a flow from ${kind.name}`, () => flowTests(suite, kind));
  for (const sessions of sessionsOf(suite)) {
    const open = (net: Net) => openFlow(suite, net, sessions);
    describe(`a flow with datagrams from ${sessions.name}`, () => {
      flowTests(suite, { name: sessions.name, isSession: true, open }, true);
      if (sessions.kind === "quic") overflowTests(suite, sessions);
    });
  }
}

const SMALL_WINDOW = { transport: { streamWindow: 64 << 10 } };

/** The stream of a request whose peers both take DATAGRAM frames, where there are such: at its client, and at the agent. */
async function openFlow({ pki }: Suite, net: Net, sessions: Sessions): Promise<Pair> {
  const { client: agent, server: proxy } = await sessions.pair(net, await pki, SMALL_WINDOW, SMALL_WINDOW);
  const response = proxy.request(bytes(HEAD), { timeoutMs: 5_000, datagrams: true });
  const [request] = (await within(agent.acceptRequests()))!;
  await within(request!.stream.write(bytes("HTTP/1.1 101 Switching Protocols\r\n\r\n")));
  return { a: (await within(response)).stream, b: request!.stream };
}

/** Reads `length` bytes, and puts back what came with them. */
async function take(stream: Duplex, length: number): Promise<Uint8Array> {
  let all = Buffer.alloc(0);
  while (all.length < length) {
    const data = await within(stream.read());
    if (data === null) assert.fail(`The stream ended ${length - all.length} bytes early`);
    all = Buffer.concat([all, data]);
  }
  stream.unread(all.subarray(length));
  return all.subarray(0, length);
}

/** Reads one capsule of a datagram, and returns its payload. */
export async function receive(stream: Duplex): Promise<Buffer> {
  const varint = async () => {
    const [first = 0] = await take(stream, 1);
    const rest = await take(stream, (1 << (first >> 6)) - 1);
    return rest.reduce((value, byte) => value * 256 + byte, first & 0x3f);
  };
  const [type, length] = [await varint(), await varint()];
  const value = Buffer.from(await take(stream, length));
  assert.deepEqual([type, value[0]], [0, 0]);
  return value.subarray(1);
}

function flowTests({ test }: Suite, kind: Kind, datagrams = false): void {
  const connect = (net: Net, a: Duplex, port: number, options?: FlowOptions) =>
    within(net.connectUdp(a, { host: "127.0.0.1", port, timeoutMs: 5_000 }, { ...options, datagrams }));
  const begin = async (net: Net, { port }: UdpServer, options?: FlowOptions): Promise<Flow> => {
    const { a: left, b: a } = await kind.open(net);
    const flow = await connect(net, a, port, options);
    assert.equal(flow.remote, `127.0.0.1:${port}`);
    return { left, a, flow };
  };
  const ended = ({ flow }: Flow): Promise<FlowResult> => within(flow.ended, "the flow did not end");

  test("has datagrams of every length whole in both directions, behind the initial data", async (net) => {
    await using server = await UdpServer.start((payload) => payload);
    const initialDataToA = capsule(0x17, bytes("first"));
    const flow = await begin(net, server, { initialDataToA });
    const { left } = flow;
    assert.equal(Buffer.compare(await take(left, initialDataToA.length), initialDataToA), 0);
    const lengths = [0, 1, 63, 64, 1_200, 16_384, LONGEST];
    for (const length of lengths) {
      const payload = pattern(length);
      await within(left.write(datagram(payload)));
      assert.equal(Buffer.compare(await receive(left), payload), 0, `${length} bytes`);
    }
    left.closeWrite();
    assert.equal((await readAll(left)).length, 0);
    const total = lengths.reduce((sum, length) => sum + length);
    const { aToB, bToA, datagrams, error } = await ended(flow);
    assert.deepEqual({ aToB, bToA, datagrams, error }, {
      aToB: total,
      bToA: total,
      datagrams: { aToB: lengths.length, bToA: lengths.length, dropped: 0 },
      error: undefined,
    });
  });

  test("takes capsules in any parts, also those that arrived before", async (net) => {
    await using server = await UdpServer.start();
    const { a: left, b: a } = await kind.open(net);
    const all = Buffer.concat([datagram("early"), capsule(0x1234, new Uint8Array(300)), datagram("late", 3), datagram("last")]);
    await within(left.write(all.subarray(0, 4)));
    const flow = { left, a, flow: await connect(net, a, server.port) };
    for (let at = 4; at < all.length; at += 7) await within(left.write(all.subarray(at, at + 7)));
    for (const wanted of ["early", "last"]) assert.equal(String((await within(server.receive())).payload), wanted);
    left.closeWrite();
    const { datagrams, error } = await ended(flow);
    assert.deepEqual({ datagrams, error }, { datagrams: { aToB: 2, bToA: 0, dropped: 1 }, error: undefined });
  });

  test("drops one that is longer than UDP over IPv4 carries, and ends with a malformed one", async (net) => {
    await using server = await UdpServer.start();
    const flow = await begin(net, server);
    await within(flow.left.write(Buffer.concat([datagram(pattern(LONGEST + 1)), datagram("next")])));
    assert.equal(String((await within(server.receive())).payload), "next");
    await within(flow.left.write(Buffer.from([0, 0])));
    await readToError(flow.left, "reset");
    const { datagrams, error, errorSide } = await ended(flow);
    assert.deepEqual([datagrams.aToB, datagrams.dropped, error?.code, errorSide], [1, 1, "reset", "a"]);
  });

  test("ends with an error when the stream ends within a capsule, or is reset", async (net) => {
    await using server = await UdpServer.start();
    const cut = await begin(net, server);
    await within(cut.left.write(datagram("whole, but").subarray(0, 5)));
    cut.left.closeWrite();
    assert.deepEqual([(await ended(cut)).error?.code, (await ended(cut)).errorSide], ["reset", "a"]);
    const gone = await begin(net, server);
    gone.left.reset(1);
    assert.ok(["reset", "stopped"].includes((await ended(gone)).error!.code));
  });

  test("drops what comes from another address, and survives that nothing listens", async (net) => {
    await using server = await UdpServer.start();
    await using stranger = await UdpServer.start();
    const flow = await begin(net, server);
    await within(flow.left.write(datagram("hello")));
    const { from } = await within(server.receive());
    await stranger.send("forged", from);
    await server.send("true", from);
    assert.equal(String(await receive(flow.left)), "true");
    flow.left.closeWrite();
    assert.deepEqual((await ended(flow)).datagrams, { aToB: 1, bToA: 1, dropped: 0 });

    const closed = await UdpServer.start();
    await closed[Symbol.asyncDispose]();
    const alone = await begin(net, closed);
    for (let n = 0; n < 3; n++) await within(alone.left.write(datagram("nobody")));
    assert.ok(await isPending(alone.flow.ended));
    alone.left.closeWrite();
    assert.equal((await ended(alone)).error, undefined);
  });

  test("finishes the stream after the idle timeout", async (net) => {
    await using server = await UdpServer.start((payload) => payload);
    const flow = await begin(net, server, { idleTimeoutMs: 100 });
    await within(flow.left.write(datagram("x")));
    assert.equal(String(await receive(flow.left)), "x");
    assert.equal((await readAll(flow.left)).length, 0);
    const { error, errorSide, datagrams } = await ended(flow);
    assert.deepEqual([error?.code, errorSide, datagrams.aToB], ["timed-out", undefined, 1]);
  });

  test("is cancelled by its signal, or by the stream that was given", async (net) => {
    await using server = await UdpServer.start();
    const controller = new AbortController();
    const flow = await begin(net, server, { signal: controller.signal });
    controller.abort();
    assert.equal((await ended(flow)).error?.code, "cancelled");
    await readToError(flow.left, "reset");
    const other = await begin(net, server);
    other.a.close();
    assert.equal((await ended(other)).error?.code, "cancelled");
  });

  test("passes no more than its rate allows, and loses nothing for that", async (net) => {
    await using server = await UdpServer.start((payload) => payload);
    const rate = net.createRate({ bytesPerSecond: 1 << 20, burst: 1 });
    const flow = await begin(net, server, { rates: [rate] });
    for (let n = 0; n < 20; n++) {
      await within(flow.left.write(datagram(pattern(1_000, n))));
      assert.equal(Buffer.compare(await receive(flow.left), pattern(1_000, n)), 0);
    }
    flow.left.closeWrite();
    assert.equal((await ended(flow)).datagrams.dropped, 0);
    rate.close();
  });

  test("returns the stream unchanged if there is no such host, and does not begin with an invalid port or an aborted signal", async (net) => {
    const { a: left, b: a } = await kind.open(net);
    await netError(net.connectUdp(a, { host: "name.invalid", port: 53, timeoutMs: 5_000 }), "unknown-host", "name-timed-out");
    await netError(net.connectUdp(a, { host: "127.0.0.1", port: 0, timeoutMs: 5_000 }), "invalid");
    await netError(net.connectUdp(a, { host: "127.0.0.1", port: 53, timeoutMs: 5_000 }, { signal: AbortSignal.abort() }), "cancelled");
    await assertUsable(left, a);
  });
}

function overflowTests(suite: Suite, sessions: Sessions): void {
  const { test, pki } = suite;
  test("keeps the newest datagrams for a reader that is slow, and counts those that it drops", async (net) => {
    await using server = await UdpServer.start();
    const { client, server: proxy } = await sessions.pair(net, await pki, SMALL_WINDOW, SMALL_WINDOW);
    const [{ a: near, b: far }, { a: left, b: a }] = [await openPair(client, proxy), await openFlow(suite, net, sessions)];
    const connected = within(net.connectUdp(a, { host: "127.0.0.1", port: server.port, timeoutMs: 5_000 }, { datagrams: true }));
    const { ended } = await connected;
    const relay = net.splice(far, left);
    await within(near.write(datagram("hello")));
    const { from } = await within(server.receive());
    // far more than the window of a stream and what may wait
    for (let n = 0; n < 2_000; n++) {
      const payload = Buffer.alloc(1_000);
      payload.writeUInt32BE(n);
      await server.send(payload, from);
    }
    // any of them may be lost
    const ending = setInterval(() => void server.send("end", from), 20);
    let [received, last] = [0, -1];
    for (let payload; (payload = await receive(near)).length !== 3; received++) {
      const n = payload.readUInt32BE();
      assert.ok(n > last, `${n} comes after ${last}`);
      last = n;
    }
    clearInterval(ending);
    near.closeWrite();
    await readAll(near);
    const [{ datagrams }, { datagramsDropped = 0 }] = [await within(ended), await within(relay)];
    assert.ok(
      datagramsDropped > 0 && datagramsDropped + received <= datagrams.bToA,
      `${datagramsDropped} dropped, ${received} received`,
    );
    assert.ok(datagrams.dropped < datagramsDropped, `${datagrams.dropped} were dropped by the agent`);
  });
}

/** The header of a datagram of SOCKS 5 (RFC 1928 §7) for an IPv4 address, and the payload behind it. */
function socksDatagram(host: string, port: number, payload: Uint8Array | string = "", fragment = 0): Buffer {
  return Buffer.concat([Buffer.from([0, 0, fragment, 1, ...host.split(".").map(Number), port >> 8, port & 0xff]), Buffer.from(payload)]);
}

function associationTests({ test }: Suite): void {
  const open = async (net: Net, more: Partial<ListenUdpOptions> = {}) => {
    const listener = await net.listenUdp({ address: "127.0.0.1:0", socks5: { host: "127.0.0.1" }, ...more });
    const to = { address: "127.0.0.1", port: portOf(listener.address) } as RemoteInfo;
    return { listener, to, next: oneByOne(() => listener.accept()) };
  };

  test("gives each destination a stream of its own, and puts its header in front of what is sent back", async (net) => {
    const { listener, to, next } = await open(net);
    await using client = await UdpServer.start();
    const name = Buffer.from("\0\0\0\x03\x02db\0\x35", "latin1");
    const [one, two] = [socksDatagram("192.0.2.1", 53), socksDatagram("192.0.2.2", 53)];
    for (const header of [one, two, name]) {
      await client.send(Buffer.concat([header, Buffer.from("query")]), to);
      const { stream, head } = (await next())!;
      assert.deepEqual([stream.remote, head], [client.authority, header.toString("latin1")]);
      assert.equal(String(await receive(stream)), "query");
      const payload = pattern(LONGEST - header.length);
      await within(stream.write(datagram(payload)));
      assert.equal(Buffer.compare((await within(client.receive())).payload, Buffer.concat([header, payload])), 0);
      await client.send(Buffer.concat([header, payload]), to);
      assert.equal(Buffer.compare(await receive(stream), payload), 0);
    }
    assert.equal(listener.dropped, 0);
  });

  test("drops and counts what is malformed, too long or another's, and goes on", async (net) => {
    const { listener, to, next } = await open(net);
    await using client = await UdpServer.start();
    await using neighbour = await UdpServer.start();
    await using stranger = await UdpServer.start(undefined, "127.0.0.2");
    const good = socksDatagram("192.0.2.1", 53, "good");
    await stranger.send(good, to);
    const malformed = [
      Buffer.alloc(0),
      good.subarray(0, 9),
      socksDatagram("192.0.2.1", 53, "fragment", 1),
      Buffer.from([0, 0, 0, 2, ...good]),
    ];
    for (const bad of malformed) await neighbour.send(bad, to);
    await client.send(good, to);
    const { stream } = (await next())!;
    assert.equal(stream.remote, client.authority);
    await neighbour.send(good, to);
    await client.send(socksDatagram("192.0.2.1", 53, "better"), to);
    for (const payload of ["good", "better"]) assert.equal(String(await receive(stream)), payload);
    assert.equal(listener.dropped, 2 + malformed.length);
    await within(stream.write(datagram(pattern(LONGEST)))); // there is no room for the header
    await until(() => listener.dropped === 3 + malformed.length, "the datagram was not counted");
  });

  test("hears only the port that its client has announced", async (net) => {
    await using client = await UdpServer.start();
    await using neighbour = await UdpServer.start();
    const { listener, to, next } = await open(net, { socks5: { host: "127.0.0.1", port: client.port } });
    await neighbour.send(socksDatagram("192.0.2.1", 53), to);
    await client.send(socksDatagram("192.0.2.1", 53), to);
    assert.equal((await next())?.stream.remote, client.authority);
    assert.equal(listener.dropped, 1);
  });

  test("ignores for a while a destination whose stream was reset, and limits their number", async (net) => {
    const { listener, to, next } = await open(net, { maxPeers: 2 });
    await using client = await UdpServer.start();
    await client.send(socksDatagram("192.0.2.1", 53), to);
    const { stream } = (await next())!;
    stream.reset(1);
    await netError(stream.read(), "closed");
    await client.send(socksDatagram("192.0.2.1", 53), to);
    await client.send(socksDatagram("192.0.2.2", 53), to);
    assert.equal((await next())?.head, socksDatagram("192.0.2.2", 53).toString("latin1"));
    await client.send(socksDatagram("192.0.2.3", 53), to);
    await until(() => listener.dropped === 2, "they were not dropped");
    assert.ok(await isPending(listener.accept()));
  });

  test("frees its address when it is closed, even while a destination is being connected", async (net) => {
    const { listener, to, next } = await open(net);
    await using client = await UdpServer.start();
    for (const host of ["192.0.2.1", "192.0.2.2"]) await client.send(socksDatagram(host, 53, pattern(20_000)), to);
    const [waiting, connecting] = [(await next())!.stream, (await next())!.stream];
    // a black hole (RFC 6666)
    const call = net.connectAndSplice(connecting, { host: "100::1", port: 1, timeoutMs: 5_000 });
    await receive(waiting);
    const { dropped } = listener;
    listener.close();
    await netError(call, "abandoned", "unreachable");
    assert.equal(await within(waiting.read()), null);
    await within(waiting.write(datagram("too late")));
    assert.equal(listener.dropped, dropped);
    let again: UdpListener | undefined;
    await until(() => {
      net.listenUdp({ address: listener.address }).then((opened) => again = opened, () => {});
      return again !== undefined;
    }, "the address is in use");
  });

  test("is refused for a client that has no address", async (net) => {
    await netError(net.listenUdp({ address: "127.0.0.1:0", socks5: { host: "name.example" } }), "invalid");
  });
}

function listenerTests({ test }: Suite): void {
  const client = async (address: string): Promise<{ server: UdpServer; to: RemoteInfo }> => {
    const server = await UdpServer.start();
    return { server, to: { address: "127.0.0.1", port: portOf(address) } as RemoteInfo };
  };
  const next = oneByOne;

  test("gives each source address a stream of its own, and sends back to it", async (net) => {
    const listener = await net.listenUdp({ address: "127.0.0.1:0" });
    const accept = next(() => listener.accept());
    const streams = [];
    for (const name of ["one", "two"]) {
      const { server, to } = await client(listener.address);
      await server.send(`${name} early`, to);
      await server.send(`${name} late`, to);
      const { stream } = (await accept())!;
      assert.equal(stream.remote, server.authority);
      for (const when of ["early", "late"]) assert.equal(String(await receive(stream)), `${name} ${when}`);
      streams.push({ server, to, stream });
    }
    for (const { server, to, stream } of streams) {
      await within(stream.write(datagram(pattern(LONGEST))));
      assert.equal(Buffer.compare((await within(server.receive())).payload, pattern(LONGEST)), 0);
      // the end of the stream is not the peer's
      stream.closeWrite();
      assert.equal(await within(stream.read()), null);
      stream.close();
      await server.send("anew", to);
      assert.equal(String(await receive((await accept())!.stream)), "anew");
    }
    for (const { server } of streams) await server[Symbol.asyncDispose]();
  });

  test("drops the oldest datagrams that are not read, and those of too many peers", async (net) => {
    const listener = await net.listenUdp({ address: "127.0.0.1:0", maxPeers: 1 });
    const accept = next(() => listener.accept());
    const [one, two] = [await client(listener.address), await client(listener.address)];
    await one.server.send("first", one.to);
    const { stream } = (await accept())!;
    await two.server.send("too many", two.to);
    for (let n = 0; n < 20; n++) {
      await one.server.send(pattern(60_000, n), one.to);
      await pause(1);
    }
    await one.server.send("last", one.to);
    let received = 0;
    while ((await receive(stream)).length !== 4) received++;
    assert.ok(received < 20, `${received} of 20 waited`);
    assert.ok(listener.dropped > 0 && received + listener.dropped <= 22, `${listener.dropped} were dropped`);
    assert.ok(await isPending(listener.accept()));
    for (const { server } of [one, two]) await server[Symbol.asyncDispose]();
  });

  test("relays between a peer and a stream, as between two streams", async (net) => {
    await using echo = await UdpServer.start((payload) => payload);
    const listener = await net.listenUdp({ address: "127.0.0.1:0" });
    const { server, to } = await client(listener.address);
    await server.send("before the relay", to);
    const { stream } = (await next(() => listener.accept())())!;
    const { ended } = await within(
      net.connectUdp(stream, { host: "127.0.0.1", port: echo.port, timeoutMs: 5_000 }, { idleTimeoutMs: 200 }),
    );
    assert.equal(String((await within(server.receive())).payload), "before the relay");
    assert.deepEqual((await within(ended)).datagrams, { aToB: 1, bToA: 1, dropped: 0 });
    await server[Symbol.asyncDispose]();
  });

  test("ends its streams and frees its address when it is closed", async (net) => {
    const listener = await net.listenUdp({ address: "127.0.0.1:0" });
    const { server, to } = await client(listener.address);
    await server.send("hello", to);
    const { stream } = (await next(() => listener.accept())())!;
    assert.equal(String(await receive(stream)), "hello");
    const accepting = listener.accept();
    listener.close();
    assert.equal(await within(accepting), null);
    assert.equal(await within(stream.read()), null);
    stream.close();
    await server[Symbol.asyncDispose]();
  });

  test("is refused on an address that is in use, or is none", async (net) => {
    await using server = await UdpServer.start();
    await netError(net.listenUdp({ address: server.authority }), "address-in-use");
    await netError(net.listenUdp({ address: "127.0.0.1" }), "invalid");
  });
}
