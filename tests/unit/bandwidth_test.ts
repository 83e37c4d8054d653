// Bandwidth limits: values of options, and how long a rate is shared.
import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { checkBandwidth } from "../../shared/config/bandwidth.ts";
import { Bandwidth } from "../../shared/limits/bandwidth.ts";
import type { RateOptions } from "../../shared/net/relay.ts";

class Rates {
  readonly created: RateOptions[] = [];
  closed = 0;

  readonly create = (options: RateOptions) => {
    this.created.push(options);
    return { take: () => Promise.resolve(), close: () => void this.closed++ };
  };
}

describe("a bandwidth", () => {
  it("is a number of bytes, with or without a unit", () => {
    const rates = new Rates();
    for (const text of ["500000", "512KiB", "10MiB", "2GiB"]) new Bandwidth(text, rates.create).create();
    assert.deepEqual(rates.created.map(({ bytesPerSecond }) => bytesPerSecond), [500_000, 512 * 1_024, 10 * 2 ** 20, 2 * 2 ** 30]);
    for (const good of ["0", "1", "1KiB"]) assert.equal(checkBandwidth(good), undefined);
    for (const bad of ["", "KiB", "1KB", "1.5MiB", "-1", "1 MiB", "10MiB/s", "1e6"]) {
      assert.ok(checkBandwidth(bad)?.startsWith(JSON.stringify(bad)), bad);
    }
  });

  it("of 0 is no limit", () => {
    const rates = new Rates();
    const none = new Bandwidth("0", rates.create);
    assert.deepEqual([none.create(), none.join("a")], [undefined, undefined]);
    assert.deepEqual(rates.created, []);
  });

  it("is shared by key, and dropped only if it was unused between two checks", () => {
    const rates = new Rates();
    const shared = new Bandwidth("1MiB", rates.create);
    const [first, second] = [shared.join("a")!, shared.join("a")!];
    assert.equal(second.rate, first.rate);
    assert.notEqual(shared.join("b")!.rate, first.rate);
    for (const user of [first, second]) user.release();
    shared.tick();
    // who opens one tunnel after the other does not get a full one each time
    const third = shared.join("a")!;
    assert.equal(third.rate, first.rate);
    third.release();
    shared.tick();
    assert.deepEqual([shared.size, rates.closed], [2, 0]);
    shared.tick();
    shared.tick();
    assert.deepEqual([shared.size, rates.closed], [1, 1]);
    assert.notEqual(shared.join("a")!.rate, first.rate);
    shared.close();
    assert.deepEqual([shared.size, rates.closed], [0, 3]);
  });

  it("that changes applies to new users; others keep their rate until the last one has gone", () => {
    const rates = new Rates();
    const shared = new Bandwidth("1MiB", rates.create);
    const [first, second] = [shared.join("a")!, shared.join("a")!];
    shared.update("1MiB");
    assert.equal(shared.join("a")!.rate, first.rate);
    shared.update("2MiB");
    assert.equal(rates.created.at(-1)!.bytesPerSecond, 1 << 20);
    assert.notEqual(shared.join("a")!.rate, first.rate);
    assert.equal(rates.created.at(-1)!.bytesPerSecond, 2 << 20);
    first.release();
    second.release();
    for (const _ of [1, 2]) shared.tick();
    assert.deepEqual([shared.size, rates.closed], [2, 0]); // one more has joined before
    shared.update("0");
    assert.equal(shared.join("a"), undefined);
    shared.close();
    assert.deepEqual([shared.size, rates.closed], [0, 2]);
  });
});
