// The end of connections, sessions, listeners and networks: it releases promises, addresses and descriptors, and affects nothing else.
import assert from "node:assert/strict";
import { existsSync, readdirSync } from "node:fs";
import { describe } from "node:test";
import type { Net } from "../../shared/net/net.ts";
import type { AgentSession } from "../../shared/net/session.ts";
import type { Duplex } from "../../shared/net/stream.ts";
import { withRaw } from "./raw.ts";
import {
  ALPN,
  bytes,
  dialTcp,
  fill,
  HEAD,
  ignore,
  isPending,
  kindsOf,
  listenTcp,
  netError,
  openPair,
  pattern,
  portOf,
  readToError,
  type Sessions,
  sessionsOf,
  type Suite,
  until,
  within,
} from "./support.ts";

const MORE_THAN_FITS = 64 << 20;

export function lifetimeTests(suite: Suite): void {
  for (const sessions of sessionsOf(suite)) {
    describe(`the end of a ${sessions.name} session`, () => endOfSessionTests(suite, sessions));
    describe(`the end of a network with ${sessions.name} sessions`, () => endOfNetworkTests(suite, sessions));
    if (suite.adapter.has.sockets) describe(`descriptors with ${sessions.name} sessions`, () => descriptorTests(suite, sessions));
  }
}

/** Calls of every kind that wait on one side of a connection for the other. */
async function callsOf(net: Net, here: AgentSession, there: AgentSession): Promise<Map<string, Promise<unknown>>> {
  const reading = await openPair(here, there);
  const writing = await openPair(here, there);
  const copied = await openPair(here, there);
  const other = await openPair(here, there);
  const asking = here.request(bytes(HEAD), { timeoutMs: 60_000 });
  ignore(asking);
  const incoming = await within(there.acceptStream());
  assert.ok(incoming);
  const { waiting } = await fill(writing.a, pattern(64 * 1024), MORE_THAN_FITS);
  const calls = new Map<string, Promise<unknown>>([
    ["read", reading.a.read()],
    ["write", waiting],
    ["openStream", here.openStream()],
    ["request", asking],
    ["request that waits for a stream", here.request(bytes(HEAD), { timeoutMs: 60_000 })],
    ["acceptStream", here.acceptStream()],
    ["splice", net.splice(copied.a, other.a)],
    ["closed", here.closed],
  ]);
  ignore(...calls.values());
  return calls;
}

const TRANSPORT = { streamWindow: 128 * 1024, maxPeerStreams: 5 };

async function outcomesOf(calls: Map<string, Promise<unknown>>): Promise<Record<string, unknown>> {
  const outcomes: Record<string, unknown> = {};
  for (const [name, call] of calls) {
    outcomes[name] = await within(call, `${name} did not settle`).catch((error) => {
      if (!(error instanceof Error) || error.name !== "NetError") throw error;
      return (error as Error & { code: string }).code;
    });
  }
  return outcomes;
}

function endOfSessionTests({ test, pki }: Suite, sessions: Sessions): void {
  for (const closing of ["the far side", "this side"] as const) {
    test(`settles every pending call when ${closing} closes it`, async (net) => {
      const { client, server } = await sessions.pair(net, await pki, { transport: TRANSPORT }, { transport: TRANSPORT });
      const calls = await callsOf(net, client, server);
      assert.ok(await isPending(Promise.race(calls.values())));
      (closing === "this side" ? client : server).close(19, "enough");
      const fault = closing === "this side" ? "closed" : "reset";
      const { splice, closed, acceptStream, ...others } = await outcomesOf(calls);
      assert.equal(acceptStream, null);
      assert.equal((closed as { code: number }).code, 19);
      assert.equal((splice as { error?: { code: string } }).error?.code, fault);
      for (const [name, outcome] of Object.entries(others)) assert.equal(outcome, fault, name);
    });
  }

  test("gives each of its streams the code", async (net) => {
    const { client, server } = await sessions.pair(net, await pki);
    const streams: Duplex[] = [];
    for (let i = 0; i < 3; i++) streams.push((await openPair(client, server)).b);
    client.close(21, "enough");
    for (const stream of streams) {
      const error = await readToError(stream, "reset");
      assert.deepEqual([error.appCode, error.remote], [21, true]);
    }
  });

  test("does not affect other connections of the listener", async (net) => {
    const { listener, port, client, server } = await sessions.pair(net, await pki);
    const [second, accepted] = await Promise.all([sessions.dial(net, await pki, port), within(listener.accept())]);
    server.close(1, "");
    await within(client.closed);
    const { a, b } = await openPair(second, accepted!);
    await within(a.write(bytes("x")));
    assert.deepEqual(await within(b.read()), bytes("x"));
  });

  test("resolves acceptRequests with null", async (net) => {
    const { client, server } = await sessions.pair(net, await pki);
    const waiting = [server.acceptRequests(), server.acceptRequests()];
    client.close(0, "");
    assert.deepEqual(await within(Promise.all(waiting)), [null, null]);
  });
}

