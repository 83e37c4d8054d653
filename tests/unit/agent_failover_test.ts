// When a session is replaced by one over another transport, with a session, connections and probes that the test controls.
import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { TransportPolicy } from "../../agent/transport/policy.ts";
import { Failover, type FailoverOptions, type WatchedSession } from "../../agent/transport/failover.ts";
import { NetError } from "../../shared/net/errors.ts";
import type { AgentSession, SessionKind, SessionStats } from "../../shared/net/session.ts";
import { LogBook, Queue } from "../../testing/network.ts";
import { isPending, until, within } from "../conformance/support.ts";

const A = "a.example:4242";
const TIMING = {
  tick: 5,
  idleTick: 5,
  quietBusy: 10,
  quietIdle: 20,
  busy: 60_000,
  silent: 30,
  grace: 20,
  maxGrace: 60_000,
  reopen: 60_000,
  retry: 20,
  leave: 60_000,
  lossWindow: 10,
  comparison: 60_000,
  bulk: { window: 10, bytesPerSecond: 1e6, shortMs: 5, longMs: 20, leastLoss: 0.000_1, loss: 0.001, idle: 60_000 },
};

interface Next {
  transport: SessionKind;
  reason: string;
  close(): void;
  isClosed: boolean;
}

interface Options {
  transport?: SessionKind;
  linkReason?: string;
  probeIntervalMs?: number;
  probe?: FailoverOptions<Next>["probe"];
  choice?: "auto" | "quic" | "tls";
  isDirect?: boolean;
  timing?: Partial<typeof TIMING>;
}

function start(
  { transport = "quic", linkReason, probeIntervalMs = 5, probe = () => Promise.resolve(10), choice = "auto", isDirect = true, timing }:
    Options = {},
) {
  const stats = { rttMs: 1, sentBytes: 0, receivedBytes: 0, sentPackets: 0, lostPackets: 0 };
  const session = {
    transport,
    linkReason,
    silentMs: 0,
    pings: 0,
    probes: 0,
    pingIfDue(): void {
      session.pings++;
    },
    isGone: false,
    isClosed: false,
    probe(): Promise<boolean> {
      session.probes++;
      return Promise.resolve(session.isGone);
    },
    close(): void {
      session.isClosed = true;
    },
    stats: (): SessionStats => ({ ...stats }),
  } satisfies WatchedSession & Record<string, unknown>;
  const memory = { fallbackOf: () => undefined, remember: () => {} };
  const policy = new TransportPolicy({ transport: choice, memory, probeIntervalMs, random: () => 0.5 });
  const connections = new Queue<{ kind: SessionKind; succeed(): void; fail(): void }>();
  const closed: SessionKind[] = [];
  let connecting = 0;
  const log = new LogBook();
  const watch = new Failover<Next>({
    address: A,
    session,
    policy,
    connect(kind, signal) {
      connecting++;
      const { promise, resolve, reject } = Promise.withResolvers<AgentSession>();
      const fail = () => reject(new NetError("timed-out", `${kind} does not connect`));
      signal.addEventListener("abort", fail);
      const connection = { transport: kind, close: () => void closed.push(kind) } as unknown as AgentSession;
      connections.push({ kind, succeed: () => resolve(connection), fail });
      return promise;
    },
    authenticate: (connection, reason) => {
      const next = { transport: connection.transport, reason, isClosed: false, close: () => void (next.isClosed = true) };
      return Promise.resolve(next);
    },
    isDirect: () => Promise.resolve(isDirect),
    probe,
    log,
    timing: { ...TIMING, ...timing },
  });
  return { watch, session, stats, policy, connections, closed, log, connecting: () => connecting };
}

