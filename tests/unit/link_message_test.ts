// Frames and control messages: encoding and decoding with bytes in any fragments, and what is refused.
import assert from "node:assert/strict";
import fc from "fast-check";
import { describe, it } from "node:test";
import { encodeFrame, FrameError, FrameReader, MAX_FRAME } from "../../shared/link/frame.ts";
import {
  checkLabels,
  decodeMessage,
  encodeMessage,
  type Hello,
  MAX_MESSAGE,
  MAX_SPREAD_MS,
  type Message,
  MessageError,
} from "../../shared/link/message.ts";

/** A source of these chunks. */
function source(chunks: readonly Uint8Array[]): { read(): Promise<Uint8Array | null> } {
  const left = [...chunks];
  return { read: () => Promise.resolve(left.shift() ?? null) };
}

async function framesOf(chunks: readonly Uint8Array[], limit?: number): Promise<number[][]> {
  const reader = new FrameReader(source(chunks), limit);
  const frames = [];
  for (let frame; (frame = await reader.next()) !== null;) frames.push([...frame]);
  return frames;
}

const concat = (parts: readonly Uint8Array[]) => new Uint8Array(parts.flatMap((part) => [...part]));
const byteByByte = (bytes: Uint8Array) => [...bytes].map((byte) => Uint8Array.of(byte));
const typed = (type: number, text: string) => Uint8Array.of(type, ...new TextEncoder().encode(text));

const HELLO: Hello = { version: "reverse-http/1.2.3", instance: "a-1", host: "höst", labels: { "app/zone": "eu west", b: "" } };
const MESSAGES: Message[] = [
  { type: "hello", hello: HELLO },
  { type: "hello", hello: { ...HELLO, features: ["udp", "later-1"] } },
  { type: "hello", hello: { ...HELLO, publish: [{ listen: ":5432", to: "db:5432" }, { later: [1] }] } },
  { type: "goaway", reason: "shutting down", withinMs: 250 },
  { type: "ping", data: new Uint8Array(8).fill(7) },
  { type: "pong", data: new Uint8Array(8) },
  { type: "moved", found: true },
  { type: "moved", found: false },
  { type: "credentials", credentials: new TextEncoder().encode("a.b.c") },
  { type: "pins", pins: [`sha256/${"A".repeat(43)}=`, `sha256/${"b".repeat(43)}=`] },
];

describe("frames", () => {
  it("are decoded as they were encoded, wherever they are split", async () => {
    await fc.assert(fc.asyncProperty(
      fc.array(fc.uint8Array({ maxLength: 40 }), { maxLength: 6 }),
      fc.array(fc.nat(20), { minLength: 1, maxLength: 8 }),
      async (payloads, sizes) => {
        const bytes = concat(payloads.map(encodeFrame));
        const chunks = [];
        for (let at = 0, i = 0; at < bytes.length; i++) {
          const size = sizes[i % sizes.length]! + 1;
          chunks.push(bytes.subarray(at, at += size));
        }
        const wanted = payloads.map((payload) => [...payload]);
        assert.deepEqual(await framesOf(chunks), wanted);
        assert.deepEqual(await framesOf(byteByByte(bytes)), wanted);
      },
    ));
  });

  it("that are too long are refused by their length field alone", async () => {
    await assert.rejects(framesOf([Uint8Array.of(0, 1, 0, 1)]), FrameError);
    await assert.rejects(framesOf([Uint8Array.of(0, 0, 0, 9)], 8), FrameError);
    assert.throws(() => encodeFrame(new Uint8Array(MAX_FRAME + 1)), FrameError);
  });

  it("that are truncated are refused, in the length and in the payload", async () => {
    for (const cut of [1, 3, 4, 6]) await assert.rejects(framesOf([encodeFrame(new Uint8Array(3)).subarray(0, cut)]), FrameError);
  });
});

