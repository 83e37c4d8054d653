// The commands of the Go original's users, with its flags, variables and patterns, work unchanged.
import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { generateKeyPairSync } from "node:crypto";
import { readFileSync } from "node:fs";
import { createServer } from "node:https";
import { join } from "node:path";
import process from "node:process";
import { describe, it } from "node:test";
import { makeAuthority } from "../../testing/certificates.ts";
import { AGENT, Folder, PROXY, REVERSE_HTTP, ROOT, runToEnd, Site, writeCertificates } from "../../testing/programs.ts";

/** The services as commands of one executable, and as separate executables. */
const CALLS: Record<string, Record<"proxy" | "agent", readonly [file: string, ...args: string[]]>> = {
  "reverse-http": { proxy: [REVERSE_HTTP, "proxy"], agent: [REVERSE_HTTP, "agent"] },
  "reverse-http-proxy and reverse-http-agent": { proxy: [PROXY], agent: [AGENT] },
};

const withCurl = { skip: spawnSync("curl", ["--version"]).error ? "there is no curl here" : false };

/** A web server with a certificate, like https://httpbin.org/ip. */
async function startWebServer(files: { cert: string; key: string }): Promise<{ port: number; close(): Promise<void> }> {
  const server = createServer({ cert: readFileSync(files.cert), key: readFileSync(files.key) }, (_, response) => {
    response.end('{"origin": "127.0.0.1"}\n');
  });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  const { port } = server.address() as { port: number };
  return { port, close: () => new Promise((resolve) => server.close(() => resolve())) };
}

for (const [name, call] of Object.entries(CALLS)) {
  describe(`the original's commands, as ${name}`, () => {
    it("connect curl through proxy and agent to a web server", withCurl, async () => {
      await using site = await Site.create();
      const web = await startWebServer(site.files);
      const [proxyFile, ...proxyArgs] = call.proxy;
      const proxy = site.start(proxyFile, [...proxyArgs, ...site.proxyArgs()]);
      const { agents, clients } = await proxy.waitFor("listening");
      const [agentFile, ...agentArgs] = call.agent;
      const agent = site.start(agentFile, [...agentArgs, ...site.agentArgs({ agents: String(agents), clients: String(clients) })]);
      await agent.waitFor("connected");
      const curl = await runToEnd("/usr/bin/env", [
        ...["curl", "-sS", "--cacert", site.files.ca, "-x", `http://4711:noauth@${clients}`],
        `https://127.0.0.1:${web.port}/ip`,
      ]);
      assert.equal(curl.stdout, '{"origin": "127.0.0.1"}', curl.stderr);
      await web.close();
      assert.equal((await agent.stop()).exitCode, 0);
      assert.equal((await proxy.stop("SIGINT")).exitCode, 0);
    });

    it("connect curl with tokens of the auth commands", withCurl, async () => {
      await using site = await Site.create();
      const web = await startWebServer(site.files);
      const file = (name: string) => join(site.folder.path, name);
      const auth = call.proxy[0]; // both have it
      const make = async (...args: string[]) => {
        const { exitCode, stderr } = await runToEnd(auth, ["auth", ...args], { cwd: site.folder.path });
        assert.equal(exitCode, 0, stderr);
      };
      await make("key", "private");
      await make("key", "public");
      for (const role of ["agent", "client"]) {
        await make("jwt", "token", "--agent-id", "4711", "--role", role, "--audience", "test", "--duration", "1h", "--out", `${role}.b64`);
      }
      const [proxyFile, ...proxyArgs] = call.proxy;
      const jwt = ["--auth.type=jwt", `--auth.jwt.public-key=${file("auth-key-public.pem")}`, "--auth.jwt.audience=test"];
      const proxy = site.start(proxyFile, [...proxyArgs, ...site.proxyArgs(), ...jwt]);
      const { agents, clients } = await proxy.waitFor("listening");
      const [agentFile, ...agentArgs] = call.agent;
      const agent = site.start(agentFile, [
        ...agentArgs,
        ...[`--agent-client.server-address=${agents}`, `--agent-client.tls.file.root-ca=${site.files.ca}`, "--log.format=json"],
        ...["--auth.type=jwt", `--auth.jwt.token=file:${file("agent.b64")}`],
      ]);
      await agent.waitFor("connected");
      const ask = (password: string) =>
        runToEnd("/usr/bin/env", [
          ...["curl", "-sS", "--cacert", site.files.ca, "-x", `http://4711:${password}@${clients}`],
          `https://127.0.0.1:${web.port}/ip`,
        ]);
      const curl = await ask(readFileSync(file("client.b64"), "utf8").trim());
      assert.equal(curl.stdout, '{"origin": "127.0.0.1"}', curl.stderr);
      assert.match((await ask("noauth")).stderr, /407/);
      await web.close();
    });

    it("have a help", async () => {
      for (const [file, ...args] of Object.values(call)) {
        const { exitCode, stdout } = await runToEnd(file, [...args, "--help"]);
        assert.equal(exitCode, 0);
        assert.match(stdout, /^Usage: reverse-http[- ](proxy|agent) [^]*--log\.level/);
      }
    });
  });
}

