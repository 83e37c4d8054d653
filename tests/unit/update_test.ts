// Options that change while a proxy runs: forwards open and close beside the others, and new tunnels follow new rules.
import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { proxyOptions } from "../../proxy/options.ts";
import { startProxy, type UpdatableProxy } from "../../proxy/proxy.ts";
import { type PartialValues, withDefaults } from "../../shared/config/defaults.ts";
import type { Net } from "../../shared/net/net.ts";
import { ask, connectTo, LogBook, withNet } from "../../testing/network.ts";

type Choices = PartialValues<ReturnType<typeof withDefaults<typeof proxyOptions>>>;

function optionsOf({ httpProxy, ...given }: Choices) {
  return withDefaults(proxyOptions, {
    ...given,
    agentServer: { listenAddress: "127.0.0.1:0" },
    httpProxy: { ...httpProxy, listenAddress: "127.0.0.1:0" },
  });
}

function withProxy(given: Choices, body: (net: Net, proxy: UpdatableProxy, log: LogBook) => Promise<void>): Promise<void> {
  return withNet(async (net) => {
    const log = new LogBook();
    const proxy = await startProxy(optionsOf(given), { net, log });
    await body(net, proxy, log);
    await proxy.close();
  });
}

const forward = (listen: string, to: string, more: object = {}) => ({ listen, agent: "4711", to, ...more });

describe("forwards that change", () => {
  it("open and close beside those that stay, whose listeners are not touched", () =>
    withProxy({ forward: [forward("127.0.0.1:7001", "a:1"), forward("127.0.0.1:7002", "b:2")] }, async (net, proxy, log) => {
      assert.equal(log.logged("forwarding").length, 2);
      const staying = await connectTo(net, "127.0.0.1:7001");
      await proxy.update(optionsOf({ forward: [forward("127.0.0.1:7001", "a:1"), forward("127.0.0.1:7003", "c:3")] }));
      assert.deepEqual(proxy.forwardAddresses, ["127.0.0.1:7001", "127.0.0.1:7003"]);
      assert.deepEqual(log.logged("forward closed").map(({ clients }) => clients), ["127.0.0.1:7002"]);
      assert.equal(log.logged("forwarding").length, 3);
      await assert.rejects(connectTo(net, "127.0.0.1:7002"), { code: "refused" });
      (await connectTo(net, "127.0.0.1:7003")).close();
      staying.close();
    }));

  it("of a thousand are the only ones that are touched", () => {
    const thousand = (first: string) => Array.from({ length: 1_000 }, (_, i) => forward(`127.0.0.1:${7_000 + i}`, i === 0 ? first : "a:1"));
    return withProxy({ forward: thousand("a:1") }, async (_, proxy, log) => {
      const counts = () => [log.logged("forwarding").length, log.logged("forward closed").length];
      assert.deepEqual(counts(), [1_000, 0]);
      await proxy.update(optionsOf({ forward: thousand("a:1") }));
      assert.deepEqual(counts(), [1_000, 0]);
      await proxy.update(optionsOf({ forward: thousand("b:2") }));
      assert.deepEqual(counts(), [1_001, 0]);
      await proxy.update(optionsOf({ forward: [...thousand("b:2").slice(1), forward("127.0.0.1:9000", "c:3")] }));
      assert.deepEqual(counts(), [1_002, 1]);
    });
  });

  it("lead new connections elsewhere through the same listener", () =>
    withProxy({ forward: [forward("127.0.0.1:7001", "a:1")] }, async (net, proxy, log) => {
      await proxy.update(optionsOf({ forward: [forward("127.0.0.1:7001", "b:2")] }));
      assert.deepEqual(log.logged("forward closed"), []);
      (await connectTo(net, "127.0.0.1:7001")).close();
      assert.equal((await log.waitFor("request")).destination, "b:2");
    }));

  it("are opened again if they become forwards of another kind", () =>
    withProxy({ forward: [forward("127.0.0.1:7001", "a:1")] }, async (_, proxy, log) => {
      await proxy.update(optionsOf({ forward: [forward("127.0.0.1:7001", "a:1", { network: "http" })] }));
      assert.deepEqual([log.logged("forward closed").length, proxy.forwardAddresses], [1, ["127.0.0.1:7001"]]);
    }));

  it("change nothing if an address cannot be listened on", () =>
    withProxy({ forward: [forward("127.0.0.1:7001", "a:1")] }, async (net, proxy) => {
      const other = await net.listenTcp({ address: "127.0.0.1:7003" });
      const wanted = { forward: [forward("127.0.0.1:7002", "a:1"), forward("127.0.0.1:7003", "b:2")], limits: { connections: 1 } };
      await assert.rejects(proxy.update(optionsOf(wanted)), { code: "address-in-use" });
      assert.deepEqual(proxy.forwardAddresses, ["127.0.0.1:7001"]);
      await assert.rejects(connectTo(net, "127.0.0.1:7002"), { code: "refused" });
      (await connectTo(net, "127.0.0.1:7001")).close();
      other.close();
    }));
});

describe("rules that change", () => {
  const CONNECT = (target: string) => `CONNECT ${target} HTTP/1.1\r\nHost: ${target}\r\nProxy-Authorization: Basic NDcxMTp4\r\n\r\n`;

  it("apply to new tunnels: the allow-list, and the rate", () =>
    withProxy({ httpProxy: { hostWhitelist: ["a:1"] } }, async (net, proxy) => {
      const status = async (target: string) => (await ask(net, proxy.clientAddress, CONNECT(target))).status;
      assert.deepEqual([await status("a:1"), await status("b:2")], [502, 403]);
      await proxy.update(optionsOf({ httpProxy: { hostWhitelist: ["b:2"] } }));
      assert.deepEqual([await status("a:1"), await status("b:2")], [403, 502]);
      await proxy.update(optionsOf({ limits: { tunnelRatePerClient: 1, tunnelBurst: 0 } }));
      assert.deepEqual([await status("a:1"), await status("a:1")], [502, 503]);
    }));
});
