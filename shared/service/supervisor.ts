// Tells the service manager that started the program how it is, as sd_notify(3) has it. It knows neither sockets nor what is told.
import type { Logger } from "../log/logger.ts";

/** Sends a message to the socket of a service manager. What went wrong, where something did. */
export type Notify = (socket: string, message: string) => string | undefined;

/** Who started the program, and wants to know. */
export interface Supervisor {
  /** Milliseconds within which it wants to hear {@link alive}; `Infinity` where it does not. */
  readonly watchdogMs: number;
  /** The program does what it is there for. */
  ready(): void;
  /** It ends, in so many milliseconds at most: that much patience is asked for. */
  stopping(withinMs: number): void;
  /** One line for people. Sent where it is not what was sent last. */
  status(text: string): void;
  /** It runs. To be called more often than the supervisor wants to hear it: every other time is passed on. */
  alive(): void;
}

export interface SupervisorOptions {
  /** The process' environment. */
  env: Readonly<Record<string, string | undefined>>;
  /** The process' id. */
  pid: number;
  notify: Notify;
  log: Logger;
  /** Milliseconds from any fixed point. Default `performance.now`. */
  now?: () => number;
}

/** `undefined` where nobody wants to know. */
export function createSupervisor(options: SupervisorOptions): Supervisor | undefined {
  const { env, notify, log, now = () => performance.now() } = options;
  const socket = env.NOTIFY_SOCKET;
  if (!socket) return undefined;
  const watchdogMs = watchdogOf(options);
  let [failed, said, heardAt] = [false, "", -Infinity];
  const send = (message: string): void => {
    const problem = notify(socket, message);
    if (problem !== undefined && !failed) log.warn("cannot tell the service manager", { socket, reason: problem });
    failed = problem !== undefined;
  };
  return {
    watchdogMs,
    ready: () => send("READY=1"),
    stopping: (withinMs) => send(`STOPPING=1\nEXTEND_TIMEOUT_USEC=${Math.ceil(withinMs) * 1_000}`),
    status(text) {
      if (text === said) return;
      said = text;
      send(`STATUS=${text.replace(/[\r\n]+/g, " ")}`);
    },
    alive() {
      if (watchdogMs === Infinity || now() - heardAt < watchdogMs / 2) return;
      heardAt = now();
      send("WATCHDOG=1");
    },
  };
}

/** See sd_watchdog_enabled(3): what was meant for another process is not for this one. */
function watchdogOf({ env: { WATCHDOG_USEC: usec = "", WATCHDOG_PID: pid }, pid: own }: SupervisorOptions): number {
  if (!/^[1-9][0-9]{0,14}$/.test(usec) || (pid !== undefined && pid !== String(own))) return Infinity;
  return Number(usec) / 1_000;
}
