// How tunnels and plain requests end when one of their ends disconnects: with the compiled executables, directly and through lb.
import { execa } from "execa";
import assert from "node:assert/strict";
import { join } from "node:path";
import process from "node:process";
import { after, before, describe, it } from "node:test";
import { eventually, openDescriptors, type Program, ROOT, Site, storeArgs } from "../../testing/programs.ts";
import { SilentPort } from "../support/silent_port.ts";
import { connectHead, credentials, dial, openTunnel, Origin, type Wire } from "../../testing/sockets.ts";
import { StoreServer } from "../../testing/store_servers.ts";

/** The state of a direction when an end disconnects. */
const ACTIVITIES = ["idle", "blocked", "ended"] as const;
const STATES = ACTIVITIES.flatMap((up) => ACTIVITIES.map((down) => ({ up, down })))
  .filter(({ up, down }) => up !== "ended" || down !== "ended");

/** lb, proxy and agent, and both paths to the agent. */
class Chain implements AsyncDisposable {
  private constructor(
    readonly site: Site,
    readonly cache: StoreServer,
    readonly proxy: Program,
    readonly agent: Program,
    readonly lb: Program,
    readonly ways: Readonly<Record<Way, string>>,
  ) {}

  static async start(): Promise<Chain> {
    const cache = await StoreServer.start("memcached");
    const site = await Site.create();
    const { lb, clients } = await site.startLb(cache);
    const { proxy, addresses } = await site.startProxy([...storeArgs(cache), "--store.ttl=3s"]);
    const agent = await site.startAgent(addresses);
    const chain = new Chain(site, cache, proxy, agent, lb, { "directly": addresses.clients, "through lb": clients });
    await chain.#found();
    return chain;
  }

  /** Until the store knows the agent. */
  async #found(): Promise<void> {
    await using origin = await Origin.start();
    for (const deadline = performance.now() + 20_000;;) {
      try {
        using client = await openTunnel(this.ways["through lb"], origin.authority);
        return client.reset();
      } catch (error) {
        if (performance.now() > deadline) throw error;
        await new Promise((resolve) => setTimeout(resolve, 50));
      }
    }
  }

  /** Resolves when no program has a tunnel to `destination` any more. */
  async gone(way: Way, destination: string): Promise<void> {
    const programs = way === "directly" ? [this.proxy] : [this.proxy, this.lb];
    await Promise.all([
      this.agent.waitFor("tunnel", { destination }),
      ...programs.map((program) => program.waitFor("request", { destination })),
    ]);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.site[Symbol.asyncDispose]();
    await this.cache[Symbol.asyncDispose]();
  }
}

type Way = "directly" | "through lb";
const WAYS: readonly Way[] = ["directly", "through lb"];

/** Writes until the peer accepts no more. A pending write may fail later. */
async function fill(wire: Wire): Promise<void> {
  const block = new Uint8Array(256 * 1024);
  for (;;) {
    const write = wire.write(block).then(() => "taken" as const, (error) => error instanceof Error ? error : new Error(String(error)));
    const late = new Promise<"late">((resolve) => setTimeout(resolve, 300, "late"));
    const outcome = await Promise.race([write, late]);
    if (outcome instanceof Error) throw outcome;
    if (outcome === "late") return;
  }
}

