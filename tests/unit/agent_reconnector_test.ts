// When a reconnector makes the next connection: the test ends its connections and reads the delays in its log.
import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import { Reconnector, type ReconnectorOptions } from "../../agent/reconnector.ts";
import type { Session } from "../../agent/session.ts";
import { ProxyEndpoints } from "../../agent/proxy_endpoints.ts";
import { Backoff } from "../../shared/async/backoff.ts";
import { CloseCode } from "../../shared/link/link.ts";
import { NetError, type NetErrorCode } from "../../shared/net/errors.ts";
import type { SessionClosed } from "../../shared/net/session.ts";
import { LogBook } from "../../testing/network.ts";

const TIMED_OUT: SessionClosed = { code: 0, reason: "timed out", remote: false, cause: "timed-out" };
const SHUT_DOWN: SessionClosed = { code: CloseCode.shutdown, reason: "shutting down", remote: true, cause: "application" };
const REPLACED: SessionClosed = { code: CloseCode.replaced, reason: "closing old connection", remote: true, cause: "application" };

/** The result of an attempt: a connection and its end, or an error. */
type Course = SessionClosed | NetError;

/** The log of a reconnector until the signal is aborted. */
async function keep(
  open: ReconnectorOptions["open"],
  signal: AbortSignal,
  {
    settledAfterMs = 0,
    random = (): number => 0.003,
    log = new LogBook(),
    isElsewhere = (): boolean => false,
    describe: explain = (error: unknown): string => String(error),
  } = {},
): Promise<LogBook> {
  await new Reconnector({
    targets: new ProxyEndpoints(["127.0.0.1:1"]),
    open,
    describe: explain,
    onConnected: () => {},
    settledAfterMs,
    backoff: new Backoff({ initialMs: 4, maxMs: 30_000, random: () => 0 }),
    reconnectBackoff: new Backoff({ initialMs: 4, maxMs: 1_000, random: () => 0 }),
    hasOtherConnection: isElsewhere,
    random,
    log,
    signal,
  }).run();
  return log;
}

/** A connection to a proxy that asks its agents to move within two seconds; `end` is the proxy's end. */
function sentAway(): { session: Session; end: () => void } {
  const { promise, resolve } = Promise.withResolvers<SessionClosed>();
  const session = {
    closed: promise,
    goaway: Promise.resolve({ reason: "shutting down", withinMs: 2_000 }),
    isOpen: true,
    moved: () => Promise.resolve(),
  };
  const end = (): void => {
    session.isOpen = false;
    resolve(SHUT_DOWN);
  };
  return { session: session as unknown as Session, end };
}

/** Delays in milliseconds of a reconnector with these results: 2, 4, 8 … are the backoff's, 6 is that after a settled connection. */
async function waits(
  courses: readonly Course[],
  { settledAfterMs = 60_000, attemptMs = 0 } = {},
): Promise<{ waits: number[]; outages: number[] }> {
  const stopping = new AbortController();
  const outages: number[] = [];
  const open = async (_target: unknown, outageMs: number): Promise<Session> => {
    const course = courses[outages.push(outageMs) - 1];
    if (course === undefined) stopping.abort();
    if (attemptMs > 0) await sleep(attemptMs);
    if (course === undefined || course instanceof NetError) throw course ?? new NetError("cancelled", "over");
    return { closed: Promise.resolve(course), goaway: new Promise(() => {}), isOpen: false } as unknown as Session;
  };
  const log = await keep(open, stopping.signal, { settledAfterMs });
  return { waits: log.logged("not connected").map(({ retryInMs }) => Number(retryInMs)), outages };
}

function failures(code: NetErrorCode, remote = false): NetError[] {
  return Array.from({ length: 4 }, () => new NetError(code, "no connection", { remote }));
}

