// Workers of a proxy on the in-memory network: each has addresses of its own there, and the test plays the supervising process.
import assert from "node:assert/strict";
import { join } from "node:path";
import process from "node:process";
import { describe, it } from "node:test";
import { type Agent, startAgent } from "../../agent/agent.ts";
import { agentOptions } from "../../agent/options.ts";
import { type Proxy, startProxy } from "../../proxy/proxy.ts";
import { proxyOptions } from "../../proxy/options.ts";
import { type LinkUse, WorkerLinks } from "../../proxy/workers/links.ts";
import { checkWorkers, optionsOfWorker } from "../../proxy/workers/options.ts";
import { encodeAgentRequest, parseAgentRequest } from "../../proxy/workers/remote_agent.ts";
import { withDefaults } from "../../shared/config/defaults.ts";
import type { Net } from "../../shared/net/net.ts";
import type { RateOptions } from "../../shared/net/relay.ts";
import type { Worker, WorkerPeer } from "../../shared/service/worker.ts";
import type { MemoryRate } from "../../testing/net/rate.ts";
import { ask, connectTo, LogBook, readUntil, withNet } from "../../testing/network.ts";
import { Folder } from "../../testing/programs.ts";
import { bytes, listenTcp, pause, readText, within } from "../conformance/support.ts";
import { AGENT_ID, checkTunnel, connectRequest, openTunnel } from "./tunnels.ts";

interface Running {
  readonly net: Net;
  readonly proxies: readonly Proxy[];
  readonly logs: readonly LogBook[];
  /** What workers have asked for. */
  readonly asked: string[];
  /** Connects an agent to a worker. */
  connect(to: number, id?: string, log?: LogBook): Promise<Agent>;
  /** Ends a worker, and tells the others. */
  end(index: number): Promise<void>;
}

/** Two workers. The first one serves operators. */
async function withWorkers(body: (running: Running) => Promise<void>, more: object = {}): Promise<void> {
  await withNet(async (net) => {
    using folder = new Folder();
    const [peers, left, asked]: [WorkerPeer[], Set<number>, string[]] = [[], new Set(), []];
    const logs = [new LogBook(), new LogBook()];
    const proxies: Proxy[] = [];
    for (const [index, log] of logs.entries()) {
      const worker: Worker = {
        index,
        count: 2,
        generation: index,
        isFirst: index === 0,
        directory: folder.path,
        secret: "s".repeat(43),
        instance: "proxy-1",
        join: (own) => {
          const before = [...peers];
          peers.push({ ...own, index, generation: index });
          return Promise.resolve(before);
        },
        hasLeft: (generation) => left.has(generation),
        ask: (what) => void asked.push(what),
      };
      const options = withDefaults(proxyOptions, {
        workers: 2,
        stateDir: join(folder.path, "state"),
        agentServer: { listenAddress: "127.0.0.1:0" },
        httpProxy: { listenAddress: "127.0.0.1:0" },
        admin: { listenAddress: "127.0.0.1:9090", tokenFile: folder.write("tokens", `operator anna ${"o".repeat(32)}\n`) },
        ...more,
      });
      proxies.push(await startProxy(options, { net, log, worker }));
    }
    const agents: Agent[] = [];
    const connect: Running["connect"] = async (to, id = AGENT_ID, log = new LogBook()) => {
      const options = withDefaults(agentOptions, {
        agentClient: { serverAddress: [proxies[to]!.agentAddress] },
        auth: { noauth: { agentId: id } },
      });
      const count = logs[to]!.logged("agent connected").length;
      const agent = await startAgent(options, { net, log });
      agents.push(agent);
      await logs[to]!.waitFor("agent connected", {}, count + 1);
      return agent;
    };
    await body({
      net,
      proxies,
      logs,
      asked,
      connect,
      async end(index) {
        await proxies[index]!.close();
        left.add(index);
      },
    });
    await Promise.all(agents.map((agent) => agent.close()));
    await Promise.all(proxies.map((proxy) => proxy.close()));
  });
}

