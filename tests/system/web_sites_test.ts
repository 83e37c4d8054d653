// Web sites with certificates of their own on one port, and over HTTP/2, with real clients through the compiled executables.
import assert from "node:assert/strict";
import { once } from "node:events";
import { mkdirSync, rmSync } from "node:fs";
import { join } from "node:path";
import process from "node:process";
import { after, before, describe, it } from "node:test";
import { connect } from "node:tls";
import { AGENT_ID, type Program, ROOT, runToEnd, Site } from "../../testing/programs.ts";
import { dialTls, Origin, type Wire } from "../../testing/sockets.ts";
import { PAGE, Web } from "../../testing/web.ts";

interface Result {
  readonly status?: number;
  readonly data: string;
  /** Of RST_STREAM; 0 without. */
  readonly code: number;
  readonly interim?: number[];
  readonly trailers?: Record<string, string>;
}

let site: Site;
let web: Web;
let origin: Origin;
let proxy: Program;
let port: string;

/** Issues a certificate, and returns the keys of a record for it. */
async function issue(name: string, ...names: string[]): Promise<string> {
  const { cert, key } = await site.authority.issue({ names });
  return `cert-file=${site.folder.write(`${name}.pem`, cert)},key-file=${site.folder.write(`${name}-key.pem`, key)}`;
}

/** Responds as the path of a request asks for. */
async function serve(wire: Wire): Promise<void> {
  const head = await wire.readUntil("\r\n\r\n");
  const path = head.split(" ")[1]!;
  const responses: Record<string, string> = {
    "/raw/hints": "103 Early Hints\r\nLink: </a.css>\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
    "/raw/none": "204 No Content\r\nX: y\r\n\r\n",
    "/raw/same": "304 Not Modified\r\nContent-Length: 5\r\nETag: x\r\n\r\n",
    "/raw/head": "200 OK\r\nContent-Length: 5\r\n\r\n",
    "/raw/open": "200 OK\r\n\r\nup to the end",
    "/raw/chunks": "200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nX-Trailer: y\r\n\r\n",
    "/raw/cut": "200 OK\r\nContent-Length: 10\r\n\r\nhalf",
  };
  const response = responses[path] ?? `200 OK\r\nContent-Length: ${head.length}\r\n\r\n${head}`;
  wire.finish(`HTTP/1.1 ${response}`);
}

before(async () => {
  site = await Site.create();
  web = await Web.start({ folder: site.folder.path });
  origin = await Origin.start(serve);
  const record = (to: string, ...keys: string[]) =>
    `--forward=${["listen=127.0.0.1:0,network=https", `agent=${AGENT_ID}`, `to=${to}`, "allow=all", ...keys].join(",")}`;
  const shared = await issue("shared", "localhost", "app.example", "closed.example", "other.example");
  const started = await site.startProxy([
    record(web.authority, "host=localhost", "host=app.example", shared),
    record(origin.authority, "host=localhost", "path=/raw"),
    record(web.authority, "host=other.example", await issue("other", "other.example")),
    record(web.authority, "host=closed.example", shared, `client-ca-file=${site.files.ca}`),
  ]);
  proxy = started.proxy;
  await site.startAgent(started.addresses);
  port = String((await proxy.waitFor("forwarding")).clients).split(":").at(-1)!;
});

after(async () => {
  await site?.[Symbol.asyncDispose]();
  await web?.[Symbol.asyncDispose]();
  await origin?.[Symbol.asyncDispose]();
});

/** Runs curl; the result is what `-w FORMAT` prints. */
async function curl(format: string, ...args: string[]): Promise<string> {
  const names = ["app.example", "other.example", "closed.example"].flatMap((name) => ["--resolve", `${name}:${port}:127.0.0.1`]);
  const { stdout, stderr } = await runToEnd("/usr/bin/curl", [
    "-sS",
    "--cacert",
    site.files.ca,
    ...names,
    "-o",
    "/dev/null",
    "-w",
    format,
    ...args,
  ]);
  return stdout === "" ? stderr : stdout;
}

