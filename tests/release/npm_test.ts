// The npm package of the library: packed, unpacked in an empty folder with its dependencies, and used by every runtime.
import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { mkdirSync, readFileSync, symlinkSync } from "node:fs";
import { join } from "node:path";
import process from "node:process";
import { describe, it } from "node:test";
import { bcrypt } from "hash-wasm";
import { hostTarget } from "../../tools/targets.ts";
import { makePackages } from "../../tools/npm.ts";
import { makeAuthority } from "../../testing/certificates.ts";
import { Folder, ROOT, runToEnd, writeCertificates } from "../../testing/programs.ts";

/** A program that transfers a line through a tunnel, prints it and ends. */
const PROGRAM = `
import { createServer } from "node:net";
import { openTunnel, startAgent, startProxy } from "@reverse-http/reverse-http";

const server = createServer({ allowHalfOpen: true }, (socket) => socket.pipe(socket)).listen(0, "127.0.0.1");
await new Promise((resolve) => server.once("listening", resolve));
const proxy = await startProxy({
  agentServer: { listenAddress: "127.0.0.1:0", tls: { file: { key: "key.pem", cert: "cert.pem" } } },
  httpProxy: { listenAddress: "127.0.0.1:0" },
  auth: { clients: ["htpasswd"], htpasswd: { file: "users" } },
});
const { promise: connected, resolve: onConnected } = Promise.withResolvers();
const agent = await startAgent({
  agentClient: { serverAddress: [proxy.agentAddress], tls: { file: { rootCa: "ca.pem" } } },
  auth: { noauth: { agentId: "4711" } },
}, { onConnected });
await connected;
const stream = await openTunnel({ proxy: proxy.clientAddress, agentId: "alice#4711", token: "a password", destination: \`127.0.0.1:\${server.address().port}\` });
stream.end("a line");
let said = "";
for await (const bytes of stream) said += bytes;
console.log(said);
await agent.close();
await proxy.close();
server.close();
`;

const BUN = join(ROOT, "node_modules", ".bin", "bun");
const node = spawnSync("node", ["--version"], { encoding: "utf8" }).stdout ?? "";
const [major = 0, minor = 0] = node.slice(1).split(".").map(Number);
const tooOld = major > 22 || (major === 22 && minor >= 12) ? false : `the Node.js here is ${node.trim() || "none"}`;
/** Packing needs Deno and npm. */
const skip = process.versions.bun !== undefined
  ? "Deno alone can pack it"
  : spawnSync("npm", ["--version"], { stdio: "ignore" }).error !== undefined && "there is no npm";

/** A program's folder, with the files that `npm install` would create. */
class Installation implements Disposable {
  readonly folder = new Folder();

  async fill(): Promise<void> {
    using packages = new Folder();
    const target = hostTarget()!;
    const modules = join(this.folder.path, "node_modules");
    const names = await makePackages(packages.path, { [target]: join(ROOT, "native", "reverse-http.node") });
    assert.deepEqual(names, [`native-${target}`, "reverse-http"]);
    for (const name of names) {
      const into = join(modules, "@reverse-http", name);
      mkdirSync(into, { recursive: true });
      const packed = spawnSync("npm", ["pack", "--silent", join(packages.path, name)], { cwd: packages.path, encoding: "utf8" });
      assert.equal(packed.status, 0, packed.stderr);
      // the archive, for what its package.json leaves out is missing from that
      assert.equal(spawnSync("tar", ["-xzf", packed.stdout.trim(), "--strip-components=1", "-C", into], { cwd: packages.path }).status, 0);
    }
    const { dependencies } = this.manifest("reverse-http");
    for (const name of Object.keys(dependencies)) {
      mkdirSync(join(modules, name, ".."), { recursive: true });
      symlinkSync(join(ROOT, "node_modules", name), join(modules, name));
    }
    this.folder.write("program.mjs", PROGRAM);
    // the package reads the files of another one for it
    const salt = new Uint8Array(16);
    this.folder.write("users", `alice:${await bcrypt({ password: "a password", salt, costFactor: 4, outputType: "encoded" })}`);
    await writeCertificates(this.folder, await makeAuthority());
  }

  manifest(name: string): { version: string; dependencies: Record<string, string>; optionalDependencies: Record<string, string> } {
    return JSON.parse(readFileSync(join(this.folder.path, "node_modules", "@reverse-http", name, "package.json"), "utf8"));
  }

  async run(file: string, ...args: string[]): Promise<string> {
    const { exitCode, stdout, stderr } = await runToEnd(file, args, { cwd: this.folder.path, env: { PATH: process.env.PATH! } });
    assert.equal(exitCode, 0, `${file} ${args.join(" ")}: ${stderr}`);
    return stdout.trim();
  }

  [Symbol.dispose](): void {
    this.folder[Symbol.dispose]();
  }
}

describe("packages of npm", { skip }, () => {
  it("transfer a line through a tunnel on every runtime", async (t) => {
    using installation = new Installation();
    await installation.fill();
    await t.test("under Bun", async () => assert.equal(await installation.run(BUN, "program.mjs"), "a line"));
    await t.test("under Deno", async () => {
      assert.equal(await installation.run(process.execPath, "run", "-A", "--node-modules-dir=manual", "program.mjs"), "a line");
    });
    await t.test("under Node.js", { skip: tooOld }, async () => assert.equal(await installation.run("node", "program.mjs"), "a line"));
    await t.test("have the dashboard", async () => {
      const module = join(
        installation.folder.path,
        "node_modules",
        "@reverse-http",
        "reverse-http",
        "shared",
        "service",
        "dashboard",
        "dashboard.js",
      );
      installation.folder.write(
        "dashboard.mjs",
        `import { serveDashboard } from ${JSON.stringify(module)};
        for (const path of ["/", "/dashboard/app.js", "/dashboard/style.css"]) console.log(serveDashboard(path).status);`,
      );
      assert.equal(await installation.run(BUN, "dashboard.mjs"), "200\n200\n200");
    });
    await t.test("name the engine of the same version, and say their own", async () => {
      const { version, optionalDependencies } = installation.manifest("reverse-http");
      assert.deepEqual(optionalDependencies, { [`@reverse-http/native-${hostTarget()}`]: version });
      assert.equal(installation.manifest(`native-${hostTarget()}`).version, version);
      const main = join(installation.folder.path, "node_modules", "@reverse-http", "reverse-http", "main.js");
      assert.equal(await installation.run(BUN, main, "version"), version);
    });
  });
});
