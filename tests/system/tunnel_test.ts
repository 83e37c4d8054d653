// A tunnel through the compiled proxy and agent from a client's view: bytes, ends, resets.
import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { createHash, randomBytes } from "node:crypto";
import { createServer } from "node:http";
import { describe, it } from "node:test";
import { Pair, runToEnd } from "../../testing/programs.ts";
import { connectHead, dial, openTunnel, Origin, type Wire } from "../../testing/sockets.ts";

const hasCurl = spawnSync("curl", ["--version"], { stdio: "ignore" }).status === 0;
const withCurl = { skip: hasCurl ? false : "there is no curl" };

/** A tunnel, and both its ends. */
async function openBoth(pair: Pair, origin: Origin): Promise<{ client: Wire; server: Wire }> {
  const client = await openTunnel(pair.addresses.clients, origin.authority);
  return { client, server: await origin.accept() };
}

describe("tunnel", () => {
  it("carries bytes that arrive in one packet with the CONNECT request", async () => {
    await using pair = await Pair.start();
    await using origin = await Origin.start();
    for (const length of [1, 5, 1_000, 60_000]) {
      const early = "x".repeat(length - 1) + "!";
      using client = await openTunnel(pair.addresses.clients, origin.authority, { early });
      using server = await origin.accept();
      assert.equal(await server.readUntil("!"), early);
      await server.write("seen");
      assert.equal((await client.read(4)).toString(), "seen");
    }
  });

  it("carries the bytes of a server that speaks first as soon as the tunnel is open", async () => {
    await using pair = await Pair.start();
    await using origin = await Origin.start(async (wire) => {
      await wire.write("SSH-2.0-Banner\r\n");
      wire.finish(await wire.read(3));
    });
    // often, for what could go wrong is a matter of timing
    for (let round = 0; round < 100; round++) {
      using client = await dial(pair.addresses.clients);
      await client.write(connectHead(origin.authority));
      assert.match(await client.readUntil("\r\n\r\n"), /^HTTP\/1\.1 200 /);
      assert.equal(await client.readUntil("\r\n"), "SSH-2.0-Banner\r\n");
      await client.write("bye");
      assert.equal((await client.readAll()).toString(), "bye");
    }
  });

  it("has neither Content-Length nor Transfer-Encoding in its response", async () => {
    await using pair = await Pair.start();
    await using origin = await Origin.start();
    using client = await dial(pair.addresses.clients);
    await client.write(connectHead(origin.authority));
    assert.doesNotMatch(await client.readUntil("\r\n\r\n"), /content-length|transfer-encoding/i);
  });

  it("continues from the server when the client has finished", async () => {
    await using pair = await Pair.start();
    await using origin = await Origin.start();
    const { client, server } = await openBoth(pair, origin);
    client.finish("the whole question");
    assert.equal((await server.readAll()).toString(), "the whole question");
    await server.write("an answer ");
    assert.equal((await client.read(10)).toString(), "an answer ");
    server.finish("in two parts");
    assert.equal((await client.readAll()).toString(), "in two parts");
    await pair.proxy.waitFor("request", { status: 200, error: undefined, sent: 18, received: 22 });
  });

  it("continues from the client when the server has finished", async () => {
    await using pair = await Pair.start();
    await using origin = await Origin.start();
    const { client, server } = await openBoth(pair, origin);
    server.finish("that is all from me");
    assert.equal((await client.readAll()).toString(), "that is all from me");
    await client.write("but not ");
    assert.equal((await server.read(8)).toString(), "but not ");
    client.finish("from me");
    assert.equal((await server.readAll()).toString(), "from me");
    await pair.proxy.waitFor("request", { status: 200, error: undefined, sent: 15, received: 19 });
  });

  it("carries 64 MiB of random bytes each way at once, unchanged", async () => {
    await using pair = await Pair.start();
    await using origin = await Origin.start();
    const { client, server } = await openBoth(pair, origin);
    const [up, down] = await Promise.all([
      transfer(client, server),
      transfer(server, client),
    ]);
    assert.deepEqual(up.got, up.sent);
    assert.deepEqual(down.got, down.sent);
    assert.notEqual(up.sent.hash, down.sent.hash);
  });

  it("is reset at the server when the client resets it", async () => {
    await using pair = await Pair.start();
    await using origin = await Origin.start();
    const { client, server } = await openBoth(pair, origin);
    await client.write("before");
    assert.equal((await server.read(6)).toString(), "before");
    client.reset();
    assert.equal(await server.ending(), "ECONNRESET");
  });

  it("is reset at the client when the server resets it", async () => {
    await using pair = await Pair.start();
    await using origin = await Origin.start();
    const { client, server } = await openBoth(pair, origin);
    await server.write("before");
    assert.equal((await client.read(6)).toString(), "before");
    server.reset();
    assert.equal(await client.ending(), "ECONNRESET");
  });

  it("is reset at the server when the client resets it after it has finished", async () => {
    await using pair = await Pair.start();
    await using origin = await Origin.start();
    const { client, server } = await openBoth(pair, origin);
    server.finish();
    assert.equal(await client.next(), null);
    client.reset();
    assert.equal(await server.ending(), "ECONNRESET");
  });

  it("is reset at the client when the server resets it during a download", async () => {
    await using pair = await Pair.start();
    await using origin = await Origin.start();
    const { client, server } = await openBoth(pair, origin);
    const sending = send(server, 256 * MIB).catch(() => {}); // the reset ends it
    await client.read(4 * MIB);
    server.reset();
    assert.equal(await client.ending(), "ECONNRESET");
    await sending;
  });

  it("is reset, not finished, within the idle timeout when the agent is killed during a download", async () => {
    await using pair = await Pair.start();
    await using origin = await Origin.start();
    const { client, server } = await openBoth(pair, origin);
    const sending = send(server, 1024 * MIB).catch(() => {}); // the agent's system resets its end
    await client.read(4 * MIB);
    pair.agent.signal("SIGKILL");
    const killed = performance.now();
    assert.equal(await client.ending(), "ECONNRESET");
    assert.ok(performance.now() - killed < 15_000, "the idle time-out is 10 s");
    await pair.proxy.waitFor("agent disconnected");
    await sending;
  });

  it("is reset at both ends when the proxy is killed", async () => {
    await using pair = await Pair.start();
    await using origin = await Origin.start();
    const { client, server } = await openBoth(pair, origin);
    await client.write("before");
    await server.read(6);
    pair.proxy.signal("SIGKILL");
    assert.equal(await client.ending(), "ECONNRESET");
    assert.equal(await server.ending(), "ECONNRESET");
  });

  it("is reset at both ends when the agent is killed", async () => {
    await using pair = await Pair.start();
    await using origin = await Origin.start();
    const { client, server } = await openBoth(pair, origin);
    await client.write("before");
    await server.read(6);
    pair.agent.signal("SIGKILL");
    assert.equal(await server.ending(), "ECONNRESET");
    assert.equal(await client.ending(), "ECONNRESET");
  });
});

