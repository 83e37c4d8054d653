// Runs other programs, bounded in time and output.
import { execFile } from "node:child_process";

export interface Ran {
  /** 127 if there is no such program. */
  readonly code: number;
  readonly stdout: string;
  readonly stderr: string;
}

export interface RunOptions {
  /** Default: that of this process. */
  readonly env?: Readonly<Record<string, string | undefined>>;
  /** User and group. Default: those of this process. */
  readonly uid?: number;
  readonly gid?: number;
}

export type Run = (command: readonly string[], options?: RunOptions) => Promise<Ran>;

const TIMEOUT_MS = 30_000;
const MAX_OUTPUT = 1 << 20;

/** Never rejects. */
export const runCommand: Run = ([file, ...args], options = {}) =>
  new Promise((done) => {
    const bounds = { cwd: "/", encoding: "utf8", timeout: TIMEOUT_MS, killSignal: "SIGKILL", maxBuffer: MAX_OUTPUT } as const;
    execFile(file!, args, { ...bounds, ...options, env: options.env as NodeJS.ProcessEnv | undefined }, (error, stdout, stderr) => {
      const code = error === null ? 0 : typeof error.code === "number" ? error.code : error.code === "ENOENT" ? 127 : 1;
      done({ code, stdout, stderr: stderr || (error?.message ?? "") });
    });
  });
