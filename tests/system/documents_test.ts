// Runs every command and every program of the documents: one document after the other in an empty home, its blocks in their order, with the
// executable that install.sh leaves. ```sh runs to its end; ```sh background is a service, which runs until the document ends; ```sh no-test
// cannot be run here.
import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { once } from "node:events";
import { readdirSync, readFileSync } from "node:fs";
import { createServer } from "node:http";
import type { AddressInfo } from "node:net";
import { join } from "node:path";
import process from "node:process";
import { after, before, describe, it } from "node:test";
import { gzipSync } from "node:zlib";
import { createTar } from "nanotar";
import * as library from "../../mod.ts";
import { makeAuthority } from "../../testing/certificates.ts";
import { type Block, type Document, importLibrary, readDocuments, readExamples, RUNTIME } from "../../testing/documents.ts";
import { Folder, Program, REVERSE_HTTP, ROOT, runToEnd, writeCertificates } from "../../testing/programs.ts";
import { freePort, StoreServer } from "../../testing/store_servers.ts";
import { Web } from "../../testing/web.ts";
import { manifest } from "../../tools/executables.ts";
import { hostTarget, platformOf } from "../../tools/targets.ts";

/** The commands of the system, without the project's own. */
const SYSTEM_PATH = "/usr/local/bin:/usr/bin:/bin";

/** Runs install.sh without options against a release of the built executable; it installs into a folder that the caller deletes. */
async function install(): Promise<Folder> {
  const folder = new Folder();
  const { version } = manifest();
  const data = gzipSync(createTar([{ name: "reverse-http", data: readFileSync(REVERSE_HTTP), attrs: { mode: "755" } }]), { level: 1 });
  const archive = `reverse-http_${version}_${platformOf(hostTarget()!)}.tar.gz`;
  const sum = createHash("sha256").update(data).digest("hex");
  // the script reads the version from the name of the archive for Linux on x86_64
  const names = new Set([archive, `reverse-http_${version}_linux_amd64.tar.gz`]);
  const files = new Map<string, Uint8Array | string>([
    ["/latest/download/checksums.txt", [...names].map((name) => `${sum}  ${name}\n`).join("")],
    [`/download/v${version}/${archive}`, data],
  ]);
  const server = createServer((request, response) => {
    const file = files.get(request.url!);
    response.writeHead(file === undefined ? 404 : 200).end(file);
  }).listen(0, "127.0.0.1");
  await once(server, "listening");
  try {
    const url = `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
    const { exitCode, stdout, stderr } = await runToEnd("/bin/sh", [join(ROOT, "install.sh"), "--dir", folder.path, "--base-url", url], {
      env: { PATH: SYSTEM_PATH, HOME: folder.path },
    });
    assert.equal(exitCode, 0, stdout + stderr);
  } finally {
    server.close();
  }
  return folder;
}

/** Blocks that need a service manager, a container engine, another machine or this test itself. None may be added without a thought. */
const UNTESTED: Readonly<Record<string, number>> = {
  "README.md": 2,
  "deploy/README.md": 3,
  "docs/admin.md": 4, // a tunnel, an agent and a token of examples, several proxies, a private key
  "CONTRIBUTING.md": 2,
  "docs/client.md": 8, // names of examples, a string, an issuer
  "docs/clients.md": 1, // a certificate of an authority that browsers trust
  "docs/dashboard.md": 1, // ssh to another machine
  "docs/getting-started.md": 3,
  "docs/identity.md": 5, // issuers, a program that hashes passwords
  "docs/policy.md": 2, // a policy of names that are examples
  "examples/README.md": 1,
  "findings/README.md": 1,
  "docs/metrics.md": 1, // a service with a fixed port
  "docs/operating.md": 6,
  "docs/performance.md": 1,
  "docs/publishing.md": 3, // a name server, private keys
  "docs/tracing.md": 2,
  "docs/web-sites.md": 2, // an authority that validates names, a server that speaks HTTP/2
  "docs/library.md": 1, // a package registry
  "docs/tls.md": 1, // a name that a certificate authority can check
  "docs/restricted-networks.md": 6, // port 443, outbound proxies, names of examples
};

/** Names of the documents for other machines. Here all are this one. */
const HOSTS = /\b(proxy|lb|server)\.example\b/g;
/** How documents abbreviate the pin that the proxy logs. */
const PIN = "1c8ef73f…";
/** How documents abbreviate the string that `invite` prints. */
const JOIN = "rhttp1.c9…";

/** The surroundings of one document's commands: the installed executable, free ports, a web server, a store. */
class Scene implements AsyncDisposable {
  readonly #programs: Program[] = [];
  #join?: string;
  private constructor(
    readonly installed: Folder,
    readonly folder: Folder,
    readonly ports: ReadonlyMap<string, number>,
    readonly web: Web,
    readonly store: StoreServer,
  ) {}

  static async open(installed: Folder): Promise<Scene> {
    const folder = new Folder();
    const web = await Web.start({ folder: folder.path });
    const store = await StoreServer.start("memcached");
    const ports = new Map([["8080", web.port], ["11211", store.port]]);
    for (const port of ["4242", "4243", "3128", "3129", "3130", "8000", "8443", "9090", "9091"]) ports.set(port, await freePort());
    await writeCertificates(folder, await makeAuthority());
    return new Scene(installed, folder, ports, web, store);
  }

  get #env(): Record<string, string> {
    return {
      PATH: `${this.installed.path}:${SYSTEM_PATH}`,
      HOME: this.folder.path,
      XDG_STATE_HOME: join(this.folder.path, "state"),
      // the defaults that commands do not mention
      REVERSE_HTTP_AGENT_SERVER_LISTEN_ADDRESS: `:${this.ports.get("4242")}`,
      REVERSE_HTTP_HTTP_PROXY_LISTEN_ADDRESS: `:${this.ports.get("3128")}`,
      REVERSE_HTTP_STORE_MEMCACHED_ADDRESS: `localhost:${this.ports.get("11211")}`,
    };
  }

  #localize(code: string): string {
    const pin = this.#programs.map(({ said }) => /pin-sha256=([0-9a-f]{64})/.exec(said)?.[1]).findLast((found) => found);
    return code
      .replace(HOSTS, "localhost")
      .replace(/(?<=:)\d{4,5}\b/g, (port) => String(this.ports.get(port) ?? port))
      .replaceAll(PIN, pin ?? PIN)
      .replaceAll(JOIN, this.#join ?? JOIN);
  }

  async run({ code, flags, line }: Block): Promise<void> {
    const options = { cwd: this.folder.path, env: this.#env };
    const text = this.#localize(code);
    if (!flags.includes("background")) {
      const { exitCode, stdout, stderr } = await runToEnd("/bin/bash", ["-euo", "pipefail", "-c", text], options);
      assert.equal(exitCode, 0, `line ${line}:\n${text}\n${stdout}\n${stderr}`);
      this.#join = /^rhttp1\.\S+$/m.exec(stdout)?.[0] ?? this.#join;
      return;
    }
    // exec: the service gets the signals
    const program = new Program("/bin/bash", ["-c", `exec ${text}`], options);
    this.#programs.push(program);
    await program.waitForText(/^reverse-http agent /.test(text) ? " connected " : " listening ");
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const program of this.#programs.reverse()) await program[Symbol.asyncDispose]();
    await this.store[Symbol.asyncDispose]();
    await this.web[Symbol.asyncDispose]();
    this.folder[Symbol.dispose]();
  }
}

const isTested = ({ language, flags }: Block) => language === "sh" && !flags.includes("no-test");
const documents = readDocuments();

describe("commands of the documents", () => {
  let installed: Folder;
  before(async () => {
    installed = await install();
  });
  after(() => installed[Symbol.dispose]());

  it("have the executable that the installer leaves, and no other", () => {
    assert.deepEqual(readdirSync(installed.path), ["reverse-http"]);
  });

  for (const { name, blocks } of documents.filter(({ blocks }) => blocks.some(isTested))) {
    it(`run as they stand in ${name}`, async () => {
      await using scene = await Scene.open(installed);
      for (const block of blocks.filter(isTested)) await scene.run(block);
    });
  }

  it("are left out where they must be, and nowhere else", () => {
    const untested = documents.map(({ name, blocks }) => [name, blocks.filter(({ flags }) => flags.includes("no-test")).length] as const);
    assert.deepEqual(
      Object.fromEntries(untested.filter(([, count]) => count > 0)),
      Object.fromEntries(Object.entries(UNTESTED).filter(([, c]) => c > 0)),
    );
  });

  it("have a language that says what they are", () => {
    for (const { name, text, blocks } of documents) {
      assert.doesNotMatch(text, /^[ \t]+```/m, `${name}: indented blocks are not found`);
      for (const { language, line } of blocks) {
        assert.match(language, /^(sh|ts|python|text|yaml|json|nginx|ini)$/, `${name}, line ${line}`);
      }
    }
  });
});

