// A network between a proxy and an agent that blocks UDP, with the compiled executables and relays of UDP and TCP between them: which
// transport carries the link, and that no tunnel is cut by a change of it.
import assert from "node:assert/strict";
import { join } from "node:path";
import process from "node:process";
import { describe, it } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import { check } from "../../testing/load.ts";
import { freeAddress } from "../../testing/nginx.ts";
import { AGENT, eventually, type LogEntry, type Program, Site } from "../../testing/programs.ts";
import { ask, openTunnel, Origin, type Wire } from "../../testing/sockets.ts";
import { TcpRelay } from "../../testing/tcp_relay.ts";
import { UdpRelay } from "../../testing/udp_relay.ts";

const SLOW = process.versions.deno !== undefined && "a network made of Deno's UDP sockets is too slow; Bun runs these tests";
const PATIENT = { timeout: 120_000, skip: SLOW };
/** Probes come soon in these tests. */
const PROBES = "--agent-client.quic-probe-interval=1s";

async function echo(wire: Wire): Promise<void> {
  for (let data; (data = await wire.next()) !== null;) await wire.write(data);
  wire.finish();
}

/** What the network does with UDP and TCP. */
interface Conditions {
  /** `rejected`: no program has the port, so the system answers with ICMP. */
  udp: "passed" | "dropped" | "rejected";
  tcp: "passed" | "dropped" | "rejected";
}

/** A proxy, and a network in front of it that agents connect through. */
class Network implements AsyncDisposable {
  udp?: UdpRelay;
  tcp?: TcpRelay;
  agent!: Program;

  private constructor(
    readonly site: Site,
    readonly proxy: Program,
    readonly clients: string,
    readonly servers: { udp: string; tcp: string },
    readonly address: string,
    readonly origin: Origin,
  ) {}

  static async start(conditions: Conditions, args: readonly string[] = []): Promise<Network> {
    const site = await Site.create();
    const { proxy, addresses } = await site.startProxy(["--admin.listen-address=127.0.0.1:0", ...args]);
    const { agentsTcp } = await proxy.waitFor("listening");
    const servers = { udp: addresses.agents, tcp: String(agentsTcp) };
    const network = new Network(site, proxy, addresses.clients, servers, await freeForBoth(), await Origin.start(echo));
    await network.change(conditions);
    return network;
  }

  async change({ udp, tcp }: Conditions): Promise<void> {
    if (udp === "rejected") {
      await this.udp?.[Symbol.asyncDispose]();
      this.udp = undefined;
    } else {
      this.udp ??= await UdpRelay.start({ server: this.servers.udp, listen: this.address });
      this.udp.change({ blocked: udp === "dropped" });
    }
    if (tcp === "rejected") {
      await this.tcp?.[Symbol.asyncDispose]();
      this.tcp = undefined;
    } else {
      this.tcp ??= await TcpRelay.start(this.address, this.servers.tcp);
      this.tcp.isBlocked = tcp === "dropped";
    }
  }

  startAgent(args: readonly string[] = []): Program {
    const { address: agents, clients } = this;
    const state = `--state-dir=${join(this.site.folder.path, "state")}`;
    return this.agent = this.site.start(AGENT, [...this.site.agentArgs({ agents, clients }), state, "--log.level=debug", ...args]);
  }

  /** A tunnel that sends back what comes. */
  async open(): Promise<Wire> {
    const tunnel = await openTunnel(this.clients, this.origin.authority);
    await check(tunnel);
    return tunnel;
  }

  /** Waits until a tunnel can be opened. */
  async untilTunnel(): Promise<void> {
    for (;;) {
      const tunnel = await this.open().catch(() => undefined);
      tunnel?.[Symbol.dispose]();
      if (tunnel) return;
      await sleep(20);
    }
  }

  async links(): Promise<string[]> {
    const { admin } = await this.proxy.waitFor("listening");
    const { body } = await ask(String(admin), "GET /agents HTTP/1.1\r\nHost: a\r\n\r\n");
    return (JSON.parse(body) as { link: string }[]).map(({ link }) => link);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.site[Symbol.asyncDispose]();
    await this.udp?.[Symbol.asyncDispose]();
    await this.tcp?.[Symbol.asyncDispose]();
    await this.origin[Symbol.asyncDispose]();
  }
}

/** An address that is free for UDP and TCP. */
async function freeForBoth(): Promise<string> {
  for (;;) {
    const address = await freeAddress();
    const relay = await TcpRelay.start(address, address).catch(() => undefined);
    await relay?.[Symbol.asyncDispose]();
    if (relay) return address;
  }
}

const OPEN: Conditions = { udp: "passed", tcp: "passed" };

function changes(agent: Program): (readonly [LogEntry["to"], LogEntry["reason"]])[] {
  return agent.logged("link changed").map(({ to, reason }) => [to, reason]);
}

