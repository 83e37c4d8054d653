// The compiled executables as files: what they need, what they leave behind, and their exit codes.
import assert from "node:assert/strict";
import {
  chmodSync,
  copyFileSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  statSync,
  truncateSync,
  writeFileSync,
} from "node:fs";
import { createServer } from "node:net";
import { join } from "node:path";
import process from "node:process";
import { describe, it } from "node:test";
import { AGENT, Folder, type Program, PROXY, ROOT, runToEnd, Site } from "../../testing/programs.ts";
import { openTunnel, Origin } from "../../testing/sockets.ts";

const ADDON = join(ROOT, "native", "reverse-http.node");
const onLinux = { skip: process.platform === "linux" ? false : "only Linux shows what a process has open" };

/** A site whose executables are copies in a separate folder with its own environment. */
class Installed implements AsyncDisposable {
  private constructor(readonly site: Site, readonly origin: Origin, readonly bin: string, readonly tmp: string) {}

  static async create(): Promise<Installed> {
    const site = await Site.create();
    const [bin, tmp] = [join(site.folder.path, "bin"), join(site.folder.path, "tmp")];
    for (const folder of [bin, tmp]) mkdirSync(folder);
    for (const file of [PROXY, AGENT]) copyFileSync(file, join(bin, file.split("/").at(-1)!));
    return new Installed(site, await Origin.start(), bin, tmp);
  }

  /** Starts both with this environment alone, and sends a message through and back. */
  async run(env: Record<string, string> = {}): Promise<{ proxy: Program; agent: Program }> {
    const options = { cwd: this.bin, env };
    const proxy = this.site.start(join(this.bin, "reverse-http-proxy"), this.site.proxyArgs(), options);
    const { agents, clients } = await proxy.waitFor("listening");
    const addresses = { agents: String(agents), clients: String(clients) };
    const agent = this.site.start(join(this.bin, "reverse-http-agent"), this.site.agentArgs(addresses), options);
    await agent.waitFor("connected");
    using client = await openTunnel(addresses.clients, this.origin.authority);
    using server = await this.origin.accept();
    await client.write("ping");
    assert.equal((await server.read(4)).toString(), "ping");
    return { proxy, agent };
  }

  async [Symbol.asyncDispose](): Promise<void> {
    chmodSync(this.bin, 0o755); // else it cannot be removed
    await this.origin[Symbol.asyncDispose]();
    await this.site[Symbol.asyncDispose]();
  }
}

/** The files that a process has mapped or open. */
function filesOf(pid: number): string[] {
  const mapped = readFileSync(`/proc/${pid}/maps`, "utf8").split("\n").map((line) => line.slice(73).trim());
  const open = readdirSync(`/proc/${pid}/fd`).map((fd) => {
    try {
      return readlinkSync(`/proc/${pid}/fd/${fd}`);
    } catch {
      return ""; // closed meanwhile
    }
  });
  return [...mapped, ...open].filter((name) => name.startsWith("/"));
}

