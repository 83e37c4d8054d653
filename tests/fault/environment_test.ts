// Faults of the environment: disk, files, name servers, clock, store and scheduling. With the compiled executables: what is lost, and that
// everything recovers by itself.
import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { existsSync, readFileSync, renameSync, rmSync, statSync, truncateSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import process from "node:process";
import { before, describe, it } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import { BadStore, type Manner } from "../../testing/bad_store.ts";
import { check } from "../../testing/load.ts";
import { NameServer } from "../../testing/name_server.ts";
import { freeAddress } from "../../testing/nginx.ts";
import {
  type Addresses,
  AGENT,
  AGENT_ID,
  Folder,
  LB,
  type LogEntry,
  openDescriptors,
  Pair,
  type Program,
  type ProgramOptions,
  PROXY,
  residentMiB,
  Site,
} from "../../testing/programs.ts";
import { ask, assertRefused, connectHead, dial, openTunnel, Origin, type Wire } from "../../testing/sockets.ts";
import { speakAsClient, SpeakingOrigin } from "../../testing/streams.ts";
import { StoreServer } from "../../testing/store_servers.ts";
import { makeTokenKey } from "../../testing/tokens.ts";

const isLinux = process.platform === "linux";
const isRoot = process.getuid?.() === 0;
const onLinux = { skip: isLinux ? false : "only Linux has /dev/full" };
const asRoot = { skip: isLinux && isRoot ? false : "only root, on Linux, can mount what these programs alone see", timeout: 120_000 };
const FAKETIME = ["x86_64", "aarch64"].map((arch) => `/usr/lib/${arch}-linux-gnu/faketime/libfaketime.so.1`).find(existsSync);
const withFaketime = { skip: FAKETIME ? false : "there is no libfaketime", timeout: 120_000 };
const PATIENT = { timeout: 120_000 };
const MIB = 1 << 20;

async function echo(wire: Wire): Promise<void> {
  for (let data; (data = await wire.next()) !== null;) await wire.write(data);
  wire.finish();
}

function startEcho(): Promise<Origin> {
  return Origin.start(echo);
}

/** Opens a tunnel and uses it. */
async function useTunnel(clients: string, authority: string, options: Parameters<typeof openTunnel>[2] = {}): Promise<void> {
  using tunnel = await openTunnel(clients, authority, options);
  await check(tunnel);
}

/** Resolves with the milliseconds until a tunnel works. */
async function untilTunnel(clients: string, authority: string, options: Parameters<typeof openTunnel>[2] = {}): Promise<number> {
  const start = performance.now();
  for (;;) {
    if (await useTunnel(clients, authority, options).then(() => true, () => false)) return Math.round(performance.now() - start);
    await sleep(20);
  }
}

/** The warnings and errors that a program has logged. */
function complaints({ entries }: Program): LogEntry[] {
  return entries.filter(({ level }) => level === "WARN" || level === "ERROR");
}

/** A small file system; `using` unmounts it. */
class SmallDisk implements Disposable {
  readonly #folder = new Folder();
  readonly path = this.#folder.path;

  constructor(size: string) {
    const { status, stderr } = spawnSync("mount", ["-t", "tmpfs", "-o", `size=${size}`, "none", this.path], { encoding: "utf8" });
    if (status !== 0) throw new Error(`There is no disk: ${stderr}`);
  }

  [Symbol.dispose](): void {
    spawnSync("umount", [this.path]);
    this.#folder[Symbol.dispose]();
  }
}

describe("a disk that is full", () => {
  /** Programs whose logs go to this file. */
  async function startLoggingTo(site: Site, log: string): Promise<Addresses> {
    const addresses = { agents: await freeAddress(), clients: await freeAddress() };
    const start = (file: string, args: string[]) => site.start("/bin/sh", ["-c", `exec "$0" "$@" 2>>${log}`, file, ...args]);
    start(PROXY, site.proxyArgs(addresses));
    start(AGENT, site.agentArgs(addresses));
    return addresses;
  }

  it("loses log lines, and has no other effect", onLinux, async () => {
    await using site = await Site.create();
    await using origin = await startEcho();
    const { clients } = await startLoggingTo(site, "/dev/full");
    await untilTunnel(clients, origin.authority);
    for (let i = 0; i < 50; i++) await useTunnel(clients, origin.authority);
  });

  it("loses log lines until there is space again, and reports how many, without partial lines", asRoot, async () => {
    using disk = new SmallDisk("64k");
    await using site = await Site.create();
    await using origin = await startEcho();
    const log = join(disk.path, "log");
    const { clients } = await startLoggingTo(site, log);
    await untilTunnel(clients, origin.authority);
    const size = () => statSync(log).size;
    for (let before = -1; before < size();) {
      before = size();
      await Promise.all(Array.from({ length: 100 }, () => useTunnel(clients, origin.authority)));
      await sleep(100); // lines are written in batches
    }
    await useTunnel(clients, origin.authority);
    truncateSync(log, 0);
    const read = () => readFileSync(log, "utf8");
    for (const deadline = performance.now() + 20_000; !read().includes("log lines dropped");) {
      assert.ok(performance.now() < deadline, `nothing is said of the lines that are lost: ${read()}`);
      await useTunnel(clients, origin.authority);
    }
    const lines = read().split("\n").slice(0, -1).filter((line) => line !== "");
    for (const line of lines) assert.ok("message" in JSON.parse(line), line);
    const { count } = JSON.parse(lines.find((line) => line.includes("log lines dropped"))!) as { count: number };
    assert.ok(count > 0);
  });

  it("refuses tunnels that a strict audit log cannot record, and leaves no start of them in it", asRoot, async () => {
    using disk = new SmallDisk("64k");
    await using site = await Site.create();
    await using origin = await startEcho();
    const filler = join(disk.path, "filler");
    writeFileSync(filler, Buffer.alloc(56 << 10));
    const file = join(disk.path, "audit.jsonl");
    const { proxy, addresses: { clients, agents } } = await site.startProxy([`--audit.file=${file}`, "--audit.strict"]);
    await site.startAgent({ clients, agents });
    const refused = () => proxy.logged("request", { status: 500 }).length;
    while (refused() === 0) {
      const opening = Array.from({ length: 50 }, () => openTunnel(clients, origin.authority)); // they share a write
      await Promise.all(opening.map((tunnel) => tunnel.then((wire) => wire.reset(), () => {}))); // or it was refused
    }
    rmSync(filler);
    await proxy.waitFor("audit log is written again");
    await untilTunnel(clients, origin.authority);
    await proxy.stop();
    const counts = new Map<string, number>();
    for (const line of readFileSync(file, "utf8").trimEnd().split("\n")) {
      const { event, tunnel } = JSON.parse(line) as { event: string; tunnel: string };
      assert.ok(event === "start" || event === "end", line);
      counts.set(tunnel, (counts.get(tunnel) ?? 0) + (event === "start" ? 1 : -1));
    }
    assert.deepEqual([...counts].filter(([, left]) => left !== 0), []);
  });

  it("prevents the storage of the proxy's certificate, which is created in memory with a warning", asRoot, async () => {
    using disk = new SmallDisk("4k");
    await using site = await Site.create();
    spawnSync("sh", ["-c", `cat /dev/zero > ${disk.path}/filler`]);
    const args = ["--agent-server.listen-address=127.0.0.1:0", "--http-proxy.listen-address=127.0.0.1:0", "--log.format=json"];
    const proxy = site.start(PROXY, args, { env: { PATH: "/usr/bin:/bin", HOME: "/nonexistent", STATE_DIRECTORY: disk.path } });
    const { reason } = await proxy.waitFor(
      "self-signed certificate cannot be stored, so its pin changes with every start; set --state-dir",
    );
    assert.match(String(reason), /the disk is full/);
    await proxy.waitFor("listening");
  });
});

describe("files that disappear or become invalid while the programs run", () => {
  it("leave the previous settings in force, are logged once, and apply again when they are back", PATIENT, async () => {
    await using site = await Site.create();
    await using origin = await startEcho();
    const [key, members] = [makeTokenKey(), await site.authority.issue({ names: ["client"] })];
    const path = (name: string) => join(site.folder.path, name);
    const write = (name: string, text: string): string => {
      writeFileSync(`${path(name)}.new`, text);
      renameSync(`${path(name)}.new`, path(name));
      return path(name);
    };
    const refill = async () => {
      const server = await site.authority.issue({ names: ["localhost", "127.0.0.1"] });
      write("server-cert.pem", server.cert);
      write("server-key.pem", server.key);
      write("clients-ca.pem", site.authority.cert);
      write("clients-crl.pem", await site.authority.revocationList([]));
      write("roots.pem", site.authority.cert);
      write("public.pem", key.publicPem);
      write("revoked", "");
      write("agent.jwt", await key.sign({ role: "agent" }));
    };
    await refill();
    const files = [
      "server-cert.pem",
      "server-key.pem",
      "clients-ca.pem",
      "clients-crl.pem",
      "roots.pem",
      "public.pem",
      "revoked",
      "agent.jwt",
    ];
    const groups = ["agent-server", "http-proxy"];
    const proxy = site.start(PROXY, [
      ...groups.flatMap((group) => [
        `--${group}.listen-address=127.0.0.1:0`,
        `--${group}.tls.file.cert=${path("server-cert.pem")}`,
        `--${group}.tls.file.key=${path("server-key.pem")}`,
        `--${group}.tls.refresh=20ms`,
      ]),
      "--http-proxy.tls.enable",
      `--http-proxy.tls.file.client-ca=${path("clients-ca.pem")}`,
      `--http-proxy.tls.file.client-crl=${path("clients-crl.pem")}`,
      "--auth.type=jwt",
      `--auth.jwt.public-key=${path("public.pem")}`,
      `--auth.jwt.revocation-file=${path("revoked")}`,
      "--log.format=json",
    ]);
    const { agents, clients } = await proxy.waitFor("listening");
    const agent = site.start(AGENT, [
      `--agent-client.server-address=${agents}`,
      `--agent-client.tls.file.root-ca=${path("roots.pem")}`,
      "--agent-client.tls.refresh=20ms",
      "--auth.type=jwt",
      `--auth.jwt.token=file:${path("agent.jwt")}`,
      "--log.format=json",
    ]);
    await agent.waitFor("connected");
    const options = { password: await key.sign(), tls: { ca: site.authority.cert, cert: members.cert, key: members.key } };
    using open = await openTunnel(String(clients), origin.authority, options);

    const KEPT = "certificate reload failed; keeping the previous certificates";
    const faults: [string, () => void][] = [
      ["vanish", () => files.forEach((name) => rmSync(path(name)))],
      ["turn to garbage", () => files.forEach((name) => write(name, `\0garbage ${name}\n`))],
    ];
    for (const [round, [what, spoil]] of faults.entries()) {
      const ofGroups = groups.map((group) => [proxy, { options: `--${group}.tls` }] as const);
      const kept = [...ofGroups, [agent, {}] as const].map(([program, fields]) => ({
        program,
        fields,
        count: program.logged(KEPT, fields).length,
      }));
      spoil();
      for (const { program, fields, count } of kept) await program.waitFor(KEPT, fields, count + 1);
      await sleep(1_500); // files are spoilt one by one, and keys of tokens are looked at every second
      const said = () => [proxy, agent].map((program) => complaints(program).length);
      const before = said();
      await sleep(2_500); // time in which a repeated message would appear
      assert.deepEqual(said(), before, `${what}: ${proxy.said}${agent.said}`);
      await check(open);
      await useTunnel(String(clients), origin.authority, options);
      await refill();
      for (const group of groups) await proxy.waitFor("certificates reloaded", { options: `--${group}.tls` }, round + 1);
    }
    assert.deepEqual([agent.logged("not connected"), proxy.logged("agent disconnected")], [[], []]);
    // and what was put back is what counts now
    await check(open);
    await useTunnel(String(clients), origin.authority, options);
  });
});

describe("a proxy that datagrams do not reach", () => {
  const IP = "/usr/sbin/ip";
  const LOOPBACK_UP = `${IP} link set lo up`;
  const causes: Record<string, readonly [setup: string, address: string, reason: RegExp]> = {
    "there is no route": ["true", "192.0.2.1:4242", /no route to 192\.0\.2\.1:4242/],
    "a route rejects them": [`${LOOPBACK_UP}; ${IP} route add prohibit 192.0.2.1`, "192.0.2.1:4242", /rejects UDP datagrams/],
    "the network calls it unreachable": [`${LOOPBACK_UP}; ${IP} route add unreachable 192.0.2.1`, "192.0.2.1:4242", /cannot be reached/],
    "the MTU is too small": [
      `${IP} link add name v0 type veth peer name v1; ${IP} link set v0 mtu 1000; ${IP} link set v0 up; ${IP} link set v1 up; ` +
      `${IP} addr add 192.0.2.2/24 dev v0; ${IP} neigh add 192.0.2.1 lladdr 02:00:00:00:00:01 dev v0`,
      "192.0.2.1:4242",
      /raise the MTU/,
    ],
    "it does not run": [LOOPBACK_UP, "127.0.0.1:4242", /is the proxy running/],
  };
  for (const [cause, [setup, address, reason]] of Object.entries(causes)) {
    it(`because ${cause} is explained while the agent keeps trying`, asRoot, async () => {
      await using site = await Site.create();
      const args = site.agentArgs({ agents: address, clients: "" });
      const agent = site.start("/usr/bin/unshare", ["-n", "sh", "-c", `set -e; ${setup}; exec "$@"`, "sh", AGENT, ...args]);
      const told = await agent.waitFor("no response from the proxy yet");
      assert.match(String(told.reason), reason);
      assert.equal(agent.logged("not connected").length, 0, "it goes on trying");
    });
  }
});

describe("names that cannot be resolved", () => {
  it(
    "are refused in time, while tunnels and other destinations go on, and are found again when the name server answers",
    asRoot,
    async () => {
      await using site = await Site.create();
      await using names = await NameServer.start();
      await using origin = await startEcho();
      const { addresses: { agents, clients } } = await site.startProxy();
      const start = (address: string) =>
        site.start(...names.command(site.folder, AGENT, [
          ...site.agentArgs({ agents: address, clients }),
          "--agent-client.tls.insecure-skip-verify",
        ]));
      names.mode = "silent"; // from the first moment on
      const agent = start(`proxy.example:${agents.split(":")[1]}`);
      await agent.waitFor("not connected");
      names.mode = "answers";
      const answersAt = performance.now();
      await agent.waitFor("connected");
      console.log(`name server back: the agent connected after ${Math.round(performance.now() - answersAt)} ms`);
      const port = origin.authority.split(":")[1];
      await useTunnel(clients, `server.example:${port}`);
      const missing = await ask(clients, connectHead(`missing.example:${port}`));
      assertRefused(missing, 502, "dns_error");

      using open = await openTunnel(clients, `server.example:${port}`);
      names.mode = "silent";
      const asked = performance.now();
      const refused = Array.from({ length: 100 }, (_, i) => ask(clients, connectHead(`server${i}.example:${port}`)));
      let [longest, count] = [0, 0];
      let over = false;
      const answers = Promise.all(refused).finally(() => over = true);
      while (!over) {
        const begun = performance.now();
        await useTunnel(clients, origin.authority);
        await check(open);
        longest = Math.max(longest, performance.now() - begun);
        count++;
        await sleep(100);
      }
      for (const answer of await answers) assert.ok([502, 504].includes(answer.status), `${answer.status} ${answer.body}`);
      const statuses = new Set((await answers).map(({ status }) => status));
      console.log(
        `name server silent: ${[...statuses].join()} after ${
          Math.round(performance.now() - asked)
        } ms; meanwhile ${count} tunnels to addresses, ` +
          `the slowest in ${Math.round(longest)} ms`,
      );
      assert.ok(longest < 2_000, `a tunnel to an address took ${longest} ms`);
      names.mode = "answers";
      await useTunnel(clients, `server.example:${port}`);
      await check(open);
      assert.equal(agent.logged("connected").length, 1);
    },
  );

  it(
    "delay neither other names nor the agent's own, though a thousand wait for an answer that never comes",
    asRoot,
    async () => {
      await using site = await Site.create();
      await using names = await NameServer.start();
      await using origin = await startEcho();
      const { proxy, addresses } = await site.startProxy();
      const { agents, clients } = addresses;
      // nor does an agent wait for the AAAA records of its proxy
      const agent = site.start(...names.command(site.folder, AGENT, [
        ...site.agentArgs({ agents: `proxy.ipv4.example:${agents.split(":")[1]}`, clients }),
        "--agent-client.tls.insecure-skip-verify",
        "--agent-client.host-denylist=192.0.2.0/24", // the path that looks names up before it connects
      ]));
      await agent.waitFor("connected");
      const port = origin.authority.split(":")[1];
      const asked = names.asked;
      const giveUp = new AbortController();
      const waiting = Array.from({ length: 1_000 }, async (_, i) => {
        using wire = await dial(clients);
        await wire.write(connectHead(`name-${i}.silent.example:${port}`));
        await Promise.race([wire.next().catch(() => {}), new Promise((resolve) => giveUp.signal.addEventListener("abort", resolve))]);
      });
      while (names.asked < asked + 2_000) await sleep(10);
      const descriptors = openDescriptors(agent.pid);
      const times = [];
      for (const name of ["a.example", "b.ipv4.example", "localhost"]) {
        const start = performance.now();
        await useTunnel(clients, `${name}:${port}`);
        times.push(`${name} ${Math.round(performance.now() - start)} ms`);
      }
      console.log(`a thousand names wait, ${descriptors} descriptors are open: ${times.join(", ")}`);
      assert.ok(descriptors < 5_000);
      proxy.signal("SIGKILL");
      await proxy.ended;
      await site.startProxy([], addresses);
      const restarted = performance.now();
      await agent.waitFor("connected", {}, 2);
      console.log(`a thousand names waited: the agent is back ${Math.round(performance.now() - restarted)} ms after the proxy's start`);
      giveUp.abort();
      await Promise.all(waiting);
    },
  );
});

describe("a clock that jumps", () => {
  /** An environment whose clock is what the file says. */
  const clock = (site: Site): { options: ProgramOptions; jump: (by: string) => void } => {
    const file = site.folder.write("clock", "+0\n");
    return {
      options: {
        env: {
          PATH: "/usr/bin:/bin",
          HOME: "/nonexistent",
          LD_PRELOAD: FAKETIME!,
          FAKETIME_TIMESTAMP_FILE: file,
          FAKETIME_NO_CACHE: "1",
          FAKETIME_DONT_FAKE_MONOTONIC: "1",
          DONT_FAKE_MONOTONIC: "1",
          NO_FAKE_STAT: "1",
        },
      },
      jump: (by) => {
        writeFileSync(`${file}.new`, `${by}\n`);
        renameSync(`${file}.new`, file);
      },
    };
  };
  const timeOf = (entry: unknown) =>
    Date.parse(String(Object.values(entry as object).find((value) => /^\d{4}-\d\d-\d\dT/.test(String(value)))));

  it("by an hour forward or back loses no tunnel, no agent and no entry of the store", withFaketime, async () => {
    await using site = await Site.create();
    await using cache = await StoreServer.start("memcached");
    await using origin = await startEcho();
    await using speaking = await SpeakingOrigin.start();
    const { options, jump } = clock(site);
    const store = ["--store.type=memcached", `--store.memcached.address=${cache.address}`, "--store.ttl=3s"];
    const proxy = site.start(PROXY, [...site.proxyArgs(), ...store], options);
    const { agents, clients } = await proxy.waitFor("listening");
    const agent = site.start(AGENT, site.agentArgs({ agents: String(agents), clients: "" }), options);
    await agent.waitFor("connected");
    const lb = site.start(LB, ["--http-proxy.listen-address=127.0.0.1:0", ...store.slice(0, 2), "--log.format=json"], options);
    const through = String((await lb.waitFor("listening")).clients);
    await untilTunnel(through, origin.authority);
    using idle = await openTunnel(through, origin.authority);
    const said = [proxy, agent, lb].map((program) => complaints(program).length); // of their options
    for (const [round, by] of ["+1h", "+0", "-1h", "+0"].entries()) {
      const carrying = openTunnel(through, speaking.authority).then(async (wire) => {
        using tunnel = wire;
        await speakAsClient(tunnel, { seed: 2 * round + 2, up: 4 * MIB, down: 4 * MIB, slowClient: 30, slowOrigin: 30 });
      });
      carrying.catch(() => {}); // looked at below
      await sleep(200);
      jump(by);
      await sleep(4_000); // longer than an entry of the store lives
      const logged = lb.logged("request").length;
      await useTunnel(String(clients), origin.authority);
      await useTunnel(through, origin.authority);
      await check(idle);
      await carrying;
      const ahead = timeOf(await lb.waitFor("request", {}, logged + 1)) - Date.now();
      assert.equal(Math.round(ahead / 3_600_000) || 0, Number.parseInt(by), "the clock did not jump");
    }
    assert.deepEqual(speaking.violations, []);
    assert.deepEqual([proxy, agent, lb].map((program) => complaints(program).length), said);
  });

  it("by an hour forward ends what then expired tokens have opened, and accepts them again when it is set back", withFaketime, async () => {
    await using site = await Site.create();
    await using origin = await startEcho();
    const { options, jump } = clock(site);
    const key = makeTokenKey();
    const jwt = ["--auth.type=jwt", `--auth.jwt.public-key=${site.folder.write("public.pem", key.publicPem)}`];
    const proxy = site.start(PROXY, [...site.proxyArgs(), ...jwt], options);
    const { agents, clients } = await proxy.waitFor("listening");
    const args = site.agentArgs({ agents: String(agents), clients: "" }).filter((arg) => !arg.startsWith("--auth."));
    const startAgent = async (durationMs: number) => {
      const token = await key.sign({ role: "agent", durationMs });
      const agent = site.start(AGENT, [...args, "--auth.type=jwt", `--auth.jwt.token=${token}`], options);
      await agent.waitFor("connected");
      return agent;
    };
    const [short, long] = [await key.sign({ durationMs: 1_800_000 }), await key.sign()];
    const agent = await startAgent(1_800_000);
    using _open = await openTunnel(String(clients), origin.authority, { password: short });
    jump("+1h");
    await agent.waitFor("not connected");
    const { status } = await ask(String(clients), connectHead(origin.authority, AGENT_ID, short));
    assert.equal(status, 407);
    jump("+0");
    await agent.waitFor("connected", {}, 2);
    await useTunnel(String(clients), origin.authority, { password: short });
    await useTunnel(String(clients), origin.authority, { password: long });
  });
});

const MANNERS: Record<Exclude<Manner, "good">, string> = {
  garbage: "sends garbage",
  endless: "sends an endless reply",
  silent: "never replies",
  half: "closes within its replies",
};

async function suffer(manner: Manner): Promise<string> {
  await using cache = await StoreServer.start("memcached");
  await using bad = await BadStore.start(cache.address);
  await using site = await Site.create();
  await using origin = await startEcho();
  const store = { kind: "memcached" as const, address: bad.address };
  const { proxy, addresses } = await site.startProxy([
    "--store.type=memcached",
    `--store.memcached.address=${bad.address}`,
    "--store.ttl=3s",
  ]);
  const agent = await site.startAgent(addresses);
  const { lb, clients } = await site.startLb(store);
  await untilTunnel(clients, origin.authority);
  using open = await openTunnel(clients, origin.authority);
  bad.manner = manner;
  await proxy.waitFor("store unavailable");
  const begun = performance.now();
  let slowest = 0;
  while (performance.now() - begun < 5_000) { // longer than an entry lives
    const asked = performance.now();
    const { status } = await ask(clients, connectHead(origin.authority, "unknown"));
    slowest = Math.max(slowest, performance.now() - asked);
    assert.ok([502, 503].includes(status), `status ${status}`);
    await useTunnel(addresses.clients, origin.authority);
    await check(open);
    await sleep(100);
  }
  bad.manner = "good";
  const good = performance.now();
  while ((await ask(clients, connectHead(origin.authority, "unknown"))).status !== 502) await sleep(50);
  const tookMs = Math.round(performance.now() - good);
  await proxy.waitFor("store recovered");
  await useTunnel(clients, origin.authority);
  for (const program of [proxy, lb]) assert.ok(program.logged("store unavailable").length <= 1, program.said);
  assert.deepEqual([agent.logged("not connected"), proxy.logged("agent disconnected")], [[], []]);
  for (const { pid } of [proxy, lb]) assert.ok(residentMiB(pid) < 200, `${residentMiB(pid)} MiB are taken`);
  return `slowest refusal ${Math.round(slowest)} ms, lb knows who is where ${tookMs} ms after it was good again`;
}

interface Frozen {
  what: "proxy" | "agent";
  ms: number;
}
const FROZEN: Frozen[] = [
  { what: "proxy", ms: 5_000 },
  { what: "agent", ms: 5_000 },
  { what: "proxy", ms: 15_000 },
  { what: "agent", ms: 15_000 },
];

async function freeze({ what, ms }: Frozen): Promise<string> {
  await using pair = await Pair.start();
  await using origin = await startEcho();
  await using speaking = await SpeakingOrigin.start();
  const { clients } = pair.addresses;
  using idle = await openTunnel(clients, origin.authority);
  await check(idle);
  const carrying = openTunnel(clients, speaking.authority).then(async (wire) => {
    using tunnel = wire;
    await speakAsClient(tunnel, { seed: 2, up: 16 * MIB, down: 16 * MIB, slowClient: 50, slowOrigin: 50 });
  }).then(() => "whole", (error) => `cut off: ${(error as Error).message}`);
  using asking = await dial(clients);
  const head = connectHead(origin.authority);
  await asking.write(head.slice(0, 9));
  await sleep(500);
  pair[what].signal("SIGSTOP");
  await asking.write(head.slice(9));
  await sleep(ms);
  pair[what].signal("SIGCONT");
  const asked = (await asking.readUntil("\r\n\r\n")).slice(0, 12);
  const tookMs = await untilTunnel(clients, origin.authority);
  const carried = await carrying;
  const idleLives = await check(idle).then(() => true, () => false);
  assert.deepEqual(speaking.violations, []);
  // a request that arrived in time is not refused as late, whichever program was stopped
  assert.match(asked, ms < 10_000 ? /^HTTP\/1\.1 200$/ : /^HTTP\/1\.1 (200|50[234])$/);
  if (ms < 10_000) {
    assert.deepEqual([carried, idleLives, pair.agent.logged("not connected")], ["whole", true, []]);
  } else {
    assert.ok(carried === "whole" || /ECONNRESET|EPIPE/.test(carried), carried);
    assert.ok(tookMs < 4_000, `there was a tunnel after ${tookMs} ms`);
  }
  return `${what} stopped for ${ms} ms: transfer ${carried}, idle tunnel ${
    idleLives ? "lives" : "cut off"
  }, a new tunnel after ${tookMs} ms`;
}

/** The slow tests, started together while the earlier ones run. */
const begun = new Map<string, Promise<string>>();
before(() => {
  for (const manner of Object.keys(MANNERS) as Manner[]) begun.set(manner, suffer(manner));
  for (const frozen of FROZEN) begun.set(`${frozen.what} ${frozen.ms}`, freeze(frozen));
  for (const promise of begun.values()) promise.catch(() => {}); // each test looks at its own
});

describe("a store", () => {
  for (const [manner, words] of Object.entries(MANNERS)) {
    it(`that ${words} affects no connected or known agent, is logged once, and is used again`, PATIENT, async () => {
      console.log(`a store that ${words}: ${await begun.get(manner)}`);
    });
  }
});

describe("a program that is stopped and continued", () => {
  for (const { what, ms } of FROZEN) {
    const lost = ms < 10_000 ? "loses nothing" : "loses at most its tunnels, which are reset, and recovers soon";
    it(`${what} for ${ms / 1_000} s ${lost}`, PATIENT, async () => console.log(await begun.get(`${what} ${ms}`)));
  }
});
