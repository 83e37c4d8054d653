// The logs of the compiled proxy and agent: one line at the end of a tunnel at both, with one id; no secrets; no lines forged by clients;
// and no effect of a reader that does not read.
import assert from "node:assert/strict";
import { spawn, spawnSync } from "node:child_process";
import { closeSync, constants, openSync, readSync } from "node:fs";
import { join } from "node:path";
import process from "node:process";
import { describe, it } from "node:test";
import { AGENT_ID, Pair, PROXY, Site } from "../../testing/programs.ts";
import { ask, connectHead, credentials, dial, Origin } from "../../testing/sockets.ts";

/** A line in text format: time, level, message, then fields whose values are words or JSON strings. */
const TEXT_LINE =
  // deno-lint-ignore no-control-regex -- these are what must not be in it
  /^\S+ (TRACE|DEBUG|INFO |WARN |ERROR) [a-z][a-z ]*( [A-Za-z]+=([\x21\x23-\x3c\x3e-\x7e]+|"([^"\\\x00-\x1f\x7f-\x9f]|\\.)*"))*$/;

function basic(text: string): string {
  return `Proxy-Authorization: Basic ${Buffer.from(text).toString("base64")}\r\n`;
}

describe("logs", () => {
  it("have one line for a tunnel at its end on both sides, with one id, bytes, times and the result", async () => {
    await using pair = await Pair.start();
    await using origin = await Origin.start(async (wire) => wire.finish(await wire.read(5)));
    using client = await dial(pair.addresses.clients);
    await client.write(`${connectHead(origin.authority)}hello`);
    client.finish();
    await client.readAll();
    const there = await pair.agent.waitFor("tunnel");
    const here = await pair.proxy.waitFor("request");
    for (const { destination, status, error, sent, received } of [here, there]) {
      assert.deepEqual({ destination, status, error, sent, received }, {
        destination: origin.authority,
        status: 200,
        error: undefined,
        sent: 5,
        received: 5,
      });
    }
    assert.match(String(here.id), /^[0-9a-z-]{8,64}$/);
    assert.equal(there.id, here.id);
    assert.deepEqual([here.agent, here.method], [AGENT_ID, "CONNECT"]);
    assert.match(String(here.client), /^127\.0\.0\.1:[0-9]+$/);
    for (const entry of [here, there]) {
      assert.ok(Number(entry.setupMs) >= 0 && Number(entry.totalMs) >= Number(entry.setupMs), JSON.stringify(entry));
    }
  });

  it("have the first characters of a method, however long it is", async () => {
    await using pair = await Pair.start();
    await ask(pair.addresses.clients, `${"M".repeat(10_000)} http://127.0.0.1:1/ HTTP/1.1\r\n\r\n`);
    const { method } = await pair.proxy.waitFor("request", { status: 407 });
    assert.equal(method, `${"M".repeat(29)}...`);
  });

  it("use the request's own id if it is a short token, and a new one otherwise", async () => {
    await using pair = await Pair.start();
    const head = (id: string) => connectHead("127.0.0.1:1").replace("\r\n\r\n", `\r\nX-Request-Id: ${id}\r\n\r\n`);
    for (const id of ["from-lb.1_a~b", "x".repeat(64)]) {
      await ask(pair.addresses.clients, head(id));
      await pair.proxy.waitFor("request", { id, status: 502 });
      await pair.agent.waitFor("tunnel refused", { id, status: 502 });
    }
    const unusable = ["", "x".repeat(65), "a b", 'a"b', "a=b", "\x9b31m", "a\r\nX-Request-Id: b"];
    for (const id of unusable) await ask(pair.addresses.clients, Buffer.from(head(id), "latin1"));
    await pair.agent.waitFor("tunnel refused", {}, unusable.length + 2);
    for (const { id } of pair.agent.logged("tunnel refused").slice(2)) {
      assert.match(String(id), /^[0-9a-f]{10}-[0-9a-z]+$/);
      await pair.proxy.waitFor("request", { id: id!, status: 502 });
    }
  });

  for (const format of ["text", "json"]) {
    it(`in ${format} contain no secret, even at the level trace, and no line forged by a client`, async () => {
      const site = await Site.create();
      await using _ = site;
      const options = [`--log.format=${format}`, "--log.level=trace"];
      // the addresses are read from JSON first
      const first = await site.startProxy();
      await first.proxy.stop();
      const addresses = first.addresses;
      const proxy = site.start(PROXY, [...site.proxyArgs(addresses).filter((arg) => !arg.startsWith("--log.")), ...options]);
      const agent = site.start(PROXY.replace("-proxy", "-agent"), [
        ...site.agentArgs(addresses).filter((arg) => !arg.startsWith("--log.")),
        ...options,
      ]);
      await using origin = await Origin.start(async (wire) => {
        await wire.readUntil("\r\n\r\n");
        wire.finish("HTTP/1.1 200 OK\r\nSet-Cookie: a=SECRET\r\n\r\nSECRET");
      });
      await untilTunnel(addresses.clients, origin.authority);

      const target = `http://${origin.authority}/path`;
      const line = `CONNECT ${origin.authority} HTTP/1.1\r\n`;
      const requests = [
        `GET ${target}?token=SECRET HTTP/1.1\r\n${
          basic(`${AGENT_ID}:SECRET`)
        }Cookie: SECRET\r\nAuthorization: Bearer SECRET\r\nX-Api-Key: SECRET\r\n\r\n`,
        `GET http://user:SECRET@${origin.authority}/ HTTP/1.1\r\n${basic(`${AGENT_ID}:SECRET`)}\r\n`,
        `GET /SECRET HTTP/1.1\r\n${credentials()}\r\n`,
        `GET ${target} HTTP/1.1\r\n${basic("SECRET")}\r\n`, // no colon
        `GET ${target} HTTP/1.1\r\n${basic("a b:SECRET")}\r\n`,
        `GET ${target} HTTP/1.1\r\n${basic(":SECRET")}\r\n`,
        `${line}Proxy-Authorization: Bearer SECRET\r\n\r\n`,
        `${line}Proxy-Authorization: Digest SECRET\r\n\r\n`,
        `${line}Proxy-Authorization: Basic SECRET!\r\n\r\n`,
        `${line}Proxy-Authorization: Basic\x01SECRET\r\n\r\n`,
        `${line}Proxy-Authorization : Basic SECRET\r\n\r\n`,
        `${line}${basic(`${AGENT_ID}:SECRET`)}${basic(`${AGENT_ID}:SECRET`)}\r\n`,
        `${line}${basic("nobody:SECRET")}\r\n`,
        `CONNECT 127.0.0.1:1 HTTP/1.1\r\n${basic(`${AGENT_ID}:SECRET`)}\r\n`,
        `CONNECT SECRET HTTP/1.1\r\n${basic(`${AGENT_ID}:SECRET`)}\r\n`,
        // what would look like a line or a field of the log
        `${line}${basic(`x"level=ERROR:y`)}\r\n`,
        `${line}${basic("x=FORGED\u2028\u009b31m:y")}\r\n`,
        `${line}${basic("\u202eFORGED\ufeff:y")}\r\n`,
        `GET ${target} HTTP/1.1\r\nX-Request-Id: a FORGED=1\r\n${credentials()}\r\n`,
        `FORGED=1 ${target} HTTP/1.1\r\n${credentials()}\r\n`,
      ];
      for (const request of requests) await ask(addresses.clients, Buffer.from(request, "latin1"));
      const logs = [await proxy.stop(), await agent.stop()].map(({ stderr }) => stderr);
      const encoded = [`${AGENT_ID}:SECRET`, "SECRET", "nobody:SECRET", "a b:SECRET", ":SECRET"].map((text) =>
        btoa(text).replace(/=+$/, "")
      );
      for (const log of logs) {
        assert.ok(log.split("\n").length > 5, log);
        for (const secret of ["SECRET", ...encoded]) assert.ok(!log.includes(secret), `${secret} in\n${log}`);
        for (const each of log.trimEnd().split("\n")) {
          if (format === "json") JSON.parse(each);
          else assert.match(each, TEXT_LINE);
        }
      }
      // what it has to say it does say
      assert.match(logs[0]!, format === "json" ? /"level":"TRACE"/ : / TRACE request head id=\S+ fields="[^"]*Proxy-Authorization/);
    });
  }

  it("without a reader lose lines, which are counted, and delay neither responses nor the exit, and take no memory", async () => {
    await using site = await Site.create();
    const fifo = join(site.folder.path, "stderr");
    assert.equal(spawnSync("mkfifo", [fifo]).status, 0);
    const descriptor = openSync(fifo, constants.O_RDWR);
    const proxy = spawn(PROXY, site.proxyArgs(), { stdio: ["ignore", "ignore", descriptor] });
    try {
      const ended = new Promise<number | null>((resolve) => proxy.once("exit", resolve));
      const buffer = new Uint8Array(1 << 16);
      const read = async (): Promise<string> => {
        for (;;) {
          try {
            return Buffer.from(buffer.subarray(0, readSync(descriptor, buffer))).toString();
          } catch (error) {
            if ((error as NodeJS.ErrnoException).code !== "EAGAIN") throw error; // a pipe that does not block, and is empty
            await new Promise((resolve) => setTimeout(resolve, 10));
          }
        }
      };
      let said = "";
      while (!/"clients":"[^"]+"/.test(said)) said += await read();
      const clients = /"clients":"([^"]+)"/.exec(said)![1]!;
      // more than the pipe and the queue hold: some 500 bytes each
      const requests = Array.from({ length: 4_000 }, (_, i) => i).values();
      await Promise.all(Array.from({ length: 50 }, async () => {
        for (const i of requests) assert.equal((await ask(clients, connectHead("127.0.0.1:1", `${i}-${"x".repeat(240)}`))).status, 502);
      }));
      let log = "";
      while (!log.includes("log lines dropped")) log += await read();
      assert.match(log, /"level":"WARN","message":"log lines dropped","logger":"","count":[1-9][0-9]*\}/);
      // and full again
      for (let i = 0; i < 200; i++) await ask(clients, connectHead("127.0.0.1:1", `${i}-${"x".repeat(240)}`));
      process.kill(proxy.pid!, "SIGTERM"); // Deno's own kill takes for granted that the signal ends it
      assert.equal(await ended, 0);
    } finally {
      proxy.kill("SIGKILL");
      closeSync(descriptor);
    }
  });
});

/** Resolves when the agent is connected. */
async function untilTunnel(clients: string, authority: string): Promise<void> {
  for (;;) {
    // not listening yet, or without its agent
    const status = await ask(clients, `GET http://${authority}/ HTTP/1.1\r\n${credentials()}\r\n`).then(({ status }) => status, () => 0);
    if (status === 200) return;
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
}
