// Raw TCP connections for tests: a client that controls every byte, and an origin that the test controls.
import assert from "node:assert/strict";
import { connect, createServer, type Server, type Socket } from "node:net";
import { connect as connectTls, type ConnectionOptions } from "node:tls";
import { AGENT_ID } from "./programs.ts";
import { secrets } from "./secrets.ts";

/** Timeout of every wait, reached only by a failing test. */
const PATIENCE_MS = 25_000;

async function inTime<T>(promise: Promise<T>, what: string): Promise<T> {
  let timer: ReturnType<typeof setTimeout> | undefined;
  const late = new Promise<never>((_, reject) => {
    timer = setTimeout(() => reject(new Error(`There were no ${what} in ${PATIENCE_MS} ms`)), PATIENCE_MS);
  });
  try {
    return await Promise.race([promise, late]);
  } finally {
    clearTimeout(timer);
  }
}

/** How the peer's direction ended: cleanly, or with an error code. */
export type Ending = "finished" | (string & Record<never, never>);

/** A socket that is read on demand, and knows how its peer's direction ended. */
export class Wire implements Disposable {
  #chunks: Uint8Array[] = [];
  #buffered = 0;
  #ending: Ending | undefined;
  #wake: () => void = () => {};
  #isDisposed = false;
  readonly #ended: Promise<Ending>;
  /** Number of bytes read. */
  received = 0;

