// A listener for HTTP/2 (RFC 9113): each of its streams is one of the contract, with its ends, resets and backpressure, and what a client may
// take is bounded.
import assert from "node:assert/strict";
import { Buffer } from "node:buffer";
import { once } from "node:events";
import { describe } from "node:test";
import { connect as connectTls, type ConnectionOptions, type TLSSocket } from "node:tls";
import {
  CONNECT_ERROR,
  CONTINUATION,
  DATA,
  encodeFields,
  encodeFrame,
  END_HEADERS,
  END_STREAM,
  ENHANCE_YOUR_CALM,
  GOAWAY,
  HEADERS,
  Http2Peer,
  INITIAL_WINDOW_SIZE,
  INTERNAL_ERROR,
  MAX_CONCURRENT_STREAMS,
  NO_ERROR,
  REFUSED_STREAM,
  RST_STREAM,
  SETTINGS,
  WINDOW_UPDATE,
} from "../../testing/http2.ts";
import type { Net } from "../../shared/net/net.ts";
import type { Duplex } from "../../shared/net/stream.ts";
import type { ListenTcpOptions } from "../../shared/net/tcp.ts";
import { withRaw } from "./raw.ts";
import {
  assertSame,
  bytes,
  dialTcp,
  fill,
  HEAD,
  ignore,
  isPending,
  listenTcp,
  netError,
  pattern,
  pause,
  readExactly,
  readText,
  readTextExactly,
  readToError,
  type Suite,
  type TcpServer,
  within,
  writeToError,
} from "./support.ts";

/** Receive window of a stream. */
const STREAM_WINDOW = 2 * 1024 * 1024;
const RESPONSE = bytes("HTTP/1.1 200 Connection established\r\n\r\n");

interface Connection extends TcpServer {
  client: Http2Peer;
  /** Opens a tunnel: the stream, once the client has the response. */
  tunnel(stream: number): Promise<Duplex>;
}

type Connect = (net: Net, settings?: [number, number][], options?: Partial<ListenTcpOptions>) => Promise<Connection>;

export function http2Tests(suite: Suite): void {
  const { adapter, pki } = suite;
  if (!adapter.has.sockets || !adapter.has.tls) return;
  const connectOver = (withTls: boolean): Connect => async (net, settings, options) => {
    const { tls, authority } = await pki;
    const server = await listenTcp(net, { preamble: "http2", tls: withTls ? tls : undefined, ...options });
    const socket = await dialTcp(net, server.port, withTls ? { tls: { ca: authority.cert } } : {});
    const client = await Http2Peer.open(socket, settings);
    const tunnel = async (stream: number) => {
      await client.connect(stream);
      const { stream: opened } = await server.request();
      await within(opened.write(RESPONSE));
      assert.equal(await within(client.status(stream)), 200);
      return opened;
    };
    return { ...server, client, tunnel };
  };
  for (const [name, connect] of [["TCP", connectOver(false)], ["TLS", connectOver(true)]] as const) {
    describe(`a stream of HTTP/2 over ${name}`, () => {
      transferTests(suite, connect);
      endTests(suite, connect);
    });
  }
  describe("a connection of HTTP/2", () => {
    headTests(suite, connectOver(false));
    limitTests(suite, connectOver(false));
    lifetimeTests(suite, connectOver(false));
    otherProtocolTests(suite);
  });
  describe("a listener for HTTP/1.1 and HTTP/2", () => bothVersionsTests(suite));
}

