// Listeners that read no head of a request before they deliver a connection: nothing, for protocols in which the client does not send a head,
// or the server speaks first; or a ClientHello.
import assert from "node:assert/strict";
import { describe } from "node:test";
import type { Incoming, Preamble } from "../../shared/net/listener.ts";
import type { Net } from "../../shared/net/net.ts";
import type { Duplex } from "../../shared/net/stream.ts";
import type { ListenTcpOptions } from "../../shared/net/tcp.ts";
import { withRaw } from "./raw.ts";
import {
  bytes,
  dialTcp,
  HEAD,
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
} from "./support.ts";

interface Entrance {
  name: string;
  open(
    net: Net,
    options?: Partial<ListenTcpOptions>,
  ): Promise<{ port: number; dial(): Promise<Duplex>; next: () => Promise<Incoming | null>; stop(): void }>;
}

function entrancesOf({ adapter, pki }: Suite): Entrance[] {
  const tcp: Entrance["open"] = async (net, options) => {
    const { port, next, listener } = await listenTcp(net, { preamble: "none", ...options });
    return { port, dial: () => dialTcp(net, port), next, stop: () => listener.stopAccepting() };
  };
  const tls: Entrance["open"] = async (net, options) => {
    const { tls, authority } = await pki;
    const { port, next, listener } = await listenTcp(net, { preamble: "none", ...options, tls });
    return { port, dial: () => dialTcp(net, port, { tls: { ca: authority.cert } }), next, stop: () => listener.stopAccepting() };
  };
  return [{ name: "TCP", open: tcp }, ...(adapter.has.tls ? [{ name: "TLS", open: tls }] : [])];
}

export function preambleTests(suite: Suite): void {
  for (const entrance of entrancesOf(suite)) {
    describe(`a ${entrance.name} listener without a preamble`, () => deliveryTests(suite, entrance));
    for (const preamble of ["socks5", "http-or-socks5"] as const) {
      describe(`a ${entrance.name} listener with the preamble ${preamble}`, () => socksTests(suite, entrance, preamble));
    }
  }
  if (!suite.adapter.has.tls || !suite.adapter.has.sockets) return;
  describe("a TLS listener without a preamble", () => handshakeTests(suite));
  describe("a listener that reads a ClientHello", () => clientHelloTests(suite));
}

function deliveryTests({ test }: Suite, { open }: Entrance): void {
  test("delivers a connection whose client has sent nothing, and both can speak first", async (net) => {
    const { dial, next } = await open(net);
    const client = await dial();
    const { stream, head, error } = (await within(next()))!;
    assert.deepEqual([head, error], [undefined, undefined]);
    await within(stream.write(bytes("220 ready")));
    assert.equal(await readTextExactly(client, 9), "220 ready");
    await within(client.write(bytes("EHLO")));
    assert.equal(await readTextExactly(stream, 4), "EHLO");
  });

  test("does not interpret what the client sends", async (net) => {
    const { dial, next } = await open(net);
    for (const text of ["\x05\x01\x00", "\x16\x03\x01", "\r\n\r\n", HEAD, "\0"]) {
      const client = await dial();
      await within(client.write(bytes(text)));
      client.closeWrite();
      const { stream, error } = (await within(next()))!;
      assert.equal(error, undefined);
      assert.equal(await readText(stream), text);
      stream.close();
      client.close();
    }
  });

  test("loses no byte of a large amount sent before the connection is accepted", async (net) => {
    const { dial, next } = await open(net);
    const client = await dial();
    const data = pattern(1 << 20);
    const sent = client.write(data).then(() => client.closeWrite());
    const { stream } = (await within(next()))!;
    assert.deepEqual(await readAll(stream), data);
    await within(sent);
  });

  test("applies neither timeout nor limit to a connection that was delivered", async (net) => {
    const { dial, next } = await open(net, { headTimeoutMs: 200, maxPendingHeads: 1 });
    const clients = [await dial(), await dial(), await dial()];
    const streams: Duplex[] = [];
    for (const _ of clients) {
      const { stream, error } = (await within(next()))!;
      assert.equal(error, undefined);
      streams.push(stream);
    }
    assert.ok(await isPending(streams[0]!.read()));
    for (const client of clients) client.close();
  });

  test("delivers the end and the reset of a client as its stream", async (net) => {
    const { dial, next } = await open(net);
    const ended = await dial();
    const first = (await within(next()))!;
    ended.closeWrite();
    assert.equal(await readText(first.stream), "");
    const reset = await dial();
    const second = (await within(next()))!;
    reset.reset(1);
    await readToError(second.stream, "reset");
  });

  test("delivers many that come at once", async (net) => {
    const { dial, next } = await open(net);
    const clients = await Promise.all(Array.from({ length: 100 }, dial));
    await within(Promise.all(clients.map((client, i) => client.write(bytes(String.fromCharCode(i))))));
    const seen = new Set<string>();
    for (const _ of clients) seen.add(await readTextExactly((await within(next()))!.stream, 1));
    assert.equal(seen.size, clients.length);
  });

  test("delivers clients that have connected before it stops accepting", async (net) => {
    const { dial, next, stop } = await open(net);
    await dial();
    stop();
    assert.equal((await within(next()))?.error, undefined);
    assert.equal(await within(next()), null);
  });
}

