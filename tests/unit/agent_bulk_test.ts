// When a link counts as one with bulk data over a short path without loss, by statistics that the test makes up.
import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { BULK, BulkMeter } from "../../agent/transport/bulk.ts";

const SECOND = 1_000;

/** A meter, and windows of traffic that it measures one after the other. */
function start() {
  const meter = new BulkMeter();
  const stats = { rttMs: 1, sentBytes: 0, receivedBytes: 0, sentPackets: 0, lostPackets: 0 };
  let now = 0;
  meter.measure(stats, now);
  return (bytesPerSecond: number, { rttMs = 1, lost = 0 } = {}, seconds = BULK.window / SECOND) => {
    now += seconds * SECOND;
    stats.rttMs = rttMs;
    stats.sentBytes += bytesPerSecond * seconds / 2;
    stats.receivedBytes += bytesPerSecond * seconds / 2;
    stats.sentPackets += 1e6;
    stats.lostPackets += lost * 1e6;
    return meter.measure(stats, now);
  };
}

describe("traffic", () => {
  it("is bulk from 100 MB/s in both directions together, over 5 s", () => {
    const window = start();
    assert.equal(window(99e6), "neither");
    assert.equal(window(100e6), "bulk");
    assert.equal(window(1e9, {}, 4), "neither");
    assert.equal(window(1e9, {}, 1), "bulk");
  });

  it("is judged by the path too, with room between the limits", () => {
    const window = start();
    const verdicts = [{ rttMs: 5 }, { rttMs: 6 }, { rttMs: 19 }, { rttMs: 20 }, { lost: 0.000_1 }, { lost: 0.000_2 }, { lost: 0.000_9 }, {
      lost: 0.001,
    }]
      .map((path) => window(500e6, path));
    assert.deepEqual(verdicts, ["bulk", "neither", "neither", "over", "bulk", "neither", "neither", "over"]);
  });

  it("is over when none was bulk for ten minutes", () => {
    const window = start();
    assert.equal(window(500e6), "bulk");
    assert.equal(window(1e6, {}, 599), "neither");
    assert.equal(window(500e6), "bulk");
    assert.equal(window(1e6, {}, 600), "over");
  });
});
