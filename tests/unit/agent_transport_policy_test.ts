// Which transport comes first, when QUIC is probed, and what outlives the process.
import assert from "node:assert/strict";
import { mkdtempSync } from "node:fs";
import { readFile, rm, stat, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, describe, it } from "node:test";
import { StoredTransports } from "../../agent/transport/stored_transports.ts";
import { TransportPolicy, type TransportPolicyOptions } from "../../agent/transport/policy.ts";
import { ConfigError } from "../../shared/config/option.ts";
import { silentLogger } from "../../shared/log/logger.ts";
import type { SessionKind } from "../../shared/net/session.ts";
import { LogBook } from "../../testing/network.ts";

const A = "a.example:4242";
const MINUTE = 60_000;

function policy(options: Partial<TransportPolicyOptions> = {}) {
  const stored = new Map<string, "tls" | "websocket">();
  const clock = { now: 0 };
  const memory = {
    fallbackOf: (address: string) => stored.get(address),
    remember: (address: string, kind: SessionKind) => void (kind === "quic" ? stored.delete(address) : stored.set(address, kind)),
  };
  const all = { transport: "auto" as const, memory, probeIntervalMs: MINUTE, random: () => 0.5, now: () => clock.now, ...options };
  return { policy: new TransportPolicy(all), stored, clock };
}

describe("the choice of a transport", () => {
  it("is QUIC first, and TLS first at a proxy that was reached over it", () => {
    const { policy: auto, stored } = policy();
    assert.deepEqual(auto.order(A), ["quic", "tls"]);
    auto.connected(A, "tls");
    assert.deepEqual(auto.order(A), ["tls", "quic"]);
    assert.deepEqual(auto.order("b.example:4242"), ["quic", "tls"]);
    assert.deepEqual([...stored], [[A, "tls"]]);
    auto.connected(A, "quic");
    assert.deepEqual(auto.order(A), ["quic", "tls"]);
    assert.equal(stored.size, 0);
  });

  it("is TLS and a WebSocket beside it at a proxy that was reached over a WebSocket", () => {
    const { policy: auto, stored } = policy({ hasWebSocket: true });
    assert.deepEqual(auto.order(A), ["quic", "tls", "websocket"]);
    auto.connected(A, "websocket");
    assert.deepEqual(auto.order(A), ["tls", "websocket", "quic"]);
    assert.ok(auto.isRemembered(A, "websocket"));
    assert.notEqual(auto.nextProbeMs(A), undefined);
    auto.connected(A, "tls");
    assert.deepEqual(auto.order(A), ["tls", "quic", "websocket"]);
    stored.set(A, "websocket");
    assert.deepEqual(policy({ memory: { fallbackOf: () => "websocket", remember: () => {} } }).policy.order(A), ["tls", "quic"]);
  });

  for (const transport of ["quic", "tls", "websocket"] as const) {
    it(`is only ${transport} where that is configured, and never changes`, () => {
      const { policy: fixed, stored } = policy({ transport });
      assert.deepEqual(fixed.order(A), [transport]);
      fixed.connected(A, transport);
      assert.equal(fixed.isAutomatic, false);
      assert.equal(fixed.nextProbeMs(A), undefined);
      assert.equal(stored.size, 0);
    });
  }

  it("remembers nothing of a link that is on TLS for bulk data, and lets it move there again after ten minutes", () => {
    const { policy: auto, stored, clock } = policy();
    auto.connected(A, "quic");
    assert.equal(auto.mayCarryBulk(A), true);
    auto.delayBulk(A);
    assert.equal(auto.connected(A, "tls", true), "quic");
    assert.deepEqual([auto.order(A), stored.size], [["quic", "tls"], 0]);
    assert.equal(auto.connected(A, "quic"), "tls");
    clock.now += 10 * MINUTE - 1;
    assert.equal(auto.mayCarryBulk(A), false);
    clock.now++;
    assert.equal(auto.mayCarryBulk(A), true);
    auto.connected(A, "tls"); // QUIC is blocked now; its probes are as frequent as at first
    assert.equal(auto.nextProbeMs(A), MINUTE);
  });

  for (const options of [{ transport: "quic" as const }, { probeIntervalMs: 0 }]) {
    it(`never leaves QUIC for bulk data with ${JSON.stringify(options)}`, () => {
      assert.equal(policy(options).policy.mayCarryBulk(A), false);
    });
  }

  it("gives QUIC more time where it has carried the link: a proxy that restarts is slow", () => {
    const { policy: auto } = policy();
    assert.equal(auto.fallbackDelayMs(A), 300);
    auto.connected(A, "quic");
    assert.deepEqual([auto.fallbackDelayMs(A), auto.fallbackDelayMs("b.example:4242")], [5_000, 300]);
    assert.deepEqual([auto.retryMs(A, 2_000), auto.retryMs(A, 20_000), auto.retryMs("b.example:4242", 2_000)], [10_000, 20_000, 2_000]);
    auto.connected(A, "tls");
    assert.equal(auto.fallbackDelayMs(A), 300);
  });

  it("probes QUIC every minute by 20 % more or less, and more rarely while that fails, up to ten minutes", () => {
    const { policy: auto } = policy();
    const intervals = [];
    for (let i = 0; i < 7; i++) {
      intervals.push(auto.nextProbeMs(A)! / MINUTE);
      auto.probeFailed(A);
    }
    assert.deepEqual(intervals, [1, 2, 4, 8, 10, 10, 10]);
    assert.equal(policy({ random: () => 0 }).policy.nextProbeMs(A), 0.8 * MINUTE);
    assert.ok(Math.abs(policy({ random: () => 0.999 }).policy.nextProbeMs(A)! - 1.2 * MINUTE) < 100);
    assert.equal(policy({ probeIntervalMs: 0 }).policy.nextProbeMs(A), undefined);
    const rare = policy({ probeIntervalMs: 30 * MINUTE }).policy;
    rare.probeFailed(A);
    assert.equal(rare.nextProbeMs(A), 30 * MINUTE);
  });

  it("returns to QUIC more rarely where that does not last ten minutes, and as before where it does", () => {
    const { policy: auto, clock } = policy();
    auto.connected(A, "quic");
    auto.connected(A, "tls");
    assert.equal(auto.nextProbeMs(A), MINUTE);
    for (const expected of [2, 4, 8, 10]) {
      auto.connected(A, "quic");
      clock.now += 9 * MINUTE;
      assert.equal(auto.connected(A, "tls"), "quic");
      assert.equal(auto.nextProbeMs(A), expected * MINUTE);
    }
    auto.connected(A, "quic");
    clock.now += 11 * MINUTE;
    auto.connected(A, "tls");
    assert.equal(auto.nextProbeMs(A), MINUTE);
  });
});

