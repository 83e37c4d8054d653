// The copy between two streams: what a tunnel does with bytes, ends and aborts, for every pair of kinds.
import assert from "node:assert/strict";
import { describe } from "node:test";
import type { Net } from "../../shared/net/net.ts";
import type { Relayed, SpliceOptions, SpliceResult } from "../../shared/net/relay.ts";
import type { Duplex } from "../../shared/net/stream.ts";
import { watch, withRaw } from "./raw.ts";
import {
  assertSame,
  assertUsable,
  bytes,
  dialTcp,
  fill,
  HEAD,
  ignore,
  isPending,
  type Kind,
  kindsOf,
  listenTcp,
  netError,
  openPair,
  type Pair,
  pattern,
  pause,
  portOf,
  readAll,
  readExactly,
  readText,
  readTextExactly,
  readToError,
  type Sessions,
  sessionsOf,
  type Suite,
  until,
  within,
  writeToError,
} from "./support.ts";

/** More than all windows on the way hold, buffers of the system included. */
const MORE_THAN_FITS = 96 << 20;

/** `left` and `right` are the far ends, `a` and `b` what is copied between. */
interface Tunnel {
  left: Duplex;
  a: Duplex;
  b: Duplex;
  right: Duplex;
}

interface Running extends Tunnel {
  done: Promise<SpliceResult>;
}

export function spliceTests(suite: Suite): void {
  const kinds = kindsOf(suite);
  const pairs = kinds.flatMap((left) => kinds.map((right) => [left, right] as const))
    // streams of two kinds of session never meet: a program relays between a session and TCP
    .filter(([left, right]) => !left.isSession || !right.isSession || left === right);
  for (const [left, right] of pairs) {
    // TLS runs on what TCP runs on: beside sessions is enough
    if (left.name !== right.name && [left.name, right.name].includes("TLS") && !left.isSession && !right.isSession) continue;
    describe(`a relay between ${left.name} and ${right.name}`, () => {
      const dig = async (net: Net): Promise<Tunnel> => {
        const [first, second] = [await left.open(net), await right.open(net)];
        return { left: first.a, a: first.b, b: second.b, right: second.a };
      };
      const start = async (net: Net, options?: SpliceOptions): Promise<Running> => {
        const tunnel = await dig(net);
        return { ...tunnel, done: net.splice(tunnel.a, tunnel.b, options) };
      };
      byteTests(suite, dig, start);
      endTests(suite, start);
      abortTests(suite, start, left, right);
      controlTests(suite, dig, start);
    });
  }
  for (const [left, right] of pairs) describe(`a copy between ${left.name} and ${right.name}`, () => goneTests(suite, left, right));
  for (const kind of kinds) describe(`a connection and a copy from ${kind.name}`, () => connectTests(suite, kind));
  for (const sessions of sessionsOf(suite)) describe(`a copy with ${sessions.name} sessions`, () => idleTests(suite, sessions));
  describe("a relay with a rate", () => rateTests(suite, kinds));
  if (!suite.adapter.has.sockets) return;
  for (const sessions of sessionsOf(suite)) {
    describe(`a relay with ${sessions.name} sessions`, () => deliveryTests(suite, sessions));
    describe(`a relay with ${sessions.name} sessions, seen from outside`, () => wireTests(suite, sessions));
  }
}

type Dig = (net: Net) => Promise<Tunnel>;
type Start = (net: Net, options?: SpliceOptions) => Promise<Running>;

async function finish({ done }: Running): Promise<SpliceResult> {
  const result = await within(done, "the copy did not end");
  assert.equal(result.error, undefined);
  assert.equal(result.errorSide, undefined);
  return result;
}

