// What a service knows of its tunnels, failures and events for operators.
import assert from "node:assert/strict";
import { describe, it } from "node:test";
import type { Relayed } from "../../shared/net/relay.ts";
import type { Duplex } from "../../shared/net/stream.ts";
import { eventStream } from "../../shared/service/api/event_stream.ts";
import { Activity } from "../../shared/service/live/activity.ts";
import { EventHub, type EventName } from "../../shared/service/live/events.ts";
import { describeFailure, Failures } from "../../shared/service/live/failures.ts";
import { Ring } from "../../shared/service/live/ring.ts";
import { describeTunnel, type LiveTunnel } from "../../shared/service/live/tunnel.ts";
import { streamPair } from "../../testing/network.ts";

const HOUR_MS = 3_600_000;

function tunnelOf(key: string, more: Partial<LiveTunnel> = {}): LiveTunnel {
  return { key, id: key, startedAt: 0, client: "192.0.2.1:5", agent: "7", destination: "db:5432", sent: 0, received: 0, ...more };
}

/** An activity with a clock, and what the relays of its tunnels have done. */
function setUp() {
  const clock = { now: 0 };
  const relays = new Map<Duplex, Relayed>();
  const activity = new Activity({ relayed: (streams) => streams.map((stream) => relays.get(stream)) }, () => clock.now);
  const open = (tunnel: LiveTunnel): Duplex => {
    const { near } = streamPair();
    activity.tunnels.set(near, tunnel);
    tunnel.connectedAt = clock.now;
    activity.opened(tunnel);
    return near;
  };
  const relay = (stream: Duplex, aToB: number, bToA: number) => relays.set(stream, { aToB, bToA, toB: "open", toA: "blocked" });
  return { clock, activity, open, relay };
}

describe("a ring", () => {
  it("keeps the last items, the oldest first", () => {
    const ring = new Ring<number>(3);
    assert.deepEqual(ring.toArray(), []);
    for (const n of [1, 2, 3, 4, 5]) ring.push(n);
    assert.deepEqual(ring.toArray(), [3, 4, 5]);
  });
});

describe("live tunnels", () => {
  it("have their bytes and the state of their directions while they are open, and rates from the second measurement on", () => {
    const { clock, activity, open, relay } = setUp();
    const stream = open(tunnelOf("a"));
    relay(stream, 1_000, 0);
    const [first] = activity.list();
    assert.deepEqual([first!.sent, first!.received], [1_000, 0]);
    clock.now = 2_000;
    relay(stream, 5_000, 100);
    const [second] = activity.list();
    const { state, sent, sentRate, receivedRate, sending, receiving } = describeTunnel(second!, clock.now);
    assert.deepEqual({ state, sent, sentRate, receivedRate, sending, receiving }, {
      state: "open",
      sent: 5_000,
      sentRate: 2_000,
      receivedRate: 50,
      sending: "open",
      receiving: "blocked",
    });
  });

  it("are remembered after their end, the last one first, and refused requests are not", () => {
    const { activity, open } = setUp();
    for (const key of ["a", "b"]) {
      const tunnel = tunnelOf(key);
      activity.tunnels.delete(open(tunnel));
      activity.ended(tunnel);
    }
    activity.ended(tunnelOf("c", { status: 502, proxyError: "connection_refused", reason: "no" }));
    assert.deepEqual(activity.list().map(({ key }) => key), ["b", "a"]);
  });

  it("are reset by their key once, and tell who has done it", () => {
    const { activity, open } = setUp();
    const tunnel = tunnelOf("a");
    open(tunnel);
    assert.equal(activity.closeTunnel("b", "anna"), false);
    assert.equal(activity.closeTunnel("a", "anna"), true);
    assert.equal(tunnel.closedBy, "anna");
    activity.ended(tunnel);
    assert.equal(activity.closeTunnel("a", "anna"), false);
  });

  it("name who the client is by the name that people know, or else by its id, unless that is the agent's", () => {
    const userOf = (more: Partial<LiveTunnel>) => describeTunnel(tunnelOf("a", more), 0).user;
    assert.deepEqual([userOf({ subject: "4711-a", name: "Anna" }), userOf({ subject: "4711-a" }), userOf({ subject: "7" })], [
      "Anna",
      "4711-a",
      undefined,
    ]);
  });

  it("show texts of peers without control characters", () => {
    const { destination, reason } = describeTunnel(tunnelOf("a", { destination: "\x1b]8;;x\x07:1", reason: "\u202egnp" }), 0);
    assert.deepEqual([destination, reason], ["?]8;;x?:1", "?gnp"]);
  });
});