function transferTests({ test }: Suite, connect: Connect): void {
  test("carries bytes in both directions, beside others of its connection", async (net) => {
    const { client, tunnel } = await connect(net);
    const [one, other] = [await tunnel(1), await tunnel(3)];
    assert.match(one.remote, /^127\.0\.0\.1:\d+$/);
    await client.data(1, "to one");
    await client.data(3, "to other");
    assert.equal(await readTextExactly(one, 6), "to one");
    assert.equal(await readTextExactly(other, 8), "to other");
    await within(Promise.all([other.write(bytes("from other")), one.write(bytes("from one"))]));
    assert.equal(await within(client.text(1, 8)), "from one");
    one.closeWrite();
    other.closeWrite();
    assert.equal(await within(client.text(1)), "");
  });

  test("sends no more than its client grants, and goes on when it grants more", async (net) => {
    const { client, tunnel } = await connect(net, [[INITIAL_WINDOW_SIZE, 1_000]]);
    const [stream, other] = [await tunnel(1), await tunnel(3)];
    const data = pattern(3_000);
    const written = stream.write(data);
    const first = await within(client.text(1, 1_000));
    assert.ok(await isPending(written));
    await within(other.write(bytes("another one is not held up")));
    await within(client.text(3, 26));
    await client.grant(1, 2_000);
    assertSame(bytes(first + await within(client.text(1, 2_000))), data);
    await within(written);
  });

  test("holds little for a client that grants much and reads nothing", async (net) => {
    const { client, tunnel } = await connect(net, [[INITIAL_WINDOW_SIZE, 0x7fffffff]]);
    await client.grant(0, 0x7fff0000);
    const stream = await tunnel(1);
    const { taken, waiting } = await fill(stream, new Uint8Array(64 << 10), 32 << 20);
    assert.ok(taken < 16 << 20, `${taken} bytes`); // what the system buffers
    stream.reset(1);
    await netError(waiting, "reset", "closed");
  });

  test("grants its client what is read, and no more", async (net) => {
    const { client, tunnel } = await connect(net);
    const [stream, other] = [await tunnel(1), await tunnel(3)];
    const chunk = pattern(16_384);
    for (let sent = 0; sent < STREAM_WINDOW; sent += chunk.length) await client.data(1, chunk);
    const update = client.next(({ type, stream: on }) => type === WINDOW_UPDATE && on === 1);
    assert.ok(await isPending(update));
    await client.data(3, "another one is not held up");
    await readTextExactly(other, 26);
    await readExactly(stream, STREAM_WINDOW);
    assert.ok(await within(update));
  });

  test("is cut if its client sends more than it was granted", async (net) => {
    const { client, tunnel } = await connect(net);
    const stream = await tunnel(1);
    const chunk = pattern(16_384);
    for (let sent = 0; sent <= STREAM_WINDOW; sent += chunk.length) ignore(client.data(1, chunk));
    assert.equal(await within(client.code(RST_STREAM, 1)), 3); // FLOW_CONTROL_ERROR
    await readToError(stream, "reset");
  });
}

