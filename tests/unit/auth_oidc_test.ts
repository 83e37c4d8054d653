// Authentication by tokens of an OpenID Connect issuer: who they are, why others are refused, and what happens when keys rotate or the issuer
// is down.
import assert from "node:assert/strict";
import { Buffer } from "node:buffer";
import { createPublicKey } from "node:crypto";
import { mkdirSync, readFileSync, rmSync } from "node:fs";
import { describe, it } from "node:test";
import { decodeJwt, exportSPKI, importJWK, type JWTPayload, SignJWT } from "jose";
import { AuthenticationError, identifyClient, type Identity } from "../../shared/auth/authenticator.ts";
import { checkLogout, createOidcAuth, type OidcAuth, type OidcOptions } from "../../shared/auth/oidc.ts";
import { createJwtAuth, type OnExpiry } from "../../shared/auth/jwt.ts";
import { ConfigError } from "../../shared/config/option.ts";
import { silentLogger } from "../../shared/log/logger.ts";
import { LogBook } from "../../testing/network.ts";
import { Folder } from "../../testing/programs.ts";
import { OidcIssuer } from "../../testing/oidc_issuer.ts";
import { within } from "../conformance/support.ts";

const PEER = { address: "192.0.2.1", requestId: "r-1" };
const MINUTE_MS = 60_000;

class Bench implements AsyncDisposable {
  readonly log = new LogBook();
  /** Milliseconds that both clocks are ahead. */
  ahead = 0;

  #provider?: OidcAuth;

  private constructor(readonly issuer: OidcIssuer, private readonly open: (bench: Bench) => Promise<OidcAuth>) {}

  static async start(
    options: Partial<OidcOptions> = {},
    onExpiry: OnExpiry = "close-agents",
    { alg, revocationFile }: { alg?: string; revocationFile?: string } = {},
  ): Promise<Bench> {
    const issuer = await OidcIssuer.start(alg);
    const all = {
      issuer: issuer.url,
      audience: ["proxy"],
      nameClaim: "preferred_username",
      groupsClaim: "groups",
      refresh: 5 * MINUTE_MS,
      maxStale: 60 * MINUTE_MS,
      ...options,
    };
    return new Bench(issuer, (bench) =>
      createOidcAuth(all, {
        log: bench.log,
        onExpiry,
        revocationFile,
        now: () => Date.now() + bench.ahead,
        monotonic: () => performance.now() + bench.ahead,
      }));
  }

  get provider(): OidcAuth {
    return this.#provider!;
  }