describe("an agent in a restricted network", () => {
  for (const udp of ["dropped", "rejected"] as const) {
    it(`connects over TLS where UDP is ${udp}, and starts with TLS the next time`, PATIENT, async () => {
      await using network = await Network.start({ udp, tcp: "passed" });
      const agent = network.startAgent();
      await agent.waitFor("connected", { link: "tls" });
      assert.deepEqual(changes(agent), [["tls", "blocked"]]);
      (await network.open())[Symbol.dispose]();
      agent.signal("SIGTERM");
      assert.equal((await agent.ended).exitCode, 0);
      const next = network.startAgent();
      await next.waitFor("connected", { link: "tls" });
      assert.deepEqual(changes(next), [["tls", "remembered"]]);
      (await network.open())[Symbol.dispose]();
    });
  }

  it("connects over QUIC where both pass", PATIENT, async () => {
    await using network = await Network.start(OPEN);
    const agent = network.startAgent();
    await agent.waitFor("connected", { link: "quic" });
    (await network.open())[Symbol.dispose]();
    assert.deepEqual(changes(agent), []);
    assert.deepEqual(await network.links(), ["quic"]);
  });

  it("connects within a WebSocket where UDP and TLS are blocked, remembers that, and returns to QUIC", PATIENT, async () => {
    await using network = await Network.start({ udp: "dropped", tcp: "dropped" }, ["--agent-server.websocket-path=/reverse-http"]);
    const url = `--agent-client.websocket-url=ws://${network.clients}/reverse-http`;
    const first = network.startAgent([url]);
    await first.waitFor("connected", { link: "websocket" });
    assert.deepEqual(changes(first), [["websocket", "blocked"]]);
    first.signal("SIGTERM");
    assert.equal((await first.ended).exitCode, 0);
    const agent = network.startAgent([url, PROBES]);
    await agent.waitFor("connected", { link: "websocket" });
    const tunnels = await Promise.all(Array.from({ length: 20 }, () => network.open()));
    await network.change({ udp: "passed", tcp: "dropped" });
    await agent.waitFor("connected", { link: "quic" });
    assert.deepEqual(changes(agent), [["websocket", "remembered"], ["quic", "recovered"]]);
    for (const tunnel of tunnels) await check(tunnel);
    for (const tunnel of tunnels) tunnel[Symbol.dispose]();
    await network.proxy.waitFor("agent disconnected", {}, 2);
    assert.deepEqual(await network.links(), ["quic"]);
  });

  it("goes on within a WebSocket when UDP and TLS are blocked under it", PATIENT, async () => {
    await using network = await Network.start(OPEN, ["--agent-server.websocket-path=/reverse-http"]);
    const agent = network.startAgent([`--agent-client.websocket-url=ws://${network.clients}/reverse-http`]);
    await agent.waitFor("connected", { link: "quic" });
    await network.change({ udp: "dropped", tcp: "dropped" });
    await agent.waitFor("connected", { link: "websocket" });
    assert.deepEqual(changes(agent), [["websocket", "silent"]]);
    await network.untilTunnel();
  });

  it("returns to QUIC when UDP passes again, and cuts no tunnel", PATIENT, async () => {
    await using network = await Network.start({ udp: "dropped", tcp: "passed" });
    const agent = network.startAgent([PROBES]);
    await agent.waitFor("connected", { link: "tls" });
    const tunnels = await Promise.all(Array.from({ length: 20 }, () => network.open()));
    await agent.waitFor("the transport stays", { link: "tls" });
    await network.change(OPEN);
    await agent.waitFor("connected", { link: "quic" });
    assert.deepEqual(changes(agent), [["tls", "blocked"], ["quic", "recovered"]]);
    using next = await network.open();
    for (const tunnel of tunnels) await check(tunnel);
    assert.deepEqual((await network.links()).sort(), ["quic", "tls"]);
    for (const tunnel of tunnels) tunnel[Symbol.dispose]();
    await network.proxy.waitFor("agent disconnected");
    assert.deepEqual(await network.links(), ["quic"]);
    await check(next);
  });

  for (const udp of ["dropped", "rejected"] as const) {
    it(`goes on over TLS when UDP is ${udp} under it, and over QUIC again after that`, PATIENT, async () => {
      await using network = await Network.start(OPEN);
      const agent = network.startAgent([PROBES]);
      await agent.waitFor("connected", { link: "quic" });
      const busy = await network.open();
      await network.change({ udp, tcp: "passed" });
      busy.write(new Uint8Array(100_000)).catch(() => {}); // it is cut with its link
      await agent.waitFor("connected", { link: "tls" });
      await network.untilTunnel();
      using tunnel = await network.open();
      await network.change(OPEN);
      await agent.waitFor("connected", { link: "quic" }, 2);
      await check(tunnel);
      assert.deepEqual(changes(agent), [["tls", "silent"], ["quic", "recovered"]]);
      busy[Symbol.dispose]();
    });
  }

  for (
    const [what, weather] of [
      ["that loses much", { loss: 0.4 }],
      ["whose large packets do not pass", { mtu: 1_150 }],
    ] as const
  ) {
    it(`leaves a QUIC ${what}`, PATIENT, async () => {
      await using network = await Network.start(OPEN);
      const agent = network.startAgent();
      await agent.waitFor("connected", { link: "quic" });
      network.udp!.change(weather);
      const busy = new AbortController();
      const use = async (): Promise<void> => {
        while (!busy.signal.aborted) {
          const tunnel = await openTunnel(network.clients, network.origin.authority).catch(() => undefined);
          const ended = tunnel?.write(new Uint8Array(300_000)).then(() => tunnel.read(300_000));
          await Promise.race([ended?.catch(() => {}), sleep(2_000)]);
          tunnel?.[Symbol.dispose]();
        }
      };
      const users = Array.from({ length: 5 }, use);
      await eventually(() => changes(agent).length > 0, () => "the link was not changed", 60_000);
      busy.abort();
      await Promise.all(users);
      assert.deepEqual(changes(agent).map(([to]) => to), ["tls"]); // nothing comes for a while, or packets are lost
      await check(await network.open());
    });
  }

  it("stays on QUIC where the whole network is away for a while", PATIENT, async () => {
    await using network = await Network.start(OPEN);
    const agent = network.startAgent();
    await agent.waitFor("connected", { link: "quic" });
    using tunnel = await network.open();
    const before = network.tcp!.connections;
    await network.change({ udp: "dropped", tcp: "dropped" });
    tunnel.write(new TextEncoder().encode("pass on")).catch(() => {});
    await eventually(() => network.tcp!.connections > before, () => "TLS was not tried", 20_000);
    await sleep(500); // an attempt is under way when both come back
    await network.change(OPEN);
    await tunnel.readUntil("pass on");
    await network.untilTunnel();
    assert.deepEqual(changes(agent), []);
    assert.deepEqual(await network.links(), ["quic"]);
  });

  it("takes QUIC where neither passed before, and only UDP does then", PATIENT, async () => {
    await using network = await Network.start({ udp: "dropped", tcp: "dropped" });
    const agent = network.startAgent();
    await agent.waitForText("connecting");
    await eventually(() => network.tcp!.connections > 0, () => "TLS was not tried", 20_000);
    await network.change({ udp: "passed", tcp: "dropped" });
    await agent.waitFor("connected", { link: "quic" });
    (await network.open())[Symbol.dispose]();
  });

  it("takes QUIC where TLS carried it, and then only UDP passes", PATIENT, async () => {
    await using network = await Network.start({ udp: "dropped", tcp: "passed" });
    const agent = network.startAgent();
    await agent.waitFor("connected", { link: "tls" });
    await network.change({ udp: "passed", tcp: "rejected" });
    await agent.waitFor("connected", { link: "quic" });
    (await network.open())[Symbol.dispose]();
    assert.deepEqual(changes(agent), [["tls", "blocked"], ["quic", "recovered"]]);
  });

  it("names what answers over TLS where that is not the proxy", PATIENT, async () => {
    await using network = await Network.start({ udp: "dropped", tcp: "passed" });
    await using other = await Site.create();
    const { proxy } = await other.startProxy();
    network.tcp!.server = String((await proxy.waitFor("listening")).agentsTcp);
    const agent = network.startAgent();
    const { reason } = await agent.waitFor("the proxy cannot be reached over TLS");
    assert.match(String(reason), /certificate: BadSignature; it is for ".*" and issued by "CN=Test CA"; .*--agent-client\.tls\./);
    network.tcp!.server = network.servers.tcp;
    await agent.waitFor("connected", { link: "tls" });
  });

  it("uses what it is told to", PATIENT, async () => {
    await using network = await Network.start({ udp: "dropped", tcp: "passed" });
    const agent = network.startAgent(["--agent-client.transport=quic"]);
    await agent.waitFor("not connected");
    assert.equal(network.tcp!.connections, 0);
    agent.signal("SIGTERM");
    await agent.ended;
    await network.change(OPEN);
    await network.startAgent(["--agent-client.transport=tls"]).waitFor("connected", { link: "tls" });
    assert.equal(network.udp!.toServer.counts.sent, 0);
  });

  it("meets the same limits, drains and certificates over TLS", PATIENT, async () => {
    await using network = await Network.start({ udp: "dropped", tcp: "passed" }, ["--drain.timeout=20s"]);
    const agent = network.startAgent();
    await agent.waitFor("connected", { link: "tls" });
    const tunnel = await network.open();
    network.proxy.signal("SIGTERM");
    await agent.waitFor("reconnecting");
    await check(tunnel);
    tunnel[Symbol.dispose]();
    assert.equal((await network.proxy.ended).exitCode, 0);
  });
});
