// Which agents a proxy probes: those of which nothing arrives while a request waits.
import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { AgentRegistry, type ConnectedAgent } from "../../proxy/agents/registry.ts";
import { StalledAgentMonitor } from "../../proxy/agents/stalled_agents.ts";
import type { Control } from "../../shared/link/control.ts";
import type { AgentSession } from "../../shared/net/session.ts";
import { until } from "../conformance/support.ts";

/** An agent from which this many bytes arrive between two checks. With `silentMs` it has a control stream, where a ping is that old. */
function agentWith(bytesPerCheck: number, rttMs = 1, silentMs?: number) {
  const counts = { checks: 0, probes: 0, pings: 0, closes: 0 };
  const connection = {
    stats: () => ({ rttMs, sentBytes: 0, receivedBytes: bytesPerCheck * ++counts.checks }),
    probe: () => Promise.resolve(++counts.probes < 0),
    close: () => void counts.closes++,
  } as unknown as AgentSession;
  const agent: ConnectedAgent = {
    id: "1",
    connection,
    control: silentMs === undefined ? undefined : { silentMs, pingIfDue: () => void counts.pings++ } as unknown as Control,
    via: { address: "" },
    credentials: new Uint8Array(),
    identity: { agentId: "a" },
    since: new Date(0),
    tunnels: 0,
    lastRequestAt: 0,
    isDraining: false,
    hasMigrated: false,
  };
  return { agent, counts };
}

describe("the monitor of agents with pending requests", () => {
  it("probes an agent of which nothing arrives, until its requests have ended", async () => {
    using monitor = closing(new StalledAgentMonitor(new AgentRegistry(false)));
    const { agent, counts } = agentWith(0);
    const pending = monitor.track(agent);
    await until(() => counts.probes > 0, "it was not probed");
    assert.ok(counts.checks > counts.probes, "it was probed before it was silent for an interval");
    pending.count--;
    const { probes } = counts;
    const other = agentWith(1);
    monitor.track(other.agent);
    await until(() => other.counts.checks > 2, "there were no more checks");
    assert.equal(counts.probes, probes);
  });

  it("closes the connection of an agent that has not answered for 10 s, although it has no other", async () => {
    using monitor = closing(new StalledAgentMonitor(new AgentRegistry(false)));
    const [lost, late, sending] = [agentWith(0, 1, 10_000), agentWith(0, 1, 9_000), agentWith(1, 1, 60_000)];
    for (const { agent } of [lost, late, sending]) monitor.track(agent);
    await until(() => lost.counts.closes > 0 && late.counts.pings > 1 && sending.counts.checks > 3, "it stays, or there were no checks");
    assert.deepEqual([lost.counts.closes, late.counts.closes, sending.counts.closes], [1, 0, 0]);
    assert.equal(sending.counts.pings, 0);
  });

  it("does not probe an agent that sends something, or whose round trip is longer than the silence", async () => {
    using monitor = closing(new StalledAgentMonitor(new AgentRegistry(false)));
    const [sending, far] = [agentWith(1), agentWith(0, 60_000)];
    for (const { agent } of [sending, far]) monitor.track(agent);
    await until(() => Math.min(sending.counts.checks, far.counts.checks) > 3, "there were no checks");
    assert.deepEqual([sending.counts.probes, far.counts.probes], [0, 0]);
  });
});

function closing(monitor: StalledAgentMonitor): StalledAgentMonitor & Disposable {
  return Object.assign(monitor, { [Symbol.dispose]: () => monitor.close() });
}
