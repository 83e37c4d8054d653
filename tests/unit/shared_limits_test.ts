// Limits that hold for several processes, of which each test has two.
import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { ConnectionLimiter } from "../../shared/limits/connection_limiter.ts";
import { InflightCounts, TokenBuckets } from "../../shared/limits/counters.ts";
import { LimitReached, LimitReporter } from "../../shared/limits/limit.ts";
import { type LimitNews, SharedLimits } from "../../shared/limits/shared_limits.ts";
import { LogBook } from "../../testing/network.ts";
import { pause } from "../conformance/support.ts";

/** Two processes that tell each other, as JSON. */
function withTwo(body: (one: SharedLimits, two: SharedLimits) => Promise<void>): () => Promise<void> {
  return async () => {
    const copy = <T>(news: T): T => JSON.parse(JSON.stringify(news)) as T;
    const one: SharedLimits = new SharedLimits(2, "secret", (news) => two.told("one", copy(news)));
    const two: SharedLimits = new SharedLimits(2, "secret", (news) => one.told("two", copy(news)));
    try {
      await body(one, two);
    } finally {
      for (const limits of [one, two]) limits.close();
    }
  };
}

async function until(reached: () => boolean, what: string): Promise<void> {
  for (const deadline = performance.now() + 10_000; !reached();) {
    assert.ok(performance.now() < deadline, what);
    await pause(5);
  }
}

function limiterOf(shared: SharedLimits, max: { all?: number; perAddress?: number; own?: number } = {}): ConnectionLimiter {
  return new ConnectionLimiter({
    all: { limit: "connections", max: max.all ?? 0, ownMax: max.own },
    perAddress: { limit: "connections-per-address", max: max.perAddress ?? 0 },
    addresses: { authFailures: 1, authLockoutMax: 60_000, exemptAddresses: [] },
    failureRefillMs: 60_000,
    reports: new LimitReporter({ log: new LogBook() }),
    shared,
  });
}

function refuses(use: () => unknown): boolean {
  try {
    use();
    return false;
  } catch (error) {
    assert.ok(error instanceof LimitReached);
    return true;
  }
}

describe("connections of two processes", () => {
  it(
    "are limited together, per address and in total, and each process by its own descriptors",
    withTwo(async (one, two) => {
      const max = { all: 4, perAddress: 2, own: 3 };
      const [here, there] = [limiterOf(one, max), limiterOf(two, max)];
      here.acquire("a:1");
      there.acquire("a:2");
      await until(
        () => refuses(() => here.acquire("a:3").release()) && refuses(() => there.acquire("a:3").release()),
        "an address has any number",
      );
      for (const address of ["b:1", "c:1"]) here.acquire(address);
      assert.ok(refuses(() => here.acquire("d:1")), "one process has more than it may have");
      await until(() => refuses(() => there.acquire("d:1").release()), "there are too many");
    }),
  );
});

describe("counts of two processes", () => {
  it(
    "are added up, until one ends or has told that there are none left",
    withTwo(async (one, two) => {
      const [here, there] = [new InflightCounts(one.counts("tunnels")), new InflightCounts(two.counts("tunnels"))];
      here.add("a", 10);
      here.add("a", 10);
      there.add("a", 10);
      await until(() => here.get("a") === 3 && there.get("a") === 3, "both know three");
      assert.deepEqual([here.own("a"), there.own("a")], [2, 1]);
      for (let times = 0; times < 2; times++) here.remove("a");
      await until(() => there.get("a") === 1, "one is left");
      one.forget("two");
      assert.equal(here.get("a"), 0);
      for (const news of two.snapshot) one.told("two", news);
      assert.equal(here.get("a"), 1);
    }),
  );

  it("are told if they matter", async () => {
    const told: unknown[] = [];
    const limits = new SharedLimits(2, "secret", (news) => told.push(news));
    const counts = new InflightCounts(limits.counts("tunnels"));
    for (let count = 0; count < 6; count++) counts.add("few", 100);
    for (let count = 0; count < 7; count++) counts.add("many", 100);
    for (let count = 0; count < 7; count++) counts.add("unlimited");
    await until(() => told.length > 0, "nothing is told");
    counts.remove("many");
    await until(() => told.length > 1, "nothing is told");
    assert.deepEqual(told, [{ counts: { tunnels: [["many", 7]] } }, { counts: { tunnels: [["many", 0]] } }]);
    limits.close();
  });
});

describe("what a process tells", () => {
  it("comes in parts of limited size", async () => {
    const told: LimitNews[] = [];
    const limits = new SharedLimits(2, "secret", (news) => told.push(news));
    const counts = new InflightCounts(limits.counts("tunnels-per-client"));
    for (let client = 0; client < 1_200; client++) counts.add(String(client), 1);
    const sizes = (all: readonly LimitNews[]) => all.map(({ counts }) => counts?.["tunnels-per-client"]?.length);
    await until(() => told.length >= 3, "it tells too little");
    assert.deepEqual([sizes(told), sizes(limits.snapshot)], [[500, 500, 200], [500, 500, 200]]);
    limits.close();
  });
});

describe("a rate of two processes", () => {
  it(
    "permits what it does for one",
    withTwo(async (one, two) => {
      let told = 0;
      const of = (limits: SharedLimits) => {
        const onTaken = limits.rate("rate", (key, count) => {
          buckets.takenByOthers(key, count);
          told += count;
        });
        const buckets = new TokenBuckets(1, 10, () => 0, onTaken);
        return buckets;
      };
      const [here, there] = [of(one), of(two)];
      for (let count = 0; count < 8; count++) assert.equal(here.take("a"), 0);
      await until(() => told === 8, "the other one does not know");
      assert.deepEqual(Array.from({ length: 3 }, () => there.take("a")), [0, 0, 1_000]);
      await until(() => told === 10, "this one does not know");
      assert.deepEqual([here.take("a"), here.take("b")], [1_000, 0]);
    }),
  );
});

describe("failed authentications at two processes", () => {
  it(
    "lock an address out of both, and a repeated one counts once",
    withTwo(async (one, two) => {
      const [here, there] = [limiterOf(one), limiterOf(two)];
      const isLocked = (limiter: ConnectionLimiter, address: string) => refuses(() => limiter.checkLockout(address));
      here.recordFailure("guesser", "1");
      there.recordFailure("guesser", "2");
      for (let times = 0; times < 5; times++) {
        here.recordFailure("misconfigured", "same");
        there.recordFailure("misconfigured", "same");
      }
      await until(() => isLocked(here, "guesser") && isLocked(there, "guesser"), "it may guess on");
      assert.deepEqual([isLocked(here, "misconfigured"), isLocked(there, "misconfigured")], [false, false]);
    }),
  );
});