  async as(token: string, username?: string): Promise<Identity> {
    this.#provider ??= await this.open(this);
    const credentials = username === undefined
      ? { scheme: "bearer", token } as const
      : { scheme: "basic", username, password: token } as const;
    return await identifyClient(this.#provider, credentials, PEER, silentLogger);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#provider?.close?.();
    await this.issuer[Symbol.asyncDispose]();
  }
}

function refused(message: RegExp, kind: AuthenticationError["kind"] = "denied"): (error: unknown) => boolean {
  return (error) => {
    assert.ok(error instanceof AuthenticationError, String(error));
    assert.match(error.message, message);
    return error.kind === kind;
  };
}

/** The reason for which a tunnel ended. */
async function endOf({ signal }: Identity): Promise<string> {
  if (!signal!.aborted) await within(new Promise((resolve) => signal!.addEventListener("abort", resolve)), "the identity did not end");
  return (signal!.reason as Error).message;
}

describe("tokens of an OpenID Connect issuer", () => {
  for (const alg of ["ES256", "RS256", "PS256", "EdDSA"]) {
    it(`identify a person, signed with ${alg}`, async () => {
      await using bench = await Bench.start({}, "close-agents", { alg });
      const { subject, name, groups, agentId, agents } = await bench.as(await bench.issuer.sign(), "site-7");
      assert.deepEqual([subject, name, groups, agentId, agents!.allows("x")], ["u-1", "alice", ["ops"], "site-7", true]);
      assert.equal((await bench.as(await bench.issuer.sign())).agentId, "");
    });
  }

  it("are refused with the reason", async () => {
    await using bench = await Bench.start();
    const { issuer } = bench;
    const seconds = Math.floor(Date.now() / 1000);
    const [header, payload] = (await issuer.sign()).split(".") as [string, string];
    const unsigned = `${Buffer.from('{"alg":"none"}').toString("base64url")}.${payload}.`;
    const secret = Buffer.from(await exportSPKI(await importJWK(issuer.jwks[0]!, "ES256") as CryptoKey));
    const shared = await new SignJWT({ iss: issuer.url, aud: "proxy", sub: "u-1", exp: seconds + 60 }).setProtectedHeader({ alg: "HS256" })
      .sign(secret);
    const rows: [token: string, message: RegExp, kind?: AuthenticationError["kind"]][] = [
      [await issuer.sign({ aud: "other" }), /for the audience "other", and "proxy" is required/],
      [await issuer.sign({ aud: undefined }), /has no aud|for the audience missing/],
      [await issuer.sign({ iss: "https://other.example" }), /is of the issuer "https:\/\/other.example"/],
      [await issuer.sign({ exp: seconds - 61 }), /expired at .*the clock of this machine/, "ended"],
      [await issuer.sign({ exp: undefined }), /has no exp/],
      [await issuer.sign({ nbf: seconds + 3600 }), /is not valid before/],
      [await issuer.sign({ sub: undefined }), /has no sub/],
      [await issuer.sign({}, { header: { "crit": ["x-unknown"], "x-unknown": 1 } }), /not supported \(crit\)/],
      [await issuer.sign({ iat: seconds - 61 }, { header: { kid: "unknown" } }), /publishes no key "unknown" for ES256/],
      [unsigned, /is not signed: its alg is none/],
      [shared, /HS256: it is signed with a shared secret/],
      [`${header}.${payload}.${"A".repeat(86)}`, /signature matches none/],
      ["opaque", /not a JWT/],
    ];
    for (const [token, message, kind] of rows) await assert.rejects(bench.as(token), refused(message, kind), String(message));
  });

  it("within 60 s of clock difference are accepted", async () => {
    await using bench = await Bench.start();
    const seconds = Math.floor(Date.now() / 1000);
    await bench.as(await bench.issuer.sign({ exp: seconds - 30 }));
    await bench.as(await bench.issuer.sign({ nbf: seconds + 30 }));
  });

  it("have groups in a nested claim, a string or a list, and are refused if the issuer has left them out", async () => {
    await using bench = await Bench.start({ groupsClaim: "realm_access.roles" });
    const rows: [JWTPayload, readonly string[]][] = [
      [{ realm_access: { roles: ["a", "b", "a"] } }, ["a", "b"]],
      [{ realm_access: { roles: "a b" } }, ["a b"]],
      [{ "realm_access.roles": ["c"] }, ["c"]],
      [{}, []],
    ];
    for (const [claims, groups] of rows) assert.deepEqual((await bench.as(await bench.issuer.sign(claims))).groups, groups);
    await assert.rejects(bench.as(await bench.issuer.sign({ realm_access: { roles: { a: 1 } } })), refused(/unusable realm_access.roles/));
    const overage = { _claim_names: { "realm_access.roles": "src1" } };
    await assert.rejects(bench.as(await bench.issuer.sign(overage)), refused(/too many/));
  });

  it("end with the issuer's key, and at their expiry only where that is wanted", async () => {
    await using bench = await Bench.start({}, "close");
    const { issuer } = bench;
    const seconds = Math.floor(Date.now() / 1000);
    const [short, long] = [await bench.as(await issuer.sign({ exp: seconds + 60 })), await bench.as(await issuer.sign())];
    bench.ahead = MINUTE_MS;
    assert.match(await endOf(short), /has expired/);
    await issuer.rotate({ keep: 0 });
    bench.ahead = 6 * MINUTE_MS; // beyond the refresh
    assert.match(await endOf(long), /no longer published/);
  });
});

describe("tokens of an issuer on the revocation list", () => {
  for (const [what, lineOf] of [["jti", (jti: string) => jti], ["name", () => "name:alice"], ["subject", () => "sub:u-1"]] as const) {
    it(`by ${what} are refused, and what they have opened ends`, async () => {
      using folder = new Folder();
      const revocationFile = folder.write("revoked", "");
      await using bench = await Bench.start({}, "keep", { revocationFile });
      const token = await bench.issuer.sign();
      const [alice, bob] = [await bench.as(token), await bench.as(await bench.issuer.sign({ sub: "u-2", preferred_username: "bob" }))];
      folder.write("revoked", `${lineOf(decodeJwt(token).jti!)} # left\n`);
      await bench.provider.reload!();
      assert.match(await endOf(alice), /is revoked/);
      assert.equal(bob.signal!.aborted, false);
      await assert.rejects(bench.as(token), refused(/is revoked/, "ended"));
    });
  }
});

describe("the issuer's keys", () => {
  it("are fetched once for any number of unknown ids in 30 s, and a new key is found", async () => {
    await using bench = await Bench.start();
    const { issuer } = bench;
    await bench.as(await issuer.sign());
    const before = issuer.fetches;
    const old = { iat: Math.floor(Date.now() / 1_000) - 120 };
    for (let i = 0; i < 10; i++) await assert.rejects(bench.as(await issuer.sign(old, { header: { kid: `k-${i}` } })), refused(/no key/));
    assert.ok(issuer.fetches - before <= 1, `${issuer.fetches - before} fetches`);
    await issuer.rotate({ keep: 1 });
    // its key may have been published since
    await assert.rejects(bench.as(await issuer.sign()), refused(/a key that is newer/, "unavailable"));
    await assert.rejects(bench.as(await issuer.sign({ iss: "https://other.example" })), refused(/no key/));
    bench.ahead = 31_000;
    await bench.as(await issuer.sign());
    await bench.as(await issuer.sign({}, { with: 1 }));
    assert.ok(issuer.fetches - before <= 2);
  });

  it("are fetched once in 30 s when there are none", async () => {
    await using bench = await Bench.start();
    bench.issuer.isDown = true;
    for (let i = 0; i < 5; i++) await assert.rejects(bench.as(await bench.issuer.sign()), refused(/cannot be fetched/, "unavailable"));
    assert.ok(bench.issuer.requests <= 2, `${bench.issuer.requests} requests`); // one for a token, and the first one without
    assert.equal(bench.log.entries.filter(({ message }) => message.startsWith("issuer's keys cannot be fetched")).length, 1);
    bench.issuer.isDown = false;
    bench.ahead = 31_000;
    await bench.as(await bench.issuer.sign());
  });

  it("serve for a bounded time while the issuer is down, also those of tokens that were verified before", async () => {
    await using bench = await Bench.start({ refresh: 5 * MINUTE_MS, maxStale: 10 * MINUTE_MS });
    const { issuer } = bench;
    const token = await issuer.sign();
    await bench.as(token);
    issuer.isDown = true;
    bench.ahead = 14 * MINUTE_MS;
    await bench.as(token);
    await bench.as(await issuer.sign());
    bench.ahead = 16 * MINUTE_MS;
    for (const each of [token, await issuer.sign()]) await assert.rejects(bench.as(each), refused(/cannot be fetched/, "unavailable"));
    issuer.isDown = false;
    bench.ahead = 17 * MINUTE_MS;
    await bench.as(token);
  });

  it("of unknown kinds are passed over, and all of one id are tried", async () => {
    await using bench = await Bench.start();
    const { issuer } = bench;
    issuer.foreign = [
      { kty: "AKP", alg: "ML-DSA-44", pub: "AAAA", kid: "pq" },
      { kty: "EC", crv: "P-999", x: "AA", y: "AA" },
      { kty: "EC", crv: "P-256", x: "AA", y: "AA", kid: "broken" },
      { kty: "oct", k: "c2VjcmV0" },
      { kty: "RSA", n: "AQAB", e: "AQAB" },
      null as unknown as object,
    ];
    await issuer.rotate({ kid: "same" });
    await issuer.rotate({ kid: "same", keep: 1 });
    for (const at of [0, 1]) await bench.as(await issuer.sign({}, { with: at }));
  });

  it("verify the tokens of auth jwt token where --auth.jwks.url names them, beside those of files", async () => {
    await using issuer = await OidcIssuer.start();
    const pem = String(createPublicKey({ key: issuer.jwks[0]! as JsonWebKey, format: "jwk" }).export({ type: "spki", format: "pem" }));
    assert.match(pem, /PUBLIC KEY/);
    const jwks = { url: issuer.jwksUrl, refresh: 5 * MINUTE_MS, maxStale: 0 };
    const auth = await createJwtAuth({ publicKey: ["auth-key-public.pem"], onExpiry: "keep" }, { log: silentLogger, jwks });
    const ours = { agent_id: "4711", role: "client" };
    const as = async (token: string) => await identifyClient(auth, { scheme: "bearer", token }, PEER, silentLogger);
    assert.equal((await as(await issuer.sign(ours))).agentId, "4711");
    await assert.rejects(as(await issuer.sign()), refused(/has no role/));
    const other = await OidcIssuer.start();
    await assert.rejects(as(await other.sign(ours)), refused(/no public key|matches none/));
    await other[Symbol.asyncDispose]();
    auth.close!();
  });

  it("need an issuer and an audience", async () => {
    const options = { audience: [], nameClaim: "a", groupsClaim: "b", refresh: 1, maxStale: 0 };
    const deps = { log: silentLogger, onExpiry: "keep" } as const;
    await assert.rejects(createOidcAuth(options, deps), ConfigError);
    const same = { ...options, issuer: "https://a.example", audience: ["a", "b"], agentAudience: ["b"] };
    await assert.rejects(
      createOidcAuth(same, deps),
      /Cannot use --auth.oidc.agent-audience b: .*anyone with a client's token could be an agent/,
    );
  });
});

/** The claims of a logout token. */
function loggedOut(claims: JWTPayload = {}): JWTPayload {
  return { aud: "rht", events: { "http://schemas.openid.net/event/backchannel-logout": {} }, groups: undefined, ...claims };
}

describe("logout tokens of the issuer", () => {
  /** A bench whose revocation list may be signed out of. */
  async function withSessions(body: (bench: Bench, file: string) => Promise<void>): Promise<void> {
    using folder = new Folder();
    const revocationFile = folder.write("revoked", "# sessions\n");
    await using bench = await Bench.start({ logoutAudience: ["rht"] }, "keep", { revocationFile });
    await body(bench, revocationFile);
  }

  it("end what was opened in the session, and stay in force, and nothing else ends", () =>
    withSessions(async (bench, file) => {
      const { issuer } = bench;
      const [one, two, without, bob] = [
        await issuer.sign({ sid: "s1" }),
        await issuer.sign({ sid: "s2" }),
        await issuer.sign(),
        await issuer.sign({ sub: "u-2", sid: "s3" }),
      ];
      const [first, second, third, fourth] = [await bench.as(one!), await bench.as(two!), await bench.as(without!), await bench.as(bob!)];
      const token = await issuer.sign(loggedOut({ sid: "s1" }), { header: { typ: "logout+jwt" } });
      assert.deepEqual(await bench.provider.signOut!(token), { target: "u-1", affected: 2 });
      // it may be sent again
      assert.deepEqual(await bench.provider.signOut!(token), { target: "u-1", affected: 0 });
      for (const ended of [first, third]) assert.equal(await endOf(ended!), "The token is revoked");
      for (const open of [second, fourth]) assert.equal(open!.signal!.aborted, false);
      for (const text of [one, without]) await assert.rejects(bench.as(text!), refused(/revoked/, "ended"));
      const later = { iat: Math.floor(Date.now() / 1_000) + 1 };
      for (const claims of [{ sid: "s4" }, {}]) await bench.as(await issuer.sign({ ...claims, ...later }));
      await assert.rejects(bench.as(await issuer.sign({ sid: "s1", ...later })), refused(/revoked/, "ended"));
      assert.match(readFileSync(file, "utf8"), /^# sessions\nbefore:20[^ ]*Z sid:s1 sub:u-1 # signed out at http:[^\n]*\n$/);

      // all sessions of a person, and a session without a person
      const all = await issuer.sign(loggedOut());
      assert.deepEqual(await bench.provider.signOut!(all), { target: "u-1", affected: 1 });
      assert.equal(await endOf(second!), "The token is revoked");
      const ofSession = await issuer.sign(loggedOut({ sub: undefined, sid: "s3" }));
      assert.deepEqual(await bench.provider.signOut!(ofSession), { target: "s3", affected: 1 });
      assert.equal(await endOf(fourth!), "The token is revoked");
    }));

  it("are refused with the reason, change nothing, and identify nobody", () =>
    withSessions(async (bench, file) => {
      const { issuer } = bench;
      await using other = await OidcIssuer.start();
      await bench.as(await issuer.sign());
      const signOut = (token: string) => bench.provider.signOut!(token);
      const rows: [token: string, message: RegExp, kind?: AuthenticationError["kind"]][] = [
        [await other.sign(loggedOut({ iss: issuer.url, iat: 1 })), /publishes no key/],
        [await issuer.sign(loggedOut({ events: undefined })), /has no events/],
        [await issuer.sign(loggedOut({ events: { "https://other.example": {} } })), /reports another event/],
        [await issuer.sign(loggedOut({ nonce: "n" })), /has a nonce/],
        [await issuer.sign(loggedOut({ jti: undefined })), /has no jti/],
        [await issuer.sign(loggedOut({ iat: undefined })), /has no iat/],
        [await issuer.sign(loggedOut({ exp: 1 })), /expired/, "ended"],
        [await issuer.sign(loggedOut({ sub: undefined })), /has neither sub nor sid/],
        [await issuer.sign(loggedOut({ sid: "s".repeat(257) })), /has an unusable sid/],
        ["x", /not a JWT/],
      ];
      for (const [token, message, kind] of rows) await assert.rejects(signOut(token), refused(message, kind));
      for (const claims of [{ aud: "proxy" }, { iss: other.url }, { aud: undefined }]) {
        assert.equal(await signOut(await issuer.sign(loggedOut(claims))), undefined, "it is for others");
      }
      for (const sub of ["a\nsub:b", "a #b", " a"]) {
        await assert.rejects(signOut(await issuer.sign(loggedOut({ sub }))), /characters that a line cannot have/);
      }
      assert.equal(readFileSync(file, "utf8"), "# sessions\n");
      await assert.rejects(bench.as(await issuer.sign(loggedOut({ aud: "proxy" }))), refused(/is a logout token/));
      rmSync(file);
      mkdirSync(file);
      await assert.rejects(signOut(await issuer.sign(loggedOut())), /the revocation file cannot be written/);
    }));

  it("need a revocation list and an address that they are sent to", async () => {
    const options = { issuer: "https://a.example", audience: ["a"], nameClaim: "a", groupsClaim: "b", refresh: 1, maxStale: 0 };
    const deps = { log: silentLogger, onExpiry: "keep" } as const;
    await assert.rejects(
      createOidcAuth({ ...options, logoutAudience: ["rht"] }, deps),
      /Cannot use --auth.oidc.logout-audience: --auth.jwt.revocation-file is required/,
    );
    const auth = { oidc: { logoutAudience: ["rht"] } };
    assert.throws(() => checkLogout({ auth, admin: {} }), /Cannot use --auth.oidc.logout-audience: .*--admin.listen-address/);
    checkLogout({ auth, admin: { socket: "admin.sock" } });
    checkLogout({ auth: { oidc: {} }, admin: {} });
  });
});
