// A bad network between a proxy and an agent, with the compiled executables and a UDP relay between them: what arrives, what is lost, how
// soon everything recovers, and that nothing remains.
import assert from "node:assert/strict";
import process from "node:process";
import { before, describe, it } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import { check } from "../../testing/load.ts";
import { eventually, openDescriptors, type Program, residentMiB, Site } from "../../testing/programs.ts";
import { ask, openTunnel, Origin, type Wire } from "../../testing/sockets.ts";
import { type Plan, speakAsClient, SpeakingOrigin } from "../../testing/streams.ts";
import { UdpRelay, type Weather } from "../../testing/udp_relay.ts";

const MIB = 1 << 20;
/** An agent must reconnect within two seconds after the network is back; this allows for a busy machine. */
const BACK_WITHIN_MS = 4_000;
/** This process relays the datagrams, whichever runtime the executables have. In Deno each is slow and takes 64 KiB of memory. */
const SLOW = process.versions.deno !== undefined && "a network made of Deno's UDP sockets is too slow; Bun runs these tests";
/** Longer than the cuts and the recovery from them. */
const PATIENT = { timeout: 120_000, skip: SLOW };

async function echo(wire: Wire): Promise<void> {
  for (let data; (data = await wire.next()) !== null;) await wire.write(data);
  wire.finish();
}

/** A metric of a program. */
async function figure(program: Program, name: string): Promise<number> {
  const { admin } = await program.waitFor("listening");
  const { body } = await ask(String(admin), "GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n");
  return Number(body.split("\n").find((line) => line.startsWith(`${name} `))?.split(" ")[1]);
}

/** A proxy, an agent, the network between them, and destinations. */
class Link implements AsyncDisposable {
  #seed = 0;
  #before: number[] = [];
  private constructor(
    readonly site: Site,
    readonly relay: UdpRelay,
    readonly proxy: Program,
    readonly agent: Program,
    readonly clients: string,
    readonly echo: Origin,
    readonly origin: SpeakingOrigin,
  ) {}

  static async start(weather: Partial<Weather> = {}): Promise<Link> {
    const site = await Site.create();
    const admin = ["--admin.listen-address=127.0.0.1:0"];
    const { proxy, addresses } = await site.startProxy(admin);
    const relay = await UdpRelay.start({ server: addresses.agents });
    const agent = await site.startAgent({ ...addresses, agents: relay.address }, admin);
    const link = new Link(site, relay, proxy, agent, addresses.clients, await Origin.start(echo), await SpeakingOrigin.start());
    await link.carry({ up: 100_000, down: 100_000 });
    await link.#ended();
    link.#before = link.#taken();
    relay.change(weather);
    return link;
  }

  /** A tunnel that sends back what comes. */
  async open(): Promise<Wire> {
    const tunnel = await openTunnel(this.clients, this.echo.authority);
    await check(tunnel);
    return tunnel;
  }

  /** A tunnel whose every byte is checked, at both ends. */
  async carry(plan: Omit<Plan, "seed">): Promise<void> {
    using tunnel = await openTunnel(this.clients, this.origin.authority);
    this.#seed += 2;
    await speakAsClient(tunnel, { ...plan, seed: this.#seed });
  }

  /** Milliseconds until a tunnel is there and used. */
  async untilTunnel(): Promise<number> {
    const start = performance.now();
    for (;;) {
      const tunnel = await this.open().catch(() => undefined);
      tunnel?.[Symbol.dispose]();
      if (tunnel) return Math.round(performance.now() - start);
      await sleep(20);
    }
  }

  /** The connection that there was at the beginning is still there. */
  assertNeverLost(): void {
    assert.deepEqual([this.agent.logged("not connected"), this.proxy.logged("agent disconnected")], [[], []]);
  }

  #taken(): number[] {
    return [this.proxy, this.agent].map(({ pid }) => openDescriptors(pid));
  }

  async #ended(): Promise<void> {
    const active = [[this.proxy, "reverse_http_client_connections_active"], [this.agent, "reverse_http_tunnels_active"]] as const;
    for (const [program, name] of active) while (await figure(program, name) !== 0) await sleep(20);
  }

