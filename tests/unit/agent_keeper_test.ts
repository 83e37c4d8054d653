// When a keeper makes the next connection, with connections that the test ends, by what it logs of its waits.
import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import { Keeper } from "../../agent/keeper.ts";
import type { Session } from "../../agent/session.ts";
import { Targets } from "../../agent/targets.ts";
import { Backoff } from "../../shared/backoff.ts";
import { CloseCode } from "../../shared/link/link.ts";
import { NetError, type NetErrorCode } from "../../shared/net/errors.ts";
import type { QuicClosed } from "../../shared/net/types.ts";
import { LogBook } from "../support/memory.ts";

const TIMED_OUT: QuicClosed = { code: 0, reason: "timed out", remote: false, cause: "timed-out" };
const SHUT_DOWN: QuicClosed = { code: CloseCode.shutdown, reason: "shutting down", remote: true, cause: "application" };
const REPLACED: QuicClosed = { code: CloseCode.replaced, reason: "closing old connection", remote: true, cause: "application" };

/** What an attempt comes to: a connection and its end, or an error. */
type Course = QuicClosed | NetError;

/** Waits of a keeper whose attempts take these courses, in milliseconds: 2, 4, 8 … by its backoff; 6 when it returns to one that it had. */
async function waits(
  courses: readonly Course[],
  { settledAfterMs = 60_000, attemptMs = 0 } = {},
): Promise<{ waits: number[]; outages: number[] }> {
  const log = new LogBook();
  const stopping = new AbortController();
  const outages: number[] = [];
  const open = async (_target: unknown, outageMs: number): Promise<Session> => {
    const course = courses[outages.push(outageMs) - 1];
    if (course === undefined) stopping.abort();
    if (attemptMs > 0) await sleep(attemptMs);
    if (course === undefined || course instanceof NetError) throw course ?? new NetError("cancelled", "over");
    return { closed: Promise.resolve(course), goaway: new Promise(() => {}), isOpen: false } as unknown as Session;
  };
  await new Keeper({
    targets: new Targets(["127.0.0.1:1"]),
    open,
    describe: String,
    onConnected: () => {},
    settledAfterMs,
    backoff: new Backoff({ initialMs: 4, maxMs: 1_000, random: () => 0 }),
    random: () => 0.003,
    log,
    signal: stopping.signal,
  }).run();
  return { waits: log.logged("not connected").map(({ retryInMs }) => Number(retryInMs)), outages };
}

function failures(code: NetErrorCode, remote = false): NetError[] {
  return Array.from({ length: 4 }, () => new NetError(code, "no connection", { remote }));
}

describe("a keeper", () => {
  for (const code of ["timed-out", "unreachable", "unknown-host"] as const) {
    it(`does not wait longer each time where nobody answers: ${code}`, async () => {
      assert.deepEqual((await waits(failures(code))).waits, [2, 2, 2, 2]);
    });
  }

  for (const [code, remote] of [["tls", true], ["closed", true], ["refused", true], ["timed-out", true], ["tls", false]] as const) {
    it(`waits longer each time where ${remote ? "a proxy refuses" : "something is wrong"}: ${code}`, async () => {
      assert.deepEqual((await waits(failures(code, remote))).waits, [2, 4, 8, 16]);
    });
  }

  it("returns soon to a proxy that was silent, however short the connection was", async () => {
    assert.deepEqual((await waits([TIMED_OUT, TIMED_OUT, TIMED_OUT])).waits, [6, 6, 6]);
  });

  it("waits longer each time where a proxy ends connections that have not settled", async () => {
    assert.deepEqual((await waits([SHUT_DOWN, SHUT_DOWN, SHUT_DOWN])).waits, [2, 4, 8]);
  });

  it("returns soon to a proxy that ends a connection that has settled", async () => {
    assert.deepEqual((await waits([...failures("closed", true), SHUT_DOWN, SHUT_DOWN], { settledAfterMs: 0 })).waits.slice(4), [6, 6]);
  });

  it("waits longer each time where another agent takes its place", async () => {
    assert.deepEqual((await waits([REPLACED, REPLACED, REPLACED], { settledAfterMs: 0 })).waits, [2, 4, 8]);
  });

  it("counts an outage from the end of a connection", async () => {
    const { outages } = await waits([...failures("timed-out"), TIMED_OUT], { attemptMs: 100 });
    assert.ok(outages[4]! >= 300, `after four attempts of 100 ms it says ${outages[4]} ms`);
    assert.ok(outages[5]! < outages[4]!, `${outages[5]} ms after ${outages[4]} ms`);
  });
});
