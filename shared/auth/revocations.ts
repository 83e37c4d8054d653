// The file of revoked tokens: one `jti` a line. It is read in pieces, so that a long one stops nothing else. It is read strictly:
// skipping a bad line would accept a token that was meant to be revoked.
import { Buffer } from "node:buffer";
import { open } from "node:fs/promises";

/** The ids of revoked tokens. */
export interface Revocations {
  has(id: string): boolean;
  /** How many different ones. */
  readonly size: number;
  /** Those that are no UUID, as every `jti` is that this program makes: they may be of another issuer's tokens. */
  readonly foreign?: { readonly count: number; readonly firstLine: number };
}

/** A token that has expired needs no line any more. */
const MAX_ENTRIES = 1_000_000;
const MAX_LINE = 1_024;
/** Some thousand lines: a few milliseconds of work between two looks at everything else. */
const PIECE = 128 * 1024;

const UUID = /^[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}$/i;
/** What RFC 7519 allows in a `jti` and people do not write by mistake: no quotation marks, no lists. */
const ID = /^[!$-&(-+\--:<-_a-~]+$/;
const TOKEN = /^eyJ[\w-]*\.[\w-]+\.[\w-]*$/;

/** @throws {Error} naming the line that cannot be used */
export async function readRevocations(file: string): Promise<Revocations> {
  const list = new List();
  const decoder = new TextDecoder("utf-8", { fatal: true });
  const handle = await open(file);
  try {
    let rest = "";
    for (;;) {
      const { bytesRead, buffer } = await handle.read(Buffer.allocUnsafe(PIECE));
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

function decode(decoder: TextDecoder, bytes: Uint8Array, stream: boolean, line: number): string {
  try {
    return decoder.decode(bytes, { stream });
  } catch (cause) {
    throw new Error(`it is not text in UTF-8, from about line ${line + 1} on`, { cause });
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

  add(text: string): void {
    const line = ++this.line;
    const id = text.replace(/(?:^|\s)#.*$/, "").trim();
    if (id === "") return;
    const why = problemOf(id);
    if (why !== undefined) throw new Error(`line ${line}: ${why}`);
    const isUuid = UUID.test(id);
    // ours are in lower case
    const known = isUuid ? id.toLowerCase() : id;
    if (!this.#ids.has(known)) this.size++;
    this.#ids.add(known);
    if (known !== id) this.#ids.add(id);
    if (!isUuid) this.foreign = { count: (this.foreign?.count ?? 0) + 1, firstLine: this.foreign?.firstLine ?? line };
    if (this.size > MAX_ENTRIES) {
      throw new Error(`line ${line}: there are more than ${MAX_ENTRIES} tokens; those that have expired need no line`);
    }
  }
}

/** Nothing of the line is shown: it may be a token. */
function problemOf(id: string): string | undefined {
  if (id.length > MAX_LINE) return `it has more than ${MAX_LINE} characters`;
  if (TOKEN.test(id)) return "it is a token, and its jti is needed";
  if (/\s/.test(id)) return "it has a blank inside: one jti is needed, and # before a comment";
  if (id.includes("#")) return "a comment needs a blank before its #";
  if (/["'`]/.test(id)) return "it has quotation marks: the jti alone is needed";
  if (/[,;]/.test(id)) return "it has a comma or semicolon: one jti a line is needed";
  return ID.test(id) ? undefined : "it has characters that no jti has";
}
