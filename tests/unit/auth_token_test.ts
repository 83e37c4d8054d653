// Which tokens are accepted, and how the log describes one that is not.
import assert from "node:assert/strict";
import { Buffer } from "node:buffer";
import { createHmac, createPublicKey, generateKeyPairSync, type KeyObject } from "node:crypto";
import { describe, it } from "node:test";
import { decodeJwt, SignJWT } from "jose";
import { AuthenticationError } from "../../shared/auth/authenticator.ts";
import { type Algorithm, parsePrivateKey, parsePublicKeys, type SigningKey, type VerificationKey } from "../../shared/auth/keys.ts";
import { type Expectation, renewToken, signToken, type TokenRequest, verifyToken } from "../../shared/auth/token.ts";

/** A time without a fraction of a second. */
const NOW = 1_800_000_000_000;
const SECONDS = NOW / 1000;

interface Pair {
  signing: SigningKey;
  publicPem: string;
  verifying: VerificationKey[];
}

async function makePair(algorithm: Algorithm): Promise<Pair> {
  const generate = (): KeyObject => {
    if (algorithm === "ES256") return generateKeyPairSync("ec", { namedCurve: "P-256" }).privateKey;
    if (algorithm === "RS256") return generateKeyPairSync("rsa", { modulusLength: 2048 }).privateKey;
    return generateKeyPairSync("ed25519").privateKey;
  };
  const key = generate();
  const publicPem = String(createPublicKey(key).export({ type: "spki", format: "pem" }));
  const signing = parsePrivateKey(String(key.export({ type: "pkcs8", format: "pem" })));
  return { signing, publicPem, verifying: await parsePublicKeys(publicPem) };
}

const PAIRS = { ES256: await makePair("ES256"), RS256: await makePair("RS256"), EdDSA: await makePair("EdDSA") };
const { signing: KEY, verifying: KEYS } = PAIRS.ES256;
const CLIENT: Expectation = { role: "client", audience: "here", now: NOW };
const REQUEST: TokenRequest = { agentId: "4711", role: "client", audience: "here", durationMs: 60_000 };

/** Claims of a valid token; `undefined` removes one. */
async function sign(claims: Record<string, unknown> = {}, { signing }: Pair = PAIRS.ES256): Promise<string> {
  const good = { agent_id: "4711", role: "client", aud: "here", iat: SECONDS, nbf: SECONDS, exp: SECONDS + 60, jti: "id-1" };
  return await new SignJWT({ ...good, ...claims }).setProtectedHeader({ alg: signing.algorithm }).sign(signing.key);
}

/** A token with any header and signature. */
function forge(header: object, signature: (input: string) => string, claims: object = {}): string {
  const encode = (part: object) => Buffer.from(JSON.stringify(part)).toString("base64url");
  const input = `${encode(header)}.${encode({ agent_id: "4711", role: "client", exp: SECONDS + 60, ...claims })}`;
  return `${input}.${signature(input)}`;
}

function denied(message: RegExp, kind = "denied"): (error: unknown) => boolean {
  return (error) => {
    assert.ok(error instanceof AuthenticationError, String(error));
    assert.match(error.message, message);
    assert.equal(error.kind, kind);
    return true;
  };
}

describe("renewToken()", () => {
  it("keeps all claims except id and lifetime, also of an expired token, and takes no other key's", async () => {
    const old = await signToken(KEY, { ...REQUEST, agentId: undefined, agents: ["a*"], name: "Alice", allow: ["db:5432"] }, NOW);
    const renewed = await renewToken(old, KEY, 3_600_000, NOW + 120_000);
    const { jti, iat, nbf, exp, ...claims } = decodeJwt(old);
    const now = decodeJwt(renewed);
    assert.deepEqual({ ...now, jti, iat, nbf, exp }, { ...claims, jti, iat, nbf, exp });
    assert.notEqual(now.jti, jti);
    assert.deepEqual([iat! + 60, now.iat, now.exp], [exp, SECONDS + 120, SECONDS + 120 + 3_600]);
    const { name, agents } = await verifyToken(renewed, KEYS, { ...CLIENT, now: NOW + 120_000 });
    assert.deepEqual([name, agents!.allows("ab")], ["Alice", true]);
    for (const [text, key] of [[old, PAIRS.EdDSA.signing], [old, (await makePair("ES256")).signing], ["x", KEY]] as const) {
      await assert.rejects(renewToken(text, key, 1_000), denied(/another key has signed it/));
    }
  });
});