/** Files with the original's names, as its make targets create them. */
async function writeFiles(
  folder: Folder,
): Promise<{ ca: string; cert: string; key: string; publicKey: string; token: string; crl: string }> {
  const { publicKey } = generateKeyPairSync("ec", { namedCurve: "P-256" });
  // as the original labels it
  const pem = publicKey.export({ type: "spki", format: "pem" }).toString().replaceAll("PUBLIC KEY", "EC PUBLIC KEY");
  const authority = await makeAuthority();
  return {
    ...await writeCertificates(folder, authority),
    publicKey: folder.write("auth-key-public.pem", pem),
    token: folder.write("agent-jwt.b64", `${base64url({ alg: "ES256" })}.${base64url({ agent_id: "4711", role: "agent" })}.c2ln\n`),
    crl: folder.write("crl.pem", await authority.revocationList([])),
  };
}

function base64url(value: object): string {
  return Buffer.from(JSON.stringify(value)).toString("base64url");
}

type Files = Awaited<ReturnType<typeof writeFiles>>;
const server = ({ key, cert }: Files) => [`--agent-server.tls.file.key=${key}`, `--agent-server.tls.file.cert=${cert}`];
const PATTERNS =
  "localhost,localhost:80,localhost:1000-2000,*.zone,*.zone:80,*.zone:1000-2000,127.0.0.1,127.0.0.1:80,127.0.0.1:1000-2000,10.0.0.1/8," +
  "10.0.0.1/8:80,10.0.0.1/8:1000-2000,1000::/16,1000::/16:80,1000::/16:1000-2000,[2001:db8::1]/64,[2001:db8::1]/64:80," +
  "[2001:db8::1]/64:1000-2000,2001:db8::1,[2001:db8::1],[2001:db8::1]:80,[2001:db8::1]:1000-2000";

/** Every option of the original, in all its notations. */
const ROWS: [what: string, command: string, args: (files: Files) => string[]][] = [
  ["a proxy without authentication", "proxy", (files) => [...server(files), "--auth.type=noauth"]],
  ["a proxy with addresses and times", "proxy", (files) => [
    ...server(files),
    ...["--agent-server.listen-address", "0.0.0.0:4242", "--http-proxy.listen-address", ":3128"],
    ...["--agent-server.agent.dial-timeout", "5s", "--agent-server.tls.refresh", "1m30s", "--log.format", "json", "--log.level", "debug"],
  ]],
  ["a proxy with client certificates", "proxy", (files) => [...server(files), `--agent-server.tls.file.client-ca=${files.ca}`]],
  ["a proxy with a revocation list", "proxy", (files) => [
    ...server(files),
    `--agent-server.tls.file.client-ca=${files.ca}`,
    `--agent-server.tls.file.client-crl=${files.crl}`,
  ]],
  ["a proxy with TLS for clients", "proxy", (files) => [
    ...server(files),
    ...["--http-proxy.tls.enable", `--http-proxy.tls.file.key=${files.key}`, `--http-proxy.tls.file.cert=${files.cert}`],
    ...["--http-proxy.tls.refresh=1m", `--http-proxy.tls.file.client-ca=${files.ca}`, `--http-proxy.tls.file.client-crl=${files.crl}`],
  ]],
  ["a proxy with JWT", "proxy", (files) => [
    ...server(files),
    ...["--auth.type=jwt", `--auth.jwt.public-key=${files.publicKey}`, "--auth.jwt.audience=me"],
  ]],
  ["a proxy with memcached", "proxy", (files) => [
    ...server(files),
    ...["--store.type=memcached", "--store.memcached.address=localhost:11211", "--store.memcached.timeout=1s"],
    "--store.http-proxy-address=localhost:3128",
  ]],
  ["a proxy with every form of pattern", "proxy", (files) => [...server(files), `--http-proxy.host-whitelist=${PATTERNS}`]],
  ["an agent", "agent", ({ ca }) => [
    ...["--agent-client.server-address=localhost:4242", `--agent-client.tls.file.root-ca=${ca}`, "--auth.noauth.agent-id=4711"],
  ]],
  ["an agent that trusts any certificate", "agent", () => ["--agent-client.tls.insecure-skip-verify=true", "--auth.noauth.agent-id=4711"]],
  ["an agent with a certificate", "agent", ({ ca, cert, key }) => [
    ...[`--agent-client.tls.file.root-ca=${ca}`, `--agent-client.tls.file.cert=${cert}`, `--agent-client.tls.file.key=${key}`],
    ...["--agent-client.tls.refresh=1m", "--auth.type=noauth", "--auth.noauth.agent-id=4711"],
  ]],
  ["an agent with a token in a file", "agent", ({ token }) => ["--auth.type=jwt", `--auth.jwt.token=file:${token}`]],
  ["an agent with every form of pattern, one by one", "agent", () => [
    "--auth.noauth.agent-id=4711",
    ...PATTERNS.split(",").map((pattern) => `--agent-client.host-whitelist=${pattern}`),
  ]],
  ["a load balancer", "lb", ({ ca }) => [
    ...["--http-proxy.listen-address=:3129", "--store.type=memcached", "--store.memcached.address=localhost:11211", "--auth.type=noauth"],
    ...["--http-connector.tls.enable", `--http-connector.tls.file.root-ca=${ca}`],
  ]],
];

