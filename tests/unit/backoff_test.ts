// The delays of a backoff.
import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { Backoff } from "../../shared/async/backoff.ts";

/** The bounds of four delays. */
function bounds(wait: (backoff: Backoff) => number, options: { initialMs?: number; maxMs?: number } = {}): [number, number][] {
  const [low, high] = [0, 1].map((random) => new Backoff({ ...options, random: () => random })) as [Backoff, Backoff];
  return Array.from({ length: 4 }, () => [wait(low), wait(high)]);
}

describe("Backoff", () => {
  it("doubles its delay up to the maximum, and chooses each between half of it and all of it", () => {
    assert.deepEqual(bounds((backoff) => backoff.next(), { initialMs: 100, maxMs: 500 }), [[50, 100], [100, 200], [200, 400], [250, 500]]);
  });

  it("starts with half a second", () => {
    assert.deepEqual(bounds((backoff) => backoff.next())[0], [250, 500]);
  });

  it("starts again with the initial delay after a reset", () => {
    const backoff = new Backoff({ random: () => 0 });
    for (let i = 0; i < 5; i++) backoff.next();
    backoff.reset();
    assert.equal(backoff.next(), 250);
  });

  it("waits a hundredth of a timeout, at any attempt, but at least the initial and at most the maximum delay", () => {
    for (const [outageMs, bound] of [[0, 500], [50_000, 500], [100_000, 1_000], [600_000, 6_000], [10_000_000, 30_000]]) {
      assert.deepEqual(bounds((backoff) => backoff.delayAfterTimeout(outageMs!)), Array(4).fill([bound! / 2, bound]), `${outageMs} ms`);
    }
  });

  it("is not increased by a timeout", () => {
    const backoff = new Backoff({ random: () => 0 });
    backoff.delayAfterTimeout(60_000);
    assert.equal(backoff.next(), 250);
  });
});