function byteTests({ test }: Suite, dig: Dig, start: Start): void {
  test("transfers bytes unchanged in both directions at once, and counts them", async (net) => {
    const tunnel = await start(net);
    const { left, right } = tunnel;
    const [up, down] = [pattern(4 << 20, 1), pattern((4 << 20) + 1, 2)];
    const send = async (stream: Duplex, data: Uint8Array) => {
      for (let i = 0; i < data.length; i += 100_000) await within(stream.write(data.subarray(i, i + 100_000)));
      stream.closeWrite();
    };
    const [gotUp, gotDown] = await Promise.all([readAll(right), readAll(left), send(left, up), send(right, down)]);
    assertSame(gotUp, up);
    assertSame(gotDown, down);
    assert.deepEqual(await finish(tunnel), { aToB: up.length, bToA: down.length, error: undefined, errorSide: undefined });
  });

  test("tells what it has transferred so far, and which direction has ended, until its end", async (net) => {
    const tunnel = await dig(net);
    const { left, a, b, right } = tunnel;
    assert.deepEqual(net.relayed([a, b]), [undefined, undefined]);
    const done = net.splice(a, b);
    await within(left.write(bytes("five!")));
    assert.equal(await readTextExactly(right, 5), "five!");
    await within(right.write(bytes("two")));
    assert.equal(await readTextExactly(left, 3), "two");
    const expect = async (wanted: Relayed) => {
      const isAsWanted = () => JSON.stringify(net.relayed([b, a])[1]) === JSON.stringify(wanted);
      await until(isAsWanted, `It is not as ${JSON.stringify(wanted)}`);
    };
    await expect({ aToB: 5, bToA: 3, toB: "open", toA: "open" });
    left.closeWrite();
    assert.equal(await within(right.read()), null);
    await expect({ aToB: 5, bToA: 3, toB: "ended", toA: "open" });
    right.closeWrite();
    await finish({ ...tunnel, done });
    assert.deepEqual(net.relayed([a, b]), [undefined, undefined]);
  });

  test("writes the initial data before anything else, and does not count it", async (net) => {
    const { left, a, b, right } = await dig(net);
    await within(right.write(bytes("banner")));
    right.closeWrite();
    const done = net.splice(a, b, { initialDataToA: bytes("200\r\n\r\n") });
    assert.equal(await readText(left), "200\r\n\r\nbanner");
    left.closeWrite();
    assert.equal(await readText(right), "");
    assert.equal((await within(done)).bToA, 6);
  });

  test("writes the initial data at once, also without other bytes", async (net) => {
    const { left } = await start(net, { initialDataToA: bytes("200\r\n\r\n") });
    assert.equal(await readTextExactly(left, 7), "200\r\n\r\n");
  });

  test("transfers bytes that arrived before its start", async (net) => {
    const { left, a, b, right } = await dig(net);
    await within(left.write(bytes("early")));
    left.closeWrite();
    await pause();
    const done = net.splice(a, b);
    assert.equal(await readText(right), "early");
    right.closeWrite();
    assert.equal((await within(done)).aToB, 5);
  });

  test("starts after earlier calls", async (net) => {
    const { left, a, b, right } = await dig(net);
    const read = a.read();
    ignore(a.write(bytes("one ")), a.write(bytes("two ")), b.write(bytes("to b ")));
    const done = net.splice(a, b, { initialDataToA: bytes("three") });
    await within(left.write(bytes("read")));
    assert.deepEqual(await within(read), bytes("read"));
    assert.equal(await readTextExactly(left, 13), "one two three");
    await within(left.write(bytes("copied")));
    left.closeWrite();
    right.closeWrite();
    assert.equal(await readText(right), "to b copied");
    assert.equal((await within(done)).aToB, 6);
  });

  test("accepts no more than its windows without a reader, loses nothing of it, and stops no other", async (net) => {
    const slow = await start(net);
    const block = pattern(256 * 1024);
    const { taken, waiting } = await fill(slow.left, block, MORE_THAN_FITS);
    const other = await start(net);
    await within(other.left.write(bytes("past it")));
    assert.equal(await readTextExactly(other.right, 7), "past it");
    await within(slow.right.write(bytes("against it")));
    assert.equal(await readTextExactly(slow.left, 10), "against it");
    slow.left.closeWrite();
    const got = await readAll(slow.right);
    await within(waiting);
    assert.equal(got.length, taken + block.length);
    for (let i = 0; i < got.length; i += block.length) assertSame(got.subarray(i, i + block.length), block);
  });
}

function endTests({ test }: Suite, start: Start): void {
  for (const side of ["left", "right"] as const) {
    const other = side === "left" ? "right" : "left";

    test(`continues in the other direction when the ${side} end has finished its own`, async (net) => {
      const tunnel = await start(net);
      const [first, second] = [tunnel[side], tunnel[other]];
      await within(first.write(bytes("request")));
      first.closeWrite();
      assert.equal(await readText(second), "request");
      for (let i = 0; i < 20; i++) {
        await within(second.write(bytes("answer")));
        assert.equal(await readTextExactly(first, 6), "answer");
      }
      assert.ok(await isPending(tunnel.done));
      second.closeWrite();
      assert.equal(await readText(first), "");
      await finish(tunnel);
    });
  }

  test("ends cleanly when both ends finish without bytes", async (net) => {
    const tunnel = await start(net);
    tunnel.left.closeWrite();
    tunnel.right.closeWrite();
    assert.deepEqual(await finish(tunnel), { aToB: 0, bToA: 0, error: undefined, errorSide: undefined });
    assert.equal(await within(tunnel.left.read()), null);
    assert.equal(await within(tunnel.right.read()), null);
  });

  test("is not affected by an end that closes after its request and before a response", async (net) => {
    const tunnel = await start(net);
    await within(tunnel.left.write(bytes("last words")));
    tunnel.left.close();
    assert.equal(await readText(tunnel.right), "last words");
    tunnel.right.close();
    await within(tunnel.done);
  });
}

