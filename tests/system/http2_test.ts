// Clients that speak HTTP/2 with the compiled proxy and lb: node:http2, Chromium, and those that speak something else by mistake.
import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { createSocket, type Socket } from "node:dgram";
import { readFileSync } from "node:fs";
import process from "node:process";
import { join } from "node:path";
import { after, before, describe, it } from "node:test";
import { chromium } from "playwright-core";
import { AGENT_ID, type Program, ROOT, runToEnd, Site, storeArgs } from "../../testing/programs.ts";
import { ask, dialTls, Origin } from "../../testing/sockets.ts";
import { StoreServer } from "../../testing/store_servers.ts";
import { PAGE, Web } from "../../testing/web.ts";

interface Request {
  headers: Record<string, string>;
  /** Sent after the response, and then the end; `null`: the end with the head. Default: the end alone. */
  sent?: string | null;
  /** Send it before the response. */
  sendsFirst?: boolean;
  /** Reset the stream after the first data. */
  resets?: boolean;
}

interface Result {
  status?: number;
  data: string;
  /** Of RST_STREAM; 0 without. */
  code: number;
  proxyStatus?: string;
}

/** Runs `tests/clients/http2.mjs`. */
async function exchange(url: string, ca: string, requests: Request[]): Promise<{ results: Result[]; isOpen: boolean }> {
  const client = join(ROOT, "tests", "clients", "http2.mjs");
  const { exitCode, stdout, stderr } = await runToEnd("node", [client, url, ca], {
    input: JSON.stringify(requests),
    env: { PATH: process.env.PATH!, HOME: "/nonexistent" },
  });
  assert.equal(exitCode, 0, stderr);
  return JSON.parse(stdout);
}

const basic = (user: string) => `Basic ${Buffer.from(`${user}:secret`).toString("base64")}`;

function tunnel(authority: string, user = AGENT_ID): Record<string, string> {
  return { ":method": "CONNECT", ":authority": authority, "proxy-authorization": basic(user) };
}

function plain(method: string, authority: string, path: string, more: Record<string, string> = {}): Record<string, string> {
  return { ":method": method, ":scheme": "http", ":authority": authority, ":path": path, "proxy-authorization": basic(AGENT_ID), ...more };
}

async function http2Of(program: Program): Promise<string> {
  return String((await program.waitFor("listening")).http2);
}

let site: Site;
let proxy: Program;
let web: Web;
let secure: Web;
let origin: Origin;
/** The proxy's port for HTTP/2. */
let url: string;
let http2: string;

before(async () => {
  site = await Site.create();
  const { cert, key } = site.files;
  const started = await site.startProxy([
    "--http-proxy.http2-listen-address=127.0.0.1:0",
    "--http-proxy.tls.enable",
    `--http-proxy.tls.file.cert=${cert}`,
    `--http-proxy.tls.file.key=${key}`,
  ]);
  proxy = started.proxy;
  await site.startAgent(started.addresses);
  http2 = await http2Of(proxy);
  url = `https://${http2}`;
  web = await Web.start({ folder: site.folder.path });
  secure = await Web.start({ folder: site.folder.path, tls: { cert: readFileSync(cert, "utf8"), key: readFileSync(key, "utf8") } });
  origin = await Origin.start();
});

after(async () => {
  await origin?.[Symbol.asyncDispose]();
  await web?.[Symbol.asyncDispose]();
  await secure?.[Symbol.asyncDispose]();
  await site?.[Symbol.asyncDispose]();
});

/** Returns every datagram to its sender. */
class UdpEcho implements AsyncDisposable {
  private constructor(readonly socket: Socket, readonly port: number) {}

  static async start(): Promise<UdpEcho> {
    const socket = createSocket("udp4");
    socket.on("message", (data, { port, address }) => socket.send(data, port, address));
    await new Promise<void>((resolve) => socket.bind(0, "127.0.0.1", resolve));
    return new UdpEcho(socket, socket.address().port);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await new Promise<void>((resolve) => this.socket.close(() => resolve()));
  }
}

