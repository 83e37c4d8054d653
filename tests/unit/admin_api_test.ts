// The admin API of a proxy with an agent on the in-memory network: who may use it, what it shows, and what operators do with it.
import { Ajv2020 } from "ajv/dist/2020.js";
import assert from "node:assert/strict";
import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { describe, it } from "node:test";
import { type Agent, startAgent } from "../../agent/agent.ts";
import { agentOptions } from "../../agent/options.ts";
import { type Proxy, startProxy } from "../../proxy/proxy.ts";
import { proxyOptions } from "../../proxy/options.ts";
import { Backoff } from "../../shared/async/backoff.ts";
import { type PartialValues, withDefaults } from "../../shared/config/defaults.ts";
import { CloseCode } from "../../shared/link/link.ts";
import type { Net } from "../../shared/net/net.ts";
import { openApi } from "../../shared/service/api/openapi.ts";
import type { AgentState, FailureHistory, FailurePage, Page, Status, TunnelState } from "../../shared/service/api/types.ts";
import { ask, connectTo, LogBook, readUntil, withNet } from "../../testing/network.ts";
import { Folder } from "../../testing/programs.ts";
import { makeTokenKey } from "../../testing/tokens.ts";
import { parsePrivateKey } from "../../shared/auth/keys.ts";
import { signToken } from "../../shared/auth/token.ts";
import { bytes, listenTcp, pause, within } from "../conformance/support.ts";
import { AGENT_ID, checkTunnel, connectRequest, openTunnel, type Tunnel } from "./tunnels.ts";

type ProxyChoices = PartialValues<ReturnType<typeof withDefaults<typeof proxyOptions>>>;

const [OPERATOR, VIEWER] = ["o".repeat(32), "v".repeat(32)];

interface Asked {
  status: number;
  // deno-lint-ignore no-explicit-any -- JSON of every form
  body: any;
}

interface Running {
  net: Net;
  proxy: Proxy;
  agent: Agent;
  log: LogBook;
  folder: Folder;
  /** Sends a request with a token; fields replace those that it has. */
  send(
    method: string,
    path: string,
    options?: { token?: string; body?: unknown; fields?: Record<string, string | undefined> },
  ): Promise<Asked>;
  get(path: string): Promise<Asked>;
  post(path: string, body?: object): Promise<Asked>;
}

/** An operation of the OpenAPI document. */
interface Operation {
  responses: Record<string, { content: Content }>;
  requestBody: { content: Content };
}
type Content = Record<"application/json", { schema: { $ref?: string } }>;