function abortTests({ test }: Suite, start: Start, leftKind: Kind, rightKind: Kind): void {
  for (const side of ["left", "right"] as const) {
    const other = side === "left" ? "right" : "left";
    const from = side === "left" ? leftKind : rightKind;
    const to = side === "left" ? rightKind : leftKind;
    /** What the other end sees: the code that was given, or 1 where TCP has none. */
    const code = to.isSession ? (from.isSession ? 77 : 1) : undefined;

    test(`forwards a reset at the ${side} end as a reset, not as an end`, async (net) => {
      const tunnel = await start(net);
      const [first, second] = [tunnel[side], tunnel[other]];
      await within(first.write(bytes("half of ")));
      assert.equal(await readTextExactly(second, 8), "half of ");
      first.reset(77);
      assert.equal((await readToError(second, "reset")).appCode, code);
      const { error, errorSide } = await within(tunnel.done);
      assert.equal(error?.code, "reset");
      assert.equal(error.remote, true);
      assert.equal(error.appCode, from.isSession ? 77 : undefined);
      assert.equal(errorSide, side === "left" ? "a" : "b");
      if (to.isSession) assert.equal((await writeToError(second, "stopped")).appCode, code);
      else await writeToError(second, "reset", "stopped");
    });

    test(`forwards a reset at the ${side} end although the other has finished its own direction`, async (net) => {
      const tunnel = await start(net);
      const [first, second] = [tunnel[side], tunnel[other]];
      second.closeWrite();
      assert.equal(await within(first.read()), null);
      first.reset(77);
      assert.equal((await readToError(second, "reset")).appCode, code);
      assert.equal((await within(tunnel.done)).error?.code, "reset");
    });

    if (!from.isSession) continue;

    test(`tells the other end's writer that the ${side} end accepts no more`, async (net) => {
      const tunnel = await start(net);
      const [first, second] = [tunnel[side], tunnel[other]];
      first.stopRead(66);
      const error = await writeToError(second, "stopped", "reset");
      if (to.isSession) assert.equal(error.code, "stopped");
    });

    test(`transfers what the ${side} end sends after it accepts no more, such as the response to a refused upload`, async (net) => {
      const tunnel = await start(net);
      const [first, second] = [tunnel[side], tunnel[other]];
      first.stopRead(66);
      ignore(second.write(pattern(64 * 1024)));
      await within(first.write(bytes("413 too large")));
      assert.equal(await readTextExactly(second, 13), "413 too large");
    });
  }
}

const SIDES = ["left", "right"] as const;
/** The state of a direction when an end disconnects: idle, blocked by its reader, or ended. */
const ACTIVITIES = ["idle", "blocked", "ended"] as const;

/** How an end can go. Those of sessions alone are for one direction, or for all streams of a connection. */
const DEPARTURES: Record<string, { sessionOnly: boolean; go: (end: Pair) => void; ends: (sends: string, receives: string) => boolean }> = {
  "is reset": {
    sessionOnly: false,
    go: ({ a }) => {
      a.reset(77);
      a.stopRead(77);
    },
    ends: () => true,
  },
  "sends RESET_STREAM alone": { sessionOnly: true, go: ({ a }) => a.reset(77), ends: (sends) => sends !== "ended" },
  "sends STOP_SENDING alone": { sessionOnly: true, go: ({ a }) => a.stopRead(77), ends: (_, receives) => receives !== "ended" },
  "loses its connection": { sessionOnly: true, go: ({ lose }) => lose?.(), ends: () => true },
};

/** No end that goes leaves a copy behind, whatever its directions are doing. */
function goneTests({ test }: Suite, leftKind: Kind, rightKind: Kind): void {
  const kinds = { left: leftKind, right: rightKind };
  for (const side of SIDES) {
    const other = side === "left" ? "right" : "left";
    for (const [what, { sessionOnly, go, ends }] of Object.entries(DEPARTURES)) {
      if (sessionOnly && !kinds[side].isSession) continue;
      const states = ACTIVITIES.flatMap((sends) => ACTIVITIES.map((receives) => [sends, receives] as const))
        .filter(([sends, receives]) => !(sends === "ended" && receives === "ended") && ends(sends, receives));

      test(`ends when the ${side} end ${what}, in any state of both directions`, async (net) => {
        const cases = states.map(async ([sends, receives]) => {
          const state = `it sends: ${sends}, it receives: ${receives}`;
          const pairs = { left: await leftKind.open(net), right: await rightKind.open(net) };
          const done = net.splice(pairs.left.b, pairs.right.b);
          const [first, second] = [pairs[side].a, pairs[other].a];
          for (const [from, to, activity] of [[first, second, sends], [second, first, receives]] as const) {
            if (activity === "blocked") await fill(from, pattern(256 * 1024), MORE_THAN_FITS);
            if (activity !== "ended") continue;
            from.closeWrite();
            assert.equal(await within(to.read()), null);
          }
          go(pairs[side]);
          const { error, errorSide } = await within(done, `the copy goes on; ${state}`);
          assert.ok(error !== undefined, `the copy ended in good order; ${state}`);
          assert.equal(errorSide, side === "left" ? "a" : "b", `${error}; ${state}`);
          if (sends !== "ended") await readToError(second, "reset");
          if (receives !== "ended") await writeToError(second, "stopped", "reset", "closed");
        });
        await Promise.all(cases);
      });
    }
  }

  if (!leftKind.isSession) return;

  test("closes the other end when a peer has closed the stream, without an error", async (net) => {
    const pairs = { left: await leftKind.open(net), right: await rightKind.open(net) };
    const done = net.splice(pairs.left.b, pairs.right.b);
    await within(pairs.left.a.write(bytes("last words")));
    pairs.left.a.close();
    assert.equal(await readText(pairs.right.a), "last words");
    const { aToB, bToA, error } = await within(done);
    assert.deepEqual([aToB, bToA, error], [10, 0, undefined]);
    await writeToError(pairs.right.a, "stopped", "reset", "closed");
  });

  test("delivers the complete response to an end that still sends when its peer closes the stream", async (net) => {
    const pairs = { left: await leftKind.open(net), right: await rightKind.open(net) };
    const done = net.splice(pairs.left.b, pairs.right.b);
    ignore(pairs.right.a.write(pattern(300 * 1024)));
    await within(pairs.left.a.write(bytes("413 too large")));
    pairs.left.a.close();
    assert.equal((await within(done)).error, undefined);
    assert.equal(await readText(pairs.right.a), "413 too large");
  });
}

