// TCP listeners and connections: addresses, the ways a connection cannot be made, and what a peer outside sees of ends and resets.
import assert from "node:assert/strict";
import { lookup } from "node:dns/promises";
import { once } from "node:events";
import { connect as connectRaw } from "node:net";
import { describe } from "node:test";
import { connect as connectTls } from "node:tls";
import { NetError, type NetErrorCode } from "../../shared/net/errors.ts";
import type { Net } from "../../shared/net/net.ts";
import { watch, withRaw } from "./raw.ts";
import {
  bytes,
  checkEcho,
  dialTcp,
  echo,
  HEAD,
  ignore,
  isPending,
  listenTcp,
  netError,
  oneByOne,
  portOf,
  readExactly,
  readText,
  readTextExactly,
  readToError,
  type Suite,
  until,
  within,
} from "./support.ts";

/** A header of version 2 for 192.0.2.1:5000, with one of the things that balancers add. */
const V2_HEADER = Uint8Array.from([
  ...[0x0d, 0x0a, 0x0d, 0x0a, 0, 0x0d, 0x0a, 0x51, 0x55, 0x49, 0x54, 0x0a, 0x21, 0x11, 0, 16],
  ...[192, 0, 2, 1, 127, 0, 0, 1, 0x13, 0x88, 0x0c, 0x38, 0x04, 0, 1, 7],
]);
const V1_HEADER = bytes("PROXY TCP4 192.0.2.1 127.0.0.1 5000 3128\r\n");

export function tcpTests(suite: Suite): void {
  describe("a TCP listener", () => {
    listenTests(suite);
    acceptTests(suite);
    if (suite.adapter.has.sockets) proxyProtocolTests(suite);
  });
  describe("a TCP connection", () => {
    connectTests(suite);
    if (suite.adapter.has.sockets) wireTests(suite);
  });
}

