// How rarely an agent pings over QUIC on the native network, behind a NAT that forgets idle connections sooner or later.
import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { AdaptiveKeepAlive } from "../../agent/transport/keep_alive.ts";
import type { StoredKeepAlive } from "../../agent/transport/stored_transports.ts";
import type { SessionClosed } from "../../shared/net/session.ts";
import { createNativeNet } from "../../shared/net/native/binding.ts";
import { makeAuthority } from "../../testing/certificates.ts";
import { UdpRelay } from "../../testing/udp_relay.ts";
import { silentLogger } from "../../shared/log/logger.ts";
import { ALPN, until, within } from "../conformance/support.ts";

const INTERVALS = [80, 160, 320, 640];
/** Longer than the delay of an acknowledgement, 25 ms (RFC 9000 §18.2). */
const ANSWER_MS = 60;
const ADDRESS = "proxy.example:4242";

/** A session through a NAT that the test controls, whose keep-alive is chosen. `known` is what an earlier session has found out. */
async function behindNat(known?: StoredKeepAlive) {
  const authority = await makeAuthority();
  const { cert, key } = await authority.issue({ names: ["localhost"] });
  const net = createNativeNet();
  const transport = { keepAliveMs: 0, idleTimeoutMs: 3_000 };
  const listener = await net.listenQuic({ address: "127.0.0.1:0", tls: { cert, key }, alpn: ALPN, transport });
  const relay = await UdpRelay.start({ server: listener.address });
  const accepted = listener.accept();
  const [host, port] = relay.address.split(":") as [string, string];
  const session = await net.connectQuic({
    host,
    port: Number(port),
    serverName: "localhost",
    tls: { ca: authority.cert },
    alpn: ALPN,
    transport,
    timeoutMs: 5_000,
  });
  const server = (await within(accepted))!;
  const chosen: StoredKeepAlive[] = known ? [known] : [];
  /** Called with each choice, before the next ping. */
  let onChoice: (choice: StoredKeepAlive) => void = () => {};
  const stored = {
    keepAliveOf: () => chosen.at(-1),
    rememberKeepAlive: (address: string, choice: StoredKeepAlive) => {
      assert.equal(address, ADDRESS);
      chosen.push(choice);
      onChoice(choice);
    },
  };
  const start = () =>
    new AdaptiveKeepAlive({ session, address: ADDRESS, stored, log: silentLogger, intervals: INTERVALS, answerMs: ANSWER_MS });
  return {
    relay,
    session,
    server,
    chosen,
    start,
    onChoice: (act: typeof onChoice) => onChoice = act,
    [Symbol.asyncDispose]: async () => {
      session.close(0, "");
      await net.close();
      await relay[Symbol.asyncDispose]();
    },
  };
}

describe("the adaptive keep-alive", () => {
  it("ends at the longest interval where the NAT remembers the connection", async () => {
    await using nat = await behindNat();
    const keepAlive = nat.start();
    assert.equal(keepAlive.intervalMs, 80);
    await until(() => keepAlive.intervalMs === 640, "it pings too often", 15_000);
    assert.deepEqual(nat.chosen.map(({ intervalMs }) => intervalMs), [160, 320, 640]);
    const { sentPackets } = nat.session.stats();
    await until(() => nat.session.stats().sentPackets > sentPackets + 1, "it does not ping");
  });

  it("returns to the interval that the NAT permits, does not try a longer one again, and the session stays", async () => {
    await using nat = await behindNat();
    // a mapping that lasts for 200 ms
    nat.onChoice(({ intervalMs }) => intervalMs > 200 && nat.relay.rebind());
    const keepAlive = nat.start();
    await until(() => nat.chosen.some(({ failedMs }) => failedMs !== undefined), "it did not notice", 15_000);
    assert.deepEqual([keepAlive.intervalMs, nat.chosen.at(-1)!.failedMs], [160, 320]);
    const choices = nat.chosen.length;
    const { sentPackets } = nat.session.stats();
    await until(() => nat.session.stats().sentPackets > sentPackets + 4, "it does not ping");
    assert.equal(nat.chosen.length, choices);
    const [stream] = await Promise.all([
      nat.server.acceptStream(),
      nat.session.openStream().then((opened) => opened.write(new Uint8Array(1))),
    ]);
    assert.equal((await within(stream!.read()))?.length, 1);
  });

  it("begins where an earlier session ended, and tries a longer interval after a day", async () => {
    await using nat = await behindNat({ intervalMs: 320, failedMs: 640, failedAt: Date.now() - 86_400_001 });
    assert.equal(nat.start().intervalMs, 320);
    await until(() => nat.chosen.length > 1, "it is not tried", 15_000);
    assert.equal(nat.chosen[1]!.intervalMs, 640);
  });

  it("shortens the interval for the next session where the proxy becomes silent after it", async () => {
    const { promise: closed, resolve: end } = Promise.withResolvers<SessionClosed>();
    const stats = { rttMs: 1, sentBytes: 0, receivedBytes: 0, sentPackets: 0, lostPackets: 0 };
    const chosen: StoredKeepAlive[] = [{ intervalMs: 320 }];
    let unanswered = 0;
    const session = {
      closed,
      stats: () => ({ ...stats }),
      ping: () => {
        stats.sentPackets++;
        if (chosen.length === 1) stats.receivedBytes++;
        else if (++unanswered === 3) end({ code: 0, reason: "", remote: false, cause: "timed-out" });
      },
    };
    const stored = {
      keepAliveOf: () => chosen.at(-1),
      rememberKeepAlive: (_: string, choice: StoredKeepAlive) => void chosen.push(choice),
    };
    const keepAlive = new AdaptiveKeepAlive({ session, address: ADDRESS, stored, log: silentLogger, intervals: INTERVALS, answerMs: 1 });
    await until(() => chosen.length > 2, "the interval stays", 15_000);
    assert.equal(unanswered, 3);
    assert.equal(keepAlive.intervalMs, 80);
    assert.deepEqual(chosen.slice(1).map(({ intervalMs, failedMs }) => [intervalMs, failedMs]), [[640, undefined], [320, 640]]);
  });

  it("begins with the shortest interval where the address changes while the connection is in use: another network", async () => {
    await using nat = await behindNat({ intervalMs: 640 });
    nat.start();
    nat.relay.rebind();
    const stream = await nat.session.openStream();
    await until(
      () => {
        void stream.write(new Uint8Array(1)).catch(() => {}); // the session is in use all the time
        return nat.chosen.length > 1;
      },
      "the interval stays",
      15_000,
    );
    assert.deepEqual(nat.chosen[1], { intervalMs: 80 });
  });
});
