// A short soak from a fixed seed; `deno task soak` is a long one.
import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { soak, summarize } from "../soak/soak.ts";

describe("an installation under mixed load", () => {
  it("has only the losses that each fault declares, no wrong byte, and nothing left at the end", { timeout: 180_000 }, async () => {
    const report = await soak({ ms: 16_000, least: 3, share: 0.25, seed: 9, log: () => {} });
    console.log(summarize(report));
    assert.deepEqual(report.violations, []);
    assert.ok(report.conversations.filter(({ failure }) => !failure).length > 20);
  });
});
