// Requests of a session: each has a stream, and is answered with a response, or opens a tunnel.
import assert from "node:assert/strict";
import { describe } from "node:test";
import type { Net } from "../../shared/net/net.ts";
import type { Spliced, SpliceOptions } from "../../shared/net/relay.ts";
import type { AgentResponse, AgentSession, RequestOptions } from "../../shared/net/session.ts";
import type { Duplex } from "../../shared/net/stream.ts";
import {
  assertUsable,
  bytes,
  HEAD,
  ignore,
  type Kind,
  kindsOf,
  netError,
  oneByOne,
  openPair,
  readText,
  readTextExactly,
  readToError,
  type Sessions,
  sessionsOf,
  type Suite,
  within,
  writeToError,
} from "./support.ts";

const YES = "HTTP/1.1 200 Yes\r\n\r\n";
const NO = "HTTP/1.1 503 No\r\n\r\n";

export function requestTests(suite: Suite): void {
  for (const sessions of sessionsOf(suite)) {
    describe(`a request over ${sessions.name}`, () => responseTests(suite, sessions));
    for (const kind of kindsOf(suite)) {
      if (kind.isSession && kind.name !== sessions.name) continue; // a program relays between a session and TCP
      describe(`a tunnel over ${sessions.name} opened from ${kind.name}`, () => tunnelTests(suite, sessions, kind));
    }
  }
}

function responseTests({ test, pki }: Suite, sessions: Sessions): void {
  test("is a request on a stream of its own, and the stream that remains", async (net) => {
    const { client, server } = await sessions.pair(net, await pki);
    const asked = client.request(bytes(HEAD), { timeoutMs: 5_000 });
    const incoming = await oneByOne(() => server.acceptRequests())();
    assert.equal(incoming?.head, HEAD);
    await within(incoming.stream.write(bytes(YES)));
    const { stream, head } = await within(asked);
    assert.equal(head, YES);
    assert.equal(stream.remote, client.remote);
    ignore(stream.write(bytes("up")), incoming.stream.write(bytes("down")));
    assert.equal(await readTextExactly(incoming.stream, 2), "up");
    assert.equal(await readTextExactly(stream, 4), "down");
  });

  test("may be made 200 times at once", async (net) => {
    const { client, server } = await sessions.pair(net, await pki); // with 16 streams at a time
    const next = oneByOne(() => server.acceptRequests());
    const serve = async () => {
      for (let incoming; (incoming = await next().catch(() => null)) !== null;) {
        const { stream, head } = incoming;
        ignore(stream.write(bytes(`HTTP/1.1 200 ${head!.slice(4, 8)}\r\n\r\n`)));
        stream.close();
      }
    };
    void serve();
    const ask = async (i: number) => {
      const name = String(i).padStart(4, "0");
      const { stream, head } = await within(client.request(bytes(`GET ${name} HTTP/1.1\r\n\r\n`), { timeoutMs: 5_000 }));
      stream.close();
      assert.equal(head, `HTTP/1.1 200 ${name}\r\n\r\n`);
    };
    await Promise.all(Array.from({ length: 200 }, (_, i) => ask(i)));
  });

  test("waits for a free stream no longer than its time-out", async (net) => {
    const { client, server } = await sessions.pair(net, await pki, { transport: { maxPeerStreams: 1 } });
    const { a, b } = await openPair(client, server);
    await netError(client.request(bytes(HEAD), { timeoutMs: 60 }), "timed-out");
    a.close();
    b.close();
    const asked = client.request(bytes(HEAD), { timeoutMs: 5_000 });
    const stream = await within(server.acceptStream());
    await within(stream!.write(bytes(YES)));
    await within(asked);
  });

  test("is cancelled at once, and its stream is abandoned both ways", async (net) => {
    const { client, server } = await sessions.pair(net, await pki);
    const asked = netError(client.request(bytes(HEAD), { timeoutMs: 60_000 }), "cancelled");
    const incoming = await oneByOne(() => server.acceptRequests())();
    client.cancelRequests();
    await asked;
    await readToError(incoming!.stream, "reset");
    await writeToError(incoming!.stream, "stopped");
  });

  test("is cancelled as soon as it was begun, and the next one is not", async (net) => {
    const { client, server } = await sessions.pair(net, await pki);
    const given = netError(client.request(bytes(HEAD), { timeoutMs: 60_000 }), "cancelled");
    client.cancelRequests();
    const asked = client.request(bytes(HEAD), { timeoutMs: 5_000 });
    await given;
    await within(serveOne(server, YES, ({ head }) => head === HEAD));
    assert.equal((await within(asked)).head, YES);
  });

  test("is cancelled while it waits for a free stream", async (net) => {
    const { client, server } = await sessions.pair(net, await pki, { transport: { maxPeerStreams: 1 } });
    await openPair(client, server);
    const asked = netError(client.request(bytes(HEAD), { timeoutMs: 60_000 }), "cancelled");
    client.cancelRequests();
    await asked;
  });
}

/** Answers the first request that is fit to be answered; its stream. */
async function serveOne(
  server: AgentSession,
  answer: string,
  fits: (incoming: { head?: string }) => boolean = () => true,
): Promise<Duplex> {
  const next = oneByOne(() => server.acceptRequests());
  for (let incoming; (incoming = await next()) !== null;) {
    if (!fits(incoming)) continue;
    await incoming.stream.write(bytes(answer));
    return incoming.stream;
  }
  throw new Error("The connection is closed");
}