describe("curl", () => {
  it("fetches a page through a tunnel", withCurl, async () => {
    await using pair = await Pair.start();
    await using site = await startSite();
    const fetched = await curl(["-p", "-x", `http://4711:any@${pair.addresses.clients}`, `${site.url}/page`]);
    assert.equal(fetched, "GET /page ");
    await pair.proxy.waitFor("request", { method: "CONNECT", status: 200 });
  });

  it("posts through a tunnel", withCurl, async () => {
    await using pair = await Pair.start();
    await using site = await startSite();
    const fetched = await curl(["-p", "-x", `http://4711:any@${pair.addresses.clients}`, "-d", "data", `${site.url}/form`]);
    assert.equal(fetched, "POST /form data");
  });

  it("fetches a page over plain HTTP with http_proxy in its environment", withCurl, async () => {
    await using pair = await Pair.start();
    await using site = await startSite();
    const fetched = await curl([`${site.url}/page?a=b`], { http_proxy: `http://4711:any@${pair.addresses.clients}` });
    assert.equal(fetched, "GET /page?a=b ");
    await pair.proxy.waitFor("request", { method: "GET", status: 200 });
  });

  it("posts over plain HTTP with http_proxy in its environment", withCurl, async () => {
    await using pair = await Pair.start();
    await using site = await startSite();
    const data = randomBytes(300_000).toString("hex");
    const file = pair.site.folder.write("data", data);
    const fetched = await curl(["--data-binary", `@${file}`, `${site.url}/form`], {
      http_proxy: `http://4711:any@${pair.addresses.clients}`,
    });
    assert.equal(fetched, `POST /form ${data}`);
  });

  it("shows what went wrong", withCurl, async () => {
    await using pair = await Pair.start();
    const { exitCode, stderr } = await runToEnd("curl", [
      "-sS",
      "-p",
      "-x",
      `http://nobody:any@${pair.addresses.clients}`,
      "http://localhost:1/",
    ]);
    assert.equal(exitCode, 56);
    assert.match(stderr, /502/);
  });
});

const MIB = 1 << 20;

interface Digest {
  bytes: number;
  hash: string;
}

/** Sends random bytes as fast as the peer reads. */
async function send(wire: Wire, bytes: number): Promise<Digest> {
  const hash = createHash("sha256");
  const block = randomBytes(MIB);
  for (let sent = 0; sent < bytes; sent += block.length) {
    // each block differs from the one before, and costs little
    block.writeUInt32LE(sent / MIB, sent / MIB * 4);
    hash.update(block);
    await wire.write(Buffer.from(block));
  }
  return { bytes, hash: hash.digest("hex") };
}

async function receive(wire: Wire): Promise<Digest> {
  const hash = createHash("sha256");
  let bytes = 0;
  for (let chunk; (chunk = await wire.next()) !== null;) {
    hash.update(chunk);
    bytes += chunk.length;
  }
  return { bytes, hash: hash.digest("hex") };
}

async function transfer(from: Wire, to: Wire): Promise<{ sent: Digest; got: Digest }> {
  const sending = send(from, 64 * MIB).then((digest) => {
    from.finish();
    return digest;
  });
  const [sent, got] = await Promise.all([sending, receive(to)]);
  return { sent, got };
}

/** An HTTP server that responds with the request. */
async function startSite(): Promise<AsyncDisposable & { url: string }> {
  const server = createServer((request, response) => {
    let body = "";
    request.setEncoding("latin1").on("data", (text: string) => body += text).on(
      "end",
      () => response.end(`${request.method} ${request.url} ${body}`),
    );
  });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  const { port } = server.address() as { port: number };
  return {
    url: `http://127.0.0.1:${port}`,
    async [Symbol.asyncDispose]() {
      const closed = new Promise((resolve) => server.close(resolve));
      server.closeAllConnections();
      await closed;
    },
  };
}

async function curl(args: string[], env: Record<string, string> = {}): Promise<string> {
  const { exitCode, stdout, stderr } = await runToEnd("curl", ["-sS", ...args], { env: { PATH: "/usr/bin:/bin", ...env } });
  assert.equal(exitCode, 0, stderr);
  return stdout;
}
