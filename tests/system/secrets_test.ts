// No secret appears in a log, an error, a metric, a state file or a process's title, whatever fails. Every test of the executables searches
// their output for its secrets; the tests here cause as many failures as possible.
import assert from "node:assert/strict";
import { Buffer } from "node:buffer";
import { createPrivateKey, randomBytes } from "node:crypto";
import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { describe, it } from "node:test";
import { makeAuthority } from "../../testing/certificates.ts";
import { AGENT, Folder, LB, Program, PROXY, REVERSE_HTTP, runToEnd, Site } from "../../testing/programs.ts";
import { secrets } from "../../testing/secrets.ts";
import { ask, connectHead, openTunnel, Origin } from "../../testing/sockets.ts";
import { makeTokenKey } from "../../testing/tokens.ts";

const HOME = { PATH: "/usr/bin:/bin", HOME: "/nonexistent" };

/** A secret that is unique, and must be quoted in many formats. */
function makeSecret(what: string): string {
  const secret = `${randomBytes(9).toString("base64url")}#:"'@ ${randomBytes(9).toString("base64url")}`;
  secrets.add(what, secret);
  return secret;
}

function encrypt(key: string, passphrase: string): string {
  return String(createPrivateKey(key).export({ type: "pkcs8", format: "pem", cipher: "aes-256-cbc", passphrase }));
}

describe("the search for secrets", () => {
  it("finds the secrets that a program was given, and fails the test", async () => {
    using folder = new Folder();
    const password = makeSecret("a password that is shown");
    const name = folder.write(`shown-${encodeURIComponent(password)}.yaml`, "nothing: known\n");
    await assert.rejects(runToEnd(PROXY, [`--config=${name}`, "--check-config"]), /a password that is shown/);
  });
});

