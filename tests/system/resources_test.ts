// The memory and descriptors of the compiled proxy and agent, and that they are released.
import assert from "node:assert/strict";
import { randomBytes } from "node:crypto";
import { readFileSync } from "node:fs";
import process from "node:process";
import { describe, it } from "node:test";
import { eventually, openDescriptors, Pair, residentMiB } from "../../testing/programs.ts";
import { openTunnel, Origin, type Wire } from "../../testing/sockets.ts";

const MIB = 1 << 20;
const onLinux = { skip: process.platform === "linux" ? false : "only Linux shows what a process has open" };

describe("slow client", () => {
  it("affects neither the memory of proxy and agent nor the speed of the agent's other tunnels", onLinux, async () => {
    await using pair = await Pair.start();
    let sent = 0;
    await using endless = await Origin.start((wire) => pour(wire, Infinity, (count) => sent += count));
    await using fast = await Origin.start((wire) => pour(wire, 128 * MIB));
    const alone: number[] = [];
    for (let round = 0; round < 4; round++) alone.push(await timeDownload(pair, fast, 128 * MIB));
    const before = memoryOf(pair);

    using slow = await openTunnel(pair.addresses.clients, endless.authority, { highWater: 0 });
    const reading = readSlowly(slow, 10_000);
    const beside = [await timeDownload(pair, fast, 128 * MIB)];
    for (let before = 0; sent > before;) { // until all buffers are full
      before = sent + MIB;
      beside.push(await timeDownload(pair, fast, 128 * MIB));
      assert.ok(sent < 64 * MIB, `${sent} bytes taken for a client that has read ${slow.received}`);
    }
    const [sentAtFirst, receivedAtFirst] = [sent, slow.received];
    const most = { proxy: 0, agent: 0 };
    while (slow.received < receivedAtFirst + 100_000) {
      beside.push(await timeDownload(pair, fast, 128 * MIB));
      const { proxy, agent } = memoryOf(pair);
      [most.proxy, most.agent] = [Math.max(most.proxy, proxy), Math.max(most.agent, agent)];
    }

    // what is under way for it: the window of its stream and the buffers of the system
    assert.ok(sent < 64 * MIB, `${sent} bytes taken for a client that has read ${slow.received}`);
    assert.ok(sent - sentAtFirst < 8 * MIB, `${sent - sentAtFirst} bytes taken more while it read ${slow.received - receivedAtFirst}`);
    for (const part of ["proxy", "agent"] as const) {
      assert.ok(most[part] - before[part] < 32, `${part} had ${before[part]} MiB, and ${most[part]} MiB with a slow client`);
    }
    // the best of each, in one run on one machine, and much room
    const [best, worst] = [Math.min(...alone), Math.min(...beside)];
    assert.ok(worst < 3 * best, `128 MiB take ${best} ms alone, and ${worst} ms beside a slow client`);
    slow[Symbol.dispose]();
    await reading;
  });
});