function controlTests({ test }: Suite, dig: Dig, start: Start): void {
  const bothReset = async ({ left, right }: Tunnel) => {
    await Promise.all([readToError(left, "reset"), readToError(right, "reset")]);
  };

  test("is cancelled at once by its signal, and both ends see a reset", async (net) => {
    const controller = new AbortController();
    const tunnel = await start(net, { signal: controller.signal });
    await within(tunnel.left.write(bytes("some")));
    assert.equal(await readTextExactly(tunnel.right, 4), "some");
    controller.abort();
    const { aToB, bToA, error, errorSide } = await within(tunnel.done);
    assert.deepEqual([aToB, bToA, error?.code, errorSide], [4, 0, "cancelled", undefined]);
    await bothReset(tunnel);
  });

  test("is cancelled by a signal that is aborted already", async (net) => {
    const tunnel = await start(net, { signal: AbortSignal.abort() });
    assert.equal((await within(tunnel.done)).error?.code, "cancelled");
    await bothReset(tunnel);
  });

  test("is cancelled at once while an end does not read", async (net) => {
    const controller = new AbortController();
    const tunnel = await start(net, { signal: controller.signal });
    await fill(tunnel.left, pattern(256 * 1024), MORE_THAN_FITS);
    controller.abort();
    assert.equal((await within(tunnel.done)).error?.code, "cancelled");
    await bothReset(tunnel);
  });

  test("is aborted when both directions are idle for too long", async (net) => {
    const tunnel = await start(net, { idleTimeoutMs: 60 });
    const { error, errorSide } = await within(tunnel.done);
    assert.deepEqual([error?.code, errorSide], ["timed-out", undefined]);
    await bothReset(tunnel);
  });

  test("owns the streams: calls on them reject with closed", async (net) => {
    const { a, b, done } = await start(net);
    for (const stream of [a, b]) {
      await netError(stream.read(), "closed");
      await netError(stream.write(bytes("x")), "closed");
      await netError(net.splice(a, b), "closed");
      stream.closeWrite();
    }
    assert.ok(await isPending(done));
  });

  for (const end of ["close", "reset"] as const) {
    test(`is ended by ${end} on one of its streams, and both ends see a reset`, async (net) => {
      const tunnel = await start(net);
      if (end === "close") tunnel.b.close();
      else tunnel.a.reset(5);
      const { error } = await within(tunnel.done);
      assert.match(error?.code ?? "", /^(cancelled|closed)$/);
      await bothReset(tunnel);
    });
  }

  test("is refused for the same stream twice, and for a closed stream", async (net) => {
    const { a, b } = await dig(net);
    await netError(net.splice(a, a), "closed", "invalid");
    const fresh = await dig(net);
    fresh.b.close();
    await netError(net.splice(fresh.a, fresh.b), "closed");
    ignore(b.read());
  });
}

