// Authentication by a file of users: passwords with bcrypt and argon2, wrong ones, and what ends when the file changes.
import assert from "node:assert/strict";
import { renameSync } from "node:fs";
import { join } from "node:path";
import { describe, it } from "node:test";
import { argon2id, bcrypt } from "hash-wasm";
import { AuthenticationError, type ClientCredentials, identifyClient, type Identity } from "../../shared/auth/authenticator.ts";
import { createHtpasswdProvider } from "../../shared/auth/htpasswd.ts";
import { type PasswordChecker, startPasswordChecker } from "../../shared/auth/passwords.ts";
import type { ClientProvider } from "../../shared/auth/providers.ts";
import { ConfigError } from "../../shared/config/option.ts";
import { silentLogger } from "../../shared/log/logger.ts";
import { Folder } from "../../testing/programs.ts";
import { within } from "../conformance/support.ts";

const SALT = new Uint8Array(16).fill(7);
const BCRYPT = await bcrypt({ password: "bcrypt-pw", salt: SALT, costFactor: 4, outputType: "encoded" });
const ARGON2 = await argon2id({
  password: "argon2-pw",
  salt: SALT,
  parallelism: 1,
  iterations: 1,
  memorySize: 64,
  hashLength: 32,
  outputType: "encoded",
});

/** Says which passwords were checked, and takes the user's name in the hash for the right one. */
class FakeChecker implements PasswordChecker {
  readonly checked: string[] = [];
  /** Called before each answer. */
  wait: () => Promise<void> = () => Promise.resolve();

  async check(password: string, hash: string): Promise<boolean> {
    this.checked.push(password);
    await this.wait();
    return hash === BCRYPT ? password === "bcrypt-pw" : password === "argon2-pw";
  }

  close(): void {}
}

function as(provider: ClientProvider, username: string, password: string): Promise<Identity> {
  return ask(provider, { scheme: "basic", username, password });
}

function ask(provider: ClientProvider, credentials: ClientCredentials): Promise<Identity> {
  return identifyClient(provider, credentials, { address: "192.0.2.1", requestId: "r" }, silentLogger);
}

function refused(message: RegExp, kind: AuthenticationError["kind"] = "denied") {
  return (error: unknown) => error instanceof AuthenticationError && message.test(error.message) && error.kind === kind;
}

async function withUsers(
  text: string,
  body: (provider: ClientProvider, replace: (text: string) => void) => Promise<void>,
  checker?: PasswordChecker,
): Promise<void> {
  using folder = new Folder();
  const provider = await createHtpasswdProvider({ file: folder.write("users", text) }, { log: silentLogger, checker });
  const replace = (text: string) => renameSync(folder.write("new", text), join(folder.path, "users"));
  await body(provider, replace).finally(() => provider.close!());
}

