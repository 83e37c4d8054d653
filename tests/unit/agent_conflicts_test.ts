// Agents with one id that replace each other: which one is kept, and for how long.
import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { ConflictError, type ConflictRule, Conflicts } from "../../proxy/agents/conflicts.ts";
import { AgentRegistry, type ConnectedAgent } from "../../proxy/agents/registry.ts";
import { LogBook } from "../../testing/network.ts";

/** Agents that connect to a registry with the rule, and what becomes of them. */
function setUp(rule: ConflictRule) {
  const [log, registry] = [new LogBook(), new AgentRegistry(false)];
  let now = 0;
  const conflicts = new Conflicts(rule, log, () => now);
  const connect = (instance: string, more: Partial<ConnectedAgent> = {}): ConnectedAgent | undefined => {
    const agent = {
      connection: { remote: `${instance}:1` },
      identity: { agentId: "4711" },
      hello: { version: "", instance, host: `host-${instance}`, labels: {} },
      isDraining: false,
      ...more,
    } as ConnectedAgent;
    try {
      conflicts.check(agent);
    } catch (error) {
      assert.ok(error instanceof ConflictError);
      return undefined;
    }
    const replaced = registry.add(agent);
    if (replaced.length > 0) conflicts.replaced(replaced, agent);
    return agent;
  };
  const leave = (agent: ConnectedAgent) => {
    registry.remove(agent);
    conflicts.removed(agent);
  };
  return { conflicts, log, connect, leave, wait: (ms: number) => void (now += ms) };
}

/** Two agents replace each other until one is refused, which is returned. */
function fight({ connect, wait }: ReturnType<typeof setUp>): string | undefined {
  for (let round = 0; round < 20; round++) {
    for (const instance of ["one", "two"]) {
      wait(3_000);
      if (connect(instance) === undefined) return instance;
    }
  }
  return undefined;
}

describe("two agents with one id", () => {
  it("replace each other a few times, then the one that was there last or first is kept, or neither", () => {
    assert.equal(fight(setUp("keep-last")), "one");
    assert.equal(fight(setUp("keep-first")), "two");
    assert.equal(fight(setUp("replace")), undefined);
  });

  it("are named with their hosts once a minute, and counted", () => {
    const setting = setUp("keep-last");
    assert.equal(fight(setting), "one");
    assert.equal(setting.conflicts.size, 1);
    for (let i = 0; i < 30; i++) {
      setting.wait(3_000);
      assert.equal(setting.connect("one"), undefined);
    }
    const warnings = setting.log.logged("agent refused: another agent has the same id");
    assert.equal(warnings.length, 2);
    const { host, keptHost, remote, kept } = warnings[0]!;
    assert.deepEqual([host, keptHost, remote, kept], ["host-one", "host-two", "one:1", "two:1"]);
  });

  it("compete again when the kept one has gone, or drains", () => {
    const gone = setUp("keep-last");
    let kept: ConnectedAgent | undefined;
    const { connect } = gone;
    gone.connect = (instance, more) => {
      const agent = connect(instance, more);
      if (instance === "two") kept = agent ?? kept;
      return agent;
    };
    assert.equal(fight(gone), "one");
    kept!.isDraining = true;
    assert.ok(gone.connect("one"));
    const left = setUp("keep-last");
    let last: ConnectedAgent | undefined;
    const connectLeft = left.connect;
    left.connect = (instance, more) => {
      const agent = connectLeft(instance, more);
      last = agent ?? last;
      return agent;
    };
    assert.equal(fight(left), "one");
    left.leave(last!);
    assert.equal(left.conflicts.size, 0);
    assert.ok(left.connect("one"));
  });

  it("do not keep a third one from connecting, nor another connection of the kept one", () => {
    const setting = setUp("keep-last");
    assert.equal(fight(setting), "one");
    assert.ok(setting.connect("two"));
    assert.ok(setting.connect("three"), "A new process replaces the others");
    assert.equal(setting.conflicts.size, 0);
  });

  it("are not in conflict if they replace each other rarely, or one starts again and again", () => {
    const rare = setUp("keep-last");
    for (let i = 0; i < 20; i++) {
      rare.wait(61_000);
      assert.ok(rare.connect(i % 2 === 0 ? "one" : "two"));
    }
    const restarting = setUp("keep-first");
    for (let i = 0; i < 20; i++) {
      restarting.wait(1_000);
      assert.ok(restarting.connect(`process-${i}`));
    }
    assert.deepEqual([rare.conflicts.size, restarting.conflicts.size], [0, 0]);
  });
});
