// A store that goes bad: it stands before a real memcached, passes on what is said, and on the test's word answers garbage, nothing, or half.
import { randomBytes } from "node:crypto";
import { once } from "node:events";
import { connect, createServer, type Server, type Socket } from "node:net";

/**
 * `good` passes everything on. `garbage` answers random bytes; `endless` the head of a reply of 4 GiB, and bytes without an end; `silent`
 * nothing; `half` the first bytes of the reply, and closes.
 */
export type Manner = "good" | "garbage" | "endless" | "silent" | "half";

/** The head of a reply to a get, in memcached's binary protocol, whose body has 4 GiB less one. */
const ENDLESS = Uint8Array.from([0x81, 0, 0, 0, 4, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, ...new Uint8Array(12)]);
const HALF = 10;

export class BadStore implements AsyncDisposable {
  /** Of connections that are there, too. */
  manner: Manner = "good";
  readonly #sockets = new Set<Socket>();
  /** Connections that a firewall has forgotten. */
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

  /** Of what is sent on the connections that are there now, nothing arrives any more, and no end is told. New ones are as good as any. */
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
    socket.on("data", (data) => {
      if (this.#forgotten.has(socket)) return;
      if (this.manner === "garbage") socket.write(randomBytes(4_096));
      else if (this.manner === "endless") this.#pour(socket);
      else if (this.manner !== "silent") real.write(data);
    });
    real.on("data", (data: Uint8Array) => {
      if (this.#forgotten.has(real)) return;
      if (this.manner === "half") socket.end(data.subarray(0, HALF));
      else if (this.manner === "good") socket.write(data);
    });
  }

  #pour(socket: Socket): void {
    socket.write(ENDLESS);
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

/** A proxy of Redis as there are several: it knows few commands, and closes the connection of who asks for another. */
export class NarrowRedis implements AsyncDisposable {
  /** Commands that it did not know. */
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
