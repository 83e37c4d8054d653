// Which transport an agent's connection is opened over, with attempts that the test answers.
import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { type RaceOptions, raceTransports } from "../../agent/transport/race.ts";
import { NetError } from "../../shared/net/errors.ts";
import type { AgentSession, SessionKind } from "../../shared/net/session.ts";
import { Queue } from "../../testing/network.ts";
import { until, within } from "../conformance/support.ts";

interface Attempt {
  kind: SessionKind;
  signal: AbortSignal;
  succeed(): AgentSession;
  fail(code: NetError["code"], message?: string, remote?: boolean): void;
}

function start(options: Partial<RaceOptions> = {}) {
  const attempts = new Queue<Attempt>();
  const made: SessionKind[] = [];
  const closed = new Set<AgentSession>();
  const connect = (kind: SessionKind, signal: AbortSignal): Promise<AgentSession> => {
    const { promise, resolve, reject } = Promise.withResolvers<AgentSession>();
    const succeed = () => {
      const connection = { transport: kind, close: () => void closed.add(connection) } as unknown as AgentSession;
      resolve(connection);
      return connection;
    };
    const fail = (code: NetError["code"], message = "no connection", remote = false) => reject(new NetError(code, message, { remote }));
    signal.addEventListener("abort", () => fail("cancelled"));
    if (signal.aborted) fail("cancelled");
    made.push(kind);
    attempts.push({ kind, signal, succeed, fail });
    return promise;
  };
  const { signal } = new AbortController();
  const winner = raceTransports({
    order: ["quic", "tls"],
    connect,
    fallbackDelayMs: 5,
    retryMs: 60_000,
    telling: "quic",
    signal,
    ...options,
  });
  winner.catch(() => {}); // a test looks when it is ready
  return { winner, attempts, made, closed };
}

const NEVER_MS = 60_000;

