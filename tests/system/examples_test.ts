// The programs of examples/, as users run them: the proxy and the agent as servers, and the clients.
import assert from "node:assert/strict";
import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import process from "node:process";
import { after, before, describe, it } from "node:test";
import { makeAuthority } from "../../testing/certificates.ts";
import { importLibrary, RUNTIME } from "../../testing/documents.ts";
import { type Ended, Folder, Program, ROOT, runToEnd } from "../../testing/programs.ts";
import { freePort } from "../../testing/store_servers.ts";

const EXAMPLES = join(ROOT, "examples");

describe("examples", () => {
  let folder: Folder;
  let ports: { agents: number; clients: number; web: number };
  let proxy: Program;
  let agent: Program;

  /** The command of an example, with the library of these sources. */
  const command = (name: string, args: readonly string[]): [string, string[], { cwd: string; env: Record<string, string> }] => {
    const [file, ...before] = RUNTIME;
    const program = folder.write(name, importLibrary(readFileSync(join(EXAMPLES, name), "utf8")));
    return [file!, [...before, program, ...args], { cwd: folder.path, env: process.env as Record<string, string> }];
  };
  const start = (name: string, ...args: string[]) => new Program(...command(name, args));
  const fetchAs = (user: string): Promise<Ended> =>
    runToEnd(...command("client.ts", [`http://${user}@127.0.0.1:${ports.clients}`, `http://127.0.0.1:${ports.web}/hello`]));

  before(async () => {
    folder = new Folder();
    ports = { agents: await freePort(), clients: await freePort(), web: await freePort() };
    const authority = await makeAuthority();
    const server = await authority.issue({ names: ["127.0.0.1"] });
    folder.write("key.pem", server.key);
    folder.write("cert.pem", `${server.cert}\n${authority.cert}\n`);
    proxy = start("proxy.ts", `127.0.0.1:${ports.agents}`, `127.0.0.1:${ports.clients}`);
    await proxy.waitForText(" listening ");
    agent = start("agent.ts", `127.0.0.1:${ports.agents}`, String(ports.web));
    await proxy.waitForText(" agent connected ");
  });

  after(async () => {
    await agent[Symbol.asyncDispose]();
    await proxy[Symbol.asyncDispose]();
    folder[Symbol.dispose]();
  });

  it("transfer a page from the agent's program to the client", async () => {
    const { exitCode, stdout, stderr } = await fetchAs("alice:correct%20horse");
    assert.equal(exitCode, 0, stderr);
    assert.equal(stdout.trim(), "You asked for /hello");
  });

  it("refuse a wrong password with 407, and a destination of another user with 403", async () => {
    const [wrong, other] = await Promise.all([fetchAs("alice:wrong"), fetchAs("bob:battery%20staple")]);
    assert.deepEqual([wrong.exitCode, other.exitCode], [1, 1]);
    assert.match(wrong.stderr, /Cannot open a tunnel: 407 /);
    assert.match(other.stderr, /Cannot open a tunnel: 403 .*is not on the allow-list of the credentials/);
  });

  for (const name of ["http_agent.ts", "fetch.ts"]) {
    it(`transfer a page with openTunnel, and say why there is none, in ${name}`, async () => {
      const run = (password: string) =>
        runToEnd(...command(name, [`127.0.0.1:${ports.clients}`, "alice", password, `http://127.0.0.1:${ports.web}/hello`]));
      const [page, refused] = await Promise.all([run("correct horse"), run("wrong")]);
      assert.equal(page.exitCode, 0, page.stderr);
      assert.match(page.stdout, /You asked for \/hello/);
      assert.equal(refused.exitCode, 1);
      assert.match(refused.stderr, /The credentials are not accepted \(407/);
    });
  }

  it("read the answer to its end after standard input has ended, in connect.ts", async () => {
    const [file, args, options] = command("connect.ts", [`127.0.0.1:${ports.clients}`, "alice", "correct horse", `127.0.0.1:${ports.web}`]);
    const { exitCode, stdout, stderr } = await runToEnd(file, args, { ...options, input: "GET /raw HTTP/1.0\r\n\r\n" });
    assert.equal(exitCode, 0, stderr);
    assert.match(stdout, /You asked for \/raw/);
  });

  it("stop cleanly on SIGTERM", async () => {
    for (const program of [agent, proxy]) {
      process.kill(program.pid, "SIGTERM");
      const { exitCode, signal, stderr } = await program.ended;
      assert.deepEqual([exitCode, signal], [0, undefined], stderr);
    }
  });

  it("are all tested here and described in the README", () => {
    const programs = readdirSync(EXAMPLES).filter((name) => name.endsWith(".ts")).sort();
    assert.deepEqual(programs, ["agent.ts", "client.ts", "connect.ts", "fetch.ts", "http_agent.ts", "proxy.ts"]);
    const readme = readFileSync(join(EXAMPLES, "README.md"), "utf8");
    for (const name of programs) assert.ok(readme.includes(`](${name})`), name);
  });
});
