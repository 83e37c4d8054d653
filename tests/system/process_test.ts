// The executables as processes: influences other than command line, environment and configuration file, what other users can see, and
// signals.
import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { mkdirSync, readdirSync, readFileSync, renameSync, writeFileSync } from "node:fs";
import { createConnection } from "node:net";
import { join } from "node:path";
import process from "node:process";
import { describe, it } from "node:test";
import { AGENT, Folder, LB, Pair, type Program, PROXY, REVERSE_HTTP, runToEnd, Site } from "../../testing/programs.ts";
import { openTunnel, Origin } from "../../testing/sockets.ts";
import { freePort } from "../../testing/store_servers.ts";
import { makeTokenKey } from "../../testing/tokens.ts";

const onLinux = { skip: process.platform === "linux" ? false : "only Linux shows a process' command line and environment as files" };
const PRELOADED = "this was preloaded";

describe("the working directory and the home", () => {
  const files: Record<string, [name: string, text: string][]> = {
    "a .env that sets options": [".env", ".env.local", ".env.production", ".env.development", ".env.test"].map((name) => [
      name,
      "REVERSE_HTTP_AUTH_TYPE=nonsense\nREVERSE_HTTP_NO_SUCH_OPTION=1\nLOG_LEVEL=nonsense\n",
    ]),
    "a bunfig.toml that preloads code": [["bunfig.toml", 'preload = ["./preload.ts"]\n'], [".bunfig.toml", 'preload = ["./preload.ts"]\n']],
    "a bunfig.toml that is broken": [["bunfig.toml", "[[["], [".bunfig.toml", "[[["]],
    "a package.json and a tsconfig.json that are broken": [["package.json", "{"], ["tsconfig.json", "{"]],
  };
  for (const [what, written] of Object.entries(files)) {
    it(`do not affect any executable with ${what}`, async () => {
      using folder = new Folder();
      folder.write("preload.ts", `console.log(${JSON.stringify(PRELOADED)});\nprocess.exit(7);\n`);
      for (const [name, text] of written) folder.write(name, text);
      const options = { cwd: folder.path, env: { HOME: folder.path, XDG_CONFIG_HOME: folder.path } };
      for (const file of [REVERSE_HTTP, PROXY, AGENT, LB]) {
        const { exitCode, stdout, stderr } = await runToEnd(file, ["--version"], options);
        assert.deepEqual([exitCode, stderr], [0, ""], file);
        assert.match(stdout, /^[0-9.]+$/);
      }
      const checked = await runToEnd(AGENT, ["--auth.noauth.agent-id=x", "--check-config"], options);
      assert.deepEqual([checked.exitCode, checked.stderr], [0, ""]);
    });
  }
});

describe("variables of the runtime", () => {
  it("open no debugger in a service", onLinux, async () => {
    for (const [variable, value] of [["BUN_INSPECT", "127.0.0.1:"], ["BUN_OPTIONS", "--inspect=127.0.0.1:"]] as const) {
      await using site = await Site.create();
      const port = await freePort();
      const agent = site.start(AGENT, site.agentArgs({ agents: "127.0.0.1:1", clients: "" }), { env: { [variable]: `${value}${port}` } });
      await agent.waitFor("connecting");
      const error = await new Promise((resolve) => createConnection(port, "127.0.0.1", () => resolve("connected")).on("error", resolve));
      assert.equal((error as NodeJS.ErrnoException).code, "ECONNREFUSED", variable);
      assert.equal(readFileSync(`/proc/${agent.pid}/environ`, "utf8").includes(variable), false);
    }
  });
});

describe("threads", () => {
  it("that move bytes are as many as the option says", onLinux, async () => {
    await using site = await Site.create();
    const agent = site.start(AGENT, [...site.agentArgs({ agents: "127.0.0.1:1", clients: "" }), "--threads=3"]);
    await agent.waitFor("connecting");
    const names = readdirSync(`/proc/${agent.pid}/task`).map((id) => readFileSync(`/proc/${agent.pid}/task/${id}/comm`, "utf8").trim());
    assert.equal(names.filter((name) => name === "reverse-http").length, 3);
  });
});

