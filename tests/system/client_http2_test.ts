// The client's commands over HTTP/2, compiled: all tunnels on one connection to the proxy's port for it, and any other proxy over HTTP/1.1.
import assert from "node:assert/strict";
import { Buffer } from "node:buffer";
import { createSocket } from "node:dgram";
import { once } from "node:events";
import { type AddressInfo, connect, createServer, type Server } from "node:net";
import { after, before, describe, it } from "node:test";
import { ClientCommand } from "../../testing/client_command.ts";
import { UdpServer } from "../../testing/masque.ts";
import { type Addresses, AGENT_ID, type Program, REVERSE_HTTP, runToEnd, Site } from "../../testing/programs.ts";
import { dial, Origin } from "../../testing/sockets.ts";

/** Passes connections on, and counts them. */
class Counter implements AsyncDisposable {
  count = 0;
  readonly #server: Server;

  constructor(port: number) {
    this.#server = createServer({ allowHalfOpen: true }, (near) => {
      this.count++;
      const far = connect({ port, host: "127.0.0.1", allowHalfOpen: true });
      near.on("error", () => far.destroy()).on("close", () => far.destroy());
      far.on("error", () => near.destroy()).on("close", () => near.destroy());
      near.pipe(far).pipe(near);
    });
  }

  async listen(): Promise<string> {
    this.#server.listen(0, "127.0.0.1");
    await once(this.#server, "listening");
    return `127.0.0.1:${(this.#server.address() as AddressInfo).port}`;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#server.close();
    await Promise.resolve();
  }
}

const portOf = (address: unknown) => Number(String(address).split(":").at(-1));

let site: Site;
let proxy: Program;
let addresses: Addresses;
let http2: string;
/** The flags that reach the agent, by the address of the proxy. */
let flags: (proxy: string) => string[];

before(async () => {
  site = await Site.create();
  const { cert, key, ca } = site.files;
  ({ proxy, addresses } = await site.startProxy([
    "--http-proxy.http2-listen-address=127.0.0.1:0",
    "--http-proxy.tls.enable",
    `--http-proxy.tls.file.cert=${cert}`,
    `--http-proxy.tls.file.key=${key}`,
  ]));
  http2 = String((await proxy.waitFor("listening")).http2);
  await site.startAgent(addresses);
  flags = (proxy) => [`--proxy=${proxy}`, `--agent-id=${AGENT_ID}`, "--http2", "--tls.enable", `--tls.file.root-ca=${ca}`];
});

after(() => site?.[Symbol.asyncDispose]());

describe("forward over HTTP/2", () => {
  it("has all tunnels on one connection, each with ends and a reset of its own", async () => {
    await using counter = new Counter(portOf(http2));
    await using origin = await Origin.start();
    await using forward = await ClientCommand.start(["forward", ...flags(await counter.listen()), `0:${origin.authority}`]);
    const [address = ""] = forward.addresses;
    using broken = await dial(address);
    (await origin.accept()).reset();
    assert.equal(await broken.ending(), "ECONNRESET");
    const pairs = [];
    for (let i = 0; i < 20; i++) pairs.push({ client: await dial(address), server: await origin.accept() });
    for (const [i, { client, server }] of pairs.entries()) {
      client.finish(`question ${i}`);
      assert.equal((await server.readAll()).toString(), `question ${i}`);
      server.finish(`answer ${i}`);
      assert.equal((await client.readAll()).toString(), `answer ${i}`);
    }
    assert.equal(counter.count, 1);
  });

  it("goes on over a new connection when the proxy was started again", async () => {
    await using origin = await Origin.start((wire) => Promise.resolve(wire.finish("hello")));
    await using site = await Site.create();
    const listen = ["--http-proxy.http2-listen-address=127.0.0.1:0"];
    const { proxy, addresses } = await site.startProxy(listen);
    const http2 = String((await proxy.waitFor("listening")).http2);
    await site.startAgent(addresses);
    const args = [`--proxy=${http2}`, `--agent-id=${AGENT_ID}`, "--http2", `0:${origin.authority}`];
    await using forward = await ClientCommand.start(["forward", ...args]);
    const [address = ""] = forward.addresses;
    const ask = async () => {
      using client = await dial(address);
      return (await client.readAll()).toString();
    };
    assert.equal(await ask(), "hello");
    await proxy.stop();
    await site.startProxy([`--http-proxy.http2-listen-address=${http2}`], addresses);
    await site.startAgent(addresses);
    assert.equal(await ask(), "hello");
  });

  it("relays UDP by an extended CONNECT", async () => {
    await using server = await UdpServer.start((payload) => Buffer.from(`answer to ${payload}`));
    await using forward = await ClientCommand.start(["forward", ...flags(http2), `0:${server.authority}/udp`]);
    const socket = createSocket("udp4");
    socket.send("question", portOf(forward.addresses[0]), "127.0.0.1");
    const [answer] = await once(socket, "message");
    socket.close();
    assert.equal(String(answer), "answer to question");
  });
});