const GET = "GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";

describe("node:http2", () => {
  it("has many tunnels on one connection, which refusals do not end", async () => {
    const requests: Request[] = [
      ...Array.from({ length: 50 }, () => ({ headers: tunnel(web.authority), sent: GET })),
      { headers: { ":method": "CONNECT", ":authority": web.authority } },
      { headers: tunnel(web.authority, "nobody") },
      { headers: { ...tunnel(web.authority), "content-length": "4" } },
      { headers: tunnel("noport") },
    ];
    const { results, isOpen } = await exchange(url, site.files.ca, requests);
    assert.ok(isOpen);
    for (const { status, data, code } of results.slice(0, 50)) {
      assert.deepEqual([status, code], [200, 0]);
      assert.ok(data.startsWith("HTTP/1.1 200 OK\r\n") && data.endsWith(PAGE), data);
    }
    const refused = results.slice(50);
    assert.deepEqual(refused.map(({ status }) => status), [407, 502, 400, 400]);
    assert.match(refused[1]!.data, /The agent is not connected/);
    assert.match(refused[1]!.proxyStatus!, /^reverse-http-proxy;error=/);
    await proxy.waitFor("request", { method: "CONNECT", destination: web.authority, agent: AGENT_ID, status: 200 }, 50);
    await proxy.waitFor("request", { method: "CONNECT", agent: "nobody", status: 502 });
  });

  it("sees a reset of the destination, and the destination sees its own", async () => {
    const byTarget = exchange(url, site.files.ca, [{ headers: tunnel(origin.authority), sent: "x" }]);
    const first = await origin.accept();
    await first.read(1);
    first.reset();
    assert.equal((await byTarget).results[0]!.code, 10); // CONNECT_ERROR
    const byClient = exchange(url, site.files.ca, [{ headers: tunnel(origin.authority), sent: "x", resets: true }]);
    const second = await origin.accept();
    await second.read(1);
    await second.write("y");
    assert.equal(await second.ending(), "ECONNRESET");
    await byClient;
  });

  it("sends requests with the scheme http, with bodies of known and unknown length", async () => {
    const body = "x".repeat(300_000);
    const { results } = await exchange(url, site.files.ca, [
      { headers: plain("GET", web.authority, "/"), sent: null },
      { headers: plain("POST", web.authority, "/echo", { "content-length": String(body.length) }), sent: body, sendsFirst: true },
      { headers: plain("POST", web.authority, "/echo"), sent: body, sendsFirst: true },
      { headers: { ...plain("GET", web.authority, "/"), ":scheme": "https" }, sent: null },
    ]);
    assert.deepEqual(results.map(({ status, code }) => [status, code]), [[200, 0], [200, 0], [200, 0], [400, 0]]);
    assert.equal(results[0]!.data, PAGE);
    assert.ok(results[1]!.data === body && results[2]!.data === body);
    await proxy.waitFor("request", { method: "POST", destination: web.authority, agent: AGENT_ID, status: 200 }, 2);
  });

  it("opens WebSockets and UDP flows with an extended CONNECT, and no other protocol", async () => {
    await using echo = await UdpEcho.start();
    const extended = (protocol: string, path: string, more = {}) => ({
      ...plain("CONNECT", web.authority, path, more),
      ":protocol": protocol,
    });
    const udp = { ":scheme": "https", "capsule-protocol": "?1" };
    const { results } = await exchange(url, site.files.ca, [
      { headers: extended("websocket", "/", { "sec-websocket-version": "13" }), sent: "\x81\x82\0\0\0\0hi", resets: true }, // masked with zeros
      { headers: extended("connect-udp", `/.well-known/masque/udp/127.0.0.1/${echo.port}/`, udp), sent: "\0\x05\0ping", resets: true },
      { headers: extended("connect-ip", "/"), sent: null },
    ]);
    assert.deepEqual(results.map(({ status, data }) => [status, data.slice(0, 20)]), [
      [200, "\x81\x07echo hi"],
      [200, "\0\x05\0ping"],
      [501, "Of the protocols tha"],
    ]);
  });

  it("is told when a response is cut", async () => {
    const cut = exchange(url, site.files.ca, [{ headers: plain("POST", origin.authority, "/"), sent: "read" }]);
    const server = await origin.accept();
    await server.readUntil("\r\n\r\n");
    await server.write("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf");
    await server.readUntil("read"); // the client sends it when it has the head
    server.finish("");
    const [result] = (await cut).results;
    assert.deepEqual([result!.status, result!.data, result!.code], [200, "half", 2]); // INTERNAL_ERROR
  });

  it("is served by lb as well, without TLS, until the lb stops", async () => {
    await using cache = await StoreServer.start("memcached");
    await using other = await Site.create();
    const { lb } = await other.startLb(cache, ["--http-proxy.http2-listen-address=127.0.0.1:0"]);
    const { addresses } = await other.startProxy([...storeArgs(cache), "--store.ttl=3s"]);
    await other.startAgent(addresses);
    const requests: Request[] = [{ headers: tunnel(web.authority), sent: GET }, { headers: plain("GET", web.authority, "/"), sent: null }];
    const served = async () => (await exchange(`http://${await http2Of(lb)}`, "", requests)).results;
    let results = await served();
    for (let i = 0; i < 50 && results[0]!.status !== 200; i++) results = await served(); // the store hears of the agent soon
    assert.ok(results[0]!.data.endsWith(PAGE), results[0]!.data);
    assert.equal(results[1]!.data, PAGE);
    const open = exchange(`http://${await http2Of(lb)}`, "", [{ headers: tunnel(origin.authority), sent: "x" }]);
    const server = await origin.accept();
    await server.read(1);
    lb.signal("SIGTERM");
    await lb.waitFor("draining");
    server.finish("last");
    const [result] = (await open).results;
    assert.deepEqual([result!.data, result!.code], ["last", 0]);
    assert.equal((await lb.ended).exitCode, 0);
  });
});

