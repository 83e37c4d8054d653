// Unix sockets as files: checks what exists at a path, and creates a socket there that only this user can open.
import { Buffer } from "node:buffer";
import { once } from "node:events";
import { chmod, lstat, mkdtemp, rename, rm, unlink } from "node:fs/promises";
import { connect, type Server } from "node:net";
import { dirname, join } from "node:path";

/** Longest path in bytes: that of macOS. */
const MAX_PATH = 103;

/** The file at `path`: nothing, a socket that nothing listens on, a socket in use, or another file. */
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

/** A socket with mode 0600 that has not got its path yet. */
export interface PreparedSocket {
  /**
   * Gives it its path, and replaces a socket that is there. Returns a function that removes it unless another process has replaced it.
   * @throws {Error} of the file system, or if there is another file
   */
  publish(): Promise<() => Promise<void>>;
  /** Removes it instead. */
  discard(): Promise<void>;
}

/**
 * Opens a socket that will have `path`.
 * @param listen listens at the path that it gets
 * @throws {Error} of the file system or of `listen`, or if the path is too long
 */
export async function prepareSocket(path: string, listen: (hidden: string) => Promise<unknown>): Promise<PreparedSocket> {
  // other users cannot reach it before it has its mode
  const folder = await mkdtemp(join(dirname(path), ".socket-"));
  const discard = () => rm(folder, { recursive: true, force: true });
  const hidden = join(folder, "s");
  try {
    if (Math.max(Buffer.byteLength(hidden), Buffer.byteLength(path)) > MAX_PATH) throw new Error("the path is too long for a socket");
    await listen(hidden);
    await chmod(hidden, 0o600);
    const { ino } = await lstat(hidden);
    return {
      discard,
      async publish() {
        try {
          const file = await lstat(path).catch(() => undefined); // what cannot be read fails in the next step
          if (file?.isSocket() === false) throw new Error("there is a file that is no socket");
          await rename(hidden, path);
        } finally {
          await discard();
        }
        return async () => {
          if (await lstat(path).then((now) => now.ino === ino, () => false)) await unlink(path);
        };
      },
    };
  } catch (error) {
    await discard();
    throw error;
  }
}

/**
 * Listens at `path` with mode 0600, and replaces what is there. If that fails, the server is closed. Returns a function that removes the socket
 * unless another process has replaced it.
 * @throws {Error} as {@link prepareSocket} and `publish`
 */
export async function bindSocket(server: Server, path: string): Promise<() => Promise<void>> {
  try {
    return await (await prepareServer(server, path)).publish();
  } catch (error) {
    server.close();
    throw error;
  }
}

/**
 * Lets a server listen on a socket that will have `path`.
 * @throws {Error} as {@link prepareSocket}
 */
export async function prepareServer(server: Server, path: string): Promise<PreparedSocket> {
  return await prepareSocket(path, async (hidden) => {
    server.listen(hidden);
    await once(server, "listening");
  });
}
