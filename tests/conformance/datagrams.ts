// Flows of datagrams: what passes between the capsules of a stream and a UDP socket, for every kind of stream.
import assert from "node:assert/strict";
import { Buffer } from "node:buffer";
import type { RemoteInfo } from "node:dgram";
import { describe } from "node:test";
import type { ConnectedFlow, Duplex, FlowOptions, FlowResult, Net } from "../../shared/net/types.ts";
import { capsule, datagram, UdpServer } from "../../testing/masque.ts";
import {
  assertUsable,
  bytes,
  isPending,
  type Kind,
  kindsOf,
  netError,
  oneByOne,
  pattern,
  pause,
  portOf,
  readAll,
  readToError,
  type Suite,
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
  for (const kind of kindsOf(suite)) describe(`a flow from ${kind.name}`, () => flowTests(suite, kind));
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
async function receive(stream: Duplex): Promise<Buffer> {
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

function flowTests({ test }: Suite, kind: Kind): void {
  const connect = (net: Net, a: Duplex, port: number, options?: FlowOptions) =>
    within(net.connectUdp(a, { host: "127.0.0.1", port, timeoutMs: 5_000 }, options));
  const begin = async (net: Net, { port }: UdpServer, options?: FlowOptions): Promise<Flow> => {
    const { a: left, b: a } = await kind.open(net);
    const flow = await connect(net, a, port, options);
    assert.equal(flow.remote, `127.0.0.1:${port}`);
    return { left, a, flow };
  };
  const ended = ({ flow }: Flow): Promise<FlowResult> => within(flow.ended, "the flow did not end");

  test("has datagrams of every length whole in both directions, behind the initial data", async (net) => {
    await using server = await UdpServer.start((payload) => payload);
    const flow = await begin(net, server, { initialDataToA: bytes("101\r\n\r\n") });
    const { left } = flow;
    assert.equal(Buffer.from(await take(left, 7)).toString(), "101\r\n\r\n");
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
