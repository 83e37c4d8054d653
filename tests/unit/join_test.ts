// Join strings: what they carry, how a damaged one is named, and where their settings stand among the other sources.
import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { describe, it } from "node:test";
import { expandJoin as expandAgent } from "../../agent/join.ts";
import { agentOptions } from "../../agent/options.ts";
import { expandJoin as expandClient } from "../../client/join.ts";
import { clientOptions } from "../../client/options.ts";
import { readCommandLine, type Service, type Subcommand } from "../../shared/cli/command.ts";
import { formatJoin, type Invitation, joinProblem, parseJoin } from "../../shared/config/join.ts";
import { ConfigError } from "../../shared/config/option.ts";
import { openTunnel, startAgent } from "../../mod.ts";
import { LogBook, withNet } from "../../testing/network.ts";
import { Folder } from "../../testing/programs.ts";
import { makeTokenKey } from "../../testing/tokens.ts";

const PIN = "1c".repeat(32);
const AGENT: Invitation = {
  role: "agent",
  servers: ["proxy.example:4242", "[2001:db8::1]:4242"],
  agentId: "site 7/ä",
  tls: true,
  pin: PIN,
  token: await makeTokenKey().sign({ role: "agent" }),
};
const CLIENT: Invitation = {
  role: "client",
  servers: ["proxy.example:3128"],
  agentId: "site7",
  tls: false,
  pin: undefined,
  token: undefined,
};

const agent: Service = {
  name: "reverse-http",
  description: "Runs.",
  options: agentOptions,
  expansion: { option: "join", expand: expandAgent },
  check: () => Promise.resolve(),
  start: () => Promise.reject(new Error("not to be started")),
};
const client: Subcommand = {
  name: "reverse-http",
  description: "Connects.",
  profile: clientOptions,
  expansion: { option: "join", expand: expandClient },
  run: () => Promise.resolve(),
};

/** The text and the origin of some options. */
function settingsOf(root: Service | Subcommand, args: string[], names: string[], env: Record<string, string> = {}, home?: string) {
  const task = readCommandLine({ root, version: "1.2.3", family: { agent: agentOptions } }, { args, env, home });
  assert.ok("resolved" in task);
  return names.map((name) => {
    const { text, origin } = task.resolved.settings.get(name)!;
    return `${text} of ${origin}`;
  });
}

describe("a join string", () => {
  it("carries everything, as one word for shells and URLs", () => {
    for (const invitation of [AGENT, CLIENT, { ...CLIENT, isHttp2: true }]) {
      const text = formatJoin(invitation);
      assert.match(text, /^rhttp1\.[\w.~-]+$/);
      assert.deepEqual(parseJoin(text, invitation.role), invitation);
    }
  });

  it("is as long as token and settings, and fits into a QR code", () => {
    assert.ok(formatJoin(AGENT).length < AGENT.token!.length + 300);
  });

  it("may have been broken into lines by a terminal", () => {
    assert.deepEqual(parseJoin(` ${formatJoin(AGENT).replace(/.{80}/g, "$&\r\n")}\n`, "agent"), AGENT);
  });

  it("that was cut anywhere is said to be cut", () => {
    const text = formatJoin(AGENT);
    for (let length = 7; length < text.length; length++) {
      assert.match(joinProblem(text.slice(0, length), "agent")!, new RegExp(`^it has been cut: ${length} of `), String(length));
    }
  });

  it("in which any character was changed or added is refused", () => {
    const text = formatJoin(CLIENT);
    for (let at = 9; at < text.length; at++) {
      const other = text[at] === "A" ? "B" : "A";
      assert.match(joinProblem(text.slice(0, at) + other + text.slice(at + 1), "client")!, /checksum does not match|has been cut/);
    }
    assert.match(joinProblem(`${text}x`, "client")!, /checksum/);
  });

  const token = AGENT.token!;
  const others: [what: string, text: string, said: RegExp][] = [
    ["a token", token, /is no join string, .* reverse-http invite prints one$/],
    ["nothing", "", /is no join string/],
    ["a later version's", formatJoin(AGENT).replace("rhttp1", "rhttp2"), /begins with rhttp2, which this version does not know/],
    ["a client's", formatJoin(CLIENT), /^it is for a client; reverse-http invite without --client prints one for agents$/],
    ["an endless one", `rhttp1.${"a".repeat(30_000)}`, /more than 24576 characters/],
  ];
  for (const [what, text, said] of others) {
    it(`is refused if it is ${what}, without a part of it in the message`, () => {
      const problem = joinProblem(text, "agent")!;
      assert.match(problem, said);
      assert.ok(!problem.includes(token.slice(0, 20)) && !problem.includes("aaaaa"));
    });
  }

  it("with content that formatJoin does not write is refused", () => {
    const bad = [{ servers: [] }, { servers: ["[::]x"] }, { role: "proxy" as never }, { agentId: "" }, { tls: "yes" as never }, {
      pin: "abcd",
    }];
    for (const part of bad) {
      assert.match(joinProblem(formatJoin({ ...AGENT, ...part }), "agent")!, /content cannot be read/, JSON.stringify(part));
    }
    assert.throws(() => formatJoin({ ...AGENT, token: "two words" }), RangeError);
  });
});

