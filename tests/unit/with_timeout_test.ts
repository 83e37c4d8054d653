// Waiting with a timeout.
import assert from "node:assert/strict";
import { setImmediate } from "node:timers/promises";
import { describe, it } from "node:test";
import { withTimeout } from "../../shared/async/with_timeout.ts";

describe("within", () => {
  for (const ms of [2 ** 31 - 1, 2 ** 31, 2 ** 53, Infinity]) {
    it(`waits with a timeout of ${ms} milliseconds, which is more than timers support`, async () => {
      let finish!: (value: string) => void;
      const result = withTimeout(ms, new Promise<string>((resolve) => finish = resolve));
      for (let i = 0; i < 10; i++) await setImmediate();
      const early = new Promise<string>((resolve) => setTimeout(() => resolve("early"), 20));
      assert.equal(await Promise.race([result, early]), "early");
      finish("done");
      assert.equal(await result, "done");
    });
  }

  it("stops waiting after the timeout", async () => assert.equal(await withTimeout(1, new Promise(() => {})), undefined));
});