describe("the watch of a session on QUIC", () => {
  it("asks a proxy of which nothing comes, and leaves it alone while something does", async () => {
    const { watch, session, stats } = start();
    await until(() => session.pings > 0, "it was not asked");
    const asked = session.pings;
    const timer = setInterval(() => stats.receivedBytes += 50, 1);
    await isPending(watch.replaced); // a while
    clearInterval(timer);
    assert.ok(session.pings <= asked + 1, `${session.pings - asked} pings were sent`);
    watch.close();
  });

  it("goes on over TLS where QUIC does not answer and TLS gets through", async () => {
    const { watch, session, connections } = start();
    session.silentMs = 30;
    const { kind, succeed } = await connections.next();
    assert.equal(kind, "tls");
    succeed();
    assert.equal((await connections.next()).kind, "quic"); // nothing comes of it
    const next = await within(watch.replaced);
    assert.deepEqual([next.transport, next.reason, next.isClosed], ["tls", "silent", false]);
  });

  it("stays where a connection over QUIC gets through as well as one over TLS: the network was away", async () => {
    const { watch, session, connections, closed } = start({ timing: { grace: 10_000 } });
    session.silentMs = 30;
    (await connections.next()).succeed();
    (await connections.next()).succeed();
    await until(() => closed.length === 2, "the connections were not closed");
    session.silentMs = 0;
    assert.deepEqual(closed, ["quic", "tls"]);
    assert.ok(await isPending(watch.replaced));
    watch.close();
  });

  for (const answer of ["pong", "acknowledgement"] as const) {
    it(`stays where a ${answer} comes meanwhile`, async () => {
      const { watch, session, stats, connections, closed } = start();
      session.silentMs = 30;
      const { succeed } = await connections.next();
      if (answer === "pong") session.silentMs = 0;
      else stats.receivedBytes++;
      succeed();
      await until(() => closed.length === 1, "the connection over TLS was not closed");
      session.silentMs = 0;
      assert.ok(await isPending(watch.replaced));
      watch.close();
    });
  }

  it("stays where the proxy's program does not answer, and its engine does", async () => {
    const { watch, session, stats, connecting } = start();
    session.silentMs = 10_000;
    const timer = setInterval(() => stats.receivedBytes += 50, 1);
    assert.ok(await isPending(watch.replaced));
    clearInterval(timer);
    assert.equal(connecting(), 0);
    watch.close();
  });

  it("waits longer where round trips are long", async () => {
    const { watch, session, stats, connecting } = start();
    stats.rttMs = 1_000;
    session.silentMs = 3_000;
    assert.ok(await isPending(watch.replaced));
    assert.equal(connecting(), 0);
    watch.close();
  });

  it("stays where TLS does not get through either, and tries again", async () => {
    const { watch, session, connections, log } = start();
    session.silentMs = 30;
    for (let i = 0; i < 3; i++) (await connections.next()).fail();
    await log.waitFor("the transport stays", { link: "quic", reason: "tls does not connect" });
    assert.ok(await isPending(watch.replaced));
    (await connections.next()).succeed();
    assert.equal((await within(watch.replaced)).transport, "tls");
  });

  const losses = { sent: 1_000, lost: 100 };
  for (
    const [what, quicMs, tlsMs, isLeft] of [
      ["is left where it loses packets and TLS is much faster", 500, 100, true],
      ["is left where it loses packets and a probe fails", undefined, 100, true],
      ["is kept where it loses packets and is no slower than TLS", 150, 100, false],
      ["is kept where it loses packets and TLS moves nothing", 500, undefined, false],
    ] as const
  ) {
    it(`${what}`, async () => {
      const probed: SessionKind[] = [];
      const probe = (kind: SessionKind): Promise<number> => {
        probed.push(kind);
        const ms = kind === "quic" ? quicMs : tlsMs;
        return ms === undefined ? Promise.reject(new NetError("timed-out", "nothing comes")) : Promise.resolve(ms);
      };
      const { watch, stats, connections, connecting } = start({ probe });
      Object.assign(stats, { sentPackets: losses.sent, lostPackets: losses.lost });
      await until(() => probed.length === 2, "nothing was compared");
      if (isLeft) {
        (await connections.next()).succeed();
        assert.equal((await within(watch.replaced)).reason, "lossy");
      } else {
        Object.assign(stats, { sentPackets: 2 * losses.sent, lostPackets: 2 * losses.lost });
        assert.ok(await isPending(watch.replaced));
        assert.equal(connecting(), 0);
        assert.equal(probed.length, 2, "it is compared again before its time");
      }
      watch.close();
    });
  }

  it("is compared where it loses most of a few packets: large ones do not pass", async () => {
    const probed: SessionKind[] = [];
    const { watch, stats } = start({ probe: (kind) => Promise.resolve(probed.push(kind)) });
    Object.assign(stats, { sentPackets: 10, lostPackets: 5 });
    await until(() => probed.length === 2, "nothing was compared");
    watch.close();
  });

  it("is not compared where it loses few packets, or sends few", async () => {
    const probed: SessionKind[] = [];
    const { watch, stats } = start({ probe: (kind) => Promise.resolve(probed.push(kind)) });
    Object.assign(stats, { sentPackets: 1_000, lostPackets: 90 });
    await isPending(watch.replaced);
    Object.assign(stats, { sentPackets: 1_150, lostPackets: 150 });
    await isPending(watch.replaced);
    Object.assign(stats, { sentPackets: 1_159, lostPackets: 159 });
    await isPending(watch.replaced);
    assert.deepEqual(probed, []);
    watch.close();
  });

  it("is left for bulk data over a short path without loss", async () => {
    const { watch, stats, connections } = start();
    const timer = setInterval(() => stats.sentBytes += 1e6, 1);
    const { kind, succeed } = await connections.next();
    clearInterval(timer);
    assert.equal(kind, "tls");
    succeed();
    const next = await within(watch.replaced);
    assert.deepEqual([next.transport, next.reason], ["tls", "bulk"]);
  });

  it("is kept for bulk data where TLS does not connect, and TLS is not tried again soon", async () => {
    const { watch, stats, connections, connecting, log } = start();
    const timer = setInterval(() => stats.sentBytes += 1e6, 1);
    (await connections.next()).fail();
    await log.waitFor("the transport stays", { link: "quic", reason: "tls does not connect" });
    assert.ok(await isPending(watch.replaced));
    clearInterval(timer);
    assert.equal(connecting(), 1);
    watch.close();
  });

  for (
    const [what, options] of [
      ["it is not probed: the link could not return to it", { probeIntervalMs: 0 }],
      ["TLS takes another path, through an outbound proxy", { isDirect: false }],
    ] as const
  ) {
    it(`is kept for bulk data where ${what}`, async () => {
      const { watch, stats, connecting } = start(options);
      const timer = setInterval(() => stats.sentBytes += 1e6, 1);
      assert.ok(await isPending(watch.replaced));
      clearInterval(timer);
      assert.equal(connecting(), 0);
      watch.close();
    });
  }

  it("ends a session whose proxy is gone, once TLS does not get through either", async () => {
    const { watch, session, connections } = start();
    session.isGone = true;
    const { kind, fail } = await connections.next();
    assert.deepEqual([kind, session.isClosed], ["tls", false]);
    fail();
    await until(() => session.isClosed, "the session was not closed");
    watch.close();
  });

  it("goes on over TLS where a probe says that the proxy is gone, but only UDP is rejected", async () => {
    const { watch, session, connections } = start();
    session.isGone = true;
    session.silentMs = 1;
    (await connections.next()).succeed();
    assert.equal((await connections.next()).kind, "quic");
    assert.equal((await within(watch.replaced)).reason, "silent");
    assert.equal(session.isClosed, false);
  });

  it("ends a session whose proxy is gone where the transport is fixed", async () => {
    const { watch, session, connecting } = start({ choice: "quic" });
    session.isGone = true;
    await until(() => session.isClosed, "the session was not closed");
    assert.equal(connecting(), 0);
    watch.close();
  });

  it("only probes the proxy where the transport is fixed", async () => {
    const { watch, session, connecting } = start({ choice: "quic" });
    session.silentMs = 10_000;
    await until(() => session.probes > 0, "it was not probed");
    assert.ok(await isPending(watch.replaced));
    assert.deepEqual([session.pings, connecting()], [0, 0]);
    watch.close();
  });

  it("moves to another connection over QUIC where that one opens and its own stays silent", async () => {
    const { watch, session, connections } = start({ choice: "quic", timing: { reopen: 10 } });
    session.silentMs = 10_000;
    const { kind, succeed } = await connections.next();
    assert.equal(kind, "quic");
    succeed();
    const next = await within(watch.replaced);
    assert.deepEqual([next.transport, next.reason, next.isClosed, session.isClosed], ["quic", "silent", false, false]);
  });

  it("stays where something comes while another connection over QUIC opens: the network was away", async () => {
    const { watch, stats, connections, closed } = start({ choice: "quic", timing: { reopen: 10 } });
    const { succeed } = await connections.next();
    stats.receivedBytes += 50;
    succeed();
    await until(() => closed.length === 1, "the connection was not closed");
    assert.ok(await isPending(watch.replaced));
    watch.close();
  });

  it("tries again where another connection over QUIC does not open", async () => {
    const { watch, connections } = start({ choice: "quic", timing: { reopen: 10 } });
    (await connections.next()).fail();
    (await connections.next()).succeed();
    assert.equal((await within(watch.replaced)).transport, "quic");
  });

  it("closes a session that is opened when the watch is over", async () => {
    const { watch, session, connections, closed } = start();
    session.silentMs = 30;
    const { succeed } = await connections.next();
    succeed();
    watch.close();
    await until(() => closed.length === 1, "the connection was not closed");
    assert.ok(await isPending(watch.replaced));
  });
});

