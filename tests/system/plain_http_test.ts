// Plain HTTP through the compiled proxy and agent: what the server gets, what the client gets, and how each detects a failure.
import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { Pair } from "../../testing/programs.ts";
import { ask, assertRefused, credentials, dial, Origin, type Wire } from "../../testing/sockets.ts";

/** A request in absolute form, and both its ends once the server has the header section. */
class Request implements AsyncDisposable {
  private constructor(readonly pair: Pair, readonly origin: Origin, readonly client: Wire, readonly server: Wire, readonly head: string) {}

  /** `fields` with their CRLF; `body` goes out with the head. */
  static async send(line: string, { fields = "", body = "", version = "1.1" } = {}): Promise<Request> {
    const pair = await Pair.start();
    const origin = await Origin.start();
    const client = await dial(pair.addresses.clients);
    const [method, path = ""] = line.split(" ");
    await client.write(`${method} http://${origin.authority}${path} HTTP/${version}\r\n${credentials()}${fields}\r\n${body}`);
    const server = await origin.accept();
    return new Request(pair, origin, client, server, await server.readUntil("\r\n\r\n"));
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.client[Symbol.dispose]();
    await this.origin[Symbol.asyncDispose]();
    await this.pair[Symbol.asyncDispose]();
  }
}

describe("plain HTTP", () => {
  it("reaches the server in origin-form, without the fields for the proxy", async () => {
    await using pair = await Pair.start();
    await using origin = await Origin.start();
    using client = await dial(pair.addresses.clients);
    await client.write(
      `GET http://${origin.authority}/a/b?c=d HTTP/1.1\r\nHost: elsewhere.example\r\n${credentials()}` +
        "Connection: keep-alive, X-Hop\r\nX-Hop: 1\r\nProxy-Connection: keep-alive\r\nX-End: 2\r\n\r\n",
    );
    const server = await origin.accept();
    const head = await server.readUntil("\r\n\r\n");
    assert.match(head, /^GET \/a\/b\?c=d HTTP\/1\.1\r\n/);
    assert.match(head, new RegExp(`^Host: ${origin.authority}\r$`, "m"));
    assert.match(head, /^X-End: 2\r$/m);
    assert.match(head, /^Via: 1\.1 reverse-http\r$/m);
    assert.match(head, /^Connection: close\r$/m);
    assert.doesNotMatch(head, /proxy-|x-hop|elsewhere|keep-alive/i);
    server.finish("HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: keep-alive\r\n\r\nhello");
    const answer = (await client.readAll()).toString();
    assert.match(answer, /^HTTP\/1\.1 200 OK\r\n/);
    assert.match(answer, /\r\nConnection: close\r\n/);
    assert.doesNotMatch(answer, /keep-alive/);
    assert.ok(answer.endsWith("\r\n\r\nhello"));
  });

  it("does not forward a second request behind the first", async () => {
    await using pair = await Pair.start();
    await using origin = await Origin.start();
    using client = await dial(pair.addresses.clients);
    await client.write(
      `POST http://${origin.authority}/ HTTP/1.1\r\n${credentials()}Content-Length: 4\r\n\r\ndataGET /smuggled HTTP/1.1\r\n\r\n`,
    );
    client.finish();
    const server = await origin.accept();
    assert.match((await server.readAll()).toString(), /\r\n\r\ndata$/);
    server.finish("HTTP/1.1 204 No Content\r\n\r\n");
    assert.match((await client.readAll()).toString(), /^HTTP\/1\.1 204 /);
  });

  it("is reset at the client when the server resets it during the response", async () => {
    await using pair = await Pair.start();
    await using origin = await Origin.start();
    using client = await dial(pair.addresses.clients);
    await client.write(`GET http://${origin.authority}/ HTTP/1.1\r\n${credentials()}\r\n`);
    const server = await origin.accept();
    await server.write("HTTP/1.1 200 OK\r\n\r\nthe beginning");
    await client.readUntil("the beginning");
    server.reset();
    assert.equal(await client.ending(), "ECONNRESET");
  });

  it("keeps the length of a response, whatever happens to the server's connection", async () => {
    const answers: [line: string, answer: string, body: string][] = [
      ["GET /", "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello and more", "hello"],
      ["GET /", "HTTP/1.1 200 OK\r\nContent-Length: 5, 5\r\n\r\nhello", "hello"],
      ["HEAD /", "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nnone", ""],
      ["GET /", "HTTP/1.1 204 No Content\r\n\r\nnone", ""],
      ["GET /", "HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\nnone", ""],
      ["DELETE /", "HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 0\r\n\r\n", ""],
    ];
    for (const [line, answer, body] of answers) {
      await using request = await Request.send(line);
      await request.server.write(answer); // and keeps its connection
      const text = (await request.client.readAll()).toString();
      assert.ok(text.endsWith(`\r\n\r\n${body}`), text);
      assert.equal(text.split("\r\n\r\n").length, 2);
    }
  });

  it("forwards a response without a length in chunks, so that truncation is visible, and unchanged to an HTTP/1.0 client", async () => {
    const heads = ["HTTP/1.0 200 OK\r\n", "HTTP/1.1 200 OK\r\n", "HTTP/1.1 200 OK\r\nConnection: close\r\nTransfer-Encoding: identity\r\n"];
    for (const head of heads) {
      await using request = await Request.send("GET /");
      await request.server.write(`${head}\r\nthe beginning `);
      assert.match(await request.client.readUntil("\r\n\r\n"), /\r\nTransfer-Encoding: chunked\r\n/);
      assert.equal(await request.client.readUntil("the beginning \r\n"), "e\r\nthe beginning \r\n");
      request.server.finish("and the end");
      assert.equal((await request.client.readAll()).toString(), "b\r\nand the end\r\n0\r\n\r\n");
      await request.pair.proxy.waitFor("request", { status: 200, received: 25 });
    }
    await using coded = await Request.send("GET /");
    coded.server.finish("HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\nzzz");
    assert.match((await coded.client.readAll()).toString(), /\r\nTransfer-Encoding: gzip, chunked\r\n[^]*\r\n\r\n3\r\nzzz\r\n0\r\n\r\n$/);
    await using old = await Request.send("GET /", { version: "1.0" });
    old.server.finish("HTTP/1.1 200 OK\r\n\r\nbody");
    const answer = (await old.client.readAll()).toString();
    assert.doesNotMatch(answer, /transfer-encoding/i);
    assert.ok(answer.endsWith("\r\n\r\nbody"));
  });

  it("resets the client, without a last chunk, if a response without a length is truncated", async () => {
    await using request = await Request.send("GET /");
    await request.server.write("HTTP/1.1 200 OK\r\n\r\nthe beginning");
    await request.client.readUntil("the beginning\r\n");
    request.server.reset();
    await assert.rejects(request.client.readUntil("0\r\n\r\n"), { message: "ECONNRESET" });
  });

  it("ends a chunked response at its end, whatever happens to the server's connection, and resets the client if it is truncated", async () => {
    const chunks = "5\r\nhello\r\n0\r\n\r\n";
    for (const more of ["", "HTTP/1.1 200 OK\r\n\r\n"]) {
      await using request = await Request.send("GET /");
      await request.server.write(`HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n${chunks}${more}`); // and keeps its connection
      assert.ok((await request.client.readAll()).toString().endsWith(`\r\n\r\n${chunks}`));
      const { error } = await request.pair.proxy.waitFor("request", { status: 200 });
      assert.equal(error, undefined);
    }
    await using cut = await Request.send("GET /");
    cut.server.finish("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhel");
    await cut.client.readUntil("hel");
    assert.equal(await cut.client.ending(), "ECONNRESET");
    await cut.pair.proxy.waitFor("request", { status: 200, error: "http_response_incomplete" });
  });

  it("accepts responses of careless servers, and forwards them in the form of RFC 9112", async () => {
    const answers: [said: string, got: RegExp][] = [
      ["HTTP/1.1 200 OK\r\nX-Protection : 1\r\nContent-Length : 2\r\n\r\nok", /^X-Protection: 1\r$/m],
      ["HTTP/1.1 200 OK\nA: b\nContent-Length: 2\n\nok", /^A: b\r$/m],
      ["\r\n\r\nHTTP/1.1 200\r\nA: b\r\n c\r\nContent-Length: 2\r\n\r\nok", /^A: b c\r$/m],
      ["http/1.1 200 ok\r\nA[b]: c\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\nok", /^Content-Length: 2\r$/m],
      [`HTTP/1.1 200 OK\r\n${"Set-Cookie: a=b\r\n".repeat(500)}Content-Length: 2\r\n\r\nok`, /^Set-Cookie: a=b\r$/m],
      [`HTTP/1.1 200 OK\r\nSet-Cookie: a=${"b".repeat(60_000)}\r\nContent-Length: 2\r\n\r\nok`, /^Set-Cookie: a=b{60000}\r$/m],
    ];
    for (const [said, got] of answers) {
      await using request = await Request.send("GET /");
      await request.server.write(said); // and keeps its connection: nothing may be waited for
      const answer = (await request.client.readAll()).toString();
      assert.match(answer, /^HTTP\/1\.1 200 [^]*\r\n\r\nok$/, answer.slice(0, 200));
      assert.match(answer, got);
      assert.doesNotMatch(answer, /(^|[^\r])\n|A\[b\]/);
    }
  });

  it("keeps the Proxy-Status of hops closer to the server, appends itself, and drops a malformed one", async () => {
    const fields: [said: string, got: string[]][] = [
      ["", []],
      ['Proxy-Status: cdn; error=dns_error; details="a, b"\r\n', ['cdn;error=dns_error;details="a, b", reverse-http-proxy']],
      ["Proxy-Status: a\r\nproxy-status: b;received-status=502\r\n", ["a, b;received-status=502, reverse-http-proxy"]],
      ["Proxy-Status: a; error=\r\n", []],
      [`Proxy-Status: ${"x".repeat(5_000)}\r\n`, []],
    ];
    for (const [said, got] of fields) {
      await using request = await Request.send("GET /");
      await request.server.write(`HTTP/1.1 502 Bad Gateway\r\n${said}Content-Length: 2\r\n\r\nok`);
      const answer = (await request.client.readAll()).toString();
      assert.deepEqual([...answer.matchAll(/^proxy-status: (.*)\r$/gim)].map(([, value]) => value), got);
      assert.match(answer, /\r\n\r\nok$/);
    }
  });

  it("forwards no length with a response that has no body", async () => {
    for (const framing of ["Content-Length: 5", "Transfer-Encoding: chunked"]) {
      await using request = await Request.send("GET /");
      await request.server.write(
        `HTTP/1.1 103 Early Hints\r\n${framing}\r\nA: b\r\n\r\nHTTP/1.1 204 No Content\r\n${framing}\r\n\r\nhello`,
      );
      const answer = (await request.client.readAll()).toString();
      assert.match(answer, /^HTTP\/1\.1 103 Early Hints\r\nA: b\r\n[^]*HTTP\/1\.1 204 No Content\r\n/);
      assert.doesNotMatch(answer, /content-length|transfer-encoding|hello/i);
    }
  });

  it("reads little after a request, whatever the client sends", async () => {
    const bodies = [["", ""], ["Content-Length: 4\r\n", "data"], ["Transfer-Encoding: chunked\r\n", "4\r\ndata\r\n0\r\n\r\n"]];
    for (const [fields, body] of bodies) {
      await using request = await Request.send("POST /", { fields, body });
      const chunk = new Uint8Array(1 << 20);
      let sent = 0;
      for (; sent < 64; sent++) {
        const late = new Promise<"late">((resolve) => setTimeout(() => resolve("late"), 500));
        if (await Promise.race([request.client.write(chunk), late]) === "late") break;
      }
      assert.ok(sent < 32, `${sent} MiB were taken`); // what the system's buffers hold
      request.server.finish("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
      assert.equal((await request.server.readAll()).toString(), body);
      const { sent: counted } = await request.pair.proxy.waitFor("request", { status: 200 });
      assert.ok(Number(counted) >= body!.length && Number(counted) < 1 << 20, `${counted}`);
    }
  });

  it("responds with 400 to malformed chunks, and does not forward them", async () => {
    await using request = await Request.send("POST /", { fields: "Transfer-Encoding: chunked\r\n", body: "4\r\ndata\r\n" });
    assert.equal((await request.server.read(9)).toString(), "4\r\ndata\r\n");
    await request.client.write("0x4\r\ndata\r\n");
    assert.match((await request.client.readAll()).toString(), /^HTTP\/1\.1 400 /);
    assert.equal(await request.server.ending(), "ECONNRESET");
  });

  it("removes user information, and treats ws as http", async () => {
    await using pair = await Pair.start();
    await using origin = await Origin.start();
    for (const target of [`http://user:secret@${origin.authority}/a`, `ws://${origin.authority}/a`, `http://@${origin.authority}/a`]) {
      using client = await dial(pair.addresses.clients);
      await client.write(`GET ${target} HTTP/1.1\r\n${credentials()}\r\n`);
      const server = await origin.accept();
      const head = await server.readUntil("\r\n\r\n");
      assert.match(head, new RegExp(`^GET /a HTTP/1\\.1\\r\\nHost: ${origin.authority}\\r\\n`));
      server.finish("HTTP/1.1 204 No Content\r\n\r\n");
      await client.readAll();
    }
    await pair.proxy.waitFor("request", { status: 204 }, 3);
    assert.doesNotMatch(pair.proxy.said + pair.agent.said, /secret/);
    const wss = await ask(pair.addresses.clients, `GET wss://${origin.authority}/ HTTP/1.1\r\n${credentials()}\r\n`);
    assertRefused(wss, 400, "http_request_error");
    assert.match(wss.body, /CONNECT/);
  });

  it("forwards an upgrade only for WebSocket", async () => {
    for (const protocol of ["TLS/1.2", "h2c", "TLS/1.2, h2c"]) {
      await using request = await Request.send("GET /", {
        fields: `Connection: Upgrade, HTTP2-Settings\r\nUpgrade: ${protocol}\r\nHTTP2-Settings: x\r\n`,
      });
      assert.doesNotMatch(request.head, /upgrade|http2-settings/i);
      assert.match(request.head, /^Connection: close\r$/m);
      const chunks = "2\r\nok\r\n0\r\n\r\n";
      await request.server.write(`HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n${chunks}`);
      assert.ok((await request.client.readAll()).toString().endsWith(`\r\n\r\n${chunks}`));
      const { error } = await request.pair.proxy.waitFor("request", { status: 200 });
      assert.equal(error, undefined);
    }
    await using request = await Request.send("GET /", { fields: "Connection: Upgrade\r\nUpgrade: TLS/1.2, WebSocket\r\n" });
    assert.match(request.head, /^Connection: Upgrade\r\nUpgrade: websocket\r$/m);
  });

  it("delivers the response of a server that does not read the body, to a client that sends all of it before it reads", async () => {
    await using request = await Request.send("POST /", { fields: `Content-Length: ${30 << 20}\r\n` });
    await request.server.write("HTTP/1.1 413 Content Too Large\r\nContent-Length: 3\r\n\r\nno\n");
    request.server.finish();
    request.client.socket.pause();
    const chunk = new Uint8Array(1 << 20);
    for (let sent = 0; sent < 30; sent++) await request.client.write(chunk);
    request.client.socket.resume();
    assert.match((await request.client.readAll()).toString(), /^HTTP\/1\.1 413 [^]*\r\n\r\nno\n$/);
  });

  it("forwards chunks and their trailers unchanged in both directions", async () => {
    const chunks = "5;a=b\r\nhello\r\n0\r\nX-Sum: 1\r\n\r\n";
    await using request = await Request.send("POST /", { fields: "Transfer-Encoding: chunked\r\nTrailer: X-Sum\r\n", body: chunks });
    assert.match(request.head, /^Transfer-Encoding: chunked\r$/m);
    assert.match(request.head, /^Connection: close\r$/m);
    assert.equal((await request.server.read(chunks.length)).toString(), chunks);
    // of two lengths only the one that counts goes on
    request.server.finish(`HTTP/1.1 200 OK\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n${chunks}`);
    const answer = (await request.client.readAll()).toString();
    assert.doesNotMatch(answer, /content-length/i);
    assert.ok(answer.endsWith(`\r\n\r\n${chunks}`));
  });

  it("forwards interim responses, and the body that they request", async () => {
    await using request = await Request.send("PUT /", { fields: "Expect: 100-continue\r\nContent-Length: 4\r\n" });
    assert.match(request.head, /^Expect: 100-continue\r$/m);
    await request.server.write("HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 100 Continue\r\n\r\n");
    assert.match(await request.client.readUntil("\r\n\r\n"), /^HTTP\/1\.1 103 Early Hints\r\nLink: <\/a>\r\n/);
    assert.match(await request.client.readUntil("\r\n\r\n"), /^HTTP\/1\.1 100 Continue\r\n/);
    await request.client.write("data");
    assert.equal((await request.server.read(4)).toString(), "data");
    request.server.finish("HTTP/1.1 201 Created\r\nContent-Length: 0\r\n\r\n");
    assert.match((await request.client.readAll()).toString(), /^HTTP\/1\.1 201 Created\r\n/);
  });

  it("uses HTTP/1.0 to the server for an HTTP/1.0 client, without newer features", async () => {
    await using request = await Request.send("GET /", { version: "1.0", fields: "Connection: Upgrade\r\nUpgrade: websocket\r\n" });
    assert.match(request.head, /^GET \/ HTTP\/1\.0\r\n/);
    assert.match(request.head, /^Via: 1\.0 reverse-http\r$/m);
    assert.doesNotMatch(request.head, /upgrade/i);
    request.server.finish("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n\r\nbody");
    assert.match((await request.client.readAll()).toString(), /^HTTP\/1\.1 200 OK\r\n[^]*\r\n\r\nbody$/);
  });

  it("sends OPTIONS * for OPTIONS without a path, and decrements Max-Forwards", async () => {
    await using request = await Request.send("OPTIONS", { fields: "Max-Forwards: 2\r\n" });
    assert.match(request.head, /^OPTIONS \* HTTP\/1\.1\r\n/);
    assert.match(request.head, /^Max-Forwards: 1\r$/m);
    const { clients } = request.pair.addresses;
    for (const method of ["OPTIONS", "TRACE"]) {
      const last = await ask(clients, `${method} http://${request.origin.authority} HTTP/1.1\r\n${credentials()}Max-Forwards: 0\r\n\r\n`);
      assertRefused(last, 405, "http_request_denied");
    }
  });

  it("switches to another protocol once the server agrees, and keeps half-close", async () => {
    const fields = "Connection: Upgrade, X-Hop\r\nX-Hop: 1\r\nUpgrade: websocket\r\n";
    await using request = await Request.send("GET /", { fields, body: "early" });
    assert.match(request.head, /^Connection: Upgrade\r\nUpgrade: websocket\r$/m);
    assert.doesNotMatch(request.head, /x-hop/i);
    await request.server.write("HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\nfirst");
    assert.match(await request.client.readUntil("\r\n\r\n"), /\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n/);
    assert.equal((await request.client.read(5)).toString(), "first");
    assert.equal((await request.server.read(5)).toString(), "early");
    request.server.finish("last");
    assert.equal((await request.client.readAll()).toString(), "last");
    await request.client.write("still ");
    request.client.finish("here");
    assert.equal((await request.server.readAll()).toString(), "still here");
  });

  it("forwards nothing after a request whose upgrade the server declines", async () => {
    const fields = "Connection: Upgrade\r\nUpgrade: websocket\r\n";
    await using request = await Request.send("GET /", { fields, body: "GET /smuggled HTTP/1.1\r\n\r\n" });
    await request.server.write("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nno");
    assert.match((await request.client.readAll()).toString(), /\r\n\r\nno$/);
    request.client.finish();
    assert.equal((await request.server.readAll()).length, 0);
  });

  it("delivers the response of a server that does not wait for the body", async () => {
    await using request = await Request.send("POST /", { fields: "Content-Length: 100000000\r\n", body: "some of it" });
    request.server.finish("HTTP/1.1 413 Content Too Large\r\nContent-Length: 3\r\n\r\nno\n");
    assert.match(await request.client.readUntil("\r\n\r\nno\n"), /^HTTP\/1\.1 413 /);
  });

  it("applies backpressure to either end while the other does not read", async () => {
    for (const direction of ["up", "down"] as const) {
      await using request = await Request.send("POST /", { fields: `Content-Length: ${1 << 30}\r\n` });
      const [from, to] = direction === "up" ? [request.client, request.server] : [request.server, request.client];
      if (direction === "down") await from.write(`HTTP/1.1 200 OK\r\nContent-Length: ${1 << 30}\r\n\r\n`);
      const chunk = new Uint8Array(1 << 20);
      let taken = 0;
      to.socket.pause();
      // what is under way is bounded by windows and buffers: far less than all
      for (; taken < 512; taken++) {
        const late = new Promise<"late">((resolve) => setTimeout(() => resolve("late"), 1_000));
        if (await Promise.race([from.write(chunk), late]) === "late") break;
      }
      assert.ok(taken < 256, `${taken} MiB went ${direction}`);
    }
  });

  it("is reset at the client when the server ends before the length it announced", async () => {
    await using request = await Request.send("GET /");
    request.server.finish("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nthe beginning");
    await request.client.readUntil("the beginning");
    assert.equal(await request.client.ending(), "ECONNRESET");
    await request.pair.proxy.waitFor("request", { status: 200, error: "http_response_incomplete", received: 13 });
  });

  it("is reset at the server when the client resets it, and the log names the client", async () => {
    await using request = await Request.send("GET /");
    await request.server.write("HTTP/1.1 200 OK\r\n\r\nthe beginning");
    await request.client.readUntil("the beginning");
    request.client.reset();
    assert.equal(await request.server.ending(), "ECONNRESET");
    const { reason } = await request.pair.proxy.waitFor("request", { status: 200, error: "connection_terminated" });
    assert.match(String(reason), /^The client has disconnected/);
  });

  it("responds with 502 and the error type to an invalid response", async () => {
    await using pair = await Pair.start();
    const answers: [said: string, error: string][] = [
      ["", "http_response_incomplete"],
      ["HTTP/1.1 2", "http_response_incomplete"],
      ["SSH-2.0-Banner\r\n\r\n", "http_protocol_error"],
      ["HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", "http_protocol_error"],
      ["HTTP/1.1 200 OK\r\nContent-Length: +1\r\n\r\n", "http_protocol_error"],
      ["HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n", "http_upgrade_failed"],
      [`HTTP/1.1 200 OK\r\n${"A: b\r\n".repeat(1_001)}\r\n`, "http_response_header_section_size"],
      [`HTTP/1.1 200 OK\r\n${"A: b\r\n".repeat(20_000)}`, "http_response_header_section_size"],
    ];
    for (const [said, error] of answers) {
      await using origin = await Origin.start(async (wire) => {
        await wire.readUntil("\r\n\r\n");
        wire.finish(said);
      });
      const answer = await ask(pair.addresses.clients, `GET http://${origin.authority}/ HTTP/1.1\r\n${credentials()}\r\n`);
      assertRefused(answer, 502, error);
    }
  });

  it("has no body in its own responses to HEAD", async () => {
    await using pair = await Pair.start();
    const { status, body } = await ask(pair.addresses.clients, `HEAD http://127.0.0.1:1/ HTTP/1.1\r\n${credentials()}\r\n`);
    assert.deepEqual({ status, body }, { status: 502, body: "" });
  });

  it("may name the server in every valid form", async () => {
    await using pair = await Pair.start();
    await using origin = await Origin.start(async (wire) => {
      const head = await wire.readUntil("\r\n\r\n");
      wire.finish(`HTTP/1.1 200 OK\r\nContent-Length: ${head.length}\r\n\r\n${head}`);
    });
    const spellings: [target: string, line: string, host: string][] = [
      [`HTTP://LOCALHOST:${origin.port}/A`, "/A", `LOCALHOST:${origin.port}`],
      [`hTTp://localhost:${origin.port}?q`, "/?q", `localhost:${origin.port}`],
      [`http://[::ffff:127.0.0.1]:${origin.port}`, "/", `[::ffff:127.0.0.1]:${origin.port}`],
    ];
    for (const [target, line, host] of spellings) {
      const { status, body } = await ask(
        pair.addresses.clients,
        `GET ${target} HTTP/1.1\r\nhost:\r\n${
          credentials().replace("Basic ", "bAsIc  ").replace("Proxy-A", "pROXY-a")
        }X-Empty:\r\nX-Tab:\t1\t\r\n\r\n`,
      );
      assert.equal(status, 200, target);
      assert.ok(body.startsWith(`GET ${line} HTTP/1.1\r\nHost: ${host}\r\nX-Empty: \r\nX-Tab: 1\r\n`), body);
    }
  });
});
