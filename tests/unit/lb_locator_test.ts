// How lb finds an agent's proxy: how often it queries the store, and how it uses the results.
import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { Locator } from "../../lb/locator.ts";
import { type Store, StoreError } from "../../shared/store/store.ts";

/** A store whose results the test supplies. */
class AskedStore implements Store {
  readonly asked: string[] = [];
  readonly #waiting: PromiseWithResolvers<string | undefined>[] = [];

  lookup(agentId: string): Promise<string | undefined> {
    this.asked.push(agentId);
    const answer = Promise.withResolvers<string | undefined>();
    this.#waiting.push(answer);
    return answer.promise;
  }

  answer(address: string | undefined): void {
    this.#waiting.shift()!.resolve(address);
  }

  fail(): void {
    this.#waiting.shift()!.reject(new StoreError("down"));
  }

  set = () => Promise.reject(new Error("lb writes nothing"));
  renew = this.set;
  close = () => {};
}

function setUp(limit?: number) {
  const store = new AskedStore();
  const clock = { now: 0 };
  const locator = new Locator({ store, limit, now: () => clock.now });
  const known = async (agentId: string, address: string) => {
    const located = locator.locate(agentId);
    store.answer(address);
    assert.equal(await located, address);
  };
  return { store, clock, locator, known };
}

describe("locator", () => {
  it("queries the store once for simultaneous lookups of an agent, and separately for each agent", async () => {
    const { store, locator } = setUp();
    const all = [locator.locate("7"), locator.locate("7"), locator.locate("8"), locator.locate("7")];
    store.answer("a:1");
    store.answer("b:1");
    assert.deepEqual(await Promise.all(all), ["a:1", "a:1", "b:1", "a:1"]);
    assert.deepEqual(store.asked, ["7", "8"]);
  });

  it("queries again once a result is a second old, and not before", async () => {
    const { store, clock, locator, known } = setUp();
    await known("7", "a:1");
    clock.now = 999;
    assert.equal(await locator.locate("7"), "a:1");
    assert.equal(store.asked.length, 1);
    clock.now = 1_000;
    await known("7", "b:1");
    assert.equal(store.asked.length, 2);
  });

  it("queries again for a missing agent after half a second, and not before", async () => {
    const { store, clock, locator, known } = setUp();
    const nowhere = locator.locate("7");
    store.answer(undefined);
    assert.equal(await nowhere, undefined);
    clock.now = 499;
    assert.equal(await locator.locate("7"), undefined);
    assert.equal(store.asked.length, 1);
    clock.now = 500;
    await known("7", "a:1");
    locator.invalidate("7", "a:1");
    await known("7", "b:1");
  });

  it("uses the last address while the store fails or is empty, until it turns out wrong", async () => {
    const { store, clock, locator, known } = setUp();
    await known("7", "a:1");
    for (const trouble of [() => store.fail(), () => store.answer(undefined)]) {
      clock.now += 1_000;
      const located = locator.locate("7");
      trouble();
      assert.equal(await located, "a:1");
      assert.equal(await locator.locate("7"), "a:1", "an answer like that is good for a second too");
    }
    locator.invalidate("7", "a:1");
    const failing = locator.locate("7");
    store.fail();
    await assert.rejects(failing, StoreError);
    const missing = locator.locate("7");
    store.answer(undefined);
    assert.equal(await missing, undefined);
  });

  it("keeps an address that is newer than the one that turned out wrong", async () => {
    const { store, locator, known } = setUp();
    await known("7", "b:1");
    locator.invalidate("7", "a:1");
    assert.equal(await locator.locate("7"), "b:1");
    assert.equal(store.asked.length, 1);
  });

  it("keeps the proxy at which an agent was found until the store has a new address, or that proxy turns out wrong", async () => {
    const { store, clock, locator, known } = setUp();
    await known("7", "a:1");
    locator.record("7", "b:1", new Set(["a:1"]));
    const after = async (said: string) => {
      clock.now += 1_000;
      const located = locator.locate("7");
      store.answer(said);
      return await located;
    };
    assert.equal(await after("a:1"), "b:1");
    assert.equal(await after("a:1"), "b:1");
    assert.equal(await after("c:1"), "c:1");
    assert.equal(await after("a:1"), "a:1", "it may have come back since");
    locator.record("7", "b:1", new Set(["a:1"]));
    locator.invalidate("7", "b:1");
    await known("7", "a:1");
  });

  it("suggests a limited number of proxies that the store has named recently, in turn", async () => {
    const { clock, locator, known } = setUp();
    for (let i = 0; i < 70; i++) await known(String(i), `p${i}:1`);
    assert.deepEqual(locator.alternatives("7", new Set(["p6:1"]), 2), ["p7:1", "p8:1"], "64 are known: the first six are forgotten");
    assert.equal(locator.alternatives("7", new Set(), 100).length, 64);
    clock.now = 599_000;
    await known("new", "p9:1");
    clock.now = 600_000;
    assert.deepEqual(locator.alternatives("7", new Set(), 100), ["p9:1"]);
    locator.recordMiss("7");
    assert.deepEqual(locator.alternatives("7", new Set(), 100), []);
    assert.deepEqual(locator.alternatives("8", new Set(), 100), ["p9:1"]);
    clock.now += 1_000;
    assert.deepEqual(locator.alternatives("7", new Set(), 100), ["p9:1"]);
  });

  it("remembers a limited number of agents, and forgets the least recently used", async () => {
    const { store, locator, known } = setUp(3);
    for (const id of ["1", "2", "3"]) await known(id, `${id}:1`);
    await locator.locate("1");
    await known("4", "4:1");
    assert.deepEqual([...locator].map(([id]) => id), ["3", "1", "4"]);
    assert.equal(store.asked.length, 4);
  });
});
