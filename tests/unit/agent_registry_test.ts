// Which connection of an agent gets the next tunnel, and whose place a new one takes.
import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { AgentRegistry, type ConnectedAgent } from "../../proxy/agents/registry.ts";
import type { Control } from "../../shared/link/control.ts";
import type { AgentSession } from "../../shared/net/types.ts";

/** Without an instance it is one of version 1. */
function held(instance?: string, more: Partial<ConnectedAgent> = {}): ConnectedAgent {
  return {
    connection: {} as AgentSession,
    identity: { agentId: "a" },
    since: new Date(0),
    hello: instance === undefined ? undefined : { version: "", instance, host: "", labels: {} },
    tunnels: 0,
    lastRequestAt: 0,
    isDraining: false,
    hasMigrated: false,
    ...more,
  };
}

/** All that are picked, one after the other is passed over. */
function order(registry: AgentRegistry): ConnectedAgent[] {
  const passed = new Set<ConnectedAgent>();
  for (let agent; (agent = registry.pick("a", passed));) passed.add(agent);
  return [...passed];
}

describe("the registry", () => {
  it("gives the newest agent the place of the others, unless several may have one id", () => {
    for (const multiple of [false, true]) {
      const registry = new AgentRegistry(multiple);
      const [first, second] = [held("1"), held()];
      assert.deepEqual(registry.add(first), []);
      assert.deepEqual(registry.add(second), multiple ? [] : [first]);
      assert.deepEqual(order(registry), multiple ? [second, first] : [second]);
      assert.equal(registry.size, 1);
    }
  });

  it("keeps an older connection of the same process, and prefers the newer", () => {
    for (const multiple of [false, true]) {
      const registry = new AgentRegistry(multiple);
      const [old, young] = [held("1"), held("1", { tunnels: 9 })];
      registry.add(old);
      assert.deepEqual(registry.add(young), []);
      assert.deepEqual(order(registry), [young, old]);
      registry.remove(young);
      assert.deepEqual(order(registry), [old]);
    }
  });

  it("takes two agents of version 1 for two processes", () => {
    const registry = new AgentRegistry(false);
    const first = held();
    registry.add(first);
    assert.deepEqual(registry.add(held()), [first]);
  });

  it("picks one that stops only where no other has taken its place, and leaves it what it has", () => {
    const registry = new AgentRegistry(false);
    const leaving = held("1");
    registry.add(leaving);
    leaving.isDraining = true;
    assert.equal(registry.isAvailable("a"), false);
    assert.deepEqual(order(registry), [leaving]);
    const next = held("2");
    assert.deepEqual(registry.add(next), []);
    assert.deepEqual(order(registry), [next, leaving]);
    assert.equal(registry.isAvailable("a"), true);
  });

  it("picks one that has connected to another proxy, and sends no clients for it here", () => {
    const registry = new AgentRegistry(false);
    const [gone, there] = [held("1"), held("1")];
    registry.add(gone);
    assert.equal(registry.hasAvailable, true);
    gone.hasMigrated = true;
    assert.deepEqual([registry.isAvailable("a"), registry.hasAvailable], [false, false]);
    assert.deepEqual(order(registry), [gone]);
    registry.add(there);
    assert.deepEqual([registry.isAvailable("a"), registry.hasAvailable], [true, true]);
  });

  it("asks several agents with equally many tunnels in turn", () => {
    const registry = new AgentRegistry(true);
    const agents = [held("1", { lastRequestAt: 1 }), held("2", { lastRequestAt: 3 }), held("3", { lastRequestAt: 2 })];
    for (const agent of agents) registry.add(agent);
    assert.deepEqual(order(registry), [agents[0], agents[2], agents[1]]);
  });

  it("spreads tunnels over several agents: the fewest first, the newest of equals", () => {
    const registry = new AgentRegistry(true);
    const agents = [held("1", { tunnels: 2 }), held("2", { tunnels: 1 }), held("3", { tunnels: 1 })];
    for (const agent of agents) registry.add(agent);
    assert.deepEqual(order(registry), [agents[2], agents[1], agents[0]]);
  });

  it("asks those that could not reach the destination after the others, and all the same where there are no others", () => {
    const registry = new AgentRegistry(true);
    const [failing, busy] = [held("1"), held("2", { tunnels: 5 })];
    for (const agent of [busy, failing]) registry.add(agent);
    const isAvoided = (agent: ConnectedAgent) => agent === failing;
    assert.equal(registry.pick("a", new Set(), isAvoided), busy);
    assert.equal(registry.pick("a", new Set([busy]), isAvoided), failing);
  });

  it("asks those that do not answer pings last", () => {
    const registry = new AgentRegistry(true);
    const silent = held("1", { control: { silentMs: 1_000 } as Control });
    const busy = held("2", { control: { silentMs: 999 } as Control, tunnels: 5 });
    registry.add(busy);
    registry.add(silent);
    assert.deepEqual(order(registry), [busy, silent]);
  });

  it("holds no more than 64 connections for one id: the oldest go", () => {
    const registry = new AgentRegistry(true);
    const agents = Array.from({ length: 65 }, (_, i) => held(String(i)));
    const replaced = agents.flatMap((agent) => registry.add(agent));
    assert.deepEqual(replaced, [agents[0]]);
    assert.equal([...registry].length, 64);
  });

  it("takes none for replaced that is of the same process, takes no more tunnels, or may have the same id", () => {
    const [single, multiple] = [new AgentRegistry(false), new AgentRegistry(true)];
    const [young, other, same, leaving] = [held("1"), held("2"), held("1"), held("2", { isDraining: true })];
    assert.deepEqual([other, same, leaving].map((old) => single.replaces(young, old)), [true, false, false]);
    assert.equal(multiple.replaces(young, other), false);
  });

  it("knows nobody that it does not hold", () => {
    const registry = new AgentRegistry(false);
    const agent = held();
    registry.add(agent);
    registry.remove(agent);
    registry.remove(agent);
    assert.deepEqual([registry.size, registry.isAvailable("a"), registry.isAvailable("b")], [0, false, false]);
  });
});
