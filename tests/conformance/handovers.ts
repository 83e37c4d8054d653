// Hand-over of listening sockets to another network, as to another process: which one accepts, and that sessions go on.
import assert from "node:assert/strict";
import { mkdtemp, rm } from "node:fs/promises";
import type { RemoteInfo } from "node:dgram";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { describe } from "node:test";
import type { Channel, SocketHandover } from "../../shared/net/handover.ts";
import type { Net } from "../../shared/net/net.ts";
import { datagram, UdpServer } from "../../testing/masque.ts";
import { receive } from "./datagrams.ts";
import {
  assertUsable,
  bytes,
  dialTcp,
  HEAD,
  isPending,
  listenTcp,
  netError,
  oneByOne,
  openPair,
  portOf,
  readTextExactly,
  Sessions,
  type Suite,
  within,
} from "./support.ts";

/** Two processes, and the channel between them. */
interface Processes {
  readonly next: Net;
  readonly old: { readonly handover: SocketHandover; readonly channel: Channel };
  readonly new: { readonly handover: SocketHandover; readonly channel: Channel };
  /** Passes all sockets on. Returns how many. */
  pass(): Promise<number>;
}

export function handoverTests(suite: Suite): void {
  const { test, pki, adapter } = suite;
  if (!adapter.has.sockets) return;

  const withProcesses = (name: string, body: (net: Net, processes: Processes) => Promise<void>) =>
    test(name, async (net) => {
      const folder = await mkdtemp(join(tmpdir(), "reverse-http-handover-"));
      const next = adapter.create();
      try {
        const [from, to] = [net.handover!, next.handover!];
        const listener = await from.listen(join(folder, "s"));
        const [ours, theirs] = await within(Promise.all([to.connect(join(folder, "s")), listener.accept()]));
        assert.ok(theirs);
        listener.close();
        const pass = async () => (await within(Promise.all([to.receive(ours), from.send(theirs)])))[0];
        await body(net, { next, old: { handover: from, channel: theirs }, new: { handover: to, channel: ours }, pass });
      } finally {
        next.close();
        await rm(folder, { recursive: true });
      }
    });

  describe("a hand-over", () => {
    test("is refused where nothing listens", async (net) => {
      await netError(net.handover!.connect("/nonexistent/socket"), "refused");
    });

    withProcesses("has messages in both directions, and shows the end", async (_, { old, new: successor }) => {
      await Promise.all([old.channel.send("a"), successor.channel.send("x".repeat(64 * 1024))]);
      assert.equal(await within(successor.channel.receive()), "a");
      assert.equal((await within(old.channel.receive()))?.length, 64 * 1024);
      await netError(old.channel.send("x".repeat(64 * 1024 + 1)), "reset");
      successor.channel.close();
      assert.equal(await within(old.channel.receive()), null);
    });

    withProcesses("of TCP lets one side accept at a time, and loses no client", async (net, { next, old, new: successor, pass }) => {
      const before = await listenTcp(net);
      assert.equal(await pass(), 1);
      const after = await listenTcp(next);
      assert.equal(after.port, before.port);
      const first = await dialTcp(net, before.port);
      await first.write(bytes(HEAD));
      const open = await before.request();
      old.handover.setAccepting(false);
      const second = await dialTcp(net, before.port);
      await second.write(bytes(HEAD));
      const [none, served] = [before.next(), after.request()];
      assert.ok(await isPending(Promise.race([none.catch(() => {}), served])));
      old.handover.release();
      successor.handover.setAccepting(true);
      await assertUsable(second, (await within(served)).stream);
      before.listener.close();
      await none;
      await assertUsable(first, open.stream);
      const third = await dialTcp(net, before.port);
      await third.write(bytes(HEAD));
      await assertUsable(third, (await after.request()).stream);
      after.listener.close();
      assert.equal((await next.listenTcp({ address: after.listener.address })).address, after.listener.address, "the address is free");
    });

    withProcesses("that fails leaves the old side as it was", async (net, { next, old, pass }) => {
      const before = await listenTcp(net);
      await pass();
      await listenTcp(next);
      old.handover.setAccepting(false);
      next.close();
      old.handover.setAccepting(true);
      const client = await dialTcp(net, before.port);
      await client.write(bytes(HEAD));
      await assertUsable(client, (await before.request()).stream);
    });

    withProcesses("closes what the new side does not use", async (net, { next, new: successor, pass }) => {
      const { listener, port } = await listenTcp(net);
      await pass();
      listener.close();
      (await dialTcp(net, port)).close(); // the socket is still open
      successor.handover.dropUnused();
      await netError(next.connectTcp({ host: "127.0.0.1", port, timeoutMs: 5_000 }), "refused");
    });

    withProcesses("of UDP keeps peers, and gives new ones to the new side", async (net, { next, old, new: successor, pass }) => {
      const before = await net.listenUdp({ address: "127.0.0.1:0" });
      const accept = oneByOne(() => before.accept());
      const to = { address: "127.0.0.1", port: portOf(before.address) } as RemoteInfo;
      await using known = await UdpServer.start();
      await using other = await UdpServer.start();
      await known.send("a", to);
      const { stream } = (await accept())!;
      assert.equal(String(await receive(stream)), "a");
      assert.equal(await pass(), 1);
      const after = await next.listenUdp({ address: "127.0.0.1:0" });
      assert.equal(after.address, before.address);
      old.handover.setAccepting(false);
      successor.handover.setAccepting(true);
      before.stopAccepting();
      await known.send("b", to);
      assert.equal(String(await receive(stream)), "b");
      await stream.write(datagram("c"));
      assert.equal(String((await within(known.receive())).payload), "c");
      await other.send("d", to);
      const { stream: opened } = (await oneByOne(() => after.accept())())!;
      assert.equal(opened.remote, other.authority);
      assert.equal(String(await receive(opened)), "d");
      before.close();
      // the old side ends, then no side knows the peer, which sends lost datagrams again
      const sending = setInterval(() => void known.send("e", to), 50);
      try {
        assert.equal((await oneByOne(() => after.accept())())?.stream.remote, known.authority);
      } finally {
        clearInterval(sending);
      }
    });

    withProcesses("leaves what has stopped accepting to the old side", async (net, { old, next, pass }) => {
      const tcp = await listenTcp(net);
      const udp = await net.listenUdp({ address: "127.0.0.1:0" });
      const accept = oneByOne(() => udp.accept());
      await using peer = await UdpServer.start();
      const to = { address: "127.0.0.1", port: portOf(udp.address) } as RemoteInfo;
      await peer.send("a", to);
      const { stream } = (await accept())!;
      assert.equal(String(await receive(stream)), "a");
      const sessions = new Sessions("quic");
      const { tls } = await pki;
      const clients = adapter.create();
      try {
        const quic = await sessions.listen(net, { address: "127.0.0.1:0", tls, alpn: ["conformance"] });
        const [client, server] = await Promise.all([sessions.dial(clients, await pki, portOf(quic.address)), within(quic.accept())]);
        for (const listener of [tcp.listener, udp, quic]) listener.stopAccepting();
        await within(tcp.next()); // null: it has ended
        assert.equal(await pass(), 0);
        old.handover.setAccepting(false);
        const { a, b } = await openPair(client, server!);
        await assertUsable(a, b);
        await peer.send("b", to);
        assert.equal(String(await receive(stream)), "b");
        assert.equal((await listenTcp(next)).listener.address.split(":")[0], "127.0.0.1");
      } finally {
        clients.close();
      }
    });

    for (const kind of adapter.sessions.filter((kind) => kind !== "websocket")) {
      const sessions = new Sessions(kind);
      withProcesses(
        `of ${sessions.name} keeps sessions, and gives new ones to the new side`,
        async (net, { next, old, new: successor, pass }) => {
          const { tls } = await pki;
          const clients = adapter.create(); // another process, with sockets of its own
          try {
            const options = { address: "127.0.0.1:0", tls, alpn: ["conformance"] };
            const before = await sessions.listen(net, options);
            const port = Number(before.address.split(":").at(-1));
            const dial = async () => await sessions.dial(clients, await pki, port);
            const [first, server] = await Promise.all([dial(), within(before.accept())]);
            assert.ok(server);
            const { a, b } = await openPair(first, server);
            assert.equal(await pass(), 1);
            const after = await sessions.listen(next, options);
            assert.equal(after.address, before.address);
            old.handover.setAccepting(false);
            successor.handover.setAccepting(true);
            before.stopAccepting();
            await assertUsable(a, b);
            const [second, served] = await Promise.all([dial(), within(after.accept())]);
            assert.ok(served);
            const other = await openPair(second, served);
            await Promise.all([assertUsable(other.a, other.b), assertUsable(a, b)]);
            // and large data, in both directions
            const bulk = "0123456789abcdef".repeat(64 * 1024);
            const send = async () => {
              for (let at = 0; at < bulk.length; at += 65_536) await b.write(bytes(bulk.slice(at, at + 65_536)));
            };
            const [received] = await Promise.all([readTextExactly(a, bulk.length), send()]);
            assert.ok(received === bulk);
            const back = async () => {
              for (let at = 0; at < bulk.length; at += 65_536) await a.write(bytes(bulk.slice(at, at + 65_536)));
            };
            const [answered] = await Promise.all([readTextExactly(b, bulk.length), back()]);
            assert.ok(answered === bulk);
            await within(before.close(0, "done"));
            assert.equal((await within(first.closed)).reason, "done");
            await assertUsable(other.a, other.b);
          } finally {
            clients.close();
          }
        },
      );
    }
  });
}
