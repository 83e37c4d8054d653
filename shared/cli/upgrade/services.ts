// Running services of this executable, and how a new process takes over from each.
import { readdir, readFile, readlink } from "node:fs/promises";
import { userInfo } from "node:os";
import { join } from "node:path";
import { printable } from "../../net/printable.ts";
import type { Executable } from "../command.ts";
import type { Run } from "./run_command.ts";

/** A running service. */
export interface RunningService {
  /** Its name, and its process if that is known. */
  readonly name: string;
  /** Where a process can take over from it. */
  readonly socket?: string;
  /** Why it must be restarted otherwise. Set unless there is a socket. */
  readonly problem?: string;
}

/** Where processes are described, see proc(5). */
const PROC = "/proc";

/**
 * Finds processes of the executable `file` that run a service. Systems without proc(5) show none, and others' processes are visible to root
 * alone.
 */
export async function findServices({ root, family }: Executable, file: string, run: Run, proc = PROC): Promise<RunningService[]> {
  const found: RunningService[] = [];
  const entries: string[] = await readdir(proc).catch(() => []);
  const own = Number(await readlink(join(proc, "self")).catch(() => "0"));
  const pids = entries.filter((name) => /^\d+$/.test(name)).map(Number).sort((a, b) => a - b);
  for (const pid of pids) {
    if (pid === own) continue;
    try {
      found.push(...await examine(pid));
    } catch {
      // it has ended, or is another user's
    }
  }
  const sockets = new Set<string>(); // earlier processes of a hand-over have the same one
  return found.filter(({ socket }) => socket === undefined || !sockets.has(socket) && sockets.add(socket));

  async function examine(pid: number): Promise<RunningService[]> {
    const folder = join(proc, String(pid));
    const running = (await readlink(join(folder, "exe"))).replace(/ \(deleted\)$/, "");
    if (running !== file) return [];
    const [, ...args] = (await readFile(join(folder, "cmdline"), "utf8")).split("\0").slice(0, -1);
    const service = "start" in root ? [] : args.splice(0, 1);
    const [role = root.name] = service;
    if (service.length > 0 && !Object.hasOwn(family, role)) return [];
    const name = `${role} (process ${pid})`;
    // its options are printed by the executable with its user's rights: they may name files of that user
    const command = [file, ...service, "--print-config", ...args];
    const { code, stdout, stderr } = await run(command, await ownerAndEnvironment(folder));
    if (code !== 0) return [{ name, problem: `its options cannot be read: ${printable(stderr.trim(), 300)}` }];
    const [, quoted, plain] = /^--handover\.socket=(?:'([^']+)'|(\S+))/m.exec(stdout) ?? [];
    const socket = quoted ?? plain;
    return [socket === undefined ? { name, problem: "it has no --handover.socket" } : { name, socket }];
  }
}

/** The environment that a process has been started with, and its user if this one can become that user. */
async function ownerAndEnvironment(folder: string): Promise<Parameters<Run>[1]> {
  const [status, environment] = await Promise.all(["status", "environ"].map((name) => readFile(join(folder, name), "utf8")));
  const env = Object.fromEntries(
    environment!.split("\0").filter((text) => text.includes("=")).map((text) => {
      const at = text.indexOf("=");
      return [text.slice(0, at), text.slice(at + 1)];
    }),
  );
  const idIn = (name: string) => Number(new RegExp(`^${name}:\\s+(\\d+)`, "m").exec(status!)?.[1]);
  const [uid, gid] = [idIn("Uid"), idIn("Gid")];
  return userInfo().uid === uid ? { env } : { env, uid, gid };
}
