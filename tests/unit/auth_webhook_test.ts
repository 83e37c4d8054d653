// Authentication by a webhook: what it is asked, its answers and how long they count, and what happens when it gives none.
import assert from "node:assert/strict";
import { createServer } from "node:http";
import type { AddressInfo, Socket } from "node:net";
import process from "node:process";
import { describe, it } from "node:test";
import { AuthenticationError, type ClientCredentials, identifyClient, type Identity } from "../../shared/auth/authenticator.ts";
import { createWebhookProvider, type WebhookOptions } from "../../shared/auth/webhook.ts";
import { silentLogger } from "../../shared/log/logger.ts";
import { Folder } from "../../testing/programs.ts";
import { within } from "../conformance/support.ts";
import { SilentPort } from "../support/silent_port.ts";

const OPTIONS: WebhookOptions = { url: "https://hook.example/auth", connectTimeout: 1_000, timeout: 5_000, concurrency: 2, maxStale: 0 };
const ALICE: ClientCredentials = { scheme: "basic", username: "alice", password: "pw" };

/** A webhook without a network: it records what it is asked. */
class Hook {
  readonly asked: { readonly body: Record<string, unknown>; readonly headers: Record<string, string>; readonly url: string }[] = [];
  answer: () => Response | Promise<Response> = () => Response.json({});
  now = 0;
  readonly #provider;

  constructor(options: Partial<WebhookOptions> = {}) {
    this.#provider = createWebhookProvider({ ...OPTIONS, ...options }, {
      log: silentLogger,
      now: () => this.now,
      fetch: async (url, { body, headers }) => {
        this.asked.push({ url, body: JSON.parse(String(body)), headers: headers as Record<string, string> });
        return await this.answer();
      },
    });
  }

  as(credentials: ClientCredentials = ALICE, address = "192.0.2.1"): Promise<Identity> {
    return identifyClient(this.#provider, credentials, { address, requestId: "r-1" }, silentLogger);
  }
}

function refused(kind: AuthenticationError["kind"], message = /./) {
  return (error: unknown) => {
    assert.ok(error instanceof AuthenticationError, String(error));
    assert.match(error.message, message);
    return error.kind === kind;
  };
}

