// A client of UDP proxying over HTTP/1.1 (RFC 9298) for tests, and destinations that speak UDP. Independent of the code inside.
import { createSocket, type RemoteInfo, type Socket } from "node:dgram";
import { once } from "node:events";
import { credentials, dial, type Wire } from "./sockets.ts";

/** Encodes a variable-length integer (RFC 9000 §16) in as few bytes as possible. */
export function varint(value: number): Buffer {
  if (value < 0x40) return Buffer.from([value]);
  const bytes = Buffer.alloc(value < 0x4000 ? 2 : 4);
  if (bytes.length === 2) bytes.writeUInt16BE(0x4000 | value);
  else bytes.writeUInt32BE(0x8000_0000 + value);
  return bytes;
}

/** A capsule (RFC 9297 §3.2). */
export function capsule(type: number, value: Uint8Array): Buffer {
  return Buffer.concat([varint(type), varint(value.length), value]);
}

/** A DATAGRAM capsule; `context` 0 is a UDP payload. */
export function datagram(payload: Uint8Array | string, context = 0): Buffer {
  return capsule(0, Buffer.concat([varint(context), Buffer.from(payload)]));
}

export function udpHead(authority: string, fields = credentials()): string {
  const [, host = "", port = ""] = /^\[?(.*?)\]?:([0-9]+)$/.exec(authority) ?? [];
  return `GET /.well-known/masque/udp/${encodeURIComponent(host)}/${port}/ HTTP/1.1\r\nHost: proxy.example\r\n` +
    `Connection: Upgrade\r\nUpgrade: connect-udp\r\nCapsule-Protocol: ?1\r\n${fields}\r\n`;
}

/** A flow as its client sees it. */
export class UdpFlow implements Disposable {
  private constructor(readonly wire: Wire, readonly head: string) {}

  /** Opens a flow to `authority` through the proxy or lb that listens on `clients`; `early` is sent with the request. */
  static async open(clients: string, authority: string, early: Uint8Array = new Uint8Array(), highWater?: number): Promise<UdpFlow> {
    const wire = await dial(clients, highWater);
    try {
      await wire.write(Buffer.concat([Buffer.from(udpHead(authority)), early]));
      const head = await wire.readUntil("\r\n\r\n");
      if (!head.startsWith("HTTP/1.1 101 ")) throw new Error(`No flow to ${authority}: ${JSON.stringify(head)}`);
      return new UdpFlow(wire, head);
    } catch (error) {
      wire[Symbol.dispose]();
      throw error;
    }
  }

  async send(payload: Uint8Array | string): Promise<void> {
    await this.wire.write(datagram(payload));
  }

  /** The payload of the next datagram; rejects if another capsule comes. */
  async receive(): Promise<Buffer> {
    const [type, length] = [await this.#readVarint(), await this.#readVarint()];
    const value = await this.wire.read(length);
    if (type !== 0 || value[0] !== 0) throw new Error(`A capsule of type ${type} with context ${value[0]} came`);
    return value.subarray(1);
  }

  async #readVarint(): Promise<number> {
    const [first = 0] = await this.wire.read(1);
    const rest = await this.wire.read((1 << (first >> 6)) - 1);
    return rest.reduce((value, byte) => value * 256 + byte, first & 0x3f);
  }

  [Symbol.dispose](): void {
    this.wire[Symbol.dispose]();
  }
}

/** A UDP server on loopback. */
export class UdpServer implements AsyncDisposable {
  readonly #received: { payload: Buffer; from: RemoteInfo }[] = [];

  private constructor(readonly socket: Socket, readonly host: string, readonly port: number, isKept: boolean) {
    if (isKept) socket.on("message", (payload: Buffer, from: RemoteInfo) => this.#received.push({ payload, from }));
  }

  /** With `answer`, its result is sent back for each datagram. Port 0 lets the system choose. */
  static async start(answer?: (payload: Buffer) => Uint8Array, host = "127.0.0.1", port = 0): Promise<UdpServer> {
    const socket = createSocket(host.includes(":") ? "udp6" : "udp4");
    socket.on("error", () => {}); // a client that has gone
    if (answer) socket.on("message", (payload, { address, port }) => socket.send(answer(payload), port, address));
    socket.bind(port, host);
    await once(socket, "listening");
    return new UdpServer(socket, host, socket.address().port, answer === undefined);
  }

  get authority(): string {
    return this.host.includes(":") ? `[${this.host}]:${this.port}` : `${this.host}:${this.port}`;
  }

  /** The next datagram, for a server without an `answer`. */
  async receive(): Promise<{ payload: Buffer; from: RemoteInfo }> {
    while (this.#received.length === 0) await once(this.socket, "message");
    return this.#received.shift()!;
  }

  /** Resolves when the system has taken the datagram. */
  async send(payload: Uint8Array | string, { address, port }: RemoteInfo): Promise<void> {
    await new Promise<void>((resolve, reject) => this.socket.send(payload, port, address, (error) => error ? reject(error) : resolve()));
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await new Promise<void>((resolve) => this.socket.close(() => resolve()));
  }
}
