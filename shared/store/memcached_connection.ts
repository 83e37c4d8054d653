// One TCP connection to a memcached server: the four commands that the store needs, in the text protocol. A reply that is too long or unexpected
// ends the connection, because the replies after it could belong to other requests. The circuit breaker has the timeouts and reconnects.
// https://docs.memcached.org/protocols/basic/
import { Buffer } from "node:buffer";
import { connect, type Socket } from "node:net";
import { printable } from "../net/printable.ts";
import { StoreError } from "./store.ts";

/** Limit on the bytes of a reply, which is an address at most. */
const MAX_REPLY = 64 * 1024;

/** Idle time in milliseconds before a TCP keep-alive, which also keeps the connection open in firewalls. */
const KEEPALIVE_MS = 15_000;

/** Longest lifetime in seconds; memcached takes a larger number for a time since 1970. */
const MAX_TTL_S = 30 * 24 * 60 * 60;

/** A request without a complete reply. */
interface Request {
  /** The replies without a value. */
  readonly replies: readonly string[];
  /** The key whose value is requested. */
  readonly key?: string;
  readonly resolve: (value: string | undefined) => void;
  readonly reject: (error: Error) => void;
}

/** Keys have 1 to 250 bytes without spaces and control characters. Requests are sent as soon as the connection is established. */
export class MemcachedConnection {
  readonly #socket: Socket;
  readonly #onEnd: () => void;
  /** In the order in which the server replies. */
  readonly #pending: Request[] = [];
  #received: Buffer = Buffer.alloc(0);
  #error: Error | undefined;

  /** Starts to connect. `onEnd` is called once, when the connection has failed or is closed. */
  constructor(host: string, port: number, onEnd: () => void) {
    this.#onEnd = onEnd;
    this.#socket = connect({ host, port });
    this.#socket.on("connect", () => this.#socket.setNoDelay(true).setKeepAlive(true, KEEPALIVE_MS));
    this.#socket.on("data", (data: Buffer) => this.#receive(data));
    this.#socket.on("error", (error: NodeJS.ErrnoException) => this.close(error.message || String(error.code)));
    this.#socket.on("close", () => this.close("the server closed the connection"));
  }

  /** @throws {StoreError} as all commands, when the connection ends before the reply */
  get(key: string): Promise<string | undefined> {
    return this.#request(`get ${key}\r\n`, ["END"], key);
  }

  async set(key: string, value: string, ttlS: number): Promise<void> {
    await this.#request(storageCommand("set", key, value, ttlS), ["STORED"]);
  }

  async add(key: string, value: string, ttlS: number): Promise<void> {
    await this.#request(storageCommand("add", key, value, ttlS), ["STORED", "NOT_STORED"]);
  }

  async touch(key: string, ttlS: number): Promise<void> {
    await this.#request(`touch ${key} ${Math.min(ttlS, MAX_TTL_S)}\r\n`, ["TOUCHED", "NOT_FOUND"]);
  }

  /** Closes the socket at once. Pending requests and later ones reject with `reason`. */
  close(reason: string): void {
    if (this.#error) return;
    const error = this.#error = new StoreError(reason);
    this.#socket.destroy();
    for (const { reject } of this.#pending.splice(0)) reject(error);
    this.#onEnd();
  }

  #request(command: string, replies: readonly string[], key?: string): Promise<string | undefined> {
    return new Promise((resolve, reject) => {
      if (this.#error) return reject(this.#error);
      this.#pending.push({ replies, key, resolve, reject });
      this.#socket.write(command);
    });
  }

  #receive(data: Buffer): void {
    if (this.#error) return;
    this.#received = this.#received.length === 0 ? data : Buffer.concat([this.#received, data]);
    try {
      while (this.#received.length > 0) {
        const request = this.#pending[0];
        if (!request) throw new StoreError("the server sent a reply without a request");
        const reply = parseReply(this.#received, request);
        if (!reply) return;
        this.#pending.shift();
        this.#received = this.#received.subarray(reply.length);
        request.resolve(reply.value);
      }
    } catch (error) {
      this.close((error as Error).message);
    }
  }
}

function storageCommand(name: "set" | "add", key: string, value: string, ttlS: number): string {
  return `${name} ${key} 0 ${Math.min(ttlS, MAX_TTL_S)} ${Buffer.byteLength(value)}\r\n${value}\r\n`;
}

/**
 * Parses the reply to `request` at the start of `received`; `undefined` if it is incomplete.
 * @throws {StoreError} if it is too long or no reply to the request
 */
function parseReply(received: Buffer, { replies, key }: Request): { length: number; value?: string } | undefined {
  const lineEnd = received.indexOf("\r\n");
  if (lineEnd < 0) {
    if (received.length > MAX_REPLY) throw tooLong();
    return undefined;
  }
  const line = received.toString("utf8", 0, lineEnd);
  if (replies.includes(line)) return { length: lineEnd + 2 };
  const [, found, size] = /^VALUE ([^ ]+) \d+ (\d+)$/.exec(line) ?? [];
  if (found === undefined || found !== key) throw new StoreError(`unexpected reply ${printable(line, 80)}`);
  const valueStart = lineEnd + 2;
  const valueEnd = valueStart + Number(size);
  const end = "\r\nEND\r\n";
  const length = valueEnd + end.length;
  if (length > MAX_REPLY) throw tooLong();
  if (received.length < length) return undefined;
  if (received.toString("latin1", valueEnd, length) !== end) throw new StoreError("the value's length is wrong");
  return { length, value: received.toString("utf8", valueStart, valueEnd) };
}

function tooLong(): StoreError {
  return new StoreError(`A reply has more than ${MAX_REPLY} bytes`);
}
