// Sessions over every transport: handshakes, protocol names, stream limits, requests, close codes, dead networks.
import assert from "node:assert/strict";
import { Buffer } from "node:buffer";
import { describe } from "node:test";
import type { NetError } from "../../shared/net/errors.ts";
import type { Net } from "../../shared/net/net.ts";
import type { AgentSession, HandshakeFailure } from "../../shared/net/session.ts";
import { type Raw, watch, withRaw } from "./raw.ts";
import {
  ALPN,
  bytes,
  HEAD,
  ignore,
  isPending,
  netError,
  oneByOne,
  openPair,
  portOf,
  readExactly,
  readText,
  readTextExactly,
  readToError,
  type Sessions,
  sessionsOf,
  type Suite,
  until,
  within,
  writeToError,
} from "./support.ts";

export function sessionTests(suite: Suite): void {
  for (const sessions of sessionsOf(suite)) {
    describe(`a listener for ${sessions.name} sessions`, () => {
      listenTests(suite, sessions);
      if (sessions.kind === "quic") udpTests(suite, sessions);
      else tcpPortTests(suite, sessions);
      closeListenerTests(suite, sessions);
      if (suite.adapter.has.sockets) handshakeTests(suite, sessions);
      if (suite.adapter.has.sockets && sessions.kind === "quic") retryTests(suite, sessions);
    });
    describe(`a ${sessions.name} session`, () => {
      connectTests(suite, sessions);
      streamTests(suite, sessions);
      closeTests(suite, sessions);
      if (suite.adapter.has.sockets) lifeTests(suite, sessions);
    });
  }
}

function listenTests({ test, pki }: Suite, sessions: Sessions): void {
  test("without a host is reachable over IPv4 and IPv6, and shows IPv4 addresses as such", async (net) => {
    const { tls } = await pki;
    const listener = await sessions.listen(net, { address: ":0", tls, alpn: ALPN });
    for (const [host, remote] of [["127.0.0.1", /^127\.0\.0\.1:[0-9]+$/], ["::1", /^\[::1\]:[0-9]+$/]] as const) {
      const client = await sessions.dial(net, await pki, portOf(listener.address), { host });
      const server = await within(listener.accept());
      assert.match(server!.remote, remote);
      assert.match(client.remote, remote);
    }
  });

  test("fails at once for an address in use", async (net) => {
    const { tls } = await pki;
    const first = await sessions.listen(net, { address: "127.0.0.1:0", tls, alpn: ALPN });
    await netError(sessions.listen(net, { address: first.address, tls, alpn: ALPN }), "address-in-use");
    await netError(sessions.listen(net, { address: `:${portOf(first.address)}`, tls, alpn: ALPN }), "address-in-use");
  });

  test("fails for an invalid address", async (net) => {
    const { tls } = await pki;
    await netError(sessions.listen(net, { address: "127.0.0.1", tls, alpn: ALPN }), "invalid");
  });

  test("resolves pending and later accepts with null when it is closed", async (net) => {
    const { tls } = await pki;
    const listener = await sessions.listen(net, { address: "127.0.0.1:0", tls, alpn: ALPN });
    const waiting = [listener.accept(), listener.accept()];
    assert.ok(await isPending(Promise.race(waiting)));
    await within(listener.close(0, ""));
    assert.deepEqual(await within(Promise.all(waiting)), [null, null]);
    assert.equal(await within(listener.accept()), null);
    await within(listener.close(0, ""));
  });
}

function udpTests({ test, pki }: Suite, sessions: Sessions): void {
  test("can be probed if it does not respond: the system gives a reason or none", async (net) => {
    const { tls } = await pki;
    const ask = (port: number, timeoutMs: number) => within(net.probeUdp({ host: "127.0.0.1", port, timeoutMs }));
    const listener = await sessions.listen(net, { address: "127.0.0.1:0", tls, alpn: ALPN });
    const port = portOf(listener.address);
    assert.equal(await ask(port, 100), undefined);
    await listener.close(0, "");
    const trouble = await ask(port, 4_000);
    assert.equal(trouble?.code, "refused");
    await netError(net.probeUdp({ host: "127.0.0.1", port, timeoutMs: 100, signal: AbortSignal.abort() }), "cancelled");
  });

  test("may use the port of a TCP listener", async (net) => {
    const { tls } = await pki;
    const { address } = await net.listenTcp({ address: "127.0.0.1:0" });
    assert.equal((await sessions.listen(net, { address, tls, alpn: ALPN })).address, address);
  });
}

