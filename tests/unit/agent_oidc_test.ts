// Agents with tokens of an OpenID Connect issuer, and the proxy that accepts them, over the network in memory.
import assert from "node:assert/strict";
import { createPublicKey } from "node:crypto";
import { describe, it } from "node:test";
import { decodeJwt, jwtVerify } from "jose";
import { startAgent } from "../../agent/agent.ts";
import { checkIssuerOptions, requestCredentials } from "../../agent/credentials.ts";
import { agentOptions } from "../../agent/options.ts";
import { proxyOptions } from "../../proxy/options.ts";
import { startProxy } from "../../proxy/proxy.ts";
import { AuthenticationError } from "../../shared/auth/authenticator.ts";
import { IssuerError } from "../../shared/auth/issuer_client.ts";
import { generatePrivateKey, parsePrivateKey } from "../../shared/auth/keys.ts";
import { createAuthenticator } from "../../shared/auth/scheme.ts";
import { withDefaults } from "../../shared/config/defaults.ts";
import { ConfigError } from "../../shared/config/option.ts";
import { CloseCode } from "../../shared/link/link.ts";
import { silentLogger } from "../../shared/log/logger.ts";
import type { Net } from "../../shared/net/net.ts";
import { LogBook, withNet } from "../../testing/network.ts";
import { OidcIssuer } from "../../testing/oidc_issuer.ts";
import { Folder } from "../../testing/programs.ts";

const SECRET = "the-secret-of-site7";

async function startIssuer(): Promise<OidcIssuer> {
  const issuer = await OidcIssuer.start();
  issuer.secrets.set("site7", SECRET);
  issuer.claims = { aud: "agents" };
  return issuer;
}

function authOf(
  issuer: OidcIssuer,
  own: Partial<Record<"clientSecret" | "clientKeyFile" | "agentIdClaim", string>> = { clientSecret: SECRET },
) {
  return withDefaults(agentOptions, { auth: { type: "oidc", oidc: { issuer: issuer.url, clientId: "site7", ...own } } }).auth;
}

async function start(net: Net, issuer: OidcIssuer) {
  const [proxyLog, agentLog] = [new LogBook(), new LogBook()];
  const forProxy = withDefaults(proxyOptions, {
    agentServer: { listenAddress: "127.0.0.1:0" },
    httpProxy: { listenAddress: "127.0.0.1:0" },
    auth: { type: "oidc", oidc: { issuer: issuer.url, audience: ["proxy"], agentAudience: ["agents"] } },
  });
  const proxy = await startProxy(forProxy, { net, log: proxyLog });
  const forAgent = withDefaults(agentOptions, {});
  forAgent.auth = authOf(issuer);
  forAgent.agentClient.transport = "quic"; // one connection that stays
  forAgent.agentClient.serverAddress = [proxy.agentAddress];
  const agent = await startAgent(forAgent, { net, log: agentLog });
  const close = async () => {
    await agent.close();
    await proxy.close();
  };
  return { proxy, agentLog, proxyLog, close };
}

