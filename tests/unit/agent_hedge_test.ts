// Parallel connection attempts of an agent: which one is used, and that nothing remains of the other.
import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { connectHedged } from "../../agent/transport/hedge.ts";
import { NetError } from "../../shared/net/errors.ts";
import type { Net } from "../../shared/net/net.ts";
import type { AgentSession, ConnectQuicOptions } from "../../shared/net/session.ts";
import { within } from "../conformance/support.ts";
import { netWith, Queue, withNet } from "../../testing/network.ts";

interface Attempt {
  signal: AbortSignal;
  succeed(): AgentSession;
  fail(error: Error): void;
}

/** A network in which the test decides the result of each attempt. */
function slowNet(net: Net): { slow: Net; attempts: Queue<Attempt>; closed: Set<AgentSession> } {
  const attempts = new Queue<Attempt>();
  const closed = new Set<AgentSession>();
  const connectQuic = ({ signal }: ConnectQuicOptions): Promise<AgentSession> => {
    const { promise, resolve, reject } = Promise.withResolvers<AgentSession>();
    const succeed = () => {
      const connection = { close: () => void closed.add(connection) } as unknown as AgentSession;
      resolve(connection);
      return connection;
    };
    signal!.addEventListener("abort", () => reject(new NetError("cancelled", "It was cancelled")));
    attempts.push({ signal: signal!, succeed, fail: reject });
    return promise;
  };
  return { slow: netWith(net, { connectQuic }), attempts, closed };
}

/** Connects, with another attempt after `restartMs`. */
function start(net: Net, restartMs: number, signal = new AbortController().signal) {
  const { slow, attempts, closed } = slowNet(net);
  const options = { host: "127.0.0.1", port: 1, tls: {}, alpn: [], transport: {}, timeoutMs: 60_000 };
  const connected = connectHedged((signal) => slow.connectQuic({ ...options, signal }), { restartMs, signal });
  connected.catch(() => {}); // a test looks when it is ready
  return { connected, attempts, closed };
}

describe("a hedged connection", () => {
  it("makes one attempt if it gets a response in time", () =>
    withNet(async (net) => {
      const { connected, attempts, closed } = start(net, 60_000);
      const connection = (await attempts.next()).succeed();
      assert.equal(await within(connected), connection);
      assert.equal(closed.size, 0);
    }));

  it("starts a second attempt from the beginning, and continues the first", () =>
    withNet(async (net) => {
      const { connected, attempts } = start(net, 5);
      const first = await attempts.next();
      const second = await attempts.next();
      const third = await attempts.next();
      assert.deepEqual([first, second, third].map(({ signal }) => signal.aborted), [false, true, false]);
      first.succeed();
      await within(connected);
    }));

  it("uses the second attempt if it succeeds first, and cancels the first", () =>
    withNet(async (net) => {
      const { connected, attempts, closed } = start(net, 200);
      const first = await attempts.next();
      const second = await attempts.next();
      const connection = second.succeed();
      assert.equal(await within(connected), connection);
      assert.ok(first.signal.aborted);
      assert.equal(closed.size, 0);
    }));

  for (const [name, order] of [["first", [0, 1]], ["second", [1, 0]]] as const) {
    it(`uses the ${name} attempt if both succeed at once after it, and closes the other's connection`, () =>
      withNet(async (net) => {
        const { connected, attempts, closed } = start(net, 200);
        const both = [await attempts.next(), await attempts.next()];
        const [taken, left] = order.map((index) => both[index]!.succeed());
        assert.equal(await within(connected), taken);
        await new Promise((resolve) => setTimeout(resolve));
        assert.deepEqual([...closed], [left]);
      }));
  }

  it("continues when the second attempt fails, and fails with the first", () =>
    withNet(async (net) => {
      const { connected, attempts } = start(net, 5);
      const first = await attempts.next();
      (await attempts.next()).fail(new NetError("refused", "the second"));
      const third = await attempts.next();
      first.fail(new NetError("timed-out", "the first"));
      await assert.rejects(within(connected), { code: "timed-out", message: "the first" });
      assert.ok(third.signal.aborted);
    }));

  it("cancels both attempts on a signal", () =>
    withNet(async (net) => {
      const stopping = new AbortController();
      const { connected, attempts } = start(net, 200, stopping.signal);
      const both = [await attempts.next(), await attempts.next()];
      stopping.abort();
      await assert.rejects(within(connected), { code: "cancelled" });
      assert.deepEqual(both.map(({ signal }) => signal.aborted), [true, true]);
    }));
});
