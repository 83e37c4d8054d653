// Tickets: which are accepted, that they are short enough, and that they expire and can be revoked as tokens can.
import assert from "node:assert/strict";
import { Buffer } from "node:buffer";
import { generateKeyPairSync } from "node:crypto";
import { renameSync } from "node:fs";
import { join } from "node:path";
import { describe, it } from "node:test";
import { AuthenticationError, identifyClient, type Identity, isLoggable } from "../../shared/auth/authenticator.ts";
import { createJwtAuth, type JwtOptions } from "../../shared/auth/jwt.ts";
import { type Algorithm, generatePrivateKey, KeyError, parsePrivateKey, parsePublicKeys, publicKeyOf } from "../../shared/auth/keys.ts";
import { readRevocations } from "../../shared/auth/revocations.ts";
import { isTicket, signTicket, verifyTicket } from "../../shared/auth/ticket.ts";
import { signToken } from "../../shared/auth/token.ts";
import { silentLogger } from "../../shared/log/logger.ts";
import { within } from "../conformance/support.ts";
import { LogBook } from "../../testing/network.ts";
import { Folder } from "../../testing/programs.ts";

const PEER = { address: "192.0.2.1", requestId: "r-1" };

/** A time without a fraction of a second. */
const NOW = 1_800_000_000_000;
const DAY_MS = 86_400_000;
/** The longest password that all clients of SOCKS can send, in characters. */
const LONGEST_PASSWORD = 127;

async function makePair(algorithm: Algorithm) {
  const signing = parsePrivateKey(generatePrivateKey(algorithm));
  const publicPem = publicKeyOf(signing);
  return { signing, publicPem, keys: await parsePublicKeys(publicPem) };
}

const PAIRS = [await makePair("ES256"), await makePair("EdDSA")] as const;
const [KEY] = PAIRS;

function denied(message: RegExp, kind = "denied"): (error: unknown) => boolean {
  return (error) => error instanceof AuthenticationError && error.kind === kind && message.test(error.message);
}