function endOfNetworkTests(suite: Suite, sessions: Sessions): void {
  const { test, pki, adapter } = suite;

  test("settles every pending call", async (net) => {
    const all = await pki;
    const { client, server, listener } = await sessions.pair(net, all, { transport: TRANSPORT }, { transport: TRANSPORT });
    const tcp = await listenTcp(net);
    const [dialled, { stream }] = await Promise.all([
      dialTcp(net, tcp.port).then(async (stream) => {
        await stream.write(bytes(HEAD));
        return stream;
      }),
      tcp.request(),
    ]);
    const { waiting } = await fill(dialled, pattern(64 * 1024), MORE_THAN_FITS);
    const calls = await callsOf(net, client, server);
    const nulls = [tcp.listener.accept(), listener.accept(), server.acceptStream(), calls.get("acceptStream")!];
    const closed = calls.get("closed")!;
    const copy = calls.get("splice")!;
    for (const name of ["acceptStream", "closed", "splice"]) calls.delete(name);
    const others = [...calls.values(), waiting, stream.write(new Uint8Array(MORE_THAN_FITS))];
    ignore(...others);
    net.close();
    assert.deepEqual(await within(Promise.all(nulls)), [null, null, null, null]);
    await within(closed);
    assert.ok((await within(copy) as { error?: unknown }).error);
    for (const call of others) await netError(call, "closed", "reset", "cancelled");
  });

  test("makes every later call fail", async (net) => {
    const { tls } = await pki;
    net.close();
    await netError(net.listenTcp({ address: "127.0.0.1:0" }), "closed");
    await netError(sessions.listen(net, { address: "127.0.0.1:0", tls, alpn: ALPN }), "closed");
    await netError(net.connectTcp({ host: "127.0.0.1", port: 9, timeoutMs: 1_000 }), "closed");
    await netError(sessions.dial(net, await pki, 9), "closed");
    net.close();
  });

  test("cuts open connections: the peer sees a reset", async (net) => {
    for (const kind of kindsOf(suite)) {
      const inner = adapter.create();
      const { a } = await kind.open(inner);
      const read = netError(a.read(), "closed", "reset");
      inner.close();
      await read;
    }
    net.close();
  });

  if (!adapter.has.sockets) return;

  test("settles calls that wait for the peer", async (net) => {
    await withRaw(async (raw) => {
      const silent = await raw.serve();
      const port = await raw.silent(sessions.kind);
      const tls = { insecureSkipVerify: true };
      const calls = [
        net.connectTcp({ host: "127.0.0.1", port: silent.port, tls, timeoutMs: 60_000 }),
        net.connectTcp({ host: "127.0.0.1", port: silent.port, tls, timeoutMs: 60_000, signal: new AbortController().signal }),
        sessions.connect(net, { host: "127.0.0.1", port, tls, alpn: ALPN, timeoutMs: 60_000 }),
        sessions.connect(net, { host: "127.0.0.1", port, tls, alpn: ALPN, timeoutMs: 60_000, signal: new AbortController().signal }),
      ];
      ignore(...calls);
      await silent.next();
      net.close();
      for (const call of calls) await netError(call, "closed", "cancelled");
    });
  });

  test("never rejects a connection's closed promise, also if it arrives while everything is closed", async (net) => {
    const all = await pki;
    for (let i = 0; i < 16; i++) {
      const inner = adapter.create();
      const listener = await sessions.listen(inner, { address: "127.0.0.1:0", tls: all.tls, alpn: ALPN });
      const arriving = [
        listener.accept(),
        sessions.connect(inner, {
          host: "127.0.0.1",
          port: portOf(listener.address),
          tls: { ca: all.authority.cert },
          alpn: ALPN,
          timeoutMs: 5_000,
          signal: new AbortController().signal,
        }),
      ];
      const ends = arriving.map((call) => call.then((connection) => connection?.closed, () => undefined));
      ignore(...ends);
      // JavaScript stands still while the handshake goes on: what it brings is told after the close
      Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, i * 2);
      inner.close();
      await within(Promise.all(ends));
    }
    net.close();
  });

  test("does not affect another network", async (net) => {
    const other = adapter.create();
    try {
      const { port, request } = await listenTcp(other);
      const client = await dialTcp(net, port);
      await within(client.write(bytes(HEAD)));
      const { stream } = await request();
      adapter.create().close();
      await within(client.write(bytes("x")));
      assert.deepEqual(await within(stream.read()), bytes("x"));
      net.close();
      await readToError(stream, "reset");
      const again = await listenTcp(other);
      await within((await dialTcp(other, again.port)).write(bytes(HEAD)));
      assert.equal((await again.request()).head, HEAD);
    } finally {
      other.close();
    }
  });
}