/** Sends requests on one connection of HTTP/2 to `localhost`. */
async function request(...requests: { headers: Record<string, string>; sent?: string | null; sendsFirst?: boolean; resets?: boolean }[]) {
  const all = requests.map(({ headers, ...rest }) => ({
    headers: { ":method": "GET", ":scheme": "https", ":authority": `localhost:${port}`, ":path": "/", ...headers },
    sent: null,
    ...rest,
  }));
  const client = join(ROOT, "tests", "clients", "http2.mjs");
  const { exitCode, stdout, stderr } = await runToEnd("node", [client, `https://localhost:${port}`, site.files.ca], {
    input: JSON.stringify(all),
    env: { PATH: process.env.PATH!, HOME: "/nonexistent" },
  });
  assert.equal(exitCode, 0, stderr);
  const { results, isOpen } = JSON.parse(stdout) as { results: Result[]; isOpen: boolean };
  assert.ok(isOpen);
  return results;
}

describe("web sites with certificates of their own", () => {
  const serialOf = async (servername: string): Promise<string> => {
    const socket = connect({ host: "127.0.0.1", port: Number(port), servername, rejectUnauthorized: false });
    await once(socket, "secureConnect");
    const { serialNumber } = socket.getPeerCertificate();
    socket.destroy();
    return serialNumber;
  };

  it("have the certificate of the server name, the first one for other names, and their own rules for visitors", async () => {
    const [shared, other] = [await serialOf("localhost"), await serialOf("other.example")];
    assert.notEqual(shared, other);
    assert.equal(await serialOf("unknown.example"), shared);
    for (const name of ["app.example", "other.example"]) assert.equal(await curl("%{http_code}", `https://${name}:${port}/`), "200");
    assert.match(await curl("%{http_code}", "--http1.1", `https://closed.example:${port}/`), /000|certificate|alert/i);
    const { cert, key } = await site.authority.issue({ names: ["visitor"] });
    const own = ["--cert", site.folder.write("visitor.pem", cert), "--key", site.folder.write("visitor-key.pem", key)];
    assert.equal(await curl("%{http_code}", ...own, `https://closed.example:${port}/`), "200");
  });

  it("are renewed one by one", async () => {
    const [shared, other] = [await serialOf("localhost"), await serialOf("other.example")];
    await issue("other", "other.example");
    proxy.signal("SIGHUP");
    await proxy.waitFor("certificates reloaded");
    assert.notEqual(await serialOf("other.example"), other);
    assert.equal(await serialOf("localhost"), shared);
  });

  it("refuse a request for a host whose certificate or rules are not those of its connection, with 421", async () => {
    const results = await request(
      ...["app.example", "other.example", "closed.example", "unknown.example"].map((name) => ({
        headers: { ":authority": `${name}:${port}` },
      })),
    );
    assert.deepEqual(results.map(({ status }) => status), [200, 421, 421, 404]);
    for (const [host, status] of [["app.example", "200"], ["other.example", "421"]]) {
      assert.equal(await curl("%{http_code}", "--http1.1", "-H", `Host: ${host}`, `https://localhost:${port}/`), status);
    }
    await proxy.waitFor("request", { status: 421, serverName: "other.example" }, 2);
  });
});

it("web sites with certificates in a directory get those that are added later without a restart", async () => {
  await using own = await Site.create();
  const directory = join(own.folder.path, "certificates");
  mkdirSync(directory);
  const add = async (name: string) => {
    const { cert, key } = await own.authority.issue({ names: [name], commonName: "site" });
    own.folder.write(`certificates/${name}.pem`, cert + key);
  };
  await add("a.example");
  const { proxy, addresses } = await own.startProxy([
    `--http-proxy.tls.cert-dir=${directory}`,
    `--state-dir=${own.folder.path}`,
    `--forward=listen=127.0.0.1:0,network=https,agent=${AGENT_ID},to=${web.authority},allow=all`,
  ]);
  await own.startAgent(addresses);
  const port = String((await proxy.waitFor("forwarding")).clients).split(":").at(-1)!;
  const visit = async (name: string) => {
    const args = ["-sS", "--cacert", own.files.ca, "--resolve", `${name}:${port}:127.0.0.1`, `https://${name}:${port}/`];
    const { exitCode, stdout } = await runToEnd("/usr/bin/curl", args);
    return exitCode === 0 ? stdout : exitCode;
  };
  const UNTRUSTED = 60;
  assert.deepEqual([await visit("a.example"), await visit("b.example")], [PAGE, UNTRUSTED]);
  await add("b.example");
  proxy.signal("SIGHUP");
  await proxy.waitFor("certificate added", { names: "b.example" });
  await proxy.waitFor("configuration unchanged");
  assert.deepEqual([await visit("a.example"), await visit("b.example")], [PAGE, PAGE]);
  rmSync(join(directory, "a.example.pem"));
  proxy.signal("SIGHUP");
  await proxy.waitFor("certificate removed", { file: join(directory, "a.example.pem") });
  await proxy.waitFor("configuration unchanged", {}, 2);
  assert.deepEqual([await visit("a.example"), await visit("b.example")], [UNTRUSTED, PAGE]);
});