describe("an agent with tokens of an issuer", () => {
  it("renews them ahead of their end on the open connection, waits while the issuer is down, and comes back", () =>
    withNet(async (net) => {
      await using issuer = await startIssuer();
      issuer.isDown = true;
      issuer.lifetimeS = 4;
      const { agentLog, proxyLog, close } = await start(net, issuer);
      const { reason } = await agentLog.waitFor("token cannot be obtained; trying again");
      assert.match(String(reason), /gives no usable answer: it responds with status 503$/);
      issuer.isDown = false;
      await proxyLog.waitFor("agent connected", { agent: "site7" });
      await proxyLog.waitFor("agent renewed its credentials", { agent: "site7" });
      assert.equal(proxyLog.logged("agent disconnected").length, 0);
      issuer.isDown = true;
      await proxyLog.waitFor("agent disconnected", { reason: `closed by the proxy: ${CloseCode.unauthorized} The token has expired` });
      const connected = proxyLog.logged("agent connected").length;
      issuer.isDown = false;
      await proxyLog.waitFor("agent connected", { agent: "site7" }, connected + 1);
      await close();
      assert.ok(agentLog.logged("token cannot be obtained; trying again").length <= 3, "an outage is one line");
    }));

  it("authenticates by a secret or a key, read for each token, and says what the issuer refuses", async () => {
    await using issuer = await startIssuer();
    using folder = new Folder();
    const { bytes, agentId } = await requestCredentials(authOf(issuer, { clientSecret: `file:${folder.write("secret", `${SECRET}\n`)}` }));
    assert.deepEqual([agentId, decodeJwt(new TextDecoder().decode(bytes)).aud], ["site7", "agents"]);
    for (const algorithm of ["ES256", "EdDSA"] as const) {
      const pem = generatePrivateKey(algorithm);
      await requestCredentials(authOf(issuer, { clientKeyFile: folder.write("key.pem", pem) }));
      const { client_assertion: assertion, client_assertion_type: type } = issuer.asked.at(-1)!;
      assert.match(type!, /jwt-bearer$/);
      const { payload } = await jwtVerify(assertion!, createPublicKey(parsePrivateKey(pem).key));
      assert.deepEqual([payload.iss, payload.sub], ["site7", "site7"]);
    }
    issuer.claims = { aud: "agents", site: { id: "hq" } };
    assert.equal((await requestCredentials(authOf(issuer, { clientSecret: SECRET, agentIdClaim: "site.id" }))).agentId, "hq");
    const refused = (message: RegExp) => (error: unknown) =>
      error instanceof IssuerError && message.test(error.message) && !error.message.includes("wrong one");
    await assert.rejects(
      requestCredentials(authOf(issuer, { clientSecret: "wrong one" })),
      refused(/not know the client, or not with this secret/),
    );
    issuer.refusals.push("unauthorized_client");
    await assert.rejects(requestCredentials(authOf(issuer)), refused(/enable it for the client there/));
  });

  it("takes no odd lifetime of a token for a time, nor for a reason to ask again at once", async () => {
    await using issuer = await startIssuer();
    const expiryOf = async (lifetimeS: number | undefined, claims: object) => {
      Object.assign(issuer, { lifetimeS: lifetimeS ?? 3_600, saysLifetime: lifetimeS !== undefined, claims: { aud: "agents", ...claims } });
      return (await requestCredentials(authOf(issuer))).expiresAt;
    };
    for (const exp of [1e300, -1e300, 1e18]) assert.ok(Math.abs(await expiryOf(undefined, { exp })) <= 8.64e15, String(exp));
    for (const exp of [undefined, "soon", "1e3", {}, null]) assert.equal(await expiryOf(undefined, { exp }), Infinity, JSON.stringify(exp));
    assert.ok(await expiryOf(Number.MAX_SAFE_INTEGER, { exp: 1 }) < 8.64e15);
  });

  it("needs its options together", async () => {
    await using issuer = await startIssuer();
    using folder = new Folder();
    const rows: [own: Parameters<typeof authOf>[1], problem: RegExp][] = [
      [{}, /either --auth.oidc.client-secret or --auth.oidc.client-key-file/],
      [{ clientSecret: "a", clientKeyFile: "b" }, /either/],
      [{ clientSecret: "file:/nowhere" }, /Cannot read --auth.oidc.client-secret file:\/nowhere: the file does not exist/],
      [{ clientKeyFile: folder.write("key", "no key") }, /Cannot use --auth.oidc.client-key-file/],
    ];
    for (const [own, problem] of rows) {
      await assert.rejects(checkIssuerOptions(authOf(issuer, own)), (error) => error instanceof ConfigError && problem.test(error.message));
    }
    const noauth = { ...authOf(issuer), type: "noauth" as const };
    await assert.rejects(checkIssuerOptions(noauth), /Cannot use --auth.oidc.client-id: --auth.type=oidc is not set/);
  });
});

describe("a proxy with agents of an issuer", () => {
  it("accepts tokens for the agents' audience alone as agents, and those for the clients' as clients", async () => {
    await using issuer = await startIssuer();
    const options = (oidc: object) =>
      withDefaults(proxyOptions, {
        auth: { type: "oidc", oidc: { issuer: issuer.url, audience: ["proxy"], agentAudience: ["agents"], ...oidc } },
      }).auth;
    const authenticator = await createAuthenticator(options({ agentIdClaim: "azp" }), silentLogger);
    const agent = (token: string) => authenticator.authenticateAgent(new TextEncoder().encode(token), {});
    const client = (token: string) =>
      authenticator.authenticateClient({ scheme: "bearer", token }, { address: "192.0.2.1", requestId: "r" });
    const denied = (message: RegExp) => (error: unknown) => error instanceof AuthenticationError && message.test(error.message);
    const claims = { aud: ["agents", "x"], azp: "site7", sub: "s", publish: [":2222"], allow: ["db:5432"] };
    const identity = await agent(await issuer.sign(claims));
    assert.ok(typeof identity === "object");
    assert.deepEqual([identity.agentId, identity.subject], ["site7", "s"]);
    assert.equal(identity.allowList!.allows({ host: "db", port: 22 }), false);
    await assert.rejects(
      async () => agent(await issuer.sign({ azp: "site7" })),
      denied(/for the audience "proxy", and "agents" is required/),
    );
    await assert.rejects(async () => client(await issuer.sign(claims)), denied(/for the audience .*, and "proxy" is required/));
    await assert.rejects(async () => agent(await issuer.sign({ ...claims, azp: undefined })), denied(/has no agent id in its claim azp/));
    await assert.rejects(async () => agent(await issuer.sign({ ...claims, azp: "a b" })), denied(/agent id/));
    await assert.rejects(Promise.resolve(agent("site7")), denied(/The agent's credentials are not a JWT/));
    await client(await issuer.sign());
    authenticator.close!();
    await assert.rejects(
      createAuthenticator(options({ agentAudience: undefined }), silentLogger),
      /--auth.oidc.agent-audience is required/,
    );
    await assert.rejects(createAuthenticator(options({ audience: undefined }), silentLogger), /oidc needs --auth.oidc.audience/);
  });
});
