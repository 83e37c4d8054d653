// Installs the packages of `deno task package` on a bare Debian as a user does, with install.sh, the .deb and the .rpm, and fetches a page
// through them. Works on a copy of the given root file system, in a network namespace. Needs Linux and root.
import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { copyFileSync, existsSync, mkdirSync, readdirSync, readFileSync } from "node:fs";
import { createServer } from "node:http";
import { join } from "node:path";
import process from "node:process";
import { parseArgs } from "node:util";
import { Folder, Program, runToEnd } from "../testing/programs.ts";
import { ServiceManager } from "../testing/supervisor.ts";
import { manifest, ROOT } from "./executables.ts";
import { hostTarget, TARGETS } from "./targets.ts";
import { Checks } from "./verify/check.ts";

const PACKAGES = join(ROOT, "dist", "packages");
const PAGE = "Hello from a server that only the agent can reach!";
const { version } = manifest();

/** A user's commands from the installation to the first page. `PIN` is the one that the proxy logs. */
const COMMANDS = {
  install: "curl -fsSL http://127.0.0.1:8000/latest/download/install.sh | sh",
  proxy: "reverse-http proxy",
  agent: "reverse-http agent --agent-client.server-address=localhost:4242 --agent-client.tls.pin-sha256=PIN --auth.noauth.agent-id=4711",
  page: "curl -sS --proxytunnel --proxy http://4711:x@localhost:3128 http://127.0.0.1:8080/",
};