describe("executables", () => {
  it("run from a read-only folder with an empty environment", async () => {
    await using installed = await Installed.create();
    chmodSync(installed.bin, 0o555);
    const { mtimeMs } = statSync(installed.bin);
    await installed.run();
    // root may write to such a folder all the same
    assert.deepEqual(readdirSync(installed.bin).sort(), ["reverse-http-agent", "reverse-http-proxy"]);
    assert.equal(statSync(installed.bin).mtimeMs, mtimeMs);
  });

  it("use nothing of the source tree", onLinux, async () => {
    await using installed = await Installed.create();
    for (const { pid } of Object.values(await installed.run())) {
      assert.ok(filesOf(pid).some((file) => file.startsWith(installed.bin)));
      assert.deepEqual(filesOf(pid).filter((file) => file.startsWith(ROOT)), []);
    }
  });

  it("do not contain the folder in which they were built, so it does not change them", () => {
    const folder = Buffer.from(join(ROOT, "node_modules"));
    const built = ["reverse-http", "reverse-http-proxy", "reverse-http-agent", "reverse-http-lb"];
    for (const name of built) assert.equal(readFileSync(join(ROOT, "dist", name)).indexOf(folder), -1, name);
  });

  it("leave no file behind, whether they are stopped or killed", async () => {
    await using installed = await Installed.create();
    const { proxy, agent } = await installed.run({ TMPDIR: installed.tmp });
    assert.deepEqual(readdirSync(installed.tmp), []);
    await proxy.stop();
    agent.signal("SIGKILL");
    await agent.ended;
    assert.deepEqual(readdirSync(installed.tmp), []);
  });

  it("use another folder if the one for temporary files is unusable", async () => {
    await using installed = await Installed.create();
    await installed.run({ TMPDIR: join(installed.tmp, "missing") });
  });

  const spoilt: Record<string, (file: string) => void> = {
    "that is empty": (file) => writeFileSync(file, ""),
    "that is a text": (file) => writeFileSync(file, "not a library\n"),
    "that is a folder": (file) => mkdirSync(file),
    "that cannot be read": (file) => writeFileSync(file, "", { mode: 0 }),
    "whose end is missing": (file) => {
      copyFileSync(ADDON, file);
      truncateSync(file, 1 << 20);
    },
    "with a fault in the middle": (file) => {
      const bytes = readFileSync(ADDON);
      bytes.fill(0xff, bytes.length >> 2, bytes.length >> 1);
      writeFileSync(file, bytes);
    },
    "that is another program": (file) => copyFileSync(PROXY, file),
  };
  for (const [what, spoil] of Object.entries(spoilt)) {
    it(`start beside a reverse-http.node ${what}`, async () => {
      await using installed = await Installed.create();
      spoil(join(installed.bin, "reverse-http.node"));
      await installed.run({ TMPDIR: installed.tmp });
    });

    it(`start with a reverse-http.node ${what} in the folder for temporary files`, async () => {
      await using installed = await Installed.create();
      spoil(join(installed.tmp, "reverse-http.node"));
      mkdirSync(join(installed.tmp, "reverse-http-"));
      spoil(join(installed.tmp, "reverse-http-", "reverse-http.node"));
      await installed.run({ TMPDIR: installed.tmp, BUN_TMPDIR: installed.tmp });
    });
  }

  it("use a matching reverse-http.node beside them", onLinux, async () => {
    await using installed = await Installed.create();
    const beside = join(installed.bin, "reverse-http.node");
    copyFileSync(ADDON, beside);
    const { proxy, agent } = await installed.run();
    assert.ok(filesOf(proxy.pid).includes(beside));
    assert.ok(filesOf(agent.pid).includes(beside));
  });
});