describe("what is known about proxies", () => {
  const KEEP_ALIVE = `{"keepAlive":{"${A}":{"intervalMs":"x"},"b:1":7,"c:1":null}}`;
  const root = mkdtempSync(join(tmpdir(), "reverse-http-links-"));
  after(() => rm(root, { recursive: true, force: true }));
  let count = 0;
  const newDirectory = () => join(root, String(++count), "state");
  const open = (path?: string, log = new LogBook()) => StoredTransports.open({ path, required: false }, log);

  it("outlives the process, and is forgotten where QUIC works again", async () => {
    const path = newDirectory();
    const first = await open(path);
    first.remember(A, "tls");
    first.remember("b.example:1", "tls");
    first.remember("b.example:1", "quic");
    await first.close();
    assert.equal((await stat(join(path, "agent-links.json"))).mode & 0o777, 0o600);
    const second = await open(path);
    assert.deepEqual([second.fallbackOf(A), second.fallbackOf("b.example:1")], ["tls", undefined]);
    second.remember(A, "quic");
    await second.close();
    assert.equal((await open(path)).fallbackOf(A), undefined);
  });

  it("has the interval of pings of each proxy after a restart", async () => {
    const path = newDirectory();
    const first = await open(path);
    first.rememberKeepAlive(A, { intervalMs: 5_000 });
    first.rememberKeepAlive(A, { intervalMs: 8_000, failedMs: 12_000, failedAt: 7 });
    for (let i = 0; i < 63; i++) first.rememberKeepAlive(`${i}.example:1`, { intervalMs: 25_000 });
    await first.close();
    const second = await open(path);
    assert.deepEqual(second.keepAliveOf(A), { intervalMs: 8_000, failedMs: 12_000, failedAt: 7 });
    second.rememberKeepAlive("64.example:1", { intervalMs: 25_000 });
    await second.close();
    const third = await open(path);
    assert.deepEqual([third.keepAliveOf(A), third.keepAliveOf("64.example:1")], [undefined, { intervalMs: 25_000 }]);
  });

  it("writes nothing where nothing is known, or nothing changes", async () => {
    const path = newDirectory();
    const memory = await open(path);
    memory.remember(A, "quic");
    await memory.close();
    await assert.rejects(stat(path), { code: "ENOENT" });
  });

  it("is not kept without a directory", async () => {
    const memory = await open();
    memory.remember(A, "tls");
    await memory.close();
    assert.equal(memory.fallbackOf(A), "tls");
  });

  it("is bounded, and the oldest goes", async () => {
    const path = newDirectory();
    const memory = await open(path);
    for (let i = 0; i < 200; i++) memory.remember(`${i}.example:1`, "tls");
    await memory.close();
    const known = await open(path);
    assert.deepEqual([known.fallbackOf("135.example:1"), known.fallbackOf("136.example:1")], [undefined, "tls"]);
  });

  it("is forgotten after 30 days", async () => {
    const path = newDirectory();
    const memory = await open(path);
    memory.remember(A, "tls");
    await memory.close();
    const file = join(path, "agent-links.json");
    const { overTls } = JSON.parse(await readFile(file, "utf8"));
    overTls[A] -= 31 * 86_400_000;
    await writeFile(file, JSON.stringify({ overTls }));
    assert.equal((await open(path)).fallbackOf(A), undefined);
  });

  for (const text of ["", "no JSON", "null", "[]", '{"overTls":7}', '{"overTls":{"a:1":"x"}}', KEEP_ALIVE, " ".repeat(70_000)]) {
    it(`is nothing where the file is unusable: ${JSON.stringify(text.slice(0, 30))}`, async () => {
      const path = newDirectory();
      const memory = await open(path);
      memory.remember(A, "tls");
      await memory.close();
      await writeFile(join(path, "agent-links.json"), text);
      const next = await open(path);
      assert.deepEqual([next.fallbackOf(A), next.keepAliveOf(A)], [undefined, undefined]);
      next.remember(A, "tls");
      await next.close();
      assert.equal((await open(path)).fallbackOf(A), "tls");
    });
  }

  it("is told once that it cannot be stored", async () => {
    const file = join(root, "a file");
    await writeFile(file, "");
    const log = new LogBook();
    const memory = await open(join(file, "state"), log);
    memory.remember(A, "tls");
    memory.remember(A, "quic");
    await memory.close();
    assert.equal(log.logged("the transport that works cannot be stored; set --state-dir").length, 1);
    const required = StoredTransports.open({ path: join(file, "state"), required: true }, silentLogger);
    await assert.rejects(required, (error) => error instanceof ConfigError && error.message.startsWith("Cannot use --state-dir "));
  });
});