  /** No tunnel is open, no descriptor was left behind, and nothing arrived that was not sent. */
  async assertClean(): Promise<void> {
    assert.deepEqual(this.origin.violations, []);
    await this.#ended();
    const clean = () => this.#taken().every((taken, i) => taken <= this.#before[i]!);
    await eventually(clean, () => `${this.#taken()} descriptors are open, and at first it was ${this.#before}`);
    for (const { pid } of [this.proxy, this.agent]) assert.ok(residentMiB(pid) < 150, `${residentMiB(pid)} MiB are taken`);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.site[Symbol.asyncDispose]();
    await this.relay[Symbol.asyncDispose]();
    await this.origin[Symbol.asyncDispose]();
    await this.echo[Symbol.asyncDispose]();
  }
}

/** Duration in milliseconds, and the direction if it is only one. */
type Cut = readonly [ms: number, direction?: "toServer" | "toClient"];
const SHORT = { "5 s": [5_000], "5 s towards the proxy": [5_000, "toServer"], "5 s towards the agent": [5_000, "toClient"] } as const;
const LONG = {
  "20 s": [20_000],
  "20 s towards the proxy": [20_000, "toServer"],
  "20 s towards the agent": [20_000, "toClient"],
  "60 s": [60_000],
} as const;

async function cut({ relay }: Link, [ms, direction]: Cut): Promise<void> {
  const directions = direction ? [relay[direction]] : [relay.toServer, relay.toClient];
  for (const { weather } of directions) weather.blocked = true;
  await sleep(ms);
  relay.clear();
}

/** Tests a cut that QUIC survives. */
async function survive(wanted: Cut): Promise<string> {
  await using link = await Link.start();
  using idle = await link.open();
  using busy = await link.open();
  const carrying = link.carry({ up: 8 * MIB, down: 8 * MIB, slowClient: 20, slowOrigin: 20 }); // goes on throughout
  const over = cut(link, wanted);
  const checked = check(busy);
  for (const promise of [carrying, checked]) promise.catch(() => {}); // looked at below
  await over;
  const start = performance.now();
  await checked;
  const tookMs = Math.round(performance.now() - start);
  await check(idle);
  await carrying;
  link.assertNeverLost();
  for (const tunnel of [idle, busy]) tunnel[Symbol.dispose]();
  await link.assertClean();
  return `bytes flow after ${tookMs} ms`;
}

/** Tests a cut that is too long for that. */
async function comeBack(wanted: Cut): Promise<string> {
  await using link = await Link.start();
  const tunnels = [await link.open(), await link.open()];
  await cut(link, wanted);
  const tookMs = await link.untilTunnel();
  assert.ok(tookMs < BACK_WITHIN_MS, `the agent was back after ${tookMs} ms`);
  for (const tunnel of tunnels) assert.notEqual(await tunnel.ending(), "finished");
  await link.assertClean();
  return `back after ${tookMs} ms`;
}

/** All of them, started together while the earlier tests run. */
const cuts = new Map<string, Promise<string>>();
before(() => {
  if (SLOW) return;
  for (const [name, wanted] of Object.entries(SHORT)) cuts.set(name, survive(wanted));
  for (const [name, wanted] of Object.entries(LONG)) cuts.set(name, comeBack(wanted));
  for (const promise of cuts.values()) promise.catch(() => {}); // each test looks at its own
});