function proxyProtocolTests({ test, pki }: Suite): void {
  const proxyProtocol = ["127.0.0.0/8"];

  for (const [version, header] of [[1, V1_HEADER], [2, V2_HEADER]] as const) {
    test(`takes the client's address from a header of the PROXY protocol, version ${version}, and no bytes after it`, async (net) => {
      const { port, request } = await listenTcp(net, { proxyProtocol });
      for (const step of [1, header.length + HEAD.length + 4]) {
        const all = Uint8Array.from([...header, ...bytes(HEAD), ...bytes("body")]);
        const stream = await dialTcp(net, port);
        for (let at = 0; at < all.length; at += step) await within(stream.write(all.slice(at, at + step)));
        const { stream: accepted, head } = await request();
        assert.deepEqual([head, accepted.remote], [HEAD, "192.0.2.1:5000"]);
        assert.equal(await readTextExactly(accepted, 4), "body");
      }
    });
  }

  test("accepts a header of the PROXY protocol before TLS", async (net) => {
    const { tls, authority } = await pki;
    const { port, request } = await listenTcp(net, { proxyProtocol, tls });
    const socket = connectRaw(port, "127.0.0.1");
    socket.write(V2_HEADER);
    const secure = connectTls({ socket, servername: "localhost", ca: authority.cert });
    secure.write(HEAD);
    const { stream, head } = await request();
    assert.deepEqual([head, stream.remote], [HEAD, "192.0.2.1:5000"]);
    secure.destroy();
  });

  test("keeps the load balancer's own address for its own connections", async (net) => {
    const { port, request } = await listenTcp(net, { proxyProtocol });
    for (const header of ["PROXY UNKNOWN\r\n", "\r\n\r\n\0\r\nQUIT\n\x20\0\0\0"]) {
      const stream = await dialTcp(net, port);
      await within(stream.write(bytes(header + HEAD)));
      assert.match((await request()).stream.remote, /^127\.0\.0\.1:[0-9]+$/);
    }
  });

  test("delivers a connection without a header of the PROXY protocol as malformed, and none that sends nothing", async (net) => {
    const { port, next } = await listenTcp(net, { proxyProtocol });
    (await dialTcp(net, port)).close();
    for (const text of [HEAD, "PROXY TCP4 192.0.2.1 127.0.0.1 5000\r\n"]) {
      const stream = await dialTcp(net, port);
      await within(stream.write(bytes(text)));
      const { error } = (await within(next()))!;
      assert.deepEqual([error?.code, error?.message], [
        "head-malformed",
        "The load balancer's connection does not begin with a PROXY protocol header",
      ]);
    }
    const half = await dialTcp(net, port);
    await within(half.write(V1_HEADER.slice(0, 20)));
    half.closeWrite();
    assert.equal((await within(next()))!.error?.code, "head-truncated");
  });

  test("delivers an incomplete header of the PROXY protocol after the timeout", async (net) => {
    const { port, next } = await listenTcp(net, { proxyProtocol, headTimeoutMs: 100 });
    const stream = await dialTcp(net, port);
    await within(stream.write(V2_HEADER.slice(0, 20)));
    assert.equal((await within(next()))!.error?.code, "head-timeout");
  });

  test("treats a header of the PROXY protocol from another address as a head", async (net) => {
    const { port, next } = await listenTcp(net, { proxyProtocol: ["192.0.2.0/24"] });
    const [first, second] = [await dialTcp(net, port), await dialTcp(net, port)];
    await within(first.write(Uint8Array.from([...V1_HEADER, ...bytes(HEAD)])));
    const { head, stream } = (await within(next()))!;
    assert.ok(head?.startsWith("PROXY TCP4 ") && stream.remote.startsWith("127.0.0.1:"), `${head} of ${stream.remote}`);
    await within(second.write(V2_HEADER));
    assert.equal((await within(next()))!.error?.code, "head-malformed");
  });

  test("counts heads of a load balancer's clients by their own addresses", async (net) => {
    const pendingHeadsPerAddress = { max: 1, exempt: proxyProtocol };
    const { port, next, request } = await listenTcp(net, { proxyProtocol, pendingHeadsPerAddress });
    const begin = async (client: string) => {
      const stream = await dialTcp(net, port);
      await within(stream.write(bytes(`PROXY TCP4 ${client} 127.0.0.1 5000 3128\r\n${HEAD.slice(0, 5)}`)));
      return stream;
    };
    const other = await begin("192.0.2.2");
    await begin("192.0.2.1");
    await begin("192.0.2.1");
    const { error, stream } = (await within(next()))!;
    assert.deepEqual([error?.code, stream.remote], ["limit-per-address", "192.0.2.1:5000"]);
    await within(other.write(bytes(HEAD.slice(5))));
    assert.equal((await request()).stream.remote, "192.0.2.2:5000");
  });

  test("delivers a load balancer's connection without a preamble after the PROXY header, with what follows it", async (net) => {
    const { port, next } = await listenTcp(net, { proxyProtocol, preamble: "none" });
    const client = await dialTcp(net, port);
    await within(client.write(bytes("PROXY TCP4 192.0.2.1 ")));
    const accepted = next();
    assert.ok(await isPending(accepted));
    await within(client.write(bytes("127.0.0.1 5000 3128\r\nEHLO")));
    const { stream, error } = (await within(accepted))!;
    assert.deepEqual([error, stream.remote], [undefined, "192.0.2.1:5000"]);
    assert.equal(await readTextExactly(stream, 4), "EHLO");
  });

  test("refuses invalid networks of load balancers", async (net) => {
    await netError(net.listenTcp({ address: "127.0.0.1:0", proxyProtocol: ["x"] }), "invalid");
  });
}

/** A port without a listener, from which no connection starts, so that none can connect to itself. */
const CLOSED_PORT = 1;

