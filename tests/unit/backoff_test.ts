// How long waits are.
import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { Backoff } from "../../shared/async/backoff.ts";

/** The bounds of four waits. */
function bounds(wait: (backoff: Backoff) => number, options: { initialMs?: number; maxMs?: number } = {}): [number, number][] {
  const [low, high] = [0, 1].map((random) => new Backoff({ ...options, random: () => random })) as [Backoff, Backoff];
  return Array.from({ length: 4 }, () => [wait(low), wait(high)]);
}

describe("Backoff", () => {
  it("doubles its waits up to the longest, and makes each between half and the whole of that", () => {
    assert.deepEqual(bounds((backoff) => backoff.next(), { initialMs: 100, maxMs: 500 }), [[50, 100], [100, 200], [200, 400], [250, 500]]);
  });

  it("begins with half a second", () => {
    assert.deepEqual(bounds((backoff) => backoff.next())[0], [250, 500]);
  });

  it("begins anew when it is reset", () => {
    const backoff = new Backoff({ random: () => 0 });
    for (let i = 0; i < 5; i++) backoff.next();
    backoff.reset();
    assert.equal(backoff.next(), 250);
  });

  it("waits a hundredth of a silence, however often, and no less than at first and no more than the longest", () => {
    for (const [outageMs, bound] of [[0, 500], [50_000, 500], [100_000, 1_000], [600_000, 6_000], [10_000_000, 30_000]]) {
      assert.deepEqual(bounds((backoff) => backoff.delayAfterTimeout(outageMs!)), Array(4).fill([bound! / 2, bound]), `${outageMs} ms`);
    }
  });

  it("is not lengthened by a silence", () => {
    const backoff = new Backoff({ random: () => 0 });
    backoff.delayAfterTimeout(60_000);
    assert.equal(backoff.next(), 250);
  });
});
