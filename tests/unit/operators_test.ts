// People and programs as operators of the admin API: by tokens of key files and of an OpenID Connect issuer, and by sign-in at the dashboard.
import assert from "node:assert/strict";
import { readFileSync, writeFileSync } from "node:fs";
import { createServer } from "node:http";
import type { AddressInfo } from "node:net";
import { join } from "node:path";
import { describe, it } from "node:test";
import { startProxy } from "../../proxy/proxy.ts";
import { proxyOptions } from "../../proxy/options.ts";
import { parsePrivateKey } from "../../shared/auth/keys.ts";
import { signOperatorToken } from "../../shared/auth/operator_token.ts";
import { signToken } from "../../shared/auth/token.ts";
import { type PartialValues, withDefaults } from "../../shared/config/defaults.ts";
import { values } from "../../shared/http/head.ts";
import { type LoginError, OidcLogin } from "../../shared/service/operators/oidc_login.ts";
import { type Answer, ask, LogBook, withNet } from "../../testing/network.ts";
import { OidcIssuer } from "../../testing/oidc_issuer.ts";
import { Folder } from "../../testing/programs.ts";
import { makeTokenKey } from "../../testing/tokens.ts";
import { until } from "../conformance/support.ts";

type AdminChoices = PartialValues<ReturnType<typeof withDefaults<typeof proxyOptions>>>["admin"];

interface Running {
  readonly folder: Folder;
  readonly log: LogBook;
  send(method: string, path: string, fields?: Record<string, string>, body?: string): Promise<Answer>;
}

const ORIGIN = "http://127.0.0.1:9090";

async function withProxy(body: (running: Running) => Promise<void>, admin: (folder: Folder) => AdminChoices): Promise<void> {
  await withNet(async (net) => {
    using folder = new Folder();
    const log = new LogBook();
    const options = withDefaults(proxyOptions, {
      agentServer: { listenAddress: "127.0.0.1:0" },
      httpProxy: { listenAddress: "127.0.0.1:0" },
      admin: { listenAddress: "127.0.0.1:9090", ...admin(folder) },
      audit: { file: join(folder.path, "audit") },
    });
    const proxy = await startProxy(options, { net, log });
    const send: Running["send"] = async (method, path, fields = {}, content = "") => {
      const all = {
        Host: "127.0.0.1:9090",
        ...content === "" ? {} : { "Content-Type": "application/json", "Content-Length": String(content.length) },
      };
      const lines = Object.entries({ ...all, ...fields }).map(([name, value]) => `${name}: ${value}\r\n`).join("");
      return await ask(net, proxy.adminAddress!, `${method} ${path} HTTP/1.1\r\n${lines}\r\n${content}`);
    };
    await body({ folder, log, send });
    await proxy.close();
  });
}

const bearer = (token: string) => ({ Authorization: `Bearer ${token}` });
const roleOf = async ({ send }: Running, token: string) => {
  const { status, body } = await send("GET", "/api/v1/status", bearer(token));
  return status === 200 ? JSON.parse(body).role : status;
};

/** The cookies that a response sets, as a browser sends them, and their attributes. */
function cookiesOf({ fields }: Answer): { sent: string; attributes: string[] } {
  const set = values(fields, "set-cookie");
  return { sent: set.map((cookie) => cookie.split(";")[0]).join("; "), attributes: set.map((cookie) => cookie.replace(/^[^;]*/, "")) };
}