function tunnelTests({ test, pki }: Suite, sessions: Sessions, kind: Kind): void {
  const open = async (net: Net) => ({ ...await kind.open(net), session: await sessions.pair(net, await pki) });
  const ask = (client: AgentSession, a: Duplex, options: Partial<RequestOptions> = {}, splice?: SpliceOptions) =>
    client.openTunnel(a, bytes(HEAD), { timeoutMs: 5_000, established: bytes(YES), ...options }, splice);
  const copied = (answer: AgentResponse | Spliced) => {
    assert.ok("ended" in answer, "the answer was not taken for a yes");
    return answer.ended;
  };

  test("brings the prologue, what came with the answer, bytes both ways and their ends", async (net) => {
    const { a: left, b: a, session: { client, server } } = await open(net);
    await within(left.write(bytes("early ")));
    const asked = ask(client, a, {}, { initialDataToA: bytes("200\r\n\r\n") });
    const right = await within(serveOne(server, `${YES}banner `));
    const ended = copied(await within(asked));
    await within(Promise.all([left.write(bytes("up")), right.write(bytes("down"))]));
    right.closeWrite();
    assert.equal(await readText(left), "200\r\n\r\nbanner down");
    left.closeWrite();
    assert.equal(await readText(right), "early up");
    const { aToB, bToA, error } = await within(ended);
    assert.deepEqual([aToB, bToA, error], [8, 11, undefined]);
  });

  test("comes after the calls that were made before", async (net) => {
    const { a: left, b: a, session: { client, server } } = await open(net);
    ignore(a.write(bytes("one ")));
    const asked = ask(client, a, {}, { initialDataToA: bytes("two") });
    const right = await within(serveOne(server, YES));
    assert.equal(await readTextExactly(left, 7), "one two");
    for (const end of [left, right]) end.closeWrite();
    assert.equal((await within(copied(await within(asked)))).error, undefined);
  });

  test("gives the stream back as it was, with another answer and its stream", async (net) => {
    const { a: left, b: a, session: { client, server } } = await open(net);
    for (const answer of [NO, "HTTP/1.1 200 Yes\r\nVia: a\r\n\r\n"]) {
      const asked = ask(client, a, {}, { initialDataToA: bytes("never"), signal: new AbortController().signal });
      const right = await within(serveOne(server, `${answer}more`));
      const response = await within(asked);
      assert.ok("stream" in response, "the answer was taken for a yes");
      assert.equal(response.head, answer);
      assert.equal(await readTextExactly(response.stream, 4), "more");
      await assertUsable(response.stream, right);
      response.stream.close();
      right.close();
    }
    await assertUsable(left, a);
  });

  test("gives the stream back as it was where no answer comes", async (net) => {
    const { a: left, b: a, session: { client, server } } = await open(net);
    await netError(ask(client, a, { timeoutMs: 60 }), "timed-out");
    const asked = netError(ask(client, a, { timeoutMs: 60_000 }), "cancelled");
    client.cancelRequests();
    await asked;
    const controller = new AbortController();
    const cancelled = netError(ask(client, a, { timeoutMs: 60_000 }, { signal: controller.signal }), "cancelled");
    controller.abort();
    await cancelled;
    server.close(7, "enough");
    await within(client.closed);
    await netError(ask(client, a), "closed", "reset");
    await netError(ask(client, a, {}, { signal: AbortSignal.abort() }), "cancelled");
    await assertUsable(left, a);
  });

  test("is not cancelled with the requests once it is open, but by its signal at once, and both ends see a reset", async (net) => {
    const { a: left, b: a, session: { client, server } } = await open(net);
    const controller = new AbortController();
    const asked = ask(client, a, {}, { signal: controller.signal });
    const right = await within(serveOne(server, YES));
    const ended = copied(await within(asked));
    client.cancelRequests();
    await assertUsable(left, right);
    controller.abort();
    assert.equal((await within(ended)).error?.code, "cancelled");
    await Promise.all([readToError(left, "reset"), readToError(right, "reset")]);
  });

  for (const end of ["close", "reset"] as const) {
    test(`is ended by ${end} on the stream, and both ends see a reset`, async (net) => {
      const { a: left, b: a, session: { client, server } } = await open(net);
      const asked = ask(client, a);
      const right = await within(serveOne(server, YES));
      const ended = copied(await within(asked));
      await netError(a.read(), "closed");
      if (end === "close") a.close();
      else a.reset(5);
      assert.match((await within(ended)).error?.code ?? "", /^(cancelled|closed)$/);
      await Promise.all([readToError(left, "reset"), readToError(right, "reset")]);
    });
  }

  test("is given up when the peer of the stream is reset, at both ends, and tells so", async (net) => {
    const { a: left, b: a, session: { client, server } } = await open(net);
    const asked = netError(ask(client, a, { timeoutMs: 60_000 }), "abandoned");
    const right = (await oneByOne(() => server.acceptRequests())())!.stream;
    left.reset(77);
    left.stopRead(77);
    await asked;
    await readToError(right, "reset");
    await netError(a.read(), "reset");
  });

  test("is cancelled by its own signal without a tunnel, at both ends", async (net) => {
    const { session: { client, server } } = await open(net);
    const controller = new AbortController();
    const asked = netError(client.request(bytes(HEAD), { timeoutMs: 60_000, signal: controller.signal }), "cancelled");
    const right = (await oneByOne(() => server.acceptRequests())())!.stream;
    controller.abort();
    await asked;
    await readToError(right, "reset");
  });

  test("is refused for a stream that was closed", async (net) => {
    const { b: a, session: { client } } = await open(net);
    a.close();
    await netError(ask(client, a), "closed");
  });

  test("settles when the network is closed while it waits for an answer", async (net) => {
    const { b: a, session: { client, server } } = await open(net);
    const asked = netError(ask(client, a, { timeoutMs: 60_000 }), "closed", "cancelled", "reset", "abandoned");
    await oneByOne(() => server.acceptRequests())();
    net.close();
    await asked;
  });
}
