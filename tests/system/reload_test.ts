// Running services reload everything under load, with hand-overs in between, with the compiled executables: nothing is cut, and nothing
// refused. REVERSE_HTTP_TEST_LOAD=full makes it 20 reloads with 200 tunnels.
import assert from "node:assert/strict";
import { type AddressInfo, createServer } from "node:net";
import process from "node:process";
import { describe, it } from "node:test";
import { stringify } from "yaml";
import { Load } from "../../testing/load.ts";
import { AGENT, AGENT_ID, LB, type Program, PROXY, Site, storeArgs } from "../../testing/programs.ts";
import { Origin, type Wire } from "../../testing/sockets.ts";
import { StoreServer } from "../../testing/store_servers.ts";

const FULL = process.env["REVERSE_HTTP_TEST_LOAD"] === "full";
const { reloads, tunnels, perSecond } = FULL ? { reloads: 20, tunnels: 200, perSecond: 200 } : { reloads: 4, tunnels: 24, perSecond: 20 };
/** A hand-over follows this many reloads. */
const RELOADS_EACH = 2;

/** An echo server. */
async function echo(wire: Wire): Promise<void> {
  for (let data; (data = await wire.next()) !== null;) await wire.write(data);
  wire.finish();
}

/** Ports of TCP that nothing listens on. */
async function freePorts(count: number): Promise<number[]> {
  const servers = await Promise.all(Array.from({ length: count }, async () => {
    const server = createServer();
    await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
    return server;
  }));
  const ports = servers.map((server) => (server.address() as AddressInfo).port);
  await Promise.all(servers.map((server) => new Promise((resolve) => server.close(resolve))));
  return ports;
}

interface Reloaded {
  readonly file: string;
  readonly args: readonly string[];
  /** What the service logs when it is used. */
  readonly running: string;
  /** Writes the configuration of a round. */
  readonly write: (round: number) => void;
}

/** Reloads a service again and again, each time with other values, and hands it over in between, while the load of `start` is on it. */
async function reloadAndReplace(
  site: Site,
  { file, args, running, write }: Reloaded,
  start: (service: Program) => Promise<Load>,
): Promise<void> {
  write(0);
  let service = site.start(file, args);
  await service.waitFor(running);
  const load = await start(service);
  await load.settle(0);
  for (let round = 1; round <= reloads; round++) {
    write(round);
    service.signal("SIGHUP");
    await service.waitFor("configuration reloaded", {}, (round - 1) % RELOADS_EACH + 1);
    await load.settle(performance.now());
    if (round % RELOADS_EACH !== 0) continue;
    const next = site.start(file, args);
    await service.waitFor("handing over", { pid: next.pid });
    service.signal("SIGHUP"); // it goes to the new process, unless that serves already
    await next.waitFor("taken over", { pid: service.pid });
    await Promise.any([next.waitFor("configuration unchanged"), service.waitFor("signal ignored: another process has taken over")]);
    await load.settle(performance.now());
    service = next;
  }
  await load.stop();
  const { requests, failed, cut } = load.report(0);
  console.log(`${reloads} reloads, ${requests} requests`);
  assert.deepEqual({ failed, cut }, { failed: [], cut: [] });
}

/** What changes in every service: at once, and for new tunnels or connections. */
const common = (round: number) => ({ log: { level: round % 2 === 0 ? "info" : "debug" }, limits: { tunnels: 5_000 + round } });

describe("reloads beside hand-overs", () => {
  it("of a proxy cut no tunnel and refuse no request", async () => {
    await using site = await Site.create();
    await using origin = await Origin.start(echo);
    const [agentPort, clientPort, ...ports] = await freePorts(6);
    const addresses = { agents: `127.0.0.1:${agentPort}`, clients: `127.0.0.1:${clientPort}` };
    const write = (round: number) => {
      const [socks, forward] = ports.slice(round % 2 * 2);
      const config = {
        ...common(round),
        socks: { "listen-address": `127.0.0.1:${socks}` },
        forward: [{ listen: `127.0.0.1:${forward}`, agent: "q", to: origin.authority }],
        "http-proxy": { "host-whitelist": ["127.0.0.1", `round-${round}.example:443`] },
      };
      site.folder.write("proxy.yaml", stringify(config));
    };
    const args = [
      ...site.proxyArgs(addresses),
      `--config=${site.folder.path}/proxy.yaml`,
      `--handover.socket=${site.folder.path}/proxy.sock`,
    ];
    await reloadAndReplace(site, { file: PROXY, args, running: "listening", write }, async () => {
      const agents = ["q", "t"];
      await Promise.all(
        agents.map((id) => site.startAgent(addresses, [`--agent-client.transport=${id === "q" ? "quic" : "tls"}`], id)),
      );
      return new Load({ clients: addresses.clients, destination: origin.authority, agents, tunnels, perSecond });
    });
  });

  it("of a load balancer cut no tunnel and refuse no request", async () => {
    await using store = await StoreServer.start("memcached");
    await using site = await Site.create();
    await using origin = await Origin.start(echo);
    const { addresses } = await site.startProxy(storeArgs(store));
    await site.startAgent(addresses);
    const ports = await freePorts(2);
    const write = (round: number) =>
      site.folder.write("lb.yaml", stringify({ ...common(round), socks: { "listen-address": `127.0.0.1:${ports[round % 2]}` } }));
    const args = [
      "--http-proxy.listen-address=127.0.0.1:0",
      "--log.format=json",
      ...storeArgs(store),
      `--config=${site.folder.path}/lb.yaml`,
      `--handover.socket=${site.folder.path}/lb.sock`,
    ];
    await reloadAndReplace(site, { file: LB, args, running: "listening", write }, async (lb) => {
      const { clients } = await lb.waitFor("listening");
      return new Load({ clients: String(clients), destination: origin.authority, agents: [AGENT_ID], tunnels, perSecond });
    });
  });

  it("of an agent cut no tunnel and refuse no request", async () => {
    await using site = await Site.create();
    await using origin = await Origin.start(echo);
    const { addresses } = await site.startProxy();
    const write = (round: number) =>
      site.folder.write("agent.yaml", stringify({ ...common(round), "agent-client": { labels: [`round=${round}`] } }));
    const args = [
      ...site.agentArgs(addresses),
      `--config=${site.folder.path}/agent.yaml`,
      `--handover.socket=${site.folder.path}/agent.sock`,
    ];
    await reloadAndReplace(
      site,
      { file: AGENT, args, running: "connected", write },
      () =>
        Promise.resolve(new Load({ clients: addresses.clients, destination: origin.authority, agents: [AGENT_ID], tunnels, perSecond })),
    );
  });
});
