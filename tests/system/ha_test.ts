// Every part of an installation is killed, frozen and restarted under load, with the compiled executables, nginx and memcached: what fails,
// for how long, and that everything recovers by itself. REVERSE_HTTP_TEST_LOAD=full multiplies the load.
import assert from "node:assert/strict";
import process from "node:process";
import { describe, it } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import { Cluster } from "../../testing/cluster.ts";
import { Load, type Report, type Result } from "../../testing/load.ts";
import { openTunnel, Origin, type Wire } from "../../testing/sockets.ts";

const FULL = process.env["REVERSE_HTTP_TEST_LOAD"] === "full";
const LOAD = FULL ? { tunnels: 200, perSecond: 50 } : { tunnels: 40, perSecond: 20 };
const SINGLE = ["s1", "s2", "s3", "s4", "s5", "s6"];
const DOUBLE = ["d1", "d2"];

/** An echo server. */
async function echo(wire: Wire): Promise<void> {
  for (let data; (data = await wire.next()) !== null;) await wire.write(data);
  wire.finish();
}

/** A cluster under load. */
class Loaded implements AsyncDisposable {
  readonly #sums: (Report & { what: string; wellMs: number })[] = [];
  private constructor(readonly cluster: Cluster, readonly origin: Origin, readonly load: Load) {}

  static async start(): Promise<Loaded> {
    const cluster = await Cluster.start({ single: SINGLE, double: DOUBLE });
    const origin = await Origin.start(echo);
    const load = new Load({
      clients: cluster.clients,
      destination: origin.authority,
      agents: [...SINGLE, ...DOUBLE],
      ...LOAD,
    });
    const loaded = new Loaded(cluster, origin, load);
    await load.settle(0);
    return loaded;
  }

  /** Does something bad, and waits until all is well. */
  async suffer(what: string, act: () => Promise<void>): Promise<Report> {
    const since = performance.now();
    await act();
    await this.load.settle(performance.now());
    const report = this.load.report(since);
    this.#sums.push({ what, ...report, wellMs: performance.now() - since });
    return report;
  }

  /** What each thing came to. */
  printSums(): void {
    console.log(`${LOAD.tunnels} tunnels open, ${LOAD.perSecond} new requests a second`);
    for (const { what, requests, failed, outageMs, slowestMs, cut, wellMs } of this.#sums) {
      const ms = (value: number) => `${Math.round(value)} ms`;
      console.log(
        `${what}: ${failed.length} of ${requests} requests failed, longest outage ${ms(outageMs)}, slowest success ${ms(slowestMs)}, ` +
          `${cut.length} tunnels cut, all well after ${ms(wellMs)}`,
      );
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.load.stop();
    await this.origin[Symbol.asyncDispose]();
    await this.cluster[Symbol.asyncDispose]();
  }
}

async function freeze(frozen: { signal(name: "SIGSTOP" | "SIGCONT"): void }, ms: number): Promise<void> {
  frozen.signal("SIGSTOP");
  await sleep(ms);
  frozen.signal("SIGCONT");
}

/** Checks that no request failed and no tunnel was cut. */
function assertNone({ failed, cut, requests }: Report): void {
  assert.deepEqual([failed, cut], [[], []]);
  assert.ok(requests > 10, `there were ${requests} requests only`);
}

/** Checks that all failures were of these agents. */
function assertOnly(results: readonly Result[], ids: readonly string[]): void {
  assert.deepEqual(results.filter(({ agent }) => !ids.includes(agent)), []);
}

describe("an installation of two of everything under load", () => {
  it("recovers from the loss of any part by itself, and loses only what that part was serving", async () => {
    await using loaded = await Loaded.start();
    const { cluster } = loaded;
    const named = await cluster.store.lookup("d1");
    const [lb, cache, agent] = [cluster.lbs[0]!, cluster.caches[0]!, cluster.agents.get("s1")!];

    // the store goes on naming it for an agent that the other proxy holds too
    const proxy = cluster.proxies.find(({ clients }) => clients === named)!;
    const held = await cluster.held(proxy);
    const proxyKilled = await loaded.suffer("proxy killed, restarted after 1 s", () => proxy.replace());
    assertOnly(proxyKilled.cut, held);
    assert.ok(proxyKilled.cut.length > 0);
    assertOnly(proxyKilled.failed, held.filter((id) => !DOUBLE.includes(id)));
    assertNone(await loaded.suffer("proxy frozen for 2 s", () => freeze(proxy.program, 2_000)));

    let lostAt = 0;
    const lbKilled = await loaded.suffer(
      "load balancer killed, restarted after 1 s",
      () => lb.replace(() => lostAt = performance.now()),
    );
    assert.ok(lbKilled.cut.length > 0);
    assert.ok(lbKilled.failed.every(({ startedAt }) => startedAt < lostAt), "a request failed that began when the load balancer was gone");
    assertNone(await loaded.suffer("load balancer frozen for 2 s", () => freeze(lb.program, 2_000)));

    assertNone(
      await loaded.suffer("memcached killed, restarted empty after 1 s", async () => {
        await cache.kill();
        await sleep(1_000);
        await cache.restart();
      }),
    );
    assertNone(await loaded.suffer("memcached frozen for 2 s", () => freeze(cache, 2_000)));

    const agentKilled = await loaded.suffer("agent killed, restarted after 1 s", () => agent.replace());
    assertOnly([...agentKilled.failed, ...agentKilled.cut], ["s1"]);
    assert.ok(agentKilled.cut.length > 0);
    assertNone(await loaded.suffer("agent frozen for 2 s", () => freeze(agent.program, 2_000)));
    if (FULL) {
      await loaded.suffer("proxy frozen for 15 s", () => freeze(proxy.program, 15_000));
      await loaded.suffer("agent frozen for 15 s", () => freeze(agent.program, 15_000));
    }
    assertNone(await loaded.suffer("nginx reloaded", () => Promise.resolve(cluster.nginx.reload())));
    loaded.printSums();
  });

  it("cuts no tunnel and fails no request while proxies and load balancers are restarted one by one", async () => {
    await using loaded = await Loaded.start();
    const { cluster, load } = loaded;
    load.tunnelLifeMs = 1_500; // a part that drains waits for those it has
    assertNone(
      await loaded.suffer("proxies and load balancers restarted one by one", async () => {
        for (const part of [...cluster.proxies, ...cluster.lbs]) {
          part.program.signal("SIGTERM");
          await part.restart();
          await load.settle(performance.now());
        }
      }),
    );
    loaded.printSums();
  });

  it("restores all agents in an empty store within the lifetime of an entry, for a load balancer without earlier lookups", async () => {
    await using cluster = await Cluster.start({ single: SINGLE, double: DOUBLE });
    await using origin = await Origin.start(echo);
    const ids = [...SINGLE, ...DOUBLE];
    await Promise.all(cluster.caches.map((cache) => cache.restart()));
    const start = performance.now();
    for (const id of ids) while (await cluster.store.lookup(id).catch(() => undefined) === undefined) await sleep(20);
    console.log(`entries of all agents are back after ${Math.round(performance.now() - start)} ms, with a life of 3000 ms`);
    await cluster.lbs[0]!.kill();
    await cluster.lbs[1]!.replace();
    for (const id of ids) (await openTunnel(cluster.clients, origin.authority, { id }))[Symbol.dispose]();
  });
});
