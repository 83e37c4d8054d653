// Proxies and a load balancer that answer operators for each other, on the in-memory network with a store in memory.
import assert from "node:assert/strict";
import { Buffer } from "node:buffer";
import { mkdirSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { describe, it } from "node:test";
import { startAgent } from "../../agent/agent.ts";
import { agentOptions } from "../../agent/options.ts";
import { startLoadBalancer } from "../../lb/lb.ts";
import { lbOptions } from "../../lb/options.ts";
import { type Proxy, startProxy } from "../../proxy/proxy.ts";
import { proxyOptions } from "../../proxy/options.ts";
import { withDefaults } from "../../shared/config/defaults.ts";
import type { Net } from "../../shared/net/net.ts";
import type { ClusterConfiguration, ClusterStatus, Events, Page, Sample, TunnelState } from "../../shared/service/api/types.ts";
import { sumFailureHistories, sumHistories } from "../../shared/service/api/cluster_sums.ts";
import { Directory, MAX_MEMBERS } from "../../shared/service/cluster/directory.ts";
import { ClusterKey } from "../../shared/service/cluster/key.ts";
import type { Member } from "../../shared/service/cluster/member.ts";
import { createMemoryStore } from "../../shared/store/memory.ts";
import type { Store } from "../../shared/store/store.ts";
import { ask, connectTo, LogBook, readUntil, withNet } from "../../testing/network.ts";
import { OidcIssuer } from "../../testing/oidc_issuer.ts";
import { Folder } from "../../testing/programs.ts";
import { listenTcp, pause, within } from "../conformance/support.ts";
import { checkTunnel, openTunnel } from "./tunnels.ts";

const [OPERATOR, VIEWER, KEY] = ["o".repeat(32), "v".repeat(32), "k".repeat(32)];

interface Asked {
  status: number;
  // deno-lint-ignore no-explicit-any -- JSON of every form
  body: any;
}

interface Part {
  readonly address: string;
  readonly log: LogBook;
  close(): Promise<void>;
}

interface Running {
  readonly net: Net;
  readonly store: Store;
  readonly keyFile: string;
  readonly proxies: readonly (Part & { readonly proxy: Proxy })[];
  readonly lb: Part;
  /** Asks a member. */
  send(to: Part, method: string, path: string, options?: { token?: string; body?: object }): Promise<Asked>;
  get(to: Part, path: string): Promise<Asked>;
  post(to: Part, path: string, body: object): Promise<Asked>;
}

/** Two proxies, each with one agent of its own and with the agent 4711, and a load balancer. */
async function withCluster(
  body: (running: Running) => Promise<void>,
  optionsOf: (folder: Folder, i: number) => object = () => ({}),
): Promise<void> {
  await withNet(async (net) => {
    using folder = new Folder();
    const [tokenFile, keyFile] = [join(folder.path, "tokens"), join(folder.path, "cluster-key")];
    writeFileSync(tokenFile, `operator anna ${OPERATOR}\nviewer bob ${VIEWER}\n`, { mode: 0o600 });
    writeFileSync(keyFile, `${KEY} # of the test\n`, { mode: 0o600 });
    const store = createMemoryStore();
    const adminOf = (port: number) => ({ listenAddress: `127.0.0.1:${port}`, tokenFile, cluster: { keyFile } });
    const proxies = await Promise.all([9101, 9102].map(async (port, i) => {
      const log = new LogBook();
      const options = withDefaults(proxyOptions, {
        agentServer: { listenAddress: "127.0.0.1:0" },
        httpProxy: { listenAddress: "127.0.0.1:0" },
        admin: adminOf(port),
        ...optionsOf(folder, i),
      });
      const configuration = {
        hash: `0123456789a${i}`,
        isReloaded: true,
        changed: [{ name: "log.level", value: "debug", origin: "--log.level" }],
      };
      const proxy = await startProxy(options, { net, log, store, configuration });
      const connect = (agentId: string) =>
        startAgent(withDefaults(agentOptions, { agentClient: { serverAddress: [proxy.agentAddress] }, auth: { noauth: { agentId } } }), {
          net,
          log: new LogBook(),
        });
      const agents = [await connect(`site${i + 1}`), await connect("4711")];
      await log.waitFor("agent connected", {}, 2);
      const close = async () => {
        await Promise.all(agents.map((agent) => agent.close()));
        await proxy.close();
      };
      return { address: proxy.adminAddress!, log, proxy, close };
    }));
    const log = new LogBook();
    const options = withDefaults(lbOptions, { httpProxy: { listenAddress: "127.0.0.1:0" }, admin: adminOf(9103) });
    const balancer = await startLoadBalancer(options, { net, log, store });
    const lb = { address: balancer.adminAddress!, log, close: () => balancer.close() };
    const send: Running["send"] = async (to, method, path, { token = OPERATOR, body } = {}) => {
      const content = (JSON.stringify(body) ?? "").replaceAll("\u2028", "\\u2028"); // a byte for each character
      const type = body === undefined ? "" : `Content-Type: application/json\r\nContent-Length: ${content.length}\r\n`;
      const head = `${method} /api/v1/${path} HTTP/1.1\r\nHost: ${to.address}\r\nAuthorization: Bearer ${token}\r\n${type}\r\n`;
      const { status, body: text } = await ask(net, to.address, head + content);
      return { status, body: JSON.parse(text) };
    };
    const get: Running["get"] = (to, path) => send(to, "GET", path);
    const post: Running["post"] = (to, path, body) => send(to, "POST", path, { body });
    for (const part of [...proxies, lb]) {
      await until(async () => (await get(part, "status?scope=cluster")).body.members.length === 3);
    }
    await body({ net, store, keyFile, proxies, lb, send, get, post });
    await Promise.all([...proxies, lb].map((part) => part.close()));
    store.close();
  });
}

/** Waits until `check` holds. */
async function until(check: () => Promise<boolean>): Promise<void> {
  await within(
    (async () => {
      while (!await check()) await pause(50);
    })(),
    "It never held",
    15_000,
  );
}

const membersOf = ({ members = [] }: Pick<Page<unknown>, "members">) => members.map(({ member, error }) => [member, error]);

describe("each member of a cluster", () => {
  it("has the options of all members, but of those that a program has embedded", () =>
    withCluster(async ({ proxies: [one, two], lb, get }) => {
      for (const asked of [one!, two!, lb]) {
        const { members } = (await get(asked, "configuration?scope=cluster")).body as ClusterConfiguration;
        const hashes = members.map(({ member, error, configuration }) => [member, error, configuration?.hash]);
        assert.deepEqual(hashes.sort(), [
          [one!.address, undefined, "0123456789a0"],
          [two!.address, undefined, "0123456789a1"],
          [lb.address, undefined, undefined],
        ]);
      }
      assert.equal((await get(two!, "configuration")).body.hash, "0123456789a1");
      assert.equal((await get(lb, "configuration")).status, 404);
    }));

  it("lists the agents of all proxies, in one order and in pages, and counts them", () =>
    withCluster(async ({ proxies: [one, two], lb, get }) => {
      for (const asked of [one!, two!, lb]) {
        const { body } = await get(asked, "agents?scope=cluster");
        assert.deepEqual(body.items.map((item: { id: string }) => item.id), ["4711", "4711", "site1", "site2"]);
        assert.deepEqual(
          body.items.slice(2).map((item: { member: string }) => item.member),
          [one!.address, two!.address],
        );
        assert.deepEqual(membersOf(body).sort(), [[one!.address, undefined], [two!.address, undefined]]);
      }
      const { body: page } = await get(lb, "agents?scope=cluster&order=desc&offset=1&limit=2");
      assert.deepEqual([page.items.map((item: { id: string }) => item.id), page.total], [["site1", "4711"], 4]);
      const { body: filtered } = await get(one!, `agents?scope=cluster&member=${two!.address}`);
      assert.deepEqual([filtered.total, filtered.members.length], [2, 1]);
      const status = (await get(lb, "status?scope=cluster")).body as ClusterStatus;
      assert.deepEqual([status.service, status.now.agents, status.members.length], ["lb", 4, 3]);
      assert.equal((await get(one!, "agents")).body.total, 2);
      for (
        const [path, expected] of [
          ["agents?scope=cluster&offset=9990&limit=11", 400],
          ["agents?scope=galaxy", 400],
          ["agents?scope=cluster&sort=x", 400],
          ["events?scope=cluster&member=127.0.0.1:9102", 400],
          ["agents?member=x", 400],
          ["agents?scope=cluster&member=x", 404],
        ] as const
      ) assert.equal((await get(one!, path)).status, expected, path);
      assert.ok((await get(two!, "history?scope=cluster")).body.length > 0);
    }));

  it("shows, closes and audits a tunnel at another one, on behalf of the operator", () =>
    withCluster(async ({ net, proxies: [one, two], get, post, send }) => {
      const origin = await listenTcp(net);
      const tunnel = await openTunnel(net, two!.proxy, origin);
      await checkTunnel(tunnel);
      const { body: { items } } = await get(one!, "tunnels?scope=cluster&agent=4711&sort=rate");
      const [{ id, member }] = items as [TunnelState];
      assert.equal(member, two!.address);
      assert.equal((await get(one!, `tunnels/${id}?scope=cluster`)).body.member, two!.address);
      assert.equal((await get(one!, `tunnels/${id}`)).status, 404);
      assert.equal((await send(one!, "POST", "tunnels/close?scope=cluster", { token: VIEWER, body: { id } })).status, 403);
      const { body: result } = await post(one!, "tunnels/close?scope=cluster", { id });
      assert.equal(result.affected, 1);
      await assert.rejects(within(tunnel.client.read()), { code: "reset" });
      await two!.log.waitFor("operator action", { by: "anna", action: "close-tunnel", target: id, through: one!.address });
      assert.equal(one!.log.logged("operator action").length, 0);
      const { status, body } = await post(one!, "tunnels/close?scope=cluster", { id });
      assert.deepEqual([status, body.error], [404, "there is no such tunnel"]);
    }));

  it("disconnects an agent everywhere, and drains only whom the request names", () =>
    withCluster(async ({ proxies: [one, two], lb, get, post }) => {
      const { body } = await post(lb, "agents/disconnect?scope=cluster", { agent: "4711", awaySeconds: 60 });
      assert.equal(body.affected, 2);
      for (const { log } of [one!, two!]) await log.waitFor("operator action", { action: "disconnect-agent", target: "4711" });
      assert.equal((await post(lb, "agents/disconnect?scope=cluster", { agent: "nobody" })).status, 404);
      assert.equal((await post(lb, "agents/disconnect?scope=cluster", { agent: 7 })).status, 400);
      assert.equal((await post(one!, "tokens/revoke?scope=cluster", { tokenId: "x" })).status, 409);
      assert.equal((await post(one!, "drain?scope=cluster", {})).status, 400);
      assert.equal((await post(one!, `drain?scope=cluster&member=${two!.address}`, {})).status, 202);
      await within(two!.proxy.closed);
      assert.equal(one!.proxy.draining, false);
      // it has left: no request waits for it
      await until(async () => membersOf((await get(one!, "agents?scope=cluster")).body).length === 1);
    }));

  it("streams the events of all, and says whose are missing", () =>
    withCluster(async ({ net, store, keyFile, proxies: [one, two], post }) => {
      const watcher = await connectTo(net, one!.address);
      const head = `GET /api/v1/events?scope=cluster HTTP/1.1\r\nHost: ${one!.address}\r\nAuthorization: Bearer ${VIEWER}\r\n\r\n`;
      await watcher.write(new TextEncoder().encode(head));
      let text = "";
      /** The next event with this name that meets the condition. */
      const next = async <T>(name: string, check: (event: T) => boolean): Promise<T> => {
        for (;;) {
          const [event, ...rest] = text.split("\n\n");
          if (rest.length === 0) text += await readUntil(watcher, "\n\n");
          else {
            text = rest.join("\n\n");
            const json = new RegExp(`^event: ${name}\ndata: (.*)$`, "m").exec(event!)?.[1];
            if (json !== undefined && check(JSON.parse(json) as T)) return JSON.parse(json) as T;
          }
        }
      };
      const whose = ({ members }: Events["members"]) => Object.fromEntries(members.map(({ member, error }) => [member, error]));
      const isComplete = (event: Events["members"]) =>
        event.members.length === 3 && event.members.every(({ error }) => error === undefined);
      await next("members", isComplete);
      for (const { address } of [one!, two!]) {
        await next<Events["sample"]>("sample", ({ member, agents }) => member === address && agents === 2);
      }
      await checkTunnel(await openTunnel(net, two!.proxy, await listenTcp(net)));
      const { events: [tunnel] } = await next<Events["tunnels"]>("tunnels", () => true);
      assert.deepEqual([tunnel!.member, tunnel!.agent, tunnel!.state], [two!.address, "4711", "open"]);
      await post(two!, "reload", {});
      await next<Events["actions"]>(
        "actions",
        ({ events }) => events.some(({ member, action }) => member === two!.address && action === "reload"),
      );
      const odd = "x\u2028y"; // a line separator, which JSON has as it is
      await post(two!, "agents/disconnect", { agent: odd, awaySeconds: 1 });
      const written = Buffer.from(odd).toString("latin1");
      await next<Events["actions"]>("actions", ({ events }) => events.some(({ target }) => target === written));
      const key = await ClusterKey.open(keyFile, new LogBook());
      await store.set("reverse-http member 60", await key.signMember({ address: "127.0.0.1:9", service: "proxy", host: "gone" }));
      const gone = await next<Events["members"]>("members", (event) => whose(event)["127.0.0.1:9"] === "no service listens there");
      assert.equal(gone.members.length, 4);
      await two!.close();
      await next<Events["members"]>("members", ({ members }) => members.length === 3); // it has left
      void one!.proxy.close();
      await within((async () => {
        while (await watcher.read() !== null);
      })());
    }));

  it("says which members have not answered and why, and what is therefore unknown", () =>
    withCluster(async ({ net, store, keyFile, proxies: [one], get, post, send }) => {
      const key = await ClusterKey.open(keyFile, new LogBook());
      const garbage = await listenTcp(net);
      const serve = async () => {
        for (;;) {
          const { stream } = await garbage.request();
          await stream.write(new TextEncoder().encode("HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n<a>"));
          stream.close();
        }
      };
      serve().catch(() => {}); // the network is closed
      const others: Member[] = [
        { address: "127.0.0.1:9", service: "proxy", host: "gone" },
        { address: `127.0.0.1:${garbage.port}`, service: "proxy", host: "other" },
      ];
      for (const [i, member] of others.entries()) await store.set(`reverse-http member ${60 + i}`, await key.signMember(member));
      await store.set("reverse-http member 62", "127.0.0.1:3128"); // no member has written that
      await until(async () => (await get(one!, "agents?scope=cluster")).body.members.length === 4);
      const { body } = await get(one!, "agents?scope=cluster");
      assert.equal(body.total, 4);
      const errors = Object.fromEntries(membersOf(body).filter(([, error]) => error !== undefined));
      assert.deepEqual(errors, {
        [others[0]!.address]: "no service listens there",
        [others[1]!.address]: "the response is not one of a member",
      });
      const unknown = await post(one!, "tunnels/close?scope=cluster", { id: "x" });
      assert.equal(unknown.status, 503);
      assert.match(unknown.body.error, /^there is no such tunnel where members have answered; .*127\.0\.0\.1:9: no service listens there/);
      const { status, body: done } = await post(one!, "agents/disconnect?scope=cluster", { agent: "4711" });
      assert.deepEqual([status, done.affected, membersOf(done).filter(([, error]) => error !== undefined).length], [200, 2, 2]);
      assert.equal((await get(one!, "tunnels/x?scope=cluster")).status, 503);
      // a member is asked for its own part, and not to ask on; and only by who has the key
      const to = one!.address;
      const asMember = async (target: string, signed = target, method = "GET") => {
        const request = { to, from: "a:1", operator: { name: "anna", role: "operator" }, method: "GET", target: signed, body: "" } as const;
        const head = `${method} ${target} HTTP/1.1\r\nHost: anything\r\nAuthorization: Cluster ${await key.signRequest(request)}\r\n\r\n`;
        const { status, body } = await ask(net, to, head);
        return [status, JSON.parse(body).error];
      };
      assert.deepEqual(await asMember("/api/v1/agents"), [200, undefined]);
      assert.deepEqual(await asMember("/api/v1/agents?scope=cluster"), [409, "members ask each other for their own part only"]);
      assert.deepEqual(await asMember("/api/v1/agents", "/api/v1/status"), [401, "the request is not the one that was signed"]);
      const { status: unsigned } = await send(one!, "GET", "agents", { token: KEY });
      assert.equal(unsigned, 401);
    }));

  let folderPath = "";

  it("ends the sessions of a person who has signed out at the issuer, which tells one of them, and says who has not done it", async () => {
    await using issuer = await OidcIssuer.start();
    await withCluster(async ({ net, proxies: [one, two], lb }) => {
      const origin = await listenTcp(net);
      const [alice, bob] = [await issuer.sign(), await issuer.sign({ sub: "u-2" })];
      const tunnels = [];
      for (const proxy of [one!.proxy, two!.proxy]) {
        for (const token of [alice, bob]) tunnels.push(await openTunnel(net, proxy, origin, token));
      }
      const [here, bobHere, elsewhere, bobElsewhere] = tunnels;
      const post = async (to: Part, form: string) => {
        const { status, body } = await ask(
          net,
          to.address,
          `POST /backchannel-logout HTTP/1.1\r\nHost: ops.example\r\nContent-Type: application/x-www-form-urlencoded\r\n` +
            `Content-Length: ${form.length}\r\n\r\n${form}`,
        );
        return [status, JSON.parse(body)];
      };
      const event = { "http://schemas.openid.net/event/backchannel-logout": {} };
      const logout = `logout_token=${await issuer.sign({ aud: "rht", events: event })}`;
      assert.deepEqual(await post(one!, ""), [400, { error: "invalid_request", error_description: "The request has no logout_token" }]);
      assert.equal((await post(one!, `logout_token=${alice}`))[0], 400);
      assert.equal((await post(lb, logout))[0], 400); // it accepts none
      for (const tunnel of tunnels) await checkTunnel(tunnel);
      assert.deepEqual(await post(one!, logout), [200, { affected: 1 }]);
      for (const tunnel of [here!, elsewhere!]) await assert.rejects(within(tunnel.client.read()), { code: "reset" });
      for (const tunnel of [bobHere!, bobElsewhere!]) await checkTunnel(tunnel);
      // a client of the issuer that one member alone has
      const ofOne = await issuer.sign({ aud: "one", sub: "u-2", events: event });
      assert.deepEqual(await post(one!, `logout_token=${ofOne}`), [200, { affected: 1 }]);
      await assert.rejects(within(bobHere!.client.read()), { code: "reset" });
      await checkTunnel(bobElsewhere!);
      assert.equal((await post(two!, `logout_token=${ofOne}`))[0], 400);
      await two!.log.waitFor("operator action", { by: "issuer", action: "end-session", target: "u-1", through: one!.address });
      await one!.log.waitFor("operator action", { by: "issuer", action: "end-session", target: "u-1" });
      for (const tunnel of tunnels) tunnel.client.reset(1);
      // one that is stopped leaves; one whose list cannot be written has not done it
      rmSync(join(folderPath, "revoked1"));
      mkdirSync(join(folderPath, "revoked1"));
      const [status, { error_description: why }] = await post(
        one!,
        `logout_token=${await issuer.sign({ sub: "u-2", aud: "rht", events: event })}`,
      );
      assert.deepEqual([status, why], [503, "it has not ended at all members of the cluster"]);
      const [{ members }] = one!.log.logged("a session has not ended at all members of the cluster") as [{ members: string }];
      assert.equal(members, `${two!.address}: status 503`);
    }, (folder, i) => {
      folderPath = folder.path;
      const revocationFile = folder.write(`revoked${i}`, "");
      return {
        auth: {
          clients: ["oidc"],
          jwt: { revocationFile },
          oidc: { issuer: issuer.url, audience: ["proxy"], logoutAudience: i === 0 ? ["rht", "one"] : ["rht"] },
        },
      };
    });
  });
});

describe("the key of a cluster", () => {
  const request = { to: "a:1", method: "POST", target: "/api/v1/reload", body: "{}" };
  const signed = { ...request, from: "b:1", operator: { name: "anna", role: "operator" } } as const;

  async function keysOf(folder: Folder, texts: readonly string[]): Promise<ClusterKey[]> {
    return await Promise.all(texts.map(async (text, i) => {
      const file = join(folder.path, `key${i}`);
      writeFileSync(file, text, { mode: 0o600 });
      return await ClusterKey.open(file, new LogBook());
    }));
  }

  it("accepts an action once, for the member that is asked, with its body, and while one key replaces another", async () => {
    using folder = new Folder();
    const [old, both, other] = await keysOf(folder, [KEY, `${"n".repeat(32)}\n${KEY}\n`, "x".repeat(32)]) as [
      ClusterKey,
      ClusterKey,
      ClusterKey,
    ];
    const token = await old.signRequest(signed);
    const refusals = [
      [both, { ...request, to: "c:1" }, /for another member/],
      [both, { ...request, body: "{ }" }, /not the one that was signed/],
      [both, { ...request, target: "/api/v1/drain" }, /not the one that was signed/],
      [other, request, /key of its --admin.cluster.key-file is another one/],
    ] as const;
    for (const [key, asked, why] of refusals) await assert.rejects(key.verifyRequest(token, asked), why);
    await assert.rejects(
      both.verifyRequest(await old.signMember({ address: "b:1", service: "lb", host: "b" }), request),
      /not one of a member/,
    );
    const { isAccepted, ...verified } = await both.verifyRequest(token, request);
    assert.deepEqual(verified, { from: "b:1", operator: signed.operator });
    await assert.rejects(both.verifyRequest(token, request), /served before/);
    let refused;
    for (let count = 0; refused === undefined && count < 20_000; count++) {
      refused = await both.verifyRequest(await old.signRequest(signed), request).then(() => undefined, (error: Error) => error.message);
    }
    assert.equal(refused, "too many requests of this operator have acted recently");
    await both.verifyRequest(await old.signRequest({ ...signed, operator: { name: "bob", role: "operator" } }), request);
    await assert.rejects(both.verifyRequest(token, request), /served before/); // it is not forgotten
    assert.equal(await both.readMember(token), undefined);
    assert.equal(await isAccepted(), true);
    writeFileSync(join(folder.path, "key1"), "n".repeat(32));
    assert.equal(await isAccepted(), false, "its key was removed");
    for (const text of ["short", `${"k".repeat(31)}\n`, "# none", "ä".repeat(40)]) {
      await assert.rejects(
        keysOf(folder, [text]),
        (error: Error) => /Cannot use --admin.cluster.key-file/.test(error.message) && !error.message.includes(text),
      );
    }
  });
});

describe("the list of members", () => {
  it("takes no copies of entries: not of one who has left, nor of the end of one who has started again", async () => {
    using folder = new Folder();
    const key = await ClusterKey.open(folder.write("key", KEY), new LogBook());
    const [store, log, hour] = [createMemoryStore(), new LogBook(), 3_600_000];
    let [now, date] = [0, Date.now()];
    const signer = {
      poll: () => key.poll(),
      readMember: (entry: string) => key.readMember(entry, date),
      signMember: (member: Member, previous?: string) => key.signMember(member, previous, date),
    };
    const joinAs = async (address: string) => {
      const self = (): Member => ({ address, service: "proxy", host: "h" });
      const directory = new Directory({ store, key: signer, self, ttlMs: 30_000, log, now: () => now });
      await directory.renew();
      return directory;
    };
    const entries = async () => await Promise.all([0, 1, 2].map((place) => store.lookup(`reverse-http member ${place}`)));
    const namesAfter = async (ms: number) => {
      now += ms;
      date += ms;
      return (await reader.list()).map(({ address }) => address);
    };
    const reader = await joinAs("a:1");
    const one = await joinAs("b:1");
    const [, alive] = await entries();
    assert.deepEqual(await namesAfter(3_000), ["b:1"]);
    await one.close();
    const [, left] = await entries();
    assert.deepEqual(await namesAfter(3_000), []);
    await store.set("reverse-http member 2", alive!);
    assert.deepEqual(await namesAfter(3_000), [], "an entry of one who has left");
    const again = await joinAs("b:1");
    assert.deepEqual(await namesAfter(3_000), ["b:1"]);
    await store.set("reverse-http member 2", left!);
    assert.deepEqual(await namesAfter(3_000), ["b:1"], "the end of an earlier process");
    // entries stay the same for an hour, and are signed again after that
    const [, before] = await entries();
    await again.renew();
    assert.equal((await entries())[1], before);
    await namesAfter(hour);
    await again.renew();
    const [, renewed] = await entries();
    assert.notEqual(renewed, before);
    assert.deepEqual(await namesAfter(3_000), ["b:1"]);
    await namesAfter(7 * hour);
    await reader.renew();
    await store.set("reverse-http member 1", renewed!);
    assert.deepEqual(await namesAfter(3_000), [], "one that is too old");
    store.close();
  });

  it("has each one once, forgets who has left, remembers who fell silent, and takes 64", async () => {
    using folder = new Folder();
    const file = join(folder.path, "key");
    writeFileSync(file, KEY, { mode: 0o600 });
    const key = await ClusterKey.open(file, new LogBook());
    let now = 0;
    const store = createMemoryStore({ ttlMs: 30_000, now: () => now });
    const log = new LogBook();
    const joinAs = async (address: string) => {
      const directory = new Directory({
        store,
        key,
        self: () => ({ address, service: "proxy", host: "h" }),
        ttlMs: 30_000,
        log,
        now: () => now,
      });
      await directory.renew();
      return directory;
    };
    const namesOf = async (directory: Directory) => (await directory.list()).map(({ address }) => address);
    const [one, two] = [await joinAs("a:1"), await joinAs("b:1")];
    now += 3_000;
    assert.deepEqual([await namesOf(one), await namesOf(two)], [["b:1"], ["a:1"]]);
    const again = await joinAs("b:1"); // it was killed and has started again
    now += 3_000;
    assert.deepEqual(await namesOf(one), ["b:1"]);
    now += 31_000;
    assert.deepEqual(await namesOf(one), ["b:1"], "It is silent, and still asked");
    await again.renew();
    await again.close();
    now += 3_000;
    assert.deepEqual(await namesOf(one), []);
    await one.renew();
    for (let i = 1; i < MAX_MEMBERS; i++) await joinAs(`m${i}:1`);
    assert.equal(log.logged("the cluster has no room for this member: others do not ask it").length, 0);
    await joinAs("late:1");
    assert.equal(log.logged("the cluster has no room for this member: others do not ask it").length, 1);
    now += 3_000;
    assert.equal((await one.list()).length, MAX_MEMBERS - 1);
    const broken = { ...store, lookup: () => Promise.reject(new Error("down")) };
    const blind = new Directory({ store: broken, key, self: () => ({ address: "z:1", service: "lb", host: "h" }), ttlMs: 30_000, log });
    await blind.renew();
    assert.deepEqual(await blind.list(), []);
    store.close();
  });
});

describe("histories of members", () => {
  const sample = (second: number, value: number): Sample => ({
    at: new Date(second * 1_000).toISOString(),
    agents: value,
    clients: 0,
    tunnels: 0,
    opened: 0,
    refused: 0,
    broken: 0,
    sent: 0,
    received: 0,
    sentRate: 0,
    receivedRate: 0,
    openRate: 0,
    memory: 0,
  });

  it("are summed by time: one that started later counts from then on, and a gap of one is a gap of the sum", () => {
    const [long, late] = [[0, 2, 4, 6, 8, 10, 12, 14, 16].map((s) => sample(s, 1)), [5, 7, 15].map((s) => sample(s, 10))];
    assert.deepEqual(sumHistories([late, long]).map(({ at, agents }) => [Date.parse(at) / 1_000, agents]), [
      [0, 1],
      [2, 1],
      [4, 1],
      [6, 11],
      [8, 11],
      [10, 11],
      [12, 11],
      [16, 11],
    ]);
    assert.deepEqual(sumHistories([]), []);
  });

  it("of failures are summed minute by minute, by cause", () => {
    const minutes = (second: number) => [0, 1, 2].map((minute) => new Date((minute * 60 + second) * 1_000).toISOString());
    const cause = (error: "dns_error" | "dns_timeout", ...counts: number[]) => ({ kind: "refused" as const, error, counts });
    const own = { minutes: minutes(60), causes: [cause("dns_error", 1, 0, 0)] };
    const other = { minutes: minutes(80), causes: [cause("dns_error", 1, 2, 3), cause("dns_timeout", 0, 0, 9)] };
    const behind = { minutes: minutes(0), causes: [cause("dns_error", 5, 1, 0)] };
    assert.deepEqual(sumFailureHistories(own, [own, other, behind]), {
      minutes: own.minutes,
      causes: [cause("dns_timeout", 0, 0, 9), cause("dns_error", 3, 2, 3)],
    });
  });
});
