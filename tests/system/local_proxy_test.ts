// The command socks, compiled: real clients without credentials reach two agents through one local proxy, which has the token.
import assert from "node:assert/strict";
import { after, before, describe, it } from "node:test";
import { ClientCommand } from "../../testing/client_command.ts";
import { type Program, REVERSE_HTTP, runToEnd, Site } from "../../testing/programs.ts";
import { freePort } from "../../testing/store_servers.ts";
import { makeTokenKey } from "../../testing/tokens.ts";
import { PAGE, Web } from "../../testing/web.ts";

let site: Site;
let web: Web;
let proxy: Program;
let local: ClientCommand;
/** Where the local proxy listens. */
let address: string;

before(async () => {
  site = await Site.create();
  const key = makeTokenKey();
  const started = await site.startProxy(["--auth.type=jwt", `--auth.jwt.public-key=${site.folder.write("public.pem", key.publicPem)}`]);
  proxy = started.proxy;
  for (const agentId of ["site7", "site8"]) {
    await site.startAgent(started.addresses, ["--auth.type=jwt", `--auth.jwt.token=${await key.sign({ role: "agent", agentId })}`]);
  }
  const token = site.folder.write("token", await key.sign({ agentId: undefined, agents: ["site*"] }));
  web = await Web.start({ folder: site.folder.path });
  const map = ["--map=127.0.0.1=site7", "--map=localhost=site8", "--agent-suffix=.rhttp"];
  local = await ClientCommand.start(["socks", `--proxy=${started.addresses.clients}`, `--token=file:${token}`, ...map, "0"]);
  address = local.addresses[0]!;
});

after(async () => {
  await local?.[Symbol.asyncDispose]();
  await web?.[Symbol.asyncDispose]();
  await site?.[Symbol.asyncDispose]();
});

async function curl(...args: string[]): Promise<string> {
  const { exitCode, stdout, stderr } = await runToEnd("curl", ["-sSf", ...args], { env: { PATH: "/usr/bin:/bin", HOME: "/nonexistent" } });
  assert.equal(exitCode, 0, stderr);
  return stdout;
}

describe("socks", () => {
  it("brings curl to two agents at once, over SOCKS and HTTP, in tunnels and as plain requests", async () => {
    const { port } = web;
    const forms = [["-x", `socks5h://${address}`], ["-x", `http://${address}`], ["-p", "-x", `http://${address}`]];
    const hosts = ["127.0.0.1", "localhost", "127.0.0.1.site8.rhttp", "site7.rhttp"];
    const pages = await Promise.all(forms.flatMap((form) => hosts.map((host) => curl(...form, `http://${host}:${port}/`))));
    assert.ok(pages.every((page) => page === PAGE));
    for (const [agent, destination] of [["site7", "127.0.0.1"], ["site8", "localhost"], ["site8", "127.0.0.1"], ["site7", "localhost"]]) {
      await proxy.waitFor("request", { method: "CONNECT", agent, destination: `${destination}:${port}`, status: 200 }, forms.length);
    }
  });

  it("tells curl and its own user why there is no tunnel", async () => {
    const closed = await freePort();
    const refused = await runToEnd("curl", ["-sS", "-p", "-x", `http://${address}`, `http://127.0.0.1:${closed}/`]);
    assert.match(refused.stderr, /response 502/);
    const denied = await runToEnd("curl", ["-sS", "-x", `socks5h://${address}`, `http://127.0.0.1.other.rhttp:${closed}/`]);
    assert.equal(denied.exitCode, 97);
    await local.says(`127.0.0.1:${closed} refused the connection (502, connection_refused, request `);
    await local.says("the agent id as user name (407, http_request_denied, request ");
  });

  it("ends at once with an address in use, and with options that cannot be meant", async () => {
    const rows: [args: string[], code: number, said: RegExp][] = [
      [["--proxy=a:1", address], 1, /Cannot listen on 127\.0\.0\.1:\d+: /],
      [["--proxy=a:1", "--map=*.corp"], 2, /Cannot use --map: "\*\.corp" is not PATTERN=AGENT/],
      [["--proxy=a:1", "--agent-suffix=rhttp"], 2, /Cannot use --agent-suffix: /],
      [[], 2, /--proxy is required/],
      [["--proxy=a:1", "1", "2"], 2, /unknown argument/],
    ];
    for (const [args, code, said] of rows) {
      const { exitCode, stdout, stderr } = await runToEnd(REVERSE_HTTP, ["socks", ...args]);
      assert.match(stderr, said);
      assert.deepEqual([exitCode, stdout], [code, ""]);
    }
  });

  it("warns at its start of an address that others reach, and of a proxy that is not there, and ends with 0 at a signal", async () => {
    await using open = await ClientCommand.start(["socks", "--proxy=127.0.0.1:1", "0.0.0.0:0"]);
    await open.says(`anyone who can reach ${open.addresses[0]} uses your credentials`);
    await open.says("The proxy 127.0.0.1:1 cannot be reached");
    assert.equal(await open.stop(), 0);
  });
});