function connectTests({ test, adapter }: Suite, kind: Kind): void {
  const begin = async (net: Net, options: SpliceOptions = {}) => {
    const { port, request } = await listenTcp(net);
    const { a: left, b: a } = await kind.open(net);
    const { remote, ended } = await within(net.connectAndSplice(a, { host: "127.0.0.1", port, timeoutMs: 5_000 }, options));
    assert.equal(remote, `127.0.0.1:${port}`);
    await within(left.write(bytes(HEAD)));
    return { left, a, right: (await request()).stream, done: ended };
  };

  test("transfers the initial data, bytes in both directions, and their ends", async (net) => {
    const { left, right, done } = await begin(net, { initialDataToA: bytes("200\r\n\r\n") });
    await within(Promise.all([left.write(bytes("up")), right.write(bytes("down"))]));
    right.closeWrite();
    assert.equal(await readText(left), "200\r\n\r\ndown");
    left.closeWrite();
    assert.equal(await readText(right), "up");
    const { aToB, bToA, error } = await within(done);
    assert.deepEqual([aToB, bToA, error], [HEAD.length + 2, 4, undefined]);
  });

  test("transfers bytes that arrived before, after earlier calls", async (net) => {
    const { port, request } = await listenTcp(net);
    const { a: left, b: a } = await kind.open(net);
    await within(left.write(bytes(HEAD)));
    ignore(a.write(bytes("one ")));
    const { ended } = await within(
      net.connectAndSplice(a, { host: "127.0.0.1", port, timeoutMs: 5_000 }, { initialDataToA: bytes("two") }),
    );
    assert.equal(await readTextExactly(left, 7), "one two");
    const { stream, head } = await request();
    assert.equal(head, HEAD);
    for (const end of [left, stream]) end.closeWrite();
    assert.equal((await within(ended)).error, undefined);
  });

  test("returns the stream unchanged if the connection fails", async (net) => {
    const { listener, port } = await listenTcp(net);
    listener.close();
    const { a: left, b: a } = await kind.open(net);
    const options = { initialDataToA: bytes("never"), signal: new AbortController().signal };
    await netError(net.connectAndSplice(a, { host: "127.0.0.1", port, timeoutMs: 5_000 }, options), "refused");
    await assertUsable(left, a);
  });

  test("does not start with a signal that is aborted already, or an invalid port", async (net) => {
    const { listener, port } = await listenTcp(net);
    const { a: left, b: a } = await kind.open(net);
    const to = { host: "127.0.0.1", port, timeoutMs: 5_000 };
    await netError(net.connectAndSplice(a, to, { signal: AbortSignal.abort() }), "cancelled");
    await netError(net.connectAndSplice(a, { ...to, port: 65_536 }), "invalid");
    assert.ok(await isPending(listener.accept()));
    await assertUsable(left, a);
  });

  test("is refused for a stream that was closed", async (net) => {
    const { port } = await listenTcp(net);
    const { b: a } = await kind.open(net);
    a.close();
    await netError(net.connectAndSplice(a, { host: "127.0.0.1", port, timeoutMs: 5_000 }), "closed");
  });

  test("is cancelled at once by its signal, and both ends see a reset", async (net) => {
    const controller = new AbortController();
    const { left, right, done } = await begin(net, { signal: controller.signal });
    controller.abort();
    assert.equal((await within(done)).error?.code, "cancelled");
    await Promise.all([readToError(left, "reset"), readToError(right, "reset")]);
  });

  for (const end of ["close", "reset"] as const) {
    test(`is ended by ${end} on the stream, and both ends see a reset`, async (net) => {
      const { left, a, right, done } = await begin(net);
      await netError(a.read(), "closed");
      if (end === "close") a.close();
      else a.reset(5);
      assert.match((await within(done)).error?.code ?? "", /^(cancelled|closed)$/);
      await Promise.all([readToError(left, "reset"), readToError(right, "reset")]);
    });
  }

  if (!adapter.has.sockets) return;

  const tls = { insecureSkipVerify: true };

  test("is cancelled at once while it connects, and returns the stream", async (net) => {
    await withRaw(async (raw) => {
      const { port, next } = await raw.serve(); // accepts, and never answers the TLS handshake
      const { a: left, b: a } = await kind.open(net);
      const controller = new AbortController();
      const { signal } = controller;
      const begun = netError(net.connectAndSplice(a, { host: "127.0.0.1", port, timeoutMs: 60_000, tls }, { signal }), "cancelled");
      const ended = watch(await next()).ended;
      await netError(a.read(), "closed");
      controller.abort();
      await begun;
      assert.match(await ended, /^(end|close|ECONNRESET)$/);
      await assertUsable(left, a);
    });
  });

  test("is cancelled when the stream's peer resets it while it connects", async (net) => {
    await withRaw(async (raw) => {
      const { port, next } = await raw.serve();
      const { a: left, b: a } = await kind.open(net);
      const begun = netError(net.connectAndSplice(a, { host: "127.0.0.1", port, timeoutMs: 60_000, tls }), "abandoned");
      const ended = watch(await next()).ended;
      await within(left.write(bytes("early")));
      left.reset(77);
      left.stopRead(77);
      await begun;
      assert.match(await ended, /^(end|close|ECONNRESET)$/);
    });
  });

  test("continues if the stream's peer sends and finishes before the connection is open", async (net) => {
    await withRaw(async (raw) => {
      const { port, next } = await raw.serve();
      const { a: left, b: a } = await kind.open(net);
      await within(left.write(bytes("early")));
      left.closeWrite();
      const controller = new AbortController();
      const begun = net.connectAndSplice(a, { host: "127.0.0.1", port, timeoutMs: 60_000, tls }, { signal: controller.signal });
      const failed = netError(begun, "cancelled");
      await next();
      assert.ok(await isPending(begun));
      controller.abort();
      await failed;
      assert.equal(await readText(a), "early");
    });
  });

  test("is cancelled when a TCP peer has finished without a byte for the tunnel", async (net) => {
    if (kind.isSession) return;
    await withRaw(async (raw) => {
      const { port, next } = await raw.serve();
      const { a: left, b: a } = await kind.open(net);
      left.closeWrite();
      const begun = netError(net.connectAndSplice(a, { host: "127.0.0.1", port, timeoutMs: 60_000, tls }), "abandoned");
      await next();
      await begun;
      await within(a.write(bytes("refused")));
      assert.equal(await readTextExactly(left, 7), "refused");
    });
  });

  test("settles when the network is closed while it connects", async (net) => {
    await withRaw(async (raw) => {
      const { port, next } = await raw.serve();
      const { b: a } = await kind.open(net);
      const begun = netError(
        net.connectAndSplice(a, { host: "127.0.0.1", port, timeoutMs: 60_000, tls }),
        "closed",
        "cancelled",
        "abandoned",
      );
      const ended = watch(await next()).ended;
      net.close();
      await begun;
      assert.match(await ended, /^(end|close|ECONNRESET)$/);
    });
  });
}

