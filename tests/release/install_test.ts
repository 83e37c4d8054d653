// install.sh with the releases of a small server, whose executables are shell scripts. Independent of the real executables.
import assert from "node:assert/strict";
import { spawn, spawnSync } from "node:child_process";
import { createHash } from "node:crypto";
import { chmodSync, existsSync, mkdirSync, readdirSync, readFileSync, symlinkSync, writeFileSync } from "node:fs";
import { createServer, type Server } from "node:http";
import type { AddressInfo } from "node:net";
import { join } from "node:path";
import { after, before, describe, it } from "node:test";
import { Folder, ROOT } from "../../testing/programs.ts";

const SCRIPT = join(ROOT, "install.sh");
const NAMES = ["reverse-http", "reverse-http-proxy", "reverse-http-agent", "reverse-http-lb"];
const PLATFORMS = ["linux_amd64", "linux_arm64", "linux_amd64_musl", "linux_arm64_musl", "darwin_amd64", "darwin_arm64"];
/** The commands that the script may use, in addition to curl or wget. */
const TOOLS = "cat chmod cp cut grep gzip head ldd mkdir mktemp mv rm sed sh sha256sum shasum tail tar uname".split(" ");

/** The files of the server by path. */
type Files = Map<string, Uint8Array | string>;

const sha256 = (data: Uint8Array | string) => createHash("sha256").update(data).digest("hex");

/** The file of a command on this machine; `undefined` without one. */
function find(command: string): string | undefined {
  return (process.env.PATH ?? "").split(":").map((folder) => join(folder, command)).find((file) => existsSync(file));
}

function archive(folder: Folder, name: string, script: string): Uint8Array {
  chmodSync(folder.write(name, script), 0o755);
  const { status, stdout, stderr } = spawnSync("tar", ["-czf", "-", "-C", folder.path, name], { maxBuffer: 1 << 24 });
  assert.equal(status, 0, String(stderr));
  return stdout;
}

/** A release: archives for every platform, and their checksums. */
function release(version: string, { latest = false, script = `#!/bin/sh\necho "$0 ${version}"\n` } = {}): Files {
  using folder = new Folder();
  const files: Files = new Map();
  const sums: string[] = [];
  for (const name of NAMES) {
    const data = archive(folder, name, script);
    for (const platform of PLATFORMS) {
      const file = `${name}_${version}_${platform}.tar.gz`;
      files.set(`/download/v${version}/${file}`, data);
      sums.push(`${sha256(data)}  ${file}\n`);
    }
  }
  files.set(`/download/v${version}/checksums.txt`, sums.join(""));
  if (latest) files.set("/latest/download/checksums.txt", sums.join(""));
  return files;
}

const RELEASES: Files = new Map([...release("1.2.3"), ...release("1.3.0", { latest: true })]);