describe("the watch of a session on TLS for bulk data", () => {
  it("stays while the path is short and clean, without probes", async () => {
    const { watch, connecting } = start({ transport: "tls", linkReason: "bulk", probe: () => Promise.reject(new Error("a probe")) });
    assert.ok(await isPending(watch.replaced));
    assert.equal(connecting(), 0);
    watch.close();
  });

  for (
    const [what, change, idle] of [
      ["its round trips become long", { rttMs: 20 }, 60_000],
      ["it loses packets", { sentPackets: 1_000, lostPackets: 1 }, 60_000],
      ["there is no bulk data any more", {}, 20],
    ] as const
  ) {
    it(`returns to QUIC when ${what}, and does not leave that again soon`, async () => {
      const bulk = { ...TIMING.bulk, idle };
      const { watch, stats, connections, policy } = start({ transport: "tls", linkReason: "bulk", timing: { bulk } });
      const timer = setInterval(() => {
        if ("lostPackets" in change) stats.sentPackets += change.sentPackets, stats.lostPackets += change.lostPackets;
        else Object.assign(stats, change);
      }, 1);
      const { kind, succeed } = await connections.next();
      clearInterval(timer);
      assert.equal(kind, "quic");
      succeed();
      assert.equal((await within(watch.replaced)).transport, "quic");
      assert.equal(policy.mayCarryBulk(A), false);
    });
  }

  it("probes as usual where QUIC does not work then", async () => {
    let probes = 0;
    const probe = (kind: SessionKind): Promise<number> =>
      kind === "quic" && ++probes < 3 ? Promise.reject(new NetError("timed-out", "UDP is blocked")) : Promise.resolve(10);
    const { watch, stats, connections, log } = start({ transport: "tls", linkReason: "bulk", probe });
    stats.rttMs = 20;
    await log.waitFor("the transport stays", { link: "tls", reason: "UDP is blocked" }, 2);
    (await connections.next()).succeed();
    assert.equal((await within(watch.replaced)).transport, "quic");
  });
});

