// Every command and every program of the documents, run in the order in which it stands there, in a folder that is all the home it has.
// ```sh runs to its end; ```sh background is one service, which runs until the document ends; ```sh no-test cannot be run here.
import assert from "node:assert/strict";
import { join } from "node:path";
import process from "node:process";
import { describe, it } from "node:test";
import * as library from "../../mod.ts";
import { makeAuthority } from "../../testing/certificates.ts";
import { type Block, type Document, importLibrary, readDocuments, readExamples, RUNTIME } from "../../testing/documents.ts";
import { Folder, Program, ROOT, runToEnd, writeCertificates } from "../../testing/programs.ts";
import { freePort, StoreServer } from "../../testing/store_servers.ts";
import { Web } from "../../testing/web.ts";

/** Blocks that need a service manager, a container engine, another machine or this test itself. None may be added without a thought. */
const UNTESTED: Readonly<Record<string, number>> = {
  "README.md": 2,
  "deploy/README.md": 2,
  "CONTRIBUTING.md": 2,
  "docs/getting-started.md": 3,
  "examples/README.md": 1,
  "findings/README.md": 1,
  "docs/operating.md": 2,
  "docs/performance.md": 1,
};

/** Hosts that the documents speak of are this machine. */
const HOSTS = /\b(proxy|lb|server)\.example\b/g;
/** The first digits of a pin that the proxy logs, for the whole of it. */
const PIN = "1c8ef73f…";

/** What the commands of one document find: ports of their own, a web server, a store. */
class Scene implements AsyncDisposable {
  readonly #programs: Program[] = [];
  private constructor(
    readonly folder: Folder,
    readonly ports: ReadonlyMap<string, number>,
    readonly web: Web,
    readonly store: StoreServer,
  ) {}

  static async open(): Promise<Scene> {
    const folder = new Folder();
    const web = await Web.start({ folder: folder.path });
    const store = await StoreServer.start("memcached");
    const ports = new Map([["8080", web.port], ["11211", store.port]]);
    for (const port of ["4242", "4243", "3128", "3129", "3130", "9090", "9091"]) ports.set(port, await freePort());
    await writeCertificates(folder, await makeAuthority());
    return new Scene(folder, ports, web, store);
  }

  get #env(): Record<string, string> {
    return {
      PATH: `${join(ROOT, "dist")}:/usr/local/bin:/usr/bin:/bin`,
      HOME: this.folder.path,
      XDG_STATE_HOME: join(this.folder.path, "state"),
      // what is not said has a port of its own as well
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
      .replaceAll(PIN, pin ?? PIN);
  }

  async run({ code, flags, line }: Block): Promise<void> {
    const options = { cwd: this.folder.path, env: this.#env };
    const text = this.#localize(code);
    if (!flags.includes("background")) {
      const { exitCode, stdout, stderr } = await runToEnd("/bin/bash", ["-euo", "pipefail", "-c", text], options);
      return assert.equal(exitCode, 0, `line ${line}:\n${text}\n${stdout}\n${stderr}`);
    }
    // without a shell in between, so that it ends with this test
    const program = new Program("/bin/bash", ["-c", `exec ${text}`], options);
    this.#programs.push(program);
    await program.waitForText(/^reverse-http[- ]agent /.test(text) ? " connected " : " listening ");
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
  for (const { name, blocks } of documents.filter(({ blocks }) => blocks.some(isTested))) {
    it(`run as they stand in ${name}`, async () => {
      await using scene = await Scene.open();
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
        assert.match(language, /^(sh|ts|text|yaml|json|nginx|ini)$/, `${name}, line ${line}`);
      }
    }
  });
});

/** Where the functions of the library are, and their examples. */
const LIBRARY = [
  "mod.ts",
  "shared/address/allow_list.ts",
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
