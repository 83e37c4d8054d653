// A listener on a Unix socket. The engine has none, so its connections are sockets of Node.js, whose bytes pass through JavaScript.
import { createServer, type Socket } from "node:net";
import type { Duplex as NodeDuplex } from "node:stream";
import { describeWriteError } from "../shared/files/read.ts";
import { bindSocket, examineSocket } from "../shared/files/unix_socket.ts";

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
  if (["in-use", "file"].includes(await examineSocket(path))) throw new Error(`Cannot listen on ${path}: it is in use, or no socket`);
  const server = createServer({ allowHalfOpen: true }, onConnection);
  const remove = await bindSocket(server, path).catch((cause) => {
    throw new Error(`Cannot listen on ${path}: ${describeWriteError(cause)}`, { cause });
  });
  return {
    async close() {
      server.close();
      await remove();
    },
  };
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
