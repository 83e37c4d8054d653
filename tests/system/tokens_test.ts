// Agents and clients with tokens and the compiled executables: who is accepted, who is not, and what ends with a token.
import assert from "node:assert/strict";
import { Buffer } from "node:buffer";
import { createHmac } from "node:crypto";
import { chmodSync, readFileSync, renameSync, rmSync } from "node:fs";
import { join } from "node:path";
import { describe, it } from "node:test";
import { decodeJwt } from "jose";
import { type Addresses, AGENT, type Program, PROXY, REVERSE_HTTP, runToEnd, Site } from "../../testing/programs.ts";
import { ask, connectHead, openTunnel, Origin } from "../../testing/sockets.ts";
import { makeTokenKey, type TokenKey } from "../../testing/tokens.ts";

/** A proxy that accepts the tokens of one key. */
class TokenSite implements AsyncDisposable {
  private constructor(
    readonly site: Site,
    readonly key: TokenKey,
    readonly proxy: Program,
    readonly addresses: Addresses,
    readonly origin: Origin,
  ) {}

  static async start(args: readonly string[] = [], files: Readonly<Record<string, string>> = {}): Promise<TokenSite> {
    const site = await Site.create();
    const key = makeTokenKey();
    const publicKey = site.folder.write("public.pem", key.publicPem);
    for (const [name, content] of Object.entries(files)) site.folder.write(name, content);
    const inFolder = args.map((arg) => arg.replace("FOLDER", site.folder.path));
    const { proxy, addresses } = await site.startProxy([
      "--auth.type=jwt",
      `--auth.jwt.public-key=${publicKey}`,
      "--log.level=trace",
      ...inFolder,
    ]);
    return new TokenSite(site, key, proxy, addresses, await Origin.start());
  }

  /** As an editor saves. */
  replace(name: string, content: string): void {
    renameSync(this.site.folder.write(`${name}.new`, content), join(this.site.folder.path, name));
  }

  agentArgs(token: string): string[] {
    const args = this.site.agentArgs(this.addresses).filter((arg) => !arg.startsWith("--auth."));
    return [...args, "--auth.type=jwt", `--auth.jwt.token=${token}`, "--log.level=trace"];
  }

  async startAgent(token: string, id = "4711"): Promise<Program> {
    const agent = this.site.start(AGENT, this.agentArgs(token));
    await agent.waitFor("connected", { agent: id });
    return agent;
  }

  async status(password: string, id?: string): Promise<number> {
    return (await ask(this.addresses.clients, connectHead(this.origin.authority, id, password))).status;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.origin[Symbol.asyncDispose]();
    await this.site[Symbol.asyncDispose]();
  }
}

for (const algorithm of ["ES256", "RS256", "EdDSA", "Ed25519"]) {
  it(`agent and client are connected with keys and tokens for ${algorithm} of the auth commands`, async () => {
    await using site = await Site.create();
    await using origin = await Origin.start();
    const auth = async (...args: string[]) => {
      const { exitCode, stderr } = await runToEnd(REVERSE_HTTP, ["auth", ...args], { cwd: site.folder.path });
      assert.equal(exitCode, 0, stderr);
    };
    await auth("key", "private", `--algo=${algorithm}`);
    await auth("key", "public");
    await auth("jwt", "token", "--agent-id=4711", "--role=agent", "--audience=here", "--out=agent.jwt");
    await auth("jwt", "token", "--agent-id=4711", "--audience=here", "--out=client.jwt");
    const password = readFileSync(join(site.folder.path, "client.jwt"), "utf8");
    const publicKey = join(site.folder.path, "auth-key-public.pem");
    const { addresses } = await site.startProxy(["--auth.type=jwt", `--auth.jwt.public-key=${publicKey}`, "--auth.jwt.audience=here"]);
    const token = `file:${join(site.folder.path, "agent.jwt")}`;
    await site.startAgent(addresses, ["--auth.type=jwt", `--auth.jwt.token=${token}`]);
    using tunnel = await openTunnel(addresses.clients, origin.authority, { password });
    using server = await origin.accept();
    await tunnel.write("ping");
    assert.equal((await server.read(4)).toString(), "ping");
  });
}