describe("signToken()", () => {
  it("creates a token with exactly the documented claims", async () => {
    const { jti, ...claims } = decodeJwt(await signToken(KEY, { ...REQUEST, audience: undefined }, NOW + 999));
    assert.match(String(jti), /^[0-9a-f-]{36}$/);
    const times = { iat: SECONDS, nbf: SECONDS, exp: SECONDS + 60 };
    assert.deepEqual(claims, { agent_id: "4711", role: "client", iss: "reverse-http", sub: "4711", ...times });
  });

  it("adds audience and allow if they are given", async () => {
    const { aud, allow } = decodeJwt(await signToken(KEY, { ...REQUEST, allow: ["*.zone:80"] }));
    assert.deepEqual([aud, allow], [["here"], ["*.zone:80"]]);
  });

  it("names patterns of agents instead of one agent", async () => {
    const { agent_id, sub, agents } = decodeJwt(await signToken(KEY, { ...REQUEST, agentId: undefined, agents: ["site-*", "4711"] }));
    assert.deepEqual([agent_id, sub, agents], [undefined, undefined, ["site-*", "4711"]]);
  });

  it("refuses an invalid agent id and an invalid pattern", async () => {
    await assert.rejects(signToken(KEY, { ...REQUEST, agentId: undefined }), denied(/empty/, "agent-id"));
    await assert.rejects(signToken(KEY, { ...REQUEST, agents: ["a*b*"] }), RangeError);
    await assert.rejects(signToken(KEY, { ...REQUEST, agentId: "a b" }), denied(/white space/, "agent-id"));
    await assert.rejects(signToken(KEY, { ...REQUEST, allow: ["a:b:c"] }), /"a:b:c"/);
  });

  for (const pair of Object.values(PAIRS)) {
    it(`creates a token with ${pair.signing.algorithm} that is accepted`, async () => {
      const { agentId, id, expiresAt, allowList, keyId } = await verifyToken(
        await signToken(pair.signing, REQUEST, NOW),
        pair.verifying,
        CLIENT,
      );
      assert.deepEqual([agentId, expiresAt, allowList, keyId], ["4711", NOW + 60_000, undefined, pair.verifying[0]!.id]);
      assert.match(String(id), /./);
    });
  }
});

