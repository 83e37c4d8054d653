// Requests for agents that are about to connect, after a hand-over.
import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { Arrivals } from "../../proxy/agents/arrivals.ts";

function bench(timeoutMs = 60_000): { arrivals: Arrivals; connected: Set<string>; end: () => void } {
  const connected = new Set<string>();
  const over = Promise.withResolvers<void>();
  const arrivals = new Arrivals({ over: over.promise, isConnected: (id) => connected.has(id), timeoutMs: () => timeoutMs });
  return { arrivals, connected, end: over.resolve };
}

describe("arrivals after a hand-over", () => {
  it("let requests for connected agents pass at once", () => {
    const { arrivals, connected } = bench();
    connected.add("a");
    assert.equal(arrivals.whenExpected("a"), undefined);
  });

  it("hold others until their agent has connected", async () => {
    const { arrivals } = bench();
    const order: string[] = [];
    const waiting = [arrivals.whenExpected("a")!.then(() => order.push("a")), arrivals.whenExpected("a")!.then(() => order.push("a"))];
    arrivals.connected("b");
    await Promise.resolve();
    order.push("connected");
    arrivals.connected("a");
    await Promise.all(waiting);
    assert.deepEqual(order, ["connected", "a", "a"]);
  });

  it("hold nothing once no more agents come", async () => {
    const { arrivals, end } = bench();
    const waiting = arrivals.whenExpected("a");
    end();
    await waiting;
    assert.equal(arrivals.whenExpected("a"), undefined);
  });

  it("hold a request no longer than its agent may take", async () => {
    await bench(1).arrivals.whenExpected("a");
  });
});