function descriptorTests({ test, pki, adapter }: Suite, sessions: Sessions): void {
  const DESCRIPTORS = "/proc/self/fd";
  if (!existsSync(DESCRIPTORS)) return; // only Linux shows them as files
  const count = () => readdirSync(DESCRIPTORS).length;

  /** Whether as many are open after `body` as before it. */
  const returned = async (body: () => Promise<void>): Promise<void> => {
    await body(); // what is made once and kept
    const before = count();
    await body();
    await until(() => count() <= before, `${count()} descriptors are open instead of ${before}`, 8_000);
  };

  test("are released when streams are closed or reset, or their peers have gone", async (net) => {
    await returned(async () => {
      const { listener, port, request } = await listenTcp(net);
      for (const end of ["close", "reset", "finish", "peer reset"] as const) {
        for (let i = 0; i < 10; i++) {
          const client = await dialTcp(net, port);
          await within(client.write(bytes(HEAD)));
          const { stream } = await request();
          if (end === "reset") client.reset(1);
          if (end === "finish") client.closeWrite();
          if (end === "peer reset") stream.reset(1);
          client.close();
          stream.close();
        }
      }
      listener.close();
    });
  });

  test("are released when relays have ended, cleanly or not", async (net) => {
    await returned(async () => {
      const { listener, port, request } = await listenTcp(net);
      const done: Promise<unknown>[] = [];
      for (let i = 0; i < 20; i++) {
        const [left, right] = [await dialTcp(net, port), await dialTcp(net, port)];
        await within(Promise.all([left.write(bytes(HEAD)), right.write(bytes(HEAD))]));
        done.push(net.splice((await request()).stream, (await request()).stream));
        if (i % 2 === 0) left.reset(1);
        else left.closeWrite(), right.closeWrite();
        if (i % 2 === 0) await readToError(right, "reset");
        left.close();
        right.close();
      }
      await within(Promise.all(done));
      listener.close();
    });
  });

  test("are released when sessions and their listeners are closed by either side", async (net) => {
    const all = await pki;
    await returned(async () => {
      for (const closing of ["client", "server", "listener"] as const) {
        const { listener, ...pair } = await sessions.pair(net, all);
        for (let i = 0; i < 5; i++) {
          const { a, b } = await openPair(pair.client, pair.server);
          a.close();
          b.close();
        }
        if (closing !== "listener") pair[closing].close(1, "");
        await within(listener.close(0, ""));
        await within(Promise.all([pair.client.closed, pair.server.closed]));
      }
    });
  });

  test("are released when connections have failed or were cancelled", async (net) => {
    await withRaw(async (raw) => {
      const silent = await raw.serve();
      const port = await raw.silent(sessions.kind);
      const tls = { insecureSkipVerify: true };
      await returned(async () => {
        await netError(net.connectTcp({ host: "127.0.0.1", port: silent.port, tls, timeoutMs: 20 }), "timed-out");
        (await silent.next()).destroy();
        await netError(sessions.connect(net, { host: "127.0.0.1", port, tls, alpn: ALPN, timeoutMs: 20 }), "timed-out");
        const controller = new AbortController();
        const { signal } = controller;
        const dial = netError(sessions.connect(net, { host: "127.0.0.1", port, tls, alpn: ALPN, timeoutMs: 60_000, signal }), "cancelled");
        controller.abort();
        await dial;
      });
    });
  });

  test("are released when the network is closed with everything open", async (net) => {
    const all = await pki;
    net.close();
    await returned(async () => {
      const inner = adapter.create();
      const { port, request } = await listenTcp(inner);
      for (let i = 0; i < 10; i++) {
        await within((await dialTcp(inner, port)).write(bytes(HEAD)));
        await request();
      }
      const { client, server } = await sessions.pair(inner, all);
      await openPair(client, server); // still held
      inner.close();
      await within(Promise.all([client.closed, server.closed]));
    });
  });
}
