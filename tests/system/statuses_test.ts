// The responses of the compiled proxy to clients that get no tunnel.
import assert from "node:assert/strict";
import { describe, it } from "node:test";
import process from "node:process";
import { AGENT_ID, Folder, Pair, runToEnd, Site } from "../../testing/programs.ts";
import { ask, assertRefused, connectHead, credentials, dial, openTunnel, Origin, type Wire } from "../../testing/sockets.ts";
import { SilentPort } from "../support/silent_port.ts";

describe("proxy", () => {
  it("shows the id of a refusal in its log in a field, the text and the status line, and logs the claimed id", async () => {
    await using pair = await Pair.start();
    const { clients } = pair.addresses;
    const heads = [
      connectHead("127.0.0.1:1"),
      `GET http://127.0.0.1:1/ HTTP/1.1\r\n${credentials()}\r\n`,
      connectHead("127.0.0.1:1", "4712"),
    ];
    for (const head of heads) {
      using wire = await dial(clients);
      await wire.write(head);
      const text = (await wire.readAll()).toString();
      const id = /\r\nX-Request-Id: ([^\r]+)\r\n/.exec(text)?.[1];
      assert.match(text, new RegExp(`^HTTP/1\\.1 502 Bad Gateway \\([a-z_]+, request ${id}\\)\r\n`));
      assert.match(text, new RegExp(`\\(request ${id}\\)\\n$`));
      const { status, reason } = await pair.proxy.waitFor("request", { id });
      assert.equal(status, 502);
      assert.ok(reason);
    }
    const own = await ask(clients, connectHead("127.0.0.1:1", "4712").replace("\r\n\r\n", "\r\nX-Request-Id: mine-1\r\n\r\n"));
    assert.equal(own.fields["x-request-id"], "mine-1");
    const bearer = `Proxy-Authorization: Bearer ${"a".repeat(20)}\r\n`;
    assertRefused(await ask(clients, `CONNECT 127.0.0.1:1 HTTP/1.1\r\n${bearer}\r\n`), 407, "http_request_denied");
    assertRefused(await ask(clients, connectHead("127.0.0.1:1", "a b")), 407, "http_request_denied");
    await pair.proxy.waitFor("request", { status: 407, agentClaimed: "a b" });
    assert.doesNotMatch(pair.proxy.said, /aaaaaaaaaa/);
  });

  it("refuses a body of 30 MB so that wget and Python, which send it first, read the response", async () => {
    await using pair = await Pair.start({ proxy: ["--http-proxy.host-whitelist=127.0.0.1"] });
    using folder = new Folder();
    const file = folder.write("body", Buffer.alloc(30 << 20, "x"));
    const env = { PATH: process.env.PATH ?? "/usr/bin:/bin", HOME: folder.path };
    const { clients } = pair.addresses;
    const python = `
import http.client, sys
connection = http.client.HTTPConnection(sys.argv[1], timeout=30)
headers = {"Proxy-Authorization": "Basic NDcxMTphbnk="} if sys.argv[3] != "407" else {}
connection.request("POST", sys.argv[2], open(sys.argv[4], "rb").read(), headers)
response = connection.getresponse()
print(response.status, response.read().decode(), end="")
`;
    const cases: [url: string, status: number][] = [["http://10.0.0.1/", 403], ["http://127.0.0.1:1/", 502], ["http://127.0.0.1:1/", 407]];
    for (const [url, status] of cases) {
      const posted = await runToEnd("python3", ["-c", python, clients, url, String(status), file], { env });
      assert.match(posted.stdout, new RegExp(`^${status} .*\\(request `), posted.stderr);
      const user = status === 407 ? "" : `${AGENT_ID}:any@`;
      const args = ["-nv", "-t1", "-O-", `--post-file=${file}`, "-e", `http_proxy=http://${user}${clients}/`, url];
      const { stderr } = await runToEnd("wget", args, { env });
      assert.match(stderr, new RegExp(`ERROR ${status}`));
    }
    // a client that begins with the tunnel's bytes before it has the answer
    using wire = await dial(clients);
    wire.socket.pause();
    await wire.write(connectHead("10.0.0.1:1"));
    const chunk = new Uint8Array(1 << 20);
    for (let sent = 0; sent < 30; sent++) await wire.write(chunk);
    wire.socket.resume();
    assert.match((await wire.readAll()).toString(), /^HTTP\/1\.1 403 /);
  });

  it("continues to read from a refused client for a limited time, up to 64 MiB", async () => {
    await using site = await Site.create();
    const { addresses: { clients } } = await site.startProxy();
    using wire = await dial(clients);
    await wire.write(`POST http://localhost/ HTTP/1.1\r\nContent-Length: ${1 << 30}\r\n\r\n`);
    const chunk = new Uint8Array(1 << 20);
    let sent = 0;
    await assert.rejects(async () => {
      for (; sent < 1_024; sent++) await wire.write(chunk);
    });
    assert.ok(sent >= 60 && sent < 100, `${sent} MiB were taken`);
  });

  it("names another protocol that a client uses", async () => {
    await using site = await Site.create();
    const { proxy, addresses: { clients } } = await site.startProxy();
    const spoken: [first: string, status: number, hint: RegExp][] = [
      ["\x16\x03\x01\x02\x00\x01", 400, /TLS.*http:\/\//],
      ["\x04\x01\x00\x50\x7f\x00\x00\x01\x00", 400, /SOCKS 4/],
      ["PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505, /HTTP\/2\.0 is not accepted at this port; .* --http-proxy\.http2-listen-address/],
    ];
    for (const [first, status, hint] of spoken) {
      const answer = await ask(clients, Buffer.from(first, "latin1"));
      assertRefused(answer, status, "http_request_error");
      assert.match(answer.body, hint);
      assert.match(String((await proxy.waitFor("request", { id: answer.fields["x-request-id"] })).reason), hint);
    }
  });

  it("logs at most ten malformed requests a minute, and counts the others", async () => {
    await using site = await Site.create();
    const { proxy, addresses: { clients } } = await site.startProxy();
    for (let i = 0; i < 50; i++) assertRefused(await ask(clients, "junk\r\n\r\n"), 400, "http_request_error");
    await proxy.stop();
    assert.equal(proxy.logged("request", { status: 400 }).length, 10);
    assert.equal(proxy.logged("log lines suppressed", { of: "malformed request", suppressed: 40 }).length, 1);
  });

  it("responds with 407 and a challenge to missing, malformed and duplicate credentials", async () => {
    await using site = await Site.create();
    const { addresses: { clients } } = await site.startProxy();
    const head = "CONNECT 127.0.0.1:80 HTTP/1.1\r\nHost: 127.0.0.1:80\r\n";
    const wrong = [
      "",
      "Proxy-Authorization: Basic !\r\n",
      "Proxy-Authorization: Basic bm8gY29sb24=\r\n",
      "Proxy-Authorization: Digest a\r\n",
    ];
    for (const fields of [...wrong, credentials() + credentials()]) {
      const answer = await ask(clients, `${head}${fields}\r\n`);
      assertRefused(answer, 407, "http_request_denied");
      assert.equal(answer.fields["proxy-authenticate"], 'Basic realm="reverse-http"');
    }
  });

  it("responds with 400 to an ambiguous request", async () => {
    await using site = await Site.create();
    const { addresses: { clients } } = await site.startProxy();
    const heads = [
      `CONNECT localhost HTTP/1.1\r\n${credentials()}\r\n`,
      `CONNECT localhost:0 HTTP/1.1\r\n${credentials()}\r\n`,
      `CONNECT localhost:65536 HTTP/1.1\r\n${credentials()}\r\n`,
      `CONNECT localhost:80x HTTP/1.1\r\n${credentials()}\r\n`,
      `CONNECT  localhost:80 HTTP/1.1\r\n${credentials()}\r\n`,
      `CONNECT localhost:80 HTTP/1.1\n${credentials().replace("\r", "")}\n`,
      `CONNECT localhost:80 HTTP/1.1\r\n${credentials()}A: b\nC: d\r\n\r\n`,
      `CONNECT localhost:80 HTTP/1.1\r\n${credentials()}A: b\r\n c\r\n\r\n`,
      `CONNECT localhost:80 HTTP/1.1\r\n${credentials()}A : b\r\n\r\n`,
      `CONNECT localhost:80 HTTP/1.1\r\n${credentials()}Content-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n`,
      `POST http://localhost/ HTTP/1.1\r\n${credentials()}Content-Length: 1\r\nContent-Length: 2\r\n\r\n`,
      `GET https://localhost/ HTTP/1.1\r\n${credentials()}\r\n`,
      "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
    ];
    for (const head of heads) {
      const answer = await ask(clients, Buffer.from(head, "latin1"));
      assert.equal(answer.status, 400, JSON.stringify(head));
      assertRefused(answer, 400, "http_request_error");
    }
  });

  it("responds with 400 to a client that finishes within its header section", async () => {
    await using site = await Site.create();
    const { addresses: { clients } } = await site.startProxy();
    using wire = await dial(clients);
    wire.finish("CONNECT localhost:80 HT");
    assert.match((await wire.readAll()).toString(), /^HTTP\/1\.1 400 /);
  });

  it("responds with 405 and Allow to a method for the proxy itself", async () => {
    await using site = await Site.create();
    const { addresses: { clients } } = await site.startProxy();
    for (const line of ["GET / HTTP/1.1", "OPTIONS * HTTP/1.1", "POST /form HTTP/1.0"]) {
      const answer = await ask(clients, `${line}\r\nHost: localhost\r\n${credentials()}\r\n`);
      assertRefused(answer, 405, "http_request_denied");
      assert.equal(answer.fields["allow"], "CONNECT");
    }
  });

  it("responds with 408 to a header section that is not complete within 10 s", async () => {
    await using site = await Site.create();
    const { addresses: { clients } } = await site.startProxy();
    const answer = await ask(clients, "CONNECT localhost:80 HTTP/1.1\r\n");
    assertRefused(answer, 408, "http_request_error");
  });

  it("responds with 431 to a header section over 16 KiB or over 100 lines", async () => {
    await using site = await Site.create();
    const { addresses: { clients } } = await site.startProxy();
    const head = `CONNECT localhost:80 HTTP/1.1\r\n${credentials()}`;
    for (const rest of [`A: ${"a".repeat(17 * 1024)}\r\n\r\n`, `A: ${"a".repeat(500_000)}`, `${"A: b\r\n".repeat(100)}\r\n`]) {
      assertRefused(await ask(clients, head + rest), 431, "http_request_error");
    }
    // one line less is taken, and comes to nothing only for want of an agent
    assertRefused(await ask(clients, `${head}${"A: b\r\n".repeat(99)}\r\n`), 502, "destination_unavailable");
  });

  it("responds with 505 to an unsupported version of HTTP", async () => {
    await using site = await Site.create();
    const { addresses: { clients } } = await site.startProxy();
    assertRefused(await ask(clients, `CONNECT localhost:80 HTTP/2.0\r\n${credentials()}\r\n`), 505, "http_request_error");
  });

  it("responds with 403 to a destination that is not on its allow-list, before it looks for the agent", async () => {
    await using pair = await Pair.start({ proxy: ["--http-proxy.host-whitelist=127.0.0.1:1-1000,*.example.com"] });
    const { clients } = pair.addresses;
    for (const authority of ["127.0.0.1:1001", "127.0.0.2:80", "localhost:80", "example.org:80", "[::1]:80"]) {
      assertRefused(await ask(clients, connectHead(authority)), 403, "http_request_denied");
      assertRefused(await ask(clients, connectHead(authority, "nobody")), 403, "http_request_denied");
    }
    assertRefused(await ask(clients, connectHead("127.0.0.1:1")), 502, "connection_refused");
    assertRefused(await ask(clients, `GET http://example.org/ HTTP/1.1\r\n${credentials()}\r\n`), 403, "http_request_denied");
  });

  it("responds with 403 to a destination that is not on the agent's allow-list", async () => {
    await using origin = await Origin.start();
    await using pair = await Pair.start({ agent: [`--agent-client.host-whitelist=${origin.authority}`] });
    const { clients } = pair.addresses;
    const answer = await ask(clients, connectHead("127.0.0.1:1"));
    assertRefused(answer, 403, "http_request_denied");
    assert.match(answer.body, /127\.0\.0\.1:1 is not on the allow-list of the agent/);
    using _tunnel = await openTunnel(clients, origin.authority);
    await pair.agent.waitFor("tunnel refused", { status: 403, destination: "127.0.0.1:1" });
  });

  it("responds with 502 for an agent that is not connected", async () => {
    await using pair = await Pair.start();
    assertRefused(await ask(pair.addresses.clients, connectHead("127.0.0.1:1", "4712")), 502, "destination_unavailable");
    await pair.proxy.waitFor("request", { agent: "4712", status: 502, error: "destination_unavailable" });
  });

  it("responds with 502 and the error type if the agent cannot connect", async () => {
    await using pair = await Pair.start();
    const { clients } = pair.addresses;
    assertRefused(await ask(clients, connectHead("127.0.0.1:1")), 502, "connection_refused");
    assertRefused(await ask(clients, connectHead("no-such-name.invalid:80")), 502, "dns_error");
    assertRefused(await ask(clients, connectHead("255.255.255.255:80")), 502, "destination_ip_unroutable");
    assertRefused(await ask(clients, `GET http://127.0.0.1:1/ HTTP/1.1\r\n${credentials()}\r\n`), 502, "connection_refused");
  });

  it("responds with 504 for an agent that exceeds the dial-timeout, and uses it again when it responds", async () => {
    await using origin = await Origin.start();
    await using pair = await Pair.start({ proxy: ["--agent-server.agent.dial-timeout=300ms"] });
    const { clients } = pair.addresses;
    pair.agent.signal("SIGSTOP");
    assertRefused(await ask(clients, connectHead(origin.authority)), 504, "http_response_timeout");
    pair.agent.signal("SIGCONT");
    // the first may come while it still wakes up
    let answer = await tryTunnel(clients, origin.authority);
    for (let attempt = 0; answer.startsWith("HTTP/1.1 504") && attempt < 20; attempt++) answer = await tryTunnel(clients, origin.authority);
    assert.match(answer, /^HTTP\/1\.1 200 /);
  });

  const onLinux = { skip: process.platform === "linux" ? false : "only Linux lets connections wait for a full queue" };

  it("responds with 504 for a destination that exceeds the shorter of connect-timeout and dial-timeout", onLinux, async () => {
    await using silent = await SilentPort.start();
    const [atAgent, atProxy] = ["--agent-client.connect-timeout=", "--agent-server.agent.dial-timeout="];
    const cases = [["200ms", "30s", "connection_timeout"], ["30s", "200ms", "http_response_timeout"]] as const;
    for (const [connect, dial, error] of cases) {
      await using pair = await Pair.start({ agent: [atAgent + connect], proxy: [atProxy + dial] });
      assertRefused(await ask(pair.addresses.clients, connectHead(silent.authority)), 504, error);
    }
  });

  it("serves other clients while some never complete their requests", async () => {
    await using pair = await Pair.start();
    await using origin = await Origin.start();
    const idle: Wire[] = [];
    try {
      for (let i = 0; i < 500; i++) idle.push(await dial(pair.addresses.clients));
      for (const wire of idle) await wire.write("CONNECT ");
      using _tunnel = await openTunnel(pair.addresses.clients, origin.authority);
    } finally {
      for (const wire of idle) wire[Symbol.dispose]();
    }
  });
});

/** Reads the header section of the response. */
async function tryTunnel(clients: string, authority: string): Promise<string> {
  using wire = await dial(clients);
  await wire.write(connectHead(authority));
  return await wire.readUntil("\r\n\r\n");
}