function deliveryTests({ test, pki }: Suite, sessions: Sessions): void {
  test("ends when the peer of the session has everything, so that closing the connection then truncates nothing", async (net) => {
    for (let round = 0; round < 10; round++) {
      const { client, server } = await sessions.pair(net, await pki);
      const { a, b: right } = await openPair(client, server);
      const { port, request } = await listenTcp(net);
      const left = await dialTcp(net, port);
      await within(left.write(bytes(HEAD)));
      const done = net.splice((await request()).stream, a);
      const data = pattern(1 << 20, round);
      const got = readAll(right);
      right.closeWrite();
      ignore(left.write(data));
      left.closeWrite();
      assert.equal((await within(done)).error, undefined);
      client.close(0, "");
      assertSame(await within(got), data);
    }
  });
}

function idleTests({ test, pki }: Suite, sessions: Sessions): void {
  test("resolves at its end, also while many others continue and nothing else happens", async (net) => {
    const { client, server } = await sessions.pair(net, await pki, { transport: { maxPeerStreams: 100 } });
    const start = async () => {
      const [first, second] = [await openPair(client, server), await openPair(client, server)];
      return { left: first.a, right: second.a, done: net.splice(first.b, second.b) };
    };
    const one = await start();
    const others = [];
    for (let i = 0; i < 20; i++) others.push(await start()); // side by side, streams would find ends that are not theirs
    for (const end of [one.left, one.right]) end.closeWrite();
    assert.equal((await within(one.done)).error, undefined);
    for (const { done } of others) assert.ok(await isPending(done));
  });

  test("is not aborted while one direction is active", async (net) => {
    const { port, request } = await listenTcp(net);
    const [left, right] = [await dialTcp(net, port), await dialTcp(net, port)];
    await within(Promise.all([left.write(bytes(HEAD)), right.write(bytes(HEAD))]));
    const [a, b] = [(await request()).stream, (await request()).stream];
    const idleTimeoutMs = 400;
    const done = net.splice(a, b, { idleTimeoutMs });
    for (const end = Date.now() + 2 * idleTimeoutMs; Date.now() < end;) {
      await within(right.write(bytes("tick")));
      assert.equal(await readTextExactly(left, 4), "tick");
      await pause(20);
    }
    left.closeWrite();
    right.closeWrite();
    assert.equal((await within(done)).error, undefined);
  });
}

const [KIB, MIB] = [1 << 10, 1 << 20];

