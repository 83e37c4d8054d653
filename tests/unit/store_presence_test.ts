// A proxy's entries in the store: written when agents connect, and renewed while they stay, whatever the store does.
import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { startPresencePublisher } from "../../shared/store/presence.ts";
import { createMemoryStore } from "../../shared/store/memory.ts";
import { type Store, StoreError } from "../../shared/store/store.ts";

const [HERE, THERE] = ["here:1", "there:1"] as const;
/** Short, so that entries are renewed during a test. */
const TTL_MS = 60;

/** A memory store that records calls, and fails on demand. */
function observed() {
  const store = createMemoryStore({ ttlMs: TTL_MS });
  const calls: string[] = [];
  const state = { down: false };
  const call = (name: "set" | "renew") => async (agentId: string, address: string) => {
    calls.push(`${name} ${agentId}`);
    if (state.down) throw new StoreError("down");
    await store[name](agentId, address);
  };
  const wrapped: Store = { ...store, set: call("set"), renew: call("renew") };
  return { store: wrapped, calls, state };
}

async function until(check: () => boolean | Promise<boolean>): Promise<void> {
  const deadline = performance.now() + 20_000;
  while (!await check()) {
    if (performance.now() > deadline) throw new Error("It never came to pass");
    await new Promise((resolve) => setTimeout(resolve, 2));
  }
}

describe("presence publisher", () => {
  it("sets an agent's entry when it connects, and renews it from then on", async () => {
    const { store, calls } = observed();
    const announcer = startPresencePublisher({ store, address: HERE, ttlMs: TTL_MS });
    announcer.add("7");
    await until(() => calls.length >= 5);
    announcer.close();
    assert.equal(await store.lookup("7"), HERE);
    assert.deepEqual(calls.slice(0, 3), ["set 7", "renew 7", "renew 7"]);
  });

  it("takes over the entry of an agent that returns from another proxy, which then no longer renews it", async () => {
    const { store, calls } = observed();
    const [here, there] = [HERE, THERE].map((address) => startPresencePublisher({ store, address, ttlMs: TTL_MS })) as [
      ReturnType<typeof startPresencePublisher>,
      ReturnType<typeof startPresencePublisher>,
    ];
    there.add("7");
    await until(async () => await store.lookup("7") === THERE);
    here.add("7");
    await until(() => calls.length > 20);
    assert.equal(await store.lookup("7"), HERE);
    here.remove("7");
    await until(async () => await store.lookup("7") === THERE); // once the entry has ended: the agent is still there
    here.close();
    there.close();
  });

  it("lets the entry of a disconnected agent expire", async () => {
    const { store } = observed();
    const announcer = startPresencePublisher({ store, address: HERE, ttlMs: TTL_MS });
    announcer.add("7");
    await until(async () => await store.lookup("7") === HERE);
    announcer.remove("7");
    await until(async () => await store.lookup("7") === undefined);
    announcer.close();
  });

  it("sets an entry later if the store was down, and renews nothing for agents that have disconnected by then", async () => {
    const { store, calls, state } = observed();
    const failures: string[] = [];
    const announcer = startPresencePublisher({ store, address: HERE, ttlMs: TTL_MS, onFailure: ({ agentId }) => failures.push(agentId) });
    state.down = true;
    announcer.add("7");
    announcer.add("8");
    await until(() => failures.length >= 4);
    announcer.remove("8");
    await store.set("7", THERE).catch(() => {}); // an older place of it
    state.down = false;
    const before = calls.length;
    await until(async () => await store.lookup("7") === HERE);
    assert.equal(await store.lookup("8"), undefined);
    assert.ok(calls.slice(before).includes("set 7"), "An entry that was never written is renewed only");
    announcer.close();
  });

  it("writes at most 64 entries at a time, and in the end those of all agents", async () => {
    const store = createMemoryStore();
    let [underWay, most] = [0, 0];
    const slow: Store = {
      ...store,
      async set(agentId, address) {
        most = Math.max(most, ++underWay);
        await new Promise((resolve) => setTimeout(resolve, 1));
        await store.set(agentId, address);
        underWay--;
      },
    };
    const announcer = startPresencePublisher({ store: slow, address: HERE, ttlMs: 30_000 });
    for (let i = 0; i < 10_000; i++) announcer.add(String(i));
    await until(async () => await store.lookup("9999") === HERE);
    await until(() => underWay === 0);
    for (let i = 0; i < 10_000; i++) assert.equal(await store.lookup(String(i)), HERE);
    assert.equal(most, 64);
    announcer.close();
  });

  it("writes nothing after it is closed", async () => {
    const { store, calls } = observed();
    const announcer = startPresencePublisher({ store, address: HERE, ttlMs: TTL_MS });
    announcer.add("7");
    announcer.close();
    announcer.add("8");
    await until(async () => await store.lookup("7") === undefined);
    assert.deepEqual(calls, ["set 7"]);
  });
});