describe("a secret on the command line", () => {
  /** Starts an agent that never connects, with a token. */
  async function startWithToken(site: Site, file = AGENT, before: string[] = []): Promise<{ agent: Program; token: string }> {
    const token = await makeTokenKey().sign({ role: "agent" });
    const args = ["--agent-client.server-address=127.0.0.1:1", "--log.format=json", "--auth.type=jwt", "--auth.jwt.token", token];
    const agent = site.start(file, [...before, ...args, "--limits.tunnels=7"]);
    await agent.waitFor("connecting");
    return { agent, token };
  }

  it("is not in the process's command line while it runs, and its other options are", onLinux, async () => {
    await using site = await Site.create();
    for (const [file, before] of [[AGENT, []], [REVERSE_HTTP, ["agent"]]] as [string, string[]][]) {
      const { agent, token } = await startWithToken(site, file, before);
      const line = readFileSync(`/proc/${agent.pid}/cmdline`, "utf8");
      assert.equal(line.includes(token.slice(0, 20)), false, line);
      assert.ok(line.includes("--limits.tunnels=7"));
      const { option, remedy } = await agent.waitFor("secret on the command line is visible to other users while the program starts");
      assert.equal(option, "--auth.jwt.token");
      assert.match(String(remedy), /REVERSE_HTTP_AUTH_JWT_TOKEN.*file:NAME/);
      assert.equal((await agent.stop()).exitCode, 0);
    }
  });

  // the runtime's report comes with most of them
  for (const signal of ["SIGSEGV", "SIGABRT", "SIGBUS", "SIGILL", "SIGFPE", "SIGTRAP"] as const) {
    it(`is not in any output of a crash with ${signal}`, async () => {
      await using site = await Site.create();
      const { agent, token } = await startWithToken(site);
      agent.signal(signal);
      const { signal: ended, stdout, stderr } = await agent.ended;
      assert.equal(ended, signal);
      // nor a part of it
      for (let at = 0; at + 12 <= token.length; at += 12) assert.equal((stdout + stderr).includes(token.slice(at, at + 12)), false, stderr);
    });
  }

  it("of a key is not in any output of a crash", async () => {
    await using site = await Site.create();
    const password = "correct horse battery staple";
    const proxy = site.start(PROXY, [...site.proxyArgs(), `--agent-server.tls.key-password=${password}`]);
    await proxy.waitFor("listening");
    proxy.signal("SIGTRAP");
    const { stdout, stderr } = await proxy.ended;
    assert.equal((stdout + stderr).includes(password), false, stderr);
  });

  it("still works: the agent connects with it", async () => {
    await using site = await Site.create();
    const key = makeTokenKey();
    const { addresses } = await site.startProxy([
      "--auth.type=jwt",
      `--auth.jwt.public-key=${site.folder.write("tokens.pem", key.publicPem)}`,
    ]);
    await site.startAgent(addresses, ["--auth.type=jwt", `--auth.jwt.token=${await key.sign({ role: "agent" })}`]);
  });
});