function endTests({ test }: Suite, connect: Connect): void {
  test("ends each direction on its own", async (net) => {
    const { client, tunnel } = await connect(net);
    const stream = await tunnel(1);
    await client.data(1, "asked", END_STREAM);
    assert.equal(await readText(stream), "asked");
    await within(stream.write(bytes("answered")));
    stream.closeWrite();
    assert.equal(await within(client.text(1)), "answered");

    const second = await tunnel(3);
    second.closeWrite();
    assert.equal(await within(client.text(3)), "");
    await client.data(3, "still sent", END_STREAM);
    assert.equal(await readText(second), "still sent");
    const resets = client.frames.filter(({ type }) => type === RST_STREAM);
    assert.deepEqual(resets, []);
  });

  test("tells a reset of its client from an end, with and without a read", async (net) => {
    const { client, tunnel } = await connect(net);
    const stream = await tunnel(1);
    const never = new AbortController();
    const watched = stream.whenReset(never.signal);
    await client.data(1, "part");
    assert.equal(await readTextExactly(stream, 4), "part");
    await client.reset(1);
    assert.match((await within(watched)).message, /CANCEL/);
    await readToError(stream, "reset");
    await writeToError(stream, "reset");
    const idle = await tunnel(3);
    assert.equal(await isPending(idle.read()), true);
  });

  test("reports a reset before its response", async (net) => {
    const { client, request } = await connect(net);
    await client.connect(1);
    const { stream } = await request();
    const watched = stream.whenReset(new AbortController().signal);
    await client.reset(1);
    assert.equal((await within(watched)).code, "reset");
    await netError(stream.write(RESPONSE), "reset");
  });

  test("is lost with its connection", async (net) => {
    const { client, tunnel } = await connect(net);
    const streams = [await tunnel(1), await tunnel(3)];
    client.socket.close();
    for (const stream of streams) await readToError(stream, "reset");
  });

  test("is reset with CONNECT_ERROR once it is a tunnel, otherwise with INTERNAL_ERROR", async (net) => {
    const { client, request, tunnel } = await connect(net);
    const stream = await tunnel(1);
    await within(stream.write(bytes("part")));
    assert.equal(await within(client.text(1, 4)), "part");
    stream.reset(1);
    await netError(stream.read(), "closed");
    assert.equal(await within(client.code(RST_STREAM, 1)), CONNECT_ERROR);
    await client.connect(3);
    (await request()).stream.close();
    assert.equal(await within(client.code(RST_STREAM, 3)), INTERNAL_ERROR);
  });

  test("is closed in order although its client still sends: it gets all, and then RST_STREAM without an error", async (net) => {
    const { client, tunnel } = await connect(net);
    const stream = await tunnel(1);
    await client.data(1, "unread");
    ignore(stream.write(bytes("the response")));
    stream.close();
    assert.equal(await within(client.text(1)), "the response");
    assert.equal(await within(client.code(RST_STREAM, 1)), NO_ERROR);
    assert.ok(await tunnel(3));
  });

  test("is closed with a small response although its client grants nothing", async (net) => {
    const { client, request } = await connect(net, [[INITIAL_WINDOW_SIZE, 0]]);
    await client.connect(1);
    const { stream } = await request();
    await within(stream.write(bytes("HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 2\r\n\r\nno")));
    stream.close();
    assert.equal(await within(client.status(1)), 407);
    await client.grant(1, 10);
    assert.equal(await within(client.text(1)), "no");
  });

  test("is relayed: ends, resets and data of each side are those of the other", async (net) => {
    const { client, request } = await connect(net);
    const target = await listenTcp(net, { preamble: "none" });
    const open = async (stream: number) => {
      await client.connect(stream);
      const { stream: opened } = await request();
      const tunnel = await within(
        net.connectAndSplice(opened, { host: "127.0.0.1", port: target.port, timeoutMs: 5_000 }, { initialDataToA: RESPONSE }),
      );
      assert.equal(await within(client.status(stream)), 200);
      const { stream: other } = (await target.next())!;
      await client.data(stream, "there");
      assert.equal(await readTextExactly(other, 5), "there");
      await within(other.write(bytes("and back")));
      assert.equal(await within(client.text(stream, 8)), "and back");
      return { other, tunnel };
    };
    const ended = await open(1);
    await client.data(1, "", END_STREAM);
    assert.equal(await readText(ended.other), "");
    await within(ended.other.write(bytes("last")));
    ended.other.closeWrite();
    assert.equal(await within(client.text(1)), "last");
    assert.deepEqual(await within(ended.tunnel.ended), { aToB: 5, bToA: 12, error: undefined, errorSide: undefined });

    const byTarget = await open(3);
    byTarget.other.reset(1);
    assert.equal(await within(client.code(RST_STREAM, 3)), CONNECT_ERROR);
    const { error, errorSide } = await within(byTarget.tunnel.ended);
    assert.deepEqual([error?.code, errorSide], ["reset", "b"]);

    const byClient = await open(5);
    await client.reset(5);
    await readToError(byClient.other, "reset");
    assert.equal((await within(byClient.tunnel.ended)).errorSide, "a");

    const halfClosed = await open(7);
    await client.data(7, "", END_STREAM);
    assert.equal(await readText(halfClosed.other), "");
    await client.reset(7);
    await writeToError(halfClosed.other, "reset", "stopped");
  });

  test("ends a relay when the client's connection has taken its last bytes", async (net) => {
    const { client, request, tunnel } = await connect(net, [[INITIAL_WINDOW_SIZE, 0x7fffffff]]);
    await client.grant(0, 0x7fff0000);
    const { waiting } = await fill(await tunnel(1), new Uint8Array(64 << 10), 32 << 20);
    const target = await listenTcp(net, { preamble: "none" });
    await client.connect(3);
    const relay = await within(
      net.connectAndSplice((await request()).stream, { host: "127.0.0.1", port: target.port, timeoutMs: 5_000 }, {
        initialDataToA: RESPONSE,
      }),
    );
    const { stream: other } = (await target.next())!;
    await client.data(3, "", END_STREAM);
    assert.equal(await readText(other), "");
    await within(other.write(bytes("last")));
    other.closeWrite();
    assert.ok(await isPending(relay.ended));
    assert.equal(await within(client.text(3)), "last");
    assert.equal((await within(relay.ended)).error, undefined);
    await within(waiting);
  });
}

