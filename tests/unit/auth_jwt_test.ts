// Authentication by tokens over time: what an expired token ends, and the effect of files that change, disappear or become invalid.
import assert from "node:assert/strict";
import { Buffer } from "node:buffer";
import { mkdirSync, renameSync, rmSync } from "node:fs";
import { join } from "node:path";
import { describe, it } from "node:test";
import { createPrivateKey, createPublicKey } from "node:crypto";
import { decodeJwt, SignJWT } from "jose";
import { AuthenticationError, type Authenticator, identifyAgent, identifyClient, type Identity } from "../../shared/auth/authenticator.ts";
import { createJwtAuth, type JwtOptions } from "../../shared/auth/jwt.ts";
import { generatePrivateKey, parsePrivateKey, publicKeyOf } from "../../shared/auth/keys.ts";
import { readRevocations } from "../../shared/auth/revocations.ts";
import { checkAuthOptions } from "../../shared/auth/scheme.ts";
import { ConfigError } from "../../shared/config/option.ts";
import { resolve } from "../../shared/config/sources.ts";
import { type ProxyOptions, proxyOptions } from "../../proxy/options.ts";
import { within } from "../conformance/support.ts";
import { silentLogger } from "../../shared/log/logger.ts";
import { LogBook } from "../../testing/network.ts";
import { Folder } from "../../testing/programs.ts";
import { makeTokenKey } from "../../testing/tokens.ts";

/** The options of authentication without a value of their own. */
const { auth: AUTH } = resolve(proxyOptions, { flags: new Map(), env: {} }).values as unknown as ProxyOptions;
const PEER = { address: "192.0.2.1", requestId: "r-1" };

const KEY = makeTokenKey();
const HOUR_MS = 3_600_000;
/** Default claims of a token. */
const DAY_MS = 24 * HOUR_MS;
/** More lifetime than any test needs. */
const MAX_LOOKS = 1_000;

/** An authenticator with its files, a clock that can be set, and its log. */
class Bench implements AsyncDisposable {
  readonly folder = new Folder();
  readonly log = new LogBook();
  /** Milliseconds that the clock is ahead. */
  ahead = 0;
  #looks = 0;
  #auth: Authenticator | undefined;