describe("clients that read nothing", () => {
  for (const { clients, mostKiB } of [{ clients: 60, mostKiB: 1_024 }, { clients: 300, mostKiB: 384 }]) {
    it(
      `take at most ${mostKiB} KiB of the proxy each, ${clients} of them, and little of the system, and a download beside them arrives`,
      onLinux,
      async () => {
        await using pair = await Pair.start();
        await using endless = await Origin.start((wire) => pour(wire, Infinity));
        await using fast = await Origin.start((wire) => pour(wire, 64 * MIB));
        await timeDownload(pair, fast, 64 * MIB);
        const before = memoryOf(pair).proxy;
        const held = await Promise.all(
          Array.from({ length: clients }, () => openTunnel(pair.addresses.clients, endless.authority, { highWater: 0 })),
        );
        for (let round = 0; round < 3; round++) await timeDownload(pair, fast, 64 * MIB);
        const { proxy } = memoryOf(pair);
        assert.ok(proxy - before < clients * mostKiB / 1024, `the proxy had ${before} MiB, and ${proxy} MiB with ${clients} clients`);
        const queued = queuedBehind(pair.addresses.clients) / clients;
        assert.ok(queued > 0 && queued < 256 << 10, `the system holds ${queued} bytes for each client`);
        held.forEach((wire) => wire[Symbol.dispose]());
      },
    );
  }

  it("get every byte in order once they read", onLinux, async () => {
    await using pair = await Pair.start();
    const bytes = randomBytes(2 * MIB);
    await using origin = await Origin.start(async (wire) => {
      await wire.write(bytes);
      wire.finish();
    });
    await using fast = await Origin.start((wire) => pour(wire, 64 * MIB));
    const held = await Promise.all(
      Array.from({ length: 20 }, () => openTunnel(pair.addresses.clients, origin.authority, { highWater: 0 })),
    );
    // meanwhile the proxy copies what it holds for them
    for (let round = 0; round < 3; round++) await timeDownload(pair, fast, 64 * MIB);
    for (const wire of held) assert.ok(bytes.equals(await wire.readAll()), "other bytes than were sent");
  });

  it("exhaust the budget for buffers, and other clients get the reason why they are refused", onLinux, async () => {
    await using pair = await Pair.start({ proxy: ["--limits.buffer-memory=4MiB"] });
    await using endless = await Origin.start((wire) => pour(wire, Infinity));
    const held = await Promise.all(
      Array.from({ length: 30 }, () => openTunnel(pair.addresses.clients, endless.authority, { highWater: 0 })),
    );
    const refusal = pair.proxy.waitFor("limit reached");
    let isRefused = false;
    void refusal.finally(() => isRefused = true).catch(() => {});
    while (!isRefused) {
      const wire = await openTunnel(pair.addresses.clients, endless.authority, { highWater: 0 }).catch(() => undefined);
      wire?.[Symbol.dispose]();
    }
    assert.equal((await refusal).limit, "buffer-memory");
    held.forEach((wire) => wire[Symbol.dispose]());
  });
});

describe("tunnels", () => {
  it("can be open 2,000 at once on one agent, and release their descriptors", onLinux, async () => {
    await using pair = await Pair.start();
    await using origin = await Origin.start(echo);
    const descriptors = descriptorsOf(pair);
    await converse(await openMany(pair, origin, 100)); // what is allocated once
    await settled(pair, descriptorsOf, descriptors);
    const memory = memoryOf(pair);

    const wires = await openMany(pair, origin, 2_000);
    // each has its connection to a client or a destination, and no descriptor besides
    assert.deepEqual(descriptorsOf(pair), { proxy: descriptors.proxy + 2_000, agent: descriptors.agent + 2_000 });
    const open = memoryOf(pair);
    for (const part of ["proxy", "agent"] as const) {
      assert.ok(open[part] - memory[part] < 2_000 * 64 / 1024, `${part} had ${memory[part]} MiB, and ${open[part]} MiB with 2,000 tunnels`);
    }
    await converse(wires);
    await settled(pair, descriptorsOf, descriptors);
  });

  it("opened and closed 200 at a time, 100 times, leave no descriptor and no memory behind", { ...onLinux, timeout: 180_000 }, async () => {
    await using pair = await Pair.start();
    await using origin = await Origin.start(echo);
    const [descriptors, memory] = [descriptorsOf(pair), memoryOf(pair)];
    for (let round = 0; round < 100; round++) await converse(await openMany(pair, origin, 200));
    await settled(pair, descriptorsOf, descriptors);
    // an idle process collects its garbage and returns it within seconds; code that ran for the first time keeps some 10 MiB
    await settled(pair, memoryOf, { proxy: memory.proxy + 16, agent: memory.agent + 16 }, 60_000);
  });

  it("that are reset or never reach their destination leave no descriptor behind", onLinux, async () => {
    await using pair = await Pair.start();
    await using origin = await Origin.start();
    const descriptors = descriptorsOf(pair);
    for (let round = 0; round < 10; round++) {
      const wires = await openMany(pair, origin, 100);
      const servers = await Promise.all(wires.map(() => origin.accept()));
      for (const wire of round % 2 === 0 ? wires : servers) wire.reset();
      const refused = Array.from({ length: 50 }, () => openTunnel(pair.addresses.clients, "127.0.0.1:1"));
      assert.ok((await Promise.allSettled(refused)).every(({ status }) => status === "rejected"));
      for (const wire of round % 2 === 0 ? servers : wires) assert.equal(await wire.ending(), "ECONNRESET");
    }
    await settled(pair, descriptorsOf, descriptors);
  });
});

