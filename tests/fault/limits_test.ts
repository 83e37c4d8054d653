// Every limit of the compiled executables: excess is refused, counted and logged once, and the rest is served.
import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { readdirSync, readFileSync, readlinkSync } from "node:fs";
import process from "node:process";
import { describe, it } from "node:test";
import { AGENT, AGENT_ID, LB, openDescriptors, Pair, type Program, PROXY, Site, storeArgs } from "../../testing/programs.ts";
import { type Answer, ask, assertRefused, connectHead, credentials, dial, openTunnel, Origin, type Wire } from "../../testing/sockets.ts";
import { StoreServer } from "../../testing/store_servers.ts";
import { makeTokenKey } from "../../testing/tokens.ts";

const SERVED = "--admin.listen-address=:0";
const NOBODY_EXEMPT = "--limits.exempt-addresses=none";
const onLinux = { skip: process.platform === "linux" ? false : "only Linux has all of 127.0.0.0/8, and shows what a process takes" };

/** The number of rejections by a limit. */
async function hits(program: Program, limit: string): Promise<number> {
  const { admin } = await program.waitFor("listening");
  const { body } = await ask(String(admin), "GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n");
  const line = body.split("\n").find((line) => line.startsWith(`reverse_http_limit_rejections_total{limit="${limit}"}`));
  return Number(line?.split(" ")[1] ?? 0);
}

function assertLimited(answer: Answer): void {
  assertRefused(answer, 503, "connection_limit_reached");
  assert.match(answer.fields["retry-after"] ?? "", /^[1-9][0-9]*$/);
}

