// How heads are read on an accepting side: where one ends, what is refused, and that nothing is lost between a head and what follows it.
import assert from "node:assert/strict";
import { Buffer } from "node:buffer";
import { describe } from "node:test";
import type { HeadOptions, Incoming } from "../../shared/net/listener.ts";
import type { Net } from "../../shared/net/net.ts";
import type { Duplex } from "../../shared/net/stream.ts";
import {
  bytes,
  dialTcp,
  HEAD,
  isPending,
  listenTcp,
  netError,
  oneByOne,
  pattern,
  readAll,
  readExactly,
  readText,
  readTextExactly,
  readToError,
  type Sessions,
  sessionsOf,
  type Suite,
  until,
  within,
} from "./support.ts";

/** An open receiver: how clients connect to it, and what arrives. */
interface OpenReceiver {
  dial(): Promise<Duplex>;
  next: () => Promise<Incoming | null>;
}

/** Something that receives heads. */
interface HeadReceiver {
  name: string;
  isSession: boolean;
  open(net: Net, options?: HeadOptions): Promise<OpenReceiver>;
}

function receiversOf(suite: Suite): HeadReceiver[] {
  const { adapter, pki } = suite;
  const tcp: HeadReceiver["open"] = async (net, options) => {
    const { port, next } = await listenTcp(net, options);
    return { dial: () => dialTcp(net, port), next };
  };
  const tls: HeadReceiver["open"] = async (net, options) => {
    const { tls, authority } = await pki;
    const { port, next } = await listenTcp(net, { ...options, tls });
    return { dial: () => dialTcp(net, port, { tls: { ca: authority.cert } }), next };
  };
  const session = (sessions: Sessions): HeadReceiver["open"] => async (net, options) => {
    const transport = { maxPeerStreams: 2_000 };
    const { client, server } = await sessions.pair(net, await pki, { transport }, { transport });
    return { dial: () => within(client.openStream()), next: oneByOne(() => server.acceptRequests(options)) };
  };
  return [
    { name: "a TCP listener", isSession: false, open: tcp },
    ...sessionsOf(suite).map((sessions) => ({ name: `a ${sessions.name} session`, isSession: true, open: session(sessions) })),
    ...(adapter.has.tls ? [{ name: "a TLS listener", isSession: false, open: tls }] : []),
  ];
}

export function headTests(suite: Suite): void {
  for (const receiver of receiversOf(suite)) {
    describe(`heads on ${receiver.name}`, () => {
      endOfHeadTests(suite, receiver);
      refusedHeadTests(suite, receiver);
      crowdTests(suite, receiver);
    });
  }
  for (const sessions of sessionsOf(suite)) responseHeadTests(suite, sessions);
}

