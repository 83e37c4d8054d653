// The bad network of the tests does what is configured, and the same for the same seed.
import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { Direction, FAIR, generate, type Weather } from "../../testing/udp_relay.ts";

const COUNT = 2_000;

/** The numbered datagrams that arrive, in order. */
async function relay(weather: Partial<Weather>, seed = 1): Promise<{ came: number[]; direction: Direction }> {
  const direction = new Direction(generate(seed));
  Object.assign(direction.weather, FAIR, weather);
  const came: number[] = [];
  for (let i = 0; i < COUNT; i++) {
    const data = new Uint8Array(100);
    new DataView(data.buffer).setUint32(0, i);
    direction.pass(
      data,
      (passed) => came.push(passed.every((byte, at) => at < 4 || byte === 0) ? new DataView(passed.buffer).getUint32(0) : -1),
    );
  }
  while (came.length < direction.counts.sent) await new Promise((resolve) => setTimeout(resolve, 1));
  return { came, direction };
}

const ALL = Array.from({ length: COUNT }, (_, i) => i);

describe("a bad network", () => {
  it("relays everything by default", async () => {
    assert.deepEqual((await relay({})).came, ALL);
  });

  it("keeps the order of datagrams with different delays", async () => {
    assert.deepEqual((await relay({ delay: 5, jitter: 5 })).came, ALL);
  });

  it("loses, duplicates and corrupts at the configured rates", async () => {
    const { came, direction: { counts } } = await relay({ loss: 0.1, duplicate: 0.1, corrupt: 0.1 });
    for (const count of [counts.lost, counts.duplicated, counts.corrupted]) {
      assert.ok(Math.abs(count - COUNT / 10) < COUNT / 25, `${count}`);
    }
    assert.equal(came.length, COUNT - counts.lost + counts.duplicated);
    assert.ok(came.filter((number) => number === -1 || number >= COUNT).length > 0);
  });

  it("truncates at the configured rate", () => {
    let short = 0;
    const direction = new Direction(generate(1));
    Object.assign(direction.weather, { truncate: 0.1 });
    for (let i = 0; i < COUNT; i++) direction.pass(new Uint8Array(100), (passed) => void (short += passed.length < 100 ? 1 : 0));
    assert.equal(short, direction.counts.truncated);
    assert.ok(Math.abs(short - COUNT / 10) < COUNT / 25, `${short}`);
  });

  it("reorders without losing any", async () => {
    const { came } = await relay({ reorder: 0.1, delay: 1 });
    assert.notDeepEqual(came, ALL);
    assert.deepEqual(came.toSorted((a, b) => a - b), ALL);
  });

  it("drops datagrams larger than its MTU, and all while it is blocked", async () => {
    assert.deepEqual((await relay({ mtu: 100 })).came, ALL);
    assert.deepEqual((await relay({ mtu: 99 })).came, []);
    assert.deepEqual((await relay({ blocked: true })).came, []);
  });

  it("does the same for the same seed, and something else for another", async () => {
    const lost = async (seed: number) => (await relay({ loss: 0.5 }, seed)).came;
    assert.deepEqual(await lost(3), await lost(3));
    assert.notDeepEqual(await lost(3), await lost(4));
  });
});