function headTests({ test }: Suite, connect: Connect): void {
  test("delivers a request in the form of HTTP/1.1", async (net) => {
    const { client, request } = await connect(net);
    await client.request(1, { ":method": "CONNECT", ":authority": "db.test:5432", "proxy-authorization": "Basic eDp5" });
    assert.equal((await request()).head, "CONNECT db.test:5432 HTTP/1.1\r\nproxy-authorization: Basic eDp5\r\n\r\n");
    const get = { ":method": "GET", ":scheme": "http", ":authority": "a.test", ":path": "/x?y" };
    await client.request(3, get, END_STREAM);
    const { stream, head } = await request();
    assert.equal(head, "GET http://a.test/x?y HTTP/1.1\r\n\r\n");
    assert.equal(await readText(stream), "");
  });

  test("delivers an extended CONNECT as an upgrade", async (net) => {
    const { client, request } = await connect(net);
    const fields = { ":method": "CONNECT", ":protocol": "websocket", ":scheme": "http", ":authority": "a.test", ":path": "/x" };
    await client.request(1, fields);
    const { stream, head } = await request();
    assert.equal(head, "GET http://a.test/x HTTP/1.1\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\r\n");
    await within(stream.write(bytes("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nhello")));
    assert.equal(await within(client.status(1)), 200);
    assert.equal(await within(client.text(1, 5)), "hello");
    await client.data(1, "hi");
    assert.equal(await readTextExactly(stream, 2), "hi");
  });

  test("delivers a body in chunks if its length is not known, and as it is otherwise", async (net) => {
    const { client, request } = await connect(net);
    const post = { ":method": "POST", ":scheme": "http", ":authority": "a.test", ":path": "/" };
    await client.request(1, post);
    await client.data(1, "some");
    await client.data(1, " more bytes here", END_STREAM);
    const chunked = await request();
    assert.match(chunked.head, /\r\ntransfer-encoding: chunked\r\n\r\n$/);
    assert.equal(await readText(chunked.stream), "4\r\nsome\r\n10\r\n more bytes here\r\n0\r\n\r\n");
    await client.request(3, { ...post, "content-length": "4" });
    await client.data(3, "some", END_STREAM);
    const sized = await request();
    assert.match(sized.head, /\r\ncontent-length: 4\r\n\r\n$/);
    assert.equal(await readText(sized.stream), "some");
  });

  test("sends a response that is written in any pieces, interim ones first, without fields about a connection", async (net) => {
    const { client, request } = await connect(net);
    await client.connect(1);
    const { stream } = await request();
    const head = "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 407 Proxy Authentication Required\r\nConnection: close\r\nX: y\r\n\r\nbody";
    for (const byte of head) await within(stream.write(bytes(byte)));
    stream.close();
    assert.equal(await within(client.status(1)), 100);
    const final = (await within(client.of(HEADERS, 1)))!;
    assert.doesNotMatch(final.payload.toString("latin1"), /connection/);
    assert.equal(await within(client.text(1)), "body");
  });

  test("sends what was written before a reset, even if its client does not read at once", async (net) => {
    const { client, request, tunnel } = await connect(net, [[INITIAL_WINDOW_SIZE, 0x7fffffff]]);
    await client.grant(0, 0x7fff0000);
    const { waiting } = await fill(await tunnel(1), new Uint8Array(64 << 10), 32 << 20);
    await client.connect(3);
    const { stream } = await request();
    await within(stream.write(bytes("HTTP/1.1 200 OK\r\n\r\nhalf")));
    stream.reset(1);
    assert.equal(await within(client.status(3)), 200);
    assert.equal(await within(client.text(3, 4)), "half");
    assert.equal(await within(client.code(RST_STREAM, 3)), CONNECT_ERROR);
    await within(waiting);
  });

  test("resets a stream whose response has no head", async (net) => {
    const { client, request } = await connect(net);
    await client.connect(1);
    const { stream } = await request();
    await netError(stream.write(bytes("220 ready\r\n\r\n")), "internal");
    stream.close();
    assert.equal(await within(client.code(RST_STREAM, 1)), INTERNAL_ERROR);
  });
}

