// The command connect, compiled: standard input and output over a tunnel, how it ends, and what it says if there is no tunnel.
import assert from "node:assert/strict";
import { Buffer } from "node:buffer";
import { type ChildProcess, spawn, type StdioOptions } from "node:child_process";
import { createHash, randomBytes } from "node:crypto";
import { chmodSync, closeSync, mkdirSync, openSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { after, before, describe, it } from "node:test";
import { type Addresses, AGENT_ID, Pair, PROXY, REVERSE_HTTP, Site } from "../../testing/programs.ts";
import { Origin } from "../../testing/sockets.ts";
import { freePort } from "../../testing/store_servers.ts";
import { makeTokenKey } from "../../testing/tokens.ts";

interface Result {
  readonly code: number | null;
  readonly stdout: Buffer;
  readonly stderr: string;
}

/** A process of the command; `using` ends it. */
class Connect implements Disposable {
  readonly child: ChildProcess;
  readonly ended: Promise<Result>;

  constructor(args: readonly string[], stdio: StdioOptions = "pipe", env: Record<string, string> = {}) {
    this.child = spawn(REVERSE_HTTP, ["connect", ...args], { stdio, env: { PATH: "/usr/bin:/bin", HOME: "/nonexistent", ...env } });
    const collect = (stream: NodeJS.ReadableStream | null) => {
      const parts: Buffer[] = [];
      stream?.on("data", (part: Buffer) => parts.push(part));
      return parts;
    };
    const [stdout, stderr] = [collect(this.child.stdout), collect(this.child.stderr)];
    this.ended = new Promise((resolve) =>
      this.child.once("close", (code) => resolve({ code, stdout: Buffer.concat(stdout), stderr: Buffer.concat(stderr).toString() }))
    );
  }

  [Symbol.dispose](): void {
    this.child.kill("SIGKILL");
  }
}

let pair: Pair;
/** The flags that reach the agent. */
let flags: string[];

before(async () => {
  pair = await Pair.start();
  flags = [`--proxy=${pair.addresses.clients}`, `--agent-id=${AGENT_ID}`];
});

after(() => pair?.[Symbol.asyncDispose]());

describe("connect", () => {
  it("moves 100 MB in both directions at once, byte for byte, and ends each direction by itself", async () => {
    await using origin = await Origin.start(async (wire) => {
      for (let part; (part = await wire.next()) !== null;) await wire.write(part);
      wire.finish();
    });
    const sent = randomBytes(100_000_000);
    using connect = new Connect([...flags, origin.authority]);
    connect.child.stdin!.end(sent);
    const { code, stdout, stderr } = await connect.ended;
    assert.deepEqual([code, stderr, stdout.length], [0, "", sent.length]);
    assert.equal(createHash("sha256").update(stdout).digest("hex"), createHash("sha256").update(sent).digest("hex"));
  });

  it("reads the response to its end after standard input has ended", async () => {
    await using origin = await Origin.start();
    using connect = new Connect([...flags, origin.authority]);
    connect.child.stdin!.end("question");
    const server = await origin.accept();
    assert.equal((await server.readAll()).toString(), "question");
    server.finish("answer");
    const { code, stdout } = await connect.ended;
    assert.deepEqual([code, stdout.toString()], [0, "answer"]);
  });

  it("ends when the destination has finished, although standard input stays open", async () => {
    await using origin = await Origin.start();
    using connect = new Connect([...flags, origin.authority]);
    connect.child.stdin!.write("question");
    const server = await origin.accept();
    assert.equal((await server.read(8)).toString(), "question");
    server.finish("answer");
    const { code, stdout } = await connect.ended;
    assert.deepEqual([code, stdout.toString()], [0, "answer"]);
  });

  it("sends on what still comes after the destination has finished", async () => {
    await using origin = await Origin.start();
    const sent = randomBytes(20_000_000);
    using connect = new Connect([...flags, origin.authority]);
    const server = await origin.accept();
    server.finish("enough");
    connect.child.stdin!.end(sent);
    assert.ok(sent.equals(await server.readAll()));
    assert.equal((await connect.ended).code, 0);
  });

  it("takes /dev/null and a file as standard input, and none", async () => {
    const file = pair.site.folder.write("input", "from a file");
    for (const [stdin, text] of [[openSync("/dev/null", "r"), ""], [openSync(file, "r"), "from a file"]] as const) {
      await using origin = await Origin.start();
      using connect = new Connect([...flags, origin.authority], [stdin, "pipe", "pipe"]);
      closeSync(stdin);
      const server = await origin.accept();
      assert.equal((await server.readAll()).toString(), text);
      server.finish("end");
      const { code, stdout } = await connect.ended;
      assert.deepEqual([code, stdout.toString()], [0, "end"]);
    }
    await using origin = await Origin.start();
    const words = [REVERSE_HTTP, "connect", ...flags, origin.authority].map((word) => `'${word}'`).join(" ");
    const shell = spawn("/bin/sh", ["-c", `${words} <&-`], { stdio: ["ignore", "pipe", "inherit"], env: { HOME: "/nonexistent" } });
    const server = await origin.accept();
    server.finish("end");
    assert.equal(await new Promise((resolve) => shell.once("exit", resolve)), 0);
  });

  it("moves what a shell pipes through it, and leaves the shell's output open", async () => {
    await using origin = await Origin.start(async (wire) => {
      for (let part; (part = await wire.next()) !== null;) await wire.write(part);
      wire.finish();
    });
    const connect = [REVERSE_HTTP, "connect", ...flags, origin.authority].map((word) => `'${word}'`).join(" ");
    const script = `head -c 50000000 /dev/zero | ${connect} | wc -c; echo piped | ${connect}; echo "$?"`;
    const shell = spawn("/bin/sh", ["-c", script], {
      stdio: ["ignore", "pipe", "inherit"],
      env: { PATH: "/usr/bin:/bin", HOME: "/nonexistent" },
    });
    let text = "";
    for await (const part of shell.stdout) text += part;
    assert.equal(text.trimStart(), "50000000\npiped\n0\n");
  });

  it("fails when standard input cannot be read, and the destination sees no end", async () => {
    await using origin = await Origin.start();
    const folder = openSync("/", "r");
    using connect = new Connect([...flags, origin.authority], [folder, "pipe", "pipe"]);
    closeSync(folder);
    const server = await origin.accept();
    await assert.rejects(server.readAll());
    const { code, stderr } = await connect.ended;
    assert.equal(code, 1);
    assert.match(stderr, /^reverse-http: Cannot read standard input: [^\n]+\n$/);
  });

  it("ends silently when the reader of its output is gone", async () => {
    await using origin = await Origin.start();
    using connect = new Connect([...flags, origin.authority]);
    const server = await origin.accept();
    connect.child.stdout!.destroy();
    const flood = Buffer.alloc(1 << 20);
    for (let broken = false; !broken;) broken = await server.write(flood).then(() => false, () => true);
    const { code, stderr } = await connect.ended;
    assert.deepEqual([code, stderr], [0, ""]);
  });

  it("fails when the tunnel is reset, after what came before", async () => {
    await using origin = await Origin.start();
    using connect = new Connect([...flags, origin.authority]);
    const server = await origin.accept();
    await server.write("the beginning");
    await new Promise((resolve) => connect.child.stdout!.once("data", resolve));
    server.reset();
    const { code, stdout, stderr } = await connect.ended;
    assert.deepEqual([code, stdout.toString()], [1, "the beginning"]);
    assert.match(stderr, /^reverse-http: The tunnel to 127\.0\.0\.1:\d+ broke: [^\n]+\n$/);
  });
});

describe("connect without a tunnel", () => {
  it("says why in one line, with an exit code for each cause, and nothing on standard output", async () => {
    const closed = `127.0.0.1:${await freePort()}`;
    const { clients } = pair.addresses;
    const rows: [args: string[], code: number, said: RegExp][] = [
      [[`--proxy=${closed}`, closed], 3, /The proxy .* cannot be reached: /],
      [[`--proxy=${clients}`, "--tls.enable", "--tls.insecure-skip-verify", closed], 3, /The proxy .* cannot be reached: .*TLS/],
      [[`--proxy=${clients}`, closed], 4, /Credentials are required.*\(407, http_request_denied, request /],
      [[`--proxy=${clients}`, "--agent-id=nobody", closed], 5, /The agent is not connected/],
      [[...flags, closed], 6, /refused the connection \(502, connection_refused, request /],
      [[...flags, "nowhere.invalid:22"], 7, /cannot resolve/],
      [[...flags], 2, /the destination host:port is missing/],
      [[...flags, closed, "--tls.enable", closed], 2, /unknown argument '127.*': there is one host:port/],
      [[...flags, "host"], 2, /Cannot use the destination "host": /],
      [[...flags, "host:0"], 2, /Cannot use the destination "host:0": its port is not 1 to 65535/],
      [[closed], 2, /--proxy is required/],
      [[...flags, "--tls.pin-sha256=" + "0".repeat(64), closed], 2, /--tls\.enable is not set/],
      [[...flags, "--token=a-secret-word", closed], 2, /Cannot use --token: other users see the command line; write file:NAME/],
      [[...flags, "--token=file:/nonexistent/token", closed], 2, /Cannot read --token file:\/nonexistent\/token: the file does not exist/],
    ];
    for (const [args, code, said] of rows) {
      using connect = new Connect(args, ["ignore", "pipe", "pipe"]);
      const ended = await connect.ended;
      assert.match(ended.stderr, said);
      assert.match(ended.stderr, /^reverse-http: [^\n]+\n$/);
      assert.doesNotMatch(ended.stderr, /a-secret-word/);
      assert.deepEqual([ended.code, ended.stdout.length], [code, 0], ended.stderr);
    }
  });
});

describe("connect with a profile", () => {
  /** A home with a profile. */
  function write(site: Site, text: string, mode = 0o600): Record<string, string> {
    mkdirSync(join(site.folder.path, ".config", "reverse-http"), { recursive: true });
    chmodSync(site.folder.write(join(".config", "reverse-http", "client.yaml"), text), mode);
    return { HOME: site.folder.path };
  }

  async function startSecure(site: Site): Promise<{ addresses: Addresses; token: string }> {
    const key = makeTokenKey();
    const { addresses } = await site.startProxy([
      "--auth.type=jwt",
      `--auth.jwt.public-key=${site.folder.write("public.pem", key.publicPem)}`,
      "--http-proxy.tls.enable",
      `--http-proxy.tls.file.cert=${site.files.cert}`,
      `--http-proxy.tls.file.key=${site.files.key}`,
    ]);
    await site.startAgent(addresses, ["--auth.type=jwt", `--auth.jwt.token=${await key.sign({ role: "agent" })}`]);
    return { addresses, token: site.folder.write("token", await key.sign()) };
  }

  it("needs no other option: TLS with an authority, and a token in a file, in the profile or in a variable", async () => {
    await using site = await Site.create();
    const { addresses, token } = await startSecure(site);
    const common = `proxy: ${addresses.clients}\ntls: { enable: true, file: { root-ca: ${site.files.ca} } }\n`;
    const secret = readFileSync(token, "utf8");
    const rows: [profile: string, variables: Record<string, string>, code: number][] = [
      [`${common}token: file:${token}\n`, {}, 0],
      [`${common}token: ${secret}\nagent-id: "4711"\n`, {}, 0],
      [common, { REVERSE_HTTP_CLIENT_TOKEN: secret }, 0],
      [`${common}token: wrong\n`, {}, 4],
    ];
    await using origin = await Origin.start((wire) => Promise.resolve(wire.finish("hello")));
    for (const [profile, variables, code] of rows) {
      using connect = new Connect([origin.authority], ["ignore", "pipe", "pipe"], { ...write(site, profile), ...variables });
      const ended = await connect.ended;
      assert.deepEqual([ended.code, ended.stdout.toString()], [code, code === 0 ? "hello" : ""], ended.stderr);
      assert.ok(!ended.stderr.includes(secret));
    }
  });

  it("refuses one that other users can read, or that has an unknown key", async () => {
    await using site = await Site.create();
    for (
      const [text, mode, said] of [["", 0o640, /mode 0640\); run chmod 600 /], [
        "proxi: a:1\n",
        0o600,
        /Unknown key proxi .*proxy\?/,
      ]] as const
    ) {
      using connect = new Connect(["a:1"], ["ignore", "pipe", "pipe"], write(site, text, mode));
      const ended = await connect.ended;
      assert.match(ended.stderr, said);
      assert.equal(ended.code, 2);
    }
  });

  it("may have its variables in the environment of a service", async () => {
    await using site = await Site.create();
    const env = { PATH: "/usr/bin:/bin", HOME: "/nonexistent", REVERSE_HTTP_CLIENT_PROXY: "a:1" };
    await site.start(PROXY, site.proxyArgs(), { env }).waitFor("listening");
    using connect = new Connect(["a:1"], ["ignore", "pipe", "pipe"], { REVERSE_HTTP_CLIENT_TOKN: "x" });
    const { code, stderr } = await connect.ended;
    assert.equal(code, 2);
    assert.match(stderr, /Unknown environment variable REVERSE_HTTP_CLIENT_TOKN; did you mean REVERSE_HTTP_CLIENT_TOKEN\?/);
  });
});