describe("secrets", () => {
  it("are in no error about an invalid configuration", async () => {
    await using site = await Site.create();
    const { folder } = site;
    const key = makeTokenKey();
    const password = makeSecret("a key's password");
    const token = await key.sign({ role: "agent" });
    const server = (await makeAuthority()).key;
    const encrypted = folder.write("encrypted.pem", encrypt(readFileSync(site.files.key, "utf8"), password));
    const file = (name: string, content: string | Uint8Array) => folder.write(name, content);
    const own = site.proxyArgs();
    const yaml = (text: string) => ["proxy", `--config=${file("config.yaml", text)}`, "--check-config"];
    const quoted = JSON.stringify(password);
    const withKey = (content: string) => ["proxy", ...own, `--agent-server.tls.file.key=${file("key.pem", content)}`];
    const lines = server.trimEnd().split("\n");
    const runs: (readonly string[])[] = [
      ["proxy", ...own, `--agent-server.tls.file.key=${encrypted}`, `--agent-server.tls.key-password=${password}x`],
      ["proxy", ...own, `--agent-server.tls.key-passwrd=${password}`],
      ["proxy", ...own, "--agent-server.tls.key-password", "x", password],
      ["proxy", ...own, `--http-proxy.tls.key-password=${password}`],
      yaml(`agent-server:\n  tls:\n    key-password: ${quoted}\n\tx: y\n`),
      yaml(`agent-server:\n  tls:\n    key-password: [${quoted}\n`),
      yaml(`agent-server:\n  tls:\n    key-password: {a: ${quoted}}\n`),
      yaml(`agent-server:\n  tls: ${quoted}\n`),
      yaml(`{"agent-server": {"tls": {"key-password": ${quoted}, "x"}}`),
      yaml(`agent-server.tls.key-password: ${quoted}\nagent-server.tls.key-password: ${quoted}\n`),
      yaml(`auth.jwt.token: ${token}: x\n`),
      yaml(`agent-server:\n  tls:\n    key-password: "\\x${password}"\n`),
      ["proxy", ...own, `--agent-server.tls.file.key=${server}`, "--print-config"],
      ["proxy", ...own, `--agent-server.tls.file.key=${Buffer.from(server).toString("base64")}`],
      ["proxy", ...own, "--auth.type=jwt", `--auth.jwt.public-key=${key.privatePem}`],
      withKey(lines.join(" ")),
      withKey(lines.slice(0, -1).join("\n")),
      withKey(lines.slice(1).join("\n")),
      withKey(lines.join("\n").replace(lines[2]!, `!${lines[2]}`)),
      withKey(lines.join("\n").replace(lines[2]!, lines[2]!.slice(1))),
      withKey(server.replace("-----BEGIN", "----BEGIN")),
      withKey(server + server),
      ["proxy", ...own, `--agent-server.tls.file.client-ca=${file("ca.pem", server)}`],
      ["proxy", ...own, "--auth.type=jwt", `--auth.jwt.public-key=${file("private.pem", key.privatePem)}`],
      [
        "proxy",
        ...own,
        "--auth.type=jwt",
        `--auth.jwt.public-key=${
          file("jwks.json", JSON.stringify({ keys: [createPrivateKey(key.privatePem).export({ format: "jwk" })] }))
        }`,
      ],
      ["proxy", ...own, "--auth.type=jwt", `--auth.jwt.public-key=${file("half.json", `{"keys": [${quoted}`)}`],
      [
        "proxy",
        ...own,
        "--auth.type=jwt",
        `--auth.jwt.public-key=${file("public.pem", key.publicPem)}`,
        `--auth.jwt.revocation-file=${file("revoked", token)}`,
      ],
      ["agent", "--auth.type=jwt", `--auth.jwt.token=${token}x.y`],
      ["agent", "--auth.type=jwt", `--auth.jwt.token= Bearer ${token}`],
      ["agent", "--auth.type=jwt", `--auth.jwt.token=${file("token", `"${token}"\n`).replace(/^/, "file:")}`],
      ["agent", "--auth.type=jwt", `--auth.jwt.token=file:${file("token", Buffer.from(token, "utf16le"))}`],
      ["agent", "--auth.type=jwt", "--auth.jwt.token", "file:x", token],
      ["agent", "--auth.typ=jwt", `--auth.jwt.tokn=${token}`],
      ["agent", "--auth.type=jwt", `--auth.jwt.token=file:${token}`, "--print-config"],
      ["agent", "--auth.type", `--auth.jwt.token=${token}`],
      ["agent", token],
      ["lb", `--store.type=redis`, `--store.redis.url=redis://u:${password}@localhost`],
      ["lb", `--store.type=redis`, `--store.redis.url=redis://u:${encodeURIComponent(password)}@localhost/nowhere`],
      ["lb", `--store.type=redis`, `--store.redis.url=http://u:${encodeURIComponent(password)}@localhost`],
      ["auth", "jwt", "token", "--agent-id=4711", `--in=${file("broken.pem", lines.join(" "))}`],
      ["auth", "jwt", "token", "--agent-id=4711", `--in=${encrypted}`],
      ["auth", "jwt", "token", "--agent-id=4711", `--in=${key.privatePem}`],
    ];
    for (const args of runs) {
      // it fails where one of them is shown
      const { exitCode, stderr } = await runToEnd(REVERSE_HTTP, args);
      assert.equal(exitCode, 2, `${args.join(" ")}\n${stderr}`);
    }
    for (const [name, value] of [["AGENT_SERVER_TLS_KEY_PASSWORD", `${password}x`], ["AGENT_SERVER_TLS_KEY_PASSWRD", password]]) {
      const env = { ...HOME, [`REVERSE_HTTP_${name}`]: value! };
      const { exitCode } = await runToEnd(PROXY, [...own, `--agent-server.tls.file.key=${encrypted}`], { env });
      assert.equal(exitCode, 2);
    }
    const env = { ...HOME, REVERSE_HTTP_AGENT_SERVER_TLS_KEY_PASSWORD: password };
    for (const flag of ["--print-config", "--help", "--check-config"]) {
      assert.equal((await runToEnd(PROXY, [...own, `--agent-server.tls.file.key=${encrypted}`, flag], { env })).exitCode, 0);
    }
  });

  it("are in no log, response, metric, state file or title of running programs, whatever their peers do", async () => {
    await using site = await Site.create();
    await using origin = await Origin.start();
    const { folder } = site;
    const [key, other] = [makeTokenKey(), makeTokenKey()];
    const password = makeSecret("a key's password");
    const encrypted = folder.write("encrypted.pem", encrypt(readFileSync(site.files.key, "utf8"), password));
    const [agentToken, clientToken] = [await key.sign({ role: "agent" }), await key.sign()];
    const state = join(folder.path, "state");
    const proxy = site.start(PROXY, [
      ...site.proxyArgs(),
      `--agent-server.tls.file.key=${encrypted}`,
      "--auth.type=jwt",
      `--auth.jwt.public-key=${folder.write("public.pem", key.publicPem)}`,
      `--state-dir=${state}`,
      "--admin.listen-address=127.0.0.1:0",
      "--log.level=trace",
    ], { env: { ...HOME, REVERSE_HTTP_AGENT_SERVER_TLS_KEY_PASSWORD: password } });
    const { agents, clients, admin } = await proxy.waitFor("listening");
    const addresses = { agents: String(agents), clients: String(clients) };
    const agentArgs = [...site.agentArgs(addresses).filter((arg) => !arg.startsWith("--auth")), "--auth.type=jwt", "--log.level=trace"];
    const agent = site.start(AGENT, [...agentArgs, `--auth.jwt.token=file:${folder.write("agent.jwt", agentToken)}`]);
    await agent.waitFor("connected");
    // as an argument, which the program takes back as soon as it can
    const second = site.start(AGENT, [...agentArgs, `--auth.jwt.token=${await key.sign({ role: "agent", agentId: "4712" })}`]);
    await second.waitFor("connected");

    const strangers = [await other.sign(), agentToken, `${clientToken}x`, await key.sign({ durationMs: -60_000 }), "x".repeat(5_000)];
    const answers: string[] = [];
    const request = async (text: string) => {
      try {
        answers.push(JSON.stringify(await ask(addresses.clients, text)));
      } catch {
        // it was cut off
      }
    };
    await Promise.all([...strangers, clientToken].map(async (token) => {
      secrets.addToken("a client's token", token);
      await request(connectHead("127.0.0.1:1", "4711", token));
      await request(connectHead("nowhere.invalid:1", "4711", token));
      const bearer = `Proxy-Authorization: Bearer ${token}\r\n`;
      const basic = `Proxy-Authorization: Basic ${Buffer.from(`4711:${token}`).toString("base64")}`;
      await request(`CONNECT 127.0.0.1:1 HTTP/1.1\r\nHost: a\r\n${bearer}\r\n`);
      await request(`CONNECT 127.0.0.1:1 HTTP/1.1\r\nHost: a\r\n${bearer}${bearer}\r\n`);
      await request(`CONNECT 127.0.0.1:1 HTTP/1.1\r\nHost: a\r\n${basic}=x y\r\n\r\n`);
      await request(`CONNECT 127.0.0.1:1 HTTP/1.1\r\nHost: a\r\nProxy-Authorization: ${token}\r\n\r\n`);
      await request(`CONNECT 127.0.0.1:1 HTTP/1.1\r\nHost: a\r\nProxy-Authorization Bearer ${token}\r\n\r\n`);
      await request(`GET http://4711:${token}@${origin.authority}/ HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n`);
      await request(`CONNECT 4711:${token}@127.0.0.1:1 HTTP/1.1\r\nHost: a\r\n\r\n`);
      await request(`${token}\r\n\r\n`);
    }));
    const refused = site.start(AGENT, [
      ...agentArgs,
      `--auth.jwt.token=file:${folder.write("other.jwt", await other.sign({ role: "agent" }))}`,
    ]);
    await refused.waitFor("not connected");
    using _tunnel = await openTunnel(addresses.clients, origin.authority, { password: clientToken });

    const pages = await Promise.all(["/metrics", "/agents", "/readyz", "/healthz", "/nowhere"].map(async (path) => {
      return await (await fetch(`http://${admin}${path}`)).text();
    }));
    const programs = [proxy, agent, second, refused];
    const titles = programs.map(({ pid }) => ["cmdline", "comm", "status"].map((name) => readFileSync(`/proc/${pid}/${name}`, "latin1")));
    for (const text of [...answers, ...pages, ...titles.flat()]) assert.deepEqual(secrets.in(text), [], text.slice(0, 2_000));
    for (const program of programs) await program.stop();
    const kept = readdirSync(folder.path).includes("state")
      ? readdirSync(state).map((name) => readFileSync(join(state, name), "latin1"))
      : [];
    for (const text of kept) assert.deepEqual(secrets.in(text), []);
  });

  it("of a store are in no log of programs that cannot reach it", async () => {
    const password = makeSecret("the password of Redis");
    const env = { ...HOME, REVERSE_HTTP_STORE_REDIS_URL: `redis://user:${encodeURIComponent(password)}@127.0.0.1:1` };
    const args = ["--store.type=redis", "--http-proxy.listen-address=127.0.0.1:0", "--log.format=json", "--log.level=trace"];
    await using lb = new Program(LB, args, { env });
    const { clients } = await lb.waitFor("listening");
    await ask(String(clients), connectHead("127.0.0.1:1", "4711", password));
    await lb.stop();
  });
});