describe("signals", () => {
  it("other than SIGINT and SIGTERM end neither a service nor its tunnels", async () => {
    await using pair = await Pair.start();
    await using origin = await Origin.start();
    using client = await openTunnel(pair.addresses.clients, origin.authority);
    using server = await origin.accept();
    for (const signal of ["SIGUSR1", "SIGUSR2", "SIGPIPE"] as const) {
      for (const program of [pair.proxy, pair.agent]) {
        program.signal(signal);
        if (signal !== "SIGPIPE") await program.waitFor("signal ignored", { signal });
      }
    }
    for (const program of [pair.proxy, pair.agent]) {
      program.signal("SIGHUP");
      await program.waitFor("configuration unchanged");
    }
    await client.write("ping");
    assert.equal((await server.read(4)).toString(), "ping");
  });

  it("SIGHUP loads a renewed certificate at once, without a refresh interval", async () => {
    await using site = await Site.create();
    const folder = site.folder;
    const { proxy, addresses } = await site.startProxy();
    const { cert, key: privateKey } = await site.authority.issue({ names: ["localhost", "127.0.0.1"] });
    folder.write("new-cert.pem", cert);
    folder.write("new-key.pem", privateKey);
    renameSync(join(folder.path, "new-cert.pem"), site.files.cert);
    renameSync(join(folder.path, "new-key.pem"), site.files.key);
    proxy.signal("SIGHUP");
    await proxy.waitFor("certificates reloaded", { options: "--agent-server.tls" });
    await site.startAgent(addresses);
  });

  it("SIGHUP reads the configuration file again, and one that is invalid changes nothing", async () => {
    await using site = await Site.create();
    const [clients, moved] = [await freePort(), await freePort()];
    const config = (listen: number, level: string) =>
      `forward: [{ listen: "127.0.0.1:${listen}", agent: "4711", to: "127.0.0.1:9" }]\nlog: { level: ${level} }\n`;
    const file = site.folder.write("config.yaml", config(clients, "info"));
    const { proxy } = await site.startProxy([`--config=${file}`]);
    const forward = (port: number) => ({ clients: `127.0.0.1:${port}` });
    await proxy.waitFor("forwarding", forward(clients));
    writeFileSync(file, config(moved, "loud"));
    proxy.signal("SIGHUP");
    const { reason } = await proxy.waitFor("reload failed; the configuration in force stays");
    assert.match(String(reason), /config\.yaml:2/);
    writeFileSync(file, config(moved, "debug"));
    proxy.signal("SIGHUP");
    const { atOnce, newTunnels } = await proxy.waitFor("configuration reloaded");
    assert.deepEqual([atOnce, newTunnels], ["log.level", "forward"]);
    await proxy.waitFor("forward closed", forward(clients));
    await proxy.waitFor("forwarding", forward(moved));
  });

  it("after the reader of the log has gone do not end a service", async () => {
    await using site = await Site.create();
    const port = await freePort();
    mkdirSync(join(site.folder.path, "home"));
    const child = spawn(PROXY, [...site.proxyArgs({ agents: "127.0.0.1:0", clients: `127.0.0.1:${port}` }), "--log.level=trace"], {
      env: { HOME: join(site.folder.path, "home") },
      stdio: ["ignore", "pipe", "pipe"],
    });
    const exited = new Promise<number | null>((resolve) => child.once("exit", resolve));
    try {
      let said = "";
      await new Promise<void>((resolve) => child.stderr.on("data", (bytes) => (said += bytes).includes('"listening"') && resolve()));
      child.stdout.destroy();
      child.stderr.destroy();
      for (let i = 0; i < 20; i++) {
        const answer = await new Promise<string>((resolve, reject) => {
          const socket = createConnection(port, "127.0.0.1", () => socket.write("GET / HTTP/1.1\r\nHost: a\r\n\r\n"));
          socket.once("data", (bytes) => resolve(String(bytes))).once("data", () => socket.destroy()).once("error", reject);
        });
        assert.match(answer, /^HTTP\/1\.1 4/);
      }
      assert.equal(child.exitCode, null);
    } finally {
      process.kill(child.pid!, "SIGTERM");
      assert.equal(await exited, 0);
    }
  });

  it("after the reader of standard output has gone end a command without a message of the runtime", async () => {
    const child = spawn("/bin/sh", ["-c", `"$0" man | head -c 1; exit 0`, REVERSE_HTTP], { stdio: ["ignore", "pipe", "pipe"] });
    let said = "";
    child.stderr.on("data", (bytes) => said += bytes);
    await new Promise((resolve) => child.once("close", resolve));
    assert.equal(said, "");
  });
});

describe("metrics of the process", () => {
  const canMount = process.platform === "linux" && process.getuid?.() === 0;
  it("are complete if a service manager hides the rest of /proc", {
    skip: canMount ? false : "only root on Linux can mount another /proc",
  }, async () => {
    await using site = await Site.create();
    const hidden = ["-m", "sh", "-c", 'mount -t proc -o subset=pid proc /proc && ! test -e /proc/stat && exec "$0" "$@"'];
    const args = [...site.proxyArgs(), "--admin.listen-address=127.0.0.1:0"];
    const proxy = site.start("/usr/bin/unshare", [...hidden, PROXY, ...args]);
    const { admin } = await proxy.waitFor("listening");
    const metrics = await (await fetch(`http://${admin}/metrics`)).text();
    const valueOf = (name: string) => Number(new RegExp(`^${name} (.*)$`, "m").exec(metrics)?.[1]);
    for (const name of ["process_resident_memory_bytes", "process_open_fds", "process_cpu_seconds_total"]) {
      assert.ok(valueOf(name) > 0, `${name} ${valueOf(name)}`);
    }
    assert.ok(Math.abs(valueOf("process_start_time_seconds") - Date.now() / 1_000) < 60);
  });
});

describe("an agent with a colon in its id", () => {
  it("is reachable by a user name with %3A instead", async () => {
    await using site = await Site.create();
    await using origin = await Origin.start();
    const { addresses } = await site.startProxy();
    await site.startAgent(addresses, [], "spiffe://example.org/agent");
    using client = await openTunnel(addresses.clients, origin.authority, { id: "spiffe%3A//example.org/agent" });
    using server = await origin.accept();
    await client.write("ping");
    assert.equal((await server.read(4)).toString(), "ping");
  });
});