describe("samples", () => {
  it("count what has happened, include the bytes of open tunnels, and have rates since the one before", () => {
    const { clock, activity, open, relay } = setUp();
    activity.sample({ agents: 1 });
    const [ended, tunnel] = [tunnelOf("a", { sent: 100, received: 10 }), tunnelOf("b")];
    activity.tunnels.delete(open(ended));
    activity.ended(ended);
    relay(open(tunnel), 900, 90);
    activity.ended(tunnelOf("c", { proxyError: "connection_refused" }));
    clock.now = 2_000;
    const { at: _, memory: __, ...sample } = activity.sample({ agents: 3 });
    assert.deepEqual(sample, {
      agents: 3,
      clients: 1,
      tunnels: 1,
      opened: 2,
      refused: 1,
      broken: 0,
      sent: 1_000,
      received: 100,
      sentRate: 500,
      receivedRate: 50,
      openRate: 1,
      setupMs: { p50: 0, p99: 0 },
    });
    assert.equal(activity.sample({ agents: 3 }).setupMs, undefined, "No tunnel was opened since");
    assert.equal(activity.history().length, 3);
  });

  it("have no negative rate where an open tunnel has ended with fewer bytes than were measured", () => {
    const { clock, activity, open, relay } = setUp();
    const tunnel = tunnelOf("a");
    const stream = open(tunnel);
    relay(stream, 1_000, 0);
    activity.sample({ agents: 0 });
    activity.tunnels.delete(stream);
    tunnel.sent = 0;
    activity.ended(tunnel);
    clock.now = 2_000;
    assert.equal(activity.sample({ agents: 0 }).sentRate, 0);
  });
});

describe("failures", () => {
  it("are told minute by minute, the most frequent cause first", () => {
    const failures = new Failures();
    const at = (minute: number) => minute * 60_000 + 30_000;
    for (const minute of [70, 128, 128, 129]) failures.record(tunnelOf("r", { endedAt: at(minute) }), "dns_error", at(minute));
    failures.record(tunnelOf("b", { connectedAt: 1, endedAt: at(100) }), "connection_terminated", at(100));
    const { minutes, causes } = failures.history(at(129));
    assert.equal(minutes.length, 60);
    assert.equal(Date.parse(minutes[59]!) - Date.parse(minutes[0]!), 59 * 60_000);
    const nonzero = ({ counts }: { counts: readonly number[] }) => counts.flatMap((count, i) => count > 0 ? [[i, count]] : []);
    assert.deepEqual(causes.map((cause) => [cause.kind, cause.error, nonzero(cause)]), [
      ["refused", "dns_error", [[0, 1], [58, 2], [59, 1]]],
      ["broken", "connection_terminated", [[30, 1]]],
    ]);
    assert.deepEqual(failures.history(at(130)).causes.map(nonzero), [[[57, 2], [58, 1]], [[29, 1]]]);
    assert.deepEqual(failures.history(at(500)).causes, []);
  });

  it("of agents do not displace those of clients", () => {
    const clock = { now: 5 };
    const activity = new Activity({ relayed: () => [] }, () => clock.now);
    activity.ended({ ...tunnelOf("r"), proxyError: "dns_error", status: 502 });
    clock.now = 6;
    const refusal = {
      remote: "192.0.2.1:5",
      transport: "quic",
      error: "credentials_denied",
      reason: "bad\u001b token",
      code: 401,
    } as const;
    for (let i = 0; i < 1_500; i++) activity.agentRefused({ ...refusal, agent: "site7" });
    const last = activity.failures.last(clock.now);
    assert.deepEqual([last.length, last.at(-1)!.key, last.filter(({ isAgent }) => isAgent).length], [1_001, "r", 1_000]);
    const { kind, client, agent, protocol, status, error, reason } = describeFailure(last[0]!);
    assert.deepEqual([kind, client, agent, protocol, status, error, reason], [
      "agent",
      "192.0.2.1:5",
      "site7",
      "quic",
      401,
      "credentials_denied",
      "bad? token",
    ]);
    assert.deepEqual(activity.failures.counts(clock.now)[0], { kind: "agent", error: "credentials_denied", count: 1_500 });
    activity.close();
  });

  it("are counted by kind and cause for an hour, also those that are no longer listed", () => {
    const failures = new Failures();
    for (let i = 0; i < 1_500; i++) failures.record(tunnelOf(`r${i}`, { endedAt: 0 }), "connection_refused", 0);
    failures.record(tunnelOf("b", { connectedAt: 1, endedAt: 0 }), "connection_terminated", 30 * 60_000);
    assert.equal(failures.last(0).length, 1_000);
    assert.deepEqual(failures.counts(59 * 60_000), [
      { kind: "refused", error: "connection_refused", count: 1_500 },
      { kind: "broken", error: "connection_terminated", count: 1 },
    ]);
    assert.deepEqual(failures.counts(HOUR_MS), [{ kind: "broken", error: "connection_terminated", count: 1 }]);
    assert.deepEqual(failures.counts(3 * HOUR_MS), []);
    assert.deepEqual(failures.last(3 * HOUR_MS), []);
  });
});

