// The control stream: what each side reports to the other, and that only a peer that violates the protocol is closed.
import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { Control, type ControlEvents } from "../../shared/link/control.ts";
import { encodeFrame, FrameReader } from "../../shared/link/frame.ts";
import { CloseCode, controlFrames } from "../../shared/link/link.ts";
import { decodeMessage, encodeMessage, type Message } from "../../shared/link/message.ts";
import type { AgentSession } from "../../shared/net/session.ts";
import type { Duplex } from "../../shared/net/stream.ts";
import { isPending, within } from "../conformance/support.ts";
import { streamPair } from "../../testing/network.ts";

interface Side {
  control: Control;
  /** With which code this side closed the connection. */
  closedWith: () => Promise<number>;
  running: Promise<void>;
}

function side(stream: Duplex, events: ControlEvents = {}, now?: () => number): Side {
  const closed = Promise.withResolvers<number>();
  const connection = { close: (code: number) => closed.resolve(code), closed: closed.promise } as unknown as AgentSession;
  const control = new Control(connection, stream, now);
  return { control, closedWith: () => within(closed.promise), running: control.run(controlFrames(stream), events) };
}

function send(stream: Duplex, message: Message): Promise<void> {
  return stream.write(encodeFrame(encodeMessage(message)));
}

describe("a control stream", () => {
  it("reports a goaway and a move to the peer", async () => {
    const { near, far } = streamPair("session");
    const heard = Promise.withResolvers<unknown>();
    const moves: boolean[] = [];
    const moved = Promise.withResolvers<void>();
    const a = side(near, { onMoved: (found) => moves.push(found) === 2 && moved.resolve() });
    const b = side(far, { onGoaway: ({ reason, withinMs }) => heard.resolve([reason, withinMs]) });
    await a.control.goaway("bye", 40);
    assert.deepEqual(await within(heard.promise), ["bye", 40]);
    await b.control.moved(false);
    await b.control.moved(true);
    await within(moved.promise);
    assert.deepEqual(moves, [false, true]);
  });

  it("reports how long a ping has been unanswered, and sends no other meanwhile", async () => {
    const { near, far } = streamPair("session");
    let time = 0;
    const a = side(near, {}, () => time);
    const frames = new FrameReader(far);
    const answered = Promise.all([a.control.ping(), a.control.ping()]);
    const ping = decodeMessage((await within(frames.next()))!);
    assert.ok(ping?.type === "ping");
    time = 12;
    assert.equal(a.control.silentMs, 12);
    await send(far, { type: "pong", data: new Uint8Array(8).fill(9) }); // of no ping
    await send(far, { type: "pong", data: ping.data });
    await within(answered);
    assert.equal(a.control.silentMs, 0);
    void a.control.ping();
    const next = decodeMessage((await within(frames.next()))!);
    assert.ok(next?.type === "ping");
    assert.notDeepEqual(next.data, ping.data);
  });

  it("does not probe a peer that has just responded, and probes it again a little later", async () => {
    const { near, far } = streamPair("session");
    let time = 0;
    const a = side(near, {}, () => time);
    const frames = new FrameReader(far);
    a.control.pingIfDue();
    const first = decodeMessage((await within(frames.next()))!);
    assert.ok(first?.type === "ping");
    const answered = a.control.ping();
    await send(far, { type: "pong", data: first.data });
    await within(answered);
    time = 249;
    a.control.pingIfDue();
    const next = frames.next();
    assert.ok(await isPending(next));
    time = 250;
    a.control.pingIfDue();
    const second = decodeMessage((await within(next))!);
    assert.ok(second?.type === "ping");
  });

  it("answers pings with their content", async () => {
    const { near, far } = streamPair("session");
    side(near);
    const data = Uint8Array.of(1, 2, 3, 4, 5, 6, 7, 8);
    await send(far, { type: "ping", data });
    assert.deepEqual(decodeMessage((await within(new FrameReader(far).next()))!), { type: "pong", data });
  });

  it("ignores a frame of an unknown type", async () => {
    const { near, far } = streamPair("session");
    const moved = Promise.withResolvers<void>();
    side(near, { onMoved: () => moved.resolve() });
    await far.write(encodeFrame(Uint8Array.of(200, 1, 2)));
    await send(far, { type: "moved", found: true });
    await within(moved.promise);
  });

  const violations: Record<string, (far: Duplex) => unknown> = {
    "sends what is no message": (far) => far.write(encodeFrame(Uint8Array.of(2, 1))),
    "announces a frame that is too long": (far) => far.write(Uint8Array.of(0, 1, 0, 0)),
    "ends it": (far) => far.closeWrite(),
    "ends it within a frame": async (far) => {
      await far.write(Uint8Array.of(0, 0));
      far.closeWrite();
    },
    "resets it": (far) => far.reset(0),
    "sends more frames than there may be in a second": async (far) => {
      for (let i = 0; i <= 100; i++) await send(far, { type: "moved", found: true });
    },
  };
  for (const [what, violate] of Object.entries(violations)) {
    it(`closes the connection of a peer that ${what}, with 422`, async () => {
      const { near, far } = streamPair("session");
      const { closedWith, running } = side(near, {}, () => 0);
      await violate(far);
      assert.equal(await closedWith(), CloseCode.malformed);
      await within(running);
    });
  }

  it("accepts a number of frames in each second", async () => {
    const { near, far } = streamPair("session");
    let [time, count] = [0, 0];
    const done = Promise.withResolvers<void>();
    side(near, {
      onMoved: () => {
        if (++count % 50 === 0) time += 1_000;
        if (count === 300) done.resolve();
      },
    }, () => time);
    for (let i = 0; i < 300; i++) await send(far, { type: "moved", found: true });
    await within(done.promise);
  });

  it("leaves no ping unanswered when its connection ends", async () => {
    const { near, far } = streamPair("session");
    const { control } = side(near);
    const answered = control.ping();
    far.reset(0);
    await within(answered);
    await within(control.ping());
  });
});
