// Limits, with a clock that the test sets: counts, rates, lockouts, memory, durations, and their reports.
import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { fieldsOf, statusOf } from "../../shared/http/status.ts";
import { createAddressKeys } from "../../shared/limits/addresses.ts";
import { ConnectionLimiter, type ConnectionLimiterOptions } from "../../shared/limits/connection_limiter.ts";
import { FailedCredentials } from "../../shared/limits/failed_credentials.ts";
import { LimitReached, LimitReporter } from "../../shared/limits/limit.ts";
import {
  checkWatermark,
  descriptorLimit,
  MemoryWatermark,
  shareOf,
  unreclaimableBytes,
  withinDescriptors,
} from "../../shared/limits/resources.ts";
import { AuthLockout, InflightCounts, TokenBuckets } from "../../shared/limits/counters.ts";
import { TunnelLimits, type TunnelLimitsOptions } from "../../shared/limits/tunnels.ts";
import { silentLogger } from "../../shared/log/logger.ts";
import { LogBook } from "../../testing/network.ts";

/** A clock in milliseconds that the test advances. */
function createClock(): { now: () => number; pass: (ms: number) => void } {
  let ms = 1_000_000;
  return { now: () => ms, pass: (more) => void (ms += more) };
}

const SECRETIVE = new LimitReporter({ log: silentLogger });

function limitOf(work: () => unknown): string {
  try {
    work();
  } catch (error) {
    if (error instanceof LimitReached) return error.limit;
    throw error;
  }
  return "none";
}

describe("address keys", () => {
  it("are IPv4 addresses and IPv6 networks of 64 bits, and nothing for exempt addresses", () => {
    const keyOf = createAddressKeys(["127.0.0.0/8", "2001:db8:ffff::/48"]);
    const keys: [remote: string, key: string | undefined][] = [
      ["10.0.0.1:5000", "10.0.0.1"],
      ["[::ffff:10.0.0.1]:5000", "10.0.0.1"],
      ["[2001:db8:1:2:3:4:5:6]:5000", "2001:db8:1:2::/64"],
      ["[2001:db8:1:2::9]:1", "2001:db8:1:2::/64"],
      ["[2001:db8:1:3::9]:1", "2001:db8:1:3::/64"],
      ["[fe80::1%2]:1", "fe80:0:0:0::/64"],
      ["[::1]:1", "0:0:0:0::/64"],
      ["127.1.2.3:1", undefined],
      ["[2001:db8:ffff:1::1]:1", undefined],
    ];
    for (const [remote, key] of keys) assert.equal(keyOf(remote), key, remote);
    assert.equal(createAddressKeys([])("127.0.0.1:1"), "127.0.0.1");
  });
});

describe("a tally", () => {
  it("has no entry for a key with a count of zero", () => {
    const tally = new InflightCounts();
    tally.add("a");
    tally.add("a");
    tally.remove("a");
    assert.equal(tally.get("a"), 1);
    tally.remove("a");
    tally.remove("a");
    assert.equal(tally.get("a"), 0);
  });
});

describe("token buckets", () => {
  it("allow a burst, then the rate, for each key separately", () => {
    const { now, pass } = createClock();
    const buckets = new TokenBuckets(10, 20, now);
    for (let i = 0; i < 20; i++) assert.equal(buckets.take("a"), 0);
    assert.equal(buckets.take("a"), 100);
    assert.equal(buckets.take("b"), 0);
    pass(100);
    assert.equal(buckets.take("a"), 0);
    assert.ok(buckets.take("a") > 0);
    pass(3_600_000);
    for (let i = 0; i < 20; i++) assert.equal(buckets.take("a"), 0);
    assert.ok(buckets.take("a") > 0);
  });

  it("with a small rate allow at least one, and without a rate any number", () => {
    const { now } = createClock();
    const slow = new TokenBuckets(1, 0.1, now);
    assert.equal(slow.take("a"), 0);
    assert.equal(slow.take("a"), 1_000);
    const none = new TokenBuckets(Infinity, Infinity, now);
    for (let i = 0; i < 1_000; i++) assert.equal(none.take("a"), 0);
    assert.equal(none.size, 0);
  });

  it("are kept for a limited number of keys, the most recent ones", () => {
    const { now } = createClock();
    const buckets = new TokenBuckets(1, 1, now);
    buckets.take("first");
    for (let i = 0; i < 100_000; i++) {
      buckets.take(`key ${i}`);
      if (i % 1_000 === 0) buckets.take("often");
    }
    assert.ok(buckets.size <= 16_384, `${buckets.size} are kept`);
    assert.ok(buckets.take("often") > 0);
    assert.equal(buckets.take("first"), 0);
  });
});

