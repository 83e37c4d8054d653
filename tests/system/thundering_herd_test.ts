// Many agents in one process lose their proxy at once, and reconnect: spread over time, all of them, with little memory.
// REVERSE_HTTP_TEST_AGENTS sets their number.
import assert from "node:assert/strict";
import process from "node:process";
import { describe, it } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import { type Agent, startAgent } from "../../agent/agent.ts";
import { agentOptions } from "../../agent/options.ts";
import { withDefaults } from "../../shared/config/defaults.ts";
import { silentLogger } from "../../shared/log/logger.ts";
import { NetError } from "../../shared/net/errors.ts";
import { createNativeNet } from "../../shared/net/native/binding.ts";
import type { Net } from "../../shared/net/net.ts";
import { netWith } from "../../testing/network.ts";
import { eventually, residentMiB, Site } from "../../testing/programs.ts";

const COUNT = Number(process.env["REVERSE_HTTP_TEST_AGENTS"] ?? 200);
/** Timeout, reached only by a failing test. */
const PATIENCE_MS = 90_000;

/** Lifetime after which a connection counts as settled. */
const SETTLED_AFTER_MS = 1_000;

/** Concurrent connection attempts: this process has the processors of one machine, not of thousands. */
const TURNS = 64;

/** The number of `times` in each second since `start`. */
function perSecond(times: readonly number[], start: number): number[] {
  const seconds = times.filter((at) => at >= start).map((at) => Math.floor((at - start) / 1_000));
  return Array.from({ length: Math.max(0, ...seconds) + 1 }, (_, second) => seconds.filter((at) => at === second).length);
}

/** A network with a limit on concurrent attempts; the others wait. `onAttempt` is called when an attempt would have started. */
function byTurns(net: Net, onAttempt: () => void): Net {
  let inside = 0;
  const waiting: (() => void)[] = [];
  return netWith(net, {
    async connectQuic(options) {
      onAttempt();
      if (inside >= TURNS) await new Promise<void>((resolve) => waiting.push(resolve));
      else inside++;
      try {
        if (options.signal?.aborted) throw new NetError("cancelled", "given up before its turn"); // without an attempt
        return await net.connectQuic(options);
      } finally {
        const next = waiting.shift();
        if (next) next();
        else inside--;
      }
    },
  });
}

describe("many agents", () => {
  it("all reconnect, spread over several seconds, when their proxy is killed or stopped and restarted", async () => {
    await using site = await Site.create();
    const first = await site.startProxy();
    const { addresses } = first;
    let { proxy } = first;
    const emptyMiB = residentMiB(proxy.pid);
    const attempts: number[] = [];
    const net = byTurns(createNativeNet(), () => attempts.push(Date.now()));
    const agents: Agent[] = [];
    try {
      for (let i = 0; i < COUNT; i++) {
        const options = withDefaults(agentOptions, {
          agentClient: { serverAddress: [addresses.agents], tls: { file: { rootCa: site.files.ca } } },
          auth: { noauth: { agentId: `a${i}` } },
          limits: { tunnels: 100 }, // room for many more costs memory
        });
        agents.push(await startAgent(options, { net, log: silentLogger, settledAfterMs: SETTLED_AFTER_MS }));
        // as many handshakes under way as the machine likes
        await eventually(() => proxy.logged("agent connected").length > i - 20, () => "agents do not connect");
      }
      // an agent may connect twice: over TLS too, while QUIC is silent
      const connectedIds = () => new Set(proxy.logged("agent connected").map(({ agent }) => agent));
      const isBack = () => connectedIds().size >= COUNT;
      await eventually(isBack, () => "agents do not connect", PATIENCE_MS);
      const kib = (residentMiB(proxy.pid) - emptyMiB) * 1_024 / COUNT;
      console.log(`${COUNT} agents: ${kib.toFixed(1)} KiB of the proxy's memory each`);
      for (const signal of ["SIGKILL", "SIGTERM"] as const) {
        await sleep(SETTLED_AFTER_MS);
        const start = Date.now();
        proxy.expectCutOff();
        proxy.signal(signal);
        await proxy.ended;
        ({ proxy } = await site.startProxy([], addresses));
        await eventually(isBack, () => `${connectedIds().size} of ${COUNT} agents are back`, PATIENCE_MS);
        const connected = proxy.logged("agent connected").map((entry) => Date.parse(String(entry["@timestamp"])));
        const failed = proxy.logged("agent handshake failed").length + proxy.logged("agent refused").length;
        const begun = perSecond(attempts, start);
        console.log(
          `${signal}: all back after ${Date.now() - start} ms, ${failed} failed; in each second attempts were begun: ${begun.join(" ")}; ` +
            `and agents connected: ${perSecond(connected, start).join(" ")}`,
        );
        // who is sent away is told to come back at a rate that depends on their number
        if (signal === "SIGKILL") assert.ok(Math.max(...begun) < COUNT * 0.8, "all come in the same second");
        assert.equal(connectedIds().size, COUNT);
      }
    } finally {
      await Promise.all(agents.map((agent) => agent.close()));
      net.close();
    }
  });
});