describe("a race of transports", () => {
  it("does not try TLS where QUIC answers in time", async () => {
    const { winner, attempts, made } = start({ fallbackDelayMs: NEVER_MS });
    const connection = (await attempts.next()).succeed();
    assert.equal((await within(winner)).connection, connection);
    assert.deepEqual(made, ["quic"]);
  });

  it("opens TLS beside a silent QUIC, and takes it when another attempt over QUIC is silent too", async () => {
    const { winner, attempts } = start();
    const first = await attempts.next();
    const tls = await attempts.next();
    assert.deepEqual([first.kind, tls.kind], ["quic", "tls"]);
    const connection = tls.succeed();
    const again = await attempts.next();
    assert.equal(again.kind, "quic");
    const won = await within(winner);
    assert.equal(won.connection, connection);
    assert.equal(won.errors.size, 0);
    assert.ok(first.signal.aborted && again.signal.aborted);
  });

  it("gives QUIC's other attempt less time than the proxy gives the authentication, however long TLS had to wait", async () => {
    const { winner, attempts } = start({ fallbackDelayMs: NEVER_MS });
    (await attempts.next()).fail("tls");
    const connection = (await attempts.next()).succeed();
    assert.equal((await attempts.next()).kind, "quic"); // and stays silent
    assert.equal((await within(winner)).connection, connection);
  });

  it("takes QUIC where another attempt gets through, and closes the connection over TLS", async () => {
    const { winner, attempts, closed } = start({ fallbackDelayMs: 1_000 });
    const first = await attempts.next();
    const tls = (await attempts.next()).succeed();
    const quic = (await attempts.next()).succeed();
    assert.equal((await within(winner)).connection, quic);
    await until(() => closed.has(tls), "the connection over TLS was not closed");
    assert.ok(first.signal.aborted);
  });

  it("opens a WebSocket beside a silent TLS, or at once where TLS fails, and takes it when QUIC stays silent", async () => {
    for (const isSilent of [true, false]) {
      const { winner, attempts } = start({ order: ["quic", "tls", "websocket"], fallbackDelayMs: isSilent ? 5 : 500 });
      const [quic, tls] = [await attempts.next(), await attempts.next()];
      assert.deepEqual([quic.kind, tls.kind], ["quic", "tls"]);
      if (!isSilent) tls.fail("tls", "another certificate");
      const webSocket = await attempts.next();
      assert.equal(webSocket.kind, "websocket");
      const connection = webSocket.succeed();
      assert.equal((await attempts.next()).kind, "quic");
      const won = await within(winner);
      assert.equal(won.connection, connection);
      assert.deepEqual([...won.errors.keys()], isSilent ? [] : ["tls"]);
    }
  });

  it("opens TLS at once where QUIC is rejected, and tells why", async () => {
    const { winner, attempts } = start({ fallbackDelayMs: NEVER_MS });
    (await attempts.next()).fail("tls", "no application protocol");
    const tls = (await attempts.next()).succeed();
    (await attempts.next()).fail("tls");
    const { connection, errors } = await within(winner);
    assert.equal(connection, tls);
    assert.equal((errors.get("quic") as NetError).message, "no application protocol");
  });

  it("is over at once where the proxy refuses QUIC: UDP passes, and the proxy is stopping or full", async () => {
    const { winner, attempts, made } = start({ fallbackDelayMs: NEVER_MS });
    (await attempts.next()).fail("refused", "it takes no connections", true);
    await assert.rejects(within(winner), { code: "refused", message: "it takes no connections" });
    assert.deepEqual(made, ["quic"]);

    const late = start();
    const quic = await late.attempts.next();
    const tls = await late.attempts.next();
    quic.fail("refused", "it takes no connections", true);
    await assert.rejects(within(late.winner), { code: "refused" });
    assert.ok(tls.signal.aborted);
  });

  it("fails as QUIC does where a proxy has no TLS", async () => {
    const { winner, attempts } = start({ fallbackDelayMs: NEVER_MS });
    (await attempts.next()).fail("timed-out", "QUIC did not answer");
    const tls = await attempts.next();
    assert.equal(tls.kind, "tls");
    tls.fail("refused", "no program listens there");
    await assert.rejects(within(winner), { code: "timed-out", message: "QUIC did not answer" });
  });

  it("goes on with QUIC where TLS is refused meanwhile, and tries TLS again", async () => {
    const { winner, attempts } = start({ retryMs: 5 });
    const quic = await attempts.next();
    for (let i = 0; i < 3; i++) {
      const tls = await attempts.next();
      assert.equal(tls.kind, "tls");
      tls.fail("refused");
    }
    const connection = quic.succeed();
    assert.equal((await within(winner)).connection, connection);
  });

  it("takes TLS at once where that is preferred, and QUIC where that is faster", async () => {
    const preferred = start({ order: ["tls", "quic"], fallbackDelayMs: NEVER_MS });
    const tls = (await preferred.attempts.next()).succeed();
    assert.equal((await within(preferred.winner)).connection, tls);
    assert.deepEqual(preferred.made, ["tls"]);

    const slow = start({ order: ["tls", "quic"] });
    await slow.attempts.next();
    const quic = (await slow.attempts.next()).succeed();
    assert.equal((await within(slow.winner)).connection, quic);
  });

  for (const kind of ["quic", "tls"] as const) {
    it(`uses nothing else where only ${kind} is allowed`, async () => {
      const { winner, attempts, made } = start({ order: [kind] });
      (await attempts.next()).fail("refused", "no program listens there");
      await assert.rejects(within(winner), { code: "refused" });
      assert.deepEqual(made, [kind]);
    });
  }

  it("is cancelled with every attempt", async () => {
    const stopping = new AbortController();
    const { winner, attempts } = start({ signal: stopping.signal });
    const both = [await attempts.next(), await attempts.next()];
    stopping.abort();
    await assert.rejects(within(winner), { code: "cancelled" });
    assert.deepEqual(both.map(({ signal }) => signal.aborted), [true, true]);
  });

  it("fails with the error of the transport that tells more", async () => {
    for (const telling of ["quic", "tls"] as const) {
      const { winner, attempts } = start({ telling });
      (await attempts.next()).fail("unknown-host", "quic");
      (await attempts.next()).fail("outbound-proxy", "tls");
      await assert.rejects(within(winner), { message: telling });
    }
  });
});