function listenTests({ test, adapter, pki }: Suite): void {
  test("reports its assigned port", async (net) => {
    const listener = await net.listenTcp({ address: "127.0.0.1:0" });
    assert.match(listener.address, /^127\.0\.0\.1:[1-9][0-9]*$/);
  });

  test("shows an IPv6 address in brackets", async (net) => {
    const listener = await net.listenTcp({ address: "[::1]:0" });
    assert.match(listener.address, /^\[::1\]:[1-9][0-9]*$/);
  });

  test("accepts a name, and is reachable by it", async (net) => {
    const { port, request } = await listenTcp(net, { address: "localhost:0" });
    const stream = await dialTcp(net, port, { host: "localhost" });
    await within(stream.write(bytes(HEAD)));
    assert.equal((await request()).head, HEAD);
  });

  test("without a host is reachable over IPv4 and IPv6, and shows IPv4 addresses as such", async (net) => {
    const { port, request } = await listenTcp(net, { address: ":0" });
    for (const [host, remote] of [["127.0.0.1", /^127\.0\.0\.1:[0-9]+$/], ["::1", /^\[::1\]:[0-9]+$/]] as const) {
      const stream = await dialTcp(net, port, { host });
      await within(stream.write(bytes(HEAD)));
      assert.match((await request()).stream.remote, remote);
      assert.match(stream.remote, remote);
    }
  });

  test("fails at once for an address in use", async (net) => {
    const first = await net.listenTcp({ address: "127.0.0.1:0" });
    await netError(net.listenTcp({ address: first.address }), "address-in-use");
    await netError(net.listenTcp({ address: `:${portOf(first.address)}` }), "address-in-use");
  });

  test("frees its address when it is closed, also with connections open", async (net) => {
    const { listener, port, request } = await listenTcp(net);
    const client = await dialTcp(net, port);
    await within(client.write(bytes(HEAD)));
    const { stream } = await request();
    listener.close();
    const again = await listenTcp(net, { address: `127.0.0.1:${port}` });
    await within(stream.write(bytes("goes on")));
    assert.equal(await readTextExactly(client, 7), "goes on");
    const other = await dialTcp(net, port);
    await within(other.write(bytes(HEAD)));
    assert.equal((await again.request()).head, HEAD);
  });

  for (const address of ["", "x", "localhost", "127.0.0.1", "127.0.0.1:", "127.0.0.1:http", "127.0.0.1:65536", "127.0.0.1:-1", "[::1]"]) {
    test(`fails for ${JSON.stringify(address)} as an address, which the error names`, async (net) => {
      const { message } = await netError(net.listenTcp({ address }), "invalid");
      assert.ok(message.includes(address));
    });
  }

  test("has no certificates to change without TLS", async (net) => {
    const listener = await net.listenTcp({ address: "127.0.0.1:0" });
    const { tls } = await pki;
    assert.throws(() => listener.setTls(tls), { name: "NetError", code: "invalid" });
  });

  test("takes other settings for new connections, and open ones go on", async (net) => {
    const { tls, authority } = await pki;
    const { listener, port, next } = await listenTcp(net);
    const open = async (secured: boolean) => {
      const stream = await dialTcp(net, port, secured ? { tls: { ca: authority.cert } } : {});
      await within(stream.write(bytes(HEAD)));
      const { stream: far, error } = (await next())!;
      assert.equal(error, undefined);
      void echo(far);
      return stream;
    };
    const before = await open(false);
    listener.configure({ tls });
    const after = await open(true);
    await dialTcp(net, port).then((plain) => plain.write(bytes(HEAD)));
    assert.ok(["not-tls", "tls"].includes((await next())!.error!.code));
    listener.configure({});
    await checkEcho(await open(false));
    for (const stream of [before, after]) await checkEcho(stream);
  });

  if (!adapter.has.sockets) return;

  test("fails for an address of another machine", async (net) => {
    await netError(net.listenTcp({ address: "203.0.113.1:0" }), "address-not-available");
  });

  test("fails for an unknown name to listen on", async (net) => {
    await netError(net.listenTcp({ address: "nope.invalid:0" }), "unknown-host");
  });
}

