// The writer of log lines: in order, complete, and without blocking the program if the reader is slow.
import assert from "node:assert/strict";
import { closeSync, openSync, readFileSync, type write } from "node:fs";
import { describe, it } from "node:test";
import { createLineWriter } from "../../shared/log/writer.ts";
import { Folder } from "../../testing/programs.ts";

type Callback = (error: NodeJS.ErrnoException | null, count: number) => void;

/** A descriptor whose writes the test completes, one at a time. */
class FakeDescriptor {
  readonly #calls: { bytes: Uint8Array; callback: Callback }[] = [];
  #called: () => void = () => {};
  text = "";
  readonly writeTo = ((_: number, bytes: Uint8Array, callback: Callback) => {
    this.#calls.push({ bytes, callback });
    this.#called();
  }) as unknown as typeof write;

  get pending(): number {
    return this.#calls.length;
  }

  /** Completes the next write: with an error, or with the number of bytes written. */
  async answer(result: { code: string } | { take?: number } = {}): Promise<void> {
    if (this.#calls.length === 0) await new Promise<void>((resolve) => this.#called = resolve);
    const { bytes, callback } = this.#calls.shift()!;
    if ("code" in result) return callback(Object.assign(new Error(result.code), { code: result.code }), 0);
    const taken = bytes.subarray(0, result.take ?? bytes.length);
    this.text += new TextDecoder().decode(taken);
    callback(null, taken.length);
  }
}

describe("line writer", () => {
  it("writes every line to its descriptor, in order", async () => {
    using folder = new Folder();
    const file = folder.write("log", "");
    const descriptor = openSync(file, "a");
    const lines = createLineWriter(descriptor);
    const expected = Array.from({ length: 5_000 }, (_, i) => `line ${i} \u20ac\n`);
    for (const line of expected) lines.write(line);
    await lines.flush(30_000);
    closeSync(descriptor);
    assert.equal(readFileSync(file, "utf8"), expected.join(""));
  });

  it("has one write at a time, and combines later lines in the next one", async () => {
    const fake = new FakeDescriptor();
    const lines = createLineWriter(2, { writeTo: fake.writeTo });
    for (const line of ["a\n", "b\n", "c\n"]) lines.write(line);
    assert.equal(fake.pending, 1);
    await fake.answer();
    await fake.answer();
    await lines.flush(30_000);
    assert.equal(fake.text, "a\nb\nc\n");
    assert.equal(fake.pending, 0);
  });

  it("writes whole lines at once, so that those of other processes do not come in between", async () => {
    const writes: string[] = [];
    const writeTo = ((_: number, bytes: Uint8Array, callback: Callback) => {
      writes.push(new TextDecoder().decode(bytes));
      callback(null, bytes.length);
    }) as unknown as typeof write;
    const lines = createLineWriter(2, { writeTo, isShared: true });
    const expected = ["first", "\u20ac".repeat(700), "x".repeat(1_900), "y".repeat(5_000), "last"].map((text) => `${text}\n`);
    for (const line of expected) lines.write(line);
    await lines.flush(30_000);
    assert.deepEqual(writes, [expected[0], expected[1]! + expected[2]!, expected[3], expected[4]]);
  });

  it("continues after a partial write and after EAGAIN", async () => {
    const fake = new FakeDescriptor();
    const lines = createLineWriter(2, { writeTo: fake.writeTo });
    lines.write("abcdef\n");
    await fake.answer({ take: 2 });
    await fake.answer({ code: "EAGAIN" });
    await fake.answer({ code: "EINTR" });
    await fake.answer({ take: 3 });
    await fake.answer();
    await lines.flush(30_000);
    assert.equal(fake.text, "abcdef\n");
  });

  it("buffers up to its limit for a slow reader, and reports the number of lost lines", async () => {
    const fake = new FakeDescriptor();
    const onLoss = (count: number) => lines.write(`lost ${count}\n`);
    const lines = createLineWriter(2, { writeTo: fake.writeTo, maxBuffered: 20, onLoss });
    lines.write("first\n"); // under way
    for (let i = 0; i < 1_000; i++) lines.write(`line ${i}\n`);
    for (let i = 0; i < 3; i++) await fake.answer();
    await lines.flush(30_000);
    assert.equal(fake.text, "first\nline 0\nline 1\nlost 998\n");
    lines.write("again\n");
    await fake.answer();
    assert.ok(fake.text.endsWith("lost 998\nagain\n"));
  });

  it("survives a reader that has gone", async () => {
    const fake = new FakeDescriptor();
    const lines = createLineWriter(2, { writeTo: fake.writeTo });
    for (const code of ["EPIPE", "ENOSPC", "EBADF"]) {
      lines.write("lost\n");
      await fake.answer({ code });
      await lines.flush(30_000);
    }
    lines.write("back\n");
    await fake.answer();
    assert.equal(fake.text, "back\n");
  });

  it("reports the lines lost to a full disk, and starts a new line after a truncated one", async () => {
    const fake = new FakeDescriptor();
    const lost: number[] = [];
    const lines = createLineWriter(2, { writeTo: fake.writeTo, onLoss: (count) => lost.push(count) });
    lines.write("whole\n");
    await fake.answer();
    for (const line of ["a\n", "cut short\n", "c\n"]) lines.write(line);
    await fake.answer({ take: 5 });
    await fake.answer({ code: "ENOSPC" });
    await lines.flush(30_000);
    lines.write("d\n");
    await fake.answer({ code: "ENOSPC" });
    await lines.flush(30_000);
    assert.deepEqual(lost, []);
    lines.write("e\n");
    await fake.answer();
    await lines.flush(30_000);
    assert.deepEqual(lost, [3]);
    assert.equal(fake.text, "whole\na\ncut\ne\n");
  });

  it("waits for a reader that never reads up to the timeout", async () => {
    const fake = new FakeDescriptor();
    const lines = createLineWriter(2, { writeTo: fake.writeTo });
    lines.write("never\n");
    await lines.flush(1);
    assert.equal(fake.text, "");
  });
});
