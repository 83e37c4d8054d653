// A name server that a test can silence, for programs with their own resolv.conf. Needs root and Linux.
import { createSocket, type RemoteInfo, type Socket } from "node:dgram";
import { once } from "node:events";
import type { Folder } from "./programs.ts";

/** Each name has one A record and no others. */
const LOOPBACK = [0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 0, 0, 4, 127, 0, 0, 1];
const HEADER = 12;
const A = 1;

/**
 * `answers`: every name exists, except those under `missing.example`; queries for names under `silent.example`, and AAAA queries for names
 * under `ipv4.example`, get no response. `silent`: no query gets a response.
 */
export type Mode = "answers" | "silent";

export class NameServer implements AsyncDisposable {
  mode: Mode = "answers";
  /** The queries received. */
  asked = 0;

  private constructor(private readonly socket: Socket, private readonly address: string) {
    socket.on("error", () => {}); // the program no longer waits for the response
    socket.on("message", (query, from) => this.#take(query, from));
  }

  static async start(): Promise<NameServer> {
    const socket = createSocket("udp4");
    const part = () => 1 + Math.floor(Math.random() * 250);
    const address = `127.${part()}.${part()}.${part()}`; // port 53 of an own address: resolv.conf has no ports
    socket.bind(53, address);
    await once(socket, "listening");
    return new NameServer(socket, address);
  }

  #take(query: Uint8Array, { port, address }: RemoteInfo): void {
    this.asked++;
    if (this.mode === "silent") return;
    const reply = Uint8Array.from(query.subarray(0, this.#endOfQuestion(query)));
    const type = (reply.at(-4)! << 8) + reply.at(-3)!;
    const text = new TextDecoder("latin1").decode(reply);
    if (text.includes("\x06silent\x07example") || (type !== A && text.includes("\x04ipv4\x07example"))) return;
    const isMissing = text.includes("\x07missing\x07example");
    const found = !isMissing && type === A;
    reply.set([0x81, isMissing ? 0x83 : 0x80, 0, 1, 0, found ? 1 : 0, 0, 0, 0, 0], 2);
    this.socket.send(Uint8Array.from([...reply, ...found ? LOOPBACK : []]), port, address);
  }

  #endOfQuestion(query: Uint8Array): number {
    let at = HEADER;
    while (query[at]! > 0) at += query[at]! + 1;
    return at + 5;
  }

  /** The command that starts `file` with `args` so that it queries only this server. */
  command(folder: Folder, file: string, args: readonly string[]): [file: string, args: string[]] {
    const conf = folder.write("resolv.conf", `nameserver ${this.address}\n`);
    return ["/usr/bin/unshare", ["-m", "sh", "-c", 'mount --bind "$0" /etc/resolv.conf && exec "$@"', conf, file, ...args]];
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await new Promise<void>((resolve) => this.socket.close(() => resolve()));
  }
}
