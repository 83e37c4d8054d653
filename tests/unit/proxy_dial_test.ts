// What a proxy learns about its agents when they are asked for tunnels.
import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { AgentRegistry, type HeldAgent } from "../../proxy/agent_registry.ts";
import { dialAgent, Patience } from "../../proxy/dial.ts";
import { Failures } from "../../proxy/failures.ts";
import type { DialRequest } from "../../shared/front/front.ts";
import { Refusal } from "../../shared/http/status.ts";
import { NetError, type NetErrorCode } from "../../shared/net/errors.ts";
import type { QuicConnection } from "../../shared/net/types.ts";
import { streamPair } from "../support/memory.ts";

/** Two agents with one id, whose exchanges all fail; which of them were asked, and which are avoided afterwards. */
async function dialAndFail(code: NetErrorCode): Promise<{ error: unknown; asked: number; avoided: number }> {
  const [agents, failures] = [new AgentRegistry(true), new Failures()];
  let asked = 0;
  const exchangeAndSplice = () => {
    asked++;
    return Promise.reject(new NetError(code, "it failed"));
  };
  const held = (instance: string): HeldAgent => ({
    connection: { exchangeAndSplice } as unknown as QuicConnection,
    identity: { agentId: "a" },
    since: new Date(0),
    hello: { version: "", instance, host: "", labels: {} },
    tunnels: 0,
    askedAt: 0,
    goneAway: false,
    moved: false,
  });
  const both = [held("1"), held("2")];
  for (const agent of both) agents.add(agent);
  const request: DialRequest = {
    id: "r-1",
    agentId: "a",
    clientAddress: "192.0.2.1:5000",
    destination: { host: "db", port: 5432 },
    credentials: { scheme: "basic", username: "a", password: "" },
    fields: [],
    client: { stream: streamPair().near, copy: {} },
  };
  const patience = new Patience(agents);
  try {
    const error = await dialAgent({ agents, patience, failures, timeoutMs: 1_000 }, request, false).catch((error) => error);
    return { error, asked, avoided: both.filter((agent) => failures.avoids(agent, "db:5432")).length };
  } finally {
    patience.close();
  }
}

describe("dialing an agent", () => {
  it("does not avoid one whose client went away meanwhile", async () => {
    const { error, asked, avoided } = await dialAndFail("abandoned");
    assert.ok(error instanceof Refusal && error.message === "The client is gone", String(error));
    assert.deepEqual([asked, avoided], [1, 0]);
  });

  it("avoids one that did not answer in time", async () => {
    const { error, asked, avoided } = await dialAndFail("timed-out");
    assert.ok(error instanceof Refusal && error.status === 504, String(error));
    assert.deepEqual([asked, avoided], [1, 1]);
  });
});