describe("the watch of a session on TLS", () => {
  it("returns to QUIC where a probe moves data in time", async () => {
    const probed: SessionKind[] = [];
    const probe = (kind: SessionKind) => {
      probed.push(kind);
      return Promise.resolve(10);
    };
    const { watch, connections } = start({ transport: "tls", probe });
    const { kind, succeed } = await connections.next();
    assert.equal(kind, "quic");
    assert.deepEqual(probed, ["quic", "tls"]);
    succeed();
    const next = await within(watch.replaced);
    assert.deepEqual([next.transport, next.reason], ["quic", "recovered"]);
  });

  it("stays while probes fail, and probes more rarely", async () => {
    let probes = 0;
    const probe = (kind: SessionKind): Promise<number> => {
      if (kind === "quic" && ++probes < 4) return Promise.reject(new NetError("timed-out", "UDP is blocked"));
      return Promise.resolve(10);
    };
    const { watch, connections, policy, log } = start({ transport: "tls", probe });
    await log.waitFor("the transport stays", { link: "tls", reason: "UDP is blocked" }, 3);
    (await connections.next()).succeed();
    assert.equal((await within(watch.replaced)).transport, "quic");
    assert.equal(policy.nextProbeMs(A), 40);
  });

  it("stays where QUIC passes the probe much more slowly than TLS", async () => {
    const { watch, log, connecting } = start({ transport: "tls", probe: (kind) => Promise.resolve(kind === "quic" ? 600 : 100) });
    await log.waitFor("the transport stays", { reason: "QUIC works, but is slower than TLS" }, 2);
    assert.equal(connecting(), 0);
    watch.close();
  });

  it("returns where only the probe over TLS fails", async () => {
    const probe = (kind: SessionKind): Promise<number> => kind === "tls" ? Promise.reject(new Error("reset")) : Promise.resolve(4_000);
    const { watch, connections } = start({ transport: "tls", probe });
    (await connections.next()).succeed();
    assert.equal((await within(watch.replaced)).transport, "quic");
  });

  it("stays where the session over QUIC does not open after the probe", async () => {
    const { watch, connections, log } = start({ transport: "tls" });
    (await connections.next()).fail();
    await log.waitFor("the transport stays", { link: "tls", reason: "quic does not connect" });
    (await connections.next()).succeed();
    assert.equal((await within(watch.replaced)).transport, "quic");
  });

  it("probes nothing where that is turned off", async () => {
    let probes = 0;
    const { watch } = start({ transport: "tls", probeIntervalMs: 0, probe: () => Promise.resolve(++probes) });
    assert.ok(await isPending(watch.replaced));
    assert.equal(probes, 0);
    watch.close();
  });
});
