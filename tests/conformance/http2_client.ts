// Connections to a server that speaks HTTP/2 (RFC 9113): each of their streams is one of the contract, and what the server allows is respected.
import assert from "node:assert/strict";
import { describe } from "node:test";
import {
  CONNECT_ERROR,
  DATA,
  END_STREAM,
  HEADERS,
  Http2Peer,
  INITIAL_WINDOW_SIZE,
  MAX_CONCURRENT_STREAMS,
  REFUSED_STREAM,
  RST_STREAM,
} from "../../testing/http2.ts";
import type { Net } from "../../shared/net/net.ts";
import type { Duplex } from "../../shared/net/stream.ts";
import type { Http2Connection } from "../../shared/net/tcp.ts";
import { withRaw } from "./raw.ts";
import {
  assertSame,
  bytes,
  isPending,
  listenTcp,
  netError,
  pattern,
  readAll,
  readText,
  readTextExactly,
  readToError,
  type Suite,
  within,
  writeToError,
} from "./support.ts";

const REQUEST = bytes("CONNECT a.test:1 HTTP/1.1\r\nHost: a.test:1\r\nProxy-Authorization: Basic eDp5\r\n\r\n");
const RESPONSE = "HTTP/1.1 200 OK\r\n\r\n";
const ESTABLISHED = bytes("HTTP/1.1 200 Connection established\r\n\r\n");
const TIMEOUT = { timeoutMs: 5_000 };

type Settings = [number, number][];

/** A connection to a server that a test plays. */
async function connectTo(net: Net, settings: Settings = []): Promise<{ connection: Http2Connection; server: Http2Peer }> {
  const { port, next } = await listenTcp(net, { preamble: "none" });
  const connecting = net.connectHttp2({ host: "127.0.0.1", port, ...TIMEOUT });
  const server = await within(Http2Peer.accept((await next())!.stream, settings));
  return { connection: await within(connecting), server };
}

/** A stream on which a request was written. */
async function ask(connection: Http2Connection): Promise<Duplex> {
  const stream = await within(connection.openStream());
  await within(stream.write(REQUEST));
  return stream;
}

/** A tunnel that the server has opened. */
async function tunnel(connection: Http2Connection, server: Http2Peer, id: number): Promise<Duplex> {
  const stream = await ask(connection);
  await within(server.of(HEADERS, id));
  await server.respond(id, 200);
  assert.equal(await readTextExactly(stream, RESPONSE.length), RESPONSE);
  return stream;
}

