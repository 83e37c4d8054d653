// The commands `auth …` of the compiled executables: their output, its permissions, and the files that they do not replace.
import assert from "node:assert/strict";
import { Buffer } from "node:buffer";
import { chmodSync, readdirSync, readFileSync, statSync } from "node:fs";
import { join } from "node:path";
import { describe, it } from "node:test";
import { decodeJwt } from "jose";
import { type Ended, Folder, PROXY, REVERSE_HTTP, runToEnd } from "../../testing/programs.ts";

/** Runs `auth …` in a folder. */
async function auth(folder: Folder, args: string[], input?: string): Promise<Ended> {
  return await runToEnd(REVERSE_HTTP, ["auth", ...args], { cwd: folder.path, input });
}

async function succeed(folder: Folder, args: string[], input?: string): Promise<string> {
  const { exitCode, stdout, stderr } = await auth(folder, args, input);
  assert.deepEqual([exitCode, stderr], [0, ""], args.join(" "));
  return stdout;
}

async function fail(folder: Folder, exitCode: number, args: string[], named: RegExp): Promise<void> {
  const ended = await auth(folder, args);
  assert.match(ended.stderr, named);
  assert.deepEqual([ended.exitCode, ended.stdout], [exitCode, ""], ended.stderr);
}

function read(folder: Folder, name: string): { text: string; mode: number } {
  const file = join(folder.path, name);
  return { text: readFileSync(file, "utf8"), mode: statSync(file).mode & 0o777 };
}