describe("Chromium", () => {
  const hasChromium = spawnSync("chromium", ["--version"], { stdio: "ignore" }).status === 0;
  const isRequired = process.env.CI !== undefined && process.platform === "linux";
  const skip = hasChromium || isRequired ? false : "chromium is not installed: tools/requirements.ts installs it";
  it("shows pages of several origins over one connection", { skip }, async () => {
    const browser = await chromium.launch({
      executablePath: "/usr/bin/chromium",
      args: ["--no-sandbox", "--ignore-certificate-errors"],
      proxy: { server: url, username: AGENT_ID, password: "secret" },
    });
    try {
      const page = await browser.newPage({ ignoreHTTPSErrors: true });
      for (const each of [`http://${web.authority}/`, `https://${secure.authority}/`]) {
        assert.equal((await page.goto(each))?.status(), 200);
        assert.equal(await page.title(), "page");
      }
    } finally {
      await browser.close();
    }
    await proxy.waitFor("request", { method: "CONNECT", destination: secure.authority, status: 200 });
  });
});

describe("a client that speaks something else", () => {
  it("gets a response in HTTP/1.1 over TLS, and is named in the log", async () => {
    using wire = await dialTls(http2, { ca: site.authority.cert });
    await wire.write(`CONNECT ${web.authority} HTTP/1.1\r\n\r\n`);
    const response = (await wire.readAll()).toString();
    assert.match(response, /^HTTP\/1\.1 505 /);
    assert.match(response, /This is HTTP\/1\.1, but this port accepts only HTTP\/2/);
    const { reason } = await proxy.waitFor("request", { status: 505 });
    assert.match(String(reason), /only HTTP\/2/);
  });

  it("is told that the port takes TLS", async () => {
    assert.equal((await ask(http2, `CONNECT ${web.authority} HTTP/1.1\r\n\r\n`)).status, 400);
  });
});
