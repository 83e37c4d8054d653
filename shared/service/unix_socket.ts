// Listens on a unix socket that only this user can open, and delivers connections with the head of their request. The network's listeners are
// for TCP.
import { Buffer } from "node:buffer";
import { createServer, type Socket } from "node:net";
import { ConfigError } from "../config/option.ts";
import { describeWriteError } from "../files/read.ts";
import { examineSocket, prepareServer } from "../files/unix_socket.ts";
import { endOfHead } from "../http/head.ts";
import { NetError } from "../net/errors.ts";
import type { Connection } from "./http_server.ts";

/** Longest head in bytes, and the time for it in milliseconds, as of the network's listeners. */
const MAX_HEAD = 16 * 1024;
const HEAD_TIMEOUT_MS = 10_000;
const MAX_CONNECTIONS = 64;

/** Delivers connections until it is closed. */
export interface UnixListener {
  readonly path: string;
  /** Takes the path over from a predecessor, which has it until then. */
  publish(): Promise<void>;
  /** Ends all connections, and removes the socket. */
  close(): Promise<void>;
}

/**
 * Listens on `path`. A socket that no process listens on is replaced.
 * @param option for errors
 * @param hasPredecessor whether a process may listen there: the socket is then not reachable until it is published
 * @throws {ConfigError} if the path cannot be used
 * @throws {NetError} `address-in-use`
 */
export async function listenUnix(
  path: string,
  option: string,
  serve: (connection: Connection) => void,
  hasPredecessor = false,
): Promise<UnixListener> {
  const refuse = (why: string, cause?: unknown) => new ConfigError(`Cannot use ${option} ${JSON.stringify(path)}: ${why}`, { cause });
  const existing = await examineSocket(path);
  if (existing === "file") throw refuse("there is a file that is no socket");
  if (existing === "in-use" && !hasPredecessor) {
    throw new NetError("address-in-use", `Cannot listen on ${path}: another process listens there`);
  }
  const sockets = new Set<Socket>();
  const server = createServer({ allowHalfOpen: true }, (socket) => {
    sockets.add(socket);
    socket.on("close", () => sockets.delete(socket));
    socket.on("error", () => socket.destroy());
    void readHead(socket).then((connection) => connection && serve(connection)); // never rejects
  });
  server.maxConnections = MAX_CONNECTIONS;
  const failed = (cause: unknown) => {
    server.close();
    throw refuse(describeWriteError(cause), cause);
  };
  const prepared = await prepareServer(server, path).catch(failed);
  let remove = () => prepared.discard();
  const publish = async () => void (remove = await prepared.publish().catch(failed));
  if (!hasPredecessor) await publish();
  return {
    path,
    publish,
    async close() {
      for (const socket of sockets) socket.destroy();
      const closed = new Promise<void>((resolve) => server.close(() => resolve()));
      await remove();
      await closed;
    },
  };
}

/** Reads a head. `undefined`: it was not complete in time, or too long, and the socket is destroyed. Never rejects. */
async function readHead(socket: Socket): Promise<Connection | undefined> {
  const timer = setTimeout(() => socket.destroy(), HEAD_TIMEOUT_MS);
  const parts = socket[Symbol.asyncIterator]() as AsyncIterator<Uint8Array>;
  let received = Buffer.alloc(0);
  try {
    for (let end = -1; end < 0;) {
      const { value, done } = await parts.next();
      if (done) return undefined;
      received = Buffer.concat([received, value]);
      end = endOfHead(received);
      if (end < 0 ? received.length > MAX_HEAD : end > MAX_HEAD) return void socket.destroy();
      if (end >= 0) return toConnection(socket, parts, received.toString("latin1", 0, end), received.subarray(end));
    }
  } catch {
    socket.destroy();
  } finally {
    clearTimeout(timer);
  }
  return undefined;
}

function toConnection(socket: Socket, parts: AsyncIterator<Uint8Array>, head: string, rest: Uint8Array): Connection {
  let unread: Uint8Array | undefined = rest.length > 0 ? rest : undefined;
  return {
    head,
    stream: {
      remote: "unix",
      async read() {
        const data = unread;
        unread = undefined;
        if (data !== undefined) return data;
        const { value, done } = await parts.next();
        return done ? null : value;
      },
      write: (data) => new Promise((resolve, reject) => socket.write(data, (error) => error ? reject(error) : resolve())),
      close: () => void socket.end(() => socket.destroy()),
      reset: () => void socket.destroy(),
    },
  };
}
