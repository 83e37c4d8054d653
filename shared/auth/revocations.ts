// The revocation list: a file with one `jti` per line, or `name:` or `sub:` with what all tokens of a person or an agent have. It is read in chunks, so that a long file does not block the event loop, and strictly:
// skipping an invalid line could accept a revoked token.
import { Buffer } from "node:buffer";
import { open } from "node:fs/promises";
import { describeWriteError } from "../files/read.ts";
import { printable } from "../net/printable.ts";
import { RevocationError } from "./authenticator.ts";

/** What identifies a token to a revocation list. */
export interface Revocable {
  /** `jti`. */
  readonly id?: string;
  readonly subject?: string;
  readonly name?: string;
}

/** The ids of revoked tokens, and the names and subjects whose tokens are all revoked. */
export interface Revocations {
  has(id: string): boolean;
  /** Whether the token is revoked, by its id, name or subject. */
  revokes(token: Revocable): boolean;
  /** Number of distinct ids. */
  readonly size: number;
  /** Ids that are not UUIDs, as this program issues them: they may belong to another issuer's tokens. */
  readonly foreign?: { readonly count: number; readonly firstLine: number };
}

/** Limit on entries; lines of expired tokens can be removed. */
const MAX_ENTRIES = 1_000_000;
const MAX_LINE = 1_024;
/** Bytes per read: some thousand lines, a few milliseconds of work. */
const CHUNK = 128 * 1024;

const UUID = /^[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}$/i;
/** Characters of a `jti` (RFC 7519), without those that indicate a mistake: quotation marks and list separators. */
const ID = /^[!$-&(-+\--:<-_a-~]+$/;
/** A certificate of a client. */
const FINGERPRINT = /^sha256:[0-9a-f]{64}$/;
/** A person or an agent; the rest of the line is the name. */
const PERSON = /^(?:name|sub):[^\s].*$/;
const TOKEN = /^(?:eyJ[\w-]*\.[\w-]+\.[\w-]*|rht_[\w-]{64,})$/;

/** @throws {Error} naming the first invalid line */
export async function readRevocations(file: string): Promise<Revocations> {
  const list = new List();
  const decoder = new TextDecoder("utf-8", { fatal: true });
  const handle = await open(file);
  try {
    let rest = "";
    for (;;) {
      const { bytesRead, buffer } = await handle.read(Buffer.allocUnsafe(CHUNK));
      rest += decode(decoder, buffer.subarray(0, bytesRead), bytesRead > 0, list.line);
      const lines = rest.split(/\r\n|\n|\r(?!$)/);
      rest = bytesRead > 0 ? lines.pop()! : "";
      for (const line of lines) list.add(line);
      if (rest.length > MAX_LINE) throw new Error(`line ${list.line + 1}: it has more than ${MAX_LINE} characters`);
      if (bytesRead === 0) return list;
    }
  } finally {
    await handle.close();
  }
}

/**
 * Adds a token to the end of the list, which is not rewritten: others may add to it too.
 * @throws {RevocationError} if the id is invalid, or the file cannot be written
 */
export async function appendRevocation(file: string, id: string, comment: string): Promise<void> {
  const why = problemOf(id);
  if (why !== undefined) throw new RevocationError(`the token cannot be revoked: ${why}`);
  try {
    const handle = await open(file, "a+");
    try {
      const { size } = await handle.stat();
      const { buffer } = await handle.read(Buffer.alloc(1), 0, 1, Math.max(0, size - 1));
      const isComplete = size === 0 || buffer[0] === 0x0a;
      await handle.appendFile(`${isComplete ? "" : "\n"}${id} # ${printable(comment)}\n`);
      await handle.sync();
    } finally {
      await handle.close();
    }
  } catch (cause) {
    throw new RevocationError(`the revocation file cannot be written: ${describeWriteError(cause)}`, { cause });
  }
}

function decode(decoder: TextDecoder, bytes: Uint8Array, stream: boolean, line: number): string {
  try {
    return decoder.decode(bytes, { stream });
  } catch (cause) {
    throw new Error(`it is not UTF-8, from about line ${line + 1} on`, { cause });
  }
}

class List implements Revocations {
  readonly #ids = new Set<string>();
  /** Lines read so far. */
  line = 0;
  size = 0;
  foreign?: { count: number; firstLine: number };

  has(id: string): boolean {
    return this.#ids.has(id);
  }

  revokes({ id, subject, name }: Revocable): boolean {
    return (id !== undefined && this.#ids.has(id)) || (name !== undefined && this.#ids.has(`name:${name}`)) ||
      (subject !== undefined && this.#ids.has(`sub:${subject}`));
  }

  add(text: string): void {
    const line = ++this.line;
    const id = text.replace(/(?:^|\s)#.*$/, "").trim();
    if (id === "") return;
    const why = problemOf(id);
    if (why !== undefined) throw new Error(`line ${line}: ${why}`);
    const isUuid = UUID.test(id);
    // this program issues lower-case UUIDs
    const normalized = isUuid ? id.toLowerCase() : id;
    if (!this.#ids.has(normalized)) this.size++;
    this.#ids.add(normalized);
    if (normalized !== id) this.#ids.add(id);
    if (!isUuid && !PERSON.test(id) && !FINGERPRINT.test(id)) {
      this.foreign = { count: (this.foreign?.count ?? 0) + 1, firstLine: this.foreign?.firstLine ?? line };
    }
    if (this.size > MAX_ENTRIES) {
      throw new Error(`line ${line}: there are more than ${MAX_ENTRIES} tokens; remove those that have expired`);
    }
  }
}

/** The message quotes nothing of the line: it may be a token. */
function problemOf(id: string): string | undefined {
  if (id.length > MAX_LINE) return `it has more than ${MAX_LINE} characters`;
  if (TOKEN.test(id.replace(/^(?:name|sub):/, ""))) return "it is a token; write its jti instead";
  if (PERSON.test(id)) return undefined;
  if (/^(?:name|sub):/.test(id)) return "it has no name behind the colon";
  if (/\s/.test(id)) return "it contains a space: write one jti per line, and # before a comment";
  if (id.includes("#")) return "a comment needs a space before its #";
  if (/["'`]/.test(id)) return "it has quotation marks: write the jti without them";
  if (/[,;]/.test(id)) return "it has a comma or semicolon: write one jti per line";
  return ID.test(id) ? undefined : "it has characters that are invalid in a jti";
}
