// The command invite, and the addresses that it and the proxy's advice name.
import assert from "node:assert/strict";
import { existsSync, readFileSync, statSync } from "node:fs";
import { join } from "node:path";
import { describe, it } from "node:test";
import { decodeJwt } from "jose";
import { inviteCommand } from "../../proxy/invite.ts";
import { proxyOptions } from "../../proxy/options.ts";
import { agentAddresses, clientAddresses } from "../../proxy/public_address.ts";
import { parsePublicKeys } from "../../shared/auth/keys.ts";
import { verifyToken } from "../../shared/auth/token.ts";
import { readCommandLine } from "../../shared/cli/command.ts";
import { withDefaults } from "../../shared/config/defaults.ts";
import { type Invitation, parseJoin } from "../../shared/config/join.ts";
import { makeAuthority } from "../../testing/certificates.ts";
import { Folder } from "../../testing/programs.ts";
import { type FakeTerminal, fakeTerminal } from "../../testing/terminal.ts";
import { makeTokenKey } from "../../testing/tokens.ts";

/** Runs the command in a folder, whose files `--in` and `--auth.jwt.public-key` name. */
async function invite(folder: Folder, args: string[], env: Record<string, string> = {}, terminal = fakeTerminal()): Promise<FakeTerminal> {
  const key = [`--in=${join(folder.path, "private.pem")}`, `--auth.jwt.public-key=${join(folder.path, "public.pem")}`];
  const root = { name: "reverse-http", description: "All.", commands: [inviteCommand(join(folder.path, "state")) as never] };
  const task = readCommandLine({ root, version: "1", family: { proxy: proxyOptions } }, {
    args: ["invite", ...key, ...args],
    env,
    home: undefined,
  });
  assert.equal(task.do, "subcommand");
  const { subcommand, resolved, line } = task as Extract<typeof task, { do: "subcommand" }>;
  await subcommand.run(resolved.values, terminal, line);
  return terminal;
}

const PUBLIC = "--agent-server.public-address=proxy.example:4242";
const role = (terminal: FakeTerminal, role: Invitation["role"]) => parseJoin(terminal.out(), role);

