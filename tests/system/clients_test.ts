// Real clients with their usual command lines, through the compiled proxy and agent. tools/requirements.ts installs missing ones.
import assert from "node:assert/strict";
import { type ChildProcess, spawn, spawnSync } from "node:child_process";
import { createHash, randomBytes } from "node:crypto";
import { chmodSync, existsSync, mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import process from "node:process";
import { after, before, describe, it } from "node:test";
import { chromium } from "playwright-core";
import { CHROMIUM } from "../../testing/chromium.ts";
import { ClientCommand } from "../../testing/client_command.ts";
import { AGENT_ID, type Ended, Pair, REVERSE_HTTP, ROOT, runToEnd } from "../../testing/programs.ts";
import { dial } from "../../testing/sockets.ts";
import { freePort, StoreServer } from "../../testing/store_servers.ts";
import { PAGE, Web } from "../../testing/web.ts";

const PATH = `${process.env.PATH}:/usr/sbin:/usr/local/go/bin`;

function has(command: string, ...args: string[]): boolean {
  return spawnSync(command, args, { stdio: "ignore", env: { ...process.env, PATH } }).status === 0;
}

const python = ["python3", "/usr/bin/python3"].find((each) => has(each, "-c", "import requests"));

/** The programs that the tests need, and whether they are installed. */
const TOOLS = {
  curl: has("curl", "--version"),
  wget: has("wget", "--version"),
  git: has("git", "--version"),
  ssh: has("ssh", "-V"),
  sshd: existsSync("/usr/sbin/sshd"),
  socat: has("socat", "-V"),
  "apt-get": has("apt-get", "--version") && has("dpkg-deb", "--version"),
  pip: python !== undefined && has(python, "-m", "pip", "--version"),
  "python3 with requests": python !== undefined,
  "python3 with PySocks": has("/usr/bin/python3", "-c", "import socks"),
  ncat: has("ncat", "--version"),
  go: has("go", "version"),
  chromium: CHROMIUM !== undefined,
  "redis-cli": has("redis-cli", "--version"),
};

/** A test with these programs: without them it fails if all are required, as in CI, and is skipped on a developer's machine. */
function itWith(tools: (keyof typeof TOOLS)[], name: string, test: () => Promise<void>): void {
  const missing = tools.filter((tool) => !TOOLS[tool]);
  if (missing.length === 0) return void it(name, test);
  const sentence = `${missing.join(" and ")} is not installed: tools/requirements.ts installs it`;
  if (process.env.CI && process.platform === "linux") it(name, () => assert.fail(sentence));
  else it(`${name} (skipped: ${sentence})`, { skip: sentence }, () => {});
}

let pair: Pair;
let web: Web;
let secure: Web;
/** The proxy's URL with the agent's id and a password, as for `http_proxy` in the environment. */
let proxyUrl: string;
let folder: string;

before(async () => {
  pair = await Pair.start();
  folder = pair.site.folder.path;
  const { cert, key } = pair.site.files;
  web = await Web.start({ folder });
  secure = await Web.start({ folder, tls: { cert: readFileSync(cert, "utf8"), key: readFileSync(key, "utf8") } });
  proxyUrl = `http://${AGENT_ID}:secret@${pair.addresses.clients}`;
});

after(async () => {
  await web?.[Symbol.asyncDispose]();
  await secure?.[Symbol.asyncDispose]();
  await pair?.[Symbol.asyncDispose]();
});

/** Runs a client, which must succeed, and returns its output. */
async function run(file: string, args: string[], env: Record<string, string> = {}): Promise<string> {
  const ended: Ended = await runToEnd(file, args, { cwd: folder, env: { PATH, HOME: folder, ...env } });
  assert.equal(ended.exitCode, 0, `${file} ${args.join(" ")}\n${ended.stdout}\n${ended.stderr}`);
  return ended.stdout;
}

/** Waits for a number of further requests with a method and destination at the proxy. How they end is up to the client: many reset. */
async function through<T>(method: string, destination: string, count: number, work: () => Promise<T>): Promise<T> {
  const fields = { method, destination, agent: AGENT_ID, status: 200 };
  const already = pair.proxy.logged("request", fields).length;
  const result = await work();
  await pair.proxy.waitFor("request", fields, already + count);
  return result;
}

describe("curl", () => {
  itWith(["curl"], "gets http, as http_proxy makes it", async () => {
    const page = await through("GET", web.authority, 1, () => run("curl", ["-sSf", `http://${web.authority}/`], { http_proxy: proxyUrl }));
    assert.equal(page, PAGE);
  });

  itWith(["curl"], "gets https, as https_proxy makes it", async () => {
    const args = ["-sSf", "--cacert", pair.site.files.ca, `https://${secure.authority}/`];
    assert.equal(await through("CONNECT", secure.authority, 1, () => run("curl", args, { https_proxy: proxyUrl })), PAGE);
  });

  itWith(["curl"], "gets http through a tunnel, and through one that is asked for in HTTP/1.0", async () => {
    for (const option of ["--proxy", "--proxy1.0"]) {
      const args = ["-sSf", "--proxytunnel", option, proxyUrl, `http://${web.authority}/`];
      assert.equal(await through("CONNECT", web.authority, 1, () => run("curl", args)), PAGE);
    }
  });

  itWith(["curl"], "posts a body of known length, one in chunks, and one that waits for 100 Continue", async () => {
    const body = "x".repeat(3 << 20);
    writeFileSync(join(folder, "body"), body);
    const url = `http://${web.authority}/echo`;
    const forms = [["--data-binary", "@body"], ["--data-binary", "@body", "-H", "Transfer-Encoding: chunked"], [
      "-T",
      "body",
      "-H",
      "Expect: 100-continue",
    ]];
    for (const form of forms) {
      const method = form[0] === "-T" ? "PUT" : "POST";
      const echo = await through(method, web.authority, 1, () => run("curl", ["-sSf", "--proxy", proxyUrl, ...form, url]));
      assert.ok(echo === body, `${form.join(" ")} brought ${echo.length} bytes`);
    }
  });

  itWith(["curl"], "is done with HEAD, and with an answer without a body", async () => {
    const args = ["-sSfI", "--proxy", proxyUrl, `http://${web.authority}/`];
    assert.match(await through("HEAD", web.authority, 1, () => run("curl", args)), /^HTTP\/1\.1 200 OK\r\n/);
  });

  itWith(["curl"], "is told why it gets no tunnel", async () => {
    const args = ["-sS", "--proxytunnel", "--proxy", `http://nobody:x@${pair.addresses.clients}`, `http://${web.authority}/`];
    const { exitCode, stderr } = await runToEnd("curl", args);
    assert.equal(exitCode, 56);
    assert.match(stderr, /502/);
  });
});

/** A repository with one commit, served below /git/ and over ssh. */
function makeRepository(name: string): void {
  const work = join(folder, `${name}-work`);
  const git = (...args: string[]) => {
    const config = ["-c", "user.name=test", "-c", "user.email=test@test.test", "-c", "init.defaultBranch=main"];
    const { status, stderr } = spawnSync("git", [...config, ...args], { encoding: "utf8", env: { PATH, HOME: folder } });
    assert.equal(status, 0, stderr);
  };
  git("init", "-q", work);
  writeFileSync(join(work, "file"), `content of ${name}`);
  git("-C", work, "add", "file");
  git("-C", work, "commit", "-qm", "one");
  git("clone", "-q", "--bare", work, join(folder, `${name}.git`));
}

describe("git", () => {
  itWith(["git"], "clones over https, with https_proxy and with http.proxy", async () => {
    makeRepository("web");
    const url = `https://${secure.authority}/git/web.git`;
    const env = { GIT_SSL_CAINFO: pair.site.files.ca };
    await through("CONNECT", secure.authority, 1, () => run("git", ["clone", "-q", url, "cloned-1"], { ...env, https_proxy: proxyUrl }));
    await through("CONNECT", secure.authority, 1, () => run("git", ["-c", `http.proxy=${proxyUrl}`, "clone", "-q", url, "cloned-2"], env));
    for (const clone of ["cloned-1", "cloned-2"]) assert.equal(readFileSync(join(folder, clone, "file"), "utf8"), "content of web");
  });

  itWith(["git", "ssh", "sshd", "socat"], "clones over ssh, with a ProxyCommand", async () => {
    makeRepository("shell");
    const { port, server, key } = await startSshd();
    try {
      const proxyCommand = `socat - PROXY:${pair.addresses.clients.split(":")[0]}:%h:%p,proxyport=${
        pair.addresses.clients.split(":")[1]
      },proxyauth=${AGENT_ID}:secret`;
      const ssh = [
        "ssh",
        ...sshOptions(key),
      ];
      const quoted = [...ssh, "-o", `ProxyCommand='${proxyCommand}'`].map((each) => each.includes(" ") ? `"${each}"` : each).join(" ");
      const url = `ssh://${userName()}@127.0.0.1:${port}${folder}/shell.git`;
      await through(
        "CONNECT",
        `127.0.0.1:${port}`,
        1,
        () => run("git", ["clone", "-q", url, "cloned-3"], { GIT_SSH_COMMAND: quoted.replaceAll("'", "") }),
      );
      assert.equal(readFileSync(join(folder, "cloned-3", "file"), "utf8"), "content of shell");
    } finally {
      server.kill();
    }
  });
});

describe("reverse-http connect", () => {
  itWith(["ssh", "sshd"], "is a ProxyCommand of ssh, as its own lines of ssh_config say", async () => {
    const { port, server, key } = await startSshd();
    try {
      const flags = [`--proxy=${pair.addresses.clients}`, `--agent-id=${AGENT_ID}`];
      const lines = await run(REVERSE_HTTP, ["connect", ...flags, "--ssh-config", `127.0.0.1:${port}`]);
      const options = [
        `IdentityFile ${key}`,
        "BatchMode yes",
        "StrictHostKeyChecking accept-new",
        `UserKnownHostsFile ${join(folder, "known")}`,
      ];
      writeFileSync(join(folder, "ssh_config"), [lines, ...options.map((line) => `  ${line}`), ""].join("\n"));
      const env = { PATH: `${join(ROOT, "dist")}:${PATH}` };
      const host = `127.0.0.1.${AGENT_ID}`;
      const ssh = ["-F", join(folder, "ssh_config"), `${userName()}@${host}`];
      const said = await through("CONNECT", `127.0.0.1:${port}`, 1, () => run("ssh", [...ssh, "echo behind the agent"], env));
      assert.equal(said, "behind the agent");
      assert.match(readFileSync(join(folder, "known"), "utf8"), new RegExp(`^${host} `));
    } finally {
      server.kill();
    }
  });
});

describe("reverse-http forward", () => {
  itWith(["redis-cli"], "brings redis-cli to a server, by a port and by a Unix socket", async () => {
    await using store = await StoreServer.start("redis");
    const path = join(folder, "redis.sock");
    const flags = [`--proxy=${pair.addresses.clients}`, `--agent-id=${AGENT_ID}`];
    await using forward = await ClientCommand.start(
      ["forward", ...flags, `0:127.0.0.1:${store.port}`, `${path}:127.0.0.1:${store.port}`],
      2,
    );
    const port = forward.addresses[0]!.split(":")[1]!;
    const value = "x".repeat(1 << 20);
    const set = await runToEnd("redis-cli", ["-p", port, "-x", "set", "key"], { env: { PATH }, input: value });
    assert.equal(set.stdout, "OK", set.stderr);
    assert.equal(await run("redis-cli", ["-s", path, "get", "key"]), value);
  });

  itWith(["ssh", "sshd"], "carries scp both ways, byte for byte", async () => {
    const { port, server, key } = await startSshd();
    try {
      await using forward = await ClientCommand.start(
        ["forward", `--proxy=${pair.addresses.clients}`, `--agent-id=${AGENT_ID}`, `0:127.0.0.1:${port}`],
      );
      const sent = randomBytes(30_000_000);
      writeFileSync(join(folder, "sent"), sent);
      const scp = ["-q", ...sshOptions(key), "-P", forward.addresses[0]!.split(":")[1]!];
      const at = `${userName()}@127.0.0.1:${folder}`;
      await run("scp", [...scp, "sent", `${at}/there`]);
      await run("scp", [...scp, `${at}/there`, "back"]);
      assert.ok(readFileSync(join(folder, "back")).equals(sent));
    } finally {
      server.kill();
    }
  });
});

describe("reverse-http socks", () => {
  /** The local proxy, and an agent besides that of the pair. */
  async function start(): Promise<ClientCommand> {
    await pair.site.startAgent(pair.addresses, [], "site8");
    return await ClientCommand.start([
      "socks",
      `--proxy=${pair.addresses.clients}`,
      `--agent-id=${AGENT_ID}`,
      "--agent-suffix=.rhttp",
      "0",
    ]);
  }

  itWith(["chromium", "git"], "brings a browser and git to two agents, without credentials", async () => {
    await using socks = await start();
    const [address = ""] = socks.addresses;
    makeRepository("local");
    await run("git", ["-c", `http.proxy=socks5h://${address}`, "clone", "-q", `http://${web.authority}/git/local.git`, "cloned-local"]);
    assert.equal(readFileSync(join(folder, "cloned-local", "file"), "utf8"), "content of local");
    for (const server of [`socks5://${address}`, `http://${address}`]) {
      const browser = await chromium.launch({ executablePath: CHROMIUM, args: ["--no-sandbox"], proxy: { server } });
      try {
        const page = await browser.newPage();
        for (const host of ["127.0.0.1.site8.rhttp", `localhost.${AGENT_ID}.rhttp`]) {
          assert.equal((await page.goto(`http://${host}:${web.port}/`))?.status(), 200);
          assert.equal(await page.title(), "page");
        }
      } finally {
        await browser.close();
      }
    }
    const tunnels = [["site8", "127.0.0.1"], [AGENT_ID, "localhost"]];
    for (const [agent, host] of tunnels) await pair.proxy.waitFor("request", { agent, destination: `${host}:${web.port}`, status: 200 }, 2);
  });
});

/** Options with which ssh and scp use this key alone, and no file of the user. */
function sshOptions(key: string): string[] {
  return [
    "-F",
    "none",
    "-i",
    key,
    ...["BatchMode=yes", "StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null"].flatMap((option) => ["-o", option]),
  ];
}

function userName(): string {
  return spawnSync("id", ["-un"], { encoding: "utf8" }).stdout.trim();
}

/** An OpenSSH server on loopback that accepts one generated key. */
async function startSshd(): Promise<{ port: number; server: ChildProcess; key: string }> {
  for (const name of ["host", "user"]) {
    if (existsSync(join(folder, name))) continue;
    const { status } = spawnSync("ssh-keygen", ["-q", "-t", "ed25519", "-N", "", "-f", join(folder, name)]);
    assert.equal(status, 0);
  }
  writeFileSync(join(folder, "authorized_keys"), readFileSync(join(folder, "user.pub")));
  chmodSync(join(folder, "authorized_keys"), 0o600);
  if (process.getuid?.() === 0) mkdirSync("/run/sshd", { recursive: true }); // where it parts with its privileges
  const port = await freePort();
  const config = join(folder, "sshd_config");
  writeFileSync(
    config,
    [
      `Port ${port}`,
      "ListenAddress 127.0.0.1",
      `HostKey ${join(folder, "host")}`,
      `AuthorizedKeysFile ${join(folder, "authorized_keys")}`,
      "PidFile none",
      "Subsystem sftp internal-sftp",
      "UsePAM no",
      "StrictModes no",
      "PasswordAuthentication no",
      "PermitRootLogin prohibit-password",
      "",
    ].join("\n"),
  );
  const server = spawn("/usr/sbin/sshd", ["-D", "-e", "-f", config], { stdio: ["ignore", "ignore", "pipe"] });
  let said = "";
  await new Promise<void>((resolve, reject) => {
    server.stderr!.on("data", (data) => (said += data).includes("Server listening") && resolve());
    server.on("exit", () => reject(new Error(`sshd has ended: ${said}`)));
  });
  return { port, server, key: join(folder, "user") };
}

describe("SOCKS 5", () => {
  itWith(["curl"], "is spoken by curl, which leaves the name to the agent or resolves it itself", async () => {
    const forms: [string[], name: string][] = [
      [["--proxy", `socks5h://${AGENT_ID}:secret@${pair.addresses.clients}`], "localhost"],
      [["--socks5-hostname", pair.addresses.clients, "--proxy-user", `${AGENT_ID}:secret`], "localhost"],
      [["--socks5", pair.addresses.clients, "--proxy-user", `${AGENT_ID}:secret`, "-4"], "127.0.0.1"],
    ];
    for (const [form, name] of forms) {
      const get = () => run("curl", ["-sSf", ...form, `http://localhost:${web.port}/`]);
      assert.equal(await through("CONNECT", `${name}:${web.port}`, 1, get), PAGE);
    }
    const args = [
      "-sSf",
      "--proxy",
      `socks5h://${AGENT_ID}:secret@${pair.addresses.clients}`,
      "--cacert",
      pair.site.files.ca,
      `https://${secure.authority}/`,
    ];
    assert.equal(await through("CONNECT", secure.authority, 1, () => run("curl", args)), PAGE);
    const { exitCode, stderr } = await runToEnd("curl", [
      "-sS",
      "--proxy",
      `socks5h://nobody:x@${pair.addresses.clients}`,
      `http://${web.authority}/`,
    ]);
    assert.equal(exitCode, 97);
    assert.match(stderr, /\(4\)/);
  });

  itWith(["git"], "is spoken by git over https", async () => {
    makeRepository("socks");
    const config = `http.proxy=socks5h://${AGENT_ID}:secret@${pair.addresses.clients}`;
    const clone = ["-c", config, "clone", "-q", `https://${secure.authority}/git/socks.git`, "cloned-4"];
    await through("CONNECT", secure.authority, 1, () => run("git", clone, { GIT_SSL_CAINFO: pair.site.files.ca }));
    assert.equal(readFileSync(join(folder, "cloned-4", "file"), "utf8"), "content of socks");
  });

  itWith(["python3 with PySocks"], "is spoken by Python", async () => {
    const [host, port] = pair.addresses.clients.split(":");
    const args = [join(ROOT, "tests", "clients", "get_socks.py"), host!, port!, AGENT_ID, "secret", `http://localhost:${web.port}/`];
    assert.equal(await through("CONNECT", `localhost:${web.port}`, 1, () => run("/usr/bin/python3", args)), PAGE);
  });

  itWith(["ssh", "sshd", "ncat"], "is spoken by ncat as ssh's ProxyCommand", async () => {
    const { port, server, key } = await startSshd();
    try {
      const options = ["BatchMode=yes", "StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null"];
      const proxy = `ProxyCommand=ncat --proxy-type socks5 --proxy ${pair.addresses.clients} --proxy-auth ${AGENT_ID}:secret %h %p`;
      const args = ["-F", "none", "-i", key, ...[...options, proxy].flatMap((each) => ["-o", each]), "-p", String(port)];
      const greet = () => run("ssh", [...args, `${userName()}@127.0.0.1`, "echo", "hello"]);
      assert.equal(await through("CONNECT", `127.0.0.1:${port}`, 1, greet), "hello");
    } finally {
      server.kill();
    }
  });
});

describe("apt-get", () => {
  itWith(["apt-get"], "updates its lists and downloads a package, through Acquire::http::Proxy", async () => {
    const repository = join(folder, "apt");
    mkdirSync(join(folder, "package", "DEBIAN"), { recursive: true });
    const control = ["Package: behind", "Version: 1.0", "Architecture: all", "Maintainer: test <test@test.test>", "Description: test"];
    writeFileSync(join(folder, "package", "DEBIAN", "control"), `${control.join("\n")}\n`);
    mkdirSync(repository);
    await run("dpkg-deb", ["--root-owner-group", "-b", "package", "apt/behind_1.0_all.deb"]);
    const deb = readFileSync(join(repository, "behind_1.0_all.deb"));
    const sum = createHash("sha256").update(deb).digest("hex");
    writeFileSync(
      join(repository, "Packages"),
      `${[...control, "Filename: ./behind_1.0_all.deb", `Size: ${deb.length}`, `SHA256: ${sum}`].join("\n")}\n`,
    );
    for (const each of ["state/lists/partial", "cache/archives/partial", "etc/apt/apt.conf.d", "etc/apt/preferences.d"]) {
      mkdirSync(join(folder, each), { recursive: true });
    }
    writeFileSync(join(folder, "sources.list"), `deb [trusted=yes] http://${web.authority}/files/apt ./\n`);
    const options = [
      `Dir::Etc=${join(folder, "etc/apt")}`,
      `Dir::Etc::SourceList=${join(folder, "sources.list")}`,
      "Dir::Etc::SourceParts=/dev/null",
      `Dir::State=${join(folder, "state")}`,
      `Dir::State::status=/dev/null`,
      `Dir::Cache=${join(folder, "cache")}`,
      "APT::Sandbox::User=root",
      `Acquire::http::Proxy=${proxyUrl}`,
    ].flatMap((option) => ["-o", option]);
    const env = { APT_CONFIG: "/dev/null" };
    await through("GET", web.authority, 1, () => run("apt-get", [...options, "-q", "update"], env));
    await through("GET", web.authority, 1, () => run("apt-get", [...options, "-q", "download", "behind"], env));
    assert.deepEqual(readFileSync(join(folder, "behind_1.0_all.deb")), deb);
  });
});

describe("pip", () => {
  itWith(["pip"], "downloads a package, through http_proxy", async () => {
    const index = join(folder, "simple", "behind");
    mkdirSync(index, { recursive: true });
    const make = `
import sys, zipfile
with zipfile.ZipFile(sys.argv[1], "w") as wheel:
    wheel.writestr("behind.py", "")
    wheel.writestr("behind-1.0.dist-info/METADATA", "Metadata-Version: 2.1\\nName: behind\\nVersion: 1.0\\n")
    wheel.writestr("behind-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n")
    wheel.writestr("behind-1.0.dist-info/RECORD", "")
`;
    await run(python!, ["-c", make, join(folder, "behind-1.0-py3-none-any.whl")]);
    writeFileSync(join(index, "index.html"), `<a href="/files/behind-1.0-py3-none-any.whl">behind-1.0-py3-none-any.whl</a>`);
    // the page of a project is that of a folder
    const page = `http://${web.authority}/files/simple/behind/index.html`;
    const args = [
      "-m",
      "pip",
      "download",
      "-q",
      "--no-deps",
      "--no-index",
      "--find-links",
      page,
      "--trusted-host",
      "127.0.0.1",
      "-d",
      "wheels",
      "behind",
    ];
    const env = { http_proxy: proxyUrl, PIP_CONFIG_FILE: "/dev/null", PIP_DISABLE_PIP_VERSION_CHECK: "1" };
    await through("GET", web.authority, 2, () => run(python!, args, env));
    assert.ok(existsSync(join(folder, "wheels", "behind-1.0-py3-none-any.whl")));
  });
});

describe("wget", () => {
  itWith(["wget"], "gets http and https, as http_proxy and https_proxy make it", async () => {
    const page = () => run("wget", ["-qO-", `http://${web.authority}/`], { http_proxy: proxyUrl });
    assert.equal(await through("GET", web.authority, 1, page), PAGE);
    const args = ["-qO-", `--ca-certificate=${pair.site.files.ca}`, `https://${secure.authority}/`];
    assert.equal(await through("CONNECT", secure.authority, 1, () => run("wget", args, { https_proxy: proxyUrl })), PAGE);
  });
});

describe("Python", () => {
  itWith(["python3 with requests"], "gets http and https with requests and with urllib", async () => {
    const urls = [`http://${web.authority}/`, `https://${secure.authority}/`];
    const get = () => run(python!, [join(ROOT, "tests", "clients", "get.py"), proxyUrl, pair.site.files.ca, ...urls]);
    const printed = await through("GET", web.authority, 2, () => through("CONNECT", secure.authority, 2, get));
    assert.equal(printed, Array(4).fill(`200 ${PAGE}`).join("\n"));
  });
});

describe("Go", () => {
  itWith(["go"], "gets http and https with net/http", async () => {
    const urls = [`http://${web.authority}/`, `https://${secure.authority}/`];
    const program = join(ROOT, "tests", "clients", "get.go");
    const env = {
      SSL_CERT_FILE: pair.site.files.ca,
      GOCACHE: process.env.GOCACHE ?? `${process.env.HOME}/.cache/go-build`,
      GOTOOLCHAIN: "local",
      GOPROXY: "off",
    };
    const get = () => run("go", ["run", program, proxyUrl, ...urls], env);
    const printed = await through("GET", web.authority, 1, () => through("CONNECT", secure.authority, 1, get));
    assert.equal(printed, `200 ${PAGE}\n200 ${PAGE}`);
  });
});

describe("Chromium", () => {
  itWith(["chromium"], "answers the challenge, shows http and https pages, and opens WebSockets", async () => {
    const browse = async () => {
      const browser = await chromium.launch({
        executablePath: CHROMIUM,
        args: ["--no-sandbox"],
        proxy: { server: `http://${pair.addresses.clients}`, username: AGENT_ID, password: "secret" },
      });
      try {
        const page = await browser.newPage({ ignoreHTTPSErrors: true });
        // a page over https opens no WebSocket without TLS
        for (
          const [url, socketUrl] of [[`http://${web.authority}/`, `ws://${web.authority}`], [
            `https://${secure.authority}/`,
            `wss://${secure.authority}/`,
          ]]
        ) {
          assert.equal((await page.goto(url!))?.status(), 200);
          assert.equal(await page.title(), "page");
          assert.equal(await page.evaluate(speakTo, socketUrl!), "echo hello");
        }
      } finally {
        await browser.close();
      }
    };
    await through(
      "GET",
      web.authority,
      1,
      () => through("CONNECT", web.authority, 1, () => through("CONNECT", secure.authority, 2, browse)),
    );
  });
});

/** In the browser: the reply to one message. */
function speakTo(url: string): Promise<unknown> {
  return new Promise((resolve, reject) => {
    const socket = new WebSocket(url);
    socket.onopen = () => socket.send("hello");
    socket.onmessage = ({ data }) => resolve(data);
    socket.onerror = () => reject(new Error(`no WebSocket to ${url}`));
  });
}

describe("WebSocket", () => {
  it("opens through a plain HTTP proxy, with an Upgrade in absolute form", async () => {
    using wire = await dial(pair.addresses.clients);
    const basic = Buffer.from(`${AGENT_ID}:secret`).toString("base64");
    const key = Buffer.alloc(16, 7).toString("base64");
    await wire.write(
      `GET http://${web.authority}/ HTTP/1.1\r\nHost: ${web.authority}\r\nProxy-Authorization: Basic ${basic}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: ${key}\r\n\r\n`,
    );
    const head = await wire.readUntil("\r\n\r\n");
    const accept = createHash("sha1").update(`${key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11`).digest("base64");
    assert.match(head, /^HTTP\/1\.1 101 /);
    assert.ok(head.includes(accept), head);
    await wire.write(Uint8Array.of(0x81, 0x82, 0, 0, 0, 0, 0x68, 0x69)); // "hi", masked with zeros (RFC 6455 §5.2)
    assert.equal((await wire.read(9)).toString("latin1"), "\x81\x07echo hi");
  });
});
