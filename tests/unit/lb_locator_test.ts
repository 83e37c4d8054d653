// Where lb thinks an agent is: how often it asks the store, and what it makes of the answers.
import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { Locator } from "../../lb/locator.ts";
import { type Store, StoreError } from "../../shared/store/store.ts";

/** A store whose answers the test gives, one by one. */
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
  it("asks the store once for all who ask at once, and for each agent on its own", async () => {
    const { store, locator } = setUp();
    const all = [locator.locate("7"), locator.locate("7"), locator.locate("8"), locator.locate("7")];
    store.answer("a:1");
    store.answer("b:1");
    assert.deepEqual(await Promise.all(all), ["a:1", "a:1", "b:1", "a:1"]);
    assert.deepEqual(store.asked, ["7", "8"]);
  });

  it("asks again when an answer is a second old, and not before", async () => {
    const { store, clock, locator, known } = setUp();
    await known("7", "a:1");
    clock.now = 999;
    assert.equal(await locator.locate("7"), "a:1");
    assert.equal(store.asked.length, 1);
    clock.now = 1_000;
    await known("7", "b:1");
    assert.equal(store.asked.length, 2);
  });

  it("asks again for an agent that was in no proxy's hands half a second later, and not before", async () => {
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

  it("uses the last address while the store fails or is empty, until it proves wrong", async () => {
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

  it("keeps an address that is newer than the one that proved wrong", async () => {
    const { store, locator, known } = setUp();
    await known("7", "b:1");
    locator.invalidate("7", "a:1");
    assert.equal(await locator.locate("7"), "b:1");
    assert.equal(store.asked.length, 1);
  });

  it("holds to where an agent was found until the store says something new, or that proves wrong too", async () => {
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

  it("suggests so many proxies as the store has named lately, none for ever, each in its turn", async () => {
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

  it("remembers so many agents, and forgets the one that nobody asked for the longest", async () => {
    const { store, locator, known } = setUp(3);
    for (const id of ["1", "2", "3"]) await known(id, `${id}:1`);
    await locator.locate("1");
    await known("4", "4:1");
    assert.deepEqual([...locator].map(([id]) => id), ["3", "1", "4"]);
    assert.equal(store.asked.length, 4);
  });
});