describe("proxy with tokens", () => {
  it("accepts a client's token as a password with its agent id, and as a Bearer token", async () => {
    await using tokens = await TokenSite.start();
    const { addresses, origin, key } = tokens;
    await tokens.startAgent(await key.sign({ role: "agent" }));
    const token = await key.sign();
    assert.equal(await tokens.status(token, "4712"), 407);
    using _basic = await openTunnel(addresses.clients, origin.authority, { password: token });
    const head = `GET http://${origin.authority}/ HTTP/1.1\r\nHost: ${origin.authority}\r\nProxy-Authorization: Bearer ${token}\r\n\r\n`;
    await origin.accept();
    const answered = ask(addresses.clients, head);
    const server = await origin.accept();
    await server.readUntil("\r\n\r\n");
    server.finish("HTTP/1.1 204 No Content\r\n\r\n");
    assert.equal((await answered).status, 204);
  });

  it("logs what is wrong with a token, and tells the peer only that it is refused", async () => {
    await using tokens = await TokenSite.start(["--auth.jwt.audience=here"]);
    const { key, proxy, addresses, origin } = tokens;
    const encode = (part: object) => Buffer.from(JSON.stringify(part)).toString("base64url");
    const forge = (alg: string, secret?: string) => {
      const input = `${encode({ alg })}.${encode({ agent_id: "4711", role: "client", aud: "here", exp: 4_000_000_000 })}`;
      return `${input}.${secret === undefined ? "" : createHmac("sha256", secret).update(input).digest("base64url")}`;
    };
    const hour = { audience: "here", durationMs: 3_600_000 };
    const wrong: [token: string, reason: RegExp][] = [
      ["any", /not a JWT/],
      [await makeTokenKey().sign(hour), /signature matches none of the public keys/],
      [forge("none"), /alg is "none"/],
      [forge("HS256", key.publicPem), /alg is "HS256"/],
      [await key.sign({ ...hour, role: "agent" }), /has the role "agent", and was sent by a client/],
      [await key.sign({ ...hour, audience: "there" }), /for the audience \["there"\], but this side is "here"/],
      [await key.sign({ durationMs: 3_600_000 }), /for no audience/],
      [await key.sign({ ...hour, agentId: "4712" }), /for the agent id "4712", and the user name is "4711"/],
      [await key.sign({ ...hour, durationMs: -60_000 }), /expired at/],
    ];
    for (const [index, [token, reason]] of wrong.entries()) {
      const { status, body, fields } = await ask(addresses.clients, connectHead(origin.authority, "4711", token));
      assert.equal(status, 407);
      assert.match(body, /^The credentials are not accepted \(request [\w-]+\)\n$/);
      assert.equal(fields["proxy-status"], 'reverse-http-proxy;error=http_request_denied;details="The credentials are not accepted"');
      const entry = await proxy.waitFor("request", { status: 407 }, index + 1);
      assert.match(String(entry.reason), reason);
      assert.ok(!JSON.stringify(entry).includes(token) || token === "any", "the token is in the log");
    }
    // as long as a head can be
    assert.equal(await tokens.status("a".repeat(11_000)), 407);
    assert.equal(await tokens.status("a".repeat(64 * 1024)), 431);
  });

  it("closes the connection of an agent with a wrong token with 401, and has the reason only in its log", async () => {
    await using tokens = await TokenSite.start();
    const { key, site, proxy } = tokens;
    const wrong: [token: string, reason: RegExp][] = [
      [await makeTokenKey().sign({ role: "agent" }), /signature matches none/],
      [await key.sign({ role: "agent", durationMs: -60_000 }), /expired at/],
    ];
    for (const [index, [token, reason]] of wrong.entries()) {
      await using agent = site.start(AGENT, tokens.agentArgs(token));
      const entry = await agent.waitFor("not connected");
      assert.match(String(entry.reason), /: 401 authentication failed;/);
      agent.signal("SIGKILL");
      const refused = await proxy.waitFor("agent refused", {}, index + 1);
      assert.match(String(refused.reason), reason);
    }
  });

  it("allows clients the destinations in both their token and the agent's", async () => {
    await using tokens = await TokenSite.start();
    const { addresses, origin, key } = tokens;
    await tokens.startAgent(await key.sign({ role: "agent", allow: [origin.authority] }));
    const refused = async (authority: string, password: string) => {
      const { status, body } = await ask(addresses.clients, connectHead(authority, undefined, password));
      return `${status} ${body.replace(/ \(request [\w-]+\)\n$/, "\n")}`;
    };
    const allowed = await key.sign({ allow: ["127.0.0.1"] });
    using _tunnel = await openTunnel(addresses.clients, origin.authority, { password: allowed });
    assert.equal(await refused("127.0.0.1:1", allowed), "403 127.0.0.1:1 is not on the allow-list of the agent's credentials\n");
    const elsewhere = await key.sign({ allow: ["*.zone"] });
    assert.equal(await refused(origin.authority, elsewhere), `403 ${origin.authority} is not on the allow-list of the credentials\n`);
  });

  it("does not start with invalid key files: exit code 2, and the error names the file", async () => {
    await using site = await Site.create();
    const wrong: [file: string, named: RegExp][] = [
      ["/nonexistent/key.pem", /--auth\.jwt\.public-key "\/nonexistent\/key\.pem"/],
      [site.folder.path, /--auth\.jwt\.public-key ".*": it is a directory/],
      [site.folder.write("none.pem", ""), /--auth\.jwt\.public-key ".*none\.pem": it has no PUBLIC KEY in PEM/],
      [
        site.folder.write("private.pem", makeTokenKey().privatePem),
        /--auth\.jwt\.public-key ".*private\.pem": it has no PUBLIC KEY in PEM, but EC PRIVATE KEY; keep the private key where tokens are created/,
      ],
    ];
    for (const [file, named] of wrong) {
      for (const check of [[], ["--check-config"]]) {
        const { exitCode, stderr } = await runToEnd(PROXY, [
          ...site.proxyArgs(),
          "--auth.type=jwt",
          `--auth.jwt.public-key=${file}`,
          ...check,
        ]);
        assert.match(stderr, named);
        assert.equal(exitCode, 2, stderr);
      }
    }
  });
});