function endOfHeadTests({ test }: Suite, receiver: HeadReceiver): void {
  const FOLLOWS = "SSH-2.0-x\r\n\r\nand more";
  const TEXT = HEAD + FOLLOWS;

  /** Sends the parts as packets of their own, and tells what came of it. */
  const send = async ({ dial, next }: OpenReceiver, parts: string[]): Promise<{ head: string | undefined; rest: string }> => {
    const client = await dial();
    for (const part of parts) await within(client.write(bytes(part)));
    client.closeWrite();
    const incoming = await next();
    assert.ok(incoming);
    assert.equal(incoming.error, undefined);
    const rest = await readText(incoming.stream);
    incoming.stream.close();
    client.close();
    return { head: incoming.head, rest };
  };

  test("are delivered up to and including the blank line, and later bytes stay in the stream", async (net) => {
    const opened = await receiver.open(net);
    assert.deepEqual(await send(opened, [TEXT]), { head: HEAD, rest: FOLLOWS });
  });

  test("are complete wherever the packets are split", async (net) => {
    const opened = await receiver.open(net);
    for (let at = 1; at < TEXT.length; at++) {
      assert.deepEqual(await send(opened, [TEXT.slice(0, at), TEXT.slice(at)]), { head: HEAD, rest: FOLLOWS }, `parted at ${at}`);
    }
  });

  test("are complete if they arrive byte by byte", async (net) => {
    const opened = await receiver.open(net);
    assert.deepEqual(await send(opened, [...TEXT]), { head: HEAD, rest: FOLLOWS });
  });

  test("lose none of many bytes that follow in the same packet", async (net) => {
    const { dial, next } = await receiver.open(net);
    const client = await dial();
    const data = pattern(1 << 20);
    const sent = client.write(new Uint8Array(Buffer.concat([bytes(HEAD), data])));
    const incoming = await next();
    assert.equal(incoming?.head, HEAD);
    assert.deepEqual(await readExactly(incoming.stream, data.length), data);
    await within(sent);
  });

  test("can be responded to, and the stream continues in both directions", async (net) => {
    const { dial, next } = await receiver.open(net);
    const client = await dial();
    await within(client.write(bytes(HEAD)));
    const { stream } = (await next())!;
    await within(stream.write(bytes("200 ")));
    assert.equal(await readTextExactly(client, 4), "200 ");
    await within(client.write(bytes("ping")));
    assert.equal(await readTextExactly(stream, 4), "ping");
  });

  test("end at LF LF and at LF CRLF too, so that the parser can refuse them", async (net) => {
    const opened = await receiver.open(net);
    assert.deepEqual(await send(opened, ["GET / HTTP/1.1\nHost: a\n\nrest"]), { head: "GET / HTTP/1.1\nHost: a\n\n", rest: "rest" });
    assert.deepEqual(await send(opened, ["GET / HTTP/1.1\nHost: a\n\r\nrest"]), {
      head: "GET / HTTP/1.1\nHost: a\n\r\n",
      rest: "rest",
    });
  });

  test("do not end at CR CR, nor at a CRLF in the middle", async (net) => {
    const { dial, next } = await receiver.open(net);
    const client = await dial();
    await within(client.write(bytes("A\r\rB\r\nC")));
    const incoming = next();
    assert.ok(await isPending(incoming));
    await within(client.write(bytes("\r\n\r\n")));
    assert.equal((await incoming)?.head, "A\r\rB\r\nC\r\n\r\n");
  });

  test("may follow empty lines", async (net) => {
    const opened = await receiver.open(net);
    assert.deepEqual(await send(opened, ["\r\n", "\r\n", TEXT]), { head: HEAD, rest: FOLLOWS });
    assert.deepEqual(await send(opened, ["\r\n\r\n" + TEXT]), { head: HEAD, rest: FOLLOWS });
  });

  test("have one character per byte, and may contain tabs and bytes above 127", async (net) => {
    const opened = await receiver.open(net);
    const odd = "GET / HTTP/1.1\r\nX:\t\x80\xe4\xff\r\n\r\n";
    assert.deepEqual(await send(opened, [odd]), { head: odd, rest: "" });
  });

  test("may be exactly as long as the limit", async (net) => {
    const opened = await receiver.open(net, { headLimit: HEAD.length });
    assert.deepEqual(await send(opened, [TEXT]), { head: HEAD, rest: FOLLOWS });
  });
}

