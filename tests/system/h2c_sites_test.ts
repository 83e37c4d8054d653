// Web sites whose server speaks HTTP/2 without TLS, as those of gRPC do, through the compiled executables.
import assert from "node:assert/strict";
import { type ChildProcess, spawn } from "node:child_process";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { after, before, describe, it } from "node:test";
import { AGENT_ID, type Program, ROOT, runToEnd, Site } from "../../testing/programs.ts";
import { dialTls } from "../../testing/sockets.ts";
import { Web } from "../../testing/web.ts";

interface Result {
  readonly status?: number;
  readonly interim?: number[];
  readonly data: string;
  readonly code: number;
  readonly proxyStatus?: string;
  readonly trailers?: Record<string, string>;
}

let site: Site;
let proxy: Program;
let web: Web;
let server: ChildProcess;
let lines: AsyncIterator<string>;
let port: string;

before(async () => {
  server = spawn("node", [join(ROOT, "tests", "clients", "h2c_server.mjs")], { stdio: ["ignore", "pipe", "inherit"] });
  lines = createInterface({ input: server.stdout! })[Symbol.asyncIterator]();
  const to = `127.0.0.1:${(await lines.next()).value}`;
  site = await Site.create();
  web = await Web.start({ folder: site.folder.path });
  const { cert, key } = site.files;
  const record = (to: string, ...keys: string[]) =>
    `--forward=${[`listen=127.0.0.1:0,network=https,agent=${AGENT_ID},to=${to},to-protocol=h2c,allow=all`, ...keys].join(",")}`;
  const started = await site.startProxy([
    record(to, `cert-file=${cert}`, `key-file=${key}`),
    record(web.authority, "path=/other"),
  ]);
  proxy = started.proxy;
  await site.startAgent(started.addresses);
  port = String((await proxy.waitFor("forwarding")).clients).split(":").at(-1)!;
});

after(async () => {
  server?.kill("SIGKILL");
  await web?.[Symbol.asyncDispose]();
  await site?.[Symbol.asyncDispose]();
});

/** Sends requests on one connection of HTTP/2. */
async function request(
  ...requests: { path: string; expect?: string; sent?: string | null; sendsFirst?: boolean; resets?: boolean }[]
): Promise<Result[]> {
  const all = requests.map(({ path, expect, ...rest }) => ({
    headers: {
      ":method": "POST",
      ":scheme": "https",
      ":authority": `localhost:${port}`,
      ":path": path,
      te: "trailers",
      ...expect === undefined ? {} : { expect },
    },
    ...rest,
  }));
  const { exitCode, stdout, stderr } = await runToEnd("node", [
    join(ROOT, "tests", "clients", "http2.mjs"),
    `https://localhost:${port}`,
    site.files.ca,
  ], { input: JSON.stringify(all) });
  assert.equal(exitCode, 0, stderr);
  return JSON.parse(stdout).results;
}

describe("a web site with a server of gRPC", () => {
  it("has trailers, also where the head is all, and streams while the request goes on", async () => {
    const body = "x".repeat(300_000);
    const [echo, streamed, nothing] = await request(
      { path: "/echo", sent: body, sendsFirst: true },
      { path: "/echo", sent: "after the response's head" },
      { path: "/nothing", sent: null },
    );
    const trailers = { "grpc-status": "0", "x-seen": `localhost:${port},http,trailers,,https` };
    assert.deepEqual(echo, { status: 200, data: body, code: 0, trailers });
    assert.deepEqual(streamed, { status: 200, data: "after the response's head", code: 0, trailers });
    assert.deepEqual(nothing, { status: 200, data: "", code: 0, trailers: { "grpc-status": "5" } });
  });

  it("has visitors over HTTP/1.1, whose trailers reach it and who get its own", async () => {
    using wire = await dialTls(`127.0.0.1:${port}`, { ca: site.authority.cert });
    const head =
      `POST /echo HTTP/1.1\r\nHost: localhost:${port}\r\nTE: trailers\r\nConnection: TE, close\r\nTransfer-Encoding: chunked\r\n\r\n`;
    await wire.write(`${head}5\r\nhello\r\n0\r\nX-Sent: 1\r\n\r\n`);
    const response = (await wire.readAll()).toString();
    assert.match(
      response,
      /^HTTP\/1\.1 200 [^]*\r\n5\r\nhello\r\n0\r\ngrpc-status: 0\r\nx-seen: .*,http,trailers,,https\r\nx-sent: 1\r\n\r\n$/,
    );
  });

  it("sends interim responses to visitors of either version", async () => {
    const [result] = await request({ path: "/interim", sent: "body", expect: "100-continue" });
    assert.deepEqual([result!.interim, result!.status, result!.data], [[100, 103], 200, "body"]);
    using wire = await dialTls(`127.0.0.1:${port}`, { ca: site.authority.cert });
    await wire.write(
      `POST /interim HTTP/1.1\r\nHost: localhost:${port}\r\nExpect: 100-continue\r\nConnection: close\r\nContent-Length: 4\r\n\r\n`,
    );
    assert.match(await wire.readUntil("\r\n\r\n"), /^HTTP\/1\.1 100 /);
    assert.match(await wire.readUntil("\r\n\r\n"), /^HTTP\/1\.1 103 [^]*\r\nlink: <\/a\.css>\r\n/);
    await wire.write("body");
    assert.match((await wire.readAll()).toString(), /^HTTP\/1\.1 200 [^]*\r\n4\r\nbody\r\n/);
  });

  it("sees it when a visitor resets a request", async () => {
    await request({ path: "/echo", sent: "x", resets: true });
    assert.equal((await lines.next()).value, "reset 8"); // CANCEL
  });

  it("is told from a server that does not speak HTTP/2, with 502", async () => {
    const [refused] = await request({ path: "/other", sent: null });
    assert.equal(refused!.status, 502);
    assert.match(refused!.data, /The destination does not speak HTTP\/2/);
    assert.match(refused!.proxyStatus!, /error=http_protocol_error/);
  });
});