/** Opens a tunnel, repeatedly until it is accepted: the end of an earlier one may still be under way. */
async function untilTunnel(clients: string, authority: string, id?: string): Promise<Wire> {
  for (;;) {
    const wire = await openTunnel(clients, authority, { id }).catch(() => undefined);
    if (wire) return wire;
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
}

/** The target of a link, or an empty text if it has gone. */
function linkOf(path: string): string {
  try {
    return readlinkSync(path);
  } catch {
    return "";
  }
}

describe("the limit on", () => {
  for (
    const [limit, others] of [
      ["connections", []],
      ["tunnels", []],
      ["tunnels-per-agent", ["4712"]],
      ["tunnels-per-client", ["4712"]],
    ] as [string, string[]][]
  ) {
    it(`${limit} refuses one more, ${others.length > 0 ? "does not affect other agents, " : ""}and accepts the next when one has ended`, async () => {
      await using pair = await Pair.start({ proxy: [`--limits.${limit}=2`, SERVED] });
      await using origin = await Origin.start();
      const { clients } = pair.addresses;
      using first = await openTunnel(clients, origin.authority);
      using _second = await openTunnel(clients, origin.authority);
      for (let i = 0; i < 5; i++) assertLimited(await ask(clients, connectHead(origin.authority)));
      const other = others[0];
      if (other !== undefined) {
        await pair.site.startAgent(pair.addresses, [], other);
        using _other = await openTunnel(clients, origin.authority, { id: other });
      }
      assert.equal(await hits(pair.proxy, limit), 5);
      await pair.proxy.waitFor("limit reached", { limit });
      assert.equal(pair.proxy.logged("limit reached", { limit }).length, 1);
      assert.equal(pair.proxy.logged("request", { status: 503 }).length, 0);
      first.reset();
      using _third = await untilTunnel(clients, origin.authority);
    });
  }

  it("connections of one address counts only that address", onLinux, async () => {
    await using pair = await Pair.start({ proxy: ["--limits.connections-per-address=1", NOBODY_EXEMPT, SERVED] });
    await using origin = await Origin.start();
    const { clients } = pair.addresses;
    using _tunnel = await openTunnel(clients, origin.authority);
    assertLimited(await ask(clients, connectHead(origin.authority)));
    assertRefused(await ask(clients, connectHead("127.0.0.1:1"), "127.0.0.2"), 502, "connection_refused");
    assert.equal(await hits(pair.proxy, "connections-per-address"), 1);
  });

  it("connections applies to a load balancer too", async () => {
    await using cache = await StoreServer.start("memcached");
    await using site = await Site.create();
    await using origin = await Origin.start();
    const { addresses } = await site.startProxy(storeArgs(cache));
    const { lb, clients } = await site.startLb(cache, ["--limits.connections=1", SERVED]);
    await site.startAgent(addresses);
    using _tunnel = await untilTunnel(clients, origin.authority);
    assertLimited(await ask(clients, connectHead(origin.authority)));
    assert.equal(await hits(lb, "connections"), 1);
  });

  for (const [limit, args] of [["tunnel-rate-per-client", []], ["tunnel-rate-per-address", [NOBODY_EXEMPT]]] as [string, string[]][]) {
    it(`${limit} allows a burst and tells the rest to retry`, onLinux, async () => {
      await using pair = await Pair.start({ proxy: [`--limits.${limit}=1`, "--limits.tunnel-burst=60s", ...args, SERVED] });
      const { clients } = pair.addresses;
      const answers: Answer[] = [];
      for (let i = 0; i < 80; i++) answers.push(await ask(clients, connectHead("127.0.0.1:1")));
      for (const answer of answers.slice(0, 60)) assertRefused(answer, 502, "connection_refused");
      const limited = answers.filter(({ status }) => status === 503);
      for (const answer of limited) assertLimited(answer);
      assert.ok(limited.length > 0);
      assert.equal(await hits(pair.proxy, limit), limited.length);
      // others have a bucket of their own
      assertRefused(await ask(clients, connectHead("127.0.0.1:1", "4712"), "127.0.0.2"), 502, "destination_unavailable");
    });
  }

  it("failed authentications locks the address out, even with right credentials, and no other address", onLinux, async () => {
    await using site = await Site.create();
    const key = makeTokenKey();
    const { proxy, addresses: { clients } } = await site.startProxy([
      "--auth.type=jwt",
      `--auth.jwt.public-key=${site.folder.write("public.pem", key.publicPem)}`,
      "--limits.auth-failures=3",
      NOBODY_EXEMPT,
      SERVED,
    ]);
    const password = await key.sign();
    const head = (with_: string) => connectHead("127.0.0.1:1", AGENT_ID, with_);
    // who shows none, as many clients first do, has not failed
    for (let i = 0; i < 10; i++) assertRefused(await ask(clients, "CONNECT a:1 HTTP/1.1\r\n\r\n"), 407, "http_request_denied");
    const answers = [];
    for (let i = 0; i < 8; i++) answers.push(await ask(clients, head(`wrong ${i}`)));
    const locked = answers.findIndex(({ status }) => status === 503);
    assert.ok(locked >= 4, JSON.stringify(answers.map(({ status }) => status)));
    assertLimited(answers[locked]!);
    assertRefused(await ask(clients, head(password), "127.0.0.2"), 502, "destination_unavailable");
    await proxy.waitFor("limit reached", { limit: "auth-failures", address: "127.0.0.1" });
    assert.ok(await hits(proxy, "auth-failures") > 0);
    // and it ends
    let answer = await ask(clients, head(password));
    while (answer.status === 503) {
      await new Promise((resolve) => setTimeout(resolve, 200));
      answer = await ask(clients, head(password));
    }
    assertRefused(answer, 502, "destination_unavailable");
  });

  it(
    "failed authentications locks out an address that guesses, even with successes in between, but not one that repeats one wrong password",
    onLinux,
    async () => {
      await using site = await Site.create();
      const key = makeTokenKey();
      const { addresses: { clients } } = await site.startProxy([
        "--auth.type=jwt",
        `--auth.jwt.public-key=${site.folder.write("public.pem", key.publicPem)}`,
        NOBODY_EXEMPT,
      ]);
      const password = await key.sign();
      const head = (with_: string) => connectHead("127.0.0.1:1", AGENT_ID, with_);
      for (let i = 0; i < 100; i++) assertRefused(await ask(clients, head("wrong-0000")), 407, "http_request_denied");
      assertRefused(await ask(clients, head(password)), 502, "destination_unavailable");
      const statuses: number[] = [];
      for (let i = 0; i < 50; i++) {
        statuses.push((await ask(clients, head(`guess ${i}`), "127.0.0.2")).status);
        await ask(clients, head(password), "127.0.0.2");
      }
      assert.ok(statuses.filter((status) => status === 407).length <= 13, statuses.join());
      assertRefused(await ask(clients, head(password)), 502, "destination_unavailable");
    },
  );

  it("failed authentications of agents locks their address out", onLinux, async () => {
    await using site = await Site.create();
    const key = makeTokenKey();
    const { proxy, addresses } = await site.startProxy([
      "--auth.type=jwt",
      `--auth.jwt.public-key=${site.folder.write("public.pem", key.publicPem)}`,
      "--limits.auth-failures=1",
      NOBODY_EXEMPT,
    ]);
    const args = site.agentArgs(addresses).filter((arg) => !arg.startsWith("--auth."));
    const stranger = makeTokenKey();
    const others = [];
    for (const agentId of ["1", "2", "3", "4"]) {
      const wrong = await stranger.sign({ role: "agent", agentId });
      others.push(site.start(AGENT, [...args, "--auth.type=jwt", `--auth.jwt.token=${wrong}`]));
    }
    await proxy.waitFor("limit reached", { limit: "auth-failures", address: "127.0.0.1" });
    for (const other of others) await other[Symbol.asyncDispose]();
    const right = site.start(AGENT, [...args, "--auth.type=jwt", `--auth.jwt.token=${await key.sign({ role: "agent" })}`]);
    await right.waitFor("connected"); // once it is over
  });

  it("agents refuses one more, which is accepted when another has gone", async () => {
    await using site = await Site.create();
    const { proxy, addresses } = await site.startProxy(["--limits.agents=1", SERVED]);
    const first = await site.startAgent(addresses);
    const second = site.start(AGENT, site.agentArgs(addresses, "4712"));
    const { reason } = await second.waitFor("not connected");
    assert.match(String(reason), /503 There are too many connections; retrying/);
    assert.ok(await hits(proxy, "agents") >= 1);
    await first.stop();
    await second.waitFor("connected");
  });

  it("agents of one address counts only that address", async () => {
    await using site = await Site.create();
    const { proxy, addresses } = await site.startProxy(["--limits.agents-per-address=1", NOBODY_EXEMPT]);
    await site.startAgent(addresses);
    await site.start(AGENT, site.agentArgs(addresses, "4712")).waitFor("not connected");
    await proxy.waitFor("limit reached", { limit: "agents-per-address", address: "127.0.0.1" });
  });

  it("tunnels of an agent is reported to the client", async () => {
    await using pair = await Pair.start({ agent: ["--limits.tunnels=1", SERVED] });
    await using origin = await Origin.start();
    const { clients } = pair.addresses;
    using first = await openTunnel(clients, origin.authority);
    assertLimited(await ask(clients, connectHead(origin.authority)));
    assert.equal(await hits(pair.agent, "tunnels"), 1);
    first.reset();
    using _second = await untilTunnel(clients, origin.authority);
  });

  it("memory refuses new tunnels, and keeps open ones", onLinux, async () => {
    await using pair = await Pair.start({ proxy: ["--limits.memory-watermark=1MiB", SERVED] });
    await using origin = await Origin.start();
    const { clients } = pair.addresses;
    const wires: Wire[] = [];
    try {
      for (let i = 0; i < 16; i++) wires.push(await openTunnel(clients, origin.authority));
      assertLimited(await ask(clients, connectHead(origin.authority)));
      await pair.proxy.waitFor("limit reached", { limit: "memory", maxBytes: 1 << 20 });
      const server = await origin.accept();
      await wires[0]!.write("still");
      assert.equal((await server.read(5)).toString(), "still");
    } finally {
      for (const wire of wires) wire[Symbol.dispose]();
    }
  });

  it("pending requests refuses the oldest, so that complete ones are served", async () => {
    await using pair = await Pair.start({ proxy: ["--limits.pending-requests=10", SERVED] });
    await using origin = await Origin.start();
    const { clients } = pair.addresses;
    const slow: Wire[] = [];
    try {
      for (let i = 0; i < 11; i++) {
        const wire = await dial(clients);
        await wire.write("CONNECT ");
        slow.push(wire);
      }
      assert.match((await slow[0]!.readAll()).toString(), /^HTTP\/1\.1 503 /);
      assert.ok(await hits(pair.proxy, "pending-requests") >= 1);
      using _tunnel = await openTunnel(clients, origin.authority);
    } finally {
      for (const wire of slow) wire[Symbol.dispose]();
    }
  });
});

describe("the limit on pending requests of one address", () => {
  it("refuses the oldest of that address, and none of others", onLinux, async () => {
    await using pair = await Pair.start({ proxy: ["--limits.pending-requests-per-address=5", NOBODY_EXEMPT, SERVED] });
    await using origin = await Origin.start();
    const { clients } = pair.addresses;
    const slow: Wire[] = [];
    try {
      using other = await dial(clients, undefined, "127.0.0.2");
      await other.write("CONNECT ");
      for (let i = 0; i < 6; i++) {
        const wire = await dial(clients);
        await wire.write("CONNECT ");
        slow.push(wire);
      }
      assert.match((await slow[0]!.readAll()).toString(), /^HTTP\/1\.1 503 /);
      assert.equal(await hits(pair.proxy, "pending-requests-per-address"), 1);
      await pair.proxy.waitFor("limit reached", { limit: "pending-requests-per-address", max: 5 });
      await other.write(connectHead(origin.authority).slice("CONNECT ".length));
      assert.match(await other.readUntil("\r\n\r\n"), /^HTTP\/1\.1 200 /);
    } finally {
      for (const wire of slow) wire[Symbol.dispose]();
    }
  });
});

describe("a bandwidth", () => {
  const [KIB, MIB] = [1 << 10, 1 << 20];
  /** So much goes at once. */
  const BURST = 0.25;

  /** Sends through a tunnel from its far end, and tells when all has come. */
  async function download(clients: string, bytes: number, id?: string): Promise<void> {
    await using origin = await Origin.start();
    using client = await openTunnel(clients, origin.authority, { id });
    using server = await origin.accept();
    server.finish(new Uint8Array(bytes));
    assert.equal((await client.readAll()).length, bytes);
  }

  it("of a client is shared by its tunnels, and not with other clients", async () => {
    await using pair = await Pair.start({ proxy: ["--limits.bandwidth-per-client=1MiB"] });
    await pair.site.startAgent(pair.addresses, [], "4712");
    const { clients } = pair.addresses;
    const order: string[] = [];
    const start = performance.now();
    const shared = [1, 2].map(() => download(clients, MIB).then(() => order.push("shared")));
    const other = download(clients, MIB / 2, "4712").then(() => order.push("other"));
    await Promise.all([...shared, other]);
    const ms = performance.now() - start;
    assert.deepEqual(order, ["other", "shared", "shared"]);
    assert.ok(ms >= (2 - BURST) * 1_000, `${ms} ms`);
  });

  for (const [part, option] of [["proxy", "bandwidth-per-tunnel"], ["proxy", "bandwidth-per-agent"], ["agent", "bandwidth"]] as const) {
    it(`of the ${part} by --limits.${option} applies to both directions together`, async () => {
      await using pair = await Pair.start({ [part]: [`--limits.${option}=512KiB`] });
      await using origin = await Origin.start();
      using client = await openTunnel(pair.addresses.clients, origin.authority);
      using server = await origin.accept();
      const start = performance.now();
      client.finish(new Uint8Array(256 * KIB));
      server.finish(new Uint8Array(256 * KIB));
      assert.deepEqual([(await client.readAll()).length, (await server.readAll()).length], [256 * KIB, 256 * KIB]);
      const ms = performance.now() - start;
      assert.ok(ms >= (1 - BURST) * 1_000, `${ms} ms`);
    });
  }

  it("applies to plain HTTP requests", async () => {
    await using pair = await Pair.start({ proxy: ["--limits.bandwidth-per-client=512KiB"] });
    await using origin = await Origin.start(async (wire) => {
      await wire.readUntil("\r\n\r\n");
      wire.finish(`HTTP/1.1 200 OK\r\nContent-Length: ${512 * KIB}\r\n\r\n${"x".repeat(512 * KIB)}`);
    });
    const start = performance.now();
    const answer = await ask(pair.addresses.clients, `GET http://${origin.authority}/ HTTP/1.1\r\n${credentials()}\r\n`);
    assert.deepEqual([answer.status, answer.body.length], [200, 512 * KIB]);
    const ms = performance.now() - start;
    assert.ok(ms >= (1 - BURST) * 1_000, `${ms} ms`);
  });
});

describe("the duration of a tunnel", () => {
  for (const part of ["proxy", "agent"] as const) {
    for (
      const [option, reason] of [["tunnel-max-duration", /maximum duration/], [
        "tunnel-idle-timeout",
        /No data was relayed for 1000 ms/,
      ]] as const
    ) {
      it(`ends with a reset at both ends after --limits.${option} of the ${part}`, async () => {
        await using pair = await Pair.start({ [part]: [`--limits.${option}=1s`, SERVED] });
        await using origin = await Origin.start();
        using client = await openTunnel(pair.addresses.clients, origin.authority);
        using server = await origin.accept();
        assert.deepEqual([await client.ending(), await server.ending()], ["ECONNRESET", "ECONNRESET"]);
        const entry = await pair[part].waitFor(part === "proxy" ? "request" : "tunnel", { status: 200 });
        assert.match(String(entry.reason), reason);
        assert.equal(await hits(pair[part], option), 1);
      });
    }
  }

  for (const [option, status] of [["tunnel-max-duration", 503], ["tunnel-idle-timeout", 504]] as const) {
    it(`ends a plain HTTP request without a response with ${status} after --limits.${option}`, async () => {
      await using pair = await Pair.start({ proxy: [`--limits.${option}=1s`, SERVED] });
      await using origin = await Origin.start();
      const answer = await ask(pair.addresses.clients, `GET http://${origin.authority}/ HTTP/1.1\r\n${credentials()}\r\n`);
      assert.equal(answer.status, status);
      assert.equal(await hits(pair.proxy, option), 1);
    });
  }

  it("continues while either side sends", async () => {
    await using pair = await Pair.start({ proxy: ["--limits.tunnel-idle-timeout=1s"] });
    await using origin = await Origin.start();
    using client = await openTunnel(pair.addresses.clients, origin.authority);
    using server = await origin.accept();
    for (let i = 0; i < 10; i++) {
      await server.write("x");
      await client.read(1);
      await new Promise((resolve) => setTimeout(resolve, 200)); // what is tested is longer than the limit
    }
    await client.write("x");
    assert.equal((await server.read(1)).toString(), "x");
  });
});

describe("a process with few descriptors", () => {
  it("refuses clients before the descriptors are exhausted, and serves again when they have gone", onLinux, async () => {
    await using site = await Site.create();
    await using origin = await Origin.start();
    const args = [...site.proxyArgs(), SERVED, "--limits.tunnels-per-agent=0", "--limits.tunnels-per-client=0"];
    const proxy = site.start("/bin/sh", ["-c", 'ulimit -n 256; exec "$0" "$@"', PROXY, ...args]);
    const { agents, clients: listening } = await proxy.waitFor("listening");
    const clients = String(listening);
    await proxy.waitFor("connections limited by file descriptors");
    await site.startAgent({ agents: String(agents), clients });
    const wires: Wire[] = [];
    let refused = 0;
    try {
      for (let i = 0; i < 400; i++) {
        const wire = await dial(clients);
        await wire.write(connectHead(origin.authority));
        const head = await wire.readUntil("\r\n\r\n");
        if (head.startsWith("HTTP/1.1 200 ")) wires.push(wire);
        else {
          assert.match(head, /^HTTP\/1\.1 503 .*\r\n/);
          wire[Symbol.dispose]();
          refused++;
        }
      }
      assert.ok(wires.length > 50, `${wires.length} tunnels`);
      assert.ok(refused > 100, `${refused} refused`);
      assert.equal(await hits(proxy, "connections"), refused);
    } finally {
      for (const wire of wires) wire.reset();
    }
    using _tunnel = await untilTunnel(clients, origin.authority);
  });

  it("reserves some for other addresses, clients and requests, and logs the numbers at the start", onLinux, async () => {
    await using site = await Site.create();
    await using origin = await Origin.start();
    const args = [...site.proxyArgs(), SERVED, NOBODY_EXEMPT];
    const proxy = site.start("/bin/sh", ["-c", 'ulimit -n 256; exec "$0" "$@"', PROXY, ...args]);
    const { agents, clients: listening } = await proxy.waitFor("listening");
    const clients = String(listening);
    const told = await proxy.waitFor("connections limited by file descriptors");
    assert.deepEqual([told.level, told.connections, told.connectionsPerAddress, told.descriptors], ["WARN", 128, 32, 256]);
    await site.startAgent({ agents: String(agents), clients });
    const wires: Wire[] = [];
    try {
      for (let i = 0; i < 32; i++) wires.push(await openTunnel(clients, origin.authority));
      assertLimited(await ask(clients, connectHead(origin.authority)));
      assert.equal(await hits(proxy, "connections-per-address"), 1);
      assertRefused(await ask(clients, connectHead("127.0.0.1:1"), "127.0.0.2"), 502, "connection_refused");
    } finally {
      for (const wire of wires) wire.reset();
    }
  });

  it("takes all tunnels of lb that it permits, also while all of them carry bulk data", onLinux, async () => {
    await using cache = await StoreServer.start("memcached");
    await using site = await Site.create();
    await using endless = await Origin.start(async (wire) => {
      for (const data = new Uint8Array(1 << 16);;) await wire.write(data);
    });
    const { addresses } = await site.startProxy(storeArgs(cache));
    await site.startAgent(addresses);
    const unshared = ["--limits.tunnels-per-agent=0", "--limits.tunnels-per-client=0"];
    const args = ["--http-proxy.listen-address=127.0.0.1:0", ...storeArgs(cache), "--log.format=json", ...unshared];
    const lb = site.start("/bin/sh", ["-c", 'ulimit -n 256; exec "$0" "$@"', LB, ...args]);
    const clients = String((await lb.waitFor("listening")).clients);
    const { connections } = await lb.waitFor("connections limited by file descriptors");
    const wires = [await untilTunnel(clients, endless.authority)];
    try {
      while (wires.length < Number(connections)) {
        wires.push(await openTunnel(clients, endless.authority));
        await wires.at(-1)!.read(1 << 20);
      }
      const pipes = readdirSync(`/proc/${lb.pid}/fd`).filter((fd) => linkOf(`/proc/${lb.pid}/fd/${fd}`).startsWith("pipe:"));
      assert.ok(pipes.length > 8, `${pipes.length} descriptors of pipes`);
    } finally {
      for (const wire of wires) wire.reset();
    }
    assert.ok(!lb.said.includes("cannot be accepted"), lb.said);
  });

  it("raises its soft limit to the hard limit", onLinux, async () => {
    await using site = await Site.create();
    const proxy = site.start("/bin/sh", ["-c", 'ulimit -Sn 128; ulimit -Hn 1000; exec "$0" "$@"', PROXY, ...site.proxyArgs()]);
    await proxy.waitFor("listening");
    assert.match(readFileSync(`/proc/${proxy.pid}/limits`, "utf8"), /^Max open files\s+1000\s+1000\s/m);
  });

  for (const part of ["proxy", "agent"] as const) {
    it(`continues as ${part} without descriptors, and serves again when it has some`, onLinux, async () => {
      await using pair = await Pair.start();
      await using origin = await Origin.start();
      const { clients } = pair.addresses;
      const { pid } = pair[part];
      // taken away while it runs: what it has counted on is not there
      execFileSync("prlimit", [`--pid=${pid}`, `--nofile=${openDescriptors(pid) + 8}:`], { stdio: "ignore" });
      const wires: Wire[] = [];
      try {
        if (part === "proxy") {
          for (let i = 0; i < 50; i++) wires.push(await dial(clients));
          await pair.proxy.waitForText("Connections are waiting because they cannot be accepted: Too many open files");
        } else {
          let head = "HTTP/1.1 200 ";
          while (head.startsWith("HTTP/1.1 200 ")) {
            assert.ok(wires.length < 50, "there are descriptors enough");
            wires.push(await dial(clients));
            await wires.at(-1)!.write(connectHead(origin.authority));
            head = await wires.at(-1)!.readUntil("\r\n\r\n");
          }
          assert.match(head, /^HTTP\/1\.1 503 /);
        }
      } finally {
        for (const wire of wires) wire.reset();
      }
      using tunnel = await untilTunnel(clients, origin.authority);
      await tunnel.write("x");
    });
  }
});
