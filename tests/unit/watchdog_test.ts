// The watchdog: says that the program did not get to run, and how long, and nothing else.
import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { startWatchdog } from "../../shared/watchdog.ts";
import { LogBook } from "../support/memory.ts";

describe("the watchdog", () => {
  it("logs and counts a stall when it is over, once", async () => {
    const log = new LogBook();
    let ahead = 0;
    const stalls: number[] = [];
    const stalled = Promise.withResolvers<void>();
    const watchdog = startWatchdog({
      log,
      now: () => performance.now() + ahead,
      onStall: (ms) => {
        stalls.push(ms);
        stalled.resolve();
      },
    });
    ahead = 60_000;
    await stalled.promise;
    assert.ok(stalls[0]! > 58_000, `${stalls}`);
    assert.equal(log.logged("stood still").length, 1);
    watchdog.close();
  });
});
