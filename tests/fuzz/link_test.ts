// Short runs of hostile agents against a running proxy, and of hostile proxies against a running agent, with fixed seeds.
import assert from "node:assert/strict";
import fc from "fast-check";
import { describe, it } from "node:test";
import { AttackedProxy } from "./hostile_agents.ts";
import { AttackingProxies } from "./hostile_proxies.ts";
import { agentScript, FRIENDLY, proxyScript } from "./scripts.ts";

describe("proxy", () => {
  it("survives hostile agents, serves the others, and releases everything", async () => {
    await using proxy = await AttackedProxy.start();
    const batches = fc.array(agentScript, { minLength: 12, maxLength: 12 });
    await fc.assert(fc.asyncProperty(batches, (batch) => proxy.check(batch)), { seed: 9000, numRuns: 15, endOnFailure: true });
    await proxy.check([FRIENDLY]); // the hostile agents have left nothing that affects others
    await proxy.settle();
    const { connections, tunnels, refusals } = proxy.counts;
    assert.ok(connections === 181 && tunnels > 0 && refusals > 0, JSON.stringify(proxy.counts));
  });
});

describe("agent", () => {
  it("survives hostile proxies, serves the others, and stops cleanly", async () => {
    await using proxies = await AttackingProxies.start();
    const batches = fc.array(proxyScript(proxies.authority), { minLength: 36, maxLength: 36 });
    await fc.assert(fc.asyncProperty(batches, (batch) => proxies.check(batch)), { seed: 9000, numRuns: 1, endOnFailure: true });
    const { connections, ...others } = proxies.counts;
    assert.equal(connections, 36);
    for (const count of Object.values(others)) assert.ok(count > 0, JSON.stringify(proxies.counts));
  });
});
