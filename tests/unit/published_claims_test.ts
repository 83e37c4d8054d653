// What agents publish, shared by proxies in the store and looked up by lb.
import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { lbOptions, publishedPorts } from "../../lb/options.ts";
import { PublishedNames } from "../../lb/published_names.ts";
import { PublishedForwards } from "../../proxy/agents/published_forwards.ts";
import type { ConnectedAgent } from "../../proxy/agents/registry.ts";
import { createPublishList } from "../../shared/auth/publish_list.ts";
import type { Forward } from "../../shared/frontend/forwards/forwards.ts";
import { ClaimedError, claimKey, decodeClaim, encodeClaim, ForwardClaims } from "../../shared/frontend/forwards/claims.ts";
import { publishedForward } from "../../shared/frontend/forwards/published.ts";
import type { PublishRequest } from "../../shared/link/message.ts";
import { createMemoryStore } from "../../shared/store/memory.ts";
import { StoreError } from "../../shared/store/store.ts";
import { LogBook } from "../../testing/network.ts";

const WEB = { listen: ":443", to: "web:443", sni: ["www.site.example", "*.apps.site.example"], allow: ["all"] };

/** A proxy whose listeners only remember what they have. */
function startProxy(store: ConstructorParameters<typeof ForwardClaims>[0]) {
  const [log, open] = [new LogBook(), new Set<Forward>()];
  const listeners = {
    add: (forward: Forward) => Promise.resolve(void open.add(forward)),
    remove: (forward: Forward) => void open.delete(forward),
  };
  const published = new PublishedForwards(listeners, log, { claims: new ForwardClaims(store), ttlMs: 300 });
  const connect = (agentId: string, ...publish: PublishRequest[]) => {
    const agent = { identity: { agentId, publish: createPublishList([":1-65535"]) }, hello: { publish } } as unknown as ConnectedAgent;
    published.connected(agent);
    return agent;
  };
  const agents = () => Array.from(open, ({ agent, to }) => `${agent} ${to}`).sort();
  return { log, published, connect, agents };
}

