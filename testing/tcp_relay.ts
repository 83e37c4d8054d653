// A network between agents and a proxy that passes TCP: it can fall silent, refuse connections, and lead to another server.
import { once } from "node:events";
import { connect, createServer, type Server, type Socket } from "node:net";

/** `await using` ends it. */
export class TcpRelay implements AsyncDisposable {
  /** Nothing passes; connections stay open. */
  isBlocked = false;
  /** `host:port` of the server for new connections. */
  server: string;
  /** Connections so far. */
  connections = 0;
  readonly #listener: Server;
  readonly #sockets = new Set<Socket>();

  private constructor(listener: Server, server: string) {
    this.#listener = listener;
    this.server = server;
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
      from.on("data", (data) => {
        if (!this.isBlocked && !to.write(data)) from.pause();
      });
      to.on("drain", () => from.resume());
      from.on("end", () => this.isBlocked || to.end());
      from.on("error", () => this.isBlocked || to.resetAndDestroy());
      from.on("close", () => this.#sockets.delete(from));
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    for (const socket of this.#sockets) socket.destroy();
    await new Promise<void>((resolve) => this.#listener.close(() => resolve()));
  }
}
