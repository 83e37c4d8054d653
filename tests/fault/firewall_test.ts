// A firewall between a proxy and its agents that begins to block UDP under load, and passes it again, with the compiled executables, real
// packet filters and network namespaces. FIREWALL_ROUNDS in the environment repeats it.
import assert from "node:assert/strict";
import { join } from "node:path";
import process from "node:process";
import { describe, it } from "node:test";
import { Firewall, type UdpFilter, withFirewall } from "../../testing/firewall.ts";
import { Load } from "../../testing/load.ts";
import { AGENT, eventually, type LogEntry, type Program, Site } from "../../testing/programs.ts";
import { Origin, type Wire } from "../../testing/sockets.ts";

const ROUNDS = Number(process.env.FIREWALL_ROUNDS ?? 1);
const AGENTS = ["4711", "4712", "4713", "4714", "4715"];
const TUNNELS = 100;
const PER_SECOND = 50;
const PROBE_INTERVAL_MS = 1_000;
/** On a busy machine several probes may find QUIC too slow, and each doubles the interval. */
const PATIENCE_MS = 120_000;
const test = { skip: withFirewall, timeout: 180_000 + ROUNDS * 60_000 };

async function echo(wire: Wire): Promise<void> {
  for (let data; (data = await wire.next()) !== null;) await wire.write(data);
  wire.finish();
}

/** A proxy on this machine, and agents behind the firewall. */
class Guarded implements AsyncDisposable {
  private constructor(
    readonly firewall: Firewall,
    readonly site: Site,
    readonly origin: Origin,
    readonly agents: string,
    readonly clients: string,
  ) {}

  static async start(): Promise<Guarded> {
    const firewall = await Firewall.start();
    const site = await Site.create(firewall.address);
    const origin = await Origin.start(echo, firewall.address);
    const { addresses } = await site.startProxy([], { agents: `${firewall.address}:0`, clients: "127.0.0.1:0" });
    return new Guarded(firewall, site, origin, addresses.agents, addresses.clients);
  }

  /** Starts an agent that remembers nothing. */
  startAgent(id: string, round = 0): Program {
    const { agents, clients, site } = this;
    const state = `--state-dir=${join(site.folder.path, `state-${round}-${id}`)}`;
    const probes = `--agent-client.quic-probe-interval=${PROBE_INTERVAL_MS}ms`;
    return site.start(...this.firewall.command(AGENT, [...site.agentArgs({ agents, clients }, id), state, probes, "--log.level=debug"]));
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.site[Symbol.asyncDispose]();
    await this.origin[Symbol.asyncDispose]();
    await this.firewall[Symbol.asyncDispose]();
  }
}

/** In milliseconds since 1970. */
function timeOf(entry: LogEntry): number {
  return Date.parse(String(entry["@timestamp"]));
}

/** The longest time in milliseconds until the agents have each logged a connection over `link`, `count` in all. */
async function untilAllOn(agents: readonly Program[], link: "quic" | "tls", count: number): Promise<number> {
  const start = performance.now();
  const late = () => agents.filter((agent) => agent.logged("connected", { link }).length < count);
  await eventually(() => late().length === 0, () => late().map(({ said }) => said.replace(/^.*tunnel.*\n/gm, "")).join("\n"), PATIENCE_MS);
  return performance.now() - start;
}

describe("a firewall", () => {
  for (const udp of ["dropped", "rejected", "forbidden"] as const) {
    it(`with which UDP is ${udp} at the start leads to TLS at once`, test, async () => {
      await using guarded = await Guarded.start();
      guarded.firewall.filterUdp(udp);
      const agent = guarded.startAgent(AGENTS[0]!);
      const connected = await agent.waitFor("connected", { link: "tls" });
      const start = await agent.waitFor("connecting");
      console.log(`UDP ${udp}: up over TLS after ${timeOf(connected) - timeOf(start)} ms`);
      assert.deepEqual(agent.logged("link changed").map(({ to, reason }) => [to, reason]), [["tls", "blocked"]]);
      assert.equal(agent.logged("not connected").length, 0);
    });
  }

  for (const udp of ["dropped", "rejected"] as const) {
    it(
      `by which UDP is ${udp} under ${TUNNELS} tunnels and ${PER_SECOND} requests/s leads to TLS, and back without cutting any`,
      test,
      async () => {
        for (let round = 1; round <= ROUNDS; round++) console.log(await runRound(udp, round));
      },
    );
  }
});

/** Number of probes that did not get through over QUIC. On a busy machine QUIC may also be too slow once. */
function failedProbes(agent: Program): number {
  return agent.logged("the transport stays", { link: "tls" }).filter(({ reason }) => !String(reason).includes("slower")).length;
}

/** Blocks UDP under load and passes it again. Returns the figures. */
async function runRound(udp: UdpFilter, round: number): Promise<string> {
  await using guarded = await Guarded.start();
  const { firewall, clients, origin } = guarded;
  const agents = AGENTS.map((id) => guarded.startAgent(id, round));
  await untilAllOn(agents, "quic", 1);
  const load = new Load({ clients, destination: origin.authority, agents: AGENTS, tunnels: TUNNELS, perSecond: PER_SECOND });
  await load.settle(0);

  const blockedAt = performance.now();
  firewall.filterUdp(udp);
  const toTls = await untilAllOn(agents, "tls", 1);
  const onTlsAt = performance.now();
  await load.settle(onTlsAt); // all tunnels are open again, over TLS
  const { failed, slowestMs } = load.report(blockedAt);

  const probesBefore = agents.map(failedProbes);
  const passedAt = performance.now();
  firewall.filterUdp("passed");
  const toQuic = await untilAllOn(agents, "quic", 2);
  await load.settle(performance.now());
  const after = load.report(passedAt);
  const probes = Math.max(...agents.map((agent, i) => failedProbes(agent) - probesBefore[i]!));
  const links = agents.flatMap((agent) => agent.logged("link changed").map(({ to }) => to));
  await load.stop();
  const figures = `round ${round}, UDP ${udp}: over TLS after ${Math.round(toTls)} ms (${failed.length} requests failed, the slowest took ${
    Math.round(slowestMs)
  } ms); over QUIC again after ${Math.round(toQuic)} ms (${after.cut.length} tunnels cut, ${after.failed.length} requests failed)`;
  assert.deepEqual(after.cut.map(({ error }) => error), [], figures);
  assert.deepEqual(after.failed.map(({ error }) => error), [], figures);
  assert.ok(
    probes <= 1,
    `${figures}: ${probes} probes failed after UDP passed again: ${
      agents.map((agent) => agent.logged("the transport stays").map(({ reason }) => reason))
    }`,
  );
  assert.equal(links.length, 2 * AGENTS.length, `${figures}: ${links.join()}`);
  return figures;
}
