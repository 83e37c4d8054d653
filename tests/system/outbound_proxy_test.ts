// Agents behind outbound proxies, with the compiled executables, Squid and microsocks.
import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import process from "node:process";
import { describe, it } from "node:test";
import { freeAddress } from "../../testing/nginx.ts";
import { Microsocks, Squid, USER, USER_IN_URL } from "../../testing/outbound_proxies.ts";
import { AGENT, AGENT_ID, type LogEntry, type Program, runToEnd, Site } from "../../testing/programs.ts";
import { ask, openTunnel, Origin, type Wire } from "../../testing/sockets.ts";
import { pinOf } from "../../testing/certificates.ts";
import { check } from "../../testing/load.ts";
import { readFileSync } from "node:fs";

const onLinux = { skip: process.platform === "linux" ? false : "Squid's helpers are where Debian has them", timeout: 60_000 };
const PATH = "/usr/bin:/bin";

async function echo(wire: Wire): Promise<void> {
  for (let data; (data = await wire.next()) !== null;) await wire.write(data);
  wire.finish();
}

/** A proxy whose agents reach it over TCP only: nothing answers at their UDP port. */
class Network implements AsyncDisposable {
  private constructor(readonly site: Site, readonly tcp: string, readonly clients: string, readonly origin: Origin, readonly pin: string) {}

  static async start(): Promise<Network> {
    const site = await Site.create();
    const { proxy, addresses } = await site.startProxy([`--agent-server.tcp-listen-address=${await freeAddress()}`]);
    const { agentsTcp } = await proxy.waitFor("listening");
    const pin = pinOf(readFileSync(site.files.cert, "utf8"));
    return new Network(site, String(agentsTcp), addresses.clients, await Origin.start(echo), pin);
  }

  get port(): string {
    return this.tcp.split(":")[1]!;
  }

  /** @param host name or address of the proxy, as the agent is told */
  startAgent(args: readonly string[], { host = "127.0.0.1", env = {} }: { host?: string; env?: Record<string, string> } = {}): Program {
    const given = [
      `--agent-client.server-address=${host}:${this.port}`,
      `--agent-client.tls.pin-sha256=${this.pin}`,
      `--auth.noauth.agent-id=${AGENT_ID}`,
      "--log.format=json",
      `--state-dir=${this.site.folder.path}/state`,
    ];
    return this.site.start(AGENT, [...given, ...args], { env: { PATH, HOME: "/nonexistent", ...env } });
  }

  async checkTunnel(): Promise<void> {
    using tunnel = await openTunnel(this.clients, this.origin.authority);
    await check(tunnel);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.site[Symbol.asyncDispose]();
    await this.origin[Symbol.asyncDispose]();
  }
}

function fieldsOf({ proxy, link, via }: LogEntry): unknown[] {
  return [proxy, link, via];
}