/** A temporary copy of a root file system. */
class Machine implements Disposable {
  readonly #folder = new Folder();
  readonly root = join(this.#folder.path, "root");

  constructor(base: string) {
    const layers = join(this.#folder.path, "layers");
    for (const folder of [this.root, layers]) mkdirSync(folder);
    sh(`mount -t tmpfs tmpfs ${layers} && mkdir ${layers}/upper ${layers}/work &&
      mount -t overlay overlay -o lowerdir=${base},upperdir=${layers}/upper,workdir=${layers}/work ${this.root} &&
      mount -t proc proc ${this.root}/proc && mount --rbind /dev ${this.root}/dev && cp /etc/hosts ${this.root}/etc/hosts`);
  }

  /** Runs a shell command in it. */
  async run(line: string, env: Record<string, string> = {}): Promise<string> {
    const { exitCode, stdout, stderr } = await runToEnd("chroot", [this.root, "/bin/sh", "-c", line], { env: this.#env(env) });
    assert.equal(exitCode, 0, `${line}: ${stdout}${stderr}`);
    return stdout;
  }

  start(line: string, env: Record<string, string> = {}): Program {
    return new Program("chroot", [this.root, "/bin/sh", "-c", `exec ${line}`], { env: this.#env(env) });
  }

  #env(env: Record<string, string>): Record<string, string> {
    return { PATH: "/usr/local/bin:/usr/bin:/usr/sbin:/bin:/sbin", HOME: "/root", ...env };
  }

  [Symbol.dispose](): void {
    sh(`umount -R ${this.root} && umount ${this.#folder.path}/layers`);
    this.#folder[Symbol.dispose]();
  }
}

function sh(script: string): void {
  const { status, stderr } = spawnSync("sh", ["-euc", script], { encoding: "utf8" });
  assert.equal(status, 0, `${script}: ${stderr}`);
}

/** Starts proxy and agent with these commands as the user `who`, and fetches a page through them. */
async function fetchPage(machine: Machine, proxyLine: string, agentLine: string): Promise<void> {
  await using proxy = machine.start(proxyLine);
  await proxy.waitForText(" listening ");
  const pin = /pin-sha256=([0-9a-f]{64})/.exec(proxy.said)![1]!;
  await using agent = machine.start(agentLine.replace("PIN", pin));
  await agent.waitForText(" connected ");
  assert.equal(await machine.run(COMMANDS.page), PAGE);
  for (const program of [agent, proxy]) assert.equal((await program.stop()).exitCode, 0);
}

/** The start command of a unit, as its user, with the environment that systemd sets; `socket` receives its notifications. */
function unitLine(machine: Machine, part: string, socket: string): string {
  const unit = readFileSync(join(machine.root, "usr/lib/systemd/system", `reverse-http-${part}.service`), "utf8");
  const value = (key: string) => new RegExp(`^${key}=(.*)$`, "m").exec(unit)![1]!;
  const user = value("User");
  assert.equal(value("Type"), "notify");
  assert.match(value("ExecStart"), /^\/usr\/bin\/reverse-http /);
  const env = {
    STATE_DIRECTORY: `/var/lib/${value("StateDirectory")}`,
    NOTIFY_SOCKET: socket,
    WATCHDOG_USEC: String(Number(value("WatchdogSec")) * 1_000_000),
  };
  return `setpriv --reuid=${user} --regid=${value("Group")} --init-groups --bounding-set=-all env ${
    Object.entries(env).map(([name, text]) => `${name}=${text}`).join(" ")
  } ${value("ExecStart")}`;
}

async function verifySystemPackage(machine: Machine, install: string, remove: string): Promise<void> {
  sh(install);
  await machine.run("test -x /usr/bin/reverse-http && getent passwd reverse-http && reverse-http --help >/dev/null");
  await machine.run("systemd-analyze verify --man=no /usr/lib/systemd/system/reverse-http-*.service");
  await machine.run("install -d -m 700 -o reverse-http -g reverse-http /var/lib/reverse-http");
  // a folder that the other root sees, too
  await using proxyManager = await ServiceManager.start("abstract");
  await using agentManager = await ServiceManager.start("abstract");
  const agent = COMMANDS.agent.replace("reverse-http agent", "");
  await fetchPage(
    machine,
    unitLine(machine, "proxy", proxyManager.socket),
    `${unitLine(machine, "agent", agentManager.socket)}${agent}`,
  );
  for (const manager of [proxyManager, agentManager]) {
    for (const line of ["READY=1", "WATCHDOG=1", "STOPPING=1"]) await manager.waitFor(line);
    await manager.waitFor(/^STATUS=/);
  }
  sh(remove);
  await machine.run("! command -v reverse-http && ! ls /usr/lib/systemd/system/reverse-http-*");
}

/** Serves the packages as a release. */
function serveReleases(): Promise<Disposable> {
  const server = createServer(({ url = "" }, response) => {
    const [, name] = /^\/(?:latest\/download|download\/v[^/]+)\/([\w.+-]+)$/.exec(url) ?? [];
    const file = join(PACKAGES, name ?? "");
    if (name === undefined || !existsSync(file)) return void response.writeHead(404).end();
    response.end(readFileSync(file));
  });
  return new Promise((resolve) => server.listen(8000, "127.0.0.1", () => resolve({ [Symbol.dispose]: () => void server.close() })));
}

async function main(debian: string): Promise<void> {
  const checks = new Checks();
  const { arch } = TARGETS[hostTarget()!];
  const page = createServer((_, response) => void response.end(PAGE));
  await new Promise<void>((resolve) => page.listen(8080, "127.0.0.1", resolve));
  const releases = await serveReleases();
  await checks.run(`install.sh and ${Object.keys(COMMANDS).length} commands in all bring a page on a bare Debian`, async () => {
    using machine = new Machine(debian);
    await machine.run("for tool in deno node bun cargo rustc go; do ! command -v $tool || exit 1; done");
    const said = await machine.run(COMMANDS.install, { INSTALL_BASE_URL: "http://127.0.0.1:8000" });
    assert.match(said, new RegExp(`Installed /usr/local/bin/reverse-http ${version}`));
    await fetchPage(machine, COMMANDS.proxy, COMMANDS.agent);
  });
  await checks.run("the .deb is installed, brings a page as its units start it, and is purged without a trace", async () => {
    using machine = new Machine(debian);
    copyFileSync(join(PACKAGES, `reverse-http_${version}_linux_${arch}.deb`), join(machine.root, "tmp", "reverse-http.deb"));
    await verifySystemPackage(
      machine,
      `chroot ${machine.root} dpkg --install /tmp/reverse-http.deb`,
      `chroot ${machine.root} dpkg --purge reverse-http && ! test -e ${machine.root}/var/lib/reverse-http`,
    );
  });
  await checks.run("the .rpm is installed, brings a page as its units start it, and is removed", async () => {
    using machine = new Machine(debian);
    const file = join(PACKAGES, `reverse-http_${version}_linux_${arch}.rpm`);
    const rpm = `rpm --root ${machine.root} --define '_pkgverify_level none'`;
    // rpm does not know that dpkg has installed glibc
    await verifySystemPackage(machine, `${rpm} --install --nodeps ${file}`, `${rpm} --erase reverse-http`);
  });
  await checks.run("checksums are those of all files", () => {
    const sums = readFileSync(join(PACKAGES, "checksums.txt"), "utf8");
    const named = sums.trim().split("\n").map((line) => line.slice(66)).sort();
    const there = readdirSync(PACKAGES).filter((name) => !name.startsWith("checksums.txt")).sort();
    assert.deepEqual(named, there);
    sh(`cd ${PACKAGES} && sha256sum --check --quiet checksums.txt`);
  });
  releases[Symbol.dispose]();
  page.close();
  checks.exit();
}

const { values } = parseArgs({ options: { debian: { type: "string" }, isolated: { type: "boolean" } } });
if (values.debian === undefined || !existsSync(join(values.debian, "etc", "debian_version"))) {
  console.error(
    "Cannot verify packages without --debian: give the root file system of a Debian with curl and systemd, as debootstrap creates it",
  );
  process.exit(2);
}
if (values.isolated) await main(values.debian);
else {
  const isolate = 'ip link set lo up && exec "$@"';
  const words = [process.execPath, "run", "-A", import.meta.filename!, "--isolated", "--debian", values.debian];
  process.exit(spawnSync("unshare", ["--net", "--mount", "sh", "-c", isolate, "sh", ...words], { stdio: "inherit" }).status ?? 1);
}
