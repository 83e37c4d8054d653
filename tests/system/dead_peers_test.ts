// How soon agents and proxies notice that the process at the other end is gone, and what they do not take for that, with the compiled
// executables. Only Linux tells a program of ICMP errors.
import assert from "node:assert/strict";
import process from "node:process";
import { describe, it } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import { AGENT_ID, Pair, Site } from "../../testing/programs.ts";
import { ask, connectHead, openTunnel, Origin } from "../../testing/sockets.ts";

const test = { skip: process.platform === "linux" ? false : "only Linux reports ICMP errors" };
/** What the log says when the peer's process is gone; the idle timeout would say `timed out`. */
const GONE = /its port is closed \(ICMP\)/;
/** Longer than a probe. */
const SUSPENDED_MS = 3_000;

describe("a proxy", () => {
  it("notices that an agent was killed when a request waits for it", test, async () => {
    await using pair = await Pair.start();
    await using origin = await Origin.start();
    pair.agent.signal("SIGKILL");
    await pair.agent.ended;
    const start = performance.now();
    const { status } = await ask(pair.addresses.clients, connectHead(origin.authority));
    console.log(`the request failed after ${Math.round(performance.now() - start)} ms`);
    assert.equal(status, 502);
    const { reason } = await pair.proxy.waitFor("agent disconnected", { agent: AGENT_ID });
    assert.match(String(reason), GONE);
  });

  it("keeps a suspended agent, for which a request waits", test, async () => {
    await using pair = await Pair.start();
    await using origin = await Origin.start();
    pair.agent.signal("SIGSTOP");
    const opening = openTunnel(pair.addresses.clients, origin.authority);
    await sleep(SUSPENDED_MS);
    pair.agent.signal("SIGCONT");
    using _tunnel = await opening;
    assert.deepEqual(pair.proxy.logged("agent disconnected"), []);
  });
});

describe("an agent", () => {
  for (const transport of ["auto", "quic"]) {
    it(`connects to another proxy when its own was killed, with --agent-client.transport=${transport}`, test, async () => {
      await using site = await Site.create();
      const proxies = [await site.startProxy(), await site.startProxy()];
      const agents = proxies.map(({ addresses }) => addresses.agents).join(",");
      const agent = await site.startAgent({ agents, clients: "" }, [`--agent-client.transport=${transport}`]);
      const { proxy } = await agent.waitFor("connected");
      const [own] = proxies.filter(({ addresses }) => addresses.agents === proxy);
      own!.proxy.signal("SIGKILL");
      await own!.proxy.ended;
      const start = performance.now();
      const { reason } = await agent.waitFor("not connected");
      console.log(`noticed after ${Math.round(performance.now() - start)} ms`);
      assert.match(String(reason), GONE);
      const { proxy: other } = await agent.waitFor("connected", {}, 2);
      assert.notEqual(other, proxy);
    });
  }
});