describe("--join", () => {
  const text = formatJoin({ ...AGENT, agentId: "site7" });
  const names = ["agent-client.server-address", "agent-client.tls.pin-sha256", "auth.type"];

  it("names no file of the machine whose content its author would get", () => {
    for (const token of ["file:/etc/shadow", "env:HOME", "a/b"]) {
      const placeholder = "x".repeat(token.length);
      const text = formatJoin({ ...CLIENT, token: placeholder }).replace(placeholder, token).slice(0, -8);
      const forged = text + createHash("sha256").update(text).digest("base64url").slice(0, 8);
      assert.match(joinProblem(forged, "client")!, /its content cannot be read/, token);
    }
  });

  it("stands for the options of an agent, and of a client", () => {
    assert.deepEqual(settingsOf(agent, ["--join", text], [...names, "auth.jwt.token"]), [
      "proxy.example:4242,[2001:db8::1]:4242 of --join",
      `${PIN} of --join`,
      "jwt of --join",
      `${AGENT.token} of --join`,
    ]);
    const open = formatJoin({ ...AGENT, agentId: "site7", token: undefined });
    assert.deepEqual(settingsOf(agent, ["--join", open], ["auth.type", "auth.noauth.agent-id"]), ["noauth of --join", "site7 of --join"]);
    const env = { REVERSE_HTTP_CLIENT_JOIN: formatJoin({ ...CLIENT, tls: true, isHttp2: true, pin: PIN, token: "abc" }) };
    assert.deepEqual(settingsOf(client, [], ["proxy", "agent-id", "token", "tls.enable", "http2", "tls.pin-sha256"], env), [
      "proxy.example:3128 of REVERSE_HTTP_CLIENT_JOIN",
      "site7 of REVERSE_HTTP_CLIENT_JOIN",
      "abc of REVERSE_HTTP_CLIENT_JOIN",
      "true of REVERSE_HTTP_CLIENT_JOIN",
      "true of REVERSE_HTTP_CLIENT_JOIN",
      `${PIN} of REVERSE_HTTP_CLIENT_JOIN`,
    ]);
  });

  it("comes after flags and variables, and before the configuration file unless the file has it", () => {
    using folder = new Folder();
    const file = folder.write("config.yaml", "auth: {type: noauth}\nagent-client: {server-address: file:1, congestion-control: bbr}\n");
    const env = { REVERSE_HTTP_AGENT_CLIENT_TLS_PIN_SHA256: "bb".repeat(32) };
    const args = [`--config=${file}`, "--join", text, "--agent-client.server-address=flag:1"];
    assert.deepEqual(settingsOf(agent, args, [...names, "agent-client.congestion-control"], env), [
      "flag:1 of --agent-client.server-address",
      `${"bb".repeat(32)} of REVERSE_HTTP_AGENT_CLIENT_TLS_PIN_SHA256`,
      "jwt of --join",
      `bbr of ${file}:2`,
    ]);
    const own = folder.write("own.yaml", `join: ${text}\nagent-client: {server-address: own:1}\n`);
    assert.deepEqual(settingsOf(agent, [`--config=${own}`], names), [`own:1 of ${own}:2`, `${PIN} of ${own}:1`, `jwt of ${own}:1`]);
  });

  it("reads a file", () => {
    using folder = new Folder();
    const file = folder.write("site7.join", `${text}\n`);
    assert.deepEqual(settingsOf(agent, [`--join=file:${file}`], ["auth.type"]), ["jwt of --join"]);
    const wrong = (args: string[], said: RegExp) =>
      assert.throws(() => settingsOf(agent, args, []), (error) => error instanceof ConfigError && said.test(error.message));
    wrong([`--join=file:${file}x`], /^Cannot read --join file:.*: the file does not exist$/);
    folder.write("site7.join", text.slice(0, 100));
    wrong([`--join=file:${file}`], /^Cannot use --join file:.*: it has been cut: 100 of \d+ characters/);
    wrong(["--join", text.slice(0, 100)], /^Cannot use --join: it has been cut/);
  });

  it("stands for the same options in the library", () =>
    withNet(async (net) => {
      const join = formatJoin({ ...CLIENT, servers: ["joined.example:3128"] });
      await assert.rejects(openTunnel({ join, destination: "db:5432" }, { net }), /The proxy joined\.example:3128 cannot be reached/);
      await assert.rejects(
        openTunnel({ join, proxy: "own.example:1", destination: "db:5432" }, { net }),
        /The proxy own\.example:1 cannot/,
      );
      const log = new LogBook();
      const agent = await startAgent({ join: text, agentClient: { congestionControl: "bbr" } }, { net, log });
      assert.deepEqual(log.logged("connecting").map(({ proxy }) => proxy), ["proxy.example:4242,[2001:db8::1]:4242"]);
      await agent.close();
    }));

  it("is the only secret that a client's command line may have", () => {
    const join = formatJoin({ ...CLIENT, token: "abc" });
    assert.deepEqual(settingsOf(client, ["--join", join], ["token"]), ["abc of --join"]);
    assert.throws(() => settingsOf(client, ["--join", join, "--token=abc"], []), /Cannot use --token: other users see the command line/);
  });
});
