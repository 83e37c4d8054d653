// What a proxy learns about its agents from their responses to requests for tunnels.
import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { AgentRegistry, type ConnectedAgent } from "../../proxy/agents/registry.ts";
import { StalledAgentMonitor } from "../../proxy/agents/stalled_agents.ts";
import { dialAgent } from "../../proxy/dial.ts";
import { DestinationFailures } from "../../proxy/agents/destination_failures.ts";
import { statusOf } from "../../shared/http/status.ts";
import { NetError, type NetErrorCode } from "../../shared/net/errors.ts";
import type { AgentSession, SessionKind } from "../../shared/net/session.ts";
import type { Span } from "../../shared/tracing/span.ts";
import { TunnelError } from "../../shared/tunnel/errors.ts";
import type { TunnelRequest } from "../../shared/tunnel/request.ts";
import { streamPair } from "../../testing/network.ts";

function held(instance: string, connection: AgentSession, features: string[] = []): ConnectedAgent {
  return {
    id: instance,
    connection,
    via: { address: "" },
    credentials: new Uint8Array(),
    identity: { agentId: "a" },
    since: new Date(0),
    hello: { version: "", instance, host: "", labels: {}, features },
    tunnels: 0,
    lastRequestAt: 0,
    isDraining: false,
    hasMigrated: false,
  };
}

function tunnelRequest(signal?: AbortSignal): TunnelRequest {
  return {
    network: "tcp",
    id: "r-1",
    agentId: "a",
    identity: { agentId: "a" },
    client: "192.0.2.1:5000",
    destination: { host: "db", port: 5432 },
    credentials: { scheme: "basic", username: "a", password: "" },
    via: [],
    relay: { stream: streamPair().near, splice: { signal } },
  };
}

/** Two agents with one id, which fail all requests: which of them were asked, and which are avoided afterwards. */
async function dialAndFail(code: NetErrorCode, signal?: AbortSignal): Promise<{ error: unknown; asked: number; avoided: number }> {
  const [agents, failures] = [new AgentRegistry(true), new DestinationFailures()];
  let asked = 0;
  const openTunnel = () => {
    asked++;
    return Promise.reject(new NetError(code, "it failed"));
  };
  const connection = { openTunnel } as unknown as AgentSession;
  const both = [held("1", connection), held("2", connection)];
  for (const agent of both) agents.add(agent);
  const request = tunnelRequest(signal);
  const monitor = new StalledAgentMonitor(agents);
  try {
    const error = await dialAgent({ agents, monitor, failures, timeoutMs: 1_000 }, request, false).catch((error) => error);
    return { error, asked, avoided: both.filter((agent) => failures.isAvoided(agent, "db:5432")).length };
  } finally {
    monitor.close();
  }
}

/** The head that an agent gets for a request for a UDP flow; `undefined` if it is not asked. */
async function udpHeadFor(transport: SessionKind, features: string[]): Promise<{ head?: string; datagrams?: boolean }> {
  const [agents, failures] = [new AgentRegistry(true), new DestinationFailures()];
  const asked: { head?: string; datagrams?: boolean } = {};
  const openTunnel: AgentSession["openTunnel"] = (_, head, { datagrams }) => {
    Object.assign(asked, { head: String.fromCharCode(...head), datagrams });
    return Promise.reject(new NetError("closed", "it failed"));
  };
  agents.add(held("1", { transport, openTunnel } as unknown as AgentSession, features));
  const monitor = new StalledAgentMonitor(agents);
  await dialAgent({ agents, monitor, failures, timeoutMs: 1_000 }, { ...tunnelRequest(), network: "udp" }, false).catch(() => {});
  monitor.close();
  return asked;
}

describe("dialing an agent", () => {
  it("offers DATAGRAM frames over QUIC to agents that take them, and to no others", async () => {
    const both = ["udp", "udp-datagrams"];
    for (const [transport, features, offers] of [["quic", both, true], ["tls", both, false], ["quic", ["udp"], false]] as const) {
      const { head, datagrams } = await udpHeadFor(transport, [...features]);
      assert.equal(head?.includes("\r\nDatagrams: ?1\r\n"), offers, `${transport} ${features}`);
      assert.equal(datagrams, offers);
    }
    assert.deepEqual(await udpHeadFor("quic", ["udp-datagrams"]), {});
  });

  it("does not avoid an agent whose client disconnected meanwhile", async () => {
    const { error, asked, avoided } = await dialAndFail("abandoned");
    assert.ok(error instanceof TunnelError && error.message === "The client has disconnected", String(error));
    assert.deepEqual([asked, avoided], [1, 0]);
  });

  it("asks no other agent once the request itself has ended", async () => {
    const { error, asked, avoided } = await dialAndFail("cancelled", AbortSignal.abort());
    assert.ok(error instanceof NetError && error.code === "cancelled", String(error));
    assert.deepEqual([asked, avoided], [1, 0]);
    assert.equal((await dialAndFail("cancelled")).asked, 2); // of a connection that was given up
  });

  it("avoids an agent that did not respond in time", async () => {
    const { error, asked, avoided } = await dialAndFail("timed-out");
    assert.ok(error instanceof TunnelError && statusOf(error) === 504, String(error));
    assert.deepEqual([asked, avoided], [1, 1]);
  });
});

describe("the request to an agent", () => {
  it("has the place in a trace only if the agent has said that it takes it", async () => {
    const agents = new AgentRegistry(true);
    const heads: string[] = [];
    const connection = {
      remote: "192.0.2.9:4242",
      transport: "quic",
      openTunnel(_stream: unknown, head: Uint8Array) {
        heads.push(new TextDecoder().decode(head));
        return Promise.reject(new NetError("closed", "it failed"));
      },
    } as unknown as AgentSession;
    const { hello: _none, ...first } = held("1", connection);
    agents.add(first); // version 1 has no hello
    const second = held("2", connection);
    agents.add({ ...second, hello: { ...second.hello!, features: undefined } });
    agents.add(held("3", connection, ["udp", "trace-context"]));
    const context = { traceId: "1".repeat(32), spanId: "2".repeat(16), isSampled: true, state: "v=1" };
    const trace: Span = { context, isRecorded: false, child: () => trace, end: () => {} };
    const request = { ...tunnelRequest(), trace };
    const monitor = new StalledAgentMonitor(agents);
    await assert.rejects(dialAgent({ agents, monitor, failures: new DestinationFailures(), timeoutMs: 1_000 }, request, false));
    monitor.close();
    const plain = "CONNECT db:5432 HTTP/1.1\r\nHost: db:5432\r\nProxy-Connection: keep-alive\r\nX-Request-Id: r-1\r\n";
    const fields = `traceparent: 00-${"1".repeat(32)}-${"2".repeat(16)}-01\r\ntracestate: v=1\r\n`;
    assert.deepEqual(heads.sort(), [`${plain}\r\n`, `${plain}\r\n`, `${plain}${fields}\r\n`]);
  });
});