export function http2ClientTests({ adapter, pki, test }: Suite): void {
  if (!adapter.has.sockets || !adapter.has.tls) return;

  describe("a stream to a server of HTTP/2", () => {
    for (const withTls of [false, true]) {
      test(`carries bytes to a listener and back, beside others, over ${withTls ? "TLS" : "TCP"}`, async (net) => {
        const { tls, authority } = await pki;
        const server = await listenTcp(net, { preamble: "http2", tls: withTls ? tls : undefined });
        const options = withTls ? { tls: { ca: authority.cert } } : {};
        const connection = await within(net.connectHttp2({ host: "127.0.0.1", port: server.port, ...TIMEOUT, ...options }));
        assert.equal(connection.remote, `127.0.0.1:${server.port}`);
        const tunnels: { stream: Duplex; accepted: Duplex }[] = [];
        for (let i = 0; i < 3; i++) {
          const stream = await ask(connection);
          const { stream: accepted, head } = await server.request();
          assert.match(head!, /^CONNECT a\.test:1 HTTP\/1\.1\r\nproxy-authorization: Basic eDp5\r\n/);
          await within(accepted.write(ESTABLISHED));
          assert.equal(await readTextExactly(stream, RESPONSE.length), RESPONSE);
          tunnels.push({ stream, accepted });
        }
        const [sent, returned] = [pattern(5_000_000), pattern(5_000_000, 2)];
        const write = async (to: Duplex, data: Uint8Array) => {
          await to.write(data);
          to.closeWrite();
        };
        await Promise.all(tunnels.map(async ({ stream, accepted }) => {
          const moving = Promise.all([readAll(accepted), readAll(stream), write(stream, sent), write(accepted, returned)]);
          const [received, back] = await within(moving, "it did not end", 20_000);
          assertSame(received, sent);
          assertSame(back, returned);
        }));
      });
    }

    test("ends each direction on its own", async (net) => {
      const { connection, server } = await connectTo(net);
      const stream = await tunnel(connection, server, 1);
      await within(stream.write(bytes("question")));
      stream.closeWrite();
      assert.equal(await within(server.text(1)), "question");
      await server.data(1, "answer", END_STREAM);
      assert.equal(await readText(stream), "answer");
    });

    test("is reset by either side, and no other", async (net) => {
      const { connection, server } = await connectTo(net);
      const [one, two, three] = [
        await tunnel(connection, server, 1),
        await tunnel(connection, server, 3),
        await tunnel(connection, server, 5),
      ];
      await server.reset(1, CONNECT_ERROR);
      await readToError(one, "reset");
      await writeToError(one, "reset");
      two.reset(1);
      assert.equal(await within(server.code(RST_STREAM, 3)), CONNECT_ERROR);
      await server.data(5, "still here");
      assert.equal(await readTextExactly(three, 10), "still here");
    });

    test("is cut when the connection is lost", async (net) => {
      const { connection, server } = await connectTo(net);
      const stream = await tunnel(connection, server, 1);
      server.socket.close();
      await readToError(stream, "reset");
      await netError(connection.openStream(), "closed");
    });

    test("sends no more than the server grants, and holds up no other", async (net) => {
      const { connection, server } = await connectTo(net, [[INITIAL_WINDOW_SIZE, 1_000]]);
      const [one, other] = [await tunnel(connection, server, 1), await tunnel(connection, server, 3)];
      const data = pattern(3_000);
      const written = one.write(data);
      const first = await within(server.text(1, 1_000));
      assert.ok(await isPending(written));
      await within(other.write(bytes("another one")));
      assert.equal(await within(server.text(3, 11)), "another one");
      await server.grant(1, 2_000);
      assertSame(bytes(first + await within(server.text(1, 2_000))), data);
      await within(written);
    });

    test("that is not read stops no other", async (net) => {
      const server = await listenTcp(net, { preamble: "http2" });
      const connection = await within(net.connectHttp2({ host: "127.0.0.1", port: server.port, ...TIMEOUT }));
      const flooded: Promise<void>[] = [];
      for (let i = 0; i < 3; i++) {
        await ask(connection);
        const { stream } = await server.request();
        await within(stream.write(ESTABLISHED));
        flooded.push(stream.write(new Uint8Array(8 << 20)));
      }
      assert.ok(await isPending(Promise.race(flooded)));
      flooded.forEach((flood) => void flood.catch(() => {}));
      const stream = await ask(connection);
      const { stream: accepted } = await server.request();
      await within(accepted.write(ESTABLISHED));
      await within(accepted.write(bytes("not held up")));
      assert.equal(await readTextExactly(stream, RESPONSE.length + 11), `${RESPONSE}not held up`);
    });

    test("is an extended CONNECT where the head asks for an upgrade, if the server knows it", async (net) => {
      const ENABLE_CONNECT_PROTOCOL = 8;
      const upgrade = bytes("GET /path HTTP/1.1\r\nHost: a.test\r\nConnection: Upgrade\r\nUpgrade: connect-udp\r\n\r\n");
      const { connection, server } = await connectTo(net, [[ENABLE_CONNECT_PROTOCOL, 1]]);
      const stream = await within(connection.openStream());
      await within(stream.write(upgrade));
      await within(server.of(HEADERS, 1));
      await server.respond(1, 200);
      const want = "HTTP/1.1 101 Switching Protocols\r\nconnection: Upgrade\r\nupgrade: connect-udp\r\n\r\n";
      assert.equal(await readTextExactly(stream, want.length), want);
      const { connection: older } = await connectTo(net);
      await netError((await older.openStream()).write(upgrade), "reset");
    });
  });

  describe("a connection to a server of HTTP/2", () => {
    test("opens no more streams than the server allows", async (net) => {
      const { connection, server } = await connectTo(net, [[MAX_CONCURRENT_STREAMS, 2]]);
      const one = await tunnel(connection, server, 1);
      await tunnel(connection, server, 3);
      await netError(connection.openStream(), "limit");
      one.reset(1);
      await within(server.code(RST_STREAM, 1));
      await tunnel(connection, server, 5);
    });

    test("says of a request that the server did not process that it may be sent again", async (net) => {
      const { connection, server } = await connectTo(net);
      const kept = await tunnel(connection, server, 1);
      const refused = await ask(connection);
      await within(server.of(HEADERS, 3));
      await server.reset(3, REFUSED_STREAM);
      await readToError(refused, "closed");
      const [before, after] = [await ask(connection), await ask(connection)];
      await within(server.of(HEADERS, 7));
      await server.goAway(5);
      await readToError(after, "closed");
      await netError(connection.openStream(), "closed");
      await server.respond(5, 200);
      assert.equal(await readTextExactly(before, RESPONSE.length), RESPONSE);
      await server.data(1, "still here", END_STREAM);
      assert.equal(await readText(kept), "still here");
    });

    test("closes after its last stream once it is released", async (net) => {
      const { connection, server } = await connectTo(net);
      const stream = await tunnel(connection, server, 1);
      connection.release();
      await netError(connection.openStream(), "closed");
      await within(stream.write(bytes("still here")));
      stream.closeWrite();
      assert.equal(await within(server.text(1)), "still here");
      await server.data(1, "", END_STREAM);
      assert.equal(await readText(stream), "");
      stream.close();
      assert.equal(await within(server.next(({ type }) => type === DATA)), undefined); // the end
    });

    test("is not made with a server that speaks something else", async (net) => {
      const { tls, authority } = await pki;
      const { port } = await listenTcp(net, { tls });
      await netError(net.connectHttp2({ host: "127.0.0.1", port, ...TIMEOUT, tls: { ca: authority.cert } }), "not-http2");
      await withRaw(async ({ serve }) => {
        for (const first of ["HTTP/1.1 400 Bad Request\r\n\r\n", "\x15\x03\x03\x00\x02\x02\x28", ""]) {
          const server = await serve();
          const connecting = net.connectHttp2({ host: "127.0.0.1", port: server.port, ...TIMEOUT });
          (await server.next()).end(first, "latin1");
          await netError(connecting, "not-http2");
        }
        const { port } = await serve(); // it says nothing
        await netError(net.connectHttp2({ host: "127.0.0.1", port, timeoutMs: 200 }), "timed-out");
      });
    });
  });
}
