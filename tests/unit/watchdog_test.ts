// The watchdog: reports stalls of the program or its network and their duration, and tells the supervisor that both run.
import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { startWatchdog } from "../../shared/service/watchdog.ts";
import { LogBook, Queue } from "../../testing/network.ts";

describe("the watchdog", () => {
  it("logs and counts a stall when it is over, once", async () => {
    const log = new LogBook();
    let ahead = 0;
    const stalls: number[] = [];
    const stalled = Promise.withResolvers<void>();
    const watchdog = startWatchdog({
      log,
      now: () => performance.now() + ahead,
      onStall: (what, ms) => {
        assert.equal(what, "program");
        stalls.push(ms);
        stalled.resolve();
      },
    });
    ahead = 60_000;
    await stalled.promise;
    assert.ok(stalls[0]! > 58_000, `${stalls}`);
    assert.equal(log.logged("event loop was blocked").length, 1);
    watchdog.close();
  });

  it("logs a stall of the network at once, counts all of it, and does not notify the supervisor meanwhile", async () => {
    const log = new LogBook();
    let networkMs = 0;
    const counted: number[] = [];
    const told = new Queue<string>();
    const watchdog = startWatchdog({
      log,
      networkStalledMs: () => networkMs,
      onStall: (what, ms) => void (what === "network" && counted.push(ms)),
      supervisor: {
        watchdogMs: 40,
        ready() {},
        reloading() {},
        stopping() {},
        handedOver() {},
        status: (text) => told.push(text),
        alive: () => told.push("alive"),
      },
      status: () => `stalled ${networkMs}`,
    });
    assert.deepEqual([await told.next(), await told.next()], ["stalled 0", "alive"]);
    networkMs = 1_500;
    await log.waitFor("network engine stalled", { ms: 1_500 });
    networkMs = 4_000;
    let last = "";
    while (last !== "stalled 4000") last = await told.next();
    assert.equal(await told.next(), "stalled 4000");
    assert.deepEqual(counted.slice(0, 2), [1_500, 2_500]);
    assert.equal(counted.reduce((sum, ms) => sum + ms), 4_000);
    networkMs = 0;
    await log.waitFor("network engine recovered", { ms: 4_000 });
    while (last !== "alive") last = await told.next();
    assert.equal(log.logged("network engine stalled").length, 1);
    watchdog.close();
  });

  it("counts from zero for a network that ran between two checks and stalls again", async () => {
    let networkMs = 5_000;
    const counted = new Queue<number>();
    const watchdog = startWatchdog({
      log: new LogBook(),
      networkStalledMs: () => networkMs,
      onStall: (_, ms) => counted.push(ms),
      supervisor: { watchdogMs: 40, ready() {}, reloading() {}, stopping() {}, handedOver() {}, status() {}, alive() {} },
    });
    assert.equal(await counted.next(), 5_000);
    networkMs = 1_200;
    let counts;
    while ((counts = await counted.next()) === 0);
    assert.equal(counts, 1_200);
    watchdog.close();
  });
});