function tcpPortTests({ test, pki }: Suite, sessions: Sessions): void {
  test("cannot use the port of a TCP listener", async (net) => {
    const { tls } = await pki;
    const { address } = await net.listenTcp({ address: "127.0.0.1:0" });
    await netError(sessions.listen(net, { address, tls, alpn: ALPN }), "address-in-use");
  });

  test("may use the port of a QUIC listener", async (net) => {
    const { tls } = await pki;
    // a port that is free over UDP may have a connection over TCP
    for (let attempt = 1;; attempt++) {
      const { address } = await net.listenQuic({ address: "127.0.0.1:0", tls, alpn: ALPN });
      try {
        assert.equal((await sessions.listen(net, { address, tls, alpn: ALPN })).address, address);
        return;
      } catch (error) {
        if ((error as NetError).code !== "address-in-use" || attempt === 10) throw error;
      }
    }
  });
}

function retryTests({ test, pki }: Suite, sessions: Sessions): void {
  test("validates the addresses of clients by Retry from its threshold on, and serves them", async (net) => {
    await withRaw(async (raw) => {
      for (const [retryThreshold, expected] of [[0, true], [256, false]] as const) {
        const { tls } = await pki;
        const listener = await sessions.listen(net, { address: "127.0.0.1:0", tls, alpn: ALPN, retryThreshold });
        const relay = await raw.relay(sessions.kind, portOf(listener.address));
        let retried = false;
        relay.onReply = (datagram) => retried ||= (datagram[0]! & 0xf0) === 0xf0; // RFC 9000 §17.2.5
        const [client, server] = await Promise.all([sessions.dial(net, await pki, relay.port), within(listener.accept())]);
        const { a, b } = await openPair(client, server!);
        await within(a.write(bytes("validated")));
        assert.equal(await readTextExactly(b, 9), "validated");
        assert.equal(retried, expected);
      }
    });
  });
}

function closeListenerTests({ test, pki }: Suite, sessions: Sessions): void {
  test("sends every peer the code and the reason when it is closed, and resolves after that", async (net) => {
    const { listener, port, client, server } = await sessions.pair(net, await pki);
    const [second, accepted] = await Promise.all([sessions.dial(net, await pki, port), within(listener.accept())]);
    await within(listener.close(17, "going home"));
    for (const connection of [client, second]) {
      assert.deepEqual(await within(connection.closed, "the peer was not told", 1_500), {
        code: 17,
        reason: "going home",
        remote: true,
        cause: "application",
      });
    }
    for (const connection of [server, accepted!]) {
      assert.deepEqual(await within(connection.closed), { code: 17, reason: "going home", remote: false, cause: "application" });
    }
  });

  test("frees its address when it is closed", async (net) => {
    const { tls } = await pki;
    const { listener, client, server } = await sessions.pair(net, await pki);
    await openPair(client, server); // streams of it may still be open
    await within(listener.close(0, ""));
    const again = await sessions.listen(net, { address: listener.address, tls, alpn: ALPN });
    assert.equal(again.address, listener.address);
    await Promise.all([sessions.dial(net, await pki, portOf(again.address)), within(again.accept())]);
  });

  test("refuses new connections at once after stopAccepting, and keeps open ones", async (net) => {
    const { listener, port, client, server } = await sessions.pair(net, await pki);
    listener.stopAccepting();
    const error = await netError(sessions.dial(net, await pki, port), "refused");
    assert.equal(error.remote, true);
    assert.equal(await within(listener.accept()), null);
    const { a, b } = await openPair(client, server);
    await within(a.write(bytes("goes on")));
    assert.equal(await readTextExactly(b, 7), "goes on");
    await within(listener.close(4, "late"));
    assert.equal((await within(client.closed)).code, 4);
  });
}

