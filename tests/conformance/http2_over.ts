// HTTP/2 begun on a stream whose other end speaks it (RFC 9113 §3.3): one request in the form of HTTP/1.1, and its response.
import assert from "node:assert/strict";
import { describe } from "node:test";
import { CANCEL, DATA, END_STREAM, HEADERS, Http2Peer, INITIAL_WINDOW_SIZE, INTERNAL_ERROR, RST_STREAM } from "../../testing/http2.ts";
import type { Net } from "../../shared/net/net.ts";
import type { Duplex } from "../../shared/net/stream.ts";
import {
  assertSame,
  assertUsable,
  bytes,
  isPending,
  type Kind,
  kindsOf,
  netError,
  pattern,
  readText,
  readTextExactly,
  readToError,
  type Suite,
  within,
} from "./support.ts";

const GET = bytes("GET /path HTTP/1.1\r\nHost: a.test\r\n\r\n");
const POST = bytes("POST /path HTTP/1.1\r\nHost: a.test\r\nTransfer-Encoding: chunked\r\n\r\n");
const OK = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n";

interface Begun {
  stream: Duplex;
  server: Http2Peer;
  /** The other end of the stream that carries the connection. */
  carrier: Duplex;
}

export function http2OverTests(suite: Suite): void {
  const { adapter: { has } } = suite;
  for (const kind of kindsOf(suite)) {
    describe(`HTTP/2 over a stream of ${kind.name}`, () => {
      if (has.sockets && has.tls) exchangeTests(suite, kind);
      else absenceTests(suite, kind);
    });
  }
}

/** A network without HTTP/2. */
function absenceTests({ test }: Suite, kind: Kind): void {
  test("is refused, and the stream stays as it is", async (net) => {
    const { a, b } = await kind.open(net);
    await netError(net.openHttp2Over(a), "invalid");
    await assertUsable(a, b);
  });
}

function exchangeTests({ test }: Suite, kind: Kind): void {
  const begin = async (net: Net, settings: [number, number][] = []): Promise<Begun> => {
    const { a, b } = await kind.open(net);
    const stream = await within(net.openHttp2Over(a));
    return { stream, server: await within(Http2Peer.accept(b, settings)), carrier: b };
  };

  test("carries a request and its response, with trailers both ways", async (net) => {
    const { stream, server } = await begin(net);
    await within(stream.write(POST));
    await within(stream.write(bytes("8\r\nquestion\r\n0\r\nX-Sent: 1\r\n\r\n")));
    assert.equal((await within(server.of(HEADERS, 1)))!.flags & END_STREAM, 0);
    assert.equal(await within(server.text(1, 8)), "question");
    assert.equal((await within(server.of(HEADERS, 1)))!.flags & END_STREAM, END_STREAM); // the trailers
    await server.respond(1, 200);
    await server.data(1, "answer");
    await server.request(1, { "grpc-status": "0" }, END_STREAM);
    assert.equal(await readText(stream), `${OK}6\r\nanswer\r\n0\r\ngrpc-status: 0\r\n\r\n`);
  });

  test("passes interim responses on, before the final one", async (net) => {
    const { stream, server } = await begin(net);
    await within(stream.write(POST));
    await within(server.of(HEADERS, 1));
    await server.respond(1, 100);
    const wanted = "HTTP/1.1 100 Continue\r\n\r\n";
    assert.equal(await readTextExactly(stream, wanted.length), wanted); // it is not held back for the final one
    await server.request(1, { ":status": "103", link: "</a>; rel=preload" });
    await server.respond(1, 200, END_STREAM);
    assert.equal(
      await readText(stream),
      "HTTP/1.1 103 Early Hints\r\nlink: </a>; rel=preload\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n",
    );
  });

  test("does not wait for the other end, and takes the stream that it was given", async (net) => {
    const { a, b } = await kind.open(net);
    const stream = await within(net.openHttp2Over(a));
    await within(stream.write(GET));
    await netError(a.read(), "closed");
    const server = await within(Http2Peer.accept(b));
    assert.equal((await within(server.of(HEADERS, 1)))!.flags & END_STREAM, END_STREAM);
  });

  test("sends no more than the other end grants", async (net) => {
    const { stream, server } = await begin(net, [[INITIAL_WINDOW_SIZE, 1_000]]);
    const data = pattern(3_000);
    await within(stream.write(bytes("POST / HTTP/1.1\r\nHost: a.test\r\nContent-Length: 3000\r\n\r\n")));
    await within(server.of(HEADERS, 1));
    await within(server.settled());
    const written = stream.write(data);
    const first = await within(server.text(1, 1_000));
    assert.ok(await isPending(written));
    await server.grant(1, 2_000);
    assertSame(bytes(first + await within(server.text(1, 2_000))), data);
    await within(written);
  });

  test("is reset by either side", async (net) => {
    const own = await begin(net);
    await within(own.stream.write(POST));
    await within(own.server.of(HEADERS, 1));
    own.stream.reset(1);
    assert.equal(await within(own.server.code(RST_STREAM, 1)), CANCEL);
    const other = await begin(net);
    await within(other.stream.write(POST));
    await within(other.server.of(HEADERS, 1));
    await other.server.reset(1, INTERNAL_ERROR);
    await readToError(other.stream, "reset");
  });

  test("ends with the stream that carries it, and that ends with it", async (net) => {
    const lost = await begin(net);
    await within(lost.stream.write(GET));
    await within(lost.server.of(HEADERS, 1));
    lost.carrier.reset(1);
    lost.carrier.close();
    await readToError(lost.stream, "reset", "closed");
    const ended = await begin(net);
    await within(ended.stream.write(GET));
    await within(ended.server.of(HEADERS, 1));
    await ended.server.respond(1, 200, END_STREAM);
    assert.match(await readText(ended.stream), /^HTTP\/1\.1 200 /);
    ended.stream.close();
    assert.equal(await within(ended.server.next(({ type }) => type === DATA)), undefined); // the end
  });

  test("says so if the other end speaks something else", async (net) => {
    const { a, b } = await kind.open(net);
    const stream = await within(net.openHttp2Over(a));
    await within(stream.write(GET));
    await within(b.write(bytes("HTTP/1.1 400 Bad Request\r\n\r\n")));
    await netError(stream.read(), "not-http2");
  });

  test("does not begin on a stream that is closed", async (net) => {
    const { a } = await kind.open(net);
    a.close();
    await netError(net.openHttp2Over(a), "closed");
  });
}