/** Waits until a client of the proxy gets this status. */
async function untilStatus(net: Net, proxy: Proxy, request: string, status: number): Promise<void> {
  const deadline = performance.now() + 10_000;
  for (;;) {
    const answer = await ask(net, proxy.clientAddress, request);
    if (answer.status === status) return;
    assert.ok(performance.now() < deadline, `the status is still ${answer.status}`);
    await pause(10);
  }
}

describe("a client at one worker", () => {
  it("reaches an agent at another one, with half-closed tunnels and resets as they are", () =>
    withWorkers(async ({ net, proxies: [one, two], logs, connect }) => {
      await connect(1);
      const origin = await listenTcp(net);
      const tunnel = await openTunnel(net, one!, origin);
      await checkTunnel(tunnel);
      tunnel.client.closeWrite();
      assert.equal(await readText(tunnel.server), "");
      await tunnel.server.write(bytes("after"));
      tunnel.server.close();
      assert.equal(await readText(tunnel.client), "after");
      await logs[0]!.waitFor("request", { agent: AGENT_ID, status: 200, received: 9 });
      const reset = await openTunnel(net, one!, origin);
      reset.server.reset(1);
      await assert.rejects(readText(reset.client), { code: "reset" });
      await checkTunnel(await openTunnel(net, two!, origin));
    }));

  it("gets the agent's errors, and sends plain requests through it", () =>
    withWorkers(async ({ net, proxies: [one], connect }) => {
      await connect(1);
      const origin = await listenTcp(net);
      const refused = await ask(net, one!.clientAddress, connectRequest({ port: 1 } as typeof origin));
      assert.equal(refused.status, 502);
      assert.match(refused.field("proxy-status") ?? "", /error=connection_refused/);
      const client = await connectTo(net, one!.clientAddress);
      await client.write(
        bytes(`GET http://127.0.0.1:${origin.port}/ HTTP/1.1\r\nHost: a\r\nProxy-Authorization: Basic ${btoa(`${AGENT_ID}:x`)}\r\n\r\n`),
      );
      const { stream } = await within(origin.request());
      await stream.write(bytes("HTTP/1.1 204 No Content\r\n\r\n"));
      assert.match(await readUntil(client, "\r\n\r\n"), /^HTTP\/1\.1 204 /);
      client.close();
    }));

  it("is refused when the worker of the agent has ended, and served when the agent has come to another one", () =>
    withWorkers(async ({ net, proxies: [one], connect, end }) => {
      await connect(1);
      const origin = await listenTcp(net);
      await checkTunnel(await openTunnel(net, one!, origin));
      await end(1);
      await untilStatus(net, one!, connectRequest({ port: 1 } as typeof origin), 502);
      const gone = await ask(net, one!.clientAddress, connectRequest(origin));
      assert.match(gone.field("proxy-status") ?? "", /error=destination_unavailable/);
      await connect(0);
      await checkTunnel(await openTunnel(net, one!, origin));
    }));
});

describe("an agent that connects to another worker", () => {
  it("replaces another one with its id there", () =>
    withWorkers(async ({ logs, connect }) => {
      await connect(0);
      await connect(1);
      await logs[0]!.waitFor("agent replaced", { agent: AGENT_ID });
      await logs[0]!.waitFor("agent disconnected", { agent: AGENT_ID });
    }));

  it("is one of several with its id, if these may be", () =>
    withWorkers(async ({ net, proxies: [one], logs, connect }) => {
      await connect(0);
      await connect(1);
      const origin = await listenTcp(net);
      for (let count = 0; count < 2; count++) await openTunnel(net, one!, origin);
      const lines = logs[0]!.logged("agent replaced");
      assert.deepEqual(lines, []);
    }, { agentServer: { listenAddress: "127.0.0.1:0", agent: { multiple: true } } }));
});

