// Where log lines go: in order and whole, and at no price to the program when nobody reads them.
import assert from "node:assert/strict";
import { closeSync, openSync, readFileSync, type write } from "node:fs";
import { describe, it } from "node:test";
import { createLineWriter } from "../../shared/log/writer.ts";
import { Folder } from "../../testing/programs.ts";

type Callback = (error: NodeJS.ErrnoException | null, count: number) => void;

/** A descriptor that does what the test tells it, one write at a time. */
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

  /** Answers the next write: with an error, or after taking so many bytes. */
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

  it("has one write under way at a time, with all that came meanwhile in the next", async () => {
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

  it("goes on where a write took less than all, or could take nothing yet", async () => {
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

  it("keeps no more than its limit for a reader that is slow, and tells how many lines were lost", async () => {
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

  it("outlives a reader that is gone", async () => {
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

  it("tells how many lines a disk that was full took away, and begins a new line after one that was cut short", async () => {
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

  it("waits for a reader that never reads only as long as it is told", async () => {
    const fake = new FakeDescriptor();
    const lines = createLineWriter(2, { writeTo: fake.writeTo });
    lines.write("never\n");
    await lines.flush(1);
    assert.equal(fake.text, "");
  });
});