describe("a lock-out", () => {
  it("starts after a number of failures, and lasts twice as long each time up to the maximum", () => {
    const { now, pass } = createClock();
    const lockOut = new AuthLockout(3, 5_000, 10_000, now);
    for (let i = 0; i < 3; i++) lockOut.recordFailure("a");
    assert.equal(lockOut.lockedMs("a"), 0);
    for (const ms of [1_000, 2_000, 4_000, 5_000, 5_000]) {
      lockOut.recordFailure("a");
      assert.equal(lockOut.lockedMs("a"), ms);
      pass(ms);
      assert.equal(lockOut.lockedMs("a"), 0);
    }
    assert.equal(lockOut.lockedMs("b"), 0);
    assert.equal(lockOut.size, 1);
  });

  it("never applies to occasional failures, such as those of a misconfigured agent", () => {
    const { now, pass } = createClock();
    const lockOut = new AuthLockout(3, 300_000, 10_000, now);
    for (let i = 0; i < 1_000; i++) {
      lockOut.recordFailure("a");
      assert.equal(lockOut.lockedMs("a"), 0);
      pass(30_000);
    }
  });

  it("is forgotten after a time without failures", () => {
    const { now, pass } = createClock();
    const lockOut = new AuthLockout(1, 300_000, 10_000, now);
    for (let i = 0; i < 5; i++) lockOut.recordFailure("a");
    assert.equal(lockOut.lockedMs("a"), 8_000);
    pass(8_000 + 20_000);
    lockOut.recordFailure("a");
    assert.equal(lockOut.lockedMs("a"), 0);
    lockOut.recordFailure("a");
    assert.equal(lockOut.lockedMs("a"), 1_000);
  });

  it("is kept for a limited number of keys, and for none without a limit", () => {
    const { now } = createClock();
    const lockOut = new AuthLockout(1, 1_000, 10_000, now);
    for (let i = 0; i < 100_000; i++) lockOut.recordFailure(`key ${i}`);
    assert.ok(lockOut.size <= 16_384, `${lockOut.size} are kept`);
    const none = new AuthLockout(Infinity, 1_000, 10_000, now);
    for (let i = 0; i < 1_000; i++) none.recordFailure("a");
    assert.deepEqual([none.size, none.lockedMs("a")], [0, 0]);
  });
});

describe("wrong credentials", () => {
  it("are remembered by their hashes, in limited number", () => {
    const { now } = createClock();
    const wrong = new FailedCredentials(now);
    const isNew = (address: string, credential: string) => wrong.isNew(wrong.hashOf(address, credential));
    for (let i = 0; i < 50_000; i++) assert.ok(isNew("a", `secret ${i}`));
    assert.ok(wrong.size <= 16_384, `${wrong.size} are kept`);
    assert.ok(!isNew("a", "secret 49999"));
    assert.ok(isNew("b", "secret 49999"));
    assert.ok(!JSON.stringify(wrong).includes("secret"));
  });
});

describe("reports of limits", () => {
  it("count every rejection, and log one a minute with the number of the others", () => {
    const { now, pass } = createClock();
    const log = new LogBook();
    const counted: string[] = [];
    const reports = new LimitReporter({ log, now, count: (limit) => counted.push(limit) });
    for (let i = 0; i < 5; i++) reports.record("tunnels", { max: 7 });
    reports.record("memory");
    assert.deepEqual(log.logged("limit reached"), [{ limit: "tunnels", max: 7, suppressed: undefined }, {
      limit: "memory",
      suppressed: undefined,
    }]);
    reports.flush();
    assert.equal(log.entries.length, 2);
    pass(60_000);
    reports.record("tunnels", { max: 8 });
    assert.deepEqual(log.logged("limit reached", { limit: "tunnels" })[1], { limit: "tunnels", max: 8, suppressed: 4 });
    reports.record("tunnels");
    pass(60_000);
    reports.flush();
    assert.deepEqual(log.logged("limit reached", { limit: "tunnels" })[2], { limit: "tunnels", suppressed: 1 });
    reports.flush();
    assert.equal(log.entries.length, 4);
    assert.equal(counted.length, 8);
  });
});