/** A machine to install on, with its own commands and folders. */
class Machine implements Disposable {
  readonly #folder = new Folder();
  readonly home = join(this.#folder.path, "home");
  readonly bin = join(this.#folder.path, "bin");
  readonly #tools = join(this.#folder.path, "tools");

  constructor({ with: downloaders = ["curl", "wget"] }: { with?: string[] } = {}) {
    for (const folder of [this.home, this.bin, this.#tools]) mkdirSync(folder);
    for (const tool of [...TOOLS, ...downloaders]) {
      const file = find(tool);
      if (file !== undefined) symlinkSync(file, join(this.#tools, tool));
      else assert.ok(!downloaders.includes(tool), `this test needs ${tool}: install it`);
    }
  }

  /** Puts a command of its own in the place of the system's. */
  fake(command: string, script: string): void {
    const file = join(this.#tools, command);
    if (existsSync(file)) spawnSync("rm", [file]);
    writeFileSync(file, `#!/bin/sh\n${script}\n`, { mode: 0o755 });
  }

  /** Runs the script, or `text` in its place, as curl | sh does. */
  async install(args: string[], { base = "", text = readFileSync(SCRIPT, "utf8"), env = {} as Record<string, string> } = {}) {
    const child = spawn("/bin/sh", ["-s", "--", ...args], {
      env: { PATH: this.#tools, HOME: this.home, INSTALL_BASE_URL: base, ...env },
    });
    let said = "";
    for (const stream of [child.stdout, child.stderr]) stream.on("data", (data) => said += data);
    child.stdin.on("error", () => {}); // it need not read to the end
    child.stdin.end(text);
    const code = await new Promise<number | null>((resolve) => child.on("close", resolve));
    return { code, said };
  }

  installed(folder = this.bin): string[] {
    return readdirSync(folder).sort();
  }

  /** What an installed executable says its version is. */
  version(name: string, folder = this.bin): string {
    return spawnSync(join(folder, name), [], { encoding: "utf8" }).stdout.trim().split(" ").at(-1)!;
  }

  [Symbol.dispose](): void {
    this.#folder[Symbol.dispose]();
  }
}

describe("install.sh", () => {
  let server: Server;
  let files: Files = RELEASES;
  let cut: string | undefined;
  let base = "";

  before(async () => {
    server = createServer((request, response) => {
      const data = files.get(request.url!);
      if (data === undefined) return void response.writeHead(404).end();
      response.writeHead(200, { "Content-Length": Buffer.byteLength(data), Connection: "close" });
      if (cut === undefined || !request.url!.endsWith(cut)) return void response.end(data);
      response.write(data.slice(0, data.length / 2), () => response.destroy());
    });
    await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
    base = `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
  });
  after(() => void server.close());

  it("installs the executable of the latest release into the given folder", async () => {
    using machine = new Machine();
    const { code, said } = await machine.install(["--dir", machine.bin], { base });
    assert.equal(code, 0, said);
    assert.deepEqual(machine.installed(), ["reverse-http"]);
    assert.equal(machine.version("reverse-http"), "1.3.0");
    assert.match(said, /Installed .*\/reverse-http 1\.3\.0/);
  });

  it("installs the requested release and executables", async () => {
    using machine = new Machine();
    const args = [`--dir=${machine.bin}`, "--version=v1.2.3", "--only=agent", "--only", "reverse-http-lb"];
    const { code, said } = await machine.install(args, { base });
    assert.equal(code, 0, said);
    assert.deepEqual(machine.installed(), ["reverse-http-agent", "reverse-http-lb"]);
    assert.equal(machine.version("reverse-http-agent"), "1.2.3");
  });

  it("downloads with wget if there is no curl", async () => {
    using machine = new Machine({ with: ["wget"] });
    const { code, said } = await machine.install(["--dir", machine.bin, "--all"], { base });
    assert.equal(code, 0, said);
    assert.deepEqual(machine.installed(), [...NAMES].sort());
  });

  it("fails with a message if there is neither curl nor wget", async () => {
    using machine = new Machine({ with: [] });
    const { code, said } = await machine.install(["--dir", machine.bin], { base });
    assert.equal(code, 1);
    assert.match(said, /neither curl nor wget/);
  });

  it("upgrades atomically, and keeps the installed executable if an upgrade fails", async () => {
    using machine = new Machine();
    await machine.install(["--dir", machine.bin, "--version", "1.2.3"], { base });
    const old = join(machine.bin, "reverse-http");
    const running = spawn("/bin/sh", [old], { stdio: "ignore" });
    assert.equal((await machine.install(["--dir", machine.bin], { base })).code, 0);
    running.kill();
    assert.equal(machine.version("reverse-http"), "1.3.0");
    files = release("1.4.0", { latest: true, script: "#!/bin/sh\necho wrong libc >&2; exit 1\n" });
    const { code, said } = await machine.install(["--dir", machine.bin], { base });
    files = RELEASES;
    assert.equal(code, 1);
    assert.match(said, /Cannot run reverse-http on this machine: wrong libc/);
    assert.deepEqual(machine.installed(), ["reverse-http"]);
    assert.equal(machine.version("reverse-http"), "1.3.0");
  });

  it("installs nothing if a checksum is wrong", async () => {
    using machine = new Machine();
    files = new Map([...RELEASES]);
    using folder = new Folder();
    for (const platform of PLATFORMS) {
      files.set(
        `/download/v1.3.0/reverse-http-agent_1.3.0_${platform}.tar.gz`,
        archive(folder, "reverse-http-agent", "#!/bin/sh\necho bad\n"),
      );
    }
    const { code, said } = await machine.install(["--dir", machine.bin, "--all"], { base });
    files = RELEASES;
    assert.equal(code, 1);
    assert.match(said, /Cannot trust reverse-http-agent_1\.3\.0_\w+\.tar\.gz: its SHA-256 is [0-9a-f]{64} instead of [0-9a-f]{64}/);
    assert.deepEqual(machine.installed(), []);
  });

  for (const downloader of ["curl", "wget"]) {
    it(`installs nothing if ${downloader} got half of a file`, async () => {
      using machine = new Machine({ with: [downloader] });
      // with wget's own patience this would take a quarter of an hour
      const env: Record<string, string> = { WGETRC: join(machine.home, "wgetrc") };
      writeFileSync(env.WGETRC!, "tries = 1\n");
      cut = ".tar.gz";
      const { code, said } = await machine.install(["--dir", machine.bin], { base, env });
      cut = undefined;
      assert.equal(code, 1);
      assert.match(said, /Cannot download .*reverse-http_1\.3\.0/);
      assert.deepEqual(machine.installed(), []);
    });
  }

  it("does nothing if the script itself is truncated", async () => {
    using machine = new Machine();
    const text = readFileSync(SCRIPT, "utf8");
    for (const part of [0.2, 0.5, 0.8, 0.95, 1 - 3 / text.length]) {
      await machine.install(["--dir", machine.bin], { base, text: text.slice(0, Math.floor(text.length * part)) });
      assert.deepEqual(machine.installed(), [], String(part));
    }
  });

  it("names an unsupported platform", async () => {
    for (const [uname, named] of [["FreeBSD amd64", /FreeBSD/], ["Linux riscv64", /riscv64/]] as const) {
      using machine = new Machine();
      const [system, cpu] = uname.split(" ");
      machine.fake("uname", `[ "$1" = -s ] && echo ${system} || echo ${cpu}`);
      const { code, said } = await machine.install(["--dir", machine.bin], { base });
      assert.equal(code, 1);
      assert.match(said, named);
    }
  });

  it("installs the executable for the processor, on a Mac also from a shell under Rosetta", async () => {
    for (
      const [system, cpu, platform] of [["Linux", "aarch64", "linux_arm64"], ["Darwin", "arm64", "darwin_arm64"], [
        "Darwin",
        "x86_64",
        "darwin_arm64",
      ]]
    ) {
      using machine = new Machine();
      machine.fake("uname", `[ "$1" = -s ] && echo ${system} || echo ${cpu}`);
      machine.fake("sysctl", "echo 1");
      files = new Map([...RELEASES].filter(([path]) => path.endsWith("checksums.txt") || path.endsWith(`${platform}.tar.gz`)));
      const { code, said } = await machine.install(["--dir", machine.bin], { base });
      files = RELEASES;
      assert.equal(code, 0, said);
    }
  });

  it("installs the executable for musl on a system with musl", async () => {
    using machine = new Machine();
    machine.fake("uname", '[ "$1" = -s ] && echo Linux || echo x86_64');
    machine.fake("ldd", "echo 'musl libc (x86_64)' >&2; exit 1");
    files = new Map([...RELEASES].filter(([path]) => path.endsWith("checksums.txt") || path.endsWith("linux_amd64_musl.tar.gz")));
    const { code, said } = await machine.install(["--dir", machine.bin], { base });
    files = RELEASES;
    assert.equal(code, 0, said);
  });

  it("says what to do if it cannot write", async () => {
    using machine = new Machine();
    writeFileSync(join(machine.home, "file"), "");
    const { code, said } = await machine.install(["--dir", join(machine.home, "file", "bin")], { base });
    assert.equal(code, 1);
    assert.match(said, /run with sudo, or choose another with --dir/);
  });

  it("refuses checksums whose signature cosign does not accept", async () => {
    files = new Map([...RELEASES, ["/latest/download/checksums.txt.sigstore.json", "{}"]]);
    for (const [script, expected] of [["exit 0", 0], ["echo no matching signatures >&2; exit 1", 1]] as const) {
      using machine = new Machine();
      machine.fake("cosign", script);
      const { code, said } = await machine.install(["--dir", machine.bin], { base });
      assert.equal(code, expected, said);
      assert.match(said, expected === 0 ? /signature of the checksums is good/ : /Cannot trust .*no matching signatures/);
      assert.equal(machine.installed().length, expected === 0 ? 1 : 0);
    }
    files = RELEASES;
  });

  it("names a missing release", async () => {
    using machine = new Machine();
    const { code, said } = await machine.install(["--dir", machine.bin, "--version=9.9.9"], { base });
    assert.equal(code, 1);
    assert.match(said, /Cannot download .*v9\.9\.9\/checksums\.txt/);
  });

  it("refuses unknown options, names and values with exit code 2", async () => {
    using machine = new Machine();
    for (const args of [["--nonsense"], ["--only", "server"], ["--dir"], ["--version", "1.2.3/../../x"], ["surplus"]]) {
      const { code, said } = await machine.install(args, { base });
      assert.equal(code, 2, `${args}: ${said}`);
      assert.equal(said.trim().split("\n").length, 1, said);
    }
  });

  it("removes exactly what it has installed", async () => {
    using machine = new Machine();
    await machine.install(["--dir", machine.bin, "--all"], { base });
    writeFileSync(join(machine.bin, "other"), "");
    const { code, said } = await machine.install(["--dir", machine.bin, "--uninstall"], { base });
    assert.equal(code, 0, said);
    assert.deepEqual(machine.installed(), ["other"]);
    assert.match((await machine.install(["--dir", machine.bin, "--uninstall"], { base })).said, /nothing to remove/);
  });
});