  async start(options: Partial<JwtOptions> = {}): Promise<Authenticator> {
    const publicKey = options.publicKey ?? [this.folder.write("key.pem", KEY.publicPem)];
    const now = () => {
      // what wakes itself without end reads the clock each time
      if (++this.#looks > MAX_LOOKS) throw new Error(`The clock was read ${MAX_LOOKS} times`);
      return Date.now() + this.ahead;
    };
    return this.#auth = await createJwtAuth({ onExpiry: "close-agents", ...options, publicKey }, { log: this.log, now });
  }

  /** As an editor saves: the file is replaced, and never half there. */
  replace(name: string, content: string): void {
    renameSync(this.folder.write(`${name}.new`, content), join(this.folder.path, name));
  }

  [Symbol.asyncDispose](): Promise<void> {
    this.#auth?.close?.();
    this.folder[Symbol.dispose]();
    return Promise.resolve();
  }
}

function asAgent(auth: Authenticator, token: string): Promise<Identity> {
  return identifyAgent(auth, Buffer.from(token), {}, silentLogger);
}

function asClient(auth: Authenticator, token: string, username = "4711"): Promise<Identity> {
  return identifyClient(auth, { scheme: "basic", username, password: token }, PEER, silentLogger);
}

/** The reason for which a connection or tunnel ended. */
async function endOf({ signal }: Identity): Promise<string> {
  const aborted = new Promise((resolve) => signal!.addEventListener("abort", resolve));
  if (!signal!.aborted) await within(aborted, "the identity did not end");
  return (signal!.reason as Error).message;
}

/** Resolves when everything due has ended and files have been checked; the clock is then an hour later. */
async function tick(auth: Authenticator, bench: Bench): Promise<void> {
  const identity = await asAgent(auth, await KEY.sign({ role: "agent", durationMs: bench.ahead + HOUR_MS }));
  bench.ahead += HOUR_MS;
  await endOf(identity);
}

function denied(message: RegExp): (error: unknown) => boolean {
  return (error) => error instanceof AuthenticationError && message.test(error.message);
}

describe("JWT authentication", () => {
  it("identifies an agent by its token, with or without a final newline", async () => {
    await using bench = new Bench();
    const auth = await bench.start();
    const token = await KEY.sign({ role: "agent" });
    for (const text of [token, `${token}\n`, `${token}\r\n`]) {
      const { agentId, tokenId } = await asAgent(auth, text);
      assert.deepEqual([agentId, tokenId], ["4711", decodeJwt(token).jti]);
    }
  });

  it("identifies a client by its token as a password, with the id as the user name, or as a Bearer token", async () => {
    await using bench = new Bench();
    const auth = await bench.start();
    const token = await KEY.sign();
    assert.equal((await asClient(auth, token)).agentId, "4711");
    assert.equal((await identifyClient(auth, { scheme: "bearer", token }, PEER, silentLogger)).agentId, "4711");
    const urn = await KEY.sign({ agentId: "urn:dev:1" });
    for (const name of ["urn:dev:1", "urn%3Adev%3a1"]) assert.equal((await asClient(auth, urn, name)).agentId, "urn:dev:1");
    await assert.rejects(asClient(auth, urn, "urn%253Adev%3A1"), denied(/the user name is/));
    await assert.rejects(asClient(auth, token, "4712"), denied(/is for the agent id "4711", and the user name is "4712"/));
    await assert.rejects(asClient(auth, token, ""), denied(/the user name is ""/));
    for (const name of [token, "eyJhbGciOiJFUzI1NiJ9.e30.c2ln", "x".repeat(65)]) {
      await assert.rejects(asClient(auth, token, name), denied(/the user name is too long, or a token$/));
    }
  });

  it("identifies a client of several agents by its user name only if that is one of them", async () => {
    await using bench = new Bench();
    const auth = await bench.start();
    const token = await KEY.sign({ agentId: undefined, agents: ["site-*", "urn:*"] });
    const rows = [["site-7", "site-7"], ["urn%3Adev%3A1", "urn:dev:1"], ["alice", ""], ["", ""], [token, ""]] as const;
    for (const [name, agentId] of rows) {
      const identity = await asClient(auth, token, name);
      assert.deepEqual([identity.agentId, identity.agents!.allows("site-8"), identity.agents!.allows("alice")], [agentId, true, false]);
    }
    const every = await KEY.sign({ agentId: undefined, agents: ["*"] });
    assert.deepEqual([(await asClient(auth, every, every)).agentId, (await asClient(auth, every, "any")).agentId], ["", "any"]);
    await assert.rejects(asClient(auth, every, "a b"), AuthenticationError);
    assert.equal((await identifyClient(auth, { scheme: "bearer", token }, PEER, silentLogger)).agentId, "");
    await assert.rejects(asAgent(auth, token), denied(/has the role "client"/));
  });

  it("does not accept the token of one role for the other, however often it is presented", async () => {
    await using bench = new Bench();
    const auth = await bench.start();
    const [client, agent] = [await KEY.sign(), await KEY.sign({ role: "agent" })];
    for (let i = 0; i < 2; i++) {
      await asAgent(auth, agent);
      await asClient(auth, client);
      await assert.rejects(asAgent(auth, client), denied(/has the role "client"/));
      await assert.rejects(asClient(auth, agent), denied(/has the role "agent"/));
    }
  });

  it("refuses bytes that are not UTF-8, and a token of 64 KiB", async () => {
    await using bench = new Bench();
    const auth = await bench.start();
    await assert.rejects(identifyAgent(auth, Uint8Array.of(0, 255, 254), {}, silentLogger), denied(/not a JWT/));
    await assert.rejects(identifyAgent(auth, new Uint8Array(0), {}, silentLogger), denied(/no token/));
    await assert.rejects(identifyAgent(auth, new Uint8Array(64 * 1024).fill(65), {}, silentLogger), denied(/65536 bytes/));
  });

  it("passes on the token's allow-list", async () => {
    await using bench = new Bench();
    const auth = await bench.start();
    const { allowList } = await asClient(auth, await KEY.sign({ allow: ["*.zone:80"] }));
    assert.deepEqual([80, 81].map((port) => allowList!.allows({ host: "a.zone", port })), [true, false]);
    assert.equal((await asClient(auth, await KEY.sign())).allowList, undefined);
  });
});

describe("an expired token", () => {
  const cases: [onExpiry: JwtOptions["onExpiry"], agentEnds: boolean, clientEnds: boolean][] = [
    ["close-agents", true, false],
    ["close", true, true],
    ["keep", false, false],
  ];
  for (const [onExpiry, agentEnds, clientEnds] of cases) {
    it(`with on-expiry ${onExpiry} ends ${[agentEnds && "agents", clientEnds && "clients"].filter(Boolean).join(" and ") || "nothing"}`, async () => {
      await using bench = new Bench();
      const auth = await bench.start({ onExpiry, revocationFile: bench.folder.write("revoked", "") });
      const agent = await asAgent(auth, await KEY.sign({ role: "agent" }));
      const client = await asClient(auth, await KEY.sign());
      const witness = await asClient(auth, await KEY.sign({ durationMs: 2 * DAY_MS }));
      bench.ahead = DAY_MS;
      if (agentEnds) assert.equal(await endOf(agent), "The token has expired");
      if (clientEnds) assert.equal(await endOf(client), "The token has expired");
      // what does not end by the time that something else does, does not end
      bench.replace("revoked", String(witness.tokenId));
      await endOf(witness);
      assert.deepEqual([agent.signal!.aborted, client.signal!.aborted], [agentEnds, clientEnds]);
      await assert.rejects(asClient(auth, await KEY.sign({ durationMs: 1000 })), denied(/expired/));
    });
  }

  it("ends what it opened in the second in which it expires, and is not accepted again within the leeway", async () => {
    await using bench = new Bench();
    const auth = await bench.start();
    const token = await KEY.sign({ role: "agent", durationMs: 2000 });
    const identity = await asAgent(auth, token);
    await endOf(identity);
    const lateMs = Date.now() - decodeJwt(token).exp! * 1000;
    assert.ok(lateMs >= 0, `It ended ${-lateMs} ms too early`);
    await assert.rejects(asAgent(auth, token), denied(/The token expired at/));
  });

  it("is accepted again when a wrong clock is set back", async () => {
    await using bench = new Bench();
    const auth = await bench.start();
    const token = await KEY.sign({ role: "agent", durationMs: HOUR_MS / 2 });
    const identity = await asAgent(auth, token);
    bench.ahead = HOUR_MS;
    assert.equal(await endOf(identity), "The token has expired");
    await assert.rejects(asAgent(auth, token), denied(/The token expired at/));
    bench.ahead = 0;
    (await asAgent(auth, token)).release?.();
  });

  it("is refused within the leeway by a proxy that has not seen it before, where its expiry ends what it opened", async () => {
    await using bench = new Bench();
    const auth = await bench.start();
    const [agent, client] = [await KEY.sign({ role: "agent", durationMs: DAY_MS }), await KEY.sign({ durationMs: DAY_MS })];
    bench.ahead = DAY_MS + 2000;
    await assert.rejects(asAgent(auth, agent), denied(/The token expired at/));
    (await asClient(auth, client)).release?.(); // its tunnels go on: clocks may differ
  });

  it("is refused although it was cached while it was valid", async () => {
    await using bench = new Bench();
    const auth = await bench.start();
    const token = await KEY.sign();
    await asClient(auth, token);
    bench.ahead = DAY_MS + 6000;
    await assert.rejects(asClient(auth, token), denied(/The token expired at/));
  });

  it("of thirty years ends nothing now", async () => {
    await using bench = new Bench();
    const auth = await bench.start({ onExpiry: "close" });
    const identity = await asClient(auth, await KEY.sign({ durationMs: 30 * 365 * 86_400_000 }));
    await tick(auth, bench);
    assert.equal(identity.signal!.aborted, false);
  });
});

describe("a revocation file", () => {
  it("ends what its tokens opened when it changes, whatever on-expiry says, and refuses them", async () => {
    await using bench = new Bench();
    const revocationFile = bench.folder.write("revoked", "# nobody yet\n");
    const auth = await bench.start({ revocationFile, onExpiry: "keep" });
    const tokens = [await KEY.sign({ role: "agent" }), await KEY.sign(), await KEY.sign()];
    const [agent, client, other] = [await asAgent(auth, tokens[0]!), await asClient(auth, tokens[1]!), await asClient(auth, tokens[2]!)];
    bench.replace("revoked", `# gone\r\n${agent.tokenId}   # left\r\n\r\n  ${client.tokenId}`);
    assert.equal(await endOf(agent), "The token is revoked");
    assert.equal(await endOf(client), "The token is revoked");
    assert.equal(other.signal!.aborted, false);
    await assert.rejects(asAgent(auth, tokens[0]!), denied(new RegExp(`revoked.*"4711".*${agent.tokenId}`)));
    await assert.rejects(asClient(auth, tokens[1]!), denied(/revoked/));
    await asClient(auth, tokens[2]!);
    assert.deepEqual(bench.log.logged("revocation list reloaded"), [{ file: revocationFile, revoked: 2 }]);
  });

  it("that disappears stays in force, and is read when it is back", async () => {
    await using bench = new Bench();
    const [gone, later] = [await KEY.sign(), await KEY.sign()];
    const revocationFile = bench.folder.write("revoked", String(decodeJwt(gone).jti));
    const auth = await bench.start({ revocationFile });
    const client = await asClient(auth, later);
    rmSync(revocationFile);
    await bench.log.waitFor("authentication file is missing", { file: revocationFile });
    await assert.rejects(asClient(auth, gone), denied(/revoked/));
    bench.replace("revoked", String(client.tokenId));
    await endOf(client);
    await asClient(auth, gone);
  });
});

describe("an invalid revocation file", () => {
  const id = "02e6f8d3-9e2c-44e0-80ee-300d9c7bd920";
  const wrong: [what: string, line: string, message: RegExp][] = [
    ["a comment without a blank before it", `${id}#left`, /line 3: a comment needs a space before its #$/],
    ["two ids in a line", `${id} ${id}`, /line 3: it contains a space/],
    ["a name before the id", `jti ${id}`, /line 3: it contains a space/],
    ["another sign for comments", `${id} // left`, /line 3: it contains a space/],
    ["quotation marks", `"${id}"`, /line 3: it has quotation marks/],
    ["a comma", `${id},`, /line 3: it has a comma/],
    ["a token", "eyJhbGciOiJFUzI1NiJ9.eyJqdGkiOiIxIn0.c2VjcmV0", /line 3: it is a token; write its jti instead$/],
    ["an id with control characters", `${id}\x07`, /line 3: it has characters that are invalid in a jti$/],
    ["a line without end", "a".repeat(2000), /line 3: it has more than 1024 characters$/],
    ["another encoding", "\0\xff", /(?:line 3: it has characters|it is not UTF-8)/],
  ];
  for (const [what, line, message] of wrong) {
    it(`with ${what} is refused with the line's number, without its content`, async () => {
      await using bench = new Bench();
      const revocationFile = bench.folder.write("revoked", Buffer.from(`# of today\n${id}\n${line}\n`, "latin1"));
      await assert.rejects(bench.start({ revocationFile }), (error) => {
        assert.ok(error instanceof ConfigError && error.message.startsWith("Cannot use --auth.jwt.revocation-file"), String(error));
        assert.match(error.message, message);
        assert.ok(!error.message.includes("c2VjcmV0"));
        return true;
      });
    });
  }

  it("is logged when the file becomes invalid, and the previous list stays in force", async () => {
    await using bench = new Bench();
    const gone = await KEY.sign();
    const revocationFile = bench.folder.write("revoked", String(decodeJwt(gone).jti));
    const auth = await bench.start({ revocationFile });
    bench.replace("revoked", `${id},${id}`);
    const { reason } = await bench.log.waitFor("authentication file is invalid; its previous content stays in force", {
      file: revocationFile,
    });
    assert.match(String(reason), /^line 1: it has a comma/);
    await assert.rejects(asClient(auth, gone), denied(/revoked/));
  });
});

describe("a revocation file", () => {
  it("may have a byte-order mark, any line ends, comments, upper case, and ids that are not UUIDs, which cause a warning", async () => {
    await using bench = new Bench();
    const tokens = [await KEY.sign(), await KEY.sign(), await KEY.sign()];
    const [a, b, c] = tokens.map((token) => String(decodeJwt(token).jti)) as [string, string, string];
    const text = `\ufeff${a}\r\n\t# ${c}\r ${b.toUpperCase()} # why\n${a}\nof-another-issuer\n`;
    const revocationFile = bench.folder.write("revoked", "");
    const auth = await bench.start({ revocationFile });
    bench.replace("revoked", text);
    await bench.log.waitFor("revocation list reloaded", { revoked: 3 });
    for (const token of tokens.slice(0, 2)) await assert.rejects(asClient(auth, token), denied(/revoked/));
    await asClient(auth, tokens[2]!);
    const [warning] = bench.log.logged("revocation file has ids that are not UUIDs: tokens of auth jwt token never have such a jti");
    assert.deepEqual([warning?.count, warning?.line], [1, 5]);
  });

  it("revokes all tokens with a name or a subject, without a warning", async () => {
    await using bench = new Bench();
    const revocationFile = bench.folder.write("revoked", "name:Alice Smith # has left\nsub:4712\n");
    const auth = await bench.start({ revocationFile });
    for (const request of [{ name: "Alice Smith" }, { agentId: "4712" }]) {
      await assert.rejects(asClient(auth, await KEY.sign(request), request.agentId), denied(/revoked/));
    }
    for (const request of [{ name: "Alice" }, { name: "sub:4712" }, {}]) await asClient(auth, await KEY.sign(request));
    assert.deepEqual(bench.log.entries, []);
    await assert.rejects(readRevocations(bench.folder.write("bad", `name:${await KEY.sign()}\n`)), /line 1: it is a token/);
    await assert.rejects(readRevocations(bench.folder.write("bad", "name: \nx")), /line 1: it has no name/);
  });

  it("with the maximum number of lines is read in pieces without blocking the event loop, and one more line is refused", async () => {
    using folder = new Folder();
    const uuid = (n: number) => `${n.toString(16).padStart(8, "0")}-0000-4000-8000-000000000000\n`;
    const lines = Array.from({ length: 1_000_000 }, (_, n) => uuid(n)).join("");
    const file = folder.write("revoked", lines);
    let turns = 0;
    const timer = setInterval(() => turns++, 1);
    const revocations = await readRevocations(file);
    clearInterval(timer);
    assert.deepEqual([revocations.size, revocations.has(uuid(999_999).trim())], [1_000_000, true]);
    // there are 283 pieces
    assert.ok(turns > 20, `other things had ${turns} turns`);
    const over = folder.write("revoked", `${lines}${uuid(1_000_000)}`);
    await assert.rejects(readRevocations(over), /^Error: line 1000001: there are more than 1000000 entries/);
  });
});

describe("tokens by several keys", () => {
  it("are verified with the key that they name, in any order, or with any key if it does not exist", async () => {
    await using bench = new Bench();
    const keys = Array.from({ length: 3 }, () => makeTokenKey());
    const jwks = keys.map(({ publicPem }, index) => ({ ...createPublicKey(publicPem).export({ format: "jwk" }), kid: `key-${index}` }));
    const auth = await bench.start({ publicKey: [bench.folder.write("jwks.json", `\ufeff${JSON.stringify({ keys: jwks })}`)] });
    for (const [index, { privatePem }] of keys.entries()) {
      for (const kid of [`key-${index}`, "unknown", `key-${(index + 1) % 3}`, undefined]) {
        const token = await new SignJWT({ agent_id: "4711", role: "client" }).setProtectedHeader({ alg: "ES256", kid }).setExpirationTime(
          "1h",
        )
          .sign(createPrivateKey(privatePem));
        assert.equal((await asClient(auth, token)).agentId, "4711");
      }
    }
  });

  it("of Ed25519 are accepted under both names of their algorithm", async () => {
    await using bench = new Bench();
    const pem = generatePrivateKey("Ed25519");
    const publicKey = bench.folder.write("ed.pem", publicKeyOf(parsePrivateKey(pem)));
    const auth = await bench.start({ publicKey: [publicKey] });
    for (const alg of ["EdDSA", "Ed25519"]) {
      const token = await new SignJWT({ agent_id: "4711", role: "client" }).setProtectedHeader({ alg }).setExpirationTime("1h")
        .sign(createPrivateKey(pem));
      assert.equal((await asClient(auth, token)).agentId, "4711");
    }
  });
});

describe("key files", () => {
  it("are read again when they change: a new key is accepted, and the removal of a key ends what it opened", async () => {
    await using bench = new Bench();
    const [old, fresh] = [makeTokenKey(), makeTokenKey()];
    const file = bench.folder.write("keys.pem", old.publicPem);
    const auth = await bench.start({ publicKey: [file], onExpiry: "keep" });
    const token = await old.sign();
    const client = await asClient(auth, token);
    await assert.rejects(asClient(auth, await fresh.sign()), denied(/matches none/));
    bench.replace("keys.pem", old.publicPem + fresh.publicPem);
    await bench.log.waitFor("public keys reloaded", { keys: 2, added: 1, removed: 0 });
    const renewed = await asClient(auth, await fresh.sign());
    await asClient(auth, token);
    bench.replace("keys.pem", fresh.publicPem);
    assert.equal(await endOf(client), "The public key of the token was removed");
    await assert.rejects(asClient(auth, token), denied(/matches none/));
    assert.equal(renewed.signal!.aborted, false);
  });

  for (
    const [what, spoil] of [
      ["spoilt", (bench: Bench) => bench.replace("key.pem", "-----BEGIN PUBLIC KEY-----\n")],
      ["empty", (bench: Bench) => bench.replace("key.pem", "")],
      ["a directory", (bench: Bench) => {
        rmSync(join(bench.folder.path, "key.pem"));
        mkdirSync(join(bench.folder.path, "key.pem"));
      }],
    ] as const
  ) {
    it(`stay in force while the new file is ${what}, and this is logged once`, async () => {
      await using bench = new Bench();
      const auth = await bench.start();
      const client = await asClient(auth, await KEY.sign());
      spoil(bench);
      await bench.log.waitFor("authentication file is invalid; its previous content stays in force");
      await asClient(auth, await KEY.sign());
      for (let looks = 0; looks < 2; looks++) await tick(auth, bench);
      assert.equal(bench.log.logged("authentication file is invalid; its previous content stays in force").length, 1);
      assert.equal(client.signal!.aborted, false);
    });
  }

  it("lose the keys of a file that is removed permanently", async () => {
    await using bench = new Bench();
    const [old, fresh] = [makeTokenKey(), makeTokenKey()];
    const files = [bench.folder.write("old.pem", old.publicPem), bench.folder.write("fresh.pem", fresh.publicPem)];
    const auth = await bench.start({ publicKey: files });
    const [client, other] = [await asClient(auth, await old.sign()), await asClient(auth, await fresh.sign())];
    rmSync(files[0]!);
    assert.equal(await endOf(client), "The public key of the token was removed");
    assert.equal(other.signal!.aborted, false);
    bench.replace("old.pem", old.publicPem);
    await bench.log.waitFor("public keys reloaded", { keys: 2, added: 1, removed: 0 });
    await asClient(auth, await old.sign());
  });

  it("stay in force if all of them are missing", async () => {
    await using bench = new Bench();
    const auth = await bench.start();
    const client = await asClient(auth, await KEY.sign());
    rmSync(join(bench.folder.path, "key.pem"));
    await bench.log.waitFor("authentication file is missing");
    for (let looks = 0; looks < 3; looks++) await tick(auth, bench);
    assert.equal(client.signal!.aborted, false);
    await asClient(auth, await KEY.sign());
  });
});

describe("createJwtAuth()", () => {
  const wrong: [what: string, options: (bench: Bench) => Partial<JwtOptions>, message: RegExp][] = [
    ["no key file", () => ({ publicKey: [] }), /^Cannot start: --auth\.jwt\.public-key is needed$/],
    [
      "a key file that is missing",
      () => ({ publicKey: ["/nonexistent/key.pem"] }),
      /--auth\.jwt\.public-key "\/nonexistent\/key\.pem": the file does not exist$/,
    ],
    ["a key file that is a directory", ({ folder }) => ({ publicKey: [folder.path] }), /--auth\.jwt\.public-key ".*": it is a directory$/],
    [
      "a private key",
      ({ folder }) => ({ publicKey: [folder.write("a", KEY.privatePem)] }),
      /--auth\.jwt\.public-key ".*": it has no PUBLIC KEY in PEM, but EC PRIVATE KEY/,
    ],
    ["one good file and one that is empty", ({ folder }) => ({
      publicKey: [folder.write("a", KEY.publicPem), folder.write("b", "")],
    }), /--auth\.jwt\.public-key ".*\/b": it has no PUBLIC KEY in PEM/],
    [
      "a revocation file that is missing",
      () => ({ revocationFile: "/nonexistent/revoked" }),
      /--auth\.jwt\.revocation-file "\/nonexistent\/revoked": the file does not exist$/,
    ],
  ];
  for (const [what, options, message] of wrong) {
    it(`refuses ${what} and names it`, async () => {
      await using bench = new Bench();
      await assert.rejects(bench.start(options(bench)), (error) => {
        assert.ok(error instanceof ConfigError);
        assert.match(error.message, message);
        return true;
      });
    });
  }
});

describe("options of tokens", () => {
  const defaults: JwtOptions = { publicKey: ["auth-key-public.pem"], onExpiry: "close-agents" };

  it("are refused without --auth.type=jwt, because they show that tokens should be verified", async () => {
    const given: [option: string, jwt: Partial<JwtOptions>][] = [
      ["public-key", { publicKey: ["key.pem"] }],
      ["public-key", { publicKey: ["auth-key-public.pem", "new.pem"] }],
      ["audience", { audience: "here" }],
      ["revocation-file", { revocationFile: "revoked" }],
    ];
    for (const [option, jwt] of given) {
      await assert.rejects(checkAuthOptions({ ...AUTH, type: "noauth", jwt: { ...defaults, ...jwt } }), {
        name: "ConfigError",
        message: `Cannot use --auth.jwt.${option}: no token is verified without --auth.type=jwt`,
      });
    }
    await checkAuthOptions({ ...AUTH, type: "noauth", jwt: { ...defaults, onExpiry: "close" } });
  });
});