describe("the door", () => {
  const open = (options: Partial<ConnectionLimiterOptions> = {}) =>
    new ConnectionLimiter({
      all: { limit: "connections", max: 3 },
      perAddress: { limit: "connections-per-address", max: 2 },
      addresses: { authFailures: 1, authLockoutMax: 60_000, exemptAddresses: ["192.0.2.1"] },
      failureRefillMs: 10_000,
      reports: SECRETIVE,
      ...options,
    });

  it("admits a number in all and for each address, and others when they leave", () => {
    const door = open();
    const first = door.acquire("10.0.0.1:1");
    door.acquire("10.0.0.1:2");
    assert.equal(limitOf(() => door.acquire("10.0.0.1:3")), "connections-per-address");
    door.acquire("10.0.0.2:1");
    assert.equal(limitOf(() => door.acquire("10.0.0.3:1")), "connections");
    first.release();
    first.release();
    door.acquire("10.0.0.1:3");
    assert.equal(limitOf(() => door.acquire("10.0.0.3:1")), "connections");
  });

  it("counts a client for its own address once that is known", () => {
    const door = open();
    door.acquire("10.0.0.1:1");
    const [second, third] = [door.acquire(), door.acquire()];
    assert.equal(limitOf(() => door.acquire()), "connections");
    second.setRemote("10.0.0.1");
    assert.equal(limitOf(() => third.setRemote("10.0.0.1:3")), "connections-per-address");
    third.release();
    second.setRemote("10.0.0.2");
    const fourth = door.acquire("10.0.0.1:4");
    second.setRemote("10.0.0.3");
    fourth.release();
    second.release();
    assert.equal(limitOf(() => door.acquire("10.0.0.1:4")), "none");
  });

  it("counts exempt addresses only in the total, and locks none of them out", () => {
    const door = open();
    const visits = [1, 2, 3].map((port) => door.acquire(`192.0.2.1:${port}`));
    assert.equal(limitOf(() => door.acquire("192.0.2.1:4")), "connections");
    for (let i = 0; i < 10; i++) visits[0]!.recordFailure(`wrong ${i}`);
    visits[0]!.checkLockout();
  });

  it("tells a client that fails too often when to retry", () => {
    const { now } = createClock();
    const door = open({ now });
    const visit = door.acquire("10.0.0.1:1");
    for (let i = 0; i < 3; i++) visit.recordFailure(`wrong ${i}`);
    assert.throws(() => door.acquire("10.0.0.1:2").checkLockout(), (error: LimitReached) => {
      assert.deepEqual([statusOf(error), error.type, fieldsOf(error)], [503, "connection_limit_reached", [["Retry-After", "2"]]]);
      return true;
    });
    door.acquire("10.0.0.2:1").checkLockout();
  });

  it("counts the same wrong credential of an address once a minute", () => {
    const { now, pass } = createClock();
    const door = open({ now, addresses: { authFailures: 1, authLockoutMax: 60_000, exemptAddresses: [] } });
    const visit = door.acquire("10.0.0.1:1");
    for (let minute = 0; minute < 10; minute++) {
      for (let i = 0; i < 1_000; i++) visit.recordFailure("the same");
      visit.checkLockout();
      pass(60_000);
    }
    visit.recordFailure("one");
    visit.recordFailure(new TextEncoder().encode("another"));
    assert.equal(limitOf(() => visit.checkLockout()), "auth-failures");
    const other = door.acquire("10.0.0.2:1");
    for (const wrong of ["one", "another"]) other.recordFailure(wrong);
    assert.equal(limitOf(() => other.checkLockout()), "auth-failures");
  });

  it("has no limit if it is 0", () => {
    const door = open({
      all: { limit: "agents", max: 0 },
      perAddress: { limit: "agents-per-address", max: 0 },
      addresses: { authFailures: 0, authLockoutMax: 1, exemptAddresses: [] },
    });
    const visits = Array.from({ length: 1_000 }, (_, i) => door.acquire(`10.0.0.1:${i + 1}`));
    for (const [i, visit] of visits.entries()) visit.recordFailure(`wrong ${i}`);
    visits[0]!.checkLockout();
  });
});

describe("reports of many at once", () => {
  it("count all, and log the latest with the number that it represents", () => {
    const [log, counted]: [LogBook, number[]] = [new LogBook(), []];
    const reports = new LimitReporter({ log, count: (_, times) => counted.push(times), now: () => 0 });
    reports.record("handshakes", { remote: "a" }, 5);
    reports.record("handshakes", { remote: "b" }, 3);
    assert.deepEqual(counted, [5, 3]);
    assert.deepEqual(log.logged("limit reached"), [{ limit: "handshakes", remote: "a", suppressed: 4 }]);
  });
});

