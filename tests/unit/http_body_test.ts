// Where bodies end, with their bytes in parts of any size.
import assert from "node:assert/strict";
import { Buffer } from "node:buffer";
import { describe, it } from "node:test";
import { type BodyEnd, ChunkedEnd, LengthEnd } from "../../shared/http/body.ts";
import { HeadError } from "../../shared/http/head.ts";

/** The number of bytes of `text`, read in parts of `size`, that belong to the body, and whether the body is complete. */
function follow(end: BodyEnd, text: string, size: number): { taken: number; done: boolean } {
  const bytes = Buffer.from(text, "latin1");
  let taken = 0;
  for (let at = 0; at < bytes.length && !end.done; at += size) taken += end.take(bytes.subarray(at, at + size));
  return { taken, done: end.done };
}

function isRefused(end: BodyEnd, text: string): boolean {
  try {
    follow(end, text, text.length);
    return false;
  } catch (error) {
    assert.ok(error instanceof HeadError);
    return true;
  }
}

const NEXT = "GET / HTTP/1.1\r\n\r\n";

describe("body", () => {
  it("of a known length ends there", () => {
    for (const size of [1, 3, 100]) {
      assert.deepEqual(follow(new LengthEnd(5), `hello${NEXT}`, size), { taken: 5, done: true });
      assert.deepEqual(follow(new LengthEnd(Infinity), NEXT, size), { taken: NEXT.length, done: false });
    }
    assert.equal(new LengthEnd(0).done, true);
    assert.deepEqual([new LengthEnd(0), new LengthEnd(1), new LengthEnd(Infinity)].map(({ mayEnd }) => mayEnd), [true, false, true]);
  });

  it("gives its content without the framing, however it is split", () => {
    const chunks = '5;a="b"\r\nhello\r\n1\r\n!\r\n0\r\nX-Sum: 1\r\n\r\n';
    for (const size of [1, 2, 7, 1_000]) {
      const contents = ([[new ChunkedEnd({ lenient: true }), chunks], [new LengthEnd(6), "hello!"]] as const).map(([end, body]) => {
        const bytes = Buffer.from(body + NEXT, "latin1");
        let content = "";
        for (let at = 0; at < bytes.length && !end.done; at += size) {
          end.take(bytes.subarray(at, at + size), (part) => content += Buffer.from(part).toString("latin1"));
        }
        return content;
      });
      assert.deepEqual(contents, ["hello!", "hello!"]);
    }
  });

  it("in chunks ends after its trailers, wherever the parts are split", () => {
    const bodies = [
      "0\r\n\r\n",
      "5\r\nhello\r\n0\r\n\r\n",
      '5;a=b;c="d"\r\nhello\r\n00\r\nX-Sum: 1\r\nY: 2\r\n\r\n',
      "5 \t\r\nhello\r\n1A\r\nabcdefghijklmnopqrstuvwxyz\r\n000\r\n\r\n",
      "3\r\n\r\n0\r\n0;x\r\n\r\n",
    ];
    for (const body of bodies) {
      for (const lenient of [false, true]) {
        for (const size of [1, 2, 3, 1_000]) {
          assert.deepEqual(
            follow(new ChunkedEnd({ lenient }), body + NEXT, size),
            { taken: body.length, done: true },
            JSON.stringify(body),
          );
          for (let cut = 0; cut < body.length; cut++) {
            assert.equal(follow(new ChunkedEnd({ lenient }), body.slice(0, cut), size).done, false, JSON.stringify(body.slice(0, cut)));
          }
        }
      }
    }
  });

  it("in chunks from a server may have lines that end with LF alone, and no empty line at its end", () => {
    const body = "5\nhello\n0\n\n";
    assert.deepEqual(follow(new ChunkedEnd({ lenient: true }), body + NEXT, 1), { taken: body.length, done: true });
    assert.ok(isRefused(new ChunkedEnd({ lenient: false }), body));
    // another recipient sees an extension that goes on, and so other chunks
    assert.ok(isRefused(new ChunkedEnd({ lenient: true }), `5;\nhello\r\n0\r\n\r\n`));
    for (
      const [text, mayEnd] of [["0\r\n", true], ["5\r\nhello\r\n0\r\n", true], ["5\r\nhello", false], ["0\r\nX: y\r\n", false], [
        "0",
        false,
      ]]
    ) {
      const end = new ChunkedEnd({ lenient: true });
      follow(end, String(text), 1);
      assert.equal(end.mayEnd, mayEnd, JSON.stringify(text));
    }
  });

  it("in chunks is refused if two parsers could find different ends", () => {
    const bodies = [
      ...["x\r\n", "\r\n", ";a\r\n", "-1\r\n", "+1\r\n", "0x1\r\n", " 1\r\n", "1 1\r\n", "1_0\r\n", "g\r\n"],
      ...["1\r\nab\r\n", "1\r\na\n\r\n", "1\r\na\r\r\n", "1\ra\r\n", "1;a\rb\r\n"],
      ...["20000000000000\r\n", `${"0".repeat(17)}\r\n`, `1;${"a".repeat(5_000)}`, `0\r\n${"A: b\r\n".repeat(20_000)}`],
    ];
    for (const body of bodies) {
      for (const lenient of [false, true]) {
        if (lenient && body === "1\r\na\n\r\n") continue; // an empty size line there, which is refused as well
        assert.ok(isRefused(new ChunkedEnd({ lenient }), body), JSON.stringify(body.slice(0, 50)));
      }
    }
    assert.ok(isRefused(new ChunkedEnd({ lenient: true }), "1\r\na\n\r\n"));
  });
});