describe("the original's flags", () => {
  for (const [what, command, args] of ROWS) {
    it(`start ${what}`, async () => {
      using folder = new Folder();
      const { exitCode, stdout, stderr } = await runToEnd(REVERSE_HTTP, [command, ...args(await writeFiles(folder)), "--check-config"]);
      assert.deepEqual([exitCode, stdout, stderr], [0, "The configuration is valid", ""]);
    });
  }

  it("may be variables", async () => {
    using folder = new Folder();
    const files = await writeFiles(folder);
    const env = {
      HOME: "/nonexistent",
      REVERSE_HTTP_AGENT_SERVER_LISTEN_ADDRESS: ":5242",
      REVERSE_HTTP_AGENT_SERVER_TLS_FILE_KEY: files.key,
      REVERSE_HTTP_AGENT_SERVER_TLS_FILE_CERT: files.cert,
      REVERSE_HTTP_HTTP_PROXY_LISTEN_ADDRESS: ":4128",
      REVERSE_HTTP_AGENT_CLIENT_SERVER_ADDRESS: "proxy:5242", // of the agent, in the same environment
      LOG_LEVEL: "debug",
    };
    const { exitCode, stdout, stderr } = await runToEnd(REVERSE_HTTP, ["proxy", "--print-config"], { env });
    assert.equal(exitCode, 0, stderr);
    for (
      const line of ["--agent-server.listen-address=:5242  # REVERSE_HTTP_AGENT_SERVER_LISTEN_ADDRESS", "--log.level=debug  # LOG_LEVEL"]
    ) {
      assert.ok(stdout.split("\n").includes(line), stdout);
    }
  });
});

describe("mod.ts run directly", () => {
  it("is the executable", async () => {
    const args = process.versions.bun ? ["run"] : ["run", "-A", "--quiet", "--no-check", `--config=${join(ROOT, "deno.json")}`];
    const ask = (...words: string[]) =>
      runToEnd(process.execPath, [...args, join(ROOT, "mod.ts"), ...words], { env: process.env as Record<string, string> });
    assert.match((await ask("version")).stdout, /^\d+\.\d+\.\d+$/);
    const { exitCode, stderr } = await ask("agent", "--log.levl=info");
    assert.deepEqual([exitCode, stderr], [2, "reverse-http: unknown option '--log.levl'; did you mean --log.level?\n"]);
  });
});

describe("the original's version command", () => {
  for (const file of [REVERSE_HTTP, PROXY, AGENT]) {
    it(`prints the version, and JSON with -V, in ${file.split("/").at(-1)}`, async () => {
      const { stdout: plain } = await runToEnd(file, ["version"]);
      assert.match(plain, /^\d+\.\d+\.\d+$/);
      const { stdout: json } = await runToEnd(file, ["version", "-V"]);
      const { version, commit, date } = JSON.parse(json) as Record<string, string>;
      assert.equal(version, plain);
      assert.match(commit!, /^([0-9a-f]{40}(-dirty)?|unknown)$/);
      assert.match(date!, /^(\d{4}-\d\d-\d\dT.*|unknown)$/);
    });
  }
});
