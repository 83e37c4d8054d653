// Unix sockets as files: what is at a path, and a socket there that only this user can open.
import { Buffer } from "node:buffer";
import { once } from "node:events";
import { chmod, lstat, mkdtemp, rename, rm, unlink } from "node:fs/promises";
import { connect, type Server } from "node:net";
import { dirname, join } from "node:path";

/** Longest path in bytes: that of macOS. */
const MAX_PATH = 103;

/** What is at `path`: nothing, a socket that nothing listens on, a socket in use, or another file. */
export async function examineSocket(path: string): Promise<"nothing" | "stale" | "in-use" | "file"> {
  const file = await lstat(path).catch(() => undefined); // what cannot be read fails in the next step
  if (file === undefined) return "nothing";
  if (!file.isSocket()) return "file";
  const probe = connect(path);
  try {
    await once(probe, "connect");
    return "in-use";
  } catch (error) {
    return (error as NodeJS.ErrnoException).code === "ECONNREFUSED" ? "stale" : "in-use";
  } finally {
    probe.destroy();
  }
}

/**
 * Listens at `path` with mode 0600, and replaces what is there. If that fails, the server is closed. Returns a function that removes the socket
 * unless another process has replaced it.
 * @throws {Error} of the file system, or if the path is too long
 */
export async function bindSocket(server: Server, path: string): Promise<() => Promise<void>> {
  let folder: string | undefined;
  try {
    // other users cannot reach it before it has its mode
    folder = await mkdtemp(join(dirname(path), ".socket-"));
    const hidden = join(folder, "s");
    if (Math.max(Buffer.byteLength(hidden), Buffer.byteLength(path)) > MAX_PATH) throw new Error("the path is too long for a socket");
    server.listen(hidden);
    await once(server, "listening");
    await chmod(hidden, 0o600);
    await rename(hidden, path);
  } catch (error) {
    server.close();
    throw error;
  } finally {
    if (folder !== undefined) await rm(folder, { recursive: true, force: true });
  }
  const { ino } = await lstat(path);
  return async () => {
    if (await lstat(path).then((now) => now.ino === ino, () => false)) await unlink(path);
  };
}