describe("a ticket", () => {
  for (const { signing, keys } of PAIRS) {
    it(`of a key for ${signing.algorithm} is short, and is accepted for its agent until it expires`, async () => {
      const other = (await makePair("EdDSA")).keys;
      for (const agentId of ["4711", "urn:dev:köln", "x".repeat(250)]) {
        const { text, id, expiresAt } = await signTicket(signing, { agentId, durationMs: DAY_MS }, NOW);
        assert.ok(text.length <= LONGEST_PASSWORD && isTicket(text), text);
        assert.match(text, /^[\w-]+$/);
        assert.equal(expiresAt, NOW + DAY_MS);
        const token = await verifyTicket(text, [...other, ...keys], { agentIds: ["other", agentId] });
        assert.deepEqual(token, { agentId, id, expiresAt, keyId: keys[0]!.id });
        assert.match(id, /^[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$/);
      }
    });
  }

  it("cannot be signed with RSA, and the error says why", async () => {
    const { privateKey } = generateKeyPairSync("rsa", { modulusLength: 2048 });
    const key = parsePrivateKey(String(privateKey.export({ type: "pkcs8", format: "pem" })));
    const isSaid = (error: unknown) => error instanceof KeyError && /RSA.*ES256 or EdDSA is required/.test(error.message);
    await assert.rejects(signTicket(key, { agentId: "4711", durationMs: 1 }), isSaid);
  });

  it("expires in 2106 at the latest, and has a valid agent id", async () => {
    await assert.rejects(signTicket(KEY.signing, { agentId: "4711", durationMs: 100 * 365 * DAY_MS }, NOW), RangeError);
    await assert.rejects(signTicket(KEY.signing, { agentId: "a b", durationMs: 1 }), AuthenticationError);
  });

  it("is for one agent and one audience", async () => {
    const wrong = denied(/^The ticket is for another agent id or audience/);
    const { text } = await signTicket(KEY.signing, { agentId: "4711", durationMs: DAY_MS });
    await assert.rejects(verifyTicket(text, KEY.keys, { agentIds: ["4712", ""] }), wrong);
    await assert.rejects(verifyTicket(text, KEY.keys, { agentIds: ["4711"], audience: "here" }), wrong);
    await assert.rejects(verifyTicket(text, PAIRS[1].keys, { agentIds: ["4711"] }), wrong);
    await assert.rejects(verifyTicket(text, [], { agentIds: ["4711"] }), wrong);
    const here = await signTicket(KEY.signing, { agentId: "4711", audience: "here", durationMs: DAY_MS });
    await verifyTicket(here.text, KEY.keys, { agentIds: ["4711"], audience: "here" });
    await assert.rejects(verifyTicket(here.text, KEY.keys, { agentIds: ["4711"], audience: "there" }), wrong);
    await assert.rejects(verifyTicket(here.text, KEY.keys, { agentIds: ["4711"] }), wrong);
  });

  it("is not accepted with any byte changed, cut or added, and no message quotes it", async () => {
    const { text } = await signTicket(KEY.signing, { agentId: "4711", durationMs: DAY_MS });
    const bytes = Buffer.from(text.slice(4), "base64url");
    const changed = Array.from(bytes, (byte, i) => {
      const other = Buffer.from(bytes);
      other[i] = byte ^ 1;
      return `rht_${other.toString("base64url")}`;
    });
    // the last character has bits that no byte has
    const alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    const same = alphabet[alphabet.indexOf(text.at(-1)!) ^ 1]!;
    for (const forged of [...changed, text.slice(0, -1) + same, text.slice(0, -1), `${text}A`, `${text}=`, "rht_", `${text} `]) {
      await assert.rejects(verifyTicket(forged, KEY.keys, { agentIds: ["4711"] }), (error: Error) => {
        assert.ok(!error.message.includes(text.slice(0, 20)));
        return denied(/^The ticket /)(error);
      });
    }
  });

  it("is no token, and a token is no ticket", async () => {
    assert.equal(isTicket(await signToken(KEY.signing, { agentId: "4711", role: "client", durationMs: 1 })), false);
  });
});

describe("authentication by tickets", () => {
  const at = (folder: Folder, name: string) => join(folder.path, name);
  const ticketOf = (request: { agentId?: string; durationMs?: number } = {}) =>
    signTicket(KEY.signing, { agentId: "4711", durationMs: DAY_MS, ...request });

  async function withAuth(
    options: Partial<JwtOptions>,
    body: (bench: { folder: Folder; ask(ticket: string, username?: string): Promise<Identity>; pass(ms: number): void }) => Promise<void>,
  ): Promise<void> {
    using folder = new Folder();
    folder.write("revoked", "");
    const publicKey = [folder.write("key.pem", KEY.publicPem)];
    let ahead = 0;
    const revocationFile = at(folder, "revoked");
    const auth = await createJwtAuth({ onExpiry: "close-agents", publicKey, revocationFile, ...options }, {
      log: new LogBook(),
      now: () => Date.now() + ahead,
    });
    try {
      const ask = (password: string, username = "4711") =>
        identifyClient(auth, { scheme: "basic", username, password }, PEER, silentLogger);
      await body({ folder, ask, pass: (ms) => void (ahead += ms) });
      await assert.rejects(
        identifyClient(auth, { scheme: "bearer", token: (await ticketOf()).text }, PEER, silentLogger),
        denied(/without the agent id, as a Bearer token/),
      );
      await assert.rejects(async () => await auth.authenticateAgent(Buffer.from((await ticketOf()).text), {}), denied(/not a JWT/));
    } finally {
      auth.close?.();
    }
  }

  it("identifies a client by its user name, which may have its colons escaped", () =>
    withAuth({}, async ({ ask }) => {
      const { text, id } = await ticketOf({ agentId: "urn:dev:1" });
      for (const name of ["urn:dev:1", "urn%3Adev%3A1", "urn:dev:1"]) {
        const { agentId, tokenId } = await ask(text, name);
        assert.deepEqual([agentId, tokenId], ["urn:dev:1", id]);
      }
      // also after it was verified for another name
      for (let i = 0; i < 2; i++) await assert.rejects(ask(text, "4711"), denied(/another agent id/));
    }));

  it("ends with the ticket's expiry, within the tolerance for clocks", () =>
    withAuth({}, async ({ ask, pass }) => {
      const { text } = await ticketOf();
      await ask(text);
      pass(DAY_MS + 3_000);
      await ask(text);
      pass(3_000);
      await assert.rejects(ask(text), denied(/^The token expired at .* \(agent_id "4711", jti "/, "ended"));
    }));

  it("ends for tunnels too, where expiry closes", () =>
    withAuth({ onExpiry: "close" }, async ({ ask, pass }) => {
      const { signal } = await ask((await ticketOf()).text);
      const ended = new Promise((resolve) => signal!.addEventListener("abort", resolve));
      pass(DAY_MS);
      await within(ended);
    }));

  it("ends when the ticket's id is on the revocation list", () =>
    withAuth({}, async ({ folder, ask }) => {
      const { text, id } = await ticketOf();
      const { signal } = await ask(text);
      const ended = new Promise((resolve) => signal!.addEventListener("abort", resolve));
      folder.write("new", `${id}  # lost\n`);
      renameSync(at(folder, "new"), at(folder, "revoked"));
      await within(ended);
      await assert.rejects(ask(text), denied(/^The token is revoked/, "ended"));
    }));

  it("shows no ticket that is in the wrong place", async () => {
    using folder = new Folder();
    const { text } = await ticketOf();
    assert.equal(isLoggable(text), false);
    await assert.rejects(readRevocations(folder.write("revoked", `${text}\n`)), /line 1: it is a token; write its jti instead/);
  });
});
