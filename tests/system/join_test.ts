// From nothing to a tunnel by pasted strings, with the executable alone: invite, agent --join, login, connect, doctor. What is pasted stays
// neither in a command line nor in a log.
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { after, before, describe, it } from "node:test";
import { parseJoin } from "../../shared/config/join.ts";
import { type Ended, Folder, Program, REVERSE_HTTP, runToEnd } from "../../testing/programs.ts";
import { secrets } from "../../testing/secrets.ts";
import { Origin } from "../../testing/sockets.ts";
import { freePort } from "../../testing/store_servers.ts";

let folder: Folder;
const programs: Program[] = [];
/** Options of the proxy, of which an invitation needs some. */
let options: string[];
let invited: { agent: string; client: string };

const home = () => ({ PATH: "/usr/bin:/bin", HOME: folder.path, XDG_STATE_HOME: `${folder.path}/state` });
const run = (args: string[], input?: string): Promise<Ended> => runToEnd(REVERSE_HTTP, args, { cwd: folder.path, env: home(), input });
const start = (args: string[]): Program => {
  const program = new Program(REVERSE_HTTP, args, { cwd: folder.path, env: home() });
  programs.push(program);
  return program;
};

async function invite(...args: string[]): Promise<string> {
  const { exitCode, stdout, stderr } = await run(["invite", "--agent-id=site7", ...options, ...args]);
  assert.equal(exitCode, 0, stderr);
  secrets.addToken("the token of a join string", parseJoin(stdout, args.length > 0 ? "client" : "agent").token!);
  return stdout.trim();
}

before(async () => {
  folder = new Folder();
  options = [`--agent-server.listen-address=127.0.0.1:${await freePort()}`, `--http-proxy.listen-address=127.0.0.1:${await freePort()}`];
  invited = { agent: await invite(), client: await invite("--client") };
});

after(async () => {
  for (const program of programs.reverse()) await program[Symbol.asyncDispose]();
  folder[Symbol.dispose]();
});

describe("two pasted strings", () => {
  it("make a tunnel, and the agent says how clients reach it", async () => {
    const proxy = start(["proxy", "--auth.type=jwt", "--log.format=json", ...options]);
    await proxy.waitFor("listening");
    const agent = start(["agent", "--join", invited.agent, "--log.format=json"]);
    await agent.waitFor("connected", { agent: "site7" });
    const { command, note } = await agent.waitFor("clients reach this agent with");
    const [, , clients] = options[1]!.split("=")[1]!.match(/^(.*):(\d+)$/)!;
    assert.equal(command, `reverse-http connect --proxy=127.0.0.1:${clients} --agent-id=site7 HOST:PORT`);
    assert.match(String(note), /reverse-http invite --client --agent-id=site7 prints one/);
    assert.ok(agent.said.includes("visible to other users while the program starts"));
    assert.ok(!readFileSync(`/proc/${agent.pid}/cmdline`, "latin1").includes("rhttp1"), "the string is in the command line");

    await using origin = await Origin.start();
    for (const by of [["--join", invited.client], []]) {
      if (by.length === 0) assert.equal((await run(["login"], `${invited.client}\n`)).exitCode, 0);
      const connecting = run(["connect", ...by, origin.authority], "question");
      const server = await origin.accept();
      assert.equal((await server.readAll()).toString(), "question");
      server.finish("answer");
      const { exitCode, stdout, stderr } = await connecting;
      assert.deepEqual([exitCode, stdout], [0, "answer"], stderr);
    }
  });

  it("are found right by doctor, in all three places", async () => {
    const healthy = [["agent", "--join", invited.agent], ["client"], ["proxy", "--auth.type=jwt", ...options]];
    for (const args of healthy) {
      const { exitCode, stdout } = await run(["doctor", ...args, "--json"]);
      assert.deepEqual([exitCode, JSON.parse(stdout).ok], [0, true], stdout);
    }
  });

  it("are named when they are cut, exchanged, or of another proxy", async () => {
    const rows: [string[], number, RegExp][] = [
      [["agent", "--join", invited.agent.slice(0, 300)], 2, /Cannot use --join: it has been cut: 300 of \d+ characters are left/],
      [["connect", "--join", invited.agent, "a:1"], 2, /it is for an agent; reverse-http invite with --client/],
      [["connect", "--join", invited.client, "--agent-id=site8", "127.0.0.1:1"], 4, /407/],
    ];
    for (const [args, code, said] of rows) {
      const { exitCode, stderr } = await run(args);
      assert.equal(exitCode, code, stderr);
      assert.match(stderr, said);
    }
    const { exitCode, stdout } = await run(["doctor", "client", "--join", invited.client, "--proxy=127.0.0.1:1"]);
    assert.equal(exitCode, 1);
    assert.match(stdout, /TCP +127\.0\.0\.1:1 +failed .*\n +Remedy: start the proxy there/);
  });
});
