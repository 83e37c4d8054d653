// Where a message's body ends (RFC 9112 §6, §7.1). It looks at the framing alone and changes nothing: what it looks at is sent on as it came.
import { HeadError } from "./head.ts";

/** Follows a body that comes in parts, to its end. */
export interface BodyEnd {
  /** Whether all of it was seen. */
  readonly done: boolean;
  /** Whether the message is whole where the connection ends now. */
  readonly mayEnd: boolean;
  /**
   * How many bytes of `data` belong to the body; fewer than there are only where it ends within them.
   * @throws {HeadError} 400, where its framing is malformed
   */
  take(data: Uint8Array): number;
}

/** A body of `length` bytes; with `Infinity` it ends with the connection. */
export class LengthEnd implements BodyEnd {
  #left: number;

  constructor(length: number) {
    this.#left = length;
  }

  get done(): boolean {
    return this.#left === 0;
  }

  get mayEnd(): boolean {
    return this.#left === 0 || this.#left === Infinity;
  }

  take(data: Uint8Array): number {
    const taken = Math.min(data.length, this.#left);
    this.#left -= taken;
    return taken;
  }
}

/** Longest line with a chunk's size, extensions included; and all lines of a trailer section. */
const MAX_SIZE_LINE = 4 * 1024;
const MAX_TRAILERS = 64 * 1024;
const [TAB, LF, CR, SPACE, SEMICOLON] = [0x09, 0x0a, 0x0d, 0x20, 0x3b];

/** A body in chunks. */
export class ChunkedEnd implements BodyEnd {
  #state: "size" | "data" | "data-end" | "trailer" | "done" = "size";
  /** Of the chunk at hand: its size, or the bytes of it that are still to come. */
  #left = 0;
  #digits = 0;
  /** The rest of a size line: behind its digits, and within its extensions. */
  #behind: "digits" | "blanks" | "extension" = "digits";
  /** Bytes of the line at hand, or of the trailer section. */
  #length = 0;
  /** Bytes of a trailer line without its end. */
  #line = 0;
  #afterCr = false;
  readonly #lenient: boolean;

  /** `lenient`: lines may end with LF alone. */
  constructor({ lenient }: { lenient: boolean }) {
    this.#lenient = lenient;
  }

  get done(): boolean {
    return this.#state === "done";
  }

  /** Many servers leave out the empty line at the very end. */
  get mayEnd(): boolean {
    return this.done || (this.#lenient && this.#state === "trailer" && this.#length === 0);
  }

  take(data: Uint8Array): number {
    let at = 0;
    while (at < data.length && this.#state !== "done") {
      if (this.#state === "data") {
        const taken = Math.min(this.#left, data.length - at);
        this.#left -= taken;
        at += taken;
        if (this.#left === 0) this.#state = "data-end";
      } else this.#takeByte(data[at++]!);
    }
    return at;
  }

  #takeByte(byte: number): void {
    if (this.#afterCr && byte !== LF) throw malformed();
    if (byte === CR) return void (this.#afterCr = true);
    if (byte === LF) {
      if (!this.#afterCr && !this.#lenient) throw malformed();
      this.#afterCr = false;
      return this.#endLine();
    }
    if (this.#state === "size") this.#takeSize(byte);
    else if (this.#state === "trailer") {
      this.#line++;
      if (++this.#length > MAX_TRAILERS) throw malformed();
    } else throw malformed();
  }

  #takeSize(byte: number): void {
    if (++this.#length > MAX_SIZE_LINE) throw malformed();
    if (this.#behind === "extension") return;
    const digit = digitOf(byte);
    if (digit >= 0 && this.#behind === "digits") {
      // more than that a number does not hold exactly
      if (++this.#digits > 16 || (this.#left = 16 * this.#left + digit) > Number.MAX_SAFE_INTEGER) throw malformed();
    } else if (this.#digits > 0 && (byte === SPACE || byte === TAB)) this.#behind = "blanks";
    else if (this.#digits > 0 && byte === SEMICOLON) this.#behind = "extension";
    else throw malformed();
  }

  #endLine(): void {
    if (this.#state === "size") {
      if (this.#digits === 0) throw malformed();
      this.#state = this.#left === 0 ? "trailer" : "data";
      [this.#digits, this.#behind, this.#length] = [0, "digits", 0];
    } else if (this.#state === "data-end") this.#state = "size";
    else if (this.#line === 0) this.#state = "done";
    this.#line = 0;
  }
}

function digitOf(byte: number): number {
  if (byte >= 0x30 && byte <= 0x39) return byte - 0x30;
  const letter = byte | 0x20;
  return letter >= 0x61 && letter <= 0x66 ? letter - 0x57 : -1;
}

function malformed(): HeadError {
  return new HeadError(400, "The chunked body is malformed");
}