describe("limits of tunnels", () => {
  const withLimits = (options: Partial<TunnelLimitsOptions>, body: (limits: TunnelLimits) => void) => {
    const limits = new TunnelLimits({
      tunnels: 0,
      tunnelIdleTimeout: 0,
      tunnelMaxDuration: 0,
      bandwidthPerTunnel: "0",
      memoryWatermark: "0",
      bufferMemory: "0",
      reports: SECRETIVE,
      createRate: () => assert.fail("there is no limit"),
      ...options,
    });
    try {
      body(limits);
    } finally {
      limits.close();
    }
  };

  it("refuse tunnels while two thirds of the budget for buffers are used", () => {
    const told: number[] = [];
    let [used, asked] = [0, 0];
    const buffers = {
      limitBuffers: (bytes: number) => void told.push(bytes),
      bufferedBytes() {
        asked++;
        return used;
      },
    };
    const { now, pass } = createClock();
    withLimits({ bufferMemory: "90MiB", buffers, now }, (limits) => {
      assert.deepEqual(told, [90 << 20]);
      const use = (bytes: number) => {
        used = bytes;
        pass(20);
      };
      use(60 << 20);
      limits.open({});
      use((60 << 20) + 1);
      for (let i = 0; i < 3; i++) assert.equal(limitOf(() => limits.open({})), "buffer-memory");
      use(0);
      limits.open({});
      pass(19);
      limits.open({});
      assert.equal(asked, 3, "the network is asked once in 20 ms");
    });
    withLimits({ buffers }, (limits) => {
      assert.deepEqual(told, [90 << 20, 0], "0 is no limit");
      used = 1e15;
      limits.open({});
    });
  });

  it("log tunnels that are cut for their buffers with the client's token, if it has presented one", () => {
    for (const [client, jti] of [["a", undefined], ["id-1", "id-1"]] as const) {
      const log = new LogBook();
      withLimits({ reports: new LimitReporter({ log }) }, (limits) => limits.open({ agentId: "a", client, tokenId: jti }).recordCut());
      assert.deepEqual(log.logged("limit reached").map((fields) => [fields.agent, fields.jti]), [["a", jti]]);
    }
  });

  it("apply in total, per agent and per client", () =>
    withLimits({ tunnels: 4, tunnelsPerAgent: 3, tunnelsPerClient: 2 }, (limits) => {
      const first = limits.open({ agentId: "a", client: "x" });
      limits.open({ agentId: "a", client: "x" });
      assert.equal(limitOf(() => limits.open({ agentId: "b", client: "x" })), "tunnels-per-client");
      limits.open({ agentId: "a", client: "y" });
      assert.equal(limitOf(() => limits.open({ agentId: "a", client: "z" })), "tunnels-per-agent");
      limits.open({ agentId: "b", client: "z" });
      assert.equal(limitOf(() => limits.open({ agentId: "c", client: "c" })), "tunnels");
      first.close();
      first.close();
      limits.open({ agentId: "c", client: "c" });
      assert.equal(limitOf(() => limits.open({ agentId: "d", client: "d" })), "tunnels");
    }));

  it("apply to UDP flows per client, which are tunnels too", () =>
    withLimits({ tunnels: 4, udpFlowsPerClient: 1 }, (limits) => {
      const flow = (client: string) => limits.open({ client, network: "udp" });
      limits.open({ client: "x" });
      const first = flow("x");
      assert.equal(limitOf(() => flow("x")), "udp-flows-per-client");
      flow("y");
      first.close();
      flow("x");
      limits.open({ client: "x" });
      assert.equal(limitOf(() => flow("z")), "tunnels");
    }));

  it("end tunnels after the maximum duration", () => {
    const { now, pass } = createClock();
    withLimits({ tunnelMaxDuration: 5_000, now }, (limits) => {
      const [old, over] = [limits.open({}), limits.open({})];
      pass(3_000);
      const young = limits.open({});
      over.close();
      pass(2_000);
      limits.tick();
      assert.deepEqual([old, over, young].map(({ signal }) => signal!.aborted), [true, false, false]);
      assert.match(String(old.signal!.reason), /maximum duration/);
    });
  });

  it("end tunnels that are idle for too long, if that is configured", () => {
    const { now, pass } = createClock();
    withLimits({ tunnelIdleTimeout: 5_000, now }, (limits) => {
      let count = 0;
      const [quiet, busy, unwatched] = [limits.open({}), limits.open({}), limits.open({})];
      quiet.watchProgress(() => 7);
      busy.watchProgress(() => count++);
      for (let i = 0; i < 5; i++) {
        assert.equal(quiet.signal!.aborted, false);
        pass(1_000);
        limits.tick();
      }
      assert.deepEqual([quiet.signal!.aborted, busy.signal!.aborted, unwatched.signal], [true, false, undefined]);
      assert.match(String(quiet.signal!.reason), /Nothing was sent or received for 5000 ms/);
    });
  });

  it("end the tunnels of an identity that ends", () =>
    withLimits({ tunnelMaxDuration: 5_000 }, (limits) => {
      const ending = new AbortController();
      const [open, closed] = [limits.open({ signal: ending.signal }), limits.open({ signal: ending.signal })];
      closed.close();
      ending.abort(new Error("expired"));
      assert.deepEqual([open.signal!.aborted, closed.signal!.aborted], [true, false]);
      assert.equal(open.signal!.reason.message, "expired");
      assert.equal(limits.open({ signal: ending.signal }).signal!.aborted, true);
    }));
});