function rateTests({ test }: Suite, kinds: Kind[]): void {
  const tunnel = async (net: Net, options: SpliceOptions, [left, right] = [kinds[0]!, kinds[0]!]): Promise<Running> => {
    const [first, second] = [await left.open(net), await right.open(net)];
    return { left: first.a, a: first.b, b: second.b, right: second.a, done: net.splice(first.b, second.b, options) };
  };
  /** Sends all of it, and finishes. */
  const send = async (stream: Duplex, data: Uint8Array) => {
    for (let i = 0; i < data.length; i += 50_000) await stream.write(data.subarray(i, i + 50_000));
    stream.closeWrite();
  };

  for (const [left, right] of kinds.flatMap((left) => kinds.map((right) => [left, right] as [Kind, Kind]))) {
    test(`transfers bytes unchanged, at the rate for both directions together, between ${left.name} and ${right.name}`, async (net) => {
      const rate = net.createRate({ bytesPerSecond: 2 * MIB, burst: 64 * KIB });
      const running = await tunnel(net, { rates: [rate] }, [left, right]);
      const [up, down] = [pattern(256 * KIB, 1), pattern(256 * KIB, 2)];
      const start = performance.now();
      ignore(send(running.left, up), send(running.right, down));
      const [gotDown, gotUp] = await Promise.all([readAll(running.left), readAll(running.right)]);
      const ms = performance.now() - start;
      assertSame(gotUp, up);
      assertSame(gotDown, down);
      assert.ok(ms >= (512 - 64) / 2_048 * 1_000, `${ms} ms`);
      await finish(running);
      rate.close();
    });
  }

  test("shares it evenly with others, and slows no unlimited relay", async (net) => {
    const rate = net.createRate({ bytesPerSecond: MIB, burst: 0 });
    const shared = [await tunnel(net, { rates: [rate] }), await tunnel(net, { rates: [rate] })];
    const other = await tunnel(net, { rates: [net.createRate({ bytesPerSecond: 1_024 * MIB, burst: 0 })] });
    const ended: string[] = [];
    const received = [0, 0];
    const run = async ({ left, right }: Tunnel, i: number) => {
      ignore(send(left, pattern(512 * KIB)));
      for (let data; (data = await right.read()) !== null;) received[i] = received[i]! + data.length;
      ended.push("shared");
      // the first to finish has had half of the bytes, or little more
      if (ended.filter((name) => name === "shared").length === 1) {
        const least = Math.min(...received);
        assert.ok(least >= 256 * KIB, `${least}`);
      }
    };
    const running = shared.map(run);
    ignore(send(other.left, pattern(4 * MIB)));
    assert.equal((await readAll(other.right)).length, 4 * MIB);
    ended.push("other");
    await within(Promise.all(running));
    assert.deepEqual(ended, ["other", "shared", "shared"]);
  });

  test("is limited by the lowest of several", async (net) => {
    const rates = [MIB, 1_024 * MIB].map((bytesPerSecond) => net.createRate({ bytesPerSecond, burst: 0 }));
    const { left, right } = await tunnel(net, { rates });
    const start = performance.now();
    ignore(send(left, pattern(256 * KIB)));
    await readAll(right);
    const ms = performance.now() - start;
    assert.ok(ms >= 200, `${ms} ms`);
  });

  test("accepts no more than its windows meanwhile, and is cancelled at once", async (net) => {
    const controller = new AbortController();
    const rates = [net.createRate({ bytesPerSecond: 1, burst: 0 })];
    const { left, right, done } = await tunnel(net, { rates, signal: controller.signal });
    await fill(left, pattern(256 * KIB), MORE_THAN_FITS);
    controller.abort();
    assert.equal((await within(done)).error?.code, "cancelled");
    await Promise.all([readToError(left, "reset"), readToError(right, "reset")]);
  });

  test("is not idle while it waits for its turn, and is afterwards", async (net) => {
    const rates = [net.createRate({ bytesPerSecond: 1_024, burst: 0 })];
    const { left, right, done } = await tunnel(net, { rates, idleTimeoutMs: 100 });
    await within(left.write(pattern(1_024)));
    await readExactly(right, 1_024);
    assert.equal((await within(done)).error?.code, "timed-out");
  });

  test("is shared with direct takers in turn", async (net) => {
    const rate = net.createRate({ bytesPerSecond: 100 * KIB, burst: 0 });
    const order: string[] = [];
    const start = performance.now();
    await within(Promise.all(["a", "b", "c"].map((name) => rate.take(1_000).then(() => order.push(name)))));
    assert.ok(performance.now() - start >= 15);
    assert.deepEqual(order, ["a", "b", "c"]);
    rate.close();
    await netError(rate.take(1), "closed");
  });
}

