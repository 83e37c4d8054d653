// Finds the end of a message body (RFC 9112 §6, §7.1). It parses only the framing; the body is forwarded unchanged.
import { HeadError } from "./head.ts";

/** Tracks a body to its end. */
export interface BodyEnd {
  /** Whether the body is complete. */
  readonly done: boolean;
  /** Whether the connection may end now with the message complete. */
  readonly mayEnd: boolean;
  /** Whether all recipients agree on this end, because all lines so far ended as in RFC 9112. */
  readonly isStrict: boolean;
  /**
   * Returns how many bytes of `data` belong to the body: fewer than all only if the body ends within them.
   * @param onContent receives the content in them, without the framing of chunks
   * @throws {HeadError} 400 if the framing is malformed
   */
  take(data: Uint8Array, onContent?: (part: Uint8Array) => void): number;
}

/** A body of `length` bytes; `Infinity`: until the connection ends. */
export class LengthEnd implements BodyEnd {
  #left: number;
  readonly isStrict = true;

  constructor(length: number) {
    this.#left = length;
  }

  get done(): boolean {
    return this.#left === 0;
  }

  get mayEnd(): boolean {
    return this.#left === 0 || this.#left === Infinity;
  }

  take(data: Uint8Array, onContent?: (part: Uint8Array) => void): number {
    const taken = Math.min(data.length, this.#left);
    this.#left -= taken;
    onContent?.(data.subarray(0, taken));
    return taken;
  }
}

/** Longest chunk size line with extensions, and longest trailer section, in bytes. */
const MAX_SIZE_LINE = 4 * 1024;
const MAX_TRAILERS = 64 * 1024;
const [TAB, LF, CR, SPACE, SEMICOLON] = [0x09, 0x0a, 0x0d, 0x20, 0x3b];

/** A chunked body. */
export class ChunkedEnd implements BodyEnd {
  #state: "size" | "data" | "data-end" | "trailer" | "done" = "size";
  /** The size of the current chunk, or its remaining bytes. */
  #left = 0;
  #digits = 0;
  /** Position in a size line. */
  #part: "digits" | "blanks" | "extension" = "digits";
  /** Bytes of the current size line, or of the trailer section. */
  #length = 0;
  /** Bytes of the current trailer line, without its end. */
  #line = 0;
  #afterCr = false;
  #isStrict = true;
  readonly #lenient: boolean;

  /** @param lenient lines may end with LF alone, but for those with an extension, in which others see it as text */
  constructor({ lenient }: { lenient: boolean }) {
    this.#lenient = lenient;
  }

  get done(): boolean {
    return this.#state === "done";
  }

  get isStrict(): boolean {
    return this.#isStrict;
  }

  /** In lenient mode the final empty line may be missing, as many servers omit it. */
  get mayEnd(): boolean {
    return this.done || (this.#lenient && this.#state === "trailer" && this.#length === 0);
  }

  take(data: Uint8Array, onContent?: (part: Uint8Array) => void): number {
    let at = 0;
    while (at < data.length && this.#state !== "done") {
      if (this.#state === "data") {
        const taken = Math.min(this.#left, data.length - at);
        onContent?.(data.subarray(at, at + taken));
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
      if (!this.#afterCr && (!this.#lenient || this.#part === "extension")) throw malformed();
      this.#isStrict &&= this.#afterCr;
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
    if (this.#part === "extension") return;
    const digit = digitOf(byte);
    if (digit >= 0 && this.#part === "digits") {
      // larger numbers are not exact
      if (++this.#digits > 16 || (this.#left = 16 * this.#left + digit) > Number.MAX_SAFE_INTEGER) throw malformed();
    } else if (this.#digits > 0 && (byte === SPACE || byte === TAB)) this.#part = "blanks";
    else if (this.#digits > 0 && byte === SEMICOLON) this.#part = "extension";
    else throw malformed();
  }

  #endLine(): void {
    if (this.#state === "size") {
      if (this.#digits === 0) throw malformed();
      this.#state = this.#left === 0 ? "trailer" : "data";
      [this.#digits, this.#part, this.#length] = [0, "digits", 0];
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