const CREDENTIALS = "\x01\x04site\x06secret";
const REQUEST = "\x05\x01\x00\x03\x02db\x00\x50";

function socksTests({ adapter, test }: Suite, { name, open: listen }: Entrance, preamble: Preamble): void {
  const open = (net: Net, options: Partial<ListenTcpOptions> = {}) => listen(net, { ...options, preamble });

  test("selects the password, delivers the messages up to it, and leaves what follows in the stream", async (net) => {
    const { dial, next } = await open(net);
    for (const methods of ["\x05\x01\x02", "\x05\x03\x00\x01\x02", "\x05\x02\x02\x00"]) {
      const text = methods + CREDENTIALS + REQUEST;
      for (const parts of [[text], [...text], [methods, CREDENTIALS, REQUEST]]) {
        const client = await dial();
        for (const part of parts) await within(client.write(bytes(part)));
        client.closeWrite();
        const { stream, head, error } = (await within(next()))!;
        assert.deepEqual([head, error], [methods + CREDENTIALS, undefined]);
        assert.equal(await readText(stream), REQUEST);
        assert.equal(await readTextExactly(client, 2), "\x05\x02");
        stream.close();
        client.close();
      }
    }
  });

  test("delivers methods without a password, and selects none", async (net) => {
    const { dial, next } = await open(net);
    for (const methods of ["\x05\x00", "\x05\x01\x00", "\x05\x02\x00\x01"]) {
      const client = await dial();
      await within(client.write(bytes(methods)));
      const { stream, head } = (await within(next()))!;
      assert.equal(head, methods);
      await within(stream.write(bytes("\x05\xff")));
      stream.close();
      assert.equal(await readText(client), "\x05\xff");
      client.close();
    }
  });

  test("delivers the longest messages, and reads no credentials of another version", async (net) => {
    const { dial, next } = await open(net);
    const longest = `\x05\xff${"\x02".repeat(255)}\x01\xff${"u".repeat(255)}\xff${"p".repeat(255)}`;
    for (const [text, head] of [[longest, longest], ["\x05\x01\x02\x05abc", "\x05\x01\x02\x05"]] as const) {
      const client = await dial();
      await within(client.write(bytes(text)));
      assert.equal((await within(next()))!.head, head);
      client.close();
    }
  });

  test("reports messages that end early or come late, with what has come of them", async (net) => {
    const { dial, next } = await open(net, { headTimeoutMs: 100 });
    for (const text of ["\x05", "\x05\x02\x02", "\x05\x01\x02", "\x05\x01\x02\x01\x04si"]) {
      for (const [code, end] of [["head-truncated", true], ["head-timeout", false]] as const) {
        const client = await dial();
        await within(client.write(bytes(text)));
        if (end) client.closeWrite();
        const { head, error } = (await within(next()))!;
        assert.deepEqual([head, error?.code], [text, code]);
        client.close();
      }
    }
  });

  test("rejects the oldest handshake when there are too many", async (net) => {
    const { dial, next } = await open(net, { maxPendingHeads: 1 });
    const oldest = await dial();
    await within(oldest.write(bytes("\x05\x01\x02\x01")));
    assert.equal(await readTextExactly(oldest, 2), "\x05\x02");
    const newest = await dial();
    await within(newest.write(bytes("\x05\x01\x02" + CREDENTIALS)));
    const [rejected, accepted] = [(await within(next()))!, (await within(next()))!].sort((a) => a.error ? -1 : 1); // in either order
    assert.deepEqual([rejected!.head, rejected!.error?.code], ["\x05\x01\x02\x01", "limit"]);
    assert.deepEqual([accepted!.head, accepted!.error], ["\x05\x01\x02" + CREDENTIALS, undefined]);
  });

  if (preamble === "http-or-socks5") {
    test("delivers heads of HTTP too, whatever their parts", async (net) => {
      const { dial, next } = await open(net);
      for (const parts of [[HEAD + "more"], [...HEAD, "more"]]) {
        const client = await dial();
        for (const part of parts) await within(client.write(bytes(part)));
        client.closeWrite();
        const { stream, head } = (await within(next()))!;
        assert.equal(head, HEAD);
        assert.equal(await readText(stream), "more");
        client.close();
      }
      const client = await dial();
      await within(client.write(bytes("GET")));
      client.closeWrite();
      const { head, error } = (await within(next()))!;
      assert.deepEqual([head, error?.code], [undefined, "head-truncated"]);
    });
  } else {
    test("refuses everything else by its first byte", async (net) => {
      const { dial, next } = await open(net);
      for (const text of ["G", "\x04\x01", "\x16\x03\x01", "\x00"]) {
        const client = await dial();
        await within(client.write(bytes(text)));
        const { head, error } = (await within(next()))!;
        assert.deepEqual([head, error?.code], [undefined, "head-malformed"]);
        client.close();
      }
    });
  }

  test("drops a client that leaves without a byte", async (net) => {
    const { dial, next } = await open(net);
    (await dial()).closeWrite();
    const client = await dial();
    await within(client.write(bytes("\x05\x01\x00")));
    assert.equal((await within(next()))!.head, "\x05\x01\x00");
  });

  if (name === "TLS" && adapter.has.sockets) {
    test("tells a client without TLS from a failed handshake", async (net) => {
      const { port, next } = await open(net);
      const client = await dialTcp(net, port);
      await within(client.write(bytes("\x05\x01\x02")));
      const { error } = (await within(next()))!;
      assert.deepEqual([error?.code, error?.message], ["tls", "This is SOCKS 5, but this port accepts only TLS"]);
      client.close();
    });
  }
}