function acceptTests({ test, adapter }: Suite): void {
  test("resolves pending and later accepts with null when it is closed", async (net) => {
    const { listener } = await listenTcp(net);
    const waiting = [listener.accept(), listener.accept()];
    assert.ok(await isPending(Promise.race(waiting)));
    listener.close();
    assert.deepEqual(await within(Promise.all(waiting)), [null, null]);
    assert.equal(await within(listener.accept()), null);
    listener.close();
  });

  test("resolves each of several pending accepts", async (net) => {
    const { listener, port } = await listenTcp(net);
    const accepts = [listener.accept(), listener.accept(), listener.accept()];
    let arrived = 0;
    for (const accept of accepts) {
      const client = await dialTcp(net, port);
      await within(client.write(bytes(HEAD)));
      arrived += (await within(accept))?.length ?? 0;
    }
    assert.equal(arrived, 3);
  });

  test("drops pending heads when it is closed, and keeps delivered connections", async (net) => {
    const { listener, port, request } = await listenTcp(net);
    const [done, unfinished] = [await dialTcp(net, port), await dialTcp(net, port)];
    await within(unfinished.write(bytes("GET / HT")));
    await within(done.write(bytes(HEAD)));
    const { stream } = await request();
    listener.close();
    await readToError(unfinished, "reset");
    await within(done.write(bytes("still here")));
    done.closeWrite();
    assert.equal(await readText(stream), "still here");
  });

  test("accepts no more connections once it is closed, and frees its address with that call", async (net) => {
    let address = "127.0.0.1:0";
    for (let i = 0; i < 10; i++) {
      const listener = await net.listenTcp({ address });
      address = listener.address;
      listener.close();
      const error = await netError(net.connectTcp({ host: "127.0.0.1", port: portOf(address), timeoutMs: 1_000 }), "refused");
      assert.equal(error.remote, true);
    }
    for (let i = 0; i < 10; i++) (await net.listenTcp({ address })).close();
  });

  test("accepts no more connections after stopAccepting, and delivers the pending ones before null", async (net) => {
    const { listener, port, next } = await listenTcp(net);
    const late = await dialTcp(net, port);
    const silent = await dialTcp(net, port);
    await within(late.write(bytes(HEAD.slice(0, 9))));
    const ready = await dialTcp(net, port);
    await within(ready.write(bytes(HEAD)));
    listener.stopAccepting();
    const dial = async () => {
      const connection = await net.connectTcp({ host: "127.0.0.1", port, timeoutMs: 1_000 }).catch((error) => error as NetError);
      if (connection instanceof NetError) return connection.code;
      connection.close();
    };
    let refused;
    for (let i = 0; i < 1_000 && refused === undefined; i++) refused = await dial();
    assert.equal(refused, "refused");
    assert.equal((await next())?.head, HEAD);
    await within(late.write(bytes(HEAD.slice(9))));
    const incoming = await next();
    assert.equal(incoming?.head, HEAD);
    silent.close();
    assert.equal(await next(), null);
    await within(incoming!.stream.write(bytes("goes on")));
    assert.equal(await readTextExactly(late, 7), "goes on");
    listener.close();
  });

  test("waits at most 500 ms for connected clients after stopAccepting", async (net) => {
    const { listener, port, next } = await listenTcp(net);
    const silent = await dialTcp(net, port);
    listener.stopAccepting();
    assert.equal(await next(), null);
    silent.close();
  });

  if (!adapter.has.sockets) return;

  test("serves the next client while 1,000 connections never finish their heads", async (net) => {
    await withRaw(async (raw) => {
      const { port, request } = await listenTcp(net);
      const idle = await Promise.all(Array.from({ length: 1_000 }, () => raw.connect(port)));
      idle.forEach((socket, i) => i % 2 === 0 && socket.write("GET / HTTP/1.1\r\nHost: "));
      const client = await dialTcp(net, port);
      await within(client.write(bytes(HEAD)));
      assert.equal((await request()).head, HEAD);
    });
  });

  test("delivers the oldest of too many unfinished connections, so that their number is bounded", async (net) => {
    await withRaw(async (raw) => {
      const { next, port } = await listenTcp(net, { maxPendingHeads: 10 });
      const sockets = [];
      for (let i = 0; i < 50; i++) sockets.push(await raw.connect(port));
      for (let i = 0; i < 40; i++) {
        const incoming = await next();
        assert.equal(incoming?.error?.code, "limit");
        incoming.stream.close();
      }
      sockets.at(-1)!.write(HEAD);
      assert.equal((await next())?.head, HEAD);
    });
  });

  for (const exempt of [[], ["10.0.0.0/8"], ["127.0.0.0/8"]]) {
    test(`counts those of one address, except ${exempt.join() || "none"}`, async (net) => {
      await withRaw(async (raw) => {
        const { next, port } = await listenTcp(net, { pendingHeadsPerAddress: { max: 3, exempt } });
        const sockets = [];
        for (let i = 0; i < 10; i++) sockets.push(await raw.connect(port));
        for (let i = 0; i < (exempt[0] === "127.0.0.0/8" ? 0 : 7); i++) {
          const incoming = await next();
          assert.equal(incoming?.error?.code, "limit-per-address");
          incoming.stream.close();
        }
        sockets.at(-1)!.write(HEAD);
        assert.equal((await next())?.head, HEAD);
      });
    });
  }

  test("refuses an invalid network", async (net) => {
    const pendingHeadsPerAddress = { max: 3, exempt: ["localhost/8"] };
    const { message } = await netError(net.listenTcp({ address: "127.0.0.1:0", pendingHeadsPerAddress }), "invalid");
    assert.ok(message.includes('"localhost/8"'), message);
  });
}