describe("a reconnector", () => {
  for (const code of ["timed-out", "unreachable", "unknown-host"] as const) {
    it(`does not increase its delay after timeouts: ${code}`, async () => {
      assert.deepEqual((await waits(failures(code))).waits, [2, 2, 2, 2]);
    });
  }

  for (const [code, remote] of [["tls", true], ["closed", true], ["refused", true], ["timed-out", true], ["tls", false]] as const) {
    it(`increases its delay if ${remote ? "a proxy refuses" : "another error occurs"}: ${code}`, async () => {
      assert.deepEqual((await waits(failures(code, remote))).waits, [2, 4, 8, 16]);
    });
  }

  it("reconnects soon to a proxy that was silent, however short the connection was", async () => {
    assert.deepEqual((await waits([TIMED_OUT, TIMED_OUT, TIMED_OUT])).waits, [6, 6, 6]);
  });

  it("increases its delay if a proxy ends connections before they have settled", async () => {
    assert.deepEqual((await waits([SHUT_DOWN, SHUT_DOWN, SHUT_DOWN])).waits, [2, 4, 8]);
  });

  it("reconnects soon to a proxy that ends a settled connection", async () => {
    assert.deepEqual((await waits([...failures("closed", true), SHUT_DOWN, SHUT_DOWN], { settledAfterMs: 0 })).waits.slice(4), [6, 6]);
  });

  it("reconnects within two seconds of a proxy's end, whenever the proxy is back", async () => {
    const waits = await Promise.all([0, 0.25, 0.5, 0.999].map(async (share) => {
      const [log, stopping] = [new LogBook(), new AbortController()];
      const session = { closed: Promise.resolve(SHUT_DOWN), goaway: new Promise(() => {}), isOpen: false } as unknown as Session;
      const kept = keep(() => Promise.resolve(session), stopping.signal, { random: () => share, log });
      const { retryInMs } = await log.waitFor("not connected");
      stopping.abort();
      await kept;
      return retryInMs;
    }));
    assert.deepEqual(waits, [0, 500, 1_000, 1_998]);
  });

  it("reconnects within the time that the proxy gave, once the proxy has gone, also during an attempt", async () => {
    const stopping = new AbortController();
    const { session, end } = sentAway();
    let attempts = 0;
    const log = await keep(
      () => {
        if (++attempts === 1) return Promise.resolve(session);
        if (attempts === 10) end();
        if (attempts === 11) stopping.abort();
        return Promise.reject(new NetError("refused", "no connection", { remote: true }));
      },
      stopping.signal,
    );
    assert.deepEqual(log.logged("not connected").map(({ retryInMs }) => retryInMs), [6]);
  });

  it("increases its delay if a proxy asks it to move and ends the connection", async () => {
    const stopping = new AbortController();
    let attempts = 0;
    const log = await keep(
      () => {
        if (++attempts === 5) stopping.abort();
        const { session, end } = sentAway();
        setTimeout(end, 1);
        return Promise.resolve(session);
      },
      stopping.signal,
      { settledAfterMs: 60_000 },
    );
    assert.deepEqual(log.logged("not connected").map(({ retryInMs }) => retryInMs), [8, 10, 14, 22]);
  });

  it("does not increase its delay for a proxy that refuses connections while it shuts down, and logs this once", async () => {
    const stopping = new AbortController();
    const { session, end } = sentAway();
    let attempts = 0;
    const log = await keep(
      () => {
        if (++attempts === 1) return Promise.resolve(session);
        if (attempts === 17) end(); // the last of those in quick succession
        if (attempts === 20) stopping.abort();
        return Promise.reject(new NetError("refused", "no connection", { remote: true }));
      },
      stopping.signal,
      { settledAfterMs: 60_000 },
    );
    assert.equal(log.entries.filter(({ level, message }) => level === "info" && message === "reconnecting").length, 1);
    // as after a short connection, and then as if nothing had been refused before
    assert.deepEqual(log.logged("not connected").map(({ retryInMs }) => retryInMs), [8, 2, 4]);
  });

  for (const isElsewhere of [false, true]) {
    it(`tells its proxy once ${isElsewhere ? "that it is connected elsewhere" : "that there is no other"} if it finds none`, async () => {
      const stopping = new AbortController();
      const { session } = sentAway();
      const said: boolean[] = [];
      session.reportMigration = (found) => {
        said.push(found);
        stopping.abort();
        return Promise.resolve();
      };
      let attempts = 0;
      await keep(
        () => ++attempts === 1 ? Promise.resolve(session) : Promise.reject(new NetError("refused", "no connection", { remote: true })),
        stopping.signal,
        { isElsewhere: () => isElsewhere },
      );
      assert.deepEqual(said, [isElsewhere]);
      assert.equal(attempts, 17);
    });
  }

  it("tries a proxy that shut down recently at least once a second", async () => {
    const shutDown = [SHUT_DOWN, ...Array.from({ length: 12 }, () => new NetError("refused", "no connection", { remote: true }))];
    const log = (await waits(shutDown)).waits;
    assert.deepEqual(log.slice(-3), [502, 502, 502]);
  });

  it("increases its delay if another agent replaces it", async () => {
    assert.deepEqual((await waits([REPLACED, REPLACED, REPLACED], { settledAfterMs: 0 })).waits, [2, 4, 8]);
  });

  it("continues if its callbacks fail", async () => {
    const stopping = new AbortController();
    let attempts = 0;
    const log = new LogBook();
    const fail = (): never => {
      if (++attempts === 3) stopping.abort();
      throw new Error("broken");
    };
    await keep(() => Promise.reject(new Error("no connection")), stopping.signal, { log, describe: fail });
    assert.equal(attempts, 3);
    assert.match(String(log.logged("attempt failed")[0]!.error), /broken/);
  });

  it("counts an outage from the end of a connection", async () => {
    const { outages } = await waits([...failures("timed-out"), TIMED_OUT], { attemptMs: 100 });
    assert.ok(outages[4]! >= 300, `after four attempts of 100 ms it says ${outages[4]} ms`);
    assert.ok(outages[5]! < outages[4]!, `${outages[5]} ms after ${outages[4]} ms`);
  });
});
