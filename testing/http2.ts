// A peer that speaks HTTP/2 frame by frame (RFC 9113), for what no real one does. It knows just enough HPACK to ask and to answer (RFC 7541).
import { Buffer } from "node:buffer";
import type { Duplex } from "../shared/net/stream.ts";

/** Frame types (RFC 9113 §6). */
export const DATA = 0, HEADERS = 1, RST_STREAM = 3, SETTINGS = 4, PING = 6, GOAWAY = 7, WINDOW_UPDATE = 8, CONTINUATION = 9;
/** Flags. */
export const END_STREAM = 1, ACK = 1, END_HEADERS = 4;
/** Error codes (RFC 9113 §7). */
export const NO_ERROR = 0, INTERNAL_ERROR = 2, REFUSED_STREAM = 7, CANCEL = 8, CONNECT_ERROR = 10, ENHANCE_YOUR_CALM = 11;
/** Identifiers of settings (RFC 9113 §6.5.2). */
export const MAX_CONCURRENT_STREAMS = 3, INITIAL_WINDOW_SIZE = 4;

const PREFACE = Buffer.from("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");

export interface Frame {
  readonly type: number;
  readonly flags: number;
  readonly stream: number;
  readonly payload: Buffer;
}

/** A connection; `frames` has all that was received except acknowledgements. */
export class Http2Peer {
  readonly frames: Frame[] = [];
  #buffer = Buffer.alloc(0);
  /** Frames that {@link next} has returned. */
  #seen = 0;
  answersPings = true;
  #areSettingsApplied = false;

  private constructor(readonly socket: Duplex) {}

  static async open(socket: Duplex, settings: readonly (readonly [id: number, value: number])[] = []): Promise<Http2Peer> {
    const client = new Http2Peer(socket);
    await socket.write(Buffer.concat([PREFACE, encodeFrame(SETTINGS, 0, 0, encodeSettings(settings))]));
    return client;
  }

  /** As a server: reads the client's preface. */
  static async accept(socket: Duplex, settings: readonly (readonly [id: number, value: number])[] = []): Promise<Http2Peer> {
    const peer = new Http2Peer(socket);
    while (peer.#buffer.length < PREFACE.length) {
      const data = await socket.read();
      if (data === null) throw new Error("The client has ended before its preface");
      peer.#buffer = Buffer.concat([peer.#buffer, data]);
    }
    peer.#buffer = peer.#buffer.subarray(PREFACE.length);
    await socket.write(encodeFrame(SETTINGS, 0, 0, encodeSettings(settings)));
    return peer;
  }

  async send(type: number, flags: number, stream: number, payload: Uint8Array = Buffer.alloc(0)): Promise<void> {
    await this.socket.write(encodeFrame(type, flags, stream, payload));
  }

  async request(stream: number, fields: Readonly<Record<string, string>>, flags = 0): Promise<void> {
    await this.send(HEADERS, flags | END_HEADERS, stream, encodeFields(fields));
  }

  async connect(stream: number, authority = "a.test:1"): Promise<void> {
    await this.request(stream, { ":method": "CONNECT", ":authority": authority });
  }

  /** Answers a request. */
  async respond(stream: number, status: number, flags = 0): Promise<void> {
    await this.request(stream, { ":status": String(status) }, flags);
  }

  /** Takes no more streams than up to `last`. */
  async goAway(last: number): Promise<void> {
    await this.send(GOAWAY, 0, 0, Buffer.concat([word(last), word(NO_ERROR)]));
  }

  async data(stream: number, data: string | Uint8Array, flags = 0): Promise<void> {
    await this.send(DATA, flags, stream, Buffer.from(data as Uint8Array));
  }

  async reset(stream: number, code = CANCEL): Promise<void> {
    await this.send(RST_STREAM, 0, stream, word(code));
  }

  async grant(stream: number, bytes: number): Promise<void> {
    await this.send(WINDOW_UPDATE, 0, stream, word(bytes));
  }

