// Servers in front of a real store that misbehave when a test says so.
import { randomBytes } from "node:crypto";
import { once } from "node:events";
import { connect, createServer, type Server, type Socket } from "node:net";

/**
 * `good` relays everything. Otherwise the server replies with: `garbage` random bytes, `endless` a value of almost 4 GiB, `silent` nothing,
 * `half` the first bytes of the real reply before it closes.
 */
export type Manner = "good" | "garbage" | "endless" | "silent" | "half";

/** Fewer bytes than any reply has. */
const HALF = 4;

/** Stands in front of a memcached. */
export class BadStore implements AsyncDisposable {
  /** Applies to open connections, too. */
  manner: Manner = "good";
  readonly #sockets = new Set<Socket>();
  /** Connections that a firewall has dropped. */
  readonly #forgotten = new WeakSet<Socket>();

  private constructor(private readonly server: Server, private readonly behind: string) {
    server.on("connection", (socket) => this.#serve(socket));
  }

  /** @param behind `host:port` of the real one */
  static async start(behind: string): Promise<BadStore> {
    const server = createServer();
    server.listen(0, "127.0.0.1");
    await once(server, "listening");
    return new BadStore(server, behind);
  }

  get address(): string {
    return `127.0.0.1:${(this.server.address() as { port: number }).port}`;
  }

  /** Drops the open connections like a firewall: nothing that is sent on them arrives, not even their end. New connections work. */
  forget(): void {
    for (const socket of this.#sockets) this.#forgotten.add(socket);
  }

  #serve(socket: Socket): void {
    const { hostname, port } = new URL(`tcp://${this.behind}`);
    const real = connect(Number(port), hostname);
    for (const [one, other] of [[socket, real], [real, socket]] as const) {
      this.#sockets.add(one);
      one.on("error", () => {}); // "close" follows
      one.on("close", () => {
        this.#sockets.delete(one);
        other.destroy();
      });
    }
    socket.on("data", (data: Uint8Array) => {
      if (this.#forgotten.has(socket)) return;
      if (this.manner === "garbage") socket.write(randomBytes(4_096));
      else if (this.manner === "endless") this.#pour(socket, data);
      else if (this.manner !== "silent") real.write(data);
    });
    real.on("data", (data: Uint8Array) => {
      if (this.#forgotten.has(real)) return;
      if (this.manner === "half") socket.end(data.subarray(0, HALF));
      else if (this.manner === "good") socket.write(data);
    });
  }

  #pour(socket: Socket, request: Uint8Array): void {
    const [, key = "none"] = /^get (.+)\r\n/.exec(new TextDecoder().decode(request)) ?? [];
    socket.write(`VALUE ${key} 0 4294967295\r\n`);
    const more = () => {
      while (!socket.destroyed && socket.write(new Uint8Array(64 * 1024)));
    };
    socket.on("drain", more);
    more();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    const closed = new Promise((resolve) => this.server.close(resolve));
    for (const socket of this.#sockets) socket.destroy();
    await closed;
  }
}

/** A proxy in front of Redis that supports few commands, as several do: another command closes the connection. */
export class NarrowRedis implements AsyncDisposable {
  /** Commands that it did not support. */
  readonly refused: string[] = [];
  readonly #sockets = new Set<Socket>();

  private constructor(private readonly server: Server, behind: string, known: ReadonlySet<string>) {
    server.on("connection", (socket) => {
      const { hostname, port } = new URL(`tcp://${behind}`);
      const real = connect(Number(port), hostname);
      for (const [one, other] of [[socket, real], [real, socket]] as const) {
        this.#sockets.add(one);
        one.on("error", () => {}).on("close", () => other.destroy()); // "close" follows an error
      }
      real.pipe(socket);
      socket.on("data", (data: Uint8Array) => {
        const commands = [...new TextDecoder("latin1").decode(data).matchAll(/\*[0-9]+\r\n\$[0-9]+\r\n([^\r]+)\r\n/g)];
        const unknown = commands.map(([, command]) => command!.toLowerCase()).filter((command) => !known.has(command));
        if (unknown.length === 0) return void real.write(data);
        this.refused.push(...unknown);
        socket.destroy();
      });
    });
  }

  /** @param behind `host:port` of the real one */
  static async start(behind: string, known: readonly string[]): Promise<NarrowRedis> {
    const server = createServer();
    server.listen(0, "127.0.0.1");
    await once(server, "listening");
    return new NarrowRedis(server, behind, new Set(known));
  }

  get address(): string {
    return `127.0.0.1:${(this.server.address() as { port: number }).port}`;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    const closed = new Promise((resolve) => this.server.close(resolve));
    for (const socket of this.#sockets) socket.destroy();
    await closed;
  }
}