describe("a token that", () => {
  it("expires ends its agent's connection and, with on-expiry=close, its client's tunnel", async () => {
    await using tokens = await TokenSite.start(["--auth.jwt.on-expiry=close"]);
    const { key, proxy, addresses, origin } = tokens;
    const [short, long] = [await key.sign({ durationMs: 4_000 }), await key.sign()];
    await tokens.startAgent(await key.sign({ role: "agent" }));
    using tunnel = await openTunnel(addresses.clients, origin.authority, { password: short });
    using other = await openTunnel(addresses.clients, origin.authority, { password: long });
    using server = await origin.accept();
    using otherServer = await origin.accept();
    assert.equal(await tunnel.ending(), "ECONNRESET");
    assert.ok(Date.now() >= decodeJwt(short).exp! * 1000, "It ended before its time");
    await proxy.waitFor("request", { status: 200, jti: decodeJwt(short).jti, reason: "The token has expired" });
    assert.equal(await tokens.status(short), 407);

    const agentToken = await key.sign({ role: "agent", agentId: "4712", durationMs: 4_000 });
    const agent = await tokens.startAgent(agentToken, "4712");
    const { reason } = await agent.waitFor("not connected");
    assert.match(String(reason), /401 credentials no longer accepted/);
    assert.ok(Date.now() >= decodeJwt(agentToken).exp! * 1000, "It ended before its time");
    await proxy.waitFor("agent disconnected", { jti: decodeJwt(agentToken).jti, reason: "closed by the proxy: 401 The token has expired" });
    // it is refused, and others are not affected
    await proxy.waitFor("agent refused");
    assert.equal(await server.ending(), "ECONNRESET");
    await other.write("ping");
    assert.equal((await otherServer.read(4)).toString(), "ping");
  });

  it("expires does not end its client's tunnel by default", async () => {
    await using tokens = await TokenSite.start();
    const { key, proxy, addresses, origin } = tokens;
    await tokens.startAgent(await key.sign({ role: "agent" }));
    using tunnel = await openTunnel(addresses.clients, origin.authority, { password: await key.sign({ durationMs: 3_000 }) });
    using server = await origin.accept();
    // an agent whose token expires later tells that the time has passed
    await tokens.startAgent(await key.sign({ role: "agent", agentId: "4712", durationMs: 4_000 }), "4712");
    await proxy.waitFor("agent disconnected", { agent: "4712" });
    await tunnel.write("ping");
    assert.equal((await server.read(4)).toString(), "ping");
  });

  it("is revoked ends its agent's connection and its client's tunnel, and is refused from then on", async () => {
    await using tokens = await TokenSite.start(["--auth.jwt.revocation-file=FOLDER/revoked"], { revoked: "" });
    const { key, proxy, addresses, origin } = tokens;
    const [agentToken, first, second] = [await key.sign({ role: "agent" }), await key.sign(), await key.sign()];
    const agent = await tokens.startAgent(agentToken);
    using tunnel = await openTunnel(addresses.clients, origin.authority, { password: first });
    using other = await openTunnel(addresses.clients, origin.authority, { password: second });
    using server = await origin.accept();
    tokens.replace("revoked", `${decodeJwt(first).jti} # left\n`);
    assert.equal(await tunnel.ending(), "ECONNRESET");
    assert.equal(await server.ending(), "ECONNRESET");
    await proxy.waitFor("request", { status: 200, jti: decodeJwt(first).jti, reason: "The token is revoked" });
    assert.equal(await tokens.status(first), 407);
    assert.deepEqual(agent.logged("not connected"), []);
    tokens.replace("revoked", `${decodeJwt(first).jti}\n${decodeJwt(agentToken).jti}\n`);
    await proxy.waitFor("agent disconnected", { reason: "closed by the proxy: 401 The token is revoked" });
    assert.equal(await other.ending(), "ECONNRESET");
    await agent.waitFor("not connected");
    assert.equal(await tokens.status(second), 502);
  });

  it("has a removed key ends its connections, and one with the new key does not", async () => {
    await using tokens = await TokenSite.start();
    const { key, proxy, addresses, origin } = tokens;
    const fresh = makeTokenKey();
    const file = tokens.site.folder.write("agent.jwt", await key.sign({ role: "agent" }));
    const agent = await tokens.startAgent(`file:${file}`);
    tokens.replace("public.pem", key.publicPem + fresh.publicPem);
    await proxy.waitFor("public keys reloaded", { keys: 2 });
    using old = await openTunnel(addresses.clients, origin.authority, { password: await key.sign() });
    tokens.replace("agent.jwt", await fresh.sign({ role: "agent" }));
    tokens.replace("public.pem", fresh.publicPem);
    assert.equal(await old.ending(), "ECONNRESET");
    await proxy.waitFor("agent disconnected", { reason: "closed by the proxy: 401 The public key of the token was removed" });
    // the agent reads its token again
    await agent.waitFor("connected", {}, 2);
    using _tunnel = await openTunnel(addresses.clients, origin.authority, { password: await fresh.sign() });
    assert.equal(await tokens.status(await key.sign()), 407);
  });
});