describe("verifyToken()", () => {
  it("accepts a token of any of several keys", async () => {
    const other = await makePair("ES256");
    const keys = [...other.verifying, ...PAIRS.RS256.verifying, ...KEYS];
    assert.equal((await verifyToken(await sign(), keys, CLIENT)).keyId, KEYS[0]!.id);
    assert.equal((await verifyToken(await sign({}, other), keys, CLIENT)).keyId, other.verifying[0]!.id);
  });

  it("accepts a token of another issuer, without jti, nbf and iat", async () => {
    const token = await sign({ iss: "somebody", jti: undefined, nbf: undefined, iat: undefined });
    assert.equal((await verifyToken(token, KEYS, CLIENT)).id, undefined);
  });

  it("accepts patterns of agents in a client's token, in place of an agent id", async () => {
    const { agentId, agents } = await verifyToken(await sign({ agent_id: undefined, agents: ["site-*"] }), KEYS, CLIENT);
    assert.equal(agentId, undefined);
    assert.deepEqual(["site-7", "4711"].map((id) => agents!.allows(id)), [true, false]);
    for (const agents of [[], "site-*", [1], ["a b"], ["a**"], null, {}]) {
      await assert.rejects(
        verifyToken(await sign({ agent_id: undefined, agents }), KEYS, CLIENT),
        denied(/has an unusable agents: .*agents /),
      );
    }
    await assert.rejects(verifyToken(await sign({ agents: ["site-*"] }), KEYS, CLIENT), denied(/has both agent_id and agents/));
    const agent = { role: "agent", agent_id: undefined, agents: ["*"] };
    await assert.rejects(verifyToken(await sign(agent), KEYS, { ...CLIENT, role: "agent" }), denied(/has no agent_id/));
  });

  it("tolerates a clock difference of five seconds", async () => {
    await verifyToken(await sign({ exp: SECONDS - 4, nbf: SECONDS + 5 }), KEYS, CLIENT);
    await assert.rejects(verifyToken(await sign({ exp: SECONDS - 5 }), KEYS, CLIENT), denied(/expired/));
    await assert.rejects(verifyToken(await sign({ nbf: SECONDS + 6 }), KEYS, CLIENT), denied(/not valid before/));
  });

  it("accepts a token for one of its audiences, and any audience if none is configured", async () => {
    for (const aud of ["here", ["there", "here"]]) await verifyToken(await sign({ aud }), KEYS, CLIENT);
    for (const aud of ["there", undefined]) await verifyToken(await sign({ aud }), KEYS, { ...CLIENT, audience: undefined });
  });

  it("reads what an agent may publish, and of a client nothing", async () => {
    const claims = { publish: [":5432"], role: "agent" };
    const { publish } = await verifyToken(await sign(claims), KEYS, { ...CLIENT, role: "agent" });
    assert.deepEqual([5432, 5433].map((port) => publish!.allows("tcp", port, [])), [true, false]);
    assert.equal((await verifyToken(await sign({ ...claims, role: "client" }), KEYS, CLIENT)).publish, undefined);
    await assert.rejects(
      verifyToken(await sign({ ...claims, publish: ["5432"] }), KEYS, { ...CLIENT, role: "agent" }),
      /unusable publish: .*"5432"/,
    );
    assert.deepEqual(decodeJwt(await signToken(KEY, { ...REQUEST, role: "agent", publish: [":5432"] })).publish, [":5432"]);
  });

  it("reads the token's allow-list", async () => {
    const { allowList } = await verifyToken(await sign({ allow: ["127.0.0.1:80", "*.zone"] }), KEYS, CLIENT);
    const allowed = ["127.0.0.1:80", "127.0.0.1:81", "a.zone:443", "zone:1", "other:80"].filter((authority) => {
      const [host, port] = authority.split(":");
      return allowList!.allows({ host: host!, port: Number(port) });
    });
    assert.deepEqual(allowed, ["127.0.0.1:80", "a.zone:443", "zone:1"]);
  });

  const hmac = (secret: string) => (input: string) => createHmac("sha256", secret).update(input).digest("base64url");
  const wrong: [what: string, token: () => string | Promise<string>, message: RegExp][] = [
    ["an empty text", () => "", /^There is no token$/],
    ["a password", () => "hunter2", /^The client's credentials are not a JWT, and no ticket: send one as the password/],
    ["two parts", async () => (await sign()).split(".").slice(0, 2).join("."), /not a JWT/],
    ["white space within", async () => (await sign()).replace(".", " ."), /not a JWT/],
    ["a header that is no JSON", async () => `AAAA${(await sign()).slice(4)}`, /header cannot be read/],
    ["another's signature", async () => sign({}, await makePair("ES256")), /signature matches none of the public keys/],
    ["a signature over other claims", async () => {
      const [[header, , signature], [, claims]] = [(await sign()).split("."), (await sign({ agent_id: "4712" })).split(".")];
      return `${header}.${claims}.${signature}`;
    }, /signature matches none/],
    ["no signature", async () => (await sign()).replace(/[^.]*$/, ""), /signature matches none/],
    ["the algorithm none", () => forge({ alg: "none" }, () => ""), /alg is "none"; one of ES256, RS256, EdDSA, Ed25519 is required/],
    ["the algorithm None", () => forge({ alg: "None" }, () => ""), /alg is "None"/],
    ["no algorithm", () => forge({}, () => "AAAA"), /alg is missing/],
    ["HMAC with the public key as secret", () => forge({ alg: "HS256" }, hmac(PAIRS.ES256.publicPem)), /alg is "HS256"/],
    ["HMAC under the name of the key's algorithm", () => forge({ alg: "ES256" }, hmac(PAIRS.ES256.publicPem)), /signature matches none/],
    ["an algorithm that no key is for", () => sign({}, PAIRS.RS256), /signed with RS256, but no public key is for that algorithm/],
    [
      "a key of its own in the header",
      () => forge({ alg: "ES256", jwk: { kty: "EC" }, x5u: "http://127.0.0.1/" }, () => "AAAA"),
      /matches none/,
    ],
    ["a critical header", () => forge({ alg: "ES256", crit: ["x"], x: 1 }, () => "AAAA"), /cannot be read: .*"x"/],
    [
      "the role of an agent",
      () => sign({ role: "agent" }),
      /has the role "agent", and was sent by a client, whose token needs the role "client" \(auth jwt token --role=client\) \(agent_id "4711", jti "id-1"\)$/,
    ],
    ["no role", () => sign({ role: undefined }), /has no role/],
    ["another audience", () => sign({ aud: ["there"] }), /is for the audience \["there"\], but this side is "here"/],
    ["no audience", () => sign({ aud: undefined }), /is for no audience, but this side is "here"/],
    [
      "an expiry in the past",
      () => sign({ exp: SECONDS - 60 }),
      /expired at 2027-01-15T07:59:00\.000Z; the clock of this machine is at 2027-01-15T08:00:00\.000Z \(agent_id "4711", jti "id-1"\)$/,
    ],
    ["a beginning in the future", () => sign({ nbf: SECONDS + 60 }), /not valid before 2027-01-15T08:01:00\.000Z/],
    ["no expiry", () => sign({ exp: undefined }), /has no exp/],
    ["an expiry that is no number", () => sign({ exp: "tomorrow" }), /unusable exp/],
    ["no id", () => sign({ agent_id: undefined }), /has no agent_id/],
    ["an id that is no text", () => sign({ agent_id: 4711 }), /has no agent_id/],
    ["a jti that is no text", () => sign({ jti: 1 }), /unusable jti/],
    ["an allow that is empty", () => sign({ allow: [] }), /unusable allow: a list of patterns is required/],
    ["an allow that is a text", () => sign({ allow: "*.zone" }), /unusable allow: a list of patterns is required/],
    ["an allow with a pattern that cannot be read", () => sign({ allow: ["zone", "a:b:c"] }), /unusable allow: .*"a:b:c"/],
    ["64 KiB", () => sign({ filler: "a".repeat(48 * 1024) }), /^The token has 6\d{4} bytes; the limit is 16384$/],
  ];
  for (const [what, make, message] of wrong) {
    it(`does not accept ${what}, and says why`, async () => {
      const token = await make();
      await assert.rejects(
        verifyToken(token, KEYS, CLIENT),
        (error) => denied(message)(error) && !(error as Error).message.includes(token || "\0"),
      );
    });
  }

  it("does not accept an invalid agent id", async () => {
    await assert.rejects(verifyToken(await sign({ agent_id: "a b" }), KEYS, CLIENT), denied(/white space/, "agent-id"));
    await assert.rejects(verifyToken(await sign({ agent_id: "" }), KEYS, CLIENT), denied(/is empty/, "agent-id"));
  });

  it("requires the role agent from an agent", async () => {
    await verifyToken(await sign({ role: "agent" }), KEYS, { ...CLIENT, role: "agent" });
    await assert.rejects(
      verifyToken(await sign(), KEYS, { ...CLIENT, role: "agent" }),
      denied(/has the role "client", and was sent by an agent/),
    );
  });

  it("keeps its messages short, however long the claims are", async () => {
    const token = await sign({ agent_id: "a".repeat(3000), role: "b".repeat(3000), jti: "c".repeat(3000) });
    await assert.rejects(verifyToken(token, KEYS, CLIENT), (error) => (error as Error).message.length < 500);
  });
});
