// The command forward, compiled: local listeners that lead to destinations behind an agent.
import assert from "node:assert/strict";
import { Buffer } from "node:buffer";
import { createSocket } from "node:dgram";
import { once } from "node:events";
import { existsSync } from "node:fs";
import { connect } from "node:net";
import { join } from "node:path";
import { after, before, describe, it } from "node:test";
import { ClientCommand } from "../../testing/client_command.ts";
import { UdpServer } from "../../testing/masque.ts";
import { AGENT_ID, Pair, REVERSE_HTTP, runToEnd, Site } from "../../testing/programs.ts";
import { dial, Origin, Wire } from "../../testing/sockets.ts";

let pair: Pair;
/** The flags that reach the agent. */
let flags: string[];

before(async () => {
  pair = await Pair.start();
  flags = [`--proxy=${pair.addresses.clients}`, `--agent-id=${AGENT_ID}`];
});

after(() => pair?.[Symbol.asyncDispose]());

const start = (args: readonly string[], count?: number) => ClientCommand.start(["forward", ...args], count);

describe("forward", () => {
  it("relays connections to several destinations, each direction to its own end", async () => {
    await using first = await Origin.start();
    await using second = await Origin.start();
    await using forward = await start([...flags, `0:${first.authority}`, `localhost:0:${second.authority}`], 2);
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
    await using forward = await start([...flags, `0:${origin.authority}`]);
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
    await using forward = await start([`--proxy=${addresses.clients}`, `--agent-id=${AGENT_ID}`, `0:${origin.authority}`]);
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
    await using forward = await start(["--proxy=127.0.0.1:1", "--agent-id=a", "0:a:1"]);
    await forward.says("The proxy 127.0.0.1:1 cannot be reached");
    assert.equal(await forward.stop(), 0);
  });

  it("gives open connections time to end at a signal", async () => {
    await using origin = await Origin.start();
    await using forward = await start([...flags, `0:${origin.authority}`]);
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

  it("relays UDP, each peer in a flow of its own, and drops datagrams while nothing is behind", async () => {
    await using server = await UdpServer.start((payload) => Buffer.from(`answer to ${payload}`));
    await using forward = await start([...flags, `0:${server.authority}/udp`]);
    const port = Number(forward.addresses[0]!.split(":")[1]);
    const ask = async (question: string) => {
      const socket = createSocket("udp4");
      socket.send(question, port, "127.0.0.1");
      const [answer] = await once(socket, "message");
      socket.close();
      return String(answer);
    };
    assert.deepEqual(await Promise.all(["a", "b"].map(ask)), ["answer to a", "answer to b"]);
    await using alone = await start([`--proxy=${pair.addresses.clients}`, "--agent-id=nobody", `0:${server.authority}/udp`]);
    const socket = createSocket("udp4");
    for (let i = 0; i < 3; i++) socket.send("lost", Number(alone.addresses[0]!.split(":")[1]), "127.0.0.1");
    await alone.says("The agent is not connected");
    socket.close();
  });

  it("relays a Unix socket, each direction to its own end, and forwards of a file", async () => {
    await using origin = await Origin.start();
    const path = join(pair.site.folder.path, "db.sock");
    const file = pair.site.folder.write("forwards", `# a database\n${path}:${origin.authority}\n`);
    await using forward = await start([...flags, `--file=${file}`]);
    assert.deepEqual(forward.addresses, [path]);
    using client = new Wire(connect({ path, allowHalfOpen: true }));
    const sent = Buffer.alloc(5_000_000, "question");
    client.finish(sent);
    const server = await origin.accept();
    assert.ok((await server.readAll()).equals(sent));
    server.finish(sent);
    assert.ok((await client.readAll()).equals(sent));
    assert.equal(await forward.stop(), 0);
    assert.equal(existsSync(path), false);
  });

  it("takes forwards from the profile if it is given none", async () => {
    await using origin = await Origin.start();
    const profile = pair.site.folder.write(
      "profile.yaml",
      `proxy: ${pair.addresses.clients}\nagent-id: "${AGENT_ID}"\nforwards: ["0:${origin.authority}"]\n`,
    );
    await using forward = await start([`--profile=${profile}`]);
    using _client = await dial(forward.addresses[0]!);
    await origin.accept();
    const { exitCode, stderr } = await runToEnd(REVERSE_HTTP, ["connect", `--profile=${profile}`, "127.0.0.1:1"]);
    assert.equal(exitCode, 6, stderr); // other commands share the profile
  });

  it("waits for the first tunnel with --wait, and runs the command then", async () => {
    await using site = await Site.create();
    const { addresses } = await site.startProxy();
    await using origin = await Origin.start((wire) => Promise.resolve(wire.finish()));
    const args = [`--proxy=${addresses.clients}`, `--agent-id=${AGENT_ID}`, `0:${origin.authority}`];
    const waiting = runToEnd(REVERSE_HTTP, ["forward", ...args, "--wait=25s", "--exec=echo $FORWARD_PORT"]);
    await site.startAgent(addresses);
    const { exitCode, stdout, stderr } = await waiting;
    assert.equal(exitCode, 0, stderr);
    assert.match(stdout, /^\d+$/);
  });

  it("ends with the exit code of connect if there is no tunnel after --wait", async () => {
    for (
      const [args, code] of [[["--proxy=127.0.0.1:1", "--agent-id=a"], 3], [[`--proxy=${pair.addresses.clients}`, "--agent-id=a"], 5], [
        flags,
        6,
      ]] as const
    ) {
      const { exitCode, stdout, stderr } = await runToEnd(REVERSE_HTTP, ["forward", ...args, "0:127.0.0.1:1", "--wait=1ms"]);
      assert.deepEqual([exitCode, stdout], [code, ""], stderr);
    }
    // denied: it does not wait
    const denied = await runToEnd(REVERSE_HTTP, ["forward", `--proxy=${pair.addresses.clients}`, "0:127.0.0.1:1", "--wait=1h"]);
    assert.equal(denied.exitCode, 4, denied.stderr);
  });

  it("writes events with --json", async () => {
    await using origin = await Origin.start((wire) => Promise.resolve(wire.finish("hello")));
    await using forward = await start([...flags, "--json", `0:${origin.authority}`, "0:127.0.0.1:1"], 0);
    const events = () => forward.written.split("\n").slice(0, -1).map((line) => JSON.parse(line) as Record<string, unknown>);
    const happened = async (event: string, count = 1) => {
      await forward.until(() => events().filter((each) => each.event === event).length === count);
      return events().filter((each) => each.event === event);
    };
    const [first, second] = (await happened("listening", 2)).map(({ address }) => String(address));
    using client = await dial(first!);
    client.finish();
    await client.readAll();
    const [closed] = await happened("closed");
    assert.deepEqual(closed, { event: "closed", address: first, network: "tcp", destination: origin.authority, sent: 0, received: 5 });
    await dial(second!).then((failing) => failing.ending(), () => {});
    const [failed] = await happened("failed");
    assert.match(String(failed!.error), /^127\.0\.0\.1:1 refused the connection \(502, connection_refused/);
    await happened("opened");
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