describe("memory", () => {
  it("is the memory that the kernel cannot reclaim: pages of mapped files do not count", () => {
    const status = "VmRSS:\t  116080 kB\nRssAnon:\t   14308 kB\nRssFile:\t  101772 kB\nRssShmem:\t       0 kB\n";
    assert.equal(unreclaimableBytes(status), 14_308 * 1_024);
    assert.equal(unreclaimableBytes("VmRSS:\t  116080 kB\n"), 116_080 * 1_024);
    assert.equal(unreclaimableBytes(""), undefined);
  });

  it("above the watermark refuses all but a few tunnels until it is below again", () => {
    let resident = 0;
    const watch = new MemoryWatermark("100MiB", () => resident);
    assert.equal(watch.refuses(1_000), false);
    resident = 101 * 2 ** 20;
    watch.refresh();
    assert.deepEqual([watch.refuses(1_000), watch.refuses(15)], [true, false]);
    resident = 99 * 2 ** 20;
    watch.refresh();
    assert.equal(watch.refuses(1_000), false);
  });

  it("is limited to a share of the machine's, to a size, or not at all", () => {
    const limit = (text: string) => new MemoryWatermark(text, () => 0).limit;
    assert.equal(limit("2GiB"), 2 * 2 ** 30);
    assert.equal(limit("0"), Infinity);
    assert.ok(limit("100%") > 0 && limit("100%") < Infinity);
    assert.ok(Math.abs(limit("50%") * 2 - limit("100%")) < 2);
    for (const text of ["85", "85MB", "101%", "-1%", "", "1.5GiB"]) assert.notEqual(checkWatermark(text), undefined, text);
    for (const text of ["0", "85%", "512MiB", "0%"]) assert.equal(checkWatermark(text), undefined, text);
  });
});

describe("descriptors", () => {
  it("limit connections and pending requests together", () => {
    const wanted = { connections: 32_768, pendingRequests: 4_096 };
    for (const [most, each] of [[1_024, 1], [1_024, 2], [20_000, 2], [1_000_000, 1]] as const) {
      const { connections, pendingRequests } = withinDescriptors(wanted, each, most);
      assert.ok(
        pendingRequests >= 1 && connections >= 1 && connections * each + pendingRequests < most * (each > 1 ? 7 / 8 : 1),
        `${connections} and ${pendingRequests} of ${most}`,
      );
    }
    assert.deepEqual(withinDescriptors(wanted, 2, 1_000_000), wanted);
    assert.deepEqual(withinDescriptors(wanted, 2, Infinity), wanted);
    assert.ok(descriptorLimit() > 0);
  });

  it("leave some connections even if there are few", () => {
    const { connections, pendingRequests } = withinDescriptors({ connections: 32_768, pendingRequests: 4_096 }, 1, 64);
    assert.ok(
      connections >= 16 && pendingRequests >= 1 && connections + pendingRequests <= 32,
      `${connections} and ${pendingRequests} of 64`,
    );
  });

  it("limit the share of one peer if they are too few for all, and not otherwise", () => {
    assert.equal(shareOf(4_096, 1 / 4, 32_768, 704), 176);
    assert.equal(shareOf(100, 1 / 4, 32_768, 704), 100);
    assert.equal(shareOf(4_096, 1 / 4, 32_768, 1), 1);
    assert.equal(shareOf(4_096, 1 / 4, 32_768, 32_768), 4_096);
    assert.equal(shareOf(4_096, 1 / 4, 1_000, 1_000), 4_096);
    assert.equal(shareOf(0, 1 / 4, 32_768, 704), 0);
  });
});