function handshakeTests({ test, pki, adapter }: Suite, sessions: Sessions): void {
  test("takes other settings for new handshakes, and open sessions go on", async (net) => {
    const { listener, port, client, server } = await sessions.pair(net, await pki);
    listener.configure({ transport: { maxPeerStreams: 1 }, maxPendingHandshakes: 0 });
    if (adapter.has.sockets) await netError(sessions.dial(net, await pki, port), "refused", "reset", "closed");
    listener.configure({ transport: { maxPeerStreams: 1 } });
    const [other] = await Promise.all([sessions.dial(net, await pki, port), within(listener.accept())]);
    if (adapter.has.sockets) assert.equal(other.peerCredit()?.streams, 1);
    const { a, b } = await openPair(client, server);
    await within(a.write(bytes("goes on")));
    assert.equal(await readTextExactly(b, 7), "goes on");
  });

  test("serves the next client while 1,000 handshakes never finish", async (net) => {
    await withRaw(async (raw) => {
      const { tls } = await pki;
      const listener = await sessions.listen(net, { address: "127.0.0.1:0", tls, alpn: ALPN });
      const port = portOf(listener.address);
      const relay = await raw.relay(sessions.kind, port);
      relay.pass.toClient = false;
      const { authority } = await pki;
      const dial = () =>
        sessions.connect(net, { host: "127.0.0.1", port: relay.port, tls: { ca: authority.cert }, alpn: ALPN, timeoutMs: 30_000 });
      const controllers = Array.from({ length: 1_000 }, () => dial());
      ignore(...controllers);
      await until(() => relay.received >= 1_000, `only ${relay.received} handshakes were begun`, 10_000);
      await Promise.all([sessions.dial(net, await pki, port), within(listener.accept())]);
    });
  });

  test("refuses more unfinished handshakes than allowed, and accepts new ones when they have ended", async (net) => {
    await withRaw(async (raw) => {
      const { tls, authority } = await pki;
      const failures: NetError[] = [];
      const listener = await sessions.listen(net, {
        address: "127.0.0.1:0",
        tls,
        alpn: ALPN,
        maxPendingHandshakes: 3,
        handshakeTimeoutMs: 1_000,
        onHandshakeError: ({ remote, error }) => {
          assert.match(remote, /^127\.0\.0\.1:[0-9]+$/);
          failures.push(error);
        },
      });
      const accepted = listener.accept();
      const port = portOf(listener.address);
      const relays = [];
      for (let i = 0; i < 3; i++) {
        const relay = await raw.relay(sessions.kind, port); // one each: a handshake is answered with several datagrams
        relays.push(relay);
        let answered = false;
        relay.onReply = () => answered = true;
        relay.pass.toClient = false;
        ignore(sessions.connect(net, { host: "127.0.0.1", port: relay.port, tls: { ca: authority.cert }, alpn: ALPN, timeoutMs: 30_000 }));
        await until(() => answered, "the handshake was not begun");
      }
      await netError(sessions.dial(net, await pki, port), "refused");
      for (const relay of relays) relay.pass.toServer = false;
      await until(() => failures.length === 4, `${failures.length} of 4 handshakes were told to have failed`);
      assert.deepEqual(failures.map(({ code }) => code), ["limit", "timed-out", "timed-out", "timed-out"]);
      const client = await sessions.dial(net, await pki, port);
      assert.ok(await within(accepted));
      client.close(0, "");
    });
  });

  if (sessions.kind !== "tls") return;

  test("tells of junk and of a cut in a handshake, and not of a health check, which sends nothing", async (net) => {
    await withRaw(async (raw) => {
      const failures: NetError[] = [];
      const { tls } = await pki;
      const onHandshakeError = ({ error }: HandshakeFailure) => failures.push(error);
      const listener = await sessions.listen(net, { address: "127.0.0.1:0", tls, alpn: ALPN, onHandshakeError });
      ignore(listener.accept());
      const port = portOf(listener.address);
      const connect = async (sends: string) => {
        const socket = await raw.connect(port);
        const { ended } = watch(socket);
        socket.end(Buffer.from(sends, "latin1"));
        await ended;
      };
      await connect("");
      await connect("GET / HTTP/1.1\r\n\r\n");
      await connect("\x16\x03\x01\x02\x00\x01");
      await until(() => failures.length === 2, `${failures.length} failures were told instead of 2`);
      assert.deepEqual(failures.map(({ code }) => code), ["tls", "reset"]);
    });
  });
}

