// What every stream does, whatever carries it: order, ends, aborts, backpressure, closed handles.
import assert from "node:assert/strict";
import { describe } from "node:test";
import type { NetError } from "../../shared/net/errors.ts";
import type { Net } from "../../shared/net/net.ts";
import {
  assertSame,
  bytes,
  fill,
  ignore,
  isPending,
  type Kind,
  kindsOf,
  netError,
  openPair,
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
  STREAM_WINDOW,
  type Suite,
  within,
  writeToError,
} from "./support.ts";

/** More than any window, buffers of the system included. */
const MORE_THAN_FITS = 64 << 20;

export function duplexTests(suite: Suite): void {
  for (const kind of kindsOf(suite)) {
    describe(`a stream over ${kind.name}`, () => {
      orderTests(suite, kind);
      endTests(suite, kind);
      backpressureTests(suite, kind);
      resetTests(suite, kind);
      stopTests(suite, kind);
      closeTests(suite, kind);
    });
  }
  for (const sessions of sessionsOf(suite)) manyStreamTests(suite, sessions);
}

function orderTests({ test }: Suite, kind: Kind): void {
  test("returns first what was put back, to reads and to relays", async (net) => {
    const { a, b } = await kind.open(net);
    await within(a.write(bytes("GET / the rest")));
    assert.equal(await readTextExactly(b, 14), "GET / the rest");
    b.unread(bytes("the rest"));
    assert.equal(await readTextExactly(b, 8), "the rest");
    b.unread(bytes("rest"));
    b.unread(bytes("the "));
    const { a: c, b: d } = await kind.open(net);
    const relayed = net.splice(b, c);
    a.closeWrite();
    d.closeWrite();
    assert.equal(await readText(d), "the rest");
    assert.equal((await within(relayed)).aToB, 8);
    await within(a.read());
  });

  test("returns what was put back after the end", async (net) => {
    const { a, b } = await kind.open(net);
    await within(a.write(bytes("last")));
    a.closeWrite();
    assert.equal(await readText(b), "last");
    b.unread(bytes("ast"));
    assert.equal(await readText(b), "ast");
    b.close();
    assert.throws(() => b.unread(bytes("x")), (error: NetError) => error.code === "closed");
  });

  test("transfers bytes unchanged in both directions at once", async (net) => {
    const { a, b } = await kind.open(net);
    const [up, down] = [pattern(3 << 20, 1), pattern(3 << 20, 2)];
    const send = async (stream: typeof a, data: Uint8Array) => {
      for (let i = 0; i < data.length; i += 100_000) await within(stream.write(data.subarray(i, i + 100_000)));
      stream.closeWrite();
    };
    const [gotUp, gotDown] = await Promise.all([readAll(b), readAll(a), send(a, up), send(b, down)]);
    assertSame(gotUp, up);
    assertSame(gotDown, down);
  });

  test("acts in the order of the calls: write, write, closeWrite without a wait", async (net) => {
    const { a, b } = await kind.open(net);
    const writes = [a.write(bytes("one ")), a.write(bytes("two"))];
    a.closeWrite();
    assert.equal(await readText(b), "one two");
    await within(Promise.all(writes));
  });

  test("acts in the order of the calls: thousands of small writes without a wait", async (net) => {
    const { a, b } = await kind.open(net);
    const lines = Array.from({ length: 5_000 }, (_, i) => `${i}\n`);
    const writes = lines.map((line) => a.write(bytes(line)));
    a.closeWrite();
    assert.equal(await readText(b), lines.join(""));
    await within(Promise.all(writes));
  });

  test("acts in the order of the calls: a write and then close", async (net) => {
    const { a, b } = await kind.open(net);
    const data = pattern(1 << 20);
    ignore(a.write(data));
    a.close();
    assertSame(await readAll(b), data);
  });

  test("resolves several reads in the order of the calls", async (net) => {
    const { a, b } = await kind.open(net);
    const reads = [a.read(), a.read(), a.read()];
    await within(b.write(bytes("one")));
    assert.deepEqual(await within(reads[0]!), bytes("one"));
    await within(b.write(bytes("two")));
    assert.deepEqual(await within(reads[1]!), bytes("two"));
    b.closeWrite();
    assert.equal(await within(reads[2]!), null);
  });

  test("copies what is written before write returns", async (net) => {
    const { a, b } = await kind.open(net);
    const data = bytes("before");
    const write = a.write(data);
    data.fill(0);
    assert.equal(await readTextExactly(b, 6), "before");
    await within(write);
  });

  test("ignores an empty write", async (net) => {
    const { a, b } = await kind.open(net);
    await within(a.write(new Uint8Array()));
    await within(a.write(bytes("x")));
    a.closeWrite();
    assert.equal(await readText(b), "x");
  });

  test("shows the peer as host:port", async (net) => {
    const { a, b } = await kind.open(net);
    for (const { remote } of [a, b]) assert.match(remote, /^127\.0\.0\.1:[1-9][0-9]*$/);
    assert.notEqual(portOf(a.remote), portOf(b.remote));
  });
}

