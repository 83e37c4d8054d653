// The command login: the profiles that it stores, and how commands find and read them again.
import assert from "node:assert/strict";
import { readFileSync, statSync } from "node:fs";
import { join } from "node:path";
import { describe, it } from "node:test";
import { parse } from "yaml";
import { expandJoin } from "../../client/join.ts";
import { loginCommand } from "../../client/login.ts";
import { clientOptions } from "../../client/options.ts";
import { readCommandLine, type Subcommand } from "../../shared/cli/command.ts";
import { formatJoin } from "../../shared/config/join.ts";
import { Folder } from "../../testing/programs.ts";
import { type FakeTerminal, fakeTerminal } from "../../testing/terminal.ts";

const PIN = "1c".repeat(32);
const JOIN = formatJoin({ role: "client", servers: ["proxy.example:3128"], agentId: "site7", tls: true, pin: PIN, token: "abc.def.ghi" });

const connect: Subcommand = {
  name: "connect",
  description: "Connects.",
  profile: clientOptions,
  expansion: { option: "join", expand: expandJoin },
  run: () => Promise.resolve(),
};

function task(folder: Folder, args: string[]) {
  const root = { name: "reverse-http", description: "All.", commands: [loginCommand as Subcommand, connect] };
  const found = readCommandLine({ root, version: "1", family: {} }, { args, env: { XDG_CONFIG_HOME: folder.path }, home: undefined });
  return found as Extract<typeof found, { do: "subcommand" }>;
}

async function login(folder: Folder, args: string[], terminal: { input?: string; answers?: string[] } = {}): Promise<FakeTerminal> {
  const { subcommand, resolved, line } = task(folder, ["login", ...args]);
  const fake = fakeTerminal({ ...terminal, env: { XDG_CONFIG_HOME: folder.path } });
  await subcommand.run(resolved.values, fake, line);
  return fake;
}

const profile = (folder: Folder, name = "client.yaml") => join(folder.path, "reverse-http", name);
const settings = (folder: Folder, name?: string) => parse(readFileSync(profile(folder, name), "utf8"));
const FROM_JOIN = {
  "proxy": "proxy.example:3128",
  "agent-id": "site7",
  "token": "abc.def.ghi",
  "tls": { "enable": true, "pin-sha256": [PIN] },
};

describe("login", () => {
  it("stores what a join string on standard input says, readable by its owner only", async () => {
    using folder = new Folder();
    const terminal = await login(folder, [], { input: `${JOIN}\n` });
    assert.deepEqual(settings(folder), FROM_JOIN);
    assert.deepEqual([profile(folder), join(folder.path, "reverse-http")].map((file) => statSync(file).mode & 0o777), [0o600, 0o700]);
    assert.ok(!(terminal.out() + terminal.reports.join()).includes("abc.def"));
    const { values } = task(folder, ["connect"]).resolved;
    assert.deepEqual([values.proxy, values.agentId, values.token], ["proxy.example:3128", "site7", "abc.def.ghi"]);
  });

  it("asks on a terminal: for a join string, or for each setting", async () => {
    using folder = new Folder();
    await login(folder, ["--name=joined"], { answers: [JOIN] });
    assert.deepEqual(settings(folder, "client-joined.yaml"), FROM_JOIN);
    await login(folder, ["--name=asked"], { answers: ["", "proxy.example:3128", PIN, "site7", "abc.def.ghi"] });
    assert.deepEqual(settings(folder, "client-asked.yaml"), FROM_JOIN);
    await login(folder, ["--name=plain"], { answers: ["", "proxy.example:3128", "", "", "command:cat token"] });
    assert.deepEqual(settings(folder, "client-plain.yaml"), { "proxy": "proxy.example:3128", "token-command": "cat token" });
    await login(folder, ["--name=trusted"], { answers: ["", "proxy.example:3128", "yes", "", ""] });
    assert.deepEqual(settings(folder, "client-trusted.yaml"), { proxy: "proxy.example:3128", tls: { enable: true } });
  });

  it("keeps profiles by name, which --profile selects", async () => {
    using folder = new Folder();
    await login(folder, ["--name=work", "--proxy=work.example:1", "--agent-id=007"]);
    await login(folder, ["--proxy=home.example:1"]);
    assert.equal(task(folder, ["connect", "--profile=work"]).resolved.values.proxy, "work.example:1");
    assert.equal(task(folder, ["connect", "--profile=work"]).resolved.values.agentId, "007");
    assert.equal(task(folder, ["connect"]).resolved.values.proxy, "home.example:1");
    assert.equal(task(folder, ["connect", `--profile=${profile(folder)}`]).resolved.values.proxy, "home.example:1");
    assert.throws(
      () => task(folder, ["connect", "--profile=none"]),
      /Cannot read the profile .*client-none\.yaml: the file does not exist/,
    );
  });

  it("replaces a profile only if told so, and a command reads it again then", async () => {
    using folder = new Folder();
    await login(folder, ["--proxy=one.example:1"]);
    const { line, resolved } = task(folder, ["connect"]);
    await assert.rejects(
      login(folder, ["--proxy=two.example:1"]),
      /Cannot write the profile .*client\.yaml: the file exists; --force replaces it/,
    );
    // what is wrong with the new settings is said first
    await assert.rejects(login(folder, [], { input: "nonsense" }), /Cannot use --join/);
    await assert.rejects(login(folder, ["--join=nonsense"]), /Cannot use --join/);
    await assert.rejects(login(folder, [], { input: JOIN }), /the file exists; --force replaces it/);
    const asked: string[] = [];
    await assert.rejects(login(folder, [], { answers: asked }), /the file exists; --force replaces it/, "before a person is asked");
    await login(folder, ["--proxy=two.example:1", "--force"]);
    assert.equal(resolved.values.proxy, "one.example:1");
    assert.equal((line.reread!() as typeof resolved.values).proxy, "two.example:1");
  });

  it("refuses tokens on the command line, and what cannot be used", async () => {
    using folder = new Folder();
    await assert.rejects(login(folder, ["--proxy=one.example:1", "--token=abc"]), /Cannot use --token: other users see the command line/);
    const both = ["--proxy=one.example:1", "--token=file:/a", "--token-command=cat /a"];
    await assert.rejects(login(folder, both), /Cannot use both --token and --token-command: set only one/);
    await assert.rejects(login(folder, [], { input: JOIN.slice(0, 80) }), /Cannot use --join: it has been cut/);
    await assert.rejects(login(folder, [], { answers: ["", "nothing"] }), /Cannot use --proxy: .*its port is missing/);
    const { reports } = await login(folder, ["--join", JOIN]);
    assert.match(reports.join(), /other users could see the string/);
  });
});