/** Where the functions of the library are, and their examples. */
const LIBRARY = [
  "mod.ts",
  "shared/address/allow_list.ts",
  "shared/auth/agent_list.ts",
  "shared/auth/publish_list.ts",
  "shared/log/logger.ts",
  "shared/net/native/binding.ts",
  "shared/store/memory.ts",
];

const programs = [
  ...documents.flatMap(({ name, blocks }: Document) =>
    blocks.filter(({ language, flags }) => language === "ts" && !flags.includes("no-run"))
      .map(({ line, code }) => ({ where: `${name}, line ${line}`, code }))
  ),
  ...LIBRARY.flatMap(readExamples).map(({ name, code }) => ({ where: `the documentation of ${name}()`, code })),
];

describe("programs of the documents", () => {
  for (const { where, code } of programs) {
    it(`run as they stand in ${where}`, async () => {
      using folder = new Folder();
      const authority = await makeAuthority();
      const server = await authority.issue({ names: ["127.0.0.1"] });
      folder.write("key.pem", server.key);
      folder.write("cert.pem", `${server.cert}\n${authority.cert}\n`); // the agent trusts what is in it
      const program = folder.write("program.ts", importLibrary(code));
      const [runtime, ...args] = RUNTIME;
      const { exitCode, stdout, stderr } = await runToEnd(runtime!, [...args, program], {
        cwd: folder.path,
        env: process.env as Record<string, string>,
      });
      assert.equal(exitCode, 0, stderr);
      // `// prints: …` is what a line of it says
      for (const [, wanted] of code.matchAll(/\/\/ prints: (.*)$/gm)) assert.match(stdout, new RegExp(`^${wanted}$`, "m"));
    });
  }

  it("are there for every function of the library", () => {
    const functions = Object.entries(library).filter(([, value]) => typeof value === "function" && !String(value).startsWith("class"));
    assert.ok(functions.length > 5);
    const shown = new Set(LIBRARY.flatMap(readExamples).map(({ name }) => name));
    for (const [name] of functions) assert.ok(shown.has(name), `${name}() has no @example`);
  });
});
