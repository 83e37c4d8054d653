// A short run of the fuzzer of `deno task fuzz` with a fixed seed, and every byte in every position of valid requests.
import assert from "node:assert/strict";
import fc from "fast-check";
import { describe, it } from "node:test";
import { FuzzedFront, GOOD, heads } from "./heads.ts";

describe("frontend", () => {
  it("decides correctly on every mutated request", async () => {
    const front = new FuzzedFront();
    const batches = fc.array(heads, { minLength: 100, maxLength: 100 });
    await fc.assert(fc.asyncProperty(batches, (batch) => front.check(batch)), { seed: 9112, numRuns: 500 });
    await front.close();
    // neither everything refused nor everything taken
    for (const count of Object.values(front.counts)) assert.ok(count > 500, JSON.stringify(front.counts));
  });

  it("decides correctly on valid requests with any byte replaced, added or removed", async () => {
    const front = new FuzzedFront();
    for (const good of [GOOD[0]!, GOOD[5]!]) {
      for (let at = 0; at <= good.length; at++) {
        const batch = [good.slice(0, at) + good.slice(at + 1), good.slice(0, at)];
        for (let byte = 0; byte < 256; byte++) {
          const character = String.fromCharCode(byte);
          batch.push(good.slice(0, at) + character + good.slice(at + 1), good.slice(0, at) + character + good.slice(at));
        }
        await front.check(batch);
      }
    }
    await front.close();
  });
});
