// Connections of an agent whose options have changed several times before the tunnels of the first ones have ended.
import assert from "node:assert/strict";
import { describe, it } from "node:test";
import type { Connections } from "../../agent/connections.ts";
import { Generations } from "../../agent/generations.ts";
import type { OpenSessions } from "../../agent/open_sessions.ts";
import { silentLogger } from "../../shared/log/logger.ts";

/** Connections that open and finish when the test says so. */
class FakeConnections {
  isStopped = false;
  isRetired = false;
  readonly opening = deferred();
  readonly finished = deferred();
  readonly connected = this.opening.promise;
  readonly done = this.finished.promise;

  stop(): void {
    this.isStopped = true;
  }

  async retire(): Promise<void> {
    this.isRetired = true;
    await this.done;
  }
}

function deferred(): { readonly promise: Promise<void>; readonly resolve: () => void } {
  let resolve!: () => void;
  return { promise: new Promise((settle) => resolve = settle), resolve };
}

const turn = () => new Promise((resolve) => setImmediate(resolve));

function setUp() {
  const runtime = { log: silentLogger, certificates: { refresh: () => () => {} } };
  const generations = new Generations(runtime as never, { all: new Set() } as unknown as OpenSessions);
  const add = (): FakeConnections => {
    const connections = new FakeConnections();
    generations.add(connections as unknown as Connections, {} as never, () => 0);
    return connections;
  };
  return { generations, add };
}

describe("the generations of an agent's connections", () => {
  it("keep the newest while two others finish", async () => {
    const { generations, add } = setUp();
    const [first, second, third] = [add(), add(), add()];
    for (const each of [first, second, third]) {
      each.opening.resolve();
      await turn();
    }
    assert.deepEqual([first, second, third].map(({ isRetired }) => isRetired), [true, true, false]);
    for (const each of [first, second]) each.finished.resolve();
    await turn();
    generations.stop();
    assert.equal(third.isStopped, true);
  });

  it("keep later ones when an earlier one is open last", async () => {
    const { add } = setUp();
    const [first, second] = [add(), add()];
    second.opening.resolve();
    first.finished.resolve();
    await turn();
    const third = add();
    first.opening.resolve();
    await turn();
    assert.deepEqual([first, second, third].map(({ isRetired }) => isRetired), [true, false, false]);
  });
});