function connectTests({ test, pki, adapter }: Suite, sessions: Sessions): void {
  test("gives both sides the protocol and the peer's address", async (net) => {
    const { client, server, port } = await sessions.pair(net, await pki);
    assert.deepEqual([client.transport, server.transport], [sessions.kind, sessions.kind]);
    assert.equal(client.alpn, ALPN[0]);
    assert.equal(server.alpn, ALPN[0]);
    assert.equal(client.remote, `127.0.0.1:${port}`);
    assert.match(server.remote, /^127\.0\.0\.1:[1-9][0-9]*$/);
    const { a, b } = await openPair(client, server);
    assert.equal(a.remote, client.remote);
    assert.equal(b.remote, server.remote);
  });

  test("uses the listener's preferred protocol of those that both support", async (net) => {
    const { client, server } = await sessions.pair(net, await pki, { alpn: ["new", "old"] }, { alpn: ["other", "old", "new"] });
    assert.deepEqual([client.alpn, server.alpn], ["new", "new"]);
  });

  test("fails without a common protocol", async (net) => {
    const { tls } = await pki;
    const listener = await sessions.listen(net, { address: "127.0.0.1:0", tls, alpn: ["one"] });
    const accept = listener.accept();
    await netError(sessions.dial(net, await pki, portOf(listener.address), { alpn: ["two"] }), "tls");
    assert.ok(await isPending(accept));
  });

  test("fails if no program listens", async (net) => {
    const { tls } = await pki;
    const listener = await sessions.listen(net, { address: "127.0.0.1:0", tls, alpn: ALPN });
    await within(listener.close(0, ""));
    await netError(sessions.dial(net, await pki, portOf(listener.address), { timeoutMs: 300 }), "timed-out", "refused");
  });

  test("fails for an unknown name", async (net) => {
    await netError(sessions.dial(net, await pki, 443, { host: "nope.invalid" }), "unknown-host");
  });

  test("fails for an invalid port", async (net) => {
    for (const port of [0, -1, 65_536, 1.5]) await netError(sessions.dial(net, await pki, port), "invalid");
  });

  test("is cancelled before its start by a signal that is aborted already", async (net) => {
    const { tls } = await pki;
    const listener = await sessions.listen(net, { address: "127.0.0.1:0", tls, alpn: ALPN });
    const accept = listener.accept();
    await netError(sessions.dial(net, await pki, portOf(listener.address), { signal: AbortSignal.abort() }), "cancelled");
    assert.ok(await isPending(accept));
  });

  if (!adapter.has.sockets) return;

  /** A handshake of 127.0.0.1 that never ends: the network between lets nothing of the server's through but Retry (RFC 9000 §17.2.5). */
  const unfinished = async (net: Net, raw: Raw, port: number): Promise<void> => {
    const relay = await raw.relay(sessions.kind, port);
    const dropped = new Promise<void>((resolve) => {
      relay.onReply = ([first = 0]) => {
        relay.pass.toClient = (first & 0xf0) === 0xf0;
        if (!relay.pass.toClient) resolve();
      };
    });
    ignore(sessions.dial(net, await pki, relay.port, { timeoutMs: 15_000 }));
    await within(dropped);
  };

  test("is refused above the limit of pending ones per validated address, and all refusals are reported", async (net) => {
    await withRaw(async (raw) => {
      const failures: HandshakeFailure[] = [];
      const pendingHandshakesPerAddress = { max: 1, exempt: [] };
      const onHandshakeError = (failure: HandshakeFailure) => failures.push(failure);
      const options = { address: "127.0.0.1:0", alpn: ALPN, pendingHandshakesPerAddress, retryThreshold: 0, onHandshakeError };
      const listener = await sessions.listen(net, { ...options, tls: (await pki).tls });
      ignore(listener.accept());
      const port = portOf(listener.address);
      await unfinished(net, raw, port);
      for (let i = 0; i < 3; i++) await netError(sessions.dial(net, await pki, port), "refused");
      const told = () => failures.filter(({ error }) => error.code === "limit-per-address").reduce((sum, { count }) => sum + count, 0);
      await until(() => told() === 3, "three were refused");
      assert.ok(failures[0]!.remote.startsWith("127.0.0.1:"));
    });
  });

  const unhindered = [["where it is exempt", ["127.0.0.0/8"], 0], ["in another's name", [], 256]] as const;
  for (const [what, exempt, retryThreshold] of sessions.kind === "quic" ? unhindered : unhindered.slice(0, 1)) {
    test(`is not blocked by unfinished ones ${what}`, async (net) => {
      await withRaw(async (raw) => {
        const pendingHandshakesPerAddress = { max: 1, exempt };
        const options = { address: "127.0.0.1:0", alpn: ALPN, pendingHandshakesPerAddress, retryThreshold };
        const listener = await sessions.listen(net, { ...options, tls: (await pki).tls });
        const port = portOf(listener.address);
        await unfinished(net, raw, port);
        const [server, client] = await Promise.all([within(listener.accept()), sessions.dial(net, await pki, port)]);
        assert.ok(server);
        client.close(0, "");
      });
    });
  }

  test("fails after its timeout, and is cancelled at once", async (net) => {
    await withRaw(async (raw) => {
      const port = await raw.silent(sessions.kind);
      await netError(sessions.dial(net, await pki, port, { timeoutMs: 60 }), "timed-out");
      const controller = new AbortController();
      const dial = netError(sessions.dial(net, await pki, port, { timeoutMs: 60_000, signal: controller.signal }), "cancelled");
      controller.abort();
      await dial;
    });
  });
}