describe("a webhook", () => {
  it("is asked with what the client has sent, its address and the request's id, and with the operator's token", async () => {
    using folder = new Folder();
    const hook = new Hook({ tokenFile: folder.write("token", "s3cret\n") });
    await hook.as();
    await hook.as({ scheme: "basic", username: "alice#site-7", password: "pw" });
    await hook.as({ scheme: "bearer", token: "opaque" });
    await hook.as({ scheme: "basic", username: "#site-7", password: "opaque" });
    await hook.as({ scheme: "basic", username: "site-7", password: "eyJhbGciOiJFUzI1NiJ9.e30.c2ln" });
    const common = { client: "192.0.2.1", requestId: "r-1" };
    assert.deepEqual(hook.asked.map(({ body }) => body), [
      { user: "alice", password: "pw", ...common },
      { user: "alice", password: "pw", ...common },
      { token: "opaque", ...common },
      { token: "opaque", ...common },
      { token: "eyJhbGciOiJFUzI1NiJ9.e30.c2ln", ...common },
    ]);
    assert.equal(hook.asked[0]!.headers.Authorization, "Bearer s3cret");
    assert.equal(hook.asked[0]!.url, OPTIONS.url);
  });

  it("says who the client is and what it may reach", async () => {
    const hook = new Hook();
    hook.answer = () =>
      Response.json({ subject: "u-1", name: "Alice", groups: ["ops"], agent: "site-1", agents: ["site-*"], allow: ["db:5432"] });
    const { subject, name, groups, agentId, agents, allowList, user } = await hook.as();
    assert.deepEqual([subject, name, groups, agentId, user], ["u-1", "Alice", ["ops"], "site-1", "alice"]);
    assert.deepEqual([agents!.allows("site-2"), agents!.allows("x")], [true, false]);
    assert.deepEqual([allowList!.allows({ host: "db", port: 5432 }), allowList!.allows({ host: "db", port: 22 })], [true, false]);
    assert.equal((await hook.as({ scheme: "basic", username: "alice#site-2", password: "pw" })).agentId, "site-2");
    hook.answer = () => Response.json({ allow: [] });
    assert.equal((await hook.as()).allowList!.allows({ host: "db", port: 5432 }), false);
  });

  it("denies with 401 and 403, and its message is for the client too", async () => {
    const hook = new Hook();
    for (const status of [401, 403]) {
      hook.answer = () => Response.json({ message: "Your trial\nhas ended" }, { status });
      await assert.rejects(
        hook.as(),
        (error: AuthenticationError) => refused("denied", /trial/)(error) && error.advice === "Your trial?has ended",
      );
      hook.answer = () => new Response("no", { status });
      await assert.rejects(hook.as(), refused("denied"));
    }
  });

  it("is asked again after maxAge, for another password, and for another address", async () => {
    const hook = new Hook();
    let isAllowed = true;
    hook.answer = () => Response.json({ maxAge: 60 }, { status: isAllowed ? 200 : 403 });
    await hook.as();
    hook.now = 59_999;
    await hook.as();
    assert.equal(hook.asked.length, 1);
    await hook.as({ ...ALICE, password: "other" });
    await hook.as(ALICE, "192.0.2.2");
    assert.equal(hook.asked.length, 3);
    hook.now = 60_000;
    isAllowed = false;
    await assert.rejects(hook.as(), refused("denied"));
    await assert.rejects(hook.as(), refused("denied"));
    assert.equal(hook.asked.length, 4, "a denial is cached as well");
  });

  it("is asked about each tunnel too if it wants to be, and those answers count for that tunnel alone", async () => {
    const hook = new Hook();
    hook.answer = () => {
      const { destination } = hook.asked.at(-1)!.body;
      if (destination === "no:1") return Response.json({ message: "not you", maxAge: 60 }, { status: 403 });
      return Response.json({ perTunnel: true, maxAge: 60 });
    };
    const { authorize } = await hook.as();
    const to = (host: string, network: "tcp" | "udp" = "tcp") => authorize!({ agentId: "site-1", destination: { host, port: 1 }, network });
    await to("db");
    await to("db");
    await to("db", "udp");
    for (let i = 0; i < 2; i++) await assert.rejects(to("no"), refused("denied", /The webhook denies it: not you/));
    const common = { user: "alice", password: "pw", client: "192.0.2.1", requestId: "r-1" };
    assert.deepEqual(hook.asked.map(({ body }) => body), [
      common,
      { ...common, agent: "site-1", destination: "db:1", network: "tcp" },
      { ...common, agent: "site-1", destination: "db:1", network: "udp" },
      { ...common, agent: "site-1", destination: "no:1", network: "tcp" },
    ]);
    hook.now = 60_000;
    hook.answer = () => new Response("", { status: 500 });
    await assert.rejects(to("db"), refused("unavailable"));
    hook.answer = () => Response.json({});
    assert.equal((await hook.as()).authorize, undefined);
  });

  it("that gives no usable answer leaves it open, or its last answer counts for a time", async () => {
    const hook = new Hook({ maxStale: 1_000 });
    const broken: (() => Response | Promise<Response>)[] = [
      () => new Response("", { status: 500 }),
      () => new Response("", { status: 302, headers: { Location: "https://other.example" } }),
      () => new Response("not JSON"),
      () => Response.json([]),
      () => Response.json({ groups: "ops" }),
      () => Response.json({ agents: ["a*b*c"] }),
      () => Response.json({ maxAge: -1 }),
      () => Response.json({ perTunnel: 1 }),
      () => new Response("x".repeat(70_000)),
      () => Promise.reject(new TypeError("fetch failed")),
    ];
    for (const answer of broken) {
      hook.answer = answer;
      await assert.rejects(hook.as(), refused("unavailable", /gives no answer/));
    }
    hook.answer = () => Response.json({ subject: "u-1", maxAge: 1 });
    await hook.as();
    hook.answer = broken[0]!;
    hook.now = 1_999;
    assert.equal((await hook.as()).subject, "u-1");
    hook.now = 2_000;
    await assert.rejects(hook.as(), refused("unavailable"));
  });

  it("gets few requests at once, one for the same question, and those without a place are refused", async () => {
    const hook = new Hook();
    let release = () => {};
    const released = new Promise<void>((resolve) => release = resolve);
    hook.answer = () => released.then(() => Response.json({ maxAge: 60 }));
    const same = Array.from({ length: 50 }, () => hook.as());
    const others = Array.from({ length: 300 }, (_, i) => hook.as({ ...ALICE, username: `user-${i}` }).then(() => "ok", ({ kind }) => kind));
    await within(Promise.race(others)); // those without a place to wait
    assert.equal(hook.asked.length, 2);
    release();
    await Promise.all(same);
    const kinds = await Promise.all(others);
    assert.deepEqual([kinds.filter((kind) => kind === "unavailable").length, hook.asked.length], [300 - 1 - 256, 2 + 256]);
  });

  it("that is slow keeps no one waiting longer than the timeout, with the wait for a turn", async () => {
    const hook = new Hook({ concurrency: 1 });
    let release = () => {};
    hook.answer = () => new Promise((resolve) => release = () => resolve(Response.json({})));
    const [first, second] = ["a", "b"].map((username) => hook.as({ ...ALICE, username }));
    hook.now = 5_000;
    await within((async () => {
      while (hook.asked.length === 0) await new Promise((resolve) => setTimeout(resolve));
    })());
    release();
    await first;
    await assert.rejects(second!, refused("unavailable", /no turn within 5000 ms/));
    assert.equal(hook.asked.length, 1);
  });
});

describe("the connection to a webhook", () => {
  const providerFor = (url: string, connectTimeout: number) =>
    createWebhookProvider({ ...OPTIONS, url, connectTimeout, timeout: 20_000 }, { log: silentLogger });
  const as = (provider: ReturnType<typeof providerFor>, username = "alice") =>
    identifyClient(provider, { ...ALICE, username }, { address: "192.0.2.1", requestId: "r-1" }, silentLogger);

  it("is kept, and may be closed by the webhook in between; an answer may take longer than a connection", async () => {
    const sockets = new Set<Socket>();
    let requests = 0;
    const server = createServer(async (_, response) => {
      if (++requests === 1) await new Promise((resolve) => setTimeout(resolve, 600)); // longer than the connection may take
      response.end(JSON.stringify({ subject: `u-${requests}` }));
    });
    server.on("connection", (socket) => sockets.add(socket));
    await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
    const provider = providerFor(`http://127.0.0.1:${(server.address() as AddressInfo).port}/`, 500);
    assert.equal((await as(provider)).subject, "u-1");
    assert.equal((await as(provider)).subject, "u-2");
    assert.equal(sockets.size, 1);
    for (const socket of sockets) socket.destroy();
    assert.equal((await as(provider)).subject, "u-3");
    provider.close!();
    server.closeAllConnections();
    await new Promise((resolve) => server.close(resolve));
  });

  it("times out by itself", { skip: process.platform !== "linux" }, async () => {
    await using silent = await SilentPort.start();
    const provider = providerFor(`http://${silent.authority}/`, 50);
    await within(assert.rejects(as(provider), refused("unavailable", /no connection within 50 ms/)), "it took longer", 10_000);
    provider.close!();
  });
});