function refusedHeadTests({ test }: Suite, receiver: HeadReceiver): void {
  /** Sends `text` and no end of it; what is wrong with it is told, can be answered, and the answer arrives. */
  const refused = async (opened: OpenReceiver, text: string, code: string): Promise<void> => {
    const client = await opened.dial();
    await within(client.write(bytes(text)));
    const incoming = await opened.next();
    assert.ok(incoming);
    assert.equal(incoming.error?.code, code);
    assert.equal(incoming.head, undefined);
    await within(incoming.stream.write(bytes("400 no\r\n\r\n")));
    incoming.stream.close();
    assert.equal(await readText(client), "400 no\r\n\r\n");
    client.close();
  };

  test("are told apart from other protocols by their first byte", async (net) => {
    const { dial, next } = await receiver.open(net);
    for (const [first, name] of [["\x16\x03\x01", /TLS/], ["\x05\x01\x00", /SOCKS 5/], ["\x04\x01\x00", /SOCKS 4/]] as const) {
      const client = await dial();
      await within(client.write(bytes(first)));
      const error = (await next())?.error;
      assert.equal(error?.code, "head-malformed");
      assert.match(error.message, name);
    }
  });

  for (const [name, character] of [["NUL", "\0"], ["a TLS handshake", "\x16"], ["DEL", "\x7f"], ["ESC", "\x1b"]] as const) {
    test(`are refused at once for a control character: ${name}`, async (net) => {
      const opened = await receiver.open(net);
      await refused(opened, character, "head-malformed");
      await refused(opened, `GET /${character}`, "head-malformed");
    });
  }

  test("are refused one byte above the limit", async (net) => {
    const opened = await receiver.open(net, { headLimit: HEAD.length - 1 });
    await refused(opened, HEAD, "head-too-large");
  });

  test("are refused at the limit without waiting for their end", async (net) => {
    const opened = await receiver.open(net, { headLimit: 100 });
    await refused(opened, "x".repeat(101), "head-too-large");
  });

  test("are refused if only empty lines arrive", async (net) => {
    const opened = await receiver.open(net, { headLimit: 100 });
    await refused(opened, "\r\n".repeat(60), "head-too-large");
  });

  test("are limited to 16 KiB by default", async (net) => {
    const opened = await receiver.open(net);
    await refused(opened, `GET / HTTP/1.1\r\nX: ${"x".repeat(16_384)}`, "head-too-large");
  });

  test("are refused when they are not complete in time", async (net) => {
    const opened = await receiver.open(net, { headTimeoutMs: 50 });
    await refused(opened, "GET / HTTP/1.1\r\n", "head-timeout");
  });

  test("are refused when the stream ends within them", async (net) => {
    const { dial, next } = await receiver.open(net);
    const client = await dial();
    await within(client.write(bytes("GET / HT")));
    client.closeWrite();
    const incoming = await next();
    assert.equal(incoming?.error?.code, "head-truncated");
    await within(incoming.stream.write(bytes("400")));
    incoming.stream.close();
    assert.equal(await readText(client), "400");
  });

  test("are reported as reset when the stream is reset within them", async (net) => {
    const { dial, next } = await receiver.open(net);
    const client = await dial();
    await within(client.write(bytes("GET / HT")));
    const incoming = next();
    assert.ok(await isPending(incoming));
    client.reset(3);
    assert.equal((await incoming)?.error?.code, "reset");
  });

  test("are not reported for a stream that ends or is reset before them", async (net) => {
    const { dial, next } = await receiver.open(net);
    const [ended, reset, closed, real] = [await dial(), await dial(), await dial(), await dial()];
    ended.closeWrite();
    reset.reset(1);
    closed.close();
    await within(real.write(bytes(HEAD)));
    assert.equal((await next())?.head, HEAD);
    assert.ok(await isPending(next()));
  });

  if (receiver.isSession) return;

  test("have a timeout if nothing arrives at all", async (net) => {
    const { dial, next } = await receiver.open(net, { headTimeoutMs: 50 });
    const client = await dial();
    const incoming = await next();
    assert.equal(incoming?.error?.code, "head-timeout");
    await within(incoming.stream.write(bytes("408")));
    incoming.stream.close();
    assert.equal(await readText(client), "408");
  });
}

function crowdTests({ test }: Suite, receiver: HeadReceiver): void {
  test("are read in parallel: one that never ends delays no other", async (net) => {
    const { dial, next } = await receiver.open(net);
    const slow = await dial();
    await within(slow.write(bytes("GET / HT")));
    for (let i = 0; i < 20; i++) {
      const client = await dial();
      await within(client.write(bytes(HEAD)));
      assert.equal((await next())?.head, HEAD);
    }
    await within(slow.write(bytes("TP/1.1\r\n\r\n")));
    assert.equal((await next())?.head, "GET / HTTP/1.1\r\n\r\n");
  });

  test("drop the oldest when one more than the limit is pending", async (net) => {
    const { dial, next } = await receiver.open(net, { maxPendingHeads: 3 });
    const clients: Duplex[] = [];
    for (let i = 0; i < 3; i++) {
      const client = await dial();
      await within(client.write(bytes(`GET /${i}`)));
      clients.push(client);
      await isPending(Promise.resolve()); // so that it is known who came first
    }
    const last = await dial();
    await within(last.write(bytes("GET /3")));
    const first = await next();
    assert.equal(first?.error?.code, "limit");
    await within(first.stream.write(bytes("503")));
    first.stream.close();
    assert.equal(await readText(clients[0]!), "503");
    for (const [i, client] of [...clients.slice(1), last].entries()) {
      await within(client.write(bytes(" HTTP/1.1\r\n\r\n")));
      assert.equal((await next())?.head, `GET /${i + 1} HTTP/1.1\r\n\r\n`);
    }
  });

  test("are all delivered when many arrive at once", async (net) => {
    const { dial, next } = await receiver.open(net);
    const clients = await Promise.all(Array.from({ length: 100 }, dial));
    await within(Promise.all(clients.map((client, i) => client.write(bytes(`GET /${i} HTTP/1.1\r\n\r\n`)))));
    const heads = new Set<string | undefined>();
    for (let i = 0; i < clients.length; i++) heads.add((await next())?.head);
    assert.equal(heads.size, clients.length);
  });
}