describe("a link", () => {
  it("tells at first more than may wait to be sent later", () =>
    withNet(async (net) => {
      const peers: WorkerPeer[] = [];
      const worker = (index: number): Worker => ({
        index,
        count: 2,
        generation: index,
        isFirst: index === 0,
        directory: "",
        secret: "s",
        instance: "",
        join: (own) => Promise.resolve(peers.splice(0, 1, { ...own, index, generation: index })),
        hasLeft: () => false,
        ask: () => {},
      });
      const sizes: number[] = [];
      const use = (snapshot: { text: string }[]): LinkUse<{ text: string }> => ({
        snapshot: () => snapshot,
        told: (_link, { text }) => void sizes.push(text.length),
        requested: () => {},
        closed: () => {},
      });
      const all = await Promise.all([0, 1].map((index) => WorkerLinks.open<{ text: string }>(worker(index), net, new LogBook())));
      await all[0]!.start(use(Array.from({ length: 70 }, () => ({ text: "x".repeat(1_000_000) }))));
      await all[1]!.start(use([]));
      assert.deepEqual([sizes.length, sizes[69]], [70, 1_000_000]);
      for (const links of all) await links.close();
    }));
});

describe("the first worker", () => {
  it("answers operators for all", () =>
    withWorkers(async ({ net, proxies: [one, two], asked, connect }) => {
      await connect(0, "site0");
      await connect(1, "site1");
      const send = async (method: string, path: string, body = "") => {
        const fields = `Host: ${one!.adminAddress}\r\nAuthorization: Bearer ${"o".repeat(32)}\r\n`;
        const content = body && `Content-Type: application/json\r\nContent-Length: ${body.length}\r\n`;
        return await ask(net, one!.adminAddress!, `${method} ${path} HTTP/1.1\r\n${fields}${content}\r\n${body}`);
      };
      assert.equal(two!.adminAddress, undefined);
      const agents = JSON.parse((await send("GET", "/api/v1/agents")).body) as { items: { id: string; member: string }[] };
      assert.deepEqual(agents.items.map(({ id, member }) => [id, member]), [["site0", "worker:0"], ["site1", "worker:1"]]);
      const status = JSON.parse((await send("GET", "/api/v1/status")).body) as { now: { agents: number }; members: unknown[] };
      assert.deepEqual([status.now.agents, status.members.length], [2, 2]);
      const { body: metrics } = await send("GET", "/metrics");
      assert.match(metrics, /^reverse_http_agents\{worker="0"\} 1\nreverse_http_agents\{worker="1"\} 1$/m);
      assert.equal(metrics.match(/^# TYPE reverse_http_agents /gm)?.length, 1);
      const listed = JSON.parse((await send("GET", "/agents")).body) as { id: string }[];
      assert.deepEqual(listed.map(({ id }) => id).sort(), ["site0", "site1"]);
      const disconnected = JSON.parse((await send("POST", "/api/v1/agents/disconnect", `{"agent":"site1"}`)).body) as { affected: number };
      assert.equal(disconnected.affected, 1);
      assert.equal((await send("POST", "/api/v1/drain", "{}")).status, 202);
      while (asked.length === 0) await pause(10);
      assert.deepEqual(asked, ["stop"]);
    }));
});

describe("a request for an agent at another worker", () => {
  it("names the connection, and is the agent's otherwise", () => {
    const head = bytes("CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\n\r\n");
    const encoded = encodeAgentRequest({ connection: "c-1", timeoutMs: 4e9 + 0.3, datagrams: true, head });
    const text = new TextDecoder("latin1").decode(encoded);
    const parsed = parseAgentRequest(text)!;
    assert.deepEqual([parsed.connection, parsed.timeoutMs, parsed.datagrams], ["c-1", 4e9 + 1, true]);
    assert.deepEqual(new Uint8Array(parsed.head), head);
    assert.equal(parseAgentRequest(new TextDecoder().decode(head)), undefined);
  });
});

describe("the options of workers", () => {
  it("that do not go together are refused", () => {
    const check = (more: object) => () => checkWorkers(withDefaults(proxyOptions, { workers: 2, ...more }));
    const refused: [object, RegExp][] = [
      [{ handover: { socket: "/run/a" } }, /--handover\.socket/],
      [{ admin: { cluster: { keyFile: "/run/key" } } }, /--admin\.cluster\.key-file/],
      [{ acme: { published: true } }, /published/],
      [{ acme: { domain: ["a.example"], challenge: "tls-alpn-01" } }, /--acme\.challenge/],
    ];
    for (const [more, message] of refused) assert.throws(check(more), message);
    if (process.platform === "linux") check({})();
  });

  it("share memory, what the engine counts, and the ports that the system has chosen", () => {
    const options = withDefaults(proxyOptions, {
      workers: 4,
      agentServer: { listenAddress: "[::1]:0" },
      httpProxy: { listenAddress: ":3128" },
      limits: { memoryWatermark: "85%", bufferMemory: "2GiB", pendingRequests: 10, handshakes: 0 },
    });
    const addresses = { agents: "[::1]:4000", clients: "[::]:3128", forwards: [] };
    const own = optionsOfWorker(options, { count: 4, addresses } as unknown as Worker);
    assert.deepEqual([own.agentServer.listenAddress, own.httpProxy.listenAddress], ["[::1]:4000", ":3128"]);
    const { memoryWatermark, bufferMemory, pendingRequests, handshakes, tunnels } = own.limits;
    assert.deepEqual([memoryWatermark, bufferMemory, pendingRequests, handshakes], ["21%", "512MiB", 3, 0]);
    assert.equal(tunnels, options.limits.tunnels);
  });
});

describe("limits of workers", () => {
  it("have the bandwidth of an agent hold where the agent is", () =>
    withWorkers(async ({ net, proxies: [one], connect }) => {
      await connect(1);
      const origin = await listenTcp(net);
      const granted: number[] = [];
      const createRate = net.createRate.bind(net);
      Object.assign(net, {
        createRate: (options: RateOptions) => {
          const rate = createRate(options) as MemoryRate;
          const [at, grant] = [granted.push(0) - 1, rate.grant.bind(rate)];
          return Object.assign(rate, {
            grant: (bytes: number) => {
              granted[at]! += bytes;
              return grant(bytes);
            },
          });
        },
      });
      const tunnels = [await openTunnel(net, one!, origin), await openTunnel(net, one!, origin)];
      for (const tunnel of tunnels) await checkTunnel(tunnel);
      // each worker has one for all tunnels of the agent
      assert.equal(granted.length, 2);
      assert.ok(granted[0]! > 0);
      assert.equal(granted[0], granted[1]);
    }, { limits: { bandwidthPerAgent: "1MiB" } }));

  it("hold for all together, and count nothing of a worker that has ended", () =>
    withWorkers(async ({ net, proxies: [one, two], logs, connect, end }) => {
      await connect(0);
      const origin = await listenTcp(net);
      const probe = connectRequest({ port: 1 } as typeof origin); // no tunnel in any case
      const here = await openTunnel(net, one!, origin);
      await openTunnel(net, two!, origin);
      for (const proxy of [one!, two!]) await untilStatus(net, proxy, probe, 503);
      await logs[0]!.waitFor("limit reached", { limit: "tunnels", max: 2 });
      here.client.closeWrite();
      await readText(here.server);
      here.server.close();
      await readText(here.client);
      await untilStatus(net, two!, probe, 502);
      const again = await openTunnel(net, one!, origin);
      await untilStatus(net, one!, probe, 503);
      await end(1);
      await checkTunnel(again);
      await untilStatus(net, one!, probe, 502);
    }, { limits: { tunnels: 2 } }));
});
