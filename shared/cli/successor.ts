// Starts a new process of this program, as this one was started, which takes over from it.
import { spawn } from "node:child_process";
import type { Logger } from "../log/logger.ts";
import { versionOf } from "../files/version.ts";
import type { Start } from "./restart.ts";
import { messageOf } from "../log/error_message.ts";

export interface SuccessorStarter {
  /** Whether the program's file is another one than at the start of this process. */
  isReplaced(): Promise<boolean>;
  /** Starts a process, unless one is starting. Resolves with the reason if it ends before this one does. */
  start(): Promise<string>;
}

/** @param file the executable of this process, which was started as `start` says */
export async function createSuccessorStarter(file: string, start: Start, log: Logger): Promise<SuccessorStarter> {
  const { version } = await versionOf(file);
  let starting: Promise<string> | undefined;
  const run = () =>
    new Promise<string>((resolve) => {
      // of systemd, for this process only
      const { WATCHDOG_PID: _watchdog, LISTEN_PID: _listen, ...env } = start.env;
      const child = spawn(file, start.args, { env: env as NodeJS.ProcessEnv, stdio: "inherit" });
      const end = (fields: Record<string, string | number | undefined>) => {
        starting = undefined;
        log.error("new process has ended", { pid: child.pid, ...fields });
        const [[what, value] = ["reason", ""]] = Object.entries(fields).filter(([, value]) => value !== undefined);
        resolve(`the new process has ended: ${what} ${value}`);
      };
      child.once("error", (error) => end({ reason: messageOf(error) }));
      child.once("exit", (code, signal) => end({ code: code ?? undefined, signal: signal ?? undefined }));
      if (child.pid !== undefined) child.unref(); // it outlives this process; Deno has nothing to release if it did not start
      log.info("new process started", { pid: child.pid, file });
    });
  return {
    isReplaced: async () => {
      const now = await versionOf(file);
      return now.error === undefined && now.version !== version;
    },
    start() {
      if (starting) log.info("a new process is already starting");
      return starting ??= run();
    },
  };
}
