// Device login at an OpenID Connect issuer: the commands login and logout, and the tokens that clients use and renew.
import assert from "node:assert/strict";
import { chmodSync, existsSync, readFileSync, statSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { describe, it } from "node:test";
import { decodeJwt } from "jose";
import { parse } from "yaml";
import { loginCommand, logoutCommand } from "../../client/login.ts";
import { diagnoseClient } from "../../client/doctor.ts";
import { type ClientOptions, clientOptions } from "../../client/options.ts";
import { readSessionToken, type Session, type SessionOptions } from "../../client/session.ts";
import { checkAccess } from "../../client/tunnel.ts";
import { TunnelFailure } from "../../client/tunnel_failure.ts";
import { CommandFailure, readCommandLine, type Subcommand } from "../../shared/cli/command.ts";
import { ConfigError } from "../../shared/config/option.ts";
import { withLock } from "../../shared/files/lock.ts";
import { withNet } from "../../testing/network.ts";
import { OidcIssuer } from "../../testing/oidc_issuer.ts";
import { Folder } from "../../testing/programs.ts";
import { type FakeTerminal, fakeTerminal } from "../../testing/terminal.ts";

const ROOT = {
  name: "reverse-http",
  description: "All.",
  commands: [
    loginCommand as Subcommand,
    logoutCommand as Subcommand,
    { name: "connect", description: "Connects.", profile: clientOptions, run: () => Promise.resolve() } as Subcommand,
  ],
};

/** A person with a folder of profiles, who agrees to each code. */
class Person {
  answer: "agreed" | "denied" = "agreed";
  constructor(readonly folder: Folder, readonly issuer: OidcIssuer) {}

  async run(args: string[], columns?: number): Promise<FakeTerminal> {
    const env = { XDG_CONFIG_HOME: this.folder.path };
    const task = readCommandLine({ root: ROOT, version: "1", family: {} }, { args, env, home: undefined });
    const { subcommand, resolved, line } = task as Extract<typeof task, { do: "subcommand" }>;
    const terminal = fakeTerminal({ env, columns });
    const write = (text: string) => {
      terminal.write(text);
      const [, code] = /enter the code (\S+)/.exec(text) ?? [];
      if (code !== undefined) this.issuer.decide(code, this.answer);
    };
    await subcommand.run(resolved.values, { ...terminal, write }, line);
    return terminal;
  }

  login(...args: string[]): Promise<FakeTerminal> {
    return this.run(["login", "--proxy=proxy.example:3128", `--issuer=${this.issuer.url}`, "--client-id=cli", ...args]);
  }

  /** The options of a client with the profile. */
  get options(): SessionOptions {
    const env = { XDG_CONFIG_HOME: this.folder.path };
    const task = readCommandLine({ root: ROOT, version: "1", family: {} }, { args: ["connect"], env, home: undefined });
    return checkAccess((task as Extract<typeof task, { do: "subcommand" }>).resolved.values as never);
  }

  get sessionFile(): string {
    return join(this.folder.path, "reverse-http", "client.session.json");
  }

  get session(): Session {
    return JSON.parse(readFileSync(this.sessionFile, "utf8"));
  }

  /** Makes the token one that is due for a renewal, or has expired. */
  age(expiresAt: number): void {
    writeFileSync(this.sessionFile, JSON.stringify({ ...this.session, issuedAt: 0, expiresAt }));
  }
}

async function withPerson(body: (person: Person, issuer: OidcIssuer) => Promise<void>): Promise<void> {
  using folder = new Folder();
  await using issuer = await OidcIssuer.start();
  await body(new Person(folder, issuer), issuer);
}

describe("device login", () => {
  it("shows a code, stores the session for its owner alone, and a profile that uses it", async () => {
    await withPerson(async (person, issuer) => {
      issuer.refusals.push("authorization_pending");
      const terminal = await person.login("--agent-id=site7");
      assert.match(
        terminal.out(),
        /^Open http\S+\/activate and enter the code CODE-1 within 10 min\nor open \S+code=CODE-1\nsigned in at /,
      );
      assert.equal(statSync(person.sessionFile).mode & 0o777, 0o600);
      const profile = parse(readFileSync(join(person.folder.path, "reverse-http", "client.yaml"), "utf8"));
      assert.deepEqual(profile, {
        "proxy": "proxy.example:3128",
        "agent-id": "site7",
        "issuer": issuer.url,
        "client-id": "cli",
        "session-file": person.sessionFile,
      });
      const token = await readSessionToken(person.options);
      assert.equal(decodeJwt(token).aud, "cli");
      const { scope } = issuer.asked[0]!;
      assert.equal(scope, undefined, "the scope belongs to the first request");
      const again = await person.run(["login"], 200);
      assert.match(again.out(), /enter the code CODE-2 .*\n.*\n\n[^]*▀[^]*signed in/);
      assert.notEqual(await readSessionToken(person.options), token);
      await assert.rejects(person.login(), /the file exists; --force replaces it/);
    });
  });

  it("says why there is no session, and stores nothing then", async () => {
    await withPerson(async (person, issuer) => {
      const fails = async (message: RegExp, ...args: string[]) => {
        await assert.rejects(
          person.login(...args),
          (error) => error instanceof CommandFailure && error.exitCode === 1 && message.test(error.message),
        );
        assert.equal(existsSync(person.sessionFile), false);
      };
      person.answer = "denied";
      await fails(/^Cannot sign in: .*the sign-in was denied \(access_denied\)$/);
      issuer.refusals.push("expired_token");
      await fails(/the code has expired .*run the command again$/);
      issuer.refusals.push("unauthorized_client");
      await fails(/enable it for the client there/);
      issuer.secrets.set("cli", "secret");
      await fails(/it does not know the client, or not with this secret/);
      issuer.secrets.clear();
      issuer.hasDeviceLogin = false;
      await fails(/has no device login/);
      issuer.isDown = true;
      await fails(/gives no usable answer/);
      await assert.rejects(person.login("--client-secret=x"), /Cannot use --client-secret: other users see the command line/);
      await assert.rejects(person.login("--token=file:/x"), /Cannot use both --token and --issuer/);
      await assert.rejects(person.run(["login", "--proxy=p:1", `--issuer=${issuer.url}`]), /--client-id is required/);
    });
  });

  it("takes tokens with an odd expiry for what they are", async () => {
    await withPerson(async (person, issuer) => {
      issuer.claims = { exp: 1e300 };
      issuer.lifetimeS = Number.MAX_SAFE_INTEGER;
      await person.login();
      assert.equal(typeof person.session.expiresAt, "number");
      await readSessionToken(person.options);
      Object.assign(issuer.claims, { exp: "soon" });
      await assert.rejects(person.run(["login"]), /gives no usable answer/);
    });
  });

  it("survives answers that fail while it waits", async () => {
    await withPerson(async (person, issuer) => {
      issuer.refusals.push("server_error");
      await person.login();
      assert.equal(issuer.asked.length, 2);
    });
  });

  it("logout revokes the session and removes it", async () => {
    await withPerson(async (person, issuer) => {
      await person.login();
      assert.equal(issuer.sessions, 1);
      assert.match((await person.run(["logout"])).out(), /^signed out at /);
      assert.deepEqual([issuer.sessions, existsSync(person.sessionFile)], [0, false]);
      await assert.rejects(readSessionToken(person.options), /there is none; sign in with reverse-http login/);
      await person.run(["login"]);
      issuer.isDown = true;
      await assert.rejects(person.run(["logout"]), /may stay valid until they expire/);
      assert.equal(existsSync(person.sessionFile), false);
    });
  });
});

describe("the token of a session", () => {
  it("is renewed ahead of its end by one of several programs, with the new refresh token", async () => {
    await withPerson(async (person, issuer) => {
      await person.login();
      const { options, session } = person;
      assert.equal(await readSessionToken(options), session.token);
      for (let round = 1; round <= 3; round++) {
        person.age(Date.now() + 30_000);
        const tokens = await Promise.all(Array.from({ length: 20 }, () => readSessionToken(options)));
        assert.equal(new Set(tokens).size, 1);
        assert.equal(issuer.asked.length, 1 + round);
      }
      assert.notEqual(person.session.refreshToken, session.refreshToken);
      assert.equal(statSync(person.sessionFile).mode & 0o777, 0o600);
      assert.equal(existsSync(`${person.sessionFile}.lock`), false);
    });
  });

  it("serves on while the issuer is down, until it expires", async () => {
    await withPerson(async (person, issuer) => {
      await person.login();
      const { token } = person.session;
      issuer.isDown = true;
      person.age(Date.now() + 30_000);
      assert.equal(await readSessionToken(person.options), token);
      person.age(Date.now() - 1);
      await assert.rejects(
        readSessionToken(person.options),
        (error) =>
          error instanceof TunnelFailure && error.kind === "denied" && /has expired and cannot be renewed: The issuer/.test(error.message),
      );
      issuer.isDown = false;
      await readSessionToken(person.options);
    });
  });

  it("ends with the session at the issuer, and says what to do", async () => {
    await withPerson(async (person, issuer) => {
      await person.login();
      issuer.endSessions();
      person.age(Date.now() - 1);
      const ended = /The session at .* has ended: .*sign in again with reverse-http login/;
      await assert.rejects(readSessionToken(person.options), (error) => error instanceof TunnelFailure && ended.test(error.message));
      await withNet(async (net) => {
        const finding = (await diagnoseClient(person.options as ClientOptions, undefined, { net })).at(-1)!;
        assert.deepEqual([finding.result, finding.remedy], ["failed", "sign in again with reverse-http login"]);
      });
    });
  });

  it("is refused from a file of others, of another client, or that is damaged, without quoting it", async () => {
    await withPerson(async (person) => {
      await person.login();
      const { options, session } = person;
      const fails = (message: RegExp) =>
        assert.rejects(
          readSessionToken(options),
          (error) => error instanceof ConfigError && message.test(error.message) && !error.message.includes(session.token),
        );
      chmodSync(person.sessionFile, 0o644);
      await fails(/other users may read it \(mode 0644\); run chmod/);
      chmodSync(person.sessionFile, 0o600);
      writeFileSync(person.sessionFile, JSON.stringify({ ...session, clientId: "other" }));
      await fails(/the client other; sign in again/);
      writeFileSync(person.sessionFile, `{"token": "${session.token}"`);
      await fails(/it is damaged/);
    });
  });
});

describe("a lock of a file", () => {
  it("is taken over from a process that has died, and not from one that runs", async () => {
    using folder = new Folder();
    const file = folder.write("x.lock", "of a dead process");
    const soon = { staleMs: 60_000, timeoutMs: 0 };
    await assert.rejects(withLock(file, soon, () => Promise.resolve()), /another process has the lock/);
    assert.equal(await withLock(file, { staleMs: -1, timeoutMs: 60_000 }, () => Promise.resolve(existsSync(file))), true);
    assert.equal(existsSync(file), false);
  });
});