async function until(check: () => boolean): Promise<void> {
  for (let i = 0; !check(); i++) {
    assert.ok(i < 500, "It never held");
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
}

describe("several proxies", () => {
  it("let what an agent has asked for last replace what it asked for before, and not the other way round", async () => {
    const store = createMemoryStore();
    const claims = new ForwardClaims(store);
    const [before, now] = [{ ...WEB, to: "before:1" }, { ...WEB, to: "now:1" }];
    const held = async () => decodeClaim(await store.lookup(claimKey("tcp", 443, "www.site.example")))?.to;
    await claims.hold(publishedForward(before, "first"), before, true);
    await claims.hold(publishedForward(now, "first"), now, true);
    assert.equal(await held(), "now:1");
    await claims.hold(publishedForward(before, "first"), before, false);
    assert.equal(await held(), "now:1", "A renewal");
    store.close();
  });

  it("publish a name for the agent that was first at any of them, and for the next one when it has left all", async () => {
    let now = 0;
    const store = createMemoryStore({ ttlMs: 300, now: () => now });
    const [one, two] = [startProxy(store), startProxy(store)];
    const first = one.connect("first", WEB);
    await until(() => one.agents().length === 1);
    two.connect("second", { ...WEB, sni: ["www.site.example"], to: "other:1" });
    await two.log.waitFor("forward of an agent refused", {
      agent: "second",
      reason: "the agent first publishes www.site.example at :443, at this proxy or another one",
    });
    two.connect("first", WEB); // it is connected to both
    await until(() => two.agents().includes("first web:443"));
    two.connect("third", { listen: ":443", to: "rest:1", allow: ["all"] }); // clients without a name are others
    await until(() => two.agents().includes("third rest:1"));
    one.published.disconnected(first);
    await until(() => one.agents().length === 0);
    now += 200; // the other proxy renews it
    await new Promise((resolve) => setTimeout(resolve, 250));
    now += 200;
    assert.deepEqual(two.agents(), ["first web:443", "third rest:1"]);
    one.published.close();
    two.published.close();
    now += 400; // as after the end of both
    const three = startProxy(store);
    three.connect("second", { ...WEB, to: "other:1" });
    await until(() => three.agents().includes("second other:1"));
    three.published.close();
    store.close();
  });

  it("decide alone without the store, and give a name up that another one's agent has got meanwhile", async () => {
    const store = createMemoryStore();
    let isDown = true;
    const fail = () => Promise.reject(new StoreError("down"));
    const flaky = {
      set: (key: string, value: string) => isDown ? fail() : store.set(key, value),
      renew: (key: string, value: string) => isDown ? fail() : store.renew(key, value),
      lookup: (key: string) => isDown ? fail() : store.lookup(key),
    };
    const proxy = startProxy(flaky);
    proxy.connect("alone", WEB);
    await until(() => proxy.agents().length === 1);
    await new ForwardClaims(store).hold(publishedForward(WEB, "other"), WEB, true);
    isDown = false;
    await until(() => proxy.agents().length === 0);
    await proxy.log.waitFor("forward of an agent refused", { agent: "alone" });
    proxy.published.close();
  });

  it("take only one of two agents that claim a name at the same time", async () => {
    const store = createMemoryStore();
    const claims = new ForwardClaims(store);
    const results = await Promise.allSettled(["a", "b"].map((agent) => claims.hold(publishedForward(WEB, agent), WEB, true)));
    const refused = results.filter(({ status }) => status === "rejected");
    assert.equal(refused.length, 1);
    assert.ok((refused[0] as PromiseRejectedResult).reason instanceof ClaimedError);
    // an agent that asks for something else replaces its own claim
    const winner = results[0]!.status === "fulfilled" ? "a" : "b";
    await claims.hold(publishedForward({ ...WEB, to: "new:1" }, winner), { ...WEB, to: "new:1" }, true);
    assert.equal(decodeClaim(await store.lookup(claimKey("tcp", 443, "www.site.example")))?.to, "new:1");
  });

  it("ignore entries that no proxy has written", async () => {
    const [store, key] = [createMemoryStore(), claimKey("tcp", 443, "www.site.example")];
    const agents = ["", "a b", "a\nb", "\u001b[2J", "x".repeat(251), 7, null];
    for (const agent of agents) {
      const entry = JSON.stringify({ agent, request: WEB });
      assert.equal(decodeClaim(entry), undefined, entry);
      await store.set(key, entry);
      await new ForwardClaims(store).checkAll(publishedForward(WEB, "first"));
    }
    store.close();
  });

  it("claim everything in another store, where lb finds it", async () => {
    const [before, after] = [createMemoryStore(), createMemoryStore()];
    const proxy = startProxy(before);
    const names = new PublishedNames(before, { now: () => 0 });
    const record = { listen: ":8443", network: "tls", tokenFile: "/token" } as const;
    const found = async () => (await names.connections(record, 443, "www.site.example")).match("www.site.example")?.forward.agent;
    await new ForwardClaims(after).hold(publishedForward({ ...WEB, sni: ["b.example"] }, "second"), { ...WEB, sni: ["b.example"] }, true);
    proxy.connect("first", WEB);
    proxy.connect("loser", { ...WEB, sni: ["b.example"] });
    await until(() => proxy.agents().length === 2);
    while (await before.lookup(claimKey("tcp", 443, "www.site.example")) === undefined) await new Promise((resolve) => setTimeout(resolve));
    assert.equal(await found(), "first");
    proxy.published.share({ claims: new ForwardClaims(after), ttlMs: 86_400_000 });
    await until(() => proxy.agents().length === 1); // another agent has the other name there
    assert.deepEqual(proxy.agents(), ["first web:443"]);
    assert.equal(decodeClaim(await after.lookup(claimKey("tcp", 443, "www.site.example")))?.agent, "first");
    before.close();
    names.use({ lookup: () => Promise.resolve(undefined) });
    assert.equal(await found(), undefined);
    names.use(after);
    assert.equal(await found(), "first");
    proxy.published.close();
    after.close();
  });
});

describe("lb", () => {
  const record = { listen: ":8443", network: "tls", tokenFile: "/token" } as const;

  it("finds names, zones and whole ports, and nothing that is published in another way", async () => {
    const store = createMemoryStore();
    const claims = new ForwardClaims(store);
    const hold = (agent: string, request: PublishRequest) => claims.hold(publishedForward(request, agent), request, true);
    await hold("web", WEB);
    await hold("site", { listen: ":443", network: "https", host: ["blog.example"], to: "blog:80", auth: "token" });
    await hold("path", { listen: ":443", network: "https", host: ["path.example"], path: ["/api"], to: "api:80" });
    await hold("db", { listen: ":5432", to: "db:5432" });
    await store.set(claimKey("tcp", 443, "junk.example"), "127.0.0.1:3128");
    await store.set(claimKey("tcp", 443, "odd.example"), encodeClaim("x", { listen: ":443", to: 7 }));
    const names = new PublishedNames(store);
    const agentAt = async (port: number, name?: string) => {
      const match = (await names.connections(record, port, name)).match(name);
      return match && `${match.forward.agent} ${match.forward.tokenFile}`;
    };
    assert.equal(await agentAt(443, "WWW.site.example"), "web /token");
    assert.equal(await agentAt(443, "a.b.apps.site.example"), "web /token");
    for (const name of ["apps.site.example", "blog.example", "junk.example", "odd.example", undefined]) {
      assert.equal(await agentAt(443, name), undefined);
    }
    assert.equal(await agentAt(5432), "db /token");
    const siteAt = async (host: string, path = "/") => (await names.requests(record, "https", 443, host, path)).match(host, path)?.forward;
    assert.deepEqual([(await siteAt("blog.example"))?.agent, (await siteAt("blog.example"))?.tokenFile], ["site", undefined]);
    for (const host of ["www.site.example", "path.example"]) assert.equal(await siteAt(host), undefined);
  });

  it("finds UDP ports apart from TCP ports, and gives visitors with certificates no token where the proxies know them", async () => {
    const store = createMemoryStore();
    const claims = new ForwardClaims(store);
    const hold = (agent: string, request: PublishRequest) => claims.hold(publishedForward(request, agent), request, true);
    await hold("names", { listen: ":53", network: "udp", to: "names:53" });
    await hold("staff", { listen: ":443", network: "https", host: ["staff.example"], to: "staff:80", auth: "mtls" });
    let knowsCertificates = false;
    const names = new PublishedNames(store, { knowsCertificates: () => knowsCertificates });
    const found = async (network: "tcp" | "udp") => {
      const group = await names.connections({ ...record, network }, 53, undefined);
      return [group.network, group.match()?.forward.agent, group.match()?.forward.tokenFile];
    };
    assert.deepEqual([await found("udp"), await found("tcp")], [["udp", "names", "/token"], ["tcp", undefined, undefined]]);
    const site = async () => (await names.requests(record, "https", 443, "staff.example", "/")).match("staff.example", "/")?.forward;
    assert.deepEqual([(await site())?.auth, (await site())?.tokenFile], ["mtls", "/token"]);
    knowsCertificates = true;
    assert.deepEqual([(await site())?.auth, (await site())?.tokenFile], ["mtls", undefined]);
  });

  it("finds sites by path, the longest one of the closest name, within a number of lookups", async () => {
    const store = createMemoryStore();
    const claims = new ForwardClaims(store);
    const hold = async (agent: string, host: string[], path: string[] = []) => {
      const request = { listen: ":443", network: "https", host, path, to: "site:80" };
      await claims.hold(publishedForward(request, agent), request, true);
    };
    await hold("root", ["site.example"]);
    await hold("api", ["site.example"], ["/api", "/v1/admin/"]);
    await hold("deep", ["site.example"], ["/api/deep"]);
    await hold("zone", ["*.example"], ["/api/deep/er"]);
    let asked = 0;
    const names = new PublishedNames({ lookup: (key) => (asked++, store.lookup(key)) });
    for (
      const [path, agent] of [
        ["/", "root"],
        ["/apis", "root"],
        ["/api", "api"],
        ["/api/", "api"],
        ["/api;v=1/x", "api"],
        ["/v1/admin", "api"],
        ["/v1/admin/x", "api"],
        ["/v1", "root"],
        ["/api/deep/er", "deep"],
        [undefined, "root"],
        [`/api/${"a/".repeat(5_000)}`, "api"],
      ] as const
    ) {
      asked = 0;
      const hosts = await names.requests(record, "https", 443, "site.example", path);
      assert.equal(hosts.match("site.example", path ?? "/")?.forward.agent, agent, (path ?? "none").slice(0, 20));
      assert.ok(asked <= 18, `${asked} lookups`);
    }
  });

  it("asks the store once a second for a name, and uses the last answer while it is down", async () => {
    let [asked, now, isDown] = [0, 0, false];
    const store = {
      lookup: (key: string) => {
        asked++;
        if (isDown) return Promise.reject(new StoreError("down"));
        return Promise.resolve(key === claimKey("tcp", 1, "") ? encodeClaim("db", { listen: ":1", to: "db:1" }) : undefined);
      },
    };
    const names = new PublishedNames(store, { now: () => now });
    const found = async () => (await names.connections(record, 1, undefined)).match()?.forward.agent;
    assert.deepEqual(await Promise.all([found(), found()]), ["db", "db"]);
    assert.equal(asked, 1);
    [now, isDown] = [2_000, true];
    assert.equal(await found(), "db");
    assert.equal(asked, 2);
    await assert.rejects(names.connections(record, 2, undefined), /store of published names cannot be reached/);
  });
});

describe("what lb serves", () => {
  const published = (...given: object[]) => lbOptions.published.check!(given as never);

  it("is a port, or a range of ports of which each has its counterpart at the agents", () => {
    const record = { listen: "[::1]:8000", lastPort: 8002, port: 9000, network: "tcp", tokenFile: "/token" } as const;
    assert.deepEqual(publishedPorts(record), [
      { listen: "[::1]:8000", port: 9000 },
      { listen: "[::1]:8001", port: 9001 },
      { listen: "[::1]:8002", port: 9002 },
    ]);
    assert.deepEqual(publishedPorts({ ...record, lastPort: undefined, port: undefined }), [{ listen: "[::1]:8000", port: 8000 }]);
  });

  it("has a bounded number of ports, and no range that is none", () => {
    const ranges: [listen: string, lastPort?: number, port?: number, problem?: RegExp][] = [
      [":1", 1_024],
      [":0"],
      [":8000", 8_000, 65_535],
      [":1", 1_025, undefined, /1025 ports; the limit is 1024/],
      [":8000", 7_999, undefined, /last-port=7999, which is before it/],
      [":0", 9, undefined, /last-port, and no first one/],
      [":8000", 8_001, 65_535, /beyond 65535/],
    ];
    for (const [listen, lastPort, port, problem] of ranges) {
      assert.match(published({ listen, lastPort, port }) ?? "", problem ?? /^$/, listen);
    }
    assert.match(published({ listen: ":1", lastPort: 1_000 }, { listen: ":2001", lastPort: 2_025 }) ?? "", /1025 ports/);
  });
});
