// The conversation of a hand-over, with channels in memory.
import assert from "node:assert/strict";
import { lstat, readFile, writeFile } from "node:fs/promises";
import { describe, it } from "node:test";
import { type HandoverDeps, Predecessor, type Replaceable, Successors } from "../../shared/service/handover.ts";
import { NetError } from "../../shared/net/errors.ts";
import type { Channel, ChannelListener, SocketHandover } from "../../shared/net/handover.ts";
import { VERSION } from "../../shared/version.ts";
import { LogBook } from "../../testing/network.ts";
import { Folder } from "../../testing/programs.ts";

/** Values that one side waits for. */
class Queue<T> {
  #values: (T | null)[] = [];
  #wake: () => void = () => {};

  push(value: T | null): void {
    this.#values.push(value);
    this.#wake();
  }

  async next(): Promise<T | null> {
    while (this.#values.length === 0) await new Promise<void>((resolve) => this.#wake = resolve);
    return this.#values[0] === null ? null : this.#values.shift()!;
  }
}

class MemoryChannel implements Channel {
  readonly received = new Queue<string>();
  peer?: MemoryChannel;
  constructor(readonly pid: number) {}

  send(message: string): Promise<void> {
    this.peer!.received.push(message);
    return Promise.resolve();
  }

  receive(): Promise<string | null> {
    return this.received.next();
  }

  close(): void {
    this.received.push(null);
    this.peer!.received.push(null);
  }
}

const OLD = 1;
const NEW = 2;

/** Both processes of one machine. */
class Machine {
  readonly #listening = new Map<number, Queue<Channel>>();
  /** What both do with their sockets. */
  readonly events: string[] = [];

  sockets(name: string): SocketHandover {
    const event = (what: string) => void this.events.push(`${name} ${what}`);
    return {
      listen: async (path) => {
        await writeFile(path, "");
        const accepted = new Queue<Channel>();
        this.#listening.set((await lstat(path)).ino, accepted);
        const listener: ChannelListener = { accept: () => accepted.next(), close: () => accepted.push(null) };
        return listener;
      },
      connect: async (path) => {
        const accepted = this.#listening.get(await lstat(path).then(({ ino }) => ino, () => 0));
        if (!accepted) throw new NetError("refused", "nothing listens");
        const [ours, theirs] = [new MemoryChannel(OLD), new MemoryChannel(NEW)];
        [ours.peer, theirs.peer] = [theirs, ours];
        accepted.push(theirs);
        return ours;
      },
      send: () => Promise.resolve(event("sends")),
      receive: () => {
        event("receives");
        return Promise.resolve(3);
      },
      setAccepting: (accepting) => event(accepting ? "accepts" : "holds"),
      release: () => event("releases"),
      dropUnused: () => event("drops"),
    };
  }
}

/** An old process that waits for successors. */
class Bench implements AsyncDisposable {
  readonly folder = new Folder();
  readonly machine = new Machine();
  readonly log = new LogBook();
  readonly finishing = Promise.withResolvers<() => void>();
  readonly over = Promise.withResolvers<void>();
  readonly released: (number | undefined)[] = [];
  refusal?: string;
  /** Starts a successor, as a command asks. */
  start?: () => Promise<string>;
  /** What a hand-over waits for. */
  reloading: Promise<void> = Promise.resolve();
  #successors?: Successors;

  deps(name: string, service = "proxy"): HandoverDeps {
    return { path: `${this.folder.path}/run/handover.sock`, sockets: this.machine.sockets(name), service, log: this.log };
  }

  static async start(): Promise<Bench> {
    const bench = new Bench();
    const service: Replaceable = {
      state: () => ({ instance: "i" }),
      refusal: () => bench.refusal,
      start: () => bench.start!(),
      exclusively: (task) => bench.reloading.then(task),
      released: (pid) => void bench.released.push(pid),
      finish: async (settle) => {
        bench.finishing.resolve(settle);
        await bench.over.promise;
      },
    };
    bench.#successors = await Successors.listen(bench.deps("old"), service);
    return bench;
  }

  find(service?: string): Promise<Predecessor | undefined> {
    return Predecessor.find(this.deps("new", service));
  }

