// `reverse-http upgrade` with the compiled executable and the releases of a small server, whose executables are scripts.
import assert from "node:assert/strict";
import { Buffer } from "node:buffer";
import { createHash } from "node:crypto";
import { constants, copyFileSync, existsSync, readdirSync, readFileSync, renameSync, statSync } from "node:fs";
import { createServer } from "node:http";
import type { AddressInfo } from "node:net";
import { join } from "node:path";
import process from "node:process";
import { before, describe, it } from "node:test";
import { gzipSync } from "node:zlib";
import { createTar } from "nanotar";
import { REPOSITORY } from "../../shared/cli/upgrade/release.ts";
import { VERSION } from "../../shared/version.ts";
import { check } from "../../testing/load.ts";
import { type Ended, Folder, Program, REVERSE_HTTP, runToEnd, Site } from "../../testing/programs.ts";
import { Sigstore } from "../../testing/sigstore.ts";
import { openTunnel, Origin } from "../../testing/sockets.ts";

const ISSUER = "https://token.actions.githubusercontent.com";
const PLATFORM = `linux_${process.arch === "arm64" ? "arm64" : "amd64"}`;
const NEXT = "9.9.9";

/** A new executable that is the present one, except for its version. */
const working = (version: string) => `#!/bin/sh\n[ "$1" = --version ] && { echo ${version}; exit; }\nexec ${REVERSE_HTTP} "$@"\n`;

