// Several identity providers at once: the order, what is not asked further, and the options that select them.
import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { AuthenticationError, createNoAuth, identifyClient, type Identity } from "../../shared/auth/authenticator.ts";
import { type ClientProvider, splitUser, usernameFor, withProviders } from "../../shared/auth/providers.ts";
import { checkAuthOptions } from "../../shared/auth/scheme.ts";
import { resolve } from "../../shared/config/sources.ts";
import { urlProblem } from "../../shared/config/url.ts";
import { silentLogger } from "../../shared/log/logger.ts";
import { Folder } from "../../testing/programs.ts";
import { type ProxyOptions, proxyOptions } from "../../proxy/options.ts";

const PEER = { address: "192.0.2.1", requestId: "r-1" };

function provider(name: string, answer: Identity | AuthenticationError, asked: string[] = []): ClientProvider {
  return {
    name,
    authenticateClient: () => {
      asked.push(name);
      return answer instanceof AuthenticationError ? Promise.reject(answer) : Promise.resolve(answer);
    },
    close: () => void asked.push(`${name} closed`),
  };
}

async function ask(providers: readonly ClientProvider[]): Promise<Identity> {
  return await identifyClient(withProviders(createNoAuth(), providers), { scheme: "bearer", token: "x" }, PEER, silentLogger);
}

const denied = (message: string, kind: AuthenticationError["kind"] = "denied") => new AuthenticationError(kind, message);

describe("identity providers", () => {
  it("are tried in order, and the first that knows the client decides", async () => {
    const asked: string[] = [];
    const all = [provider("a", denied("no"), asked), provider("b", { agentId: "b" }, asked), provider("c", { agentId: "c" }, asked)];
    assert.equal((await ask(all)).agentId, "b");
    assert.deepEqual(asked, ["a", "b"]);
  });

  it("are all named when none knows it", async () => {
    await assert.rejects(ask([provider("a", denied("no a")), provider("b", denied("no b"))]), {
      message: "a: no a; b: no b",
      kind: "denied",
    });
    await assert.rejects(ask([provider("a", denied("no a"))]), { message: "no a" });
  });

  it("are not asked after one that knows the credentials to be expired or revoked", async () => {
    const asked: string[] = [];
    await assert.rejects(ask([provider("a", denied("revoked", "ended"), asked), provider("b", { agentId: "b" }, asked)]), {
      kind: "ended",
    });
    assert.deepEqual(asked, ["a"]);
  });

  it("leave it open if one cannot be reached and no other accepts", async () => {
    const down = provider("a", denied("down", "unavailable"));
    await assert.rejects(ask([down, provider("b", denied("no"))]), { kind: "unavailable" });
    await assert.rejects(ask([provider("b", denied("no")), down]), { kind: "unavailable" });
    assert.equal((await ask([down, provider("b", { agentId: "b" })])).agentId, "b");
  });

  it("leave agents to auth.type, need credentials, and are closed together", () => {
    const closed: string[] = [];
    const auth = withProviders(createNoAuth(), [provider("a", { agentId: "a" }, closed), provider("b", { agentId: "b" }, closed)]);
    assert.equal(auth.authenticateAgent(new TextEncoder().encode("4711"), {}), "4711");
    assert.equal(auth.anonymous, undefined);
    auth.close!();
    assert.deepEqual(closed, ["a closed", "b closed"]);
  });

  it("let a user name carry the agent, to the next hop too", () => {
    assert.deepEqual(splitUser("alice"), { user: "alice", agentId: "" });
    assert.deepEqual(splitUser("bob@example.org#site-7"), { user: "bob@example.org", agentId: "site-7" });
    assert.deepEqual(splitUser("#urn%3Adev"), { user: "", agentId: "urn:dev" });
    assert.equal(usernameFor({ agentId: "", user: "bob" }, "urn:dev"), "bob#urn%3Adev");
    assert.equal(usernameFor({ agentId: "" }, "site-7"), "site-7");
  });

  it("are checked with their options", async () => {
    const check = async (...flags: [string, string][]) => {
      const { auth } = resolve(proxyOptions, { flags: new Map(flags), env: {} }).values as unknown as ProxyOptions;
      await checkAuthOptions(auth);
    };
    await check(["auth.clients", "oidc,webhook"], ["auth.oidc.issuer", "https://id.example"], ["auth.oidc.audience", "proxy"], [
      "auth.webhook.url",
      "http://127.0.0.1:8080/",
    ]);
    await assert.rejects(check(["auth.clients", "ldap"]), /"ldap" is not one of jwt, oidc, htpasswd, webhook/);
    await assert.rejects(check(["auth.clients", "oidc,oidc"]), /twice/);
    await assert.rejects(check(["auth.clients", "oidc"]), /needs --auth.oidc.issuer/);
    await assert.rejects(
      check(["auth.oidc.issuer", "https://id.example"]),
      /Cannot use --auth.oidc.issuer: --auth.clients does not name oidc/,
    );
    await assert.rejects(check(["auth.jwks.url", "https://id.example"]), /no token is verified/);
    await assert.rejects(check(["auth.clients", "webhook"], ["auth.webhook.url", "http://id.example"]), /only https/);
    using folder = new Folder();
    const secret = (file: string): [string, string][] => [
      ["auth.clients", "webhook"],
      ["auth.webhook.url", "https://id.example"],
      ["auth.webhook.token-file", file],
    ];
    await check(...secret(folder.write("secret", "s3cret\n")));
    for (const [file, why] of [[`${folder.path}/none`, /does not exist/], [folder.path, /is a directory/]] as const) {
      await assert.rejects(check(...secret(file)), why);
    }
    for (const text of ["", "\n", "s3cret\nmore", "s3cret more", "s3cret\u2026"]) {
      await assert.rejects(check(...secret(folder.write("secret", text))), ({ message }: Error) => {
        assert.match(message, /--auth\.webhook\.token-file .*: it is not a secret of ASCII characters/);
        return !message.includes("s3cret");
      });
    }
    await assert.rejects(check(["auth.webhook.token-file", folder.path]), /--auth\.clients does not name webhook/);
  });
});

describe("URLs of identity providers", () => {
  it("are https, or http of this machine, without a user", () => {
    for (
      const good of ["https://id.example", "https://id.example/realm/a?x=1", "http://127.0.0.1:80", "http://[::1]/", "http://localhost:1"]
    ) {
      assert.equal(urlProblem(good), undefined, good);
    }
    for (
      const bad of [
        "id.example",
        "http://id.example",
        "ftp://localhost",
        "https://u:p@id.example",
        "https://id.example/#x",
        "http://127.0.0.1.evil.example",
      ]
    ) {
      assert.ok(urlProblem(bad), bad);
    }
  });
});
