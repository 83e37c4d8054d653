// The proxy that an agent connects to next: not one that it is already connected to or is leaving, if there is another.
import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { ProxyEndpoints } from "../../agent/proxy_endpoints.ts";

describe("targets", () => {
  it("are tried in turn", async () => {
    const targets = new ProxyEndpoints(["a:1", "b:2"]);
    const tried = [];
    for (let i = 0; i < 4; i++) {
      const target = await targets.acquire();
      tried.push(target.address);
      targets.release(target, "active");
    }
    assert.deepEqual(tried, ["a:1", "b:2", "a:1", "b:2"]);
  });

  it("are never used twice while another is free, and shared evenly if none is", async () => {
    const targets = new ProxyEndpoints(["a:1", "b:2"]);
    const taken = [await targets.acquire(), await targets.acquire(), await targets.acquire()];
    assert.deepEqual(taken.map(({ address }) => address), ["a:1", "b:2", "a:1"]);
    targets.release(taken[1]!, "active");
    assert.equal((await targets.acquire()).address, "b:2");
  });

  it("that are being left are used only if there is no other", async () => {
    const targets = new ProxyEndpoints(["a:1", "b:2"]);
    const left = await targets.acquire();
    targets.markLeaving(left);
    const other = await targets.acquire();
    assert.equal(other.address, "b:2");
    assert.equal((await targets.acquire()).address, "a:1", "the other one is in use");
    const only = new ProxyEndpoints(["a:1"]);
    only.markLeaving(await only.acquire());
    assert.equal((await only.acquire()).address, "a:1");
  });

  it("include each address of a name, with the name for the certificate", async () => {
    const targets = new ProxyEndpoints(["proxies:42"], () => Promise.resolve(["192.0.2.1", "2001:db8::1", "192.0.2.1"]));
    assert.deepEqual([await targets.acquire(), await targets.acquire(), (await targets.acquire()).address], [
      { address: "192.0.2.1:42", host: "192.0.2.1", port: 42, serverName: "proxies" },
      { address: "[2001:db8::1]:42", host: "2001:db8::1", port: 42, serverName: "proxies" },
      "192.0.2.1:42",
    ]);
  });

  it("follow changes of a name's addresses, and keep the name while it cannot be resolved", async () => {
    const answers = [[], ["192.0.2.1"], ["192.0.2.2"]];
    const targets = new ProxyEndpoints(["proxies:42"], () => Promise.resolve(answers.shift() ?? []));
    const taken = [await targets.acquire(), await targets.acquire(), await targets.acquire()];
    assert.deepEqual(taken.map(({ address }) => address), ["proxies:42", "192.0.2.1:42", "192.0.2.2:42"]);
    const unknown = new ProxyEndpoints(["[::1]:42"], () => Promise.reject(new Error("no such name")));
    assert.deepEqual(await unknown.acquire(), { address: "[::1]:42", host: "::1", port: 42, serverName: "::1" });
  });
});