describe("an agent behind an outbound proxy", onLinux, () => {
  for (const schemes of [[], ["basic"], ["digest"], ["digest", "basic"], ["ntlm", "basic"]] as const) {
    it(`passes Squid that asks for ${schemes.join(" or ") || "nothing"}`, async () => {
      await using network = await Network.start();
      await using squid = await Squid.start(schemes);
      const url = `http://${schemes.length > 0 ? `${USER_IN_URL}@` : ""}${squid.address}`;
      const agent = network.startAgent([`--agent-client.proxy=${url}`, "--admin.listen-address=127.0.0.1:0"]);
      assert.deepEqual(fieldsOf(await agent.waitFor("connected")), [network.tcp, "tls", squid.address]);
      await network.checkTunnel();
      const { admin } = await agent.waitFor("listening");
      const [report] = JSON.parse((await ask(String(admin), "GET /agents HTTP/1.1\r\nHost: a\r\n\r\n")).body);
      assert.equal(report.via, squid.address);
      assert.ok(!agent.said.includes(USER.password));
    });
  }

  it("passes SOCKS 5 with a password, which resolves the proxy's name", async () => {
    await using network = await Network.start();
    await using socks = await Microsocks.start();
    const agent = network.startAgent([`--agent-client.proxy=socks5://${USER_IN_URL}@${socks.address}`], { host: "localhost" });
    assert.deepEqual(fieldsOf(await agent.waitFor("connected")), [`localhost:${network.port}`, "tls", socks.address]);
    await network.checkTunnel();
  });

  it("finds it in the environment, where only that proxy can resolve the name", async () => {
    await using network = await Network.start();
    await using squid = await Squid.start(["basic"], ["proxy.test"]);
    const env = { https_proxy: `http://${USER_IN_URL}@${squid.address}`, NO_PROXY: `proxy.test:1, 10.0.0.0/8` };
    const agent = network.startAgent([], { host: "proxy.test", env });
    assert.deepEqual(fieldsOf(await agent.waitFor("connected")), [`proxy.test:${network.port}`, "tls", squid.address]);
    await network.checkTunnel();
  });

  it("shows no password in its configuration", async () => {
    const { stdout } = await runToEnd(AGENT, [`--agent-client.proxy=http://${USER_IN_URL}@127.0.0.1:1`, "--print-config"]);
    assert.match(stdout, /--agent-client\.proxy=\*{6} /);
  });

  it("leaves it out for loopback, NO_PROXY and none", async () => {
    await using network = await Network.start();
    const dead = await freeAddress();
    for (
      const [args, env] of [
        [[], { HTTPS_PROXY: `http://${dead}` }], // 127.0.0.1 is loopback
        [["--agent-client.proxy=none"], { HTTPS_PROXY: `http://${dead}` }],
      ] as const
    ) {
      const agent = network.startAgent([...args, "--agent-client.transport=tls"], { env });
      assert.deepEqual(fieldsOf(await agent.waitFor("connected")), [network.tcp, "tls", undefined]);
      await agent.stop();
    }
  });

  it("reads its URL from a file at every connect", async () => {
    await using network = await Network.start();
    await using squid = await Squid.start(["digest"]);
    const file = network.site.folder.write("proxy-url", `http://alice:wrong-password@${squid.address}\n`);
    const agent = network.startAgent([`--agent-client.proxy=file:${file}`, "--agent-client.transport=tls"]);
    const { reason } = await agent.waitFor("not connected");
    assert.equal(
      reason,
      `Cannot connect to ${network.tcp} via proxy ${squid.address}: the proxy answers 407 Proxy Authentication Required and offers Digest: ` +
        "it rejects the user name or the password; is --agent-client.proxy right, or HTTPS_PROXY?",
    );
    network.site.folder.write("proxy-url", `http://${USER_IN_URL}@${squid.address}\n`);
    await agent.waitFor("connected");
    await network.checkTunnel();
  });

  it("names a dead proxy, and what others offer", async () => {
    await using network = await Network.start();
    await using squid = await Squid.start(["ntlm"]);
    await using socks = await Microsocks.start();
    const dead = await freeAddress();
    for (
      const [url, why] of [
        [`http://${dead}`, `via proxy ${dead}: Connection refused`],
        [`socks5://${dead}`, `via proxy ${dead}: Connection refused`],
        [`http://${USER_IN_URL}@${squid.address}`, "offers NTLM: only Basic and Digest (MD5 or SHA-256, qop=auth) are supported"],
        [`http://${socks.address}`, `via proxy ${socks.address}: the proxy does not answer in HTTP`],
        [`socks5://${socks.address}`, "the proxy needs a user name and a password"],
        ["http://proxy.invalid:3128", "via proxy proxy.invalid:3128: "],
      ]
    ) {
      const auto = network.startAgent([`--agent-client.proxy=${url}`]);
      const { reason } = await auto.waitFor("the proxy cannot be reached over TLS");
      assert.ok(String(reason).includes(why!), String(reason));
      const tls = network.startAgent([`--agent-client.proxy=${url}`, "--agent-client.transport=tls"]);
      const failure = String((await tls.waitFor("not connected")).reason);
      assert.ok(failure.includes(why!) && failure.includes("--agent-client.proxy"), failure);
      await Promise.all([auto.stop(), tls.stop()]);
    }
  });

  it("shows with --check-link what the proxy offers and lets through", async () => {
    await using network = await Network.start();
    await using squid = await Squid.start(["digest", "basic"], ["proxy.test"]);
    await using socks = await Microsocks.start();
    const dead = await freeAddress();
    const checkLink = (url: string) =>
      runToEnd(AGENT, [
        "--check-link",
        `--agent-client.server-address=proxy.test:${network.port}`,
        `--agent-client.tls.file.root-ca=${network.site.files.ca}`,
        "--agent-client.tls.insecure-skip-verify",
        `--auth.noauth.agent-id=${AGENT_ID}`,
        `--agent-client.proxy=${url}`,
      ]);
    const cases: [url: string, exitCode: number, ...rows: RegExp[]][] = [
      [
        `http://${USER_IN_URL}@${squid.address}`,
        0,
        /^name +proxy\.test +note /m,
        new RegExp(`^outbound proxy +${squid.address} +ok +reachable; it offers Digest, Basic$`, "m"),
        new RegExp(`^TLS \\(TCP\\) +proxy\\.test:${network.port} +ok +handshake in .* ms via ${squid.address};`, "m"),
        /^credentials .* ok /m,
      ],
      [
        `http://alice:wrong-password@${squid.address}`,
        1,
        /^TLS \(TCP\) .* failed .*it rejects the user name or the password$/m,
        /^port 443 \(TCP\) .* note .*it rejects the user name or the password$/m,
      ],
      [`socks5://${socks.address}`, 1, /^outbound proxy .* ok +reachable; it asks for (another method|a user name and a password)$/m],
      [`http://${dead}`, 1, /^outbound proxy .* failed .*Connection refused/m, /Remedy: correct --agent-client\.proxy/],
      [`http://${socks.address}`, 1, /^outbound proxy .* failed +The outbound proxy /m],
    ];
    for (const [url, exitCode, ...rows] of cases) {
      const ended = await checkLink(url);
      assert.equal(ended.exitCode, exitCode, ended.stdout + ended.stderr);
      for (const row of rows) assert.match(ended.stdout, row);
      assert.doesNotMatch(ended.stdout, /wrong-password|p%40ss|p@ss/);
    }
  });

  it("keeps bytes, ends and resets whole", async () => {
    await using network = await Network.start();
    await using squid = await Squid.start(["digest"]);
    const sums: string[] = [];
    await using counting = await Origin.start(async (wire) => {
      const hash = createHash("sha256");
      for (let data; (data = await wire.next()) !== null;) hash.update(data);
      await wire.write(new TextEncoder().encode(hash.digest("hex"))); // after the client's end
      wire.finish();
    });
    await using resetting = await Origin.start(async (wire) => {
      await wire.next();
      wire.reset();
    });
    const agent = network.startAgent([`--agent-client.proxy=http://${USER_IN_URL}@${squid.address}`]);
    await agent.waitFor("connected");
    const data = new Uint8Array(20_000_000).map((_, i) => i * 31 + (i >> 8));
    using tunnel = await openTunnel(network.clients, counting.authority);
    const sending = tunnel.write(data).then(() => tunnel.finish());
    for (let part; (part = await tunnel.next()) !== null;) sums.push(new TextDecoder().decode(part));
    await sending;
    assert.equal(sums.join(""), createHash("sha256").update(data).digest("hex"));
    using cut = await openTunnel(network.clients, resetting.authority);
    await cut.write(data.subarray(0, 10));
    await assert.rejects(async () => {
      while (await cut.next() !== null);
    });
  });

  for (
    const [args, env, message] of [
      [
        ["--agent-client.proxy=http://al:ice:s3cr3t-pass@h:99999"],
        {},
        /Cannot use --agent-client.proxy: "http:\/\/\*\*\*@h:99999" is not a URL/,
      ],
      [["--agent-client.proxy=ftp://alice:s3cr3t-pass@h"], {}, /"ftp:\/\/\*\*\*@h" is neither an http: nor a socks5: URL/],
      [["--agent-client.proxy=http://h", "--agent-client.transport=quic"], {}, /--agent-client.transport=quic connects without it/],
      [["--agent-client.proxy=file:/no-such-file"], {}, /Cannot read --agent-client.proxy file:\/no-such-file: the file does not exist/],
      [[], { HTTPS_PROXY: "https://alice:s3cr3t-pass@h" }, /Cannot use HTTPS_PROXY: "https:\/\/\*\*\*@h" is neither/],
    ] as const
  ) {
    it(`exits with 2 for ${JSON.stringify(args.join(" ") || env)}`, async () => {
      const { exitCode, stderr } = await runToEnd(AGENT, ["--auth.noauth.agent-id=1", ...args], { env: { PATH, ...env } });
      assert.equal(exitCode, 2);
      assert.match(stderr, message);
      assert.ok(!stderr.includes("s3cr3t"), stderr);
    });
  }
});