function limitTests({ test }: Suite, connect: Connect): void {
  test("answers a head that is too large with 431, and goes on", async (net) => {
    const { client, tunnel } = await connect(net, [], { headLimit: 1_000 });
    await client.request(1, { ":method": "CONNECT", ":authority": "a.test:1", x: "y".repeat(1_000) });
    assert.equal(await within(client.status(1)), 431);
    await tunnel(3);
  });

  test("ends a connection whose head never ends", async (net) => {
    const { client } = await connect(net, [], { headLimit: 1_000 });
    const block = encodeFields({ x: "y".repeat(8_000) });
    await client.send(HEADERS, 0, 1, encodeFields({ ":method": "CONNECT", ":authority": "a.test:1" }));
    for (let i = 0; i < 100; i++) ignore(client.send(CONTINUATION, 0, 1, block));
    assert.equal(await within(client.code(GOAWAY)), ENHANCE_YOUR_CALM);
  });

  test("refuses streams beyond those that it permits", async (net) => {
    const { client, next } = await connect(net);
    const settings = (await within(client.of(SETTINGS)))!.payload;
    let permitted = 0;
    for (let at = 0; at < settings.length; at += 6) {
      if (settings.readUInt16BE(at) === MAX_CONCURRENT_STREAMS) permitted = settings.readUInt32BE(at + 2);
    }
    assert.equal(permitted, 1_000);
    for (let i = 0; i <= permitted; i++) await client.connect(2 * i + 1);
    for (let i = 0; i < permitted; i++) assert.ok((await next())?.head);
    assert.equal(await within(client.code(RST_STREAM, 2 * permitted + 1)), REFUSED_STREAM);
  });

  test("ends a connection that resets its requests before their responses", async (net) => {
    const { client, listener } = await connect(net);
    const serve = async () => {
      for (let batch; (batch = await listener.accept());) {
        for (const { stream } of batch) ignore(stream.whenReset(new AbortController().signal).finally(() => stream.close()));
      }
    };
    ignore(serve());
    const flood = async () => {
      for (let id = 1; id < 4_000; id += 2) {
        await client.connect(id);
        await client.reset(id);
      }
    };
    ignore(flood());
    assert.equal(await within(client.code(GOAWAY)), ENHANCE_YOUR_CALM);
  });

  test("ends a connection that sends many tiny frames which are not read", async (net) => {
    const { client, tunnel } = await connect(net);
    await tunnel(1);
    const flood = async () => {
      for (let i = 0; i < 100_000; i++) await client.data(1, "x");
    };
    ignore(flood());
    assert.equal(await within(client.code(GOAWAY)), ENHANCE_YOUR_CALM);
  });

  test("reports a connection that brings no request in time", async (net) => {
    const { client, next } = await connect(net, [], { headTimeoutMs: 200 });
    assert.equal((await next())?.error?.code, "head-timeout");
    assert.equal(await within(client.code(GOAWAY)), NO_ERROR);
    assert.equal(await within(client.of(DATA)), undefined);
  });

  test("counts connections without a request, also those that had one", async (net) => {
    const { port, next, client, tunnel } = await connect(net, [], { maxPendingHeads: 2 });
    const stream = await tunnel(1);
    const others = [1, 2].map(async () => await Http2Peer.open(await dialTcp(net, port)));
    for (const other of others) await within((await other).of(SETTINGS));
    stream.close();
    await client.data(1, "", END_STREAM);
    assert.equal((await next())?.error?.code, "limit"); // the first of the others
    const third = await Http2Peer.open(await dialTcp(net, port));
    assert.equal((await next())?.error?.code, "limit"); // the second
    await within(third.of(SETTINGS));
    const fourth = await Http2Peer.open(await dialTcp(net, port));
    assert.equal(await within(client.code(GOAWAY)), NO_ERROR); // of which nothing is reported
    await within(fourth.of(SETTINGS));
  });
}