function streamTests({ test, pki }: Suite, sessions: Sessions): void {
  test("carries streams of either side", async (net) => {
    const { client, server } = await sessions.pair(net, await pki);
    for (const [from, to] of [[client, server], [server, client]] as const) {
      const { a, b } = await openPair(from, to);
      ignore(a.write(bytes("there")), b.write(bytes("and back")));
      a.closeWrite();
      b.closeWrite();
      assert.equal(await readText(b), "there");
      assert.equal(await readText(a), "and back");
    }
  });

  test("delivers a stream that was finished or reset before anything was written", async (net) => {
    const { client, server } = await sessions.pair(net, await pki);
    const finished = await within(client.openStream());
    finished.closeWrite();
    const first = await within(server.acceptStream());
    assert.equal(await within(first!.read()), null);
    (await within(client.openStream())).reset(8);
    const second = await within(server.acceptStream());
    assert.equal((await readToError(second!, "reset")).appCode, 8);
  });

  test("lets a side open no more streams than the other allows, and the next when one has ended", async (net) => {
    const transport = { maxPeerStreams: 2 };
    const { client, server } = await sessions.pair(net, await pki, { transport });
    const [first] = [await openPair(client, server), await openPair(client, server)];
    const third = client.openStream();
    assert.ok(await isPending(third));
    first.a.close();
    first.b.close();
    await within(third);
  });

  test("reports how many streams the peer allows", async (net) => {
    const { client, server } = await sessions.pair(net, await pki, { transport: { maxPeerStreams: 2, streamWindow: 100_000 } });
    assert.deepEqual(client.peerCredit(), { streams: 2, streamBytes: 100_000 });
    await openPair(client, server);
    assert.equal(client.peerCredit()?.streams, 1);
    client.close(0, "");
    await within(client.closed);
    assert.equal(client.peerCredit(), undefined);
  });

  test("reports a peer that allows none", async (net) => {
    const none = await sessions.pair(net, await pki, { transport: { maxPeerStreams: 0 } });
    assert.equal(none.client.peerCredit()?.streams, 0);
    const empty = await sessions.pair(net, await pki, { transport: { streamWindow: 0 } });
    assert.equal(empty.client.peerCredit()?.streamBytes, 0);
  });

  test("lets a side open exactly as many as are allowed", async (net) => {
    const { client, server } = await sessions.pair(net, await pki, { transport: { maxPeerStreams: 1_000 } });
    const opened = Array.from({ length: 1_001 }, async () => {
      const stream = await client.openStream();
      await stream.write(bytes("x"));
    });
    for (let i = 0; i < 1_000; i++) assert.ok(await within(server.acceptStream()));
    const last = server.acceptStream();
    assert.ok(await isPending(last));
    client.close(0, "");
    assert.equal((await Promise.allSettled(opened)).filter(({ status }) => status === "fulfilled").length, 1_000);
    assert.equal(await within(last), null);
  });

  test("admits the next stream however one ended", async (net) => {
    const transport = { maxPeerStreams: 1 };
    const { client, server } = await sessions.pair(net, await pki, { transport });
    for (const end of ["reset", "stop", "finish"] as const) {
      const { a, b } = await openPair(client, server);
      if (end === "reset") {
        a.reset(1);
        a.stopRead(1);
        await readToError(b, "reset");
        await writeToError(b, "stopped");
        b.close();
      } else if (end === "stop") {
        b.stopRead(1);
        b.reset(1);
        await writeToError(a, "stopped");
        await readToError(a, "reset");
        a.close();
      } else {
        a.closeWrite();
        b.closeWrite();
        assert.equal(await within(b.read()), null);
        assert.equal(await within(a.read()), null);
      }
    }
    await openPair(client, server);
  });

  test("applies the options of the first call of acceptRequests", async (net) => {
    const { client, server } = await sessions.pair(net, await pki);
    const next = oneByOne(() => server.acceptRequests({ headLimit: 40 }));
    const stream = await within(client.openStream());
    await within(stream.write(bytes(HEAD)));
    assert.equal((await next())?.head, HEAD);
    const long = await within(client.openStream());
    await within(long.write(bytes("x".repeat(41))));
    const incoming = oneByOne(() => server.acceptRequests({ headLimit: 1_000 }));
    assert.equal((await incoming())?.error?.code, "head-too-large");
  });
}

