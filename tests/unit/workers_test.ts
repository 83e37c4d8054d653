// The process that supervises workers: what it starts, tells and restarts, with processes that the test plays.
import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { encodeLine, type FromWorker, type ToWorker } from "../../shared/cli/worker_messages.ts";
import { type WorkerChild, type WorkerChildEvents, Workers, type WorkersOptions } from "../../shared/cli/workers.ts";
import type { Supervisor } from "../../shared/service/supervisor.ts";
import { LogBook } from "../../testing/network.ts";
import { pause, within } from "../conformance/support.ts";

const ADDRESSES = { agents: "127.0.0.1:4242", clients: "127.0.0.1:3128", forwards: [] };

/** A process that the test plays. */
class Child implements WorkerChild {
  readonly told: ToWorker[] = [];
  isKilled = false;

  constructor(readonly pid: number, readonly events: WorkerChildEvents) {}

  send(line: string): void {
    this.told.push(JSON.parse(line) as ToWorker);
  }

  kill(): void {
    this.isKilled = true;
    this.events.ended({ reason: "SIGKILL" });
  }

  say(message: FromWorker): void {
    this.events.line(encodeLine(message).trimEnd());
  }

  /** What the first message says. */
  get start() {
    const [first] = this.told;
    assert.ok(first?.do === "start");
    return first;
  }

  /** The names of the messages after the first. */
  get orders(): string[] {
    return this.told.slice(1).map(({ do: what }) => what);
  }

  ready(): void {
    this.say({ is: "joining", address: `127.0.0.1:${this.pid}`, pin: "p" });
    this.say({ is: "ready", addresses: ADDRESSES, closesWithinMs: 100 });
  }
}

function setUp(count: number, more: Partial<WorkersOptions> = {}) {
  const [children, log] = [[] as Child[], new LogBook()];
  const workers = new Workers({
    count,
    directory: "/nonexistent",
    log,
    spawn: (events) => {
      const child = new Child(children.length + 1, events);
      children.push(child);
      return child;
    },
    backoff: () => ({ next: () => 0, reset: () => {} }),
    ...more,
  });
  /** Ends all processes, so that nothing of the test runs on. */
  const end = async () => {
    workers.stop();
    for (const child of children) child.events.ended({ code: 0, reason: "exit code 0" });
    await within(workers.ended);
  };
  return { workers, children, log, end };
}

/** Waits for the process with this number. */
async function started(children: readonly Child[], count: number): Promise<Child> {
  const deadline = performance.now() + 5_000;
  while (children.length < count) {
    assert.ok(performance.now() < deadline, `${count} processes were not started`);
    await pause(1);
  }
  return children[count - 1]!;
}

/** A service manager, and what it was told. */
function serviceManager(watchdogMs = Infinity): { supervisor: Supervisor; told: string[] } {
  const told: string[] = [];
  const tell = (what: string) => () => void told.push(what);
  const supervisor: Supervisor = {
    watchdogMs,
    ready: tell("ready"),
    reloading: tell("reloading"),
    stopping: (ms) => told.push(`stopping within ${ms}`),
    handedOver: tell("handed over"),
    status: (text) => told.push(text),
    alive: () => {},
  };
  return { supervisor, told };
}