describe("a file of users", () => {
  it("identifies users by bcrypt and argon2, in all notations of bcrypt, and the agent behind their name", async () => {
    const lines = ["# users", "", `alice:${BCRYPT}`, `bob:${ARGON2}\r`, `carol:${BCRYPT.replace(/^\$2[aby]/, "$2y")}`];
    await withUsers(lines.join("\n"), async (provider) => {
      for (const [user, password] of [["alice", "bcrypt-pw"], ["bob", "argon2-pw"], ["carol", "bcrypt-pw"]] as const) {
        const identity = await as(provider, `${user}#site-7`, password);
        assert.deepEqual([identity.agentId, identity.subject, identity.name, identity.user], ["site-7", user, user, user]);
        assert.equal((await as(provider, user, password)).agentId, "");
        await assert.rejects(as(provider, user, "wrong"), refused(/password of the user "\w+" is wrong/));
      }
      await assert.rejects(as(provider, "dave", "x"), refused(/no such user/));
      for (const [user, password] of [["", "x"], ["alice", ""]] as const) {
        await assert.rejects(as(provider, user, password), refused(/empty/));
      }
      await assert.rejects(ask(provider, { scheme: "bearer", token: "x" }), refused(/token/));
    });
  });

  it("does not occupy the event loop while it checks", async () => {
    const slow = await argon2id({
      password: "slow-pw",
      salt: SALT,
      parallelism: 1,
      iterations: 3,
      memorySize: 16 * 1024,
      hashLength: 32,
      outputType: "encoded",
    });
    const checker = startPasswordChecker();
    await checker.check("x", BCRYPT); // the thread has started
    let [turns, isDone] = [0, false];
    const turn = () => {
      turns++;
      if (!isDone) setImmediate(turn);
    };
    const pending = checker.check("slow-pw", slow).finally(() => isDone = true);
    turn();
    assert.equal(await pending, true);
    checker.close();
    assert.ok(turns > 10, `${turns} turns`);
  });

  it("checks a password once that was right, and none of a user with many wrong ones", async () => {
    const checker = new FakeChecker();
    await withUsers(`alice:${BCRYPT}\nbob:${ARGON2}`, async (provider) => {
      for (let i = 0; i < 3; i++) await as(provider, "alice", "bcrypt-pw");
      assert.deepEqual(checker.checked, ["bcrypt-pw"]);
      for (let i = 0; i < 20; i++) await assert.rejects(as(provider, "alice", `guess-${i}`), AuthenticationError);
      assert.ok(checker.checked.length < 15, `${checker.checked.length} checks`);
      await assert.rejects(as(provider, "alice", "guess"), refused(/Too many passwords/));
      await as(provider, "alice", "bcrypt-pw"); // known before: a stranger cannot lock alice out
      await as(provider, "bob", "argon2-pw");
    }, checker);
  });

  it("checks as long for a user that does not exist, and no more than a few at once", async () => {
    const checker = new FakeChecker();
    await withUsers(`alice:${BCRYPT}`, async (provider) => {
      await assert.rejects(as(provider, "dave", "guess"), refused(/no such user/));
      assert.deepEqual(checker.checked, ["guess"]);
      let release = () => {};
      const released = new Promise<void>((resolve) => release = resolve);
      checker.wait = () => released;
      const all = Array.from(
        { length: 100 },
        (_, i) => as(provider, `user-${i}`, "x").then(() => "", (error: AuthenticationError) => error.kind),
      );
      await within(Promise.race(all)); // those without a place to wait
      assert.equal(checker.checked.length, 3);
      release();
      const kinds = await Promise.all(all);
      assert.deepEqual([kinds.filter((kind) => kind === "unavailable").length, kinds.filter((kind) => kind === "denied").length], [34, 66]);
    }, checker);
  });

  it("ends what a user has opened who is removed, or whose password changes", async () => {
    await withUsers(`alice:${BCRYPT}\nbob:${ARGON2}`, async (provider, replace) => {
      const [alice, bob] = [await as(provider, "alice", "bcrypt-pw"), await as(provider, "bob", "argon2-pw")];
      replace("alice:nothing");
      await provider.reload!();
      assert.equal(alice.signal!.aborted, false, "an invalid file ends nothing");
      replace(`bob:${ARGON2}`);
      await provider.reload!();
      assert.deepEqual([alice.signal!.aborted, bob.signal!.aborted], [true, false]);
      assert.match((alice.signal!.reason as Error).message, /removed/);
      await assert.rejects(as(provider, "alice", "bcrypt-pw"), refused(/no such user/));
    }, new FakeChecker());
  });

  it("is an error with its line if a line is invalid", async () => {
    const rows: [line: string, problem: RegExp][] = [
      ["alice", /line 2: it is not user:hash/],
      ["alice:$apr1$salt$hash", /line 2: its hash is not/],
      [`alice:${BCRYPT.replace("$04$", "$31$")}`, /line 2: its hash/],
      [`alice:${ARGON2.replace("m=64", "m=9999999")}`, /line 2: its hash/],
      [`a b:${BCRYPT}`, /line 2: the user name/],
      [`a#b:${BCRYPT}`, /line 2: the user name/],
      [`root:${ARGON2}`, /line 2: the user "root" has a line already/],
    ];
    for (const [line, problem] of rows) {
      await assert.rejects(withUsers(`root:${BCRYPT}\n${line}`, () => Promise.resolve()), (error) => {
        assert.ok(error instanceof ConfigError);
        assert.match(error.message, problem);
        return true;
      });
    }
    await assert.rejects(createHtpasswdProvider({ file: "/nowhere" }, { log: silentLogger }), /does not exist/);
    await assert.rejects(createHtpasswdProvider({}, { log: silentLogger }), /auth.htpasswd.file/);
  });
});