function endTests({ test }: Suite, kind: Kind): void {
  for (const side of ["dialling", "accepting"] as const) {
    const ends = async (net: Net) => {
      const { a, b } = await kind.open(net);
      return side === "dialling" ? [a, b] as const : [b, a] as const;
    };

    test(`continues in the other direction when the ${side} side has finished its own`, async (net) => {
      const [first, second] = await ends(net);
      await within(first.write(bytes("request")));
      first.closeWrite();
      assert.equal(await readText(second), "request");
      const answer = pattern(1 << 20);
      const answered = readAll(first);
      await within(second.write(bytes("")));
      for (let i = 0; i < answer.length; i += 1 << 16) await within(second.write(answer.subarray(i, i + (1 << 16))));
      second.closeWrite();
      assertSame(await answered, answer);
    });

    test(`ends completely when the ${side} side finishes first and the other later`, async (net) => {
      const [first, second] = await ends(net);
      first.closeWrite();
      assert.equal(await within(second.read()), null);
      second.closeWrite();
      assert.equal(await within(first.read()), null);
      assert.equal(await within(second.read()), null);
    });
  }

  test("reports the end again to another read", async (net) => {
    const { a, b } = await kind.open(net);
    a.closeWrite();
    assert.equal(await within(b.read()), null);
    assert.equal(await within(b.read()), null);
  });

  test("rejects a write after closeWrite with closed", async (net) => {
    const { a } = await kind.open(net);
    a.closeWrite();
    await netError(a.write(bytes("x")), "closed");
    a.closeWrite();
  });
}

function backpressureTests({ test }: Suite, kind: Kind): void {
  test("accepts no more than its windows without a reader, and loses nothing of it", async (net) => {
    const { a, b } = await kind.open(net);
    const block = pattern(64 * 1024);
    const { taken, waiting } = await fill(a, block, MORE_THAN_FITS);
    if (kind.isSession) assert.ok(taken <= 2 * STREAM_WINDOW, `${taken} bytes were taken with a window of ${STREAM_WINDOW}`);
    a.closeWrite();
    const got = await readAll(b);
    await within(waiting);
    assert.equal(got.length, taken + block.length);
    for (let i = 0; i < got.length; i += block.length) assertSame(got.subarray(i, i + block.length), block);
  });

  test("stops no other stream while its reader is slow", async (net) => {
    const [slow, other] = [await kind.open(net), await kind.open(net)];
    const { waiting } = await fill(slow.a, pattern(64 * 1024), MORE_THAN_FITS);
    const data = pattern(1 << 20);
    const sent = other.a.write(data);
    assertSame(await readExactly(other.b, data.length), data);
    await within(sent);
    await within(slow.b.write(bytes("the other direction")));
    assert.equal(await readTextExactly(slow.a, 19), "the other direction");
    assert.ok(await isPending(waiting));
  });
}