describe("agent with a token", () => {
  it("does not start without one, or with a missing or invalid file: exit code 2, without showing its content", async () => {
    await using site = await Site.create();
    const token = await makeTokenKey().sign();
    const inFile = (content: string | Uint8Array) => `--auth.jwt.token=file:${site.folder.write(`jwt-${++files}`, content)}`;
    let files = 0;
    const wrong: [args: string[], named: RegExp][] = [
      [[], /--auth\.jwt\.token is required/],
      [["--auth.jwt.token=hunter2"], /--auth\.jwt\.token: it is not a JWT/],
      [["--auth.jwt.token=file:/nonexistent/jwt"], /--auth\.jwt\.token file:\/nonexistent\/jwt: the file does not exist$/m],
      [[`--auth.jwt.token=file:${site.folder.path}`], /--auth\.jwt\.token file:\S+: it is a directory$/m],
      [[inFile(`"${token}"`)], /it has quotation marks around it/],
      [[inFile(`Bearer ${token}`)], /it begins with Bearer/],
      [[inFile(`# of 4711\n${token}\n`)], /it has a comment/],
      [[inFile(`${token}\n${token}\n`)], /it has 2 lines/],
      [[inFile(token.replace(".", ".\n"))], /it has 2 lines/],
      [[inFile(Buffer.from(token, "utf16le"))], /it is not text in UTF-8/],
      [[inFile(`token=${token}`)], /it does not contain a JWT/],
      [[inFile(token)], /it has the role "client"; create one for an agent: auth jwt token --role=agent/],
      [[`--auth.jwt.token=file:${site.folder.write("empty", "\n")}`], /--auth\.jwt\.token file:.*empty: it is empty/],
      [
        [`--auth.jwt.token=file:${site.folder.write("half", token.slice(0, 40))}`],
        /--auth\.jwt\.token file:.*half: it does not contain a JWT/,
      ],
      [[`--auth.jwt.token=${"a".repeat(64 * 1024)}`], /65536 bytes/],
    ];
    for (const [args, named] of wrong) {
      const { exitCode, stderr } = await runToEnd(AGENT, ["--auth.type=jwt", ...args]);
      assert.match(stderr, named);
      assert.equal(exitCode, 2, stderr);
      assert.ok(!/hunter2|aaaa/.test(stderr) && !stderr.includes(token.slice(0, 20)), stderr);
      assert.ok(stderr.endsWith((await runToEnd(AGENT, ["--auth.type=jwt", ...args, "--check-config"])).stderr));
    }
  });

  it("accepts a file with a byte-order mark, CRLF and blanks, and warns if other users can read it", async () => {
    await using tokens = await TokenSite.start();
    const token = await tokens.key.sign({ role: "agent" });
    const file = tokens.site.folder.write("marked.jwt", `\ufeff ${token} \r\n\r\n`);
    chmodSync(file, 0o644);
    const agent = await tokens.startAgent(`file:${file}`);
    await agent.waitFor("secret file is readable by other users", { file, mode: "0644", what: "--auth.jwt.token" });
  });

  it("is named in the log of a proxy without tokens, and logs what to do", async () => {
    await using site = await Site.create();
    const { proxy, addresses } = await site.startProxy();
    const token = await makeTokenKey().sign({ role: "agent" });
    const file = site.folder.write("agent.jwt", token);
    const agent = site.start(AGENT, [...site.agentArgs(addresses), "--auth.type=jwt", `--auth.jwt.token=file:${file}`]);
    assert.match(String((await agent.waitFor("not connected")).reason), /it does not accept tokens: set --auth\.type=jwt/);
    assert.match(
      String((await proxy.waitFor("agent refused")).reason),
      /^The agent sent a token, but this side uses --auth\.type=noauth/,
    );
  });

  it("keeps trying while its file is missing, and never logs its content", async () => {
    await using tokens = await TokenSite.start(["--auth.jwt.revocation-file=FOLDER/revoked"], { revoked: "" });
    const { key, site, proxy } = tokens;
    const token = await key.sign({ role: "agent" });
    const file = site.folder.write("agent.jwt", `${token}\n`);
    const agent = await tokens.startAgent(`file:${file}`);
    rmSync(file);
    tokens.replace("revoked", `${decodeJwt(token).jti}\n`);
    await proxy.waitFor("agent disconnected");
    for (let count = 1; !/agent\.jwt/.test(String((await agent.waitFor("not connected", {}, count)).reason)); count++);
    const renewed = await key.sign({ role: "agent" });
    tokens.replace("agent.jwt", renewed);
    await agent.waitFor("connected", {}, 2);
    const logs = JSON.stringify([agent.entries, proxy.entries]);
    for (const secret of [token, renewed]) assert.ok(!logs.includes(secret.split(".")[2]!), "a token is in the log");
  });
});