describe("exit code", () => {
  for (const [name, file] of [["proxy", PROXY], ["agent", AGENT]] as const) {
    it(`of ${name} is 0 for help and version, which are written to standard output`, async () => {
      for (const option of ["--help", "-h", "--version"]) {
        const { exitCode, stdout, stderr } = await runToEnd(file, [option]);
        assert.deepEqual([exitCode, stderr], [0, ""]);
        assert.match(stdout, option === "--version" ? /^\d+\.\d+\.\d+/ : new RegExp(`^Usage: reverse-http-${name}`));
      }
    });

    it(`of ${name} is 2 for an unknown option, value or argument, which the error names`, async () => {
      const wrong: [args: string[], named: RegExp][] = [
        [["--log.levl=info"], /--log\.levl.*--log\.level/],
        [["--log.level=loud"], /log\.level.*loud/],
        [["--log.level"], /--log\.level/],
        [["surplus"], /argument/],
        [["--config=/nonexistent/config.yaml"], /\/nonexistent\/config\.yaml/],
      ];
      for (const [args, named] of wrong) {
        const { exitCode, stdout, stderr } = await runToEnd(file, args);
        assert.equal(exitCode, 2, args.join(" "));
        assert.equal(stdout, "");
        assert.match(stderr, named);
        assert.equal(stderr.trim().split("\n").length, 1, stderr);
      }
    });

    it(`of ${name} is 2 for a misspelt option, and the error does not show its value`, async () => {
      const { exitCode, stderr } = await runToEnd(file, ["--auth.jwt.tokn=hunter2"]);
      assert.equal(exitCode, 2);
      assert.match(stderr, /--auth\.jwt\.tokn/);
      assert.doesNotMatch(stderr, /hunter2/);
    });

    it(`of ${name} is 2 for an unknown key in a configuration file or the environment`, async () => {
      using folder = new Folder();
      const config = folder.write("config.yaml", "log:\n  levl: info\n");
      const inFile = await runToEnd(file, [`--config=${config}`]);
      assert.equal(inFile.exitCode, 2);
      assert.match(inFile.stderr, /log\.levl.*log\.level/);
      const inEnvironment = await runToEnd(file, [], { env: { LOG_LEVEL: "loud" } });
      assert.equal(inEnvironment.exitCode, 2);
      assert.match(inEnvironment.stderr, /LOG_LEVEL.*loud/);
    });
  }

  it("of proxy is 2 with a certificate without its key, or with a missing or invalid one", async () => {
    await using site = await Site.create();
    const none = site.folder.write("none.pem", "none\n");
    const wrong: [args: string[], named: RegExp][] = [
      [[`--agent-server.tls.file.key=${site.files.key}`], /--agent-server\.tls\.file\.cert/],
      [
        [`--agent-server.tls.file.key=${site.files.key}`, "--agent-server.tls.file.cert=/nonexistent/cert.pem"],
        /tls\.file\.cert.*\/nonexistent\/cert\.pem/,
      ],
      [[`--agent-server.tls.file.key=${site.files.key}`, `--agent-server.tls.file.cert=${none}`], /certificate/i],
      [[`--agent-server.tls.file.key=${none}`, `--agent-server.tls.file.cert=${site.files.cert}`], /key/i],
    ];
    for (const [args, named] of wrong) {
      const { exitCode, stderr } = await runToEnd(PROXY, [
        "--agent-server.listen-address=127.0.0.1:0",
        "--http-proxy.listen-address=127.0.0.1:0",
        ...args,
      ]);
      assert.match(stderr, named);
      assert.equal(exitCode, 2, stderr);
    }
  });

  it("of agent is 2 without its id, with an invalid id, or with a missing file", async () => {
    const id = "--auth.noauth.agent-id=4711";
    const wrong: [args: string[], named: RegExp][] = [
      [[], /--auth\.noauth\.agent-id/],
      [["--auth.noauth.agent-id=a b"], /"a b"/],
      [[id, "--agent-client.tls.file.root-ca=/nonexistent/ca.pem"], /root-ca.*\/nonexistent\/ca\.pem/],
      [[id, "--agent-client.server-address=localhost"], /server-address.*localhost/],
      [[id, "--agent-client.host-whitelist=10.0.0.1/99"], /10\.0\.0\.1\/99/],
    ];
    for (const [args, named] of wrong) {
      const { exitCode, stderr } = await runToEnd(AGENT, args);
      assert.match(stderr, named);
      assert.equal(exitCode, 2, stderr);
    }
  });

  it("of proxy is 1 for an address in use, over TCP or UDP", async () => {
    await using site = await Site.create();
    const { addresses } = await site.startProxy();
    for (const taken of [{ ...addresses, agents: "127.0.0.1:0" }, { ...addresses, clients: "127.0.0.1:0" }]) {
      const { exitCode, stderr } = await runToEnd(PROXY, site.proxyArgs(taken));
      assert.match(stderr, taken.agents === addresses.agents ? new RegExp(addresses.agents) : new RegExp(addresses.clients));
      assert.match(stderr, /in use/);
      assert.equal(exitCode, 1, stderr);
    }
  });

  it("of proxy is 0 for valid options that are only checked, without opening a port", async () => {
    await using site = await Site.create();
    const server = createServer();
    await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
    try {
      const { port } = server.address() as { port: number };
      const { exitCode, stderr } = await runToEnd(PROXY, [
        ...site.proxyArgs({ agents: "127.0.0.1:0", clients: `127.0.0.1:${port}` }),
        "--check-config",
      ]);
      assert.equal(exitCode, 0, stderr);
    } finally {
      server.close();
    }
  });
});