  /** The next frame that `is` accepts; those before it are skipped. Acknowledges settings and pings. `undefined` at the end. */
  async next(is: (frame: Frame) => boolean): Promise<Frame | undefined> {
    for (;;) {
      while (this.#seen < this.frames.length) {
        const frame = this.frames[this.#seen++]!;
        if (is(frame)) return frame;
      }
      if (!await this.#receive()) return undefined;
    }
  }

  /** Resolves when the other end has applied the settings, or has ended. */
  async settled(): Promise<void> {
    while (!this.#areSettingsApplied && await this.#receive());
  }

  /** Takes a frame; `false` at the end. */
  async #receive(): Promise<boolean> {
    const frame = await this.#read();
    if (frame === undefined) return false;
    const isAck = (frame.type === SETTINGS || frame.type === PING) && (frame.flags & ACK) !== 0;
    if (!isAck) this.frames.push(frame);
    if (frame.type === SETTINGS) {
      if (isAck) this.#areSettingsApplied = true;
      else await this.send(SETTINGS, ACK, 0);
    }
    if (frame.type === PING && !isAck && this.answersPings) await this.send(PING, ACK, 0, frame.payload);
    return true;
  }

  /** The next frame of this type, on this stream. */
  async of(type: number, stream = 0): Promise<Frame | undefined> {
    return await this.next((frame) => frame.type === type && frame.stream === stream);
  }

  /** The error code of the next RST_STREAM or GOAWAY. */
  async code(type: typeof RST_STREAM | typeof GOAWAY, stream = 0): Promise<number | undefined> {
    return (await this.of(type, stream))?.payload.readUInt32BE(type === GOAWAY ? 4 : 0);
  }

  /** The data of a stream up to `length` bytes or its END_STREAM. */
  async text(stream: number, length = Infinity): Promise<string> {
    let text = "";
    while (text.length < length) {
      const frame = await this.next(({ type, stream: on }) => on === stream && (type === DATA || type === RST_STREAM));
      if (frame === undefined || frame.type === RST_STREAM) throw new Error(`The stream was cut after ${JSON.stringify(text)}`);
      text += frame.payload.toString("latin1");
      if (frame.flags & END_STREAM) break;
    }
    return text;
  }

  /** The status of the next response head. */
  async status(stream: number): Promise<number> {
    const frame = await this.of(HEADERS, stream);
    if (frame === undefined) throw new Error("There is no response");
    return decodeStatus(frame.payload);
  }

  async #read(): Promise<Frame | undefined> {
    for (;;) {
      const length = this.#buffer.length < 9 ? Infinity : 9 + this.#buffer.readUIntBE(0, 3);
      if (this.#buffer.length >= length) {
        const frame = this.#buffer.subarray(0, length);
        this.#buffer = this.#buffer.subarray(length);
        return { type: frame[3]!, flags: frame[4]!, stream: frame.readUInt32BE(5), payload: frame.subarray(9) };
      }
      const data = await this.socket.read().catch(() => null);
      if (data === null) return undefined;
      this.#buffer = Buffer.concat([this.#buffer, data]);
    }
  }
}

function encodeSettings(settings: readonly (readonly [id: number, value: number])[]): Buffer {
  const payload = Buffer.alloc(6 * settings.length);
  settings.forEach(([id, value], i) => {
    payload.writeUInt16BE(id, 6 * i);
    payload.writeUInt32BE(value, 6 * i + 2);
  });
  return payload;
}

function word(value: number): Buffer {
  const bytes = Buffer.alloc(4);
  bytes.writeUInt32BE(value);
  return bytes;
}

export function encodeFrame(type: number, flags: number, stream: number, payload: Uint8Array): Uint8Array {
  const head = Buffer.alloc(9);
  head.writeUIntBE(payload.length, 0, 3);
  head[3] = type;
  head[4] = flags;
  head.writeUInt32BE(stream, 5);
  return new Uint8Array(Buffer.concat([head, payload]));
}

/** Literal fields without indexing (RFC 7541 §6.2.2). */
export function encodeFields(fields: Readonly<Record<string, string>>): Uint8Array {
  const parts = Object.entries(fields).map(([name, value]) => Buffer.concat([Buffer.from([0]), encodeString(name), encodeString(value)]));
  return new Uint8Array(Buffer.concat(parts));
}

/** A string without Huffman coding (RFC 7541 §5.2). */
function encodeString(text: string): Buffer {
  const length = [];
  let left = text.length;
  if (left < 127) length.push(left);
  else {
    length.push(127);
    for (left -= 127; left >= 128; left >>= 7) length.push(left % 128 + 128);
    length.push(left);
  }
  return Buffer.concat([Buffer.from(length), Buffer.from(text, "latin1")]);
}

/** Statuses of the static table (RFC 7541 appendix A). */
const STATUSES = [200, 204, 206, 304, 400, 404, 500];

/** The status at the start of a response head: indexed, or literal with or without Huffman coding. */
function decodeStatus(block: Buffer): number {
  let at = 0;
  while ((block[at]! & 0xe0) === 0x20) at++; // changes of the table's size
  const first = block[at]!;
  if (first >= 0x88 && first <= 0x8e) return STATUSES[first - 0x88]!;
  const length = block[at + 1]!;
  const value = block.subarray(at + 2, at + 2 + (length & 0x7f));
  if (!(length & 0x80)) return Number(value.toString("latin1"));
  const bits = [...value].map((byte) => byte.toString(2).padStart(8, "0")).join("");
  let digits = "";
  for (let i = 0; digits.length < 3;) {
    const isShort = Number.parseInt(bits.slice(i, i + 5), 2) < 3; // 0, 1 and 2 have five bits (RFC 7541 appendix B)
    digits += isShort ? Number.parseInt(bits.slice(i, i + 5), 2) : Number.parseInt(bits.slice(i, i + 6), 2) - 0x19 + 3;
    i += isShort ? 5 : 6;
  }
  return Number(digits);
}