function closeTests({ test, pki }: Suite, sessions: Sessions): void {
  for (const side of ["client", "server"] as const) {
    test(`transfers code and reason of the side that closes it: the ${side}`, async (net) => {
      const pair = await sessions.pair(net, await pki);
      const [closing, told] = side === "client" ? [pair.client, pair.server] : [pair.server, pair.client];
      closing.close(409, "closing old connection");
      assert.deepEqual(await within(told.closed), { code: 409, reason: "closing old connection", remote: true, cause: "application" });
      assert.deepEqual(await within(closing.closed), {
        code: 409,
        reason: "closing old connection",
        remote: false,
        cause: "application",
      });
    });
  }

  test("transfers 256 printable characters of a reason", async (net) => {
    const { client, server } = await sessions.pair(net, await pki);
    client.close(409, `a\r\nb\x1b[31m\u202ec${"x".repeat(500)}`);
    const { code, reason } = await within(server.closed);
    assert.deepEqual({ code, reason }, { code: 409, reason: `a??b?[31m?c${"x".repeat(242)}...` });
  });

  test("transfers code and reason at once, also while much is under way", async (net) => {
    for (let round = 0; round < 10; round++) {
      const { client, server } = await sessions.pair(net, await pki);
      const { a } = await openPair(client, server);
      ignore(a.write(new Uint8Array(4 << 20)));
      client.close(409, "closing old connection");
      assert.deepEqual(await within(server.closed), { code: 409, reason: "closing old connection", remote: true, cause: "application" });
    }
  });

  test("ends with the code of the first close", async (net) => {
    const { client, server } = await sessions.pair(net, await pki);
    client.close(1, "first");
    client.close(2, "second");
    assert.deepEqual(await within(client.closed), { code: 1, reason: "first", remote: false, cause: "application" });
    assert.equal((await within(server.closed)).code, 1);
    client.close(3, "third");
  });

  test("resolves pending and later acceptStream calls with null when it is closed", async (net) => {
    const { client, server } = await sessions.pair(net, await pki);
    const waiting = [server.acceptStream(), client.acceptStream()];
    client.close(0, "");
    assert.deepEqual(await within(Promise.all(waiting)), [null, null]);
    await within(Promise.all([client.closed, server.closed]));
    assert.equal(await within(server.acceptStream()), null);
    assert.equal(await within(client.acceptRequests()), null);
  });

  test("opens no streams once it is closed", async (net) => {
    const { client, server } = await sessions.pair(net, await pki);
    client.close(0, "");
    await netError(client.openStream(), "closed");
    await netError(client.request(bytes(HEAD), { timeoutMs: 1_000 }), "closed");
    await within(server.closed);
    await netError(server.openStream(), "closed", "reset");
  });

  test("has statistics", async (net) => {
    const { client, server } = await sessions.pair(net, await pki);
    const ofQuic = ["congestionWindow", "lostPackets", "mtu", "pathChallenges", "receivedBytes", "rttMs", "sentBytes", "sentPackets"];
    const keys = sessions.kind === "quic" ? ofQuic : ["lostPackets", "receivedBytes", "rttMs", "sentBytes", "sentPackets"];
    assert.deepEqual(Object.keys(client.stats()).sort(), keys);
    client.close(0, "");
    await within(Promise.all([client.closed, server.closed]));
    assert.deepEqual(Object.values(client.stats()), keys.map(() => 0));
  });
}

