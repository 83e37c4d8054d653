// The messages of a SOCKS 5 client, and an association (RFC 1928 §7), for tests. Independent of the code inside.
import { Buffer } from "node:buffer";
import { createSocket, type Socket } from "node:dgram";
import { once } from "node:events";
import { dial, type Wire } from "./sockets.ts";
import { bytes } from "../tests/conformance/support.ts";

/** The methods that a client offers. */
export function methods(...offered: number[]): Uint8Array {
  return Uint8Array.of(5, offered.length, ...offered);
}

/** User name and password; their lengths modulo 256, as careless clients write them. */
export function credentials(username: string, password: string): Uint8Array {
  const [name, secret] = [new TextEncoder().encode(username), new TextEncoder().encode(password)];
  return Uint8Array.of(1, name.length % 256, ...name, secret.length % 256, ...secret);
}

/** A request for a name, CONNECT by default. */
export function request(host: string, port: number, command = 1): Uint8Array {
  return Uint8Array.of(5, command, 0, 3, host.length, ...bytes(host), port >> 8, port & 0xff);
}

/** A request for an address. */
export function requestOf(address: number[], port: number, command = 1): Uint8Array {
  return Uint8Array.of(5, command, 0, address.length === 4 ? 1 : 4, ...address, port >> 8, port & 0xff);
}

/** A datagram to `host`, an IPv4 address or a name. */
export function socksDatagram(host: string, port: number, payload: Uint8Array | string = "", fragment = 0): Uint8Array {
  const address = /^[0-9.]+$/.test(host) ? [1, ...host.split(".").map(Number)] : [3, host.length, ...bytes(host)];
  const data = typeof payload === "string" ? bytes(payload) : payload;
  return Buffer.concat([Uint8Array.of(0, 0, fragment, ...address, port >> 8, port & 0xff), data]);
}

/** A client's association: its TCP connection, and its UDP socket. */
export class SocksAssociation implements Disposable {
  readonly #received: Buffer[] = [];

  private constructor(readonly wire: Wire, readonly socket: Socket, readonly relay: { readonly host: string; readonly port: number }) {
    socket.on("message", (datagram: Buffer) => this.#received.push(datagram));
    socket.on("error", () => {}); // nothing listens any more
  }

  /** Authenticates at `address` with user name and password, and asks for an association without a port of its own. */
  static async open(address: string, username: string, password = "x", ask = requestOf([0, 0, 0, 0], 0, 3)): Promise<SocksAssociation> {
    const wire = await dial(address);
    await wire.write(Buffer.concat([methods(2), credentials(username, password), ask]));
    const answer = await wire.read(8);
    if (answer.toString("hex") !== "0502010005000001") throw new Error(`No association: ${answer.toString("hex")}`);
    const bound = await wire.read(6);
    const socket = createSocket("udp4");
    socket.bind(0, "127.0.0.1");
    await once(socket, "listening");
    return new SocksAssociation(wire, socket, { host: bound.subarray(0, 4).join("."), port: bound.readUInt16BE(4) });
  }

  /** Resolves when the system has taken the datagram. */
  async sendRaw(datagram: Uint8Array, from = this.socket): Promise<void> {
    const { host, port } = this.relay;
    await new Promise<void>((resolve, reject) => from.send(datagram, port, host, (error) => error ? reject(error) : resolve()));
  }

  async send(host: string, port: number, payload: Uint8Array | string): Promise<void> {
    await this.sendRaw(socksDatagram(host, port, payload));
  }

  /** The next datagram, with its header. */
  async receiveRaw(): Promise<Buffer> {
    while (this.#received.length === 0) await once(this.socket, "message");
    return this.#received.shift()!;
  }

  /** The payload of the next datagram, which has to come from `host` and `port` as they were written. */
  async receive(host: string, port: number): Promise<Buffer> {
    const header = socksDatagram(host, port);
    const datagram = await this.receiveRaw();
    const actual = datagram.subarray(0, header.length);
    if (!actual.equals(header)) throw new Error(`A datagram with the header ${actual.toString("hex")} came`);
    return datagram.subarray(header.length);
  }

  [Symbol.dispose](): void {
    this.wire[Symbol.dispose]();
    this.socket.close();
  }
}

/** A reply with a code. */
export function reply(code: number): number[] {
  return [5, code, 0, 1, 0, 0, 0, 0, 0, 0];
}
