// The hook for a program's own authentication: its arguments, and the effect of its results.
import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { AuthenticationError, identifyAgent, identifyClient } from "../../shared/auth/authenticator.ts";
import { type AuthenticationRequest, createHookAuthenticator } from "../../shared/auth/hook.ts";
import { silentLogger } from "../../shared/log/logger.ts";
import { LogBook } from "../../testing/network.ts";

const PEER = { address: "192.0.2.1", requestId: "r-1" };

const bytes = (text: string) => new TextEncoder().encode(text);

describe("authenticate hook", () => {
  it("gets the agent's credentials and certificate, and the client's credentials", async () => {
    const asked: AuthenticationRequest[] = [];
    const authenticator = createHookAuthenticator((who) => {
      asked.push(who);
      return "4711";
    });
    const certificate = new Uint8Array([1]);
    assert.equal((await identifyAgent(authenticator, bytes("ticket é"), { certificate }, silentLogger)).agentId, "4711");
    await identifyClient(authenticator, { scheme: "basic", username: "u", password: "p" }, PEER, silentLogger);
    await identifyClient(authenticator, { scheme: "bearer", token: "t" }, PEER, silentLogger);
    assert.deepEqual(asked, [
      { role: "agent", credentials: "ticket é", certificate },
      { role: "client", scheme: "basic", username: "u", password: "p" },
      { role: "client", scheme: "bearer", token: "t" },
    ]);
  });

  it("may return a promise, and a complete identity", async () => {
    const ends = new AbortController().signal;
    const authenticator = createHookAuthenticator(() => Promise.resolve({ agentId: "4711", ends }));
    assert.deepEqual(await identifyClient(authenticator, { scheme: "bearer", token: "t" }, PEER, silentLogger), { agentId: "4711", ends });
  });

  it("refuses with undefined, without a secret in the log", async () => {
    const authenticator = createHookAuthenticator(() => undefined);
    const denied = (error: unknown) => error instanceof AuthenticationError && error.kind === "denied" && !/hunter2/.test(error.message);
    await assert.rejects(identifyAgent(authenticator, bytes("hunter2"), {}, silentLogger), denied);
    await assert.rejects(
      identifyClient(authenticator, { scheme: "basic", username: "u", password: "hunter2" }, PEER, silentLogger),
      denied,
    );
  });

  for (
    const [how, release] of Object.entries({
      throws: () => assert.fail("broken"),
      rejects: () => Promise.reject(new Error("broken")),
    })
  ) {
    it(`may return an identity whose release ${how}: that is logged and has no other effect`, async () => {
      const authenticator = createHookAuthenticator((who) => ({ agentId: who.role === "agent" ? "a b" : "4711", release }));
      const log = new LogBook();
      await assert.rejects(identifyAgent(authenticator, bytes("x"), {}, log), AuthenticationError);
      await log.waitFor("hook failed", { hook: "release" });
      const identity = await identifyClient(authenticator, { scheme: "bearer", token: "t" }, PEER, log);
      identity.release!();
      await log.waitFor("hook failed", { hook: "release" }, 2);
    });
  }

  it("is not called for bytes that are not UTF-8", async () => {
    let asked = false;
    const authenticator = createHookAuthenticator(() => (asked = true, "4711"));
    await assert.rejects(identifyAgent(authenticator, new Uint8Array([0xff]), {}, silentLogger), AuthenticationError);
    assert.ok(!asked);
  });

  it("cannot return an invalid id", async () => {
    const authenticator = createHookAuthenticator(() => "a b");
    await assert.rejects(identifyAgent(authenticator, bytes("x"), {}, silentLogger), (error) => error instanceof AuthenticationError);
  });
});
