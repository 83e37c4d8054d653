// The notifications to the service manager.
import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { createSupervisor, type Supervisor } from "../../shared/service/supervisor.ts";
import { LogBook } from "../../testing/network.ts";

const SOCKET = "/run/notify";

interface Bench {
  supervisor: Supervisor | undefined;
  told: string[];
  log: LogBook;
  clock: { now: number };
}

function bench(env: Record<string, string>, problem: () => string | undefined = () => undefined): Bench {
  const [told, log, clock]: [string[], LogBook, { now: number }] = [[], new LogBook(), { now: 0 }];
  const notify = (socket: string, message: string) => {
    assert.equal(socket, SOCKET);
    told.push(message);
    return problem();
  };
  return { supervisor: createSupervisor({ env, pid: 7, notify, log, now: () => clock.now, monotonicUs: () => 1_234n }), told, log, clock };
}

describe("a supervisor", () => {
  it("does not exist without NOTIFY_SOCKET", () => {
    assert.equal(bench({}).supervisor, undefined);
    assert.equal(bench({ NOTIFY_SOCKET: "", WATCHDOG_USEC: "1000000" }).supervisor, undefined);
  });

  it("is notified of the start, of the stop with the time that it takes, and of changes of the status", () => {
    const { supervisor, told } = bench({ NOTIFY_SOCKET: SOCKET });
    supervisor!.ready();
    for (const text of ["one", "one", "two\nREADY=1"]) supervisor!.status(text);
    supervisor!.reloading();
    supervisor!.ready();
    supervisor!.stopping(1_500);
    assert.deepEqual(told, [
      "READY=1",
      "STATUS=one",
      "STATUS=two READY=1",
      "RELOADING=1\nMONOTONIC_USEC=1234",
      "READY=1",
      "STOPPING=1\nEXTEND_TIMEOUT_USEC=1500000",
    ]);
  });

  it("is notified of the process that has taken over, and of nothing more", () => {
    const { supervisor, told } = bench({ NOTIFY_SOCKET: SOCKET, WATCHDOG_USEC: "1000" });
    supervisor!.handedOver(8);
    supervisor!.alive();
    supervisor!.status("one");
    supervisor!.stopping(1);
    assert.deepEqual(told, ["MAINPID=8\nREADY=1"]);
  });

  it("is notified twice in WATCHDOG_USEC that the program runs", () => {
    const { supervisor, told, clock } = bench({ NOTIFY_SOCKET: SOCKET, WATCHDOG_USEC: "2000000" });
    assert.equal(supervisor!.watchdogMs, 2_000);
    for (; clock.now < 10_000; clock.now += 100) supervisor!.alive();
    assert.deepEqual(told, Array.from({ length: 10 }, () => "WATCHDOG=1"));
  });

  it("is not notified of that if it does not ask, or asks another process", () => {
    const others: Record<string, string>[] = [{}, { WATCHDOG_USEC: "0" }, { WATCHDOG_USEC: "x" }, {
      WATCHDOG_USEC: "9",
      WATCHDOG_PID: "8",
    }];
    for (const env of others) {
      const { supervisor, told } = bench({ NOTIFY_SOCKET: SOCKET, ...env });
      supervisor!.alive();
      assert.deepEqual([supervisor!.watchdogMs, told], [Infinity, []]);
    }
    assert.equal(bench({ NOTIFY_SOCKET: SOCKET, WATCHDOG_USEC: "1000", WATCHDOG_PID: "7" }).supervisor!.watchdogMs, 1);
  });

  it("that cannot be reached is logged once, until it can be", () => {
    let problem: string | undefined = "no such file";
    const { supervisor, log } = bench({ NOTIFY_SOCKET: SOCKET }, () => problem);
    supervisor!.ready();
    supervisor!.status("one");
    assert.deepEqual(log.logged("cannot notify the service manager"), [{ socket: SOCKET, reason: "no such file" }]);
    problem = undefined;
    supervisor!.status("two");
    problem = "gone";
    supervisor!.status("three");
    assert.equal(log.logged("cannot notify the service manager").length, 2);
  });
});