function connectTests({ test, adapter }: Suite): void {
  const fails = (net: Net, host: string, port: number, code: NetErrorCode) =>
    netError(net.connectTcp({ host, port, timeoutMs: 4_000 }), code);

  test("is refused if no program listens, over IPv4 and IPv6", async (net) => {
    for (const host of ["127.0.0.1", "::1"]) {
      const error = await fails(net, host, CLOSED_PORT, "refused");
      assert.equal(error.remote, true);
      assert.ok(error.message.includes(host), error.message);
    }
  });

  test("fails for an unknown name", async (net) => {
    const error = await fails(net, "nope.invalid", 80, "unknown-host");
    assert.ok(error.message.includes("nope.invalid"), error.message);
  });

  test("can use a lookup, which returns the addresses of a name, and an address itself", async (net) => {
    const options = { timeoutMs: 4_000 };
    const loopback = await net.resolve("localhost", options);
    assert.ok(loopback.length > 0 && loopback.every((address) => ["127.0.0.1", "::1"].includes(address)), loopback.join());
    assert.deepEqual(await net.resolve("192.0.2.1", options), ["192.0.2.1"]);
    assert.deepEqual(await net.resolve("2001:db8::1", options), ["2001:db8::1"]);
    const error = await netError(net.resolve("nope.invalid", options), "unknown-host");
    assert.ok(error.message.includes("nope.invalid"), error.message);
    await netError(net.resolve("localhost", { ...options, signal: AbortSignal.abort() }), "cancelled");
  });

  test("is made to the given addresses only, whatever the addresses of the name", async (net) => {
    const { port, request } = await listenTcp(net);
    const client = await dialTcp(net, port, { host: "nope.invalid", addresses: ["::1", "127.0.0.1"] });
    await within(client.write(bytes(HEAD)));
    assert.equal((await request()).head, HEAD);
    assert.ok(client.remote.startsWith("127.0.0.1:"), client.remote);
    const to = (addresses: string[]) => net.connectTcp({ host: "127.0.0.1", port, addresses, timeoutMs: 4_000 });
    await netError(to(["::1"]), "refused");
    await netError(to([]), "unknown-host");
  });

  test("fails without a route", async (net) => {
    await fails(net, "224.0.0.1", 80, "unreachable"); // multicast: TCP never gets there, on whatever machine
  });

  test("fails for an invalid port", async (net) => {
    for (const port of [0, -1, 65_536, 1.5, NaN]) await fails(net, "127.0.0.1", port, "invalid");
  });

  test("is made to whichever address of the name has a listener", async (net) => {
    const addresses = await lookup("localhost", { all: true });
    assert.ok(addresses.length > 0);
    for (const { address, family } of addresses) {
      const { listener, port, request } = await listenTcp(net, { address: family === 6 ? `[${address}]:0` : `${address}:0` });
      const client = await dialTcp(net, port, { host: "localhost" });
      await within(client.write(bytes(HEAD)));
      assert.equal((await request()).head, HEAD);
      listener.close();
    }
  });

  test("is cancelled before its start by a signal that is aborted already", async (net) => {
    const { listener, port } = await listenTcp(net);
    await netError(net.connectTcp({ host: "127.0.0.1", port, timeoutMs: 5_000, signal: AbortSignal.abort() }), "cancelled");
    assert.ok(await isPending(listener.accept()));
  });

  test("is not affected by the signal once it is open", async (net) => {
    const { port, request } = await listenTcp(net);
    const controller = new AbortController();
    const client = await dialTcp(net, port, { signal: controller.signal });
    controller.abort();
    await within(client.write(bytes(HEAD)));
    assert.equal((await request()).head, HEAD);
  });

  if (!adapter.has.sockets) return;

  test("fails after its timeout, which includes the handshake", async (net) => {
    await withRaw(async (raw) => {
      const { port, next } = await raw.serve(); // accepts, and never answers the TLS handshake
      const dial = net.connectTcp({ host: "127.0.0.1", port, timeoutMs: 60, tls: { insecureSkipVerify: true } });
      const ended = watch(await next()).ended;
      await netError(dial, "timed-out");
      assert.match(await ended, /^(end|close|ECONNRESET)$/);
    });
  });

  test("is cancelled at once while it connects", async (net) => {
    await withRaw(async (raw) => {
      const { port, next } = await raw.serve();
      const controller = new AbortController();
      const { signal } = controller;
      const dial = netError(
        net.connectTcp({ host: "127.0.0.1", port, timeoutMs: 60_000, tls: { insecureSkipVerify: true }, signal }),
        "cancelled",
      );
      const ended = watch(await next()).ended;
      controller.abort();
      await dial;
      assert.match(await ended, /^(end|close|ECONNRESET)$/);
    });
  });
}