describe("control messages", () => {
  it("are decoded as they were encoded", () => {
    for (const message of MESSAGES) assert.deepEqual(decodeMessage(encodeMessage(message)), message);
  });

  it("of an unknown type are ignored, whatever their content", () => {
    fc.assert(fc.property(fc.integer({ min: 7, max: 255 }), fc.uint8Array(), (type, body) => {
      assert.equal(decodeMessage(Uint8Array.of(type, ...body)), undefined);
    }));
  });

  it("are refused with a short error, however long the name of a label is", () => {
    const hello = typed(0, JSON.stringify({ instance: "a", labels: { ["k".repeat(10_000)]: "v" } }));
    assert.throws(() => decodeMessage(hello), ({ message }: Error) => message.length < 300 && message.includes('"kkk'));
  });

  it("are decoded or refused, whatever their content", () => {
    const json = fc.json().map((text) => new TextEncoder().encode(text));
    fc.assert(
      fc.property(fc.nat(7), fc.oneof(fc.uint8Array({ maxLength: 200 }), json), (type, body) => {
        try {
          const message = decodeMessage(Uint8Array.of(type, ...body));
          if (message) assert.deepEqual(decodeMessage(encodeMessage(message)), message);
        } catch (error) {
          assert.ok(error instanceof MessageError, String(error));
        }
      }),
      { numRuns: 2_000 },
    );
  });

  it("with unknown members are decoded without them", () => {
    assert.deepEqual(decodeMessage(typed(0, '{"instance":"a","later":[1]}')), {
      type: "hello",
      hello: { version: "", instance: "a", host: "", labels: {} },
    });
    assert.deepEqual(decodeMessage(typed(1, "{}")), { type: "goaway", reason: "", withinMs: 0 });
  });

  it("cannot request a delay above the maximum", () => {
    assert.deepEqual(decodeMessage(typed(1, '{"withinMs":1e99}')), { type: "goaway", reason: "", withinMs: MAX_SPREAD_MS });
  });

  const refused: Record<string, Uint8Array> = {
    "nothing": new Uint8Array(0),
    "no JSON": typed(0, "{"),
    "an array": typed(0, "[]"),
    "null": typed(1, "null"),
    "what is no UTF-8": Uint8Array.of(0, 0xff),
    "a hello without an instance": typed(0, "{}"),
    "an instance with a line break": typed(0, '{"instance":"a\\nb"}'),
    "a version of another type": typed(0, '{"instance":"a","version":1}'),
    "a version that is long": typed(0, JSON.stringify({ instance: "a", version: "x".repeat(129) })),
    "a host with a line break": typed(0, '{"instance":"a","host":"x\\ny"}'),
    "labels that are a list": typed(0, '{"instance":"a","labels":["x"]}'),
    "features that are no list": typed(0, '{"instance":"a","features":{"udp":true}}'),
    "a feature with a space": typed(0, '{"instance":"a","features":["u dp"]}'),
    "too many features": typed(0, JSON.stringify({ instance: "a", features: new Array(33).fill("udp") })),
    "a publish that is no list": typed(0, '{"instance":"a","publish":{"listen":":1"}}'),
    "a publish of a text": typed(0, '{"instance":"a","publish":[":1"]}'),
    "too much to publish": typed(0, JSON.stringify({ instance: "a", publish: new Array(17).fill({}) })),
    "a label that is no text": typed(0, '{"instance":"a","labels":{"x":1}}'),
    "a label without a name": typed(0, '{"instance":"a","labels":{"":"x"}}'),
    "a reason with an escape sequence": typed(1, '{"reason":"\\u001b[2J"}'),
    "a negative wait": typed(1, '{"withinMs":-1}'),
    "a ping that is short": Uint8Array.of(2, 1, 2, 3),
    "a pong that is long": new Uint8Array(10).fill(3, 0, 1),
    "more than the limit": new Uint8Array(MAX_MESSAGE + 1).fill(9),
  };
  for (const [what, payload] of Object.entries(refused)) {
    it(`that are ${what} are refused`, () => assert.throws(() => decodeMessage(payload), MessageError));
  }
});

describe("labels", () => {
  it("are few, short, and have names", () => {
    assert.equal(checkLabels({ "a.b/c-d": "any text, really", b: "" }), undefined);
    assert.match(checkLabels({ "-a": "" })!, /"-a" is not a valid label name/);
    assert.match(checkLabels({ a: "x".repeat(256) })!, /label a has a value/);
    assert.match(checkLabels(Object.fromEntries(Array.from({ length: 33 }, (_, i) => [`l${i}`, ""])))!, /33 labels/);
  });
});