function resetTests({ test }: Suite, kind: Kind): void {
  test("reports a reset without a read, until the signal is aborted", async (net) => {
    const { a, b } = await kind.open(net);
    const controller = new AbortController();
    const cancelled = netError(b.whenReset(controller.signal), "cancelled");
    controller.abort();
    await cancelled;
    const reset = b.whenReset(new AbortController().signal);
    await within(a.write(bytes("unread")));
    assert.ok(await isPending(reset));
    a.reset(77);
    a.stopRead(77);
    assert.ok(["reset", "stopped"].includes((await within(reset)).code));
  });

  for (const end of ["stopRead", "close", "reset"] as const) {
    test(`reports a reset after its peer has finished, if a read was pending and ${end} follows`, async (net) => {
      for (let round = 0; round < 20; round++) { // the read ends on a thread of its own: which comes first is chance
        const { a, b } = await kind.open(net);
        const read = netError(a.read(), "closed");
        a.closeWrite();
        assert.equal(await within(b.read()), null);
        const reset = b.whenReset(new AbortController().signal);
        a.reset(77);
        if (end === "stopRead" || kind.isSession) a.stopRead(77);
        if (end === "close") a.close();
        if (end === "reset") a.reset(77);
        assert.ok(["reset", "stopped"].includes((await within(reset)).code));
        await read;
      }
    });
  }

  test("shows a reset as a reset, never as an end, also when read again", async (net) => {
    const { a, b } = await kind.open(net);
    await within(a.write(bytes("half of ")));
    a.reset(42);
    for (let i = 0; i < 3; i++) {
      const error = await readToError(b, "reset");
      assert.equal(error.remote, true);
      assert.equal(error.appCode, kind.isSession ? 42 : undefined);
    }
  });

  test("rejects a pending read at once on a reset", async (net) => {
    const { a, b } = await kind.open(net);
    const read = netError(b.read(), "reset");
    a.reset(1);
    await read;
  });

  test("drops a pending write when it is reset", async (net) => {
    const { a, b } = await kind.open(net);
    const { waiting } = await fill(a, pattern(64 * 1024), MORE_THAN_FITS);
    const told = netError(waiting, "closed");
    a.reset(1);
    await told;
    await netError(a.write(bytes("x")), "closed");
    await readToError(b, "reset");
  });

  test("stays reset when it is closed afterwards", async (net) => {
    const { a, b } = await kind.open(net);
    await within(a.write(bytes("x")));
    a.reset(7);
    a.close();
    await readToError(b, "reset");
  });

  if (kind.isSession) {
    test("continues in the other direction after a reset of one", async (net) => {
      const { a, b } = await kind.open(net);
      a.reset(9);
      assert.equal((await readToError(b, "reset")).appCode, 9);
      await within(b.write(bytes("still here")));
      b.closeWrite();
      assert.equal(await readText(a), "still here");
    });

    test("transfers the code 0 and large codes", async (net) => {
      const [first, second] = [await kind.open(net), await kind.open(net)];
      first.a.reset(0);
      second.a.reset(0xffff_fff0);
      assert.equal((await readToError(first.b, "reset")).appCode, 0);
      assert.equal((await readToError(second.b, "reset")).appCode, 0xffff_fff0);
    });
  } else {
    test("aborts both directions, because TCP has no reset of one", async (net) => {
      const { a, b } = await kind.open(net);
      const read = netError(a.read(), "closed");
      a.reset(1);
      await read;
      await readToError(b, "reset");
      await writeToError(b, "reset", "stopped");
    });
  }
}