/** Runs a proxy with an agent, and its admin server. */
async function withApi(
  body: (running: Running) => Promise<void>,
  given: (folder: Folder) => ProxyChoices | Promise<ProxyChoices> = () => ({}),
): Promise<void> {
  await withNet(async (net) => {
    using folder = new Folder();
    const tokenFile = join(folder.path, "tokens");
    writeFileSync(tokenFile, `operator anna ${OPERATOR}\nviewer bob ${VIEWER} # reads\n`, { mode: 0o600 });
    const log = new LogBook();
    const { admin, ...others } = await given(folder);
    const proxy = await startProxy(
      withDefaults(proxyOptions, {
        agentServer: { listenAddress: "127.0.0.1:0" },
        httpProxy: { listenAddress: "127.0.0.1:0" },
        admin: { listenAddress: "127.0.0.1:9090", tokenFile, ...admin },
        ...others,
      }),
      {
        net,
        log,
        configuration: { hash: "0123456789ab", isReloaded: true, changed: [{ name: "log.level", value: "debug", origin: "--log.level" }] },
      },
    );
    const options = withDefaults(agentOptions, {
      agentClient: { serverAddress: [proxy.agentAddress], labels: ["site=berlin"] },
      auth: others.auth ? { type: "jwt", jwt: { token: `file:${join(folder.path, "agent-token")}` } } : { noauth: { agentId: AGENT_ID } },
    });
    const backoff = () => new Backoff({ initialMs: 10, maxMs: 50 });
    const agent = await startAgent(options, { net, log: new LogBook(), backoff, random: () => 0 });
    await log.waitFor("agent connected");
    const send: Running["send"] = async (method, path, { token = OPERATOR, body, fields = {} } = {}) => {
      const content = body === undefined ? "" : typeof body === "string" ? body : JSON.stringify(body);
      const all = {
        "Host": "127.0.0.1:9090",
        "Authorization": token === "" ? undefined : `Bearer ${token}`,
        "Content-Type": body === undefined ? undefined : "application/json",
        "Content-Length": body === undefined ? undefined : String(content.length),
        ...fields,
      };
      const lines = Object.entries(all).filter(([, value]) => value !== undefined).map(([name, value]) => `${name}: ${value}\r\n`);
      const target = path.startsWith("/") ? path : `/api/v1/${path}`;
      const { status, body: text } = await ask(net, proxy.adminAddress!, `${method} ${target} HTTP/1.1\r\n${lines.join("")}\r\n${content}`);
      return { status, body: text === "" ? undefined : JSON.parse(text) };
    };
    const get = (path: string) => send("GET", path);
    const post = (path: string, body: object = {}) => send("POST", path, { body });
    await body({ net, proxy, agent, log, folder, send, get, post });
    await agent.close();
    await proxy.close();
  });
}

/** Waits until `check` holds. */
async function until(check: () => Promise<boolean>): Promise<void> {
  await within(
    (async () => {
      while (!await check()) await pause(20);
    })(),
    "It never held",
  );
}

/** Opens a tunnel, and waits until operators see it. */
async function withTunnel({ net, proxy, get }: Running, body: (tunnel: Tunnel, state: TunnelState) => Promise<void>): Promise<void> {
  const origin = await listenTcp(net);
  const tunnel = await openTunnel(net, proxy, origin);
  await checkTunnel(tunnel);
  const { body: page } = await get("tunnels");
  await body(tunnel, (page as Page<TunnelState>).items[0]!);
  tunnel.client.close();
  tunnel.server.close();
}