function lifeTests({ test, pki }: Suite, sessions: Sessions): void {
  const TRANSPORT = { idleTimeoutMs: 400, keepAliveMs: 100 };

  test("has statistics of its traffic", async (net) => {
    const { client, server } = await sessions.pair(net, await pki);
    const { a, b } = await openPair(client, server);
    ignore(a.write(new Uint8Array(100_000)));
    await readExactly(b, 100_000);
    const stats = client.stats();
    assert.ok(stats.sentBytes > 100_000, `${stats.sentBytes} bytes sent`);
    assert.ok(stats.rttMs > 0 && stats.receivedBytes > 0);
    if (sessions.kind !== "quic") return;
    assert.ok(stats.sentPackets! > 15, `${stats.sentPackets} packets sent`);
    assert.ok(stats.congestionWindow! > 0 && stats.mtu! >= 1_200);
  });

  test("accepts its window's bytes on all unaccepted streams together, and more when it is raised", async (net) => {
    const { client, server } = await sessions.pair(net, await pki, {
      transport: { streamWindow: 128 * 1024, connectionWindow: 128 * 1024 },
    });
    const streams = [await client.openStream(), await client.openStream()];
    const writes = streams.map((stream) => stream.write(new Uint8Array(100_000)));
    ignore(...writes);
    assert.ok(await isPending(Promise.all(writes)));
    server.setConnectionWindow(0);
    await within(Promise.all(writes));
    for (const _ of streams) await readExactly((await within(server.acceptStream()))!, 100_000);
  });

  test("is kept alive while it is idle", async (net) => {
    await withRaw(async (raw) => {
      const { tls } = await pki;
      const listener = await sessions.listen(net, { address: "127.0.0.1:0", tls, alpn: ALPN, transport: TRANSPORT });
      const relay = await raw.relay(sessions.kind, portOf(listener.address));
      const [client, server] = await Promise.all([
        sessions.dial(net, await pki, relay.port, { transport: TRANSPORT }),
        within(listener.accept()),
      ]);
      const start = Date.now();
      const seen = relay.received;
      await until(() => Date.now() - start > 2 * TRANSPORT.idleTimeoutMs && relay.received > seen + 4, "no keep-alive was sent");
      const { a, b } = await openPair(client, server!);
      await within(a.write(bytes("alive")));
      assert.equal(await readTextExactly(b, 5), "alive");
    });
  });

  test("is lost on both sides, and every call on it settles, when the network becomes silent", async (net) => {
    await withRaw(async (raw) => {
      const { tls } = await pki;
      const transport = { ...TRANSPORT, maxPeerStreams: 1 };
      const listener = await sessions.listen(net, { address: "127.0.0.1:0", tls, alpn: ALPN, transport });
      const relay = await raw.relay(sessions.kind, portOf(listener.address));
      const [client, server] = await Promise.all([sessions.dial(net, await pki, relay.port, { transport }), within(listener.accept())]);
      const { a, b } = await openPair(client, server!);
      relay.pass = { toServer: false, toClient: false };
      const calls = [
        netError(a.read(), "reset"),
        netError(b.read(), "reset"),
        netError(client.openStream(), "reset"),
        netError(client.request(bytes(HEAD), { timeoutMs: 20_000 }), "reset"),
        within(server!.acceptStream()).then((stream) => assert.equal(stream, null)),
      ];
      for (const connection of [client, server!] as AgentSession[]) {
        const { cause, code } = await within(connection.closed);
        assert.deepEqual([cause, code], ["timed-out", 0]);
      }
      await Promise.all(calls);
      await netError(a.write(bytes("x")), "reset");
    });
  });
}