/** Serves releases, which it signs. */
class Releases implements AsyncDisposable {
  readonly files = new Map<string, Uint8Array | string>();
  /** The requests so far. */
  readonly requests: string[] = [];
  readonly #server = createServer((request, response) => {
    this.requests.push(request.url!);
    const { pathname } = new URL(request.url!, "http://releases");
    const data = this.files.get(pathname);
    response.writeHead(data === undefined ? 404 : 200).end(data);
  });
  base = "";

  constructor(readonly sigstore: Sigstore, readonly folder: Folder) {}

  static async start(sigstore: Sigstore, folder: Folder): Promise<Releases> {
    const releases = new Releases(sigstore, folder);
    await new Promise<void>((resolve) => releases.#server.listen(0, "127.0.0.1", resolve));
    releases.base = `http://127.0.0.1:${(releases.#server.address() as AddressInfo).port}`;
    folder.write("trusted_root.json", sigstore.trustedRoot);
    return releases;
  }

  /** Publishes a release, which becomes the latest one. */
  async publish(version: string, script = working(version), workflow = `release.yml@refs/tags/v${version}`): Promise<void> {
    const name = `reverse-http_${version}_${PLATFORM}.tar.gz`;
    const archive = gzipSync(createTar([{ name: "reverse-http", data: Buffer.from(script), attrs: { mode: "755" } }]));
    // the version is that of the archive for amd64
    const names = [...new Set([name, `reverse-http_${version}_linux_amd64.tar.gz`])];
    const sums = names.map((name) => `${createHash("sha256").update(archive).digest("hex")}  ${name}\n`).join("");
    const signature = await this.sigstore.sign(sums, { workflow: `${REPOSITORY}/.github/workflows/${workflow}`, issuer: ISSUER });
    for (const folder of [`/download/v${version}`, "/latest/download"]) {
      for (const name of names) this.files.set(`${folder}/${name}`, archive);
      this.files.set(`${folder}/checksums.txt`, sums);
      this.files.set(`${folder}/checksums.txt.sigstore.json`, signature);
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#server.closeAllConnections();
    await new Promise((resolve) => this.#server.close(resolve));
  }
}

/** An installed executable, and a server of releases. */
class Installation implements AsyncDisposable {
  readonly #folder = new Folder();
  readonly file = join(this.#folder.path, "bin-reverse-http");
  releases!: Releases;

  static async create(sigstore: Sigstore): Promise<Installation> {
    const own = new Installation();
    copyFileSync(REVERSE_HTTP, own.file, constants.COPYFILE_FICLONE);
    own.releases = await Releases.start(sigstore, own.#folder);
    return own;
  }

  upgrade(args: readonly string[] = [], env: Record<string, string> = {}): Promise<Ended> {
    return runToEnd(
      this.file,
      ["upgrade", `--base-url=${this.releases.base}`, `--trusted-root=${this.#folder.path}/trusted_root.json`, ...args],
      { env: { PATH: "/usr/bin:/bin", HOME: "/nonexistent", ...env } },
    );
  }

  async version(): Promise<string> {
    return (await runToEnd(this.file, ["--version"])).stdout.trim();
  }

  /** What is beside the executable. */
  others(): string[] {
    return readdirSync(this.#folder.path).filter((name) => !["bin-reverse-http", "trusted_root.json"].includes(name));
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.releases[Symbol.asyncDispose]();
    this.#folder[Symbol.dispose]();
  }
}

describe("upgrade", () => {
  let sigstore: Sigstore;
  before(async () => {
    sigstore = await Sigstore.create();
  });

  it("replaces the executable by the latest release, and returns to the one before", async () => {
    await using own = await Installation.create(sigstore);
    await own.releases.publish(VERSION);
    const none = await own.upgrade();
    assert.deepEqual([none.exitCode, none.stdout], [0, `reverse-http ${VERSION} is installed already`]);
    assert.equal((await own.upgrade(["--check"])).exitCode, 0);
    await own.releases.publish(NEXT);
    const found = await own.upgrade(["--check"]);
    assert.equal(found.exitCode, 3);
    assert.match(found.stderr, new RegExp(`reverse-http ${NEXT} is available: reverse-http upgrade; this is ${VERSION}`));
    const tried = await own.upgrade(["--dry-run"]);
    assert.match(tried.stdout, new RegExp(`would replace .* ${VERSION} by ${NEXT}`));
    assert.deepEqual([await own.version(), own.others()], [VERSION, []]);
    const done = await own.upgrade();
    assert.equal(done.exitCode, 0, done.stderr);
    assert.deepEqual([await own.version(), own.others()], [NEXT, ["bin-reverse-http.previous"]]);
    assert.equal(statSync(own.file).mode & 0o777, statSync(REVERSE_HTTP).mode & 0o777);
    // the script cannot upgrade itself: let it be the one before
    renameSync(own.file, `${own.file}.script`);
    renameSync(`${own.file}.previous`, own.file);
    const nothing = await own.upgrade(["--rollback"]);
    assert.match(nothing.stderr, /Cannot roll back: .*\.previous does not exist/);
    renameSync(`${own.file}.script`, `${own.file}.previous`);
    const back = await own.upgrade(["--rollback"]);
    assert.equal(back.exitCode, 0, back.stderr);
    assert.deepEqual([await own.version(), own.others()], [NEXT, ["bin-reverse-http.previous"]]);
  });

  it("installs the release that is asked for, an earlier one only on request", async () => {
    await using own = await Installation.create(sigstore);
    await own.releases.publish("0.0.9");
    await own.releases.publish(NEXT);
    const refused = await own.upgrade(["--version=0.0.9"]);
    assert.equal(refused.exitCode, 2);
    assert.match(refused.stderr, /0\.0\.9: it is earlier than .*--allow-downgrade/);
    const done = await own.upgrade(["--version", "v0.0.9", "--allow-downgrade"]);
    assert.equal(done.exitCode, 0, done.stderr);
    assert.equal(await own.version(), "0.0.9");
  });

  it("accepts nothing but what the release's workflow has signed", async () => {
    await using own = await Installation.create(sigstore);
    const { files } = own.releases;
    const archive = `/download/v${NEXT}/reverse-http_${NEXT}_${PLATFORM}.tar.gz`;
    const signature = `/download/v${NEXT}/checksums.txt.sigstore.json`;
    const refuses = async (reason: RegExp) => {
      const { exitCode, stderr } = await own.upgrade();
      assert.equal(exitCode, 1);
      assert.match(stderr, reason);
      assert.deepEqual([await own.version(), own.others()], [VERSION, []]);
    };
    await own.releases.publish(NEXT);
    files.set(archive, "other bytes");
    await refuses(/Cannot trust reverse-http_.*: its SHA-256 is/);
    files.set("/latest/download/checksums.txt", `${files.get("/latest/download/checksums.txt")}\n`);
    await refuses(/its signature is not that of the release .*signature verification failed/);
    await own.releases.publish(NEXT);
    files.delete(signature);
    await refuses(/checksums\.txt\.sigstore\.json: the status is 404/);
    await own.releases.publish(NEXT, working(NEXT), `other.yml@refs/tags/v${NEXT}`);
    await refuses(/it is of .*other\.yml/);
    await own.releases.publish(NEXT, working(NEXT), "release.yml@refs/tags/v9.9.8");
    await refuses(/it is of .*9\.9\.8/);
    await own.releases.publish(NEXT);
    files.set(
      signature,
      await (await Sigstore.create()).sign(String(files.get("/latest/download/checksums.txt")), {
        workflow: `${REPOSITORY}/.github/workflows/release.yml@refs/tags/v${NEXT}`,
        issuer: ISSUER,
      }),
    );
    await refuses(/Failed to verify certificate chain/);
    await own.releases.publish(NEXT, "#!/bin/sh\necho too old a libc >&2; exit 1\n");
    await refuses(/Cannot run the new executable on this machine: too old a libc/);
    await own.releases.publish(NEXT, working("9.9.8"));
    await refuses(/it says that it is 9\.9\.8/);
    await own.releases.publish(NEXT, "#!/bin/sh\nprintf '\\033[2Jx'\n");
    await refuses(/it says that it is \?\[2Jx/);
  });

  it("names the server that cannot be reached, and uses a proxy", async () => {
    await using own = await Installation.create(sigstore);
    const { base } = own.releases;
    const gone = await own.upgrade(["--base-url=http://127.0.0.1:1/releases"]);
    assert.equal(gone.exitCode, 1);
    assert.match(gone.stderr, /Cannot download http:\/\/127\.0\.0\.1:1\/releases\/latest\/download\/checksums\.txt: /);
    await own.releases.publish(NEXT);
    const found = await own.upgrade(["--check", "--base-url=http://releases.test/"], { http_proxy: base });
    assert.equal(found.exitCode, 3, found.stderr);
    assert.match(own.releases.requests.at(-1)!, /releases\.test/);
  });

  it("lets running services hand over, and changes nothing if one cannot", async () => {
    await using own = await Installation.create(sigstore);
    await using site = await Site.create();
    await using origin = await Origin.start(async (wire) => {
      for (let data; (data = await wire.next()) !== null;) await wire.write(data);
      wire.finish();
    });
    const socket = `${site.folder.path}/proxy.sock`;
    await using proxy = new Program(own.file, ["proxy", ...site.proxyArgs(), `--handover.socket=${socket}`]);
    await using other = new Program(own.file, ["proxy", ...site.proxyArgs()]);
    await other.waitFor("listening");
    const { agents, clients } = await proxy.waitFor("listening");
    const addresses = { agents: String(agents), clients: String(clients) };
    await site.startAgent(addresses);
    using tunnel = await openTunnel(addresses.clients, origin.authority);
    await own.releases.publish(NEXT, working(NEXT).replace("exec", '[ "$1" = proxy ] && exit 7; exec'));
    const failed = await own.upgrade();
    assert.equal(failed.exitCode, 1);
    assert.match(failed.stderr, /Cannot upgrade proxy \(process \d+\), which goes on as before: the new process has ended: code 7/);
    assert.equal(await own.version(), VERSION);
    await check(tunnel);
    await own.releases.publish(NEXT);
    const done = await own.upgrade();
    assert.equal(done.exitCode, 0, done.stderr);
    const { pid } = await proxy.waitFor("handed over");
    try {
      assert.match(done.stdout, new RegExp(`proxy \\(process ${proxy.pid}\\) has handed over to process ${pid} of `));
      assert.match(done.stdout, new RegExp(`proxy \\(process ${other.pid}\\) still runs the one before: it has no --handover.socket`));
      assert.equal(readFileSync(`/proc/${pid}/comm`, "utf8").trim(), "reverse-http");
      await check(tunnel);
      using after = await openTunnel(addresses.clients, origin.authority);
      await check(after);
      assert.ok(existsSync(`${own.file}.previous`));
    } finally {
      process.kill(Number(pid), "SIGKILL");
    }
  });
});