function responseHeadTests({ test, pki }: Suite, sessions: Sessions): void {
  const FOLLOWS = "220 mail\r\n\r\nready";
  const ANSWER = "HTTP/1.1 200 OK\r\n\r\n";

  /** A peer that responds to a request with `answer`. */
  const answering = async (net: Net, answer: (stream: Duplex) => Promise<unknown>) => {
    const { client, server } = await sessions.pair(net, await pki);
    const serve = async () => {
      const next = oneByOne(() => server.acceptRequests());
      for (let incoming; (incoming = await next().catch(() => null)) !== null;) {
        assert.equal(incoming.head, HEAD);
        await answer(incoming.stream).catch(() => {}); // the asking side has had enough
      }
    };
    void serve();
    return (options: { headLimit?: number; timeoutMs?: number } = {}) => client.request(bytes(HEAD), { timeoutMs: 5_000, ...options });
  };

  describe(`the response head of a request over ${sessions.name}`, () => {
    test("loses no bytes after it, wherever the packets are split", async (net) => {
      const text = ANSWER + FOLLOWS;
      let at = 0;
      const request = await answering(net, async (stream) => {
        await stream.write(bytes(text.slice(0, at)));
        await stream.write(bytes(text.slice(at)));
        stream.close();
      });
      for (at = 0; at <= text.length; at++) {
        const { stream, head } = await within(request());
        assert.equal(head, ANSWER);
        assert.equal(await readText(stream), FOLLOWS, `parted at ${at}`);
        stream.close();
      }
    });

    test("is complete if it arrives byte by byte", async (net) => {
      const request = await answering(net, async (stream) => {
        for (const character of ANSWER + FOLLOWS) await stream.write(bytes(character));
        stream.close();
      });
      const { stream, head } = await within(request());
      assert.equal(head, ANSWER);
      assert.equal(await readText(stream), FOLLOWS);
    });

    for (
      const [code, answer] of [
        ["head-malformed", "\x16"],
        ["head-too-large", "HTTP/1.1 200 OK\r\nX: " + "x".repeat(100)],
      ] as const
    ) {
      test(`is refused with ${code}, and the stream aborted`, async (net) => {
        const abandoned: Promise<unknown>[] = [];
        const request = await answering(net, async (stream) => {
          await stream.write(bytes(answer));
          abandoned.push(readToError(stream, "reset"));
        });
        await netError(request({ headLimit: 100 }), code);
        await until(() => abandoned.length > 0, "no request came");
        await Promise.all(abandoned);
      });
    }

    test("is refused with head-truncated when the stream ends within it, or before it", async (net) => {
      let answer = "HTTP/1.1 200";
      const request = await answering(net, async (stream) => {
        await stream.write(bytes(answer));
        stream.close();
      });
      await netError(request(), "head-truncated");
      answer = "";
      await netError(request(), "head-truncated");
    });

    test("is refused with reset and the peer's code when the stream is reset, within it or before it", async (net) => {
      let answer = "HTTP/1.1 200";
      const request = await answering(net, async (stream) => {
        await stream.write(bytes(answer));
        stream.reset(55);
      });
      assert.equal((await netError(request(), "reset")).appCode, 55);
      answer = "";
      assert.equal((await netError(request(), "reset")).appCode, 55);
    });

    test("fails with timed-out if it does not arrive, and the stream is aborted", async (net) => {
      const abandoned: Promise<unknown>[] = [];
      const request = await answering(net, (stream) => Promise.resolve(abandoned.push(readToError(stream, "reset"))));
      await netError(request({ timeoutMs: 50 }), "timed-out");
      await until(() => abandoned.length > 0, "no request came");
      await Promise.all(abandoned);
    });

    test("may contain any bytes, which are read unchanged", async (net) => {
      const data = pattern(100_000);
      const request = await answering(net, async (stream) => {
        await stream.write(new Uint8Array(Buffer.concat([bytes(ANSWER), data])));
        stream.close();
      });
      const { stream } = await within(request());
      assert.deepEqual(await readAll(stream), data);
    });
  });
}