function lifetimeTests({ test }: Suite, connect: Connect): void {
  test("tells its client when the listener stops, keeps its streams, and ends with the last of them", async (net) => {
    const { client, listener, next, tunnel } = await connect(net);
    const stream = await tunnel(1);
    listener.stopAccepting();
    assert.equal(await within(client.code(GOAWAY)), NO_ERROR);
    assert.equal(await next(), null);
    listener.close();
    await client.data(1, "still there");
    assert.equal(await readTextExactly(stream, 11), "still there");
    await client.data(1, "", END_STREAM);
    stream.close();
    assert.equal(await within(client.text(1)), "");
    assert.equal(await within(client.of(DATA, 1)), undefined);
  });

  test("tells its client when the listener drains, which goes on accepting", async (net) => {
    const { client, listener, next, port, tunnel } = await connect(net);
    const stream = await tunnel(1);
    const idle = await Http2Peer.open(await dialTcp(net, port));
    await within(idle.of(SETTINGS));
    listener.startDraining();
    const last = async (of: Http2Peer) => (await within(of.of(GOAWAY)))?.payload.readUInt32BE(0);
    assert.deepEqual([await last(client), await last(client)], [0x7fffffff, 1]);
    await idle.connect(1); // it has had no request yet
    assert.deepEqual([await last(idle), await last(idle)], [0x7fffffff, 1]);
    await within((await next())!.stream.write(RESPONSE));
    assert.equal(await within(idle.status(1)), 200);
    await client.data(1, "still there", END_STREAM);
    assert.equal(await readText(stream), "still there");
    stream.close();
    assert.equal(await within(client.text(1)), "");
    assert.equal(await within(client.of(DATA)), undefined); // the end
  });

  test("ends with its last stream, though its client answers no PING", async (net) => {
    const { client, listener, tunnel } = await connect(net);
    const stream = await tunnel(1);
    client.answersPings = false;
    listener.startDraining();
    assert.equal(await within(client.code(GOAWAY)), NO_ERROR);
    await client.data(1, "", END_STREAM);
    stream.close();
    assert.equal(await within(client.text(1)), "");
    assert.equal((await within(client.of(GOAWAY)))?.payload.readUInt32BE(0), 1);
    assert.equal(await within(client.of(DATA)), undefined); // the end
  });

  test("refuses a request that comes after the listener has stopped, so that it may be sent again", async (net) => {
    const { client, listener, next, tunnel } = await connect(net);
    await tunnel(1);
    listener.stopAccepting();
    assert.equal(await next(), null);
    await client.connect(3);
    assert.equal(await within(client.code(RST_STREAM, 3)), REFUSED_STREAM);
  });

  test("ends soon after the listener if it has no stream", async (net) => {
    const { client, listener } = await connect(net);
    await within(client.of(SETTINGS));
    listener.close();
    assert.equal(await within(client.of(DATA)), undefined);
  });
}

function otherProtocolTests({ test, pki }: Suite): void {
  test("is not delivered for a client that sends nothing, or leaves in the preface", async (net) => {
    const { port, next, listener } = await listenTcp(net, { preamble: "http2" });
    for (const text of ["", "PRI * HT"]) {
      const socket = await dialTcp(net, port);
      if (text !== "") await within(socket.write(bytes(text)));
      socket.close();
    }
    await pause();
    listener.close();
    assert.equal(await next(), null);
  });

  test("answers another protocol in HTTP/1.1", async (net) => {
    const { tls, authority } = await pki;
    for (const withTls of [false, true]) {
      const { port, next } = await listenTcp(net, { preamble: "http2", tls: withTls ? tls : undefined });
      const socket = await dialTcp(net, port, withTls ? { tls: { ca: authority.cert } } : {});
      await within(socket.write(bytes("CONNECT a.test:1 HTTP/1.1\r\n\r\n")));
      const { stream, error } = (await next())!;
      assert.deepEqual([error?.code, error?.message], ["not-http2", "This is HTTP/1.1, but this port accepts only HTTP/2"]);
      await within(stream.write(bytes("HTTP/1.1 505 No\r\n\r\n")));
      stream.close();
      assert.match(await readText(socket), /^HTTP\/1\.1 505/);
    }
  });

  test("reports a connection that is no HTTP/2 after its preface", async (net) => {
    await withRaw(async (raw) => {
      const { port, next } = await listenTcp(net, { preamble: "http2" });
      const socket = await raw.connect(port);
      socket.write("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\nGET / HTTP/1.1\r\n\r\n");
      assert.equal((await next())?.error?.code, "head-malformed");
    });
  });
}