function stopTests({ test }: Suite, kind: Kind): void {
  test("rejects pending and later reads at once with closed when reading is stopped", async (net) => {
    const { a, b } = await kind.open(net);
    const reads = [netError(a.read(), "closed"), netError(a.read(), "closed")];
    a.stopRead(5);
    await Promise.all(reads);
    await netError(a.read(), "closed");
    await within(a.write(bytes("still writing")));
    a.closeWrite();
    assert.equal(await readText(b), "still writing");
  });

  if (!kind.isSession) return;

  test("tells the writer that no more is read, with the reader's code", async (net) => {
    const { a, b } = await kind.open(net);
    b.stopRead(33);
    const error = await writeToError(a, "stopped");
    assert.equal(error.appCode, 33);
    assert.equal(error.remote, true);
    assert.equal((await netError(a.write(bytes("again")), "stopped")).appCode, 33);
  });

  test("tells a writer that waits for its window that no more is read", async (net) => {
    const { a, b } = await kind.open(net);
    const { waiting } = await fill(a, pattern(64 * 1024), MORE_THAN_FITS);
    const told = netError(waiting, "stopped");
    b.stopRead(34);
    assert.equal((await told).appCode, 34);
  });

  test("continues in the other direction after stopRead", async (net) => {
    const { a, b } = await kind.open(net);
    b.stopRead(1);
    await writeToError(a, "stopped");
    await within(b.write(bytes("answer")));
    b.closeWrite();
    assert.equal(await readText(a), "answer");
  });
}

function closeTests({ test }: Suite, kind: Kind): void {
  test("sends bytes written before close, and then its end", async (net) => {
    const { a, b } = await kind.open(net);
    const data = pattern(8 << 20);
    ignore(a.write(data)); // more than is taken at once
    a.close();
    assertSame(await readAll(b), data);
  });

  test("rejects a pending read with closed when it is closed", async (net) => {
    const { a } = await kind.open(net);
    const read = netError(a.read(), "closed");
    a.close();
    await read;
  });

  test("rejects every call on a closed handle with closed, and ignores another close", async (net) => {
    const { a, b } = await kind.open(net);
    a.close();
    await netError(a.read(), "closed");
    await netError(a.write(bytes("x")), "closed");
    await netError(net.splice(a, b), "closed");
    a.closeWrite();
    a.stopRead(1);
    a.reset(1);
    a.close();
    assert.equal(await within(b.read()), null, "a reset after close must not undo the end");
  });

  test("lets a peer that still sends read the bytes written before close", async (net) => {
    const { a, b } = await kind.open(net);
    const sending = a.write(pattern(128 * 1024));
    ignore(sending);
    await within(b.read()); // it is on its way
    ignore(b.write(bytes("no, thank you")));
    b.close();
    assert.equal(await readText(a), "no, thank you");
  });

  test("stops a peer that continues to send after close", async (net) => {
    const { a, b } = await kind.open(net);
    b.close();
    assert.equal(await within(a.read()), null);
    const error = await writeToError(a, "stopped", "reset");
    if (kind.isSession) assert.equal(error.code, "stopped");
  });
}

function manyStreamTests({ test, pki }: Suite, sessions: Sessions): void {
  describe(`many streams of one ${sessions.name} session`, () => {
    test("do not stop the 65th if 64 are not read", async (net) => {
      // together more than the connection's send window of 32 MiB
      const transport = { streamWindow: 1 << 20, maxPeerStreams: 100 };
      const { client, server } = await sessions.pair(net, await pki, { transport }, { transport });
      const block = pattern(1 << 20);
      const stalled = [];
      for (let i = 0; i < 64; i++) {
        const { a } = await openPair(client, server);
        stalled.push(a.write(block), a.write(block)); // the second one waits
      }
      ignore(...stalled);
      await pause(100);
      const { a, b } = await openPair(client, server);
      const data = pattern(4 << 20, 3);
      const sent = a.write(data);
      assertSame(await readExactly(b, data.length), data);
      await within(sent);
    });
  });
}