describe("a tunnel's bytes arrive as they were sent through a network that", () => {
  const BAD: [string, Partial<Weather>][] = [
    ["loses 5 %", { loss: 0.05, delay: 2 }],
    ["takes 50 ms each way, and sometimes longer", { delay: 50, jitter: 20 }],
    ["duplicates 20 %", { duplicate: 0.2 }],
    ["reorders 20 %", { reorder: 0.2, delay: 2 }],
    ["flips a bit in 5 %", { corrupt: 0.05, delay: 2 }],
    ["truncates 5 %", { truncate: 0.05, delay: 2 }],
    ["does all of that", { loss: 0.01, duplicate: 0.02, reorder: 0.05, corrupt: 0.01, truncate: 0.01, delay: 2, jitter: 2 }],
  ];
  for (const [name, weather] of BAD) {
    it(name, PATIENT, async () => {
      await using link = await Link.start(weather);
      const start = performance.now();
      await Promise.all([1, 2].map(() => link.carry({ up: 2 * MIB, down: 2 * MIB })));
      const { toServer, toClient } = link.relay;
      console.log(`${name}: 4 MiB each way in ${Math.round(performance.now() - start)} ms`);
      for (const { counts } of [toServer, toClient]) {
        if (weather.loss) assert.ok(counts.lost > 0);
        if (weather.duplicate) assert.ok(counts.duplicated > 0);
        if (weather.reorder) assert.ok(counts.reordered > 0);
        if (weather.corrupt) assert.ok(counts.corrupted > 0);
        if (weather.truncate) assert.ok(counts.truncated > 0);
      }
      link.assertNeverLost();
      await link.assertClean();
    });
  }
});

describe("a network that", () => {
  it("changes the agent's port repeatedly loses no tunnel, active or idle", PATIENT, async () => {
    await using link = await Link.start({ delay: 5 });
    using idle = await link.open();
    let over = false;
    const carrying = Promise.all([
      link.carry({ up: 16 * MIB, down: 0, slowOrigin: 20 }),
      link.carry({ up: 0, down: 16 * MIB, slowClient: 20 }),
      link.carry({ up: 8 * MIB, down: 8 * MIB }),
    ]).finally(() => over = true);
    carrying.catch(() => {});
    while (!over || link.relay.rebound < 5) {
      link.relay.rebind();
      await sleep(300);
    }
    await carrying;
    await check(idle);
    const { rebound } = link.relay;
    link.relay.rebind(); // while nothing is under way: the agent's next word tells where it is
    const tookMs = await link.untilTunnel();
    await check(idle);
    link.assertNeverLost();
    console.log(`${rebound} other ports in the middle of transfers: no tunnel lost; one while idle: a new tunnel after ${tookMs} ms`);
    idle[Symbol.dispose]();
    await link.assertClean();
  });

  it("loses what comes back to the agent's port: the agent opens another connection before its own times out", PATIENT, async () => {
    await using link = await Link.start();
    link.relay.forgetPorts();
    await link.proxy.waitFor("agent connected", {}, 2);
    (await openTunnel(link.clients, link.echo.authority))[Symbol.dispose]();
    await link.agent.waitFor("opened another connection");
    assert.deepEqual(link.agent.entries.filter(({ message }) => message === "not connected"), []);
  });

  it("suddenly accepts only smaller packets loses no tunnel", PATIENT, async () => {
    await using link = await Link.start({ delay: 2 });
    using idle = await link.open();
    await link.carry({ up: 4 * MIB, down: 4 * MIB }); // until the engine sends large ones
    const carrying = Promise.all([
      link.carry({ up: 16 * MIB, down: 0 }),
      link.carry({ up: 0, down: 16 * MIB }),
    ]);
    carrying.catch(() => {}); // looked at below
    await sleep(50);
    link.relay.change({ mtu: 1_300 });
    const start = performance.now();
    await carrying;
    const tookMs = Math.round(performance.now() - start);
    await check(idle);
    await link.carry({ up: 4 * MIB, down: 4 * MIB });
    link.assertNeverLost();
    const { toServer, toClient } = link.relay;
    assert.ok(toServer.counts.tooLarge > 0 && toClient.counts.tooLarge > 0, "no packet was too large");
    console.log(`packets of 1,300 bytes at most: no tunnel lost; 16 MiB each way were there ${tookMs} ms later`);
    idle[Symbol.dispose]();
    await link.assertClean();
  });
});

describe("a cut of the network", () => {
  const report = async (name: string) => console.log(`a cut of ${name}: ${await cuts.get(name)}`);
  for (const name of Object.keys(SHORT)) it(`of ${name} cuts no tunnel`, PATIENT, () => report(name));
  for (const name of Object.keys(LONG)) {
    it(`of ${name} ends tunnels with a reset, and the agent reconnects within seconds after it`, PATIENT, () => report(name));
  }
});