describe("auth", () => {
  it("writes keys and tokens to files with the usual names, secrets readable by their owner only", async () => {
    using folder = new Folder();
    await succeed(folder, ["key", "private"]);
    await succeed(folder, ["key", "public"]);
    const said = await succeed(folder, ["jwt", "token", "--agent-id", "4711"]);
    assert.deepEqual(readdirSync(folder.path).sort(), ["auth-key-private.pem", "auth-key-public.pem", "jwt.b64"]);
    assert.match(read(folder, "auth-key-private.pem").text, /^-----BEGIN EC PRIVATE KEY-----\n/);
    assert.match(read(folder, "auth-key-public.pem").text, /^-----BEGIN PUBLIC KEY-----\n/);
    for (const name of ["auth-key-private.pem", "jwt.b64"]) assert.equal(read(folder, name).mode, 0o600, name);
    const { agent_id: agentId, role, jti, iat, exp } = decodeJwt(read(folder, "jwt.b64").text);
    assert.deepEqual([agentId, role, exp! - iat!], ["4711", "client", 24 * 3600]);
    assert.equal(said, `jti ${jti}, expires ${new Date(exp! * 1000).toISOString()}`);
  });

  it("uses standard input and output for -", async () => {
    using folder = new Folder();
    for (const [algorithm, label] of [["ES256", "EC PRIVATE KEY"], ["RS256", "RSA PRIVATE KEY"], ["EdDSA", "PRIVATE KEY"]] as const) {
      const key = await succeed(folder, ["key", "private", "--algo", algorithm, "--out", "-"]);
      assert.ok(key.startsWith(`-----BEGIN ${label}-----`), key);
      assert.match(await succeed(folder, ["key", "public", "-i", "-", "-o", "-"], key), /^-----BEGIN PUBLIC KEY-----/);
      const args = ["--agent-id=4711", "--role=agent", "--audience=here", "--duration=87600h", "--allow=*.zone:80,10.0.0.0/8"];
      const token = await succeed(folder, ["jwt", "token", ...args, "--in=-", "--out=-"], key);
      assert.match(token, /^[\w-]+\.[\w-]+\.[\w-]+$/);
      const { role, aud, iat, exp, allow } = decodeJwt(token);
      assert.deepEqual({ role, aud, allow }, { role: "agent", aud: ["here"], allow: ["*.zone:80", "10.0.0.0/8"] });
      assert.equal(exp! - iat!, 87_600 * 3600);
    }
    assert.deepEqual(readdirSync(folder.path), []);
  });

  it("writes a ticket that fits into a password of SOCKS", async () => {
    using folder = new Folder();
    for (const algorithm of ["ES256", "EdDSA"]) {
      await succeed(folder, ["key", "private", "--algo", algorithm, "--force"]);
      const said = await succeed(folder, ["ticket", "--agent-id", "4711", "--duration=1h", "--force"]);
      const { text, mode } = read(folder, "ticket.txt");
      assert.match(text, /^rht_[\w-]{114}$/);
      assert.equal(mode, 0o600);
      const [, jti, expires] = /^jti ([0-9a-f-]{36}), expires (\S+)$/.exec(said) ?? [];
      assert.equal(Buffer.from(text.slice(4), "base64url").toString("hex", 5, 21), jti?.replaceAll("-", ""));
      assert.ok(Math.abs(Date.parse(expires!) - Date.now() - 3_600_000) < 120_000, said);
    }
    const key = await succeed(folder, ["key", "private", "--algo=RS256", "--out=-"]);
    folder.write("rsa.pem", key);
    await fail(folder, 2, ["ticket", "--agent-id=4711", "--in=rsa.pem"], /Cannot use --in "rsa\.pem": its key is for RSA.*ES256 or EdDSA/);
    await fail(
      folder,
      2,
      ["ticket", "--agent-id=4711", "--duration=1000000h"],
      /Cannot use --duration: a ticket expires in 2106 at the latest/,
    );
    await fail(folder, 2, ["ticket"], /Cannot create a ticket: --agent-id is required/);
    await fail(folder, 2, ["ticket", "--agent-id=a b"], /--agent-id "a b"/);
  });

  it("replaces a file only if requested, with the right mode and without leaving temporary files", async () => {
    using folder = new Folder();
    folder.write("auth-key-private.pem", "old");
    chmodSync(join(folder.path, "auth-key-private.pem"), 0o644);
    await fail(folder, 2, ["key", "private"], /--out "auth-key-private\.pem": the file exists; --force replaces it/);
    assert.equal(read(folder, "auth-key-private.pem").text, "old");
    await succeed(folder, ["key", "private", "--force"]);
    const { text, mode } = read(folder, "auth-key-private.pem");
    assert.match(text, /^-----BEGIN EC PRIVATE KEY-----\n/);
    assert.equal(mode, 0o600);
    assert.deepEqual(readdirSync(folder.path), ["auth-key-private.pem"]);
  });

  it("names invalid input, with exit code 2, and writes nothing", async () => {
    using folder = new Folder();
    folder.write("none.pem", "none\n");
    await succeed(folder, ["key", "private"]);
    const wrong: [args: string[], named: RegExp][] = [
      [["key", "private", "--algo=HS256"], /--algo: "HS256" is not one of ES256, RS256, EdDSA/],
      [["key", "public", "--in=missing.pem"], /Cannot read --in "missing\.pem": the file does not exist/],
      [["key", "public", "--in=none.pem"], /Cannot use --in "none\.pem": it has no PRIVATE KEY in PEM/],
      [["key", "public", "--in=."], /Cannot read --in "\.": it is a directory/],
      [["jwt", "token"], /--agent-id or --agents is required/],
      [["jwt", "token", "--agent-id=a", "--agents=b"], /both --agent-id and --agents/],
      [["jwt", "token", "--agents=b", "--role=agent"], /--agents: a token for an agent has one id/],
      [["jwt", "token", "--agents=a*b*"], /--agents.*more than one \*/],
      [["jwt", "token", "--agent-id=a", "--publish=:1"], /--publish: --role=agent is needed/],
      [["jwt", "token", "--agent-id=a", "--role=agent", "--publish=5432"], /--publish: the pattern "5432"/],
      [["jwt", "token", "--agent-id=a b"], /--agent-id "a b"/],
      [["jwt", "token", "--agent-id=4711", "--role=boss"], /--role: "boss" is not one of agent, client/],
      [["jwt", "token", "--agent-id=4711", "--duration=0s"], /--duration: it must be more than zero/],
      [["jwt", "token", "--agent-id=4711", "--allow=a:b:c"], /--allow: .*"a:b:c"/],
      [["jwt", "token", "--agent-id=4711", "--in=none.pem"], /Cannot use --in "none\.pem"/],
    ];
    for (const [args, named] of wrong) await fail(folder, 2, args, named);
    await fail(folder, 1, ["key", "private", "--out=missing/key.pem"], /Cannot write --out .*missing\/key\.pem/);
    assert.deepEqual(readdirSync(folder.path).sort(), ["auth-key-private.pem", "none.pem"]);
  });

  it("is in the proxy's executable too", async () => {
    const { exitCode, stdout } = await runToEnd(PROXY, ["auth", "key", "private", "--out=-"]);
    assert.equal(exitCode, 0);
    assert.match(stdout, /^-----BEGIN EC PRIVATE KEY-----\n/);
  });
});