describe("an end that disconnects", () => {
  let chain: Chain;
  before(async () => chain = await Chain.start());
  after(async () => await chain[Symbol.asyncDispose]());

  for (const way of WAYS) {
    for (const who of ["client", "destination"] as const) {
      it(`leaves no tunnel open, ${way}, when the ${who} resets it, in any state of both directions`, async () => {
        const cases = STATES.map(async ({ up, down }) => {
          await using origin = await Origin.start();
          using client = await openTunnel(chain.ways[way], origin.authority, { highWater: 0 });
          const server = await origin.accept();
          for (const [from, to, activity] of [[client, server, up], [server, client, down]] as const) {
            if (activity === "blocked") {
              to.socket.pause();
              await fill(from);
            } else if (activity === "ended") {
              from.finish();
              assert.equal((await to.readAll()).length, 0);
            }
          }
          (who === "client" ? client : server).reset();
          const at = performance.now();
          await chain.gone(way, origin.authority);
          return { up, down, ms: performance.now() - at };
        });
        const late = (await Promise.all(cases)).filter(({ ms }) => ms > 10_000); // 2 s on a machine with nothing else to do
        assert.deepEqual(late, []);
      });
    }

    it(`leaves nothing open, ${way}, after many tunnels to a silent listener that were finished, and reset`, async () => {
      await using origin = await Origin.start();
      const programs = [chain.proxy, chain.agent, chain.lb];
      const rounds = Number(process.env["REVERSE_HTTP_ROUNDS"] ?? 50);
      const before = programs.map(({ pid }) => openDescriptors(pid));
      for (let round = 0; round < rounds; round++) {
        const client = await openTunnel(chain.ways[way], origin.authority);
        client.finish();
        client.reset();
      }
      await chain.agent.waitFor("tunnel", { destination: origin.authority }, rounds);
      const descriptors = () => programs.map(({ pid }) => openDescriptors(pid));
      // some are pooled, or of an agent that has come back
      await eventually(() => descriptors().every((n, i) => n <= before[i]! + 4), () => `${before} descriptors became ${descriptors()}`);
    });

    it(`ends a plain request, ${way}, whose client is reset while the server is silent`, async () => {
      await using origin = await Origin.start();
      using client = await dial(chain.ways[way]);
      await client.write(`GET http://${origin.authority}/ HTTP/1.1\r\n${credentials()}\r\n`);
      const server = await origin.accept();
      await server.readUntil("\r\n\r\n");
      client.reset();
      assert.equal(await server.ending(), "ECONNRESET");
      await chain.gone(way, origin.authority);
    });

    it(`ends a plain request, ${way}, whose client has finished and is then reset`, async () => {
      await using origin = await Origin.start();
      using client = await dial(chain.ways[way]);
      await client.write(`GET http://${origin.authority}/ HTTP/1.1\r\n${credentials()}\r\n`);
      client.finish();
      const server = await origin.accept();
      await server.readUntil("\r\n\r\n");
      assert.equal((await server.readAll()).length, 0);
      client.reset();
      assert.equal(await server.ending(), "finished"); // before the reset that comes now
      await chain.gone(way, origin.authority);
    });

    it(`responds to a plain request, ${way}, whose client has finished`, async () => {
      await using origin = await Origin.start();
      using client = await dial(chain.ways[way]);
      client.finish(`GET http://${origin.authority}/ HTTP/1.1\r\n${credentials()}\r\n`);
      const server = await origin.accept();
      await server.readUntil("\r\n\r\n");
      assert.equal((await server.readAll()).length, 0);
      server.finish("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nhere");
      assert.match((await client.readAll()).toString(), /^HTTP\/1\.1 200 OK\r\n[^]*\r\n\r\nhere$/);
    });

    for (const [what, request] of [["tunnel", connectHead], ["plain request", plainHead]] as const) {
      it(`cancels the dial of a ${what}, ${way}, whose client resets its connection`, async () => {
        await using silent = await SilentPort.start();
        using client = await dial(chain.ways[way]);
        await client.write(request(silent.authority));
        await eventually(() => silent.attempts > 0, () => "the agent does not connect");
        client.reset();
        const at = performance.now();
        const { status } = await chain.agent.waitFor("tunnel refused", { destination: silent.authority });
        assert.equal(status, 502);
        const { error } = await chain.proxy.waitFor("request", { destination: silent.authority });
        assert.equal(error, "connection_terminated");
        if (way === "through lb") await chain.lb.waitFor("request", { destination: silent.authority, error: "connection_terminated" });
        assert.ok(performance.now() - at < 8_000, "it was waited for"); // the agent's own limit is 9 s
      });
    }
  }

  it("cancels the dial of a client that has disconnected without a reset", async () => {
    await using silent = await SilentPort.start();
    using client = await dial(chain.ways.directly);
    client.finish(connectHead(silent.authority));
    const { reason } = await chain.proxy.waitFor("request", { destination: silent.authority, error: "connection_terminated" });
    assert.match(String(reason), /The client has disconnected/);
  });
});

function plainHead(authority: string): string {
  return `GET http://${authority}/ HTTP/1.1\r\n${credentials()}\r\n`;
}

describe("a TLS client that closes its connection without a close_notify", () => {
  for (const size of [1_000, 1_000_000, 20_000_000]) {
    it(`has all of its ${size} bytes delivered, every time, without an error in the log`, async () => {
      await using site = await Site.create();
      const tls = [
        "--http-proxy.tls.enable",
        `--http-proxy.tls.file.cert=${site.files.cert}`,
        `--http-proxy.tls.file.key=${site.files.key}`,
      ];
      const { proxy, addresses } = await site.startProxy(tls);
      const agent = await site.startAgent(addresses);
      const rounds = Number(process.env["REVERSE_HTTP_ROUNDS"] ?? 5);
      for (let round = 1; round <= rounds; round++) {
        await using origin = await Origin.start();
        const { authority } = origin;
        const port = addresses.clients.split(":").at(-1)!;
        const args = [port, site.files.ca, authority, credentials().trim(), String(size)];
        const client = execa("python3", [join(ROOT, "tests", "clients", "abandon_tls.py"), ...args]);
        const server = await origin.accept();
        assert.equal((await server.readAll()).length, size);
        server.finish();
        await client;
        for (
          const entry of [
            await proxy.waitFor("request", { destination: authority }),
            await agent.waitFor("tunnel", { destination: authority }),
          ]
        ) {
          assert.deepEqual([entry["sent"], entry["error"], entry["reason"]], [size, undefined, undefined]);
        }
      }
    });
  }
});