describe("operators", () => {
  it("show tokens of a key file, whose roles are not those of agents and clients", () => {
    const key = makeTokenKey();
    return withProxy(async (running) => {
      const signing = parsePrivateKey(key.privatePem);
      const sign = (role: "viewer" | "operator", durationMs = 60_000) => signOperatorToken(signing, { name: "anna", role, durationMs });
      assert.equal(await roleOf(running, await sign("operator")), "operator");
      assert.equal(await roleOf(running, await sign("viewer")), "viewer");
      const expired = await signOperatorToken(signing, { name: "anna", role: "viewer", durationMs: 1_000 }, Date.now() - 60_000);
      const foreign = await signOperatorToken(parsePrivateKey(makeTokenKey().privatePem), {
        name: "anna",
        role: "viewer",
        durationMs: 60_000,
      });
      const client = await signToken(signing, { agentId: "4711", role: "client", durationMs: 60_000 });
      for (const token of [expired, foreign, client, "x", `${await sign("viewer")}x`]) assert.equal(await roleOf(running, token), 401);
      await running.send(
        "POST",
        "/api/v1/agents/disconnect",
        bearer(await sign("operator")),
        JSON.stringify({ agent: "a", awaySeconds: 1 }),
      );
      await running.log.waitFor("operator action", { by: "anna", action: "disconnect-agent" });
    }, (folder) => {
      const publicKey = join(folder.path, "public.pem");
      writeFileSync(publicKey, key.publicPem);
      return { jwt: { publicKey: [publicKey] } };
    });
  });

  it("have the role of their groups, with tokens of an issuer for this client", async () => {
    await using issuer = await OidcIssuer.start();
    await withProxy(async (running) => {
      const roles = async (claims: object) => await roleOf(running, await issuer.sign({ aud: "dashboard", ...claims }));
      assert.equal(await roles({ groups: ["staff", "ops"] }), "operator");
      assert.equal(await roles({ groups: "staff" }), "viewer");
      for (
        const claims of [{ groups: ["sales"] }, { groups: undefined }, { aud: "proxy" }, { iss: "http://other" }, { exp: 1 }, { groups: 7 }]
      ) {
        assert.equal(await roles(claims), 401, JSON.stringify(claims));
      }
    }, () => ({ oidc: { issuer: issuer.url, clientId: "dashboard", operators: ["ops"], viewers: ["staff"] } }));
  });

  it("sign in at the dashboard with PKCE, act with a session only from its own page, and sign out", async () => {
    await using issuer = await OidcIssuer.start();
    await withProxy(async ({ send, log, folder }) => {
      const methods = async (cookie = "") => JSON.parse((await send("GET", "/login/methods", { Cookie: cookie })).body);
      assert.deepEqual(await methods(), { issuer: issuer.url, isSession: false });
      const begin = await send("GET", "/login");
      const target = new URL(begin.field("Location")!);
      assert.deepEqual([begin.status, target.searchParams.get("code_challenge_method")], [303, "S256"]);
      const begun = cookiesOf(begin);
      assert.deepEqual(begun.attributes, ["; Path=/; Max-Age=600; HttpOnly; SameSite=Lax"]);
      const atIssuer = async (url: URL) => {
        const { headers } = await fetch(url, { redirect: "manual" });
        const { pathname, search } = new URL(headers.get("location")!);
        return `${pathname}${search}`;
      };
      const back = await atIssuer(target);
      // another browser has not begun it, and a state of someone else is not accepted
      assert.equal((await send("GET", back)).status, 400);
      assert.equal((await send("GET", back.replace(/state=[^&]*/, "state=x"), { Cookie: begun.sent })).status, 403);
      assert.equal((await send("GET", back, { Cookie: begun.sent, Host: "evil.example" })).status, 403);
      const end = await send("GET", back, { Cookie: begun.sent });
      assert.deepEqual([end.status, end.field("Location")], [303, `${ORIGIN}/`]);
      const { sent: cookie, attributes } = cookiesOf(end);
      assert.equal(attributes[0], "; Path=/; Max-Age=28800; HttpOnly; SameSite=Strict");
      await log.waitFor("operator signed in", { by: "alice", subject: "u-1", role: "operator" });
      assert.equal((await send("GET", back, { Cookie: begun.sent })).status, 403, "The code serves once");
      assert.equal(JSON.parse((await send("GET", "/api/v1/status", { Cookie: cookie })).body).role, "operator");
      assert.equal((await methods(cookie)).isSession, true);
      const act = (fields: Record<string, string>) =>
        send("POST", "/api/v1/agents/disconnect", { Cookie: cookie, ...fields }, `{"agent":"a","awaySeconds":1}`);
      for (
        const fields of [{}, { Origin: "http://evil.example" }, { Origin: ORIGIN, "Content-Type": "text/plain" }] as Record<
          string,
          string
        >[]
      ) {
        assert.ok([403, 415].includes((await act(fields)).status), JSON.stringify(fields));
      }
      assert.equal((await act({ Origin: ORIGIN })).status, 200);
      await log.waitFor("operator action", { by: "alice", subject: "u-1", action: "disconnect-agent" });
      for (const fields of [{}, { Origin: "null" }, { Origin: "http://evil.example" }] as Record<string, string>[]) {
        const foreign = await send("POST", "/logout", fields);
        assert.deepEqual([foreign.status, foreign.field("Set-Cookie")], [403, undefined], JSON.stringify(fields));
      }
      const out = await send("POST", "/logout", { Cookie: cookie, Origin: ORIGIN });
      assert.match(cookiesOf(out).attributes[0]!, /Max-Age=0/);
      assert.equal((await send("GET", "/api/v1/status", { Cookie: cookie })).status, 401);
      const audited = '"by":"alice","subject":"u-1","action":"disconnect-agent"';
      await until(() => readFileSync(join(folder.path, "audit"), "utf8").includes(audited), "the action is not in the audit log");
      // in no group
      issuer.person = { groups: ["sales"], preferred_username: "bob" };
      const again = await send("GET", "/login");
      const refused = await send("GET", await atIssuer(new URL(again.field("Location")!)), { Cookie: cookiesOf(again).sent });
      assert.deepEqual([refused.status, /"bob" is in none of the groups/.test(refused.body), cookiesOf(refused).sent], [403, true, ""]);
      issuer.isDown = true;
    }, () => ({ oidc: { issuer: issuer.url, clientId: "dashboard", url: ORIGIN, operators: ["ops"] } }));
  });

  it("are signed out when their session at the issuer ends, by its logout token", async () => {
    await using issuer = await OidcIssuer.start();
    await withProxy(async ({ send, log }) => {
      const signIn = async (sub: string, sid?: string) => {
        issuer.person = { sub, sid };
        const begin = await send("GET", "/login");
        const { headers } = await fetch(begin.field("Location")!, { redirect: "manual" });
        const { pathname, search } = new URL(headers.get("location")!);
        return cookiesOf(await send("GET", `${pathname}${search}`, { Cookie: cookiesOf(begin).sent })).sent;
      };
      const isIn = async (cookie: string) => (await send("GET", "/api/v1/status", { Cookie: cookie })).status === 200;
      const post = async (token: string) => {
        const { status, body } = await send("POST", "/backchannel-logout", {
          "Content-Type": "application/x-www-form-urlencoded",
          "Host": "ops.example",
        }, `logout_token=${token}`);
        return [status, JSON.parse(body)];
      };
      const events = { "http://schemas.openid.net/event/backchannel-logout": {} };
      const logout = (claims: object) => issuer.sign({ aud: "dashboard", groups: undefined, events, ...claims });
      const [one, two, other, bob] = [await signIn("u-1", "s1"), await signIn("u-1", "s2"), await signIn("u-1"), await signIn("u-2", "s3")];
      for (
        const [claims, why] of [
          [{ sid: "s1", aud: "proxy" }, /is of another issuer, or for none of/],
          [{ sid: "s1", iss: "http://other" }, /is of another issuer, or for none of/],
          [{ sid: "s1", exp: 1 }, /expired/],
          [{ sid: "s1", events: {} }, /another event/],
          [{ sid: "s1", nonce: "n" }, /has a nonce/],
        ] as const
      ) {
        const [status, { error_description: said }] = await post(await logout(claims));
        assert.equal(status, 400);
        assert.match(said, why);
      }
      const forged = await OidcIssuer.start();
      assert.equal((await post(await forged.sign({ aud: "dashboard", iss: issuer.url, sid: "s1", events })))[0], 400);
      await forged[Symbol.asyncDispose]();
      for (const cookie of [one, two, other, bob]) assert.ok(await isIn(cookie));
      const token = await logout({ sid: "s1" });
      assert.deepEqual(await post(token), [200, { affected: 2 }], "that session, and the one without a sid");
      assert.deepEqual(await Promise.all([one, two, other, bob].map(isIn)), [false, true, false, true]);
      assert.deepEqual(await post(token), [200, { affected: 0 }]);
      await log.waitFor("operator action", { by: "issuer", action: "end-session", target: "u-1" });
      assert.deepEqual(await post(await logout({ iat: Math.floor(Date.now() / 1_000) - 600 })), [200, { affected: 0 }], "it began later");
      assert.deepEqual(await post(await logout({})), [200, { affected: 1 }]);
      assert.deepEqual(await Promise.all([two, bob].map(isIn)), [false, true]);
      assert.ok(await isIn(await signIn("u-1", "s4")), "after a new sign-in");
    }, () => ({ oidc: { issuer: issuer.url, clientId: "dashboard", url: ORIGIN, operators: ["ops"] } }));
  });

  it("wait for their turn at the issuer, and are refused if too many do", async () => {
    let asked = 0;
    let release = () => {};
    const released = new Promise<void>((resolve) => release = resolve);
    const server = createServer(async (request, response) => {
      response.setHeader("Content-Type", "application/json");
      if (request.method === "GET") return response.end(JSON.stringify({ issuer: url, authorization_endpoint: url, token_endpoint: url }));
      asked++;
      await released;
      response.writeHead(400).end('{"error":"invalid_grant"}');
    });
    await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
    const url = `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
    const log = new LogBook();
    const { admin: { oidc } } = withDefaults(proxyOptions, { admin: { oidc: { issuer: url, clientId: "dashboard", url: ORIGIN } } });
    const login = await OidcLogin.open(oidc, log);
    const { headers } = await login.begin();
    const state = new URL(headers.get("Location")!).searchParams.get("state");
    const cookies = headers.getSetCookie().map((cookie) => cookie.split(";")[0]).join("; ");
    const statuses: number[] = [];
    const all = Array.from({ length: 8 + 64 + 5 }, async () => {
      await assert.rejects(login.finish(`?code=x&state=${state}`, cookies), (error: LoginError) => statuses.push(error.status) > 0);
    });
    await until(() => statuses.length === 5, "none is refused", 20_000);
    await until(() => asked === 8, "the issuer is not asked", 20_000);
    assert.deepEqual(statuses.splice(0), Array(5).fill(503));
    release();
    await Promise.all(all);
    assert.deepEqual([statuses, asked], [Array(8 + 64).fill(403), 8 + 64]);
    assert.equal(log.logged("an operator could not sign in").length, 10, "strangers fill no log");
    login.close();
    server.closeAllConnections();
    await new Promise((resolve) => server.close(resolve));
  });

  it("do not sign in with an issuer whose responses have no end", async () => {
    const server = createServer((_, response) => {
      response.setHeader("Content-Type", "application/json");
      response.end(JSON.stringify({ issuer: url, authorization_endpoint: url, token_endpoint: url, padding: " ".repeat(1024 * 1024) }));
    });
    await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
    const url = `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
    await withProxy(async ({ send, log }) => {
      assert.equal((await send("GET", "/login")).status, 502);
      await log.waitFor("the issuer of operators cannot be asked");
    }, () => ({ oidc: { issuer: url, clientId: "dashboard", url: ORIGIN, operators: ["ops"] } }));
    await new Promise((resolve) => server.close(resolve));
  });

  it("are not configured by half", async () => {
    const wrong: readonly (readonly [AdminChoices, RegExp])[] = [
      [{ oidc: { clientId: "x" } }, /--admin.oidc.client-id: --admin.oidc.issuer is not set/],
      [{ oidc: { issuer: "http://127.0.0.1:1", operators: ["ops"] } }, /needs --admin.oidc.client-id/],
      [{ oidc: { issuer: "http://127.0.0.1:1", clientId: "x" } }, /set --admin.oidc.operators or --admin.oidc.viewers/],
      [
        { oidc: { issuer: "http://127.0.0.1:1", clientId: "x", viewers: ["a"], url: "http://127.0.0.1:1", clientSecretFile: "/none" } },
        /client-secret-file "\/none"/,
      ],
      [{ jwt: { publicKey: ["/none"] } }, /--admin.jwt.public-key "\/none"/],
      [{ listenAddress: undefined, jwt: { publicKey: ["/none"] } }, /--admin.jwt.public-key: it is for --admin.listen-address/],
    ];
    for (const [admin, why] of wrong) await assert.rejects(withProxy(() => Promise.resolve(), () => admin), why);
  });
});
