// The command forward, compiled: local listeners that lead to destinations behind an agent.
import assert from "node:assert/strict";
import { type ChildProcess, spawn } from "node:child_process";
import { after, before, describe, it } from "node:test";
import { AGENT_ID, Pair, REVERSE_HTTP, runToEnd, Site } from "../../testing/programs.ts";
import { dial, Origin } from "../../testing/sockets.ts";

let pair: Pair;
/** The flags that reach the agent. */
let flags: string[];

before(async () => {
  pair = await Pair.start();
  flags = [`--proxy=${pair.addresses.clients}`, `--agent-id=${AGENT_ID}`];
});

after(() => pair?.[Symbol.asyncDispose]());

/** A running forward; `await using` ends it. */
class Forward implements AsyncDisposable {
  readonly #child: ChildProcess;
  readonly #ended: Promise<number | null>;
  #written = "";
  #said = "";
  #wake: () => void = () => {};

  private constructor(args: readonly string[]) {
    this.#child = spawn(REVERSE_HTTP, ["forward", ...args], { stdio: ["ignore", "pipe", "pipe"], env: { HOME: "/nonexistent" } });
    this.#child.stdout!.on("data", (data) => {
      this.#written += data;
      this.#wake();
    });
    this.#child.stderr!.on("data", (data) => {
      this.#said += data;
      this.#wake();
    });
    this.#ended = new Promise((resolve) => this.#child.once("close", resolve));
    void this.#ended.then(() => this.#wake());
  }

  /** Starts it, and waits until it listens on `count` addresses. */
  static async start(args: readonly string[], count = 1): Promise<Forward> {
    const forward = new Forward(args);
    await forward.#until(() => forward.addresses.length === count);
    return forward;
  }

  async #until(reached: () => boolean): Promise<void> {
    while (!reached()) {
      if (this.#child.exitCode !== null) throw new Error(`forward has ended: ${this.#said}`);
      await new Promise<void>((resolve) => this.#wake = resolve);
    }
  }

  get addresses(): string[] {
    return [...this.#written.matchAll(/^(\S+) leads to \S+\n/gm)].map(([, address]) => address!);
  }

  /** Waits for a text on standard error. */
  async says(text: string): Promise<void> {
    await this.#until(() => this.#said.includes(text));
  }

  /** Its exit code after SIGTERM. */
  async stop(): Promise<number | null> {
    this.#child.kill();
    return await this.#ended;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#child.kill("SIGKILL");
    await this.#ended;
  }
}

describe("forward", () => {
  it("relays connections to several destinations, each direction to its own end", async () => {
    await using first = await Origin.start();
    await using second = await Origin.start();
    await using forward = await Forward.start([...flags, `0:${first.authority}`, `localhost:0:${second.authority}`], 2);
    const { addresses } = forward;
    assert.match(addresses.join(), /^127\.0\.0\.1:\d+,\S+:\d+$/);
    for (const [i, origin] of [first, second].entries()) {
      using client = await dial(addresses[i]!);
      client.finish("question");
      const server = await origin.accept();
      assert.equal((await server.readAll()).toString(), "question");
      server.finish("answer");
      assert.equal((await client.readAll()).toString(), "answer");
    }
  });

  it("resets a connection whose tunnel is reset, and no other", async () => {
    await using origin = await Origin.start();
    await using forward = await Forward.start([...flags, `0:${origin.authority}`]);
    const [address = ""] = forward.addresses;
    using broken = await dial(address);
    const server = await origin.accept();
    using whole = await dial(address);
    const other = await origin.accept();
    server.reset();
    assert.equal(await broken.ending(), "ECONNRESET");
    await other.write("still here");
    assert.equal((await whole.read(10)).toString(), "still here");
  });

  it("resets connections while nothing is behind, says why, and goes on when the agent and its proxy are back", async () => {
    await using site = await Site.create();
    const { proxy, addresses } = await site.startProxy();
    await using origin = await Origin.start();
    await using forward = await Forward.start([`--proxy=${addresses.clients}`, `--agent-id=${AGENT_ID}`, `0:${origin.authority}`]);
    const [address = ""] = forward.addresses;
    const fails = async (why: string) => {
      // the reset may come before dial() has returned
      const ending = await dial(address).then((client) => client.ending(), (error: NodeJS.ErrnoException) => error.code);
      assert.equal(ending, "ECONNRESET");
      await forward.says(why);
    };
    await fails("The agent is not connected to this proxy");
    await proxy.stop();
    await fails(`The proxy ${addresses.clients} cannot be reached`);
    await site.startProxy([], addresses);
    await site.startAgent(addresses);
    using client = await dial(address);
    (await origin.accept()).finish("back");
    assert.equal((await client.readAll()).toString(), "back");
  });

  it("says at its start that the proxy cannot be reached, and ends with 0 at a signal", async () => {
    await using forward = await Forward.start(["--proxy=127.0.0.1:1", "--agent-id=a", "0:a:1"]);
    await forward.says("The proxy 127.0.0.1:1 cannot be reached");
    assert.equal(await forward.stop(), 0);
  });

  it("gives open connections time to end at a signal", async () => {
    await using origin = await Origin.start();
    await using forward = await Forward.start([...flags, `0:${origin.authority}`]);
    const [address = ""] = forward.addresses;
    using client = await dial(address);
    const server = await origin.accept();
    const stopped = forward.stop();
    while (await dial(address).then((late) => late[Symbol.dispose](), () => true) !== true);
    await client.write("question");
    client.finish();
    assert.equal((await server.readAll()).toString(), "question");
    server.finish("answer");
    assert.equal((await client.readAll()).toString(), "answer");
    assert.equal(await stopped, 0);
  });

  it("runs a command with the address in its environment, and ends with its exit code", async () => {
    await using origin = await Origin.start((wire) => Promise.resolve(wire.finish("from behind")));
    const script =
      "import os,socket;print(socket.create_connection((os.environ['FORWARD_HOST'],os.environ['FORWARD_PORT'])).recv(99).decode())";
    for (const [exec, code, stdout] of [[`python3 -c "${script}"`, 0, "from behind"], ["exit 9", 9, ""]] as const) {
      const ended = await runToEnd(REVERSE_HTTP, ["forward", ...flags, `0:${origin.authority}`, `--exec=${exec}`]);
      assert.deepEqual([ended.exitCode, ended.stdout], [code, stdout], ended.stderr);
    }
  });

  it("ends at once with an address in use, and with a forward that cannot be meant", async () => {
    await using origin = await Origin.start();
    const rows: [args: string[], code: number, said: RegExp][] = [
      [[`${origin.port}:a:1`], 1, /Cannot listen on 127\.0\.0\.1:\d+: /],
      [[], 2, /there is no forward; write 5432:db:5432/],
      [["5432"], 2, /it is not \[ADDRESS:\]PORT:HOST:PORT/],
      [["db:5432"], 2, /it is not \[ADDRESS:\]PORT:HOST:PORT/],
      [["99999:db:1"], 2, /port above 65535/],
      [["0:db:0"], 2, /the destination's port is not 1 to 65535/],
      [["0:a:1", "--token=file:/nonexistent"], 2, /Cannot read --token/],
    ];
    for (const [args, code, said] of rows) {
      const { exitCode, stdout, stderr } = await runToEnd(REVERSE_HTTP, ["forward", ...flags, ...args]);
      assert.match(stderr, said);
      assert.deepEqual([exitCode, stdout], [code, ""]);
    }
  });
});