describe("connect over HTTP/2", () => {
  it("says why there is no tunnel, as over HTTP/1.1", async () => {
    await using origin = await Origin.start((wire) => Promise.resolve(wire.finish("hello")));
    const run = async (args: readonly string[]) => {
      const { exitCode, stdout, stderr } = await runToEnd(REVERSE_HTTP, ["connect", ...args]);
      return { exitCode, text: `${stdout}${stderr}` };
    };
    const well = await run([...flags(http2), origin.authority]);
    assert.deepEqual(well, { exitCode: 0, text: "hello" });
    const [first, , ...others] = flags(http2);
    const absent = await run([first!, "--agent-id=nobody", ...others, origin.authority]);
    assert.equal(absent.exitCode, 5);
    assert.match(absent.text, /The agent is not connected/);
  });

  it("uses HTTP/1.1 with a proxy that does not speak it, with TLS and without", async () => {
    await using origin = await Origin.start((wire) => Promise.resolve(wire.finish("hello")));
    await using plain = await Site.create();
    const { addresses: clear } = await plain.startProxy();
    await plain.startAgent(clear);
    for (const args of [flags(addresses.clients), [`--proxy=${clear.clients}`, `--agent-id=${AGENT_ID}`, "--http2"]]) {
      const { exitCode, stdout, stderr } = await runToEnd(REVERSE_HTTP, ["connect", ...args, origin.authority]);
      assert.deepEqual([exitCode, stdout], [0, "hello"], stderr);
    }
  });
});

describe("doctor client", () => {
  it("says whether the proxy speaks HTTP/2 at the address", async () => {
    const check = async (proxy: string) => {
      const { exitCode, stdout } = await runToEnd(REVERSE_HTTP, ["doctor", "client", ...flags(proxy), "--json"]);
      const { findings } = JSON.parse(stdout) as { findings: { check: string; result: string }[] };
      return [exitCode, findings.find(({ check }) => check === "HTTP/2")?.result];
    };
    assert.deepEqual(await check(http2), [0, "ok"]);
    assert.deepEqual(await check(addresses.clients), [1, "failed"]);
  });
});

describe("socks over HTTP/2", () => {
  it("has the requests of a program on one connection", async () => {
    await using counter = new Counter(portOf(http2));
    await using origin = await Origin.start(async (wire) => {
      await wire.next();
      wire.finish("HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello");
    });
    await using socks = await ClientCommand.start(["socks", ...flags(await counter.listen()), "0"]);
    const url = `http://${origin.authority}/`;
    const proxy = String(socks.addresses[0]);
    const { stdout } = await runToEnd("curl", ["-s", "-x", `socks5h://${proxy}`, url, url, "-x", `http://${proxy}`, url]);
    assert.equal(stdout, "hello".repeat(3));
    assert.equal(counter.count, 1);
  });
});