function bothVersionsTests({ test, pki }: Suite): void {
  const preamble = "http-or-http2";
  const open = async (port: number, options: ConnectionOptions): Promise<TLSSocket> => {
    const socket = connectTls({ host: "127.0.0.1", port, rejectUnauthorized: false, servername: "a.test", ...options });
    socket.on("error", () => {});
    await within(once(socket, "secureConnect"));
    return socket;
  };

  test("selects h2 before http/1.1, or none, and delivers the requests of either version", async (net) => {
    const { tls } = await pki;
    const { port, next } = await listenTcp(net, { preamble, tls });
    const offers: [offered: string[] | undefined, picked: string | false][] = [
      [["http/1.1", "h2"], "h2"],
      [["h2"], "h2"],
      [["http/1.1"], "http/1.1"],
      [["http/1.0"], false],
      [undefined, false],
    ];
    for (const [ALPNProtocols, picked] of offers) {
      const socket = await open(port, { ALPNProtocols });
      assert.equal(socket.alpnProtocol || false, picked, `${ALPNProtocols}`);
      if (picked === "h2") {
        const preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
        const fields = encodeFields({ ":method": "GET", ":scheme": "https", ":authority": "a.test", ":path": "/x" });
        socket.write(preface);
        socket.write(encodeFrame(SETTINGS, 0, 0, new Uint8Array()));
        socket.write(encodeFrame(HEADERS, END_STREAM | END_HEADERS, 1, fields));
      } else socket.write(HEAD);
      const incoming = await next();
      assert.equal(incoming?.head, picked === "h2" ? "GET https://a.test/x HTTP/1.1\r\n\r\n" : HEAD);
      assert.deepEqual([incoming.isHttp2 ?? false, incoming.serverName], [picked === "h2", "a.test"]);
      incoming.stream.close();
      socket.destroy();
    }
  });

  test("knows the client's certificate in each stream of a connection", async (net) => {
    const { tls, authority, client } = await pki;
    const { port, next } = await listenTcp(net, { preamble: "http2", tls: { ...tls, clientCa: authority.cert } });
    const connection = await Http2Peer.open(await dialTcp(net, port, { tls: { ca: authority.cert, ...client } }));
    for (const stream of [1, 3]) {
      await connection.connect(stream);
      const incoming = await next();
      assert.equal(incoming?.isHttp2, true);
      assert.ok(incoming.peerCertificate);
      assert.equal(Buffer.from(incoming.peerCertificate).toString("base64"), client.cert.replace(/-----.*-----|\s/g, ""));
    }
  });

  test("reports a client that agrees on h2 and speaks HTTP/1.1", async (net) => {
    const { tls } = await pki;
    const { port, next } = await listenTcp(net, { preamble, tls });
    const socket = await open(port, { ALPNProtocols: ["h2", "http/1.1"] });
    socket.write(HEAD);
    const incoming = await next();
    assert.equal(incoming?.error?.code, "not-http2");
    incoming.stream.close();
    socket.destroy();
  });

  test("is one for HTTP/1.1 without TLS", async (net) => {
    const { port, next } = await listenTcp(net, { preamble });
    const socket = await dialTcp(net, port);
    await within(socket.write(bytes(HEAD)));
    const incoming = await next();
    assert.deepEqual([incoming?.head, incoming?.isHttp2 ?? false], [HEAD, false]);
    const other = await dialTcp(net, port);
    await within(other.write(bytes("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")));
    assert.equal((await next())?.head, "PRI * HTTP/2.0\r\n\r\n"); // which the parser refuses
  });
}