  /** A channel on which a test speaks itself, after `hello` and its answer. */
  async begin(): Promise<Channel> {
    const { sockets, path } = this.deps("new");
    const channel = await sockets.connect(path);
    await channel.send(JSON.stringify({ step: "hello", protocol: 1, service: "proxy", version: "1" }));
    assert.match((await channel.receive())!, /"accepted"/);
    return channel;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.over.resolve();
    await this.#successors?.close();
    this.folder[Symbol.dispose]();
  }
}

describe("a hand-over", () => {
  it("lets one side accept at a time", async () => {
    await using bench = await Bench.start();
    const predecessor = await bench.find();
    assert.deepEqual(predecessor?.state, { instance: "i" });
    await predecessor!.takeOver();
    assert.deepEqual(bench.machine.events.slice(-3), ["old holds", "new accepts", "old releases"]);
    assert.deepEqual(bench.released, [NEW]);
    const settle = await bench.finishing.promise;
    settle();
    await predecessor!.settled;
    assert.equal(bench.machine.events.at(-1), "new drops");
  });

  it("settles when the old process ends", async () => {
    await using bench = await Bench.start();
    const predecessor = await bench.find();
    await predecessor!.takeOver();
    bench.over.resolve();
    await predecessor!.settled;
  });

  it("is taken back by the old process when the new one ends, unless another one has taken over from that", async () => {
    for (const isSuperseded of [false, true]) {
      await using bench = await Bench.start();
      const channel = await bench.begin();
      await channel.send(JSON.stringify({ step: "ready" }));
      assert.match((await channel.receive())!, /"held"/);
      await channel.send(JSON.stringify({ step: "serving" }));
      assert.match((await channel.receive())!, /"released"/);
      if (isSuperseded) await channel.send(JSON.stringify({ step: "superseded" }));
      channel.close();
      if (!isSuperseded) await bench.log.waitFor("the process that has taken over has ended");
      else await new Promise((resolve) => setImmediate(resolve));
      const expected = isSuperseded ? ["old holds", "old releases"] : ["old holds", "old releases", "old accepts"];
      assert.deepEqual(bench.machine.events.filter((event) => event !== "old sends"), expected);
    }
  });

  it("does not begin where nothing listens", async () => {
    await using bench = await Bench.start();
    const elsewhere = { ...bench.deps("new"), path: `${bench.folder.path}/none` };
    assert.equal(await Predecessor.find(elsewhere), undefined);
  });

  it("changes nothing if the new process ends before it is ready", async () => {
    await using bench = await Bench.start();
    (await bench.begin()).close();
    await bench.log.waitFor("hand-over failed, and this process goes on");
    assert.deepEqual(bench.machine.events.filter((event) => event !== "old sends"), []);
    await (await bench.find())!.takeOver();
  });

  it("goes back if the new process ends before it serves", async () => {
    await using bench = await Bench.start();
    const channel = await bench.begin();
    await channel.send(JSON.stringify({ step: "ready" }));
    assert.match((await channel.receive())!, /"held"/);
    channel.close();
    await bench.log.waitFor("hand-over failed, and this process goes on");
    assert.deepEqual(bench.machine.events.slice(-2), ["old holds", "old accepts"]);
    assert.deepEqual(bench.released, []);
  });

  it("goes on without the old process if that ends before it holds", async () => {
    await using bench = await Bench.start();
    const { sockets } = bench.deps("dying");
    const listener = await sockets.listen(`${bench.folder.path}/dying`);
    const finding = Predecessor.find({ ...bench.deps("new"), path: `${bench.folder.path}/dying` });
    const channel = (await listener.accept())!;
    await channel.receive();
    await channel.send(JSON.stringify({ step: "accepted" }));
    const predecessor = await finding;
    const taking = predecessor!.takeOver();
    channel.close();
    await taking;
    assert.equal(bench.machine.events.at(-1), "new accepts");
  });

  it("is refused to another service, while another one runs, and while the service cannot", async () => {
    await using bench = await Bench.start();
    await assert.rejects(bench.find("lb"), { name: "ConfigError", message: /it is the socket of a running proxy/ });
    bench.refusal = "it is stopping";
    await assert.rejects(bench.find(), /Cannot take over from process 1: it is stopping/);
    bench.refusal = undefined;
    const first = await bench.begin();
    await assert.rejects(bench.find(), /another process takes over/);
    first.close();
  });

  it("begins after a reload", async () => {
    await using bench = await Bench.start();
    const reload = Promise.withResolvers<void>();
    bench.reloading = reload.promise;
    const { sockets, path } = bench.deps("new");
    const channel = await sockets.connect(path);
    await channel.send(JSON.stringify({ step: "hello", protocol: 1, service: "proxy", version: "1" }));
    const answer = channel.receive();
    await new Promise((resolve) => setImmediate(resolve));
    assert.deepEqual(bench.machine.events, []);
    reload.resolve();
    assert.match((await answer)!, /"accepted"/);
    channel.close();
  });

  it("is what a command asks for, and hears of", async () => {
    await using bench = await Bench.start();
    const { sockets, path } = bench.deps("command");
    const ask = async () => {
      const channel = await sockets.connect(path);
      await channel.send(JSON.stringify({ step: "replace", protocol: 1 }));
      return JSON.parse((await channel.receive())!);
    };
    bench.start = () => Promise.resolve("it has ended");
    assert.deepEqual(await ask(), { step: "refused", reason: "it has ended" });
    bench.refusal = "it is stopping";
    assert.deepEqual(await ask(), { step: "refused", reason: "it is stopping" });
    bench.refusal = undefined;
    bench.start = () => {
      void bench.find().then((predecessor) => predecessor!.takeOver());
      return new Promise(() => {}); // it runs
    };
    assert.deepEqual(await ask(), { step: "replaced", pid: NEW, version: VERSION });
  });

  it("ends when the old process changes its mind", async () => {
    await using bench = await Bench.start();
    const { sockets } = bench.deps("slow");
    const listener = await sockets.listen(`${bench.folder.path}/slow`);
    const finding = Predecessor.find({ ...bench.deps("new"), path: `${bench.folder.path}/slow` });
    const channel = (await listener.accept())!;
    await channel.receive();
    await channel.send(JSON.stringify({ step: "accepted" }));
    const predecessor = await finding;
    await channel.send(JSON.stringify({ step: "refused", reason: "too late" }));
    await assert.rejects(predecessor!.takeOver(), /too late/);
    assert.ok(!bench.machine.events.includes("new accepts"));
  });

  it("is one of two processes that ask at the same time", async () => {
    await using bench = await Bench.start();
    const { sockets, path } = bench.deps("new");
    const channels = [await sockets.connect(path), await sockets.connect(path)];
    const hello = JSON.stringify({ step: "hello", protocol: 1, service: "proxy", version: "1" });
    await Promise.all(channels.map((channel) => channel.send(hello)));
    const steps = await Promise.all(channels.map(async (channel) => JSON.parse((await channel.receive())!).step as string));
    assert.deepEqual(steps.sort(), ["accepted", "refused"]);
    channels.forEach((channel) => channel.close());
  });

  it("accepts a process whose version is no text, and then another one", async () => {
    await using bench = await Bench.start();
    const { sockets, path } = bench.deps("new");
    for (const version of [{ toString: 1 }, 7, null]) {
      const channel = await sockets.connect(path);
      await channel.send(JSON.stringify({ step: "hello", protocol: 1, service: "proxy", version }));
      assert.match((await channel.receive())!, /"accepted"/);
      channel.close();
      await bench.log.waitFor("hand-over failed, and this process goes on");
      bench.log.entries.length = 0;
    }
  });

  it("does not replace a file that is no socket", async () => {
    await using bench = await Bench.start();
    const path = `${bench.folder.path}/precious`;
    await writeFile(path, "precious");
    const service: Replaceable = { state: () => ({}), refusal: () => undefined, released: () => {}, finish: () => Promise.resolve() };
    await assert.rejects(Successors.listen({ ...bench.deps("old"), path }, service), {
      name: "ConfigError",
      message: /there is a file that is no socket/,
    });
    assert.equal(await readFile(path, "utf8"), "precious");
  });

  it("ignores what is not of this protocol", async () => {
    await using bench = await Bench.start();
    const { sockets, path } = bench.deps("new");
    for (const text of ["", "null", "7", "{}", '{"step":"ready"}']) {
      const channel = await sockets.connect(path);
      await channel.send(text);
      assert.equal(await channel.receive(), null);
    }
    assert.deepEqual(bench.machine.events, []);
  });
});