/** One who watches, what was sent to it, and what ends that. */
function watch(hub: EventHub, ...topics: EventName[]) {
  const seen: [EventName | "end", unknown][] = [];
  const stop = hub.watch({
    topics: new Set(topics),
    send: (topic, json) => seen.push([topic, JSON.parse(json)]),
    end: () => seen.push(["end", undefined]),
  });
  return { seen, stop };
}

describe("events", () => {
  it("are not even described without a listener", () => {
    const hub = new EventHub();
    hub.publish("agents", () => assert.fail("It was described"));
    const { stop } = watch(hub, "agents");
    stop!();
    hub.publish("agents", () => assert.fail("It was described"));
    hub.close();
  });

  it("reach those who watch their topic in one batch of at most 100, and the rest is counted", () => {
    const hub = new EventHub();
    const [all, other] = [watch(hub, "tunnels", "agents"), watch(hub, "agents")];
    for (let i = 0; i < 250; i++) hub.publish("tunnels", () => i);
    hub.publish("agents", () => "a");
    hub.flush();
    const [[topic, batch], ...more] = all.seen as [[EventName, { events: number[]; omitted: number }], ...unknown[]];
    assert.deepEqual([topic, batch.events.length, batch.events[99], batch.omitted], ["tunnels", 100, 99, 150]);
    assert.deepEqual(more, [["agents", { events: ["a"], omitted: 0 }]]);
    assert.deepEqual(other.seen, more);
    hub.flush();
    assert.equal(other.seen.length, 1);
    hub.close();
    assert.deepEqual(other.seen.at(-1), ["end", undefined]);
  });

  it("have at most 96 who watch, and none after the close", () => {
    const hub = new EventHub();
    const stops = Array.from({ length: 96 }, () => watch(hub, "sample").stop);
    assert.equal(watch(hub, "sample").stop, undefined);
    stops[0]!();
    assert.ok(watch(hub, "sample").stop);
    hub.close();
    assert.equal(watch(hub, "sample").stop, undefined);
  });
});

describe("a stream of events", () => {
  const endless = () => Promise.resolve(true);

  it("ends for one who does not read, who then no longer counts", async () => {
    const hub = new EventHub();
    const stream = eventStream(hub, new Set<EventName>(["agents"]), endless)!;
    const [reader, others] = [stream.body!.getReader(), Array.from({ length: 95 }, () => watch(hub, "sample"))];
    assert.equal(eventStream(hub, new Set<EventName>(["agents"]), endless), undefined, "97 would watch");
    for (let i = 0; i < 4; i++) {
      for (let n = 0; n < 100; n++) hub.publish("agents", () => "x".repeat(1_000));
      hub.flush();
    }
    assert.ok(watch(hub, "sample").stop, "It still watches");
    let size = 0;
    for (let part; !(part = await reader.read()).done;) size += part.value.length;
    assert.ok(size > 256 * 1_024 && size < 512 * 1_024, `${size} bytes were kept`);
    others.forEach(({ stop }) => stop!());
    hub.close();
  });

  it("goes on for one who reads, until the hub closes", async () => {
    const hub = new EventHub();
    const reader = eventStream(hub, new Set<EventName>(["agents"]), endless)!.body!.getReader();
    const next = async () => new TextDecoder().decode((await reader.read()).value);
    assert.equal(await next(), ":\n\n");
    for (let i = 0; i < 10; i++) {
      hub.publish("agents", () => "x".repeat(100_000));
      hub.flush();
      assert.match(await next(), /^event: agents\ndata: \{"events":\["x+"\],"omitted":0\}\n\n$/);
    }
    hub.close();
    assert.equal((await reader.read()).done, true);
  });
});
