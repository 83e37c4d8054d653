// The proxy's memory of agents that could not reach a destination.
import assert from "node:assert/strict";
import { describe, it } from "node:test";
import type { ConnectedAgent } from "../../proxy/agents/registry.ts";
import { DestinationFailures } from "../../proxy/agents/destination_failures.ts";

const [A, B] = [{} as ConnectedAgent, {} as ConnectedAgent];

describe("failures", () => {
  it("are remembered for each agent and destination, for ten seconds and twice as long after each further one, up to a minute", () => {
    let now = 0;
    const failures = new DestinationFailures(() => now);
    for (const seconds of [10, 20, 40, 60, 60]) {
      failures.failed(A, "a:1");
      now += seconds * 1_000 - 1;
      assert.equal(failures.isAvoided(A, "a:1"), true, `after ${seconds} s`);
      assert.deepEqual([failures.isAvoided(B, "a:1"), failures.isAvoided(A, "a:2")], [false, false]);
      now += 1;
      assert.equal(failures.isAvoided(A, "a:1"), false, `after ${seconds} s`);
    }
  });

  it("are retried by one request at a time once they have expired", () => {
    let now = 0;
    const failures = new DestinationFailures(() => now);
    failures.failed(A, "a:1");
    now = 10_000;
    failures.started(A, "a:1");
    assert.equal(failures.isAvoided(A, "a:1"), true);
    failures.succeeded(A, "a:1");
    assert.equal(failures.isAvoided(A, "a:1"), false);
  });

  it("are forgotten, the oldest first, above 10,000", () => {
    const failures = new DestinationFailures(() => 0);
    for (let i = 0; i < 10_001; i++) failures.failed(A, `a:${i}`);
    assert.equal(failures.size, 10_000);
    assert.deepEqual([failures.isAvoided(A, "a:0"), failures.isAvoided(A, "a:1")], [false, true]);
  });
});
