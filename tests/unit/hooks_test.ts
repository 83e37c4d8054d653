// A program's hooks that fail: their caller continues.
import assert from "node:assert/strict";
import { createRequire } from "node:module";
import { describe, it } from "node:test";
import { startAgent } from "../../agent/agent.ts";
import { agentOptions } from "../../agent/options.ts";
import { startProxy } from "../../proxy/proxy.ts";
import { proxyOptions } from "../../proxy/options.ts";
import { Backoff } from "../../shared/async/backoff.ts";
import { withDefaults } from "../../shared/config/defaults.ts";
import { isolateHook, isolateLogger } from "../../shared/log/isolate.ts";
import type { Logger } from "../../shared/log/logger.ts";
import { createNativeNet } from "../../shared/net/native/binding.ts";
import type { Net } from "../../shared/net/net.ts";
import { bytes, listenTcp, within } from "../conformance/support.ts";
import { connectTo, LogBook, readUntil, withNet } from "../../testing/network.ts";
import { eventually, Folder } from "../../testing/programs.ts";

const FAULT = new Error("the hook is broken");
const fail = (): never => {
  throw FAULT;
};
const brokenLog: Logger = { trace: fail, debug: fail, info: fail, warn: fail, error: fail };

function proxyOn(address: string) {
  return withDefaults(proxyOptions, {
    agentServer: { listenAddress: address },
    httpProxy: { listenAddress: "127.0.0.1:0" },
    drain: { timeout: 0 },
  });
}

function agentOf(server: string) {
  return withDefaults(agentOptions, { agentClient: { serverAddress: [server] }, auth: { noauth: { agentId: "4711" } } });
}

const backoff = () => new Backoff({ initialMs: 10, maxMs: 50 });

/** Whether clients reach a destination through the agent. */
async function isServed(net: Net, clients: string): Promise<boolean> {
  const { listener, port } = await listenTcp(net);
  const client = await connectTo(net, clients);
  await client.write(bytes(`CONNECT 127.0.0.1:${port} HTTP/1.1\r\nProxy-Authorization: Basic ${btoa("4711:x")}\r\n\r\n`));
  const answer = await readUntil(client, "\r\n\r\n");
  client.close();
  listener.close();
  return answer.startsWith("HTTP/1.1 200 ");
}

describe("an agent", () => {
  const hooks = { "throw": fail, "reject": () => Promise.reject(FAULT) };
  for (const [what, hook] of Object.entries(hooks)) {
    it(`continues, reconnects and can be closed if its hooks ${what}`, () =>
      withNet(async (net) => {
        let called = 0;
        const log = new LogBook();
        const count = () => {
          called++;
          return hook();
        };
        let proxy = await startProxy(proxyOn("127.0.0.1:0"), { net, log: new LogBook() });
        const agent = await startAgent(agentOf(proxy.agentAddress), { net, log, backoff, onConnected: count, onDisconnected: count });
        await log.waitFor("connected");
        assert.equal(await isServed(net, proxy.clientAddress), true);
        const options = proxyOn(proxy.agentAddress);
        await proxy.close();
        proxy = await startProxy(options, { net, log: new LogBook() });
        await log.waitFor("connected", {}, 2);
        assert.equal(await isServed(net, proxy.clientAddress), true);
        assert.equal(called, 3);
        const failures = log.logged("hook failed");
        assert.deepEqual(failures.map(({ hook }) => hook), ["onConnected", "onDisconnected", "onConnected"]);
        assert.match(String(failures[0]!.error), /the hook is broken/);
        await within(agent.close());
        await proxy.close();
      }));
  }
});

describe("a proxy", () => {
  it("serves the clients of an agent if its hooks fail", () =>
    withNet(async (net) => {
      const log = new LogBook();
      const proxy = await startProxy(proxyOn("127.0.0.1:0"), { net, log, onAgentConnected: fail, onAgentDisconnected: fail });
      const agent = await startAgent(agentOf(proxy.agentAddress), { net, log: new LogBook(), backoff });
      await log.waitFor("hook failed", { hook: "onAgentConnected" });
      assert.equal(await isServed(net, proxy.clientAddress), true);
      await agent.close();
      await log.waitFor("hook failed", { hook: "onAgentDisconnected" });
      assert.equal(log.logged("agent connected").length, 1);
      await within(proxy.close());
    }));
});

describe("a logger that fails", () => {
  it("affects neither proxy nor agent", () =>
    withNet(async (net) => {
      const proxy = await startProxy(proxyOn("127.0.0.1:0"), { net, log: brokenLog });
      const agent = await startAgent(agentOf(proxy.agentAddress), { net, log: brokenLog, backoff });
      await eventually(() => proxy.agents === 1, () => "the agent is not connected");
      assert.equal(await isServed(net, proxy.clientAddress), true);
      await within(agent.close());
      await within(proxy.drain());
    }));

  it("is called with all arguments", () => {
    const log = new LogBook();
    const isolated = isolateLogger(log);
    for (const level of ["trace", "debug", "info", "warn", "error"] as const) isolated[level](level, { a: 1 });
    assert.deepEqual(log.entries.map(({ level, message, fields }) => [level, message, fields["a"]]), [
      ["trace", "trace", 1],
      ["debug", "debug", 1],
      ["info", "info", 1],
      ["warn", "warn", 1],
      ["error", "error", 1],
    ]);
  });
});

describe("a hook", () => {
  it("gets all its arguments", () => {
    const got: unknown[] = [];
    isolateHook("hook", (...args: [number, string]) => got.push(...args), new LogBook())!(1, "a");
    assert.deepEqual(got, [1, "a"]);
  });
});

describe("the native network", () => {
  it("completes the other calls of a batch if the callback for its warnings fails", async () => {
    using folder = new Folder();
    const addon = folder.write(
      "engine.cjs",
      `exports.Engine = class {
        constructor(settle) { exports.settle = settle; }
        setRef() {}
        listenTcp(op) { exports.op = op; }
      };`,
    );
    const net = createNativeNet({ addon, warn: fail });
    const listening = net.listenTcp({ address: "127.0.0.1:0" });
    const engine = createRequire(import.meta.url)(addon) as { op: number; settle: (batch: unknown[]) => void };
    engine.settle([0, undefined, "a warning", engine.op, undefined, [1, "127.0.0.1:1"]]);
    assert.equal((await within(listening)).address, "127.0.0.1:1");
  });
});