function handshakeTests({ test, pki }: Suite): void {
  test("reports a handshake that is not complete in time", async (net) => {
    const { port, next } = await listenTcp(net, { preamble: "none", tls: (await pki).tls, headTimeoutMs: 100 });
    await withRaw(async (raw) => {
      await raw.connect(port);
      assert.equal((await within(next()))?.error?.code, "head-timeout");
    });
  });

  test("rejects the oldest handshake when there are too many", async (net) => {
    const { tls, authority } = await pki;
    const { port, next } = await listenTcp(net, { preamble: "none", tls, maxPendingHeads: 2 });
    await withRaw(async (raw) => {
      for (let i = 0; i < 3; i++) await raw.connect(port);
      assert.equal((await within(next()))?.error?.code, "limit");
      const client = await dialTcp(net, port, { tls: { ca: authority.cert } });
      assert.equal((await within(next()))?.error?.code, "limit");
      assert.equal((await within(next()))?.error, undefined);
      client.close();
    });
  });

  test("distinguishes plain HTTP from a failed handshake", async (net) => {
    const { port, next } = await listenTcp(net, { preamble: "none", tls: (await pki).tls });
    for (const [text, code] of [["GET / HTTP/1.1\r\n\r\n", "not-tls"], ["\x99".repeat(16), "tls"]] as const) {
      const client = await dialTcp(net, port);
      await within(client.write(Uint8Array.from(text, (character) => character.charCodeAt(0))));
      assert.equal((await within(next()))?.error?.code, code);
      client.close();
    }
  });
}