describe("invite", () => {
  it("creates keys and certificate for the first invitation, and uses them for the next", async () => {
    using folder = new Folder();
    const first = await invite(folder, ["--agent-id=site7", PUBLIC]);
    const { servers, pin, token, agentId, tls } = role(first, "agent");
    assert.deepEqual([servers, agentId, tls], [["proxy.example:4242"], "site7", true]);
    const certificate = readFileSync(join(folder.path, "state", "agent-server.pem"), "latin1");
    assert.ok(certificate.includes("BEGIN CERTIFICATE"));
    assert.deepEqual(["private.pem", "public.pem"].map((name) => statSync(join(folder.path, name)).mode & 0o777), [0o600, 0o644]);
    const keys = await parsePublicKeys(readFileSync(join(folder.path, "public.pem"), "utf8"));
    const verified = await verifyToken(token!, keys, { role: "agent", now: Date.now() });
    assert.equal(verified.agentId, "site7");
    assert.ok(Math.abs(verified.expiresAt - Date.now() - 365 * 86_400_000) < 60_000);
    assert.match(
      first.reports.join("\n"),
      /created the certificate .*\ncreated the private key .*\nfor the agent site7 at proxy\.example:4242; /,
    );
    const second = await invite(folder, ["--agent-id=site8", PUBLIC]);
    assert.equal(role(second, "agent").pin, pin);
    assert.doesNotMatch(second.reports.join("\n"), /created/);
    assert.ok(!second.reports.join("\n").includes(token!.slice(0, 30)));
  });

  it("invites a client with the address, the pin and the token of clients", async () => {
    using folder = new Folder();
    const authority = await makeAuthority();
    const { cert } = await authority.issue({ names: ["proxy.example"] });
    const file = folder.write("cert.pem", cert);
    const plain = role(await invite(folder, ["--agent-id=site7", "--client", "--allow=127.0.0.1:22", PUBLIC]), "client");
    assert.deepEqual([plain.servers, plain.tls, plain.pin], [["proxy.example:3128"], false, undefined]);
    const { role: who, allow, exp, iat } = decodeJwt(plain.token!);
    assert.deepEqual([who, allow, exp! - iat!], ["client", ["127.0.0.1:22"], 86_400]);
    const args = [
      "--agent-id=site7",
      "--client",
      "--http-proxy.public-address=lb.example:443",
      "--http-proxy.tls.enable",
      `--http-proxy.tls.file.cert=${file}`,
    ];
    const secured = role(await invite(folder, args), "client");
    assert.deepEqual([secured.servers, secured.tls, secured.pin?.slice(0, 7)], [["lb.example:443"], true, "sha256/"]);
    const shared = role(await invite(folder, [...args, "--http2", "--http-proxy.http2-listen-address=:8443"]), "client");
    assert.deepEqual([shared.servers, shared.tls, shared.isHttp2], [["lb.example:8443"], true, true]);
    await assert.rejects(invite(folder, [...args, "--http2"]), /--http-proxy\.http2-listen-address is not set/);
    await assert.rejects(invite(folder, ["--agent-id=site7", "--http2", PUBLIC]), /it is for --client/);
  });

  it("takes the proxy's configuration, and needs neither certificate nor state on another machine", async () => {
    using folder = new Folder();
    const env = { REVERSE_HTTP_AGENT_SERVER_PUBLIC_ADDRESS: "a.example:1,b.example:2", REVERSE_HTTP_AUTH_TYPE: "noauth" };
    const terminal = await invite(folder, ["--agent-id=site7", `--pin-sha256=${"AB".repeat(32)}`], env);
    assert.deepEqual(role(terminal, "agent"), {
      role: "agent",
      servers: ["a.example:1", "b.example:2"],
      agentId: "site7",
      tls: true,
      pin: "ab".repeat(32),
      token: undefined,
    });
    assert.match(terminal.reports.join("\n"), /warning: it has no token: .*everyone who reaches it can use it/);
    assert.ok(!existsSync(join(folder.path, "private.pem")) && !existsSync(join(folder.path, "state")));
    assert.equal(role(await invite(folder, ["--agent-id=7", "--pin-sha256=system", PUBLIC]), "agent").pin, undefined);
  });

  it("names the domain of the proxy's certificate by ACME, which needs no pin", async () => {
    using folder = new Folder();
    for (const [role, args, server] of [["agent", [], "proxy.example:4242"], ["client", ["--client"], "proxy.example:3128"]] as const) {
      const terminal = await invite(folder, ["--agent-id=7", "--acme.domain=proxy.example", "--http-proxy.tls.enable", ...args]);
      const { servers, pin, tls } = parseJoin(terminal.out(), role);
      assert.deepEqual([servers, pin, tls], [[server], undefined, true]);
    }
    assert.equal(existsSync(join(folder.path, "state")), false);
  });

  it("prints the command and a QR code on a terminal that is wide enough", async () => {
    using folder = new Folder();
    const args = ["--agent-id=site7", PUBLIC];
    const wide = await invite(folder, args, {}, fakeTerminal({ columns: 200 }));
    assert.match(wide.out(), /^reverse-http agent --join rhttp1\.\S+\n\n[█▀▄ \n]+\n$/);
    const narrow = await invite(folder, args, {}, fakeTerminal({ columns: 40 }));
    assert.match(narrow.out(), /^reverse-http agent --join rhttp1\.\S+\n$/);
    assert.match(narrow.reports.join("\n"), /its QR code needs a terminal with \d+ columns/);
    const many = Array.from({ length: 200 }, (_, i) => `host-${i}.example:443`).join();
    const long = await invite(folder, [...args, `--allow=${many}`], {}, fakeTerminal({ columns: 200 }));
    assert.ok(parseJoin(long.out().split(" ").at(-1)!, "agent").token!.length > 3_000);
    assert.match(long.reports.join("\n"), /it is too long for a QR code/);
  });

  it("writes a file that only its owner can read", async () => {
    using folder = new Folder();
    const file = join(folder.path, "site7.join");
    const args = ["--agent-id=site7", PUBLIC, `--out=${file}`];
    assert.equal((await invite(folder, args)).out(), "");
    assert.equal(statSync(file).mode & 0o777, 0o600);
    assert.equal(parseJoin(readFileSync(file, "utf8"), "agent").agentId, "site7");
    await assert.rejects(invite(folder, args), /the file exists; --force replaces it/);
  });

  it("refuses what the proxy would", async () => {
    using folder = new Folder();
    folder.write("public.pem", makeTokenKey().publicPem);
    await assert.rejects(invite(folder, ["--agent-id=7", PUBLIC]), /the private key of .*public\.pem is needed$/);
    folder.write("private.pem", makeTokenKey().privatePem);
    await assert.rejects(invite(folder, ["--agent-id=7", PUBLIC]), /it is not the private key of .*public\.pem$/);
    await assert.rejects(invite(folder, [PUBLIC]), /--agent-id is required/);
    await assert.rejects(invite(folder, ["--agent-id=7", "--agent-server.listen-address=:0"]), /the port changes with every start/);
    await assert.rejects(invite(folder, ["--agent-id=7", "--agent-server.public-address=[::]:1"]), /is the wildcard address/);
  });
});

describe("the address that others are told", () => {
  const options = (given: Parameters<typeof withDefaults<typeof proxyOptions>>[1]) => withDefaults(proxyOptions, given);
  const list = (addresses: string[]) => ({ list: () => addresses });

  it("is the configured one, also for clients", () => {
    const named = options({ agentServer: { publicAddress: ["proxy.example:443"] } });
    assert.deepEqual(agentAddresses(named), { addresses: ["proxy.example:443"] });
    assert.deepEqual(clientAddresses(named), { addresses: ["proxy.example:3128"] });
    assert.deepEqual(clientAddresses(options({ httpProxy: { publicAddress: "lb.example:80" } })), { addresses: ["lb.example:80"] });
  });

  it("is the one that is listened on, with a doubt if that is loopback", () => {
    assert.deepEqual(agentAddresses(options({ agentServer: { listenAddress: "192.0.2.1:1" } })).doubt, undefined);
    const { addresses, doubt } = clientAddresses(options({ httpProxy: { listenAddress: "127.0.0.1:3128" } }));
    assert.deepEqual([addresses, doubt], [["127.0.0.1:3128"], "127.0.0.1:3128 is reached from this machine alone"]);
  });

  it("is else a guess, which is said: the address that most machines reach", () => {
    const rows: [string[], string][] = [
      [["10.0.0.1", "192.0.2.55", "8.8.8.8"], "8.8.8.8:4242"],
      [["fe80::1", "fd00::1", "10.0.0.1"], "10.0.0.1:4242"],
      [["fe80::1", "2a00::5"], "[2a00::5]:4242"],
      [[], "127.0.0.1:4242"],
    ];
    for (const [addresses, wanted] of rows) {
      const found = agentAddresses(options({}), list(addresses));
      assert.equal(found.addresses.join(), wanted);
      assert.match(found.doubt!, /is a guess, .*--agent-server\.public-address says how others reach it|has no other address/);
    }
  });
});