function wireTests({ test }: Suite): void {
  test("returns bulk data in large parts", async (net) => {
    const { port, request } = await listenTcp(net);
    const stream = await dialTcp(net, port);
    await within(stream.write(bytes(HEAD)));
    const { stream: accepted } = await request();
    const size = 8 << 20;
    ignore(stream.write(new Uint8Array(size)));
    let [received, reads] = [0, 0];
    while (received < size) {
      received += (await within(accepted.read()))!.length;
      reads++;
    }
    assert.ok(reads < size / (16 << 10), `${reads} reads`);
  });

  test("sends a FIN for closeWrite, and continues to read", async (net) => {
    await withRaw(async (raw) => {
      const { port, next } = await raw.serve();
      const stream = await dialTcp(net, port);
      const socket = await next();
      const { received, ended } = watch(socket);
      await within(stream.write(bytes("question")));
      stream.closeWrite();
      assert.equal(await ended, "end");
      assert.equal(received(), "question");
      socket.end("answer");
      assert.equal(await readText(stream), "answer");
    });
  });

  test("reads a FIN as an end, and continues to write", async (net) => {
    await withRaw(async (raw) => {
      const { port, request } = await listenTcp(net);
      const socket = await raw.connect(port);
      const { received, ended } = watch(socket);
      socket.end(HEAD + "question");
      const { stream } = await request();
      assert.equal(await readText(stream), "question");
      await within(stream.write(bytes("answer")));
      stream.close();
      assert.equal(await ended, "end");
      assert.equal(received(), "answer");
    });
  });

  test("is reset with RST by reset", async (net) => {
    await withRaw(async (raw) => {
      const { port, next } = await raw.serve();
      const stream = await dialTcp(net, port);
      const { ended } = watch(await next());
      stream.reset(1);
      assert.equal(await ended, "ECONNRESET");
    });
  });

  test("is reset with RST after closeWrite too", async (net) => {
    await withRaw(async (raw) => {
      const { port, request } = await listenTcp(net);
      const socket = await raw.connect(port);
      const { ended } = watch(socket);
      let code: string | undefined;
      socket.on("error", (error: Error & { code?: string }) => code = error.code);
      socket.write(HEAD);
      const { stream } = await request();
      stream.closeWrite();
      assert.equal(await ended, "end");
      stream.reset(1);
      await until(() => {
        if (code === undefined) socket.write("still there?"); // who has read the end hears of an RST when it writes
        return code !== undefined;
      }, "no RST came");
      assert.match(code!, /^(ECONNRESET|EPIPE)$/); // Linux says EPIPE to a socket that has read the end
    });
  });

  test("shows a peer's RST as reset to reads and writes", async (net) => {
    await withRaw(async (raw) => {
      const { port, next } = await raw.serve();
      const stream = await dialTcp(net, port);
      const read = netError(stream.read(), "reset");
      (await next()).resetAndDestroy();
      assert.equal((await read).remote, true);
      await netError(stream.read(), "reset");
      await netError(stream.write(bytes("x")), "reset", "stopped");
    });
  });

  test("delivers a complete response although the client is still sending when it is closed", async (net) => {
    await withRaw(async (raw) => {
      const { port, next } = await listenTcp(net, { headLimit: 100 });
      const socket = await raw.connect(port);
      const { received, ended } = watch(socket);
      socket.write("x".repeat(200_000));
      const incoming = await next();
      assert.equal(incoming?.error?.code, "head-too-large");
      await within(incoming.stream.write(bytes("431 too large")));
      incoming.stream.close();
      assert.equal(await ended, "end");
      assert.equal(received(), "431 too large");
    });
  });

  test("stops an external sender by its window alone", async (net) => {
    await withRaw(async (raw) => {
      const { port, request } = await listenTcp(net);
      const socket = await raw.connect(port);
      socket.write(HEAD);
      const { stream } = await request();
      const total = 32 << 20;
      socket.end(new Uint8Array(total));
      assert.ok(await isPending(once(socket, "drain")), "32 MiB were accepted without a reader");
      await readExactly(stream, total);
    });
  });

  test("is not returned for the health check of a load balancer", async (net) => {
    await withRaw(async (raw) => {
      const { listener, port } = await listenTcp(net);
      const next = oneByOne(() => listener.accept());
      (await raw.connect(port)).end();
      (await raw.connect(port)).resetAndDestroy();
      (await raw.connect(port)).write(HEAD);
      assert.equal((await next())?.head, HEAD);
      assert.ok(await isPending(next()));
    });
  });
}