describe("the supervising process", () => {
  it("starts the first worker alone, the others with its addresses, and says that the service is ready when all are", async () => {
    const { supervisor, told } = serviceManager();
    const { children, end } = setUp(3, { supervisor });
    assert.equal(children.length, 1);
    const [first] = children;
    assert.deepEqual([first!.start.worker.isFirst, first!.start.worker.addresses], [true, undefined]);
    first!.ready();
    assert.equal(children.length, 3);
    const starts = children.map(({ start }) => start.worker);
    assert.deepEqual(starts.map(({ index, generation, isFirst }) => [index, generation, isFirst]), [[0, 0, true], [1, 1, false], [
      2,
      2,
      false,
    ]]);
    assert.deepEqual(starts[2]!.addresses, ADDRESSES);
    assert.equal(new Set(starts.map(({ secret, instance }) => `${secret} ${instance}`)).size, 1);
    children[1]!.ready();
    assert.deepEqual(told, []);
    children[2]!.ready();
    assert.deepEqual(told, ["ready"]);
    const linked = children.map(({ told }) =>
      told.flatMap((message) => message.do === "link" ? [message.peers.map(({ index }) => index)] : [])
    );
    assert.deepEqual(linked, [[[]], [[0]], [[0, 1]]]);
    await end();
  });

  it("restarts a worker that has ended as another generation, and tells the others", async () => {
    const { children, log, end } = setUp(2);
    children[0]!.ready();
    children[1]!.ready();
    children[0]!.events.ended({ reason: "SIGKILL" });
    assert.deepEqual(children[1]!.told.at(-1), { do: "forget", generation: 0 });
    const again = await started(children, 3);
    const { index, generation, isFirst, addresses } = again.start.worker;
    assert.deepEqual([index, generation, isFirst, addresses], [0, 2, false, ADDRESSES]);
    again.ready();
    assert.deepEqual(again.told.at(-1), { do: "link", peers: [{ index: 1, generation: 1, address: "127.0.0.1:2", pin: "p" }] });
    await log.waitFor("worker restarted", { worker: 0 });
    await end();
  });

  it("ends with the exit code of a worker that does not start", async () => {
    for (const [code, exitCode] of [[2, 2], [1, 1], [undefined, 1], [0, 1]] as const) {
      const { workers, children } = setUp(2);
      children[0]!.ready();
      children[1]!.events.ended({ code, reason: "it failed" });
      assert.deepEqual(children[0]!.orders, ["link", "forget", "stop"]);
      children[0]!.events.ended({ code: 0, reason: "exit code 0" });
      assert.equal(await within(workers.ended), exitCode);
      assert.equal(children.length, 2);
    }
  });

  it("passes a stop and a reload on, also those that a worker asks for, and waits for all", async () => {
    const { supervisor, told } = serviceManager();
    const { workers, children } = setUp(2, { supervisor });
    for (const at of [0, 1]) children[at]!.ready();
    workers.reload();
    children[0]!.say({ is: "ready" });
    assert.deepEqual(told, ["ready", "reloading"]);
    children[1]!.say({ is: "ready" });
    assert.deepEqual(told, ["ready", "reloading", "ready"]);
    children[1]!.say({ is: "asking", what: "reload" });
    for (const child of children) child.say({ is: "ready" });
    children[1]!.say({ is: "asking", what: "stop" });
    children[0]!.say({ is: "asking", what: "stop" }); // it is no second one
    assert.deepEqual(children.map(({ orders }) => orders.filter((order) => order !== "link" && order !== "forget")), [
      ["reload", "reload", "stop"],
      ["reload", "reload", "stop"],
    ]);
    assert.deepEqual(told.slice(3), ["reloading", "ready", "stopping within 100"]);
    children[0]!.events.ended({ code: 0, reason: "exit code 0" });
    children[1]!.events.ended({ code: 0, reason: "exit code 0" });
    assert.equal(await within(workers.ended), 0);
  });

  it("asks workers again that a second signal shall end, then kills them", async () => {
    const { workers, children } = setUp(1);
    children[0]!.ready();
    for (let times = 0; times < 3; times++) workers.stop();
    assert.deepEqual(children[0]!.orders, ["link", "stop", "stop"]);
    assert.equal(children[0]!.isKilled, true);
    assert.equal(await within(workers.ended), 1);
  });

  it("starts no worker while the service stops", async () => {
    const { workers, children } = setUp(2);
    workers.stop();
    children[0]!.ready();
    children[0]!.events.ended({ code: 0, reason: "exit code 0" });
    assert.equal(await within(workers.ended), 0);
    assert.equal(children.length, 1);
  });

  it("kills a worker that does not respond as often as the service manager demands", async () => {
    const { supervisor } = serviceManager(1_000);
    const { children, log, end } = setUp(2, { supervisor });
    for (const at of [0, 1]) children[at]!.ready();
    assert.equal(children[1]!.start.watchdogMs, 1_000);
    const alive = setInterval(() => children[0]!.say({ is: "alive" }), 20);
    await log.waitFor("worker does not respond", { worker: 1 });
    clearInterval(alive);
    assert.deepEqual(children.slice(0, 2).map(({ isKilled }) => isKilled), [false, true]);
    await end();
  });

  it("kills a worker that does not respond without a service manager, too, but none because it has not run itself", async () => {
    const { children, log, end } = setUp(2, { watchdogMs: 400 });
    for (const at of [0, 1]) children[at]!.ready();
    const blockedUntil = performance.now() + 800;
    while (performance.now() < blockedUntil) { /* the process is stopped */ }
    for (let checks = 0; checks < 2; checks++) {
      await pause(110);
      children[0]!.say({ is: "alive" });
    }
    assert.deepEqual(children.slice(0, 2).map(({ isKilled }) => isKilled), [false, false]);
    const alive = setInterval(() => children[0]!.say({ is: "alive" }), 20);
    await log.waitFor("worker does not respond", { worker: 1 });
    clearInterval(alive);
    assert.equal(children[0]!.isKilled, false);
    await end();
  });

  it("goes on when a worker was killed in the middle of a line", async () => {
    const { children, end } = setUp(2);
    for (const at of [0, 1]) children[at]!.ready();
    children[1]!.events.line('{"is":"sta');
    children[1]!.kill();
    await started(children, 3);
    await end();
  });
});