describe("the admin API", () => {
  it("needs a token, reads with either role, and acts only for operators who send JSON", () =>
    withApi(async ({ send }) => {
      for (const token of ["", "x".repeat(32), OPERATOR.slice(1)]) {
        assert.equal((await send("GET", "status", { token })).status, 401, token);
      }
      const { body: status } = await send("GET", "status", { token: VIEWER });
      assert.deepEqual([status.role, status.service, status.ready, status.now.agents], ["viewer", "proxy", true, 1]);
      assert.equal((await send("POST", "reload", { token: VIEWER, body: {} })).status, 403);
      for (const type of ["text/plain", "application/x-www-form-urlencoded", "application/json2", undefined]) {
        assert.equal((await send("POST", "reload", { body: {}, fields: { "Content-Type": type } })).status, 415, String(type));
      }
      assert.equal((await send("POST", "reload", { body: {}, fields: { "Content-Type": "application/json; charset=UTF-8" } })).status, 200);
      assert.equal((await send("POST", "tunnels/close", { body: "[]" })).status, 400);
      assert.equal((await send("POST", "tunnels/close", { body: "{" })).status, 400);
      assert.equal((await send("POST", "tunnels/close", { body: { id: 7 } })).status, 400);
      assert.equal((await send("POST", "reload", { body: {}, fields: { "Content-Length": "16385" } })).status, 413);
      assert.equal((await send("GET", "nothing")).status, 404);
      assert.equal((await send("DELETE", "status")).status, 404);
    }));

  it("is served under an address or localhost with its port, and under listed names, to no other site", () =>
    withApi(async ({ send }) => {
      const statusOf = async (fields: Record<string, string | undefined>) => (await send("GET", "status", { fields })).status;
      for (const host of ["127.0.0.1:9090", "localhost:9090", "[::1]:9090", "LOCALHOST:9090", "admin.example.com"]) {
        assert.equal(await statusOf({ Host: host }), 200, host);
      }
      const wrong = [
        "127.0.0.1.evil.com:9090",
        "evil.com:9090",
        "localhost",
        "127.0.0.1:80",
        "admin.example.com.evil.com",
        "admin.example.com:1",
        "",
      ];
      for (const host of [...wrong, undefined]) assert.equal(await statusOf({ Host: host }), 403, String(host));
      assert.equal(await statusOf({ Origin: "http://127.0.0.1:9090" }), 200);
      for (const origin of ["http://evil.com", "http://127.0.0.1:9091", "http://127.0.0.1", "null", "http://localhost:9090"]) {
        assert.equal(await statusOf({ Origin: origin }), 403, origin);
      }
      // what monitoring uses stays as it was
      assert.equal((await send("GET", "/healthz", { token: "", fields: { Host: "anything" } })).status, 200);
      assert.equal((await send("GET", "/agents", { token: "", fields: { Host: undefined } })).body[0].id, AGENT_ID);
    }, () => ({ admin: { hosts: ["admin.example.com"] } })));

  it("takes new tokens and refuses removed ones without a restart, and keeps the old ones while the file is invalid", () =>
    withApi(async ({ send, log, folder }) => {
      const file = join(folder.path, "tokens");
      writeFileSync(file, "operator anna short\n");
      await until(async () => {
        assert.equal((await send("GET", "status")).status, 200);
        return log.logged("token file cannot be used; its previous content stays in force").length > 0;
      });
      const added = "n".repeat(32);
      writeFileSync(file, `operator new ${added}\n`);
      await until(async () => (await send("GET", "status", { token: added })).status === 200);
      assert.equal((await send("GET", "status")).status, 401);
    }));

  it("is what its OpenAPI document describes", () =>
    withApi(async (running) => {
      const { get, post } = running;
      await withTunnel(running, async (_, { id }) => {
        await post("agents/disconnect", { agent: "nobody", awaySeconds: 1 });
        const { body: document } = await get("openapi.json");
        assert.deepEqual(document, JSON.parse(JSON.stringify(openApi(document.info.version))));
        const ajv = new Ajv2020({ strict: false, validateFormats: false, allErrors: true });
        ajv.addSchema(document, "api");
        const check = (schema: { $ref?: string }, value: unknown, what: string) => {
          const validate = ajv.compile(schema.$ref ? { $ref: `api${schema.$ref}` } : { ...schema, items: undefined });
          assert.ok(validate(value), `${what}: ${JSON.stringify(validate.errors)} of ${JSON.stringify(value)}`);
        };
        const bodies: Record<string, object> = {
          "/tunnels/close": { id },
          "/agents/disconnect": { agent: AGENT_ID },
          "/log-level": { level: "info" },
          "/tokens/revoke": { tokenId: "x" },
          "/sessions/end": { logoutToken: "x" },
        };
        for (const [path, { get: read, post: act }] of Object.entries(document.paths as Record<string, Record<string, Operation>>)) {
          if (path === "/drain" || path === "/events") continue;
          if (read) {
            const { status, body } = await get(path.slice(1).replace("{id}", id));
            assert.equal(status, 200, path);
            check(read.responses[200]!.content["application/json"].schema, body, path);
          }
          if (act) {
            const request = bodies[path] ?? {};
            check(act.requestBody.content["application/json"].schema, request, path);
            const { status, body } = await post(path.slice(1), request);
            check({ $ref: `#/components/schemas/${status < 400 ? "ActionResult" : "ErrorBody"}` }, body, path);
          }
        }
      });
    }));
});