  /** Bytes beyond `highWater` stay in the system's buffers. */
  constructor(readonly socket: Socket, private readonly highWater = 1 << 20) {
    socket.setNoDelay(true);
    let ended!: (ending: Ending) => void;
    this.#ended = new Promise((resolve) => ended = resolve);
    const end = (ending: Ending) => {
      this.#ending ??= ending;
      ended(this.#ending);
      this.#wake();
    };
    socket.on("data", (data: Uint8Array) => {
      this.#chunks.push(data);
      this.#buffered += data.length;
      if (this.#buffered > this.highWater) socket.pause();
      this.#wake();
    });
    socket.on("end", () => end(this.#isDisposed ? "closed" : "finished")); // Bun says so of what this side has destroyed, too
    socket.on("error", (error: NodeJS.ErrnoException) => end(error.code ?? error.message));
    socket.on("close", () => end("closed")); // by this side: otherwise another event came first
  }

  /** Returns the next bytes; `null` when the peer has finished. Rejects with an error code. */
  async next(): Promise<Uint8Array | null> {
    while (this.#chunks.length === 0) {
      if (this.#ending === "finished") return null;
      if (this.#ending !== undefined) throw new Error(this.#ending);
      await inTime(new Promise<void>((resolve) => this.#wake = resolve), "bytes or an end");
    }
    const chunk = this.#chunks.shift()!;
    this.#buffered -= chunk.length;
    this.received += chunk.length;
    if (this.#buffered <= this.highWater) this.socket.resume();
    return chunk;
  }

  /** Reads exactly `length` bytes. */
  async read(count: number): Promise<Buffer> {
    return await this.#gather((buffer) => buffer.length < count ? undefined : count);
  }

  /** Reads up to and including the first `mark`. */
  async readUntil(mark: string): Promise<string> {
    const bytes = await this.#gather((buffer) => {
      const at = buffer.indexOf(mark, 0, "latin1");
      return at < 0 ? undefined : at + mark.length;
    });
    return bytes.toString("latin1");
  }

  async #gather(enough: (buffer: Buffer) => number | undefined): Promise<Buffer> {
    let buffer = Buffer.alloc(0);
    for (;;) {
      const count = enough(buffer);
      if (count !== undefined) {
        this.#putBack(buffer.subarray(count));
        return buffer.subarray(0, count);
      }
      const chunk = await this.next();
      if (chunk === null) throw new Error(`finished after ${JSON.stringify(buffer.toString("latin1").slice(0, 200))}`);
      buffer = Buffer.concat([buffer, chunk]);
    }
  }

  #putBack(bytes: Uint8Array): void {
    if (bytes.length === 0) return;
    this.#chunks.unshift(bytes);
    this.#buffered += bytes.length;
    this.received -= bytes.length;
  }

  /** Reads until the peer has finished. */
  async readAll(): Promise<Buffer> {
    const chunks: Uint8Array[] = [];
    for (let chunk; (chunk = await this.next()) !== null;) chunks.push(chunk);
    return Buffer.concat(chunks);
  }

  /** Resolves with how the peer ended; discards its bytes. */
  async ending(): Promise<Ending> {
    try {
      while (await this.next() !== null);
    } catch (error) {
      if (this.#ending === undefined) throw error; // not an end of the peer
    }
    return await inTime(this.#ended, "end");
  }

  /** Resolves when the system has accepted the bytes. */
  async write(data: Uint8Array | string): Promise<void> {
    await new Promise<void>((resolve, reject) => this.socket.write(data, (error) => error ? reject(error) : resolve()));
  }

  /** Finishes this direction; the other continues. */
  finish(data?: Uint8Array | string): void {
    if (data === undefined) this.socket.end();
    else this.socket.end(data);
  }

  /** Resets both directions (RST). */
  reset(): void {
    this.socket.resetAndDestroy();
  }

  [Symbol.dispose](): void {
    this.#isDisposed = true;
    this.socket.destroy();
  }
}

/** Connects to `host:port`, optionally from a local address such as 127.0.0.2. */
export async function dial(address: string, highWater?: number, localAddress?: string): Promise<Wire> {
  const { hostname, port } = new URL(`tcp://${address}`);
  const socket = connect({ host: hostname, port: Number(port), allowHalfOpen: true, localAddress });
  const wire = new Wire(socket, highWater);
  await new Promise<void>((resolve, reject) => socket.once("connect", resolve).once("error", reject));
  return wire;
}

/** A client's certificate and the authorities that it trusts, PEM, and the protocols that it offers. */
export type ClientTls = Pick<ConnectionOptions, "ca" | "cert" | "key" | "ALPNProtocols">;

/** Connects to `host:port` with TLS. */
export async function dialTls(address: string, tls: ClientTls, highWater?: number): Promise<Wire> {
  const { hostname, port } = new URL(`tcp://${address}`);
  const socket = connectTls(
    { host: hostname, port: Number(port), servername: "localhost", allowHalfOpen: true, ...tls } as ConnectionOptions,
  );
  const wire = new Wire(socket, highWater);
  await new Promise<void>((resolve, reject) => socket.once("secureConnect", resolve).once("error", reject));
  return wire;
}

/** A server that returns its connections in the order of their arrival. */
export class Origin implements AsyncDisposable {
  readonly #waiting: ((wire: Wire) => void)[] = [];
  readonly #ready: Wire[] = [];
  readonly #all = new Set<Wire>();

  private constructor(readonly server: Server, readonly port: number, readonly host: string, serve?: (wire: Wire) => Promise<void>) {
    server.on("connection", (socket: Socket) => {
      const wire = new Wire(socket);
      this.#all.add(wire);
      socket.once("close", () => this.#all.delete(wire));
      if (serve) return void serve(wire).catch(() => wire.reset());
      const taker = this.#waiting.shift();
      if (taker) taker(wire);
      else this.#ready.push(wire);
    });
  }

  /** With `serve`, every connection is passed to it, and reset if it rejects. */
  static async start(serve?: (wire: Wire) => Promise<void>, host = "127.0.0.1"): Promise<Origin> {
    const server = createServer({ allowHalfOpen: true });
    await new Promise<void>((resolve) => server.listen({ port: 0, host, backlog: 4096 }, resolve));
    const address = server.address();
    if (address === null || typeof address === "string") throw new Error("The origin has no port");
    return new Origin(server, address.port, host, serve);
  }

  get authority(): string {
    return `${this.host}:${this.port}`;
  }

  /** The next connection. */
  async accept(): Promise<Wire> {
    return this.#ready.shift() ?? await inTime(new Promise<Wire>((resolve) => this.#waiting.push(resolve)), "a connection");
  }

  async [Symbol.asyncDispose](): Promise<void> {
    const closed = new Promise((resolve) => this.server.close(resolve));
    for (const wire of this.#all) wire[Symbol.dispose]();
    await closed;
  }
}

/** The Proxy-Authorization of a client of this agent. */
export function credentials(id = AGENT_ID, password = "any"): string {
  if (password.split(".").length === 3) secrets.addToken("a client's token", password);
  else secrets.add("a client's password", password);
  return `Proxy-Authorization: Basic ${Buffer.from(`${id}:${password}`).toString("base64")}\r\n`;
}

export function connectHead(authority: string, id?: string, password?: string): string {
  return `CONNECT ${authority} HTTP/1.1\r\nHost: ${authority}\r\n${credentials(id, password)}\r\n`;
}

export interface TunnelOptions {
  /** The agent. Default {@link AGENT_ID}. */
  id?: string;
  password?: string;
  /** Sent with the header section, in one write. */
  early?: string;
  /** See {@link Wire}. */
  highWater?: number;
  /** Uses TLS to the proxy. */
  tls?: ClientTls;
}

/** Opens a tunnel to `authority` through the proxy that listens on `clients`. */
export async function openTunnel(
  clients: string,
  authority: string,
  { id, password, early = "", highWater, tls }: TunnelOptions = {},
): Promise<Wire> {
  const wire = tls ? await dialTls(clients, tls, highWater) : await dial(clients, highWater);
  try {
    await wire.write(connectHead(authority, id, password) + early);
    const head = await wire.readUntil("\r\n\r\n");
    if (!head.startsWith("HTTP/1.1 200 ")) throw new Error(`No tunnel to ${authority}: ${JSON.stringify(head)}`);
    return wire;
  } catch (error) {
    wire[Symbol.dispose]();
    throw error;
  }
}

/** A complete response. */
export interface Answer {
  readonly status: number;
  /** By name in lower case; the last one of several with the same name. */
  readonly fields: Readonly<Record<string, string>>;
  readonly body: string;
}

/** Sends `request` unchanged, and reads until the peer has finished. `localAddress` as for {@link dial}. */
export async function ask(address: string, request: string | Uint8Array, localAddress?: string): Promise<Answer> {
  using wire = await dial(address, undefined, localAddress);
  wire.socket.write(request);
  const text = (await wire.readAll()).toString("latin1");
  const end = text.indexOf("\r\n\r\n");
  const [line = "", ...rest] = text.slice(0, end).split("\r\n");
  const fields = Object.fromEntries(rest.map((field) => {
    const colon = field.indexOf(":");
    return [field.slice(0, colon).toLowerCase(), field.slice(colon + 1).trim()];
  }));
  return { status: Number(line.split(" ")[1]), fields, body: text.slice(end + 4) };
}

/** Checks status, error type, and what every refusal must contain. */
export function assertRefused(answer: Answer, status: number, error: string): void {
  assert.equal(answer.status, status);
  assert.match(answer.fields["proxy-status"] ?? "", new RegExp(`^reverse-http-[a-z]+;error=${error}(;|$)`));
  assert.equal(answer.fields["connection"], "close");
  assert.equal(answer.fields["content-length"], String(answer.body.length));
  assert.match(answer.body, /^[^\n]+\n$/);
}