function clientHelloTests({ test, pki }: Suite): void {
  const preamble = "client-hello" as const;

  /** The bytes that a client of this network begins with. */
  const helloFor = async (net: Net, host: string): Promise<Uint8Array> => {
    const { port, next } = await listenTcp(net, { address: "localhost:0", preamble: "none" });
    const connecting = dialTcp(net, port, { host, tls: { ca: (await pki).authority.cert } });
    const { stream } = (await within(next()))!;
    const hello = await within(stream.read());
    stream.reset(1);
    await assert.rejects(connecting);
    return hello!;
  };

  /** Splits a handshake message into records of `size` bytes. */
  const inRecords = (message: Uint8Array, size: number) => {
    const records: number[] = [];
    for (let start = 0; start < message.length; start += size) {
      const part = message.subarray(start, start + size);
      records.push(22, 3, 1, part.length >> 8, part.length & 255, ...part);
    }
    return Uint8Array.from(records);
  };

  /** Splits a message of one record into records of one byte. */
  const inTinyRecords = (hello: Uint8Array) => inRecords(hello.subarray(5), 1);

  /** Adds the extension `padding` (RFC 7685) to a ClientHello without a record header, which then has `length` bytes. */
  const padded = (hello: Uint8Array, length: number) => {
    const view = new DataView(Uint8Array.from([...hello, ...new Uint8Array(length - hello.length)]).buffer);
    const sessionAt = 4 + 2 + 32;
    const ciphersAt = sessionAt + 1 + view.getUint8(sessionAt);
    const compressionAt = ciphersAt + 2 + view.getUint16(ciphersAt);
    const extensionsAt = compressionAt + 1 + view.getUint8(compressionAt);
    view.setUint16(2, length - 4); // the first of three bytes stays 0
    view.setUint16(extensionsAt, length - extensionsAt - 2);
    view.setUint16(hello.length, 21);
    view.setUint16(hello.length + 2, length - hello.length - 4);
    return new Uint8Array(view.buffer);
  };

  test("delivers the server name and the address that the client has reached, and TLS passes unopened", async (net) => {
    const { tls, authority } = await pki;
    const front = await listenTcp(net, { preamble });
    const behind = await listenTcp(net, { preamble: "none", tls });
    const connecting = dialTcp(net, front.port, { host: "localhost", addresses: ["127.0.0.1"], tls: { ca: authority.cert } });
    const { stream, serverName, local, head } = (await within(front.next()))!;
    assert.deepEqual([serverName, local, head], ["localhost", `127.0.0.1:${front.port}`, undefined]);
    const relayed = net.splice(stream, await dialTcp(net, behind.port));
    const client = await connecting;
    const server = (await within(behind.next()))!.stream;
    await within(client.write(bytes("ping")));
    assert.equal(await readTextExactly(server, 4), "ping");
    server.close();
    assert.equal(await readText(client), "");
    client.close();
    assert.equal((await within(relayed)).error, undefined);
  });

  test("reads a ClientHello in records of one byte, and loses none of it", async (net) => {
    const { port, next } = await listenTcp(net, { preamble });
    for (const message of [await helloFor(net, "localhost"), inTinyRecords(await helloFor(net, "localhost"))]) {
      const client = await dialTcp(net, port);
      const more = bytes("and more");
      for (const part of [message.subarray(0, 1), message.subarray(1, 700), message.subarray(700)]) await within(client.write(part));
      const { stream, serverName } = (await within(next()))!;
      assert.equal(serverName, "localhost");
      await within(client.write(more));
      client.closeWrite();
      assert.deepEqual(await readAll(stream), Uint8Array.from([...message, ...more]));
      stream.close();
      client.close();
    }
  });

  test("reads a ClientHello of 15 KiB in several records, as large key shares make it", async (net) => {
    const { port, next } = await listenTcp(net, { preamble });
    const client = await dialTcp(net, port);
    await within(client.write(inRecords(padded((await helloFor(net, "localhost")).subarray(5), 15 << 10), 4_000)));
    const { serverName, error } = (await within(next()))!;
    assert.deepEqual([serverName, error], ["localhost", undefined]);
    client.close();
  });

  test("delivers no name of a client that connects to an address", async (net) => {
    const { port, next } = await listenTcp(net, { preamble });
    const client = await dialTcp(net, port);
    await within(client.write(await helloFor(net, "127.0.0.1")));
    const { serverName, error } = (await within(next()))!;
    assert.deepEqual([serverName, error], [undefined, undefined]);
  });

  test("reports what is no ClientHello, and one that is too long or late", async (net) => {
    const { port, next } = await listenTcp(net, { preamble, headTimeoutMs: 200 });
    const hello = await helloFor(net, "localhost");
    const tooLong = inTinyRecords(Uint8Array.from([0, 0, 0, 0, 0, 1, 0, 255, 255, ...new Uint8Array(3_000)]));
    for (
      const [data, code] of [
        [bytes("SSH-2.0-x"), "not-tls"],
        [Uint8Array.of(22, 3, 1, 0, 2, 99, 99, 99, 99), "tls"],
        [tooLong, "tls"],
        [hello.subarray(0, hello.length - 1), "head-timeout"],
      ] as const
    ) {
      const client = await dialTcp(net, port);
      await within(client.write(data));
      const { error, stream } = (await within(next()))!;
      assert.equal(error?.code, code);
      stream.close();
      client.close();
    }
  });

  test("rejects the oldest ClientHello when there are too many", async (net) => {
    const { port, next } = await listenTcp(net, { preamble, maxPendingHeads: 2 });
    const hello = await helloFor(net, "localhost");
    const clients: Duplex[] = [];
    for (let i = 0; i < 3; i++) {
      clients.push(await dialTcp(net, port));
      await within(clients[i]!.write(hello.subarray(0, 100)));
    }
    assert.equal((await within(next()))?.error?.code, "limit");
    await within(clients[2]!.write(hello.subarray(100)));
    assert.equal((await within(next()))?.serverName, "localhost");
    for (const client of clients) client.close();
  });

  test("cannot have TLS of its own", async (net) => {
    await netError(net.listenTcp({ address: "127.0.0.1:0", preamble, tls: (await pki).tls }), "invalid");
  });
}