describe("operators see", () => {
  it("who uses which agent, for what and how much, while the tunnel is open, and afterwards why it has ended", () =>
    withApi(async (running) => {
      const { get, log } = running;
      await withTunnel(running, async ({ client, server }, state) => {
        const { agent, destination, protocol, network, via, sent, received, sending } = state;
        assert.deepEqual([agent, protocol, network, via?.link, sending], [AGENT_ID, "http", "tcp", "quic", "open"]);
        assert.match(destination!, /^127\.0\.0\.1:/);
        assert.ok(sent >= 5 && received === 4, `${sent} ${received}`);
        assert.deepEqual((await get(`tunnels/${state.id}`)).body.id, state.id);
        for (
          const query of [
            `agent=${AGENT_ID}`,
            "client=127.0.0.1",
            `connection=${via!.connection}`,
            `q=${state.requestId}`,
            "sort=rate&order=desc",
          ]
        ) {
          assert.equal((await get(`tunnels?${query}`)).body.total, 1, query);
        }
        for (const query of ["agent=x", "client=192.0.2.1", "token=x", "state=ended", "q=nowhere", "offset=1"]) {
          assert.deepEqual((await get(`tunnels?${query}`)).body.items, [], query);
        }
        for (const query of ["agnet=7", "state=opne", "sort=x", "limit=0", "limit=1001", "offset=-1", "order=up"]) {
          assert.equal((await get(`tunnels?${query}`)).status, 400, query);
        }
        client.closeWrite();
        server.closeWrite();
        await log.waitFor("request", { status: 200 });
        const { body: ended } = await get(`tunnels/${state.id}`);
        assert.deepEqual([ended.state, ended.status, ended.error], ["ended", 200, undefined]);
        assert.equal((await get("tunnels?state=ended")).body.total, 1);
        assert.equal((await get("tunnels")).body.total, 0);
      });
    }));

  it("agents with their labels and links, and those that were here lately", () =>
    withApi(async ({ get, agent, log }) => {
      const [held] = ((await get("agents?label=site=berlin")).body as Page<AgentState>).items;
      assert.deepEqual([held!.id, held!.state, held!.link, held!.labels], [AGENT_ID, "connected", "quic", { site: "berlin" }]);
      assert.equal((await get("agents?label=site=rome")).body.total, 0);
      await agent.close();
      await log.waitFor("agent disconnected");
      let gone: AgentState[] = [];
      await until(async () => (gone = (await get("agents?state=gone")).body.items).length === 1);
      assert.match(gone[0]!.reason!, /closed by the agent/);
    }));

  it("refusals with their cause, and how many of each there were", () =>
    withApi(async ({ net, proxy, get }) => {
      const origin = await listenTcp(net);
      origin.listener.close();
      for (let i = 0; i < 2; i++) await ask(net, proxy.clientAddress, connectRequest(origin));
      await ask(net, proxy.clientAddress, `CONNECT a:1 HTTP/1.1\r\nHost: a\r\nProxy-Authorization: Basic ${btoa("nobody:x")}\r\n\r\n`);
      const { items, counts } = (await get("failures")).body as FailurePage;
      assert.deepEqual(items.map(({ kind, error, agent }) => [kind, error, agent]), [
        ["refused", "destination_unavailable", "nobody"],
        ["refused", "connection_refused", AGENT_ID],
        ["refused", "connection_refused", AGENT_ID],
      ]);
      assert.deepEqual(counts.map(({ error, count }) => [error, count]), [["connection_refused", 2], ["destination_unavailable", 1]]);
      assert.equal((await get("failures?error=destination_unavailable")).body.total, 1);
      const { failures } = (await get("status")).body as Status;
      assert.deepEqual(failures, counts);
      const [agent] = ((await get("agents")).body as Page<AgentState>).items;
      assert.equal(agent!.lastError?.error, "connection_refused");
    }));

  it("what happens as a stream of events, until the service closes", () =>
    withApi(async ({ net, proxy }) => {
      const watcher = await connectTo(net, proxy.adminAddress!);
      await watcher.write(bytes(`GET /api/v1/events HTTP/1.1\r\nHost: localhost:9090\r\nAuthorization: Bearer ${VIEWER}\r\n\r\n`));
      assert.match(await readUntil(watcher, ":\n\n"), /^HTTP\/1\.1 200 OK\r\n[^]*Content-Type: text\/event-stream\r\n/);
      await ask(net, proxy.clientAddress, `CONNECT a:1 HTTP/1.1\r\nHost: a\r\nProxy-Authorization: Basic ${btoa("nobody:x")}\r\n\r\n`);
      const text = await readUntil(watcher, "destination_unavailable");
      assert.match(text, /event: failures\ndata: \{"events":\[\{"kind":"refused"/);
      void proxy.close();
      await within((async () => {
        while (await watcher.read() !== null);
      })());
    }));
});

describe("operators", () => {
  it("close a tunnel at once, and the log and the audit log say who has done it", () => {
    let audit = "";
    return withApi(async (running) => {
      const { post, get, log } = running;
      await withTunnel(running, async ({ client }, { id }) => {
        assert.deepEqual((await post("tunnels/close", { id })).body, { affected: 1 });
        await assert.rejects(within(client.read()), { code: "reset" });
        const { reason, error } = await log.waitFor("request", { status: 200 });
        assert.deepEqual([reason, error], ["closed by the operator anna", "connection_terminated"]);
        await log.waitFor("operator action", { by: "anna", action: "close-tunnel", target: id });
        assert.equal((await post("tunnels/close", { id })).status, 404);
        assert.equal((await get("failures?kind=broken")).body.total, 1);
        const isAudited = () =>
          readFileSync(audit, "utf8").includes(`"by":"anna","action":"close-tunnel","target":"${id}","remote":"127.0.0.1:`);
        await until(() => Promise.resolve(isAudited()));
      });
    }, (folder) => {
      audit = join(folder.path, "audit.jsonl");
      return { audit: { file: audit } };
    });
  });

  it("disconnect an agent, which returns, and keep it away for a time", () =>
    withApi(async ({ post, get, log }) => {
      assert.equal((await post("agents/disconnect", { agent: "nobody" })).status, 404);
      assert.deepEqual((await post("agents/disconnect", { agent: AGENT_ID })).body, { affected: 1 });
      await log.waitFor("agent connected", { agent: AGENT_ID }, 2);
      assert.equal((await post("agents/disconnect", { agent: AGENT_ID, awaySeconds: 86_401 })).status, 400);
      assert.deepEqual((await post("agents/disconnect", { agent: AGENT_ID, awaySeconds: 3_600 })).body, { affected: 1 });
      await log.waitFor("agent refused");
      assert.equal((await get("agents")).body.total, 0);
      // without a time it may return
      await post("agents/disconnect", { agent: AGENT_ID });
      await log.waitFor("agent connected", { agent: AGENT_ID }, 3);
    }));

  it("revoke a token, which ends what was opened with it and stays revoked", () => {
    const key = makeTokenKey();
    let file = "";
    return withApi(async ({ post, get, log }) => {
      const [agent] = ((await get("agents?expires=100000")).body as Page<AgentState>).items;
      assert.ok(Date.parse(agent!.tokenExpiresAt!) > Date.now());
      assert.equal((await get("agents?expires=10")).body.total, 0);
      for (const tokenId of ["two words", "eyJhbGciOiJub25lIn0.eyJhIjoxfQ.", "a,b"]) {
        assert.equal((await post("tokens/revoke", { tokenId })).status, 409, tokenId);
      }
      assert.deepEqual((await post("tokens/revoke", { tokenId: agent!.tokenId })).body, { affected: 1 });
      await log.waitFor("agent disconnected", { jti: agent!.tokenId });
      assert.match(readFileSync(file, "utf8"), new RegExp(`^# no newline here\n${agent!.tokenId} # by anna, 20[^\n]*\n$`));
      await log.waitFor("agent refused");
      const { items: [refused], counts } = (await get("failures?kind=agent")).body as FailurePage;
      assert.deepEqual([refused!.error, refused!.agent, refused!.tokenId, refused!.status], [
        "credentials_ended",
        AGENT_ID,
        agent!.tokenId,
        CloseCode.unauthorized,
      ]);
      assert.match(refused!.reason, /revoked/);
      assert.ok(counts.some(({ kind, error }) => kind === "agent" && error === "credentials_ended"));
      const { minutes, causes } = (await get("failures/history")).body as FailureHistory;
      assert.deepEqual([minutes.length, causes.find(({ kind }) => kind === "agent")?.counts.length], [60, 60]);
    }, async (folder) => {
      const publicKey = join(folder.path, "public.pem");
      file = join(folder.path, "revoked");
      writeFileSync(publicKey, key.publicPem);
      writeFileSync(file, "# no newline here");
      writeFileSync(join(folder.path, "agent-token"), await tokenOf(key.privatePem), { mode: 0o600 });
      return { auth: { type: "jwt", jwt: { publicKey: [publicKey], revocationFile: file } } };
    });
  });

  it("list open tunnels by the expiry of their clients' tokens", () => {
    const key = makeTokenKey();
    let password = "";
    return withApi(async ({ net, proxy, get }) => {
      const tunnel = await openTunnel(net, proxy, await listenTcp(net), password);
      const { items: [found] } = (await get("tunnels?expires=100000&sort=expires")).body as Page<TunnelState>;
      assert.ok(Date.parse(found!.tokenExpiresAt!) > Date.now());
      assert.equal((await get("tunnels?expires=10")).body.total, 0);
      tunnel.client.close();
      tunnel.server.close();
    }, async (folder) => {
      const publicKey = join(folder.path, "public.pem");
      writeFileSync(publicKey, key.publicPem);
      writeFileSync(join(folder.path, "agent-token"), await tokenOf(key.privatePem), { mode: 0o600 });
      password = await tokenOf(key.privatePem, "client");
      return { auth: { type: "jwt", jwt: { publicKey: [publicKey] } } };
    });
  });

  it("cannot revoke tokens or set the level of a log that the service does not have", () =>
    withApi(async ({ post }) => {
      assert.equal((await post("tokens/revoke", { tokenId: "x" })).status, 409);
      assert.equal((await post("log-level", { level: "debug" })).status, 409);
      assert.equal((await post("log-level", { level: "loud" })).status, 400);
    }));

  it("drain the service, which then closes", () =>
    withApi(async ({ post, proxy }) => {
      assert.equal((await post("drain")).status, 202);
      await within(proxy.closed);
      assert.equal(proxy.draining, true);
    }));
});

async function tokenOf(privatePem: string, role: "agent" | "client" = "agent"): Promise<string> {
  return await signToken(parsePrivateKey(privatePem), { agentId: AGENT_ID, role, durationMs: 3_600_000 });
}

describe("a token file", () => {
  for (
    const [text, problem] of [
      ["admin anna " + OPERATOR, /line 1: it does not begin with viewer or operator/],
      ["\noperator " + OPERATOR, /line 2: it has not three words/],
      ["operator anna short", /line 1: the token has less than 22 characters/],
      ["operator an/na " + OPERATOR, /line 1: the name/],
      ["# nothing", /it has no token/],
    ] as const
  ) {
    it(`with ${JSON.stringify(text.slice(0, 20))} is refused, without showing a token`, () =>
      withNet(async (net) => {
        using folder = new Folder();
        const tokenFile = join(folder.path, "tokens");
        writeFileSync(tokenFile, text);
        const options = withDefaults(proxyOptions, { admin: { listenAddress: "127.0.0.1:0", tokenFile } });
        await assert.rejects(startProxy(options, { net, log: new LogBook() }), (error: Error) => {
          assert.match(error.message, problem);
          assert.ok(!error.message.includes(OPERATOR));
          return true;
        });
      }));
  }
});
