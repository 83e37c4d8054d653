// What is logged about agents that replace each other.
import assert from "node:assert/strict";
import { describe, it } from "node:test";
import type { ConnectedAgent } from "../../proxy/agents/registry.ts";
import { ReplacementLog } from "../../proxy/agents/replacement_log.ts";
import { LogBook } from "../../testing/network.ts";

function held(agentId: string, remote: string, host?: string): ConnectedAgent {
  const hello = host === undefined ? undefined : { version: "", instance: remote, host, labels: {} };
  return { identity: { agentId }, connection: { remote }, hello } as unknown as ConnectedAgent;
}

const [A, B] = [held("4711", "192.0.2.1:1", "one"), held("4711", "192.0.2.2:2", "two")];
const WARNING = "agents with the same id replace each other";

describe("replacements", () => {
  it("are logged at info once, and cause a warning once a minute if they are repeated, with both addresses and hosts", () => {
    let [now, count] = [0, 0];
    const log = new LogBook();
    const replacements = new ReplacementLog(log, () => count++, () => now);
    for (; now < 120_000; now += 5_000) replacements.replaced(...(now % 10_000 === 0 ? [A, B] as const : [B, A] as const));
    assert.equal(count, 24);
    assert.equal(log.logged("agent replaced").length, 1);
    const warnings = log.entries.filter(({ level, message }) => level === "warn" && message === WARNING).map(({ fields }) => fields);
    assert.deepEqual(warnings.map(({ times }) => times), [1, 12]);
    const { agent, remote, host, by, byHost, advice } = warnings[0]!;
    assert.deepEqual([agent, remote, host, by, byHost], ["4711", "192.0.2.2:2", "two", "192.0.2.1:1", "one"]);
    assert.match(String(advice), /--agent-server\.agent\.multiple/);
  });

  it("that are rare cause no warning", () => {
    let now = 0;
    const log = new LogBook();
    const replacements = new ReplacementLog(log, undefined, () => now);
    for (; now < 600_000; now += 61_000) replacements.replaced(A, B);
    assert.equal(log.logged("agent replaced").length, 10);
    assert.deepEqual(log.logged(WARNING), []);
  });
});