describe("a web site over HTTP/2", () => {
  it("serves curl, which chooses it by ALPN, and HTTP/1.1 to those that ask for it", async () => {
    const url = `https://localhost:${port}/`;
    assert.equal(await curl("%{http_version} %{http_code} %{size_download}", url), `2 200 ${PAGE.length}`);
    assert.equal(await curl("%{http_version} %{http_code}", "--http1.1", url), "1.1 200");
    assert.equal(await curl("%{http_version} %{http_code}", "--no-alpn", url), "1.1 200");
    const body = site.folder.write("body", "x".repeat(3_000_000));
    assert.equal(await curl("%{http_version} %{http_code} %{size_download}", "--data-binary", `@${body}`, url), "2 200 3000000");
  });

  it("passes on every kind of response", async () => {
    const get = (path: string, method = "GET") => ({ headers: { ":path": path, ":method": method } });
    const results = await request(
      get("/raw/hints"),
      get("/raw/none"),
      get("/raw/same"),
      get("/raw/head", "HEAD"),
      get("/raw/open"),
      get("/raw/chunks"),
      get("/raw/cut"),
    );
    assert.deepEqual(results, [
      { status: 200, data: "ok", code: 0, interim: [103] },
      { status: 204, data: "", code: 0 },
      { status: 304, data: "", code: 0 },
      { status: 200, data: "", code: 0 },
      { status: 200, data: "up to the end", code: 0 },
      { status: 200, data: "ok", code: 0, trailers: { "x-trailer": "y" } },
      { status: 200, data: "half", code: 2 }, // INTERNAL_ERROR
    ]);
  });

  it("serves many requests of one connection at once, with bodies of known and unknown length", async () => {
    const body = "x".repeat(100_000);
    const post = { headers: { ":method": "POST" }, sent: body, sendsFirst: true };
    const known = { ...post, headers: { ":method": "POST", "content-length": String(body.length) } };
    const results = await request(...Array.from({ length: 10 }, () => [post, known]).flat());
    assert.deepEqual(results.map(({ status, data, code }) => [status, data === body, code]), results.map(() => [200, true, 0]));
  });

  it("tells the server what the visitor has asked for, and refuses a Host that differs", async () => {
    const [seen, refused] = await request(
      { headers: { ":path": "/raw/x?y", cookie: "a=1", "x-forwarded-for": "192.0.2.9", te: "trailers" } },
      { headers: { host: "app.example" } },
    );
    const head = seen!.data.toLowerCase();
    assert.ok(head.startsWith(`get /raw/x?y http/1.1\r\nhost: localhost:${port}\r\n`), head);
    for (
      const line of [
        "cookie: a=1",
        "x-forwarded-for: 127.0.0.1",
        "x-forwarded-proto: https",
        "via: 2 reverse-http",
        "te: trailers",
        "connection: close, te",
      ]
    ) {
      assert.ok(head.includes(`\r\n${line}\r\n`), `${line}: ${head}`);
    }
    assert.doesNotMatch(head, /192\.0\.2\.9/);
    assert.equal(refused!.status, 400);
  });

  it("opens WebSockets with an extended CONNECT, no other protocol, and no tunnel", async () => {
    const extended = (protocol: string) => ({ ":method": "CONNECT", ":protocol": protocol, "sec-websocket-version": "13" });
    const [socket, other] = await request(
      { headers: extended("websocket"), sent: "\x81\x82\0\0\0\0hi", resets: true }, // masked with zeros
      { headers: extended("connect-udp") },
    );
    assert.deepEqual([socket!.status, socket!.data, other!.status], [200, "\x81\x07echo hi", 501]);
  });

  it("names a visitor that agrees on HTTP/2 and uses another protocol", async () => {
    using wire = await dialTls(`127.0.0.1:${port}`, { ca: site.authority.cert, ALPNProtocols: ["h2"] });
    await wire.write("GET / HTTP/1.1\r\nHost: localhost\r\n\r\n");
    assert.match((await wire.readAll()).toString(), /^HTTP\/1\.1 505 [^]*agreed on HTTP\/2/);
  });
});