function wireTests({ test, adapter, pki }: Suite, sessions: Sessions): void {
  test("is refused for streams of another network", async (net) => {
    const other = adapter.create();
    try {
      const here = await listenTcp(net);
      const there = await listenTcp(other);
      const [a, b] = [await dialTcp(net, here.port), await dialTcp(other, there.port)];
      await netError(net.splice(a, b), "invalid", "closed");
    } catch (error) {
      // the numbers of two networks may coincide: the copy is then between others, or none; it must not be silent about it
      assert.fail(`a copy between two networks: ${error}`);
    } finally {
      other.close();
    }
  });

  /** A tunnel from a raw TCP client over a stream of a session to a raw TCP server, as proxy and agent make it. */
  const tunnel = async (net: Net, raw: Parameters<Parameters<typeof withRaw>[0]>[0]) => {
    const { client: agent, server: proxy } = await sessions.pair(net, await pki);
    const origin = await raw.serve();
    const { port, request } = await listenTcp(net);
    const client = await raw.connect(port);
    client.write("CONNECT x:1 HTTP/1.1\r\n\r\n");
    const { stream } = await request();
    const { a, b } = await openPair(proxy, agent);
    const target = await dialTcp(net, origin.port);
    const done = [net.splice(stream, a, { initialDataToA: bytes("200\r\n\r\n") }), net.splice(b, target)];
    return { agent, proxy, client: { socket: client, ...watch(client) }, origin: await origin.next(), done };
  };

  test("forwards ends through two relays, one direction after the other", async (net) => {
    await withRaw(async (raw) => {
      const { client, origin, done } = await tunnel(net, raw);
      const server = watch(origin);
      client.socket.end("question");
      assert.equal(await server.ended, "end");
      assert.equal(server.received(), "question");
      origin.end("answer");
      assert.equal(await client.ended, "end");
      assert.equal(client.received(), "200\r\n\r\nanswer");
      for (const { error } of await within(Promise.all(done))) assert.equal(error, undefined);
    });
  });

  test("forwards an RST through two relays, from the client to the server", async (net) => {
    await withRaw(async (raw) => {
      const { client, origin, done } = await tunnel(net, raw);
      const server = watch(origin);
      client.socket.resetAndDestroy();
      assert.equal(await server.ended, "ECONNRESET");
      for (const { error } of await within(Promise.all(done))) assert.equal(error?.code, "reset");
    });
  });

  test("forwards an RST through two relays, from the server to the client, after the bytes before it", async (net) => {
    await withRaw(async (raw) => {
      const { client, origin } = await tunnel(net, raw);
      origin.write("half of it");
      await within(
        (async () => {
          while (!client.received().endsWith("half of it")) await pause(5);
        })(),
      );
      origin.resetAndDestroy();
      assert.equal(await client.ended, "ECONNRESET");
    });
  });

  for (const side of ["agent", "proxy"] as const) {
    test(`shows a connection closed by the ${side} in a download and an upload as RST, not as an end`, async (net) => {
      await withRaw(async (raw) => {
        const all = await tunnel(net, raw);
        const server = watch(all.origin);
        all.client.socket.write("part of an upload");
        all.origin.write("part of a download");
        await within(
          (async () => {
            while (!all.client.received().endsWith("download") || !server.received().endsWith("upload")) await pause(5);
          })(),
        );
        all[side].close(1, "gone");
        assert.equal(await all.client.ended, "ECONNRESET");
        assert.equal(await server.ended, "ECONNRESET");
        for (const { error } of await within(Promise.all(all.done))) assert.ok(["reset", "closed"].includes(error!.code));
      });
    });

    test(`shows a connection closed by the ${side} as RST to an end that has finished its own direction`, async (net) => {
      await withRaw(async (raw) => {
        const { client, origin, ...ends } = await tunnel(net, raw);
        client.socket.end("the whole question");
        const server = watch(origin);
        assert.equal(await server.ended, "end");
        origin.write("part of an answer");
        await within(
          (async () => {
            while (!client.received().endsWith("answer")) await pause(5);
          })(),
        );
        ends[side].close(1, "gone");
        assert.match(await client.ended, /^ECONNRESET$/);
        await within(Promise.all(ends.done));
      });
    });
  }

  test("shows a network that becomes silent as RST on both sides within the idle timeout", async (net) => {
    await withRaw(async (raw) => {
      const transport = { idleTimeoutMs: 400, keepAliveMs: 100 };
      const relay: { cut: () => void } = { cut: () => {} };
      const all = await pki;
      const listener = await sessions.listen(net, { address: "127.0.0.1:0", tls: all.tls, alpn: ["x"], transport });
      const between = await raw.relay(sessions.kind, portOf(listener.address));
      relay.cut = () => between.pass = { toServer: false, toClient: false };
      const dial = sessions.connect(net, {
        host: "127.0.0.1",
        port: between.port,
        tls: { ca: all.authority.cert },
        alpn: ["x"],
        transport,
        timeoutMs: 5_000,
      });
      const [client, server] = await within(Promise.all([dial, listener.accept()]));
      const { a, b } = await openPair(client, server!);
      const origin = await raw.serve();
      const done = [
        net.splice(a, await dialTcp(net, origin.port)),
        net.splice(b, await dialTcp(net, origin.port)),
      ];
      const ends = [watch(await origin.next()), watch(await origin.next())];
      relay.cut();
      assert.deepEqual(await Promise.all(ends.map(({ ended }) => ended)), ["ECONNRESET", "ECONNRESET"]);
      for (const { error } of await within(Promise.all(done))) assert.equal(error?.code, "reset");
    });
  });

  test("transfers 20 MiB while a hundred other relays wait for their ends", async (net) => {
    const waiting: Promise<unknown>[] = [];
    const { client, server } = await sessions.pair(net, await pki, { transport: { maxPeerStreams: 200 } });
    const { port, request } = await listenTcp(net);
    const dig = async () => {
      const left = await dialTcp(net, port);
      await within(left.write(bytes("HEAD / HTTP/1.1\r\n\r\n")));
      const { a, b } = await openPair(client, server);
      const done = net.splice((await request()).stream, a);
      return { left, right: b, done };
    };
    for (let i = 0; i < 100; i++) {
      const { left, done } = await dig();
      ignore(left.write(bytes("x")));
      waiting.push(done);
    }
    const { left, right, done } = await dig();
    const data = pattern(20 << 20);
    const sent = left.write(data);
    assertSame(await readExactly(right, data.length), data);
    await within(sent);
    left.close();
    right.close();
    assert.equal((await within(done)).aToB, data.length);
    assert.ok(await isPending(Promise.race(waiting)));
  });
}
