// Notifies the service manager of the program's state, in the protocol of sd_notify(3). Sending is left to `notify`.
import type { Logger } from "../log/logger.ts";

/** Sends a message to the socket of a service manager. Returns the error, if any. */
export type Notify = (socket: string, message: string) => string | undefined;

/** The service manager that started the program. */
export interface Supervisor {
  /** Timeout in milliseconds for {@link alive}; `Infinity` for none. */
  readonly watchdogMs: number;
  /** The program serves. */
  ready(): void;
  /** The program reloads its configuration, until {@link ready}. */
  reloading(): void;
  /** The program stops within `withinMs` milliseconds; the manager's timeout is extended by that. */
  stopping(withinMs: number): void;
  /** Another process, which serves, is the main one from now on; this one sends nothing more. */
  handedOver(pid: number): void;
  /** Sets the status line. Sent only when it has changed. */
  status(text: string): void;
  /** The program runs. May be called at any rate: it is sent twice per timeout. */
  alive(): void;
}

export interface SupervisorOptions {
  /** The process's environment. */
  env: Readonly<Record<string, string | undefined>>;
  /** The process's id. */
  pid: number;
  notify: Notify;
  log: Logger;
  /** Milliseconds from any fixed point. Default `performance.now`. */
  now?: () => number;
  /** CLOCK_MONOTONIC in microseconds. */
  monotonicUs: () => bigint;
}

/** Returns `undefined` without a service manager. */
export function createSupervisor(options: SupervisorOptions): Supervisor | undefined {
  const { env, notify, log, now = () => performance.now(), monotonicUs } = options;
  const socket = env.NOTIFY_SOCKET;
  if (!socket) return undefined;
  const watchdogMs = watchdogOf(options);
  let [failed, lastStatus, sentAt] = [false, "", -Infinity];
  let isMain = true;
  const send = (message: string): void => {
    if (!isMain) return;
    const problem = notify(socket, message);
    if (problem !== undefined && !failed) log.warn("cannot notify the service manager", { socket, reason: problem });
    failed = problem !== undefined;
  };
  return {
    watchdogMs,
    ready: () => send("READY=1"),
    // in one message: see sd_notify(3)
    reloading: () => send(`RELOADING=1\nMONOTONIC_USEC=${monotonicUs()}`),
    stopping: (withinMs) => send(`STOPPING=1\nEXTEND_TIMEOUT_USEC=${Math.ceil(withinMs) * 1_000}`),
    handedOver(pid) {
      send(`MAINPID=${pid}\nREADY=1`);
      isMain = false;
    },
    status(text) {
      if (text === lastStatus) return;
      lastStatus = text;
      send(`STATUS=${text.replace(/[\r\n]+/g, " ")}`);
    },
    alive() {
      if (watchdogMs === Infinity || now() - sentAt < watchdogMs / 2) return;
      sentAt = now();
      send("WATCHDOG=1");
    },
  };
}

/** See sd_watchdog_enabled(3): the variables may be meant for another process. */
function watchdogOf({ env: { WATCHDOG_USEC: usec = "", WATCHDOG_PID: pid }, pid: own }: SupervisorOptions): number {
  if (!/^[1-9][0-9]{0,14}$/.test(usec) || (pid !== undefined && pid !== String(own))) return Infinity;
  return Number(usec) / 1_000;
}
