// A network between agents and a proxy that passes TCP: it can fall silent, refuse connections, and lead to another server.
import { once } from "node:events";
import { type AddressInfo, connect, createServer, type Server, type Socket } from "node:net";

const SEGMENT_DELAY_MS = 100;

/** `await using` ends it. */
export class TcpRelay implements AsyncDisposable {
  /** Nothing passes; connections stay open. */
  isBlocked = false;
  /** `host:port` of the server for new connections. */
  server: string;
  /** Connections so far. */
  connections = 0;
  /** Passes the first bytes of a connection to the server in two segments, the first one of this length. */
  splitAt?: number;
  /** The first bytes of the last connection, each way. */
  firstToServer?: Uint8Array;
  firstToClient?: Uint8Array;
  /** The address that it listens on, `host:port`. */
  readonly address: string;
  readonly #listener: Server;
  readonly #sockets = new Set<Socket>();

  private constructor(listener: Server, server: string) {
    this.#listener = listener;
    this.server = server;
    const { address, port } = listener.address() as AddressInfo;
    this.address = `${address}:${port}`;
    listener.on("connection", (client) => this.#relay(client));
  }

  /** @param address `host:port` to listen on */
  static async start(address: string, server: string): Promise<TcpRelay> {
    const { hostname, port } = new URL(`tcp://${address}`);
    const listener = createServer({ allowHalfOpen: true, noDelay: true });
    listener.listen(Number(port), hostname);
    await once(listener, "listening");
    return new TcpRelay(listener, server);
  }

  #relay(client: Socket): void {
    this.connections++;
    const { hostname, port } = new URL(`tcp://${this.server}`);
    const upstream = connect({ host: hostname, port: Number(port), allowHalfOpen: true, noDelay: true });
    for (const [from, to] of [[client, upstream], [upstream, client]] as const) {
      this.#sockets.add(from);
      from.once("data", (data: Uint8Array) => {
        if (from === client) this.firstToServer = data;
        else this.firstToClient = data;
      });
      from.on("data", (data: Uint8Array) => {
        const splitAt = from === client && from.bytesRead === data.length ? this.splitAt : undefined;
        if (splitAt !== undefined) this.#passInTwo(data, splitAt, from, to);
        else if (!this.isBlocked && !to.write(data)) from.pause();
      });
      to.on("drain", () => from.resume());
      from.on("end", () => this.isBlocked || to.end());
      from.on("error", () => this.isBlocked || to.resetAndDestroy());
      from.on("close", () => this.#sockets.delete(from));
    }
  }

  /** The second segment follows a while later, so that the server reads the first one alone. */
  #passInTwo(data: Uint8Array, splitAt: number, from: Socket, to: Socket): void {
    from.pause();
    to.write(data.subarray(0, splitAt));
    setTimeout(() => {
      to.write(data.subarray(splitAt));
      from.resume();
    }, SEGMENT_DELAY_MS);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const socket of this.#sockets) socket.destroy();
    await new Promise<void>((resolve) => this.#listener.close(() => resolve()));
  }
}
