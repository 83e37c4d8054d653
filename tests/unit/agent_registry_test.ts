// Which connection of an agent gets the next tunnel, and which ones a new connection replaces.
import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { AgentRegistry, type ConnectedAgent } from "../../proxy/agents/registry.ts";
import type { Control } from "../../shared/link/control.ts";
import type { AgentSession } from "../../shared/net/session.ts";

/** Without an instance it is an agent of version 1. */
function held(instance?: string, more: Partial<ConnectedAgent> = {}): ConnectedAgent {
  return {
    id: "1",
    connection: {} as AgentSession,
    via: { address: "" },
    identity: { agentId: "a" },
    credentials: new Uint8Array(),
    since: new Date(0),
    hello: instance === undefined ? undefined : { version: "", instance, host: "", labels: {} },
    tunnels: 0,
    lastRequestAt: 0,
    isDraining: false,
    hasMigrated: false,
    ...more,
  };
}

/** The picked agents, in order, if each one before is skipped. */
function order(registry: AgentRegistry): ConnectedAgent[] {
  const passed = new Set<ConnectedAgent>();
  for (let agent; (agent = registry.pick("a", passed));) passed.add(agent);
  return [...passed];
}

describe("the registry", () => {
  it("replaces older agents by the newest, unless several may have one id", () => {
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

  it("tells which connections share an id, also with one at another worker", () => {
    const registry = new AgentRegistry(true);
    const [first, second, alone] = [held("1"), held("2"), held("3", { identity: { agentId: "b" } })];
    const remote = held("4", { identity: { agentId: "b" }, isRemote: true });
    registry.add(first);
    registry.add(alone);
    assert.deepEqual([...registry.shared()], []);
    registry.add(second);
    assert.deepEqual([...registry.shared()], [first, second]);
    registry.add(remote);
    assert.deepEqual([...registry.shared()], [first, second, alone]);
  });

  it("treats two agents of version 1 as two processes", () => {
    const registry = new AgentRegistry(false);
    const first = held();
    registry.add(first);
    assert.deepEqual(registry.add(held()), [first]);
  });

  it("picks a stopping agent only if no other has replaced it, and keeps its tunnels", () => {
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

  it("picks an agent that has moved to another proxy only as long as it is connected", () => {
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

  it("uses agents with equal numbers of tunnels in turn", () => {
    const registry = new AgentRegistry(true);
    const agents = [held("1", { lastRequestAt: 1 }), held("2", { lastRequestAt: 3 }), held("3", { lastRequestAt: 2 })];
    for (const agent of agents) registry.add(agent);
    assert.deepEqual(order(registry), [agents[0], agents[2], agents[1]]);
  });

  it("prefers the agent with the fewest tunnels, and the newest of equals", () => {
    const registry = new AgentRegistry(true);
    const agents = [held("1", { tunnels: 2 }), held("2", { tunnels: 1 }), held("3", { tunnels: 1 })];
    for (const agent of agents) registry.add(agent);
    assert.deepEqual(order(registry), [agents[2], agents[1], agents[0]]);
  });

  it("uses agents that could not reach the destination after the others, or if there are no others", () => {
    const registry = new AgentRegistry(true);
    const [failing, busy] = [held("1"), held("2", { tunnels: 5 })];
    for (const agent of [busy, failing]) registry.add(agent);
    const isAvoided = (agent: ConnectedAgent) => agent === failing;
    assert.equal(registry.pick("a", new Set(), isAvoided), busy);
    assert.equal(registry.pick("a", new Set([busy]), isAvoided), failing);
  });

  it("uses agents that do not answer pings last", () => {
    const registry = new AgentRegistry(true);
    const silent = held("1", { control: { silentMs: 1_000 } as Control });
    const busy = held("2", { control: { silentMs: 999 } as Control, tunnels: 5 });
    registry.add(busy);
    registry.add(silent);
    assert.deepEqual(order(registry), [busy, silent]);
  });

  it("holds at most 64 connections for one id, and drops the oldest", () => {
    const registry = new AgentRegistry(true);
    const agents = Array.from({ length: 65 }, (_, i) => held(String(i)));
    const replaced = agents.flatMap((agent) => registry.add(agent));
    assert.deepEqual(replaced, [agents[0]]);
    assert.equal([...registry].length, 64);
  });

  it("does not count a connection as replaced if it is of the same process, is draining, or may share the id", () => {
    const [single, multiple] = [new AgentRegistry(false), new AgentRegistry(true)];
    const [young, other, same, leaving] = [held("1"), held("2"), held("1"), held("2", { isDraining: true })];
    assert.deepEqual([other, same, leaving].map((old) => single.replaces(young, old)), [true, false, false]);
    assert.equal(multiple.replaces(young, other), false);
  });

  describe("of two workers", () => {
    /** The agent as the other worker knows it. */
    const told = (agent: ConnectedAgent): ConnectedAgent => ({ ...agent, connection: {} as AgentSession, isRemote: true });

    it("replaces the same one of two agents that connect at the same moment", () => {
      for (const [at, id, winner] of [[11, "2", 1], [10, "2", 1], [10, "0", 0], [9, "2", 0]] as const) {
        const registries = [new AgentRegistry(false), new AgentRegistry(false)] as const;
        const agents = [held("1", { since: new Date(10) }), held("2", { id, since: new Date(at) })] as const;
        for (const [i, registry] of registries.entries()) registry.add(agents[i]!);
        const replaced = registries.map((registry, i) => registry.add(told(agents[1 - i]!)).length);
        assert.deepEqual(replaced, winner === 1 ? [1, 0] : [0, 1], `${at} ${id}`);
      }
    });

    it("replaces the agent that was there when the clock is set back", () => {
      const [one, two] = [new AgentRegistry(false), new AgentRegistry(false)];
      const [before, after] = [held("1", { since: new Date(1_000) }), held("2", { since: new Date(10) })];
      one.add(before);
      two.add(told(before));
      assert.equal(two.add(after).length, 1);
      assert.deepEqual(one.add(told(after)), [before]);
    });
  });

  it("returns nothing for an unknown agent", () => {
    const registry = new AgentRegistry(false);
    const agent = held();
    registry.add(agent);
    registry.remove(agent);
    registry.remove(agent);
    assert.deepEqual([registry.size, registry.isAvailable("a"), registry.isAvailable("b")], [0, false, false]);
  });
});
