// Listeners that read nothing before they deliver a connection, for protocols in which the client does not send a head, or the server speaks
// first.
import assert from "node:assert/strict";
import { describe } from "node:test";
import type { Duplex, Incoming, ListenTcpOptions, Net } from "../../shared/net/types.ts";
import { withRaw } from "./raw.ts";
import {
  bytes,
  dialTcp,
  HEAD,
  isPending,
  listenTcp,
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
  ): Promise<{ dial(): Promise<Duplex>; next: () => Promise<Incoming | null>; stop(): void }>;
}

function entrancesOf({ adapter, pki }: Suite): Entrance[] {
  const tcp: Entrance["open"] = async (net, options) => {
    const { port, next, listener } = await listenTcp(net, { ...options, preamble: "none" });
    return { dial: () => dialTcp(net, port), next, stop: () => listener.stopAccepting() };
  };
  const tls: Entrance["open"] = async (net, options) => {
    const { tls, authority } = await pki;
    const { port, next, listener } = await listenTcp(net, { ...options, tls, preamble: "none" });
    return { dial: () => dialTcp(net, port, { tls: { ca: authority.cert } }), next, stop: () => listener.stopAccepting() };
  };
  return [{ name: "TCP", open: tcp }, ...(adapter.has.tls ? [{ name: "TLS", open: tls }] : [])];
}

export function preambleTests(suite: Suite): void {
  for (const entrance of entrancesOf(suite)) {
    describe(`a ${entrance.name} listener without a preamble`, () => deliveryTests(suite, entrance));
  }
  if (suite.adapter.has.tls && suite.adapter.has.sockets) describe("a TLS listener without a preamble", () => handshakeTests(suite));
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
