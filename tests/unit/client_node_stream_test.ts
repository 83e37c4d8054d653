// A tunnel as a stream of node:stream: how its directions end, and backpressure.
import assert from "node:assert/strict";
import { Buffer } from "node:buffer";
import { once } from "node:events";
import type { Duplex as NodeDuplex } from "node:stream";
import { describe, it } from "node:test";
import { toNodeStream } from "../../client/node_stream.ts";
import { NetError } from "../../shared/net/errors.ts";
import type { Duplex } from "../../shared/net/stream.ts";
import { createMemoryNet } from "../../testing/net/memory.ts";
import { bytes, readTextExactly } from "../conformance/support.ts";

/** A stream over a connection, and the connection's other end. */
async function open(use: (stream: NodeDuplex, peer: Duplex) => Promise<void>): Promise<void> {
  const net = createMemoryNet();
  const listener = await net.listenTcp({ address: "peer.test:1", preamble: "none" });
  const stream = toNodeStream(await net.connectTcp({ host: "peer.test", port: 1, timeoutMs: 1_000 }));
  const [incoming] = (await listener.accept())!;
  await use(stream, incoming!.stream);
  stream.destroy();
  net.close();
}

const isReset = (error: unknown) => error instanceof NetError && error.code === "reset";

describe("a tunnel as a stream", () => {
  it("goes on reading after its own end, and ends for both without an error", async () => {
    await open(async (stream, peer) => {
      stream.end("question");
      assert.equal(await readTextExactly(peer, 8), "question");
      assert.equal(await peer.read(), null);
      await peer.write(bytes("answer"));
      peer.closeWrite();
      const parts: Buffer[] = [];
      stream.on("data", (part: Buffer) => parts.push(part));
      await once(stream, "close");
      assert.equal(Buffer.concat(parts).toString(), "answer");
    });
  });

  it("goes on writing after the peer's end", async () => {
    await open(async (stream, peer) => {
      peer.closeWrite();
      stream.resume();
      await once(stream, "end");
      stream.end("late");
      assert.equal(await readTextExactly(peer, 4), "late");
      assert.equal(await peer.read(), null);
    });
  });

  it("has an error if the peer resets it, after what came before", async () => {
    await open(async (stream, peer) => {
      const first = once(stream, "data");
      await peer.write(bytes("part"));
      assert.equal(String((await first)[0]), "part");
      peer.reset(1);
      await assert.rejects(once(stream, "end"), isReset);
    });
  });

  for (const error of [undefined, new Error("no")]) {
    it(`is reset for the peer if it is destroyed ${error ? "with an error" : "before its end"}`, async () => {
      await open(async (stream, peer) => {
        await new Promise<void>((resolve) => stream.write("part of it", () => resolve()));
        stream.once("error", () => {});
        stream.destroy(error);
        await assert.rejects(async () => {
          while (await peer.read() !== null);
        }, isReset);
      });
    });
  }

  it("takes no more than the peer reads", async () => {
    await open(async (stream, peer) => {
      const size = 1 << 20;
      let written = false;
      stream.write(Buffer.alloc(size), () => written = true);
      for (let received = 0; received < size;) {
        assert.ok(!written || received > size / 2, `written after ${received} bytes`);
        received += (await peer.read())!.length;
      }
      await peer.write(bytes("x"));
      assert.equal(String((await once(stream, "data"))[0]), "x");
      assert.ok(written);
    });
  });
});
