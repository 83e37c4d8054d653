// A listener on a Unix socket. The engine has none, so its connections are sockets of Node.js, whose bytes pass through JavaScript.
import { once } from "node:events";
import { chmod, lstat, mkdtemp, rename, rm, unlink } from "node:fs/promises";
import { connect, createServer, type Socket } from "node:net";
import { join as join } from "node:path";
import type { Duplex as NodeDuplex } from "node:stream";
import { describeWriteError } from "../shared/files/read.ts";

/** Accepts connections until it is closed. */
export interface UnixListener {
  /** Stops accepting, and removes the socket. */
  close(): Promise<void>;
}

/**
 * Listens at `path` with mode 0600. A socket there that nothing listens on is replaced.
 * @throws {Error} saying why it cannot
 */
export async function listenUnix(path: string, onConnection: (socket: Socket) => void): Promise<UnixListener> {
  const fail = (cause: unknown) => new Error(`Cannot listen on ${path}: ${describeWriteError(cause)}`, { cause });
  if (await isInUse(path)) throw new Error(`Cannot listen on ${path}: it is in use, or no socket`);
  const server = createServer({ allowHalfOpen: true }, onConnection);
  let folder;
  try {
    // others cannot reach it before it has its mode
    folder = await mkdtemp(`${path}.`);
    const hidden = join(folder, "s");
    server.listen(hidden);
    await once(server, "listening");
    await chmod(hidden, 0o600);
    await rename(hidden, path);
  } catch (cause) {
    server.close();
    throw fail(cause);
  } finally {
    if (folder !== undefined) await rm(folder, { recursive: true, force: true });
  }
  const { ino } = await lstat(path);
  return {
    async close() {
      server.close();
      // another process may have replaced it
      if (await lstat(path).then((now) => now.ino === ino, () => false)) await unlink(path);
    },
  };
}

/** Whether a file is at `path` that must not be replaced: a socket that something listens on, or no socket. */
async function isInUse(path: string): Promise<boolean> {
  const file = await lstat(path).catch(() => undefined); // what cannot be read fails in the next step
  if (file === undefined || !file.isSocket()) return file !== undefined;
  const probe = connect(path);
  try {
    await once(probe, "connect");
    return true;
  } catch (error) {
    return (error as NodeJS.ErrnoException).code !== "ECONNREFUSED";
  } finally {
    probe.destroy();
  }
}

/** How two streams have ended: bytes of each direction, and the error, with the stream that had it. */
export interface Joined {
  readonly aToB: number;
  readonly bToA: number;
  readonly error?: Error;
  readonly errorSide?: "a" | "b";
}

/**
 * Relays in both directions until each has ended. If one stream fails, the other is destroyed. Never rejects.
 * @param totals its bytes are added to them while it runs
 */
export async function joinStreams(a: NodeDuplex, b: NodeDuplex, totals: { aToB: number; bToA: number }): Promise<Joined> {
  let [aToB, bToA] = [0, 0];
  let failure: Pick<Joined, "error" | "errorSide"> | undefined;
  a.on("data", ({ length }: Uint8Array) => {
    aToB += length;
    totals.aToB += length;
  });
  b.on("data", ({ length }: Uint8Array) => {
    bToA += length;
    totals.bToA += length;
  });
  a.pipe(b).pipe(a);
  await Promise.all(([["a", a, b], ["b", b, a]] as const).map(([errorSide, stream, other]) =>
    new Promise<void>((resolve) => {
      stream.once("error", (error) => {
        failure ??= { error, errorSide };
        other.destroy(error);
      });
      stream.once("close", () => {
        if (!stream.readableEnded || !stream.writableFinished) other.destroy();
        resolve();
      });
    })
  ));
  return { aToB, bToA, ...failure };
}