interface Usage {
  proxy: number;
  agent: number;
}

function descriptorsOf({ proxy, agent }: Pair): Usage {
  return { proxy: openDescriptors(proxy.pid), agent: openDescriptors(agent.pid) };
}

/** In MiB. */
function memoryOf({ proxy, agent }: Pair): Usage {
  return { proxy: Math.round(residentMiB(proxy.pid)), agent: Math.round(residentMiB(agent.pid)) };
}

/** Bytes in the system's send buffers of a listener's connections (proc(5), /proc/net/tcp). */
function queuedBehind(address: string): number {
  const port = Number(address.split(":").at(-1)).toString(16).toUpperCase().padStart(4, "0");
  const sockets = readFileSync("/proc/net/tcp", "utf8").split("\n").slice(1, -1).map((line) => line.trim().split(/\s+/));
  const queues = sockets.filter(([, local, , state]) => local!.endsWith(`:${port}`) && state === "01").map(([, , , , queues]) => queues!);
  return queues.reduce((sum, queues) => sum + parseInt(queues.split(":")[0]!, 16), 0);
}

/** Waits until at most this many bytes are buffered. */
async function settled(pair: Pair, measure: (pair: Pair) => Usage, most: Usage, patienceMs?: number): Promise<void> {
  const reached = () => {
    const { proxy, agent } = measure(pair);
    return proxy <= most.proxy && agent <= most.agent;
  };
  await eventually(reached, () => `${measure.name}: ${JSON.stringify(measure(pair))}, not ${JSON.stringify(most)}`, patienceMs);
}

/** Sends as fast as the peer reads, until it disconnects or `bytes` are sent. */
async function pour(wire: Wire, bytes: number, onSent: (count: number) => void = () => {}): Promise<void> {
  const block = new Uint8Array(256 * 1024);
  for (let sent = 0; sent < bytes; sent += block.length) {
    await wire.write(block);
    onSent(block.length);
  }
  wire.finish();
}

/** Duration in milliseconds of a complete download from `origin`. */
async function timeDownload(pair: Pair, origin: Origin, expected: number): Promise<number> {
  const started = performance.now();
  using client = await openTunnel(pair.addresses.clients, origin.authority);
  let bytes = 0;
  for (let chunk; (chunk = await client.next()) !== null;) bytes += chunk.length;
  assert.equal(bytes, expected);
  return performance.now() - started;
}

/** Reads at about this rate in bytes a second, until this side closes the connection. */
async function readSlowly(wire: Wire, bytesPerSecond: number): Promise<void> {
  while (!wire.socket.destroyed) {
    const chunk = await wire.next().catch(() => null);
    await new Promise<void>((resolve) => {
      const timer = setTimeout(resolve, (chunk?.length ?? 0) / bytesPerSecond * 1000);
      wire.socket.once("close", () => {
        clearTimeout(timer);
        resolve();
      });
    });
  }
}

/** An echo server. */
async function echo(wire: Wire): Promise<void> {
  for (let chunk; (chunk = await wire.next()) !== null;) await wire.write(chunk);
  wire.finish();
}

/** Opens tunnels, 50 at a time. */
async function openMany(pair: Pair, origin: Origin, count: number): Promise<Wire[]> {
  const wires: Wire[] = [];
  const open = async () => {
    for (let left = count / 50; left > 0; left--) wires.push(await openTunnel(pair.addresses.clients, origin.authority));
  };
  await Promise.all(Array.from({ length: 50 }, open));
  assert.equal(wires.length, count);
  return wires;
}

/** Sends and receives through each tunnel, and finishes it. */
async function converse(wires: Wire[]): Promise<void> {
  await Promise.all(wires.map(async (wire) => {
    wire.finish("ping");
    assert.equal((await wire.readAll()).toString(), "ping");
  }));
}
