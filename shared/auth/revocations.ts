// The revocation list: a file with one `jti` per line, or `name:` or `sub:` with what all tokens of a person or an agent have, or `before:` with
// who has signed out at an issuer. It is read in chunks, so that a long file does not block the event loop, and strictly: skipping an invalid
// line could accept a revoked token.
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
  /** `sid`, the session at an issuer. */
  readonly session?: string;
  /** When an issuer has issued it, in milliseconds since 1970. Default: no issuer has, so no one signs out there. */
  readonly issuedAt?: number;
}

/** The end of a session at an issuer, or of all sessions of a person. One of `session` and `subject` is there. */
export interface SignOut {
  /** In milliseconds since 1970: tokens that were issued later are accepted. */
  readonly at: number;
  readonly session?: string;
  /** The subject. Without a `session` all its tokens are revoked; with one, those that name no session. */
  readonly subject?: string;
}

/** Whether the end of a session is that of the token's session. */
export function endsWith({ subject, session, issuedAt = Infinity }: Revocable, signOut: SignOut): boolean {
  if (signOut.session !== undefined && session === signOut.session) return true;
  const isOfPerson = signOut.subject !== undefined && subject === signOut.subject && issuedAt <= signOut.at;
  return isOfPerson && (signOut.session === undefined || session === undefined);
}

/** The ids of revoked tokens, the names and subjects whose tokens are all revoked, and sessions that have ended. */
export interface Revocations {
  has(id: string): boolean;
  /** Whether the token is revoked, by its id, name or subject. */
  revokes(token: Revocable): boolean;
  /** Whether all tokens of the session are revoked. */
  covers(signOut: SignOut): boolean;
  /** Number of distinct entries. */
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
/** The end of a session. */
const SIGN_OUT = /^before:([0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z)(?: sid:(\S+))?(?: sub:(\S.*))?$/;
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
  await appendLine(file, id, comment);
}

/**
 * Adds the end of a session to the end of the list.
 * @throws {RevocationError} if a line cannot name it, or the file cannot be written
 */
export async function appendSignOut(file: string, signOut: SignOut, comment: string): Promise<void> {
  const { at, session, subject } = signOut;
  const line = [
    `before:${new Date(at).toISOString().replace(/\.[0-9]+Z$/, "Z")}`,
    ...session === undefined ? [] : [`sid:${session}`],
    ...subject === undefined ? [] : [`sub:${subject}`],
  ].join(" ");
  const read = parseSignOut(withoutComment(line));
  if (read?.session !== session || read?.subject !== subject) {
    throw new RevocationError("the sub or sid has characters that a line cannot have");
  }
  await appendLine(file, line, comment);
}

/** @throws {RevocationError} */
async function appendLine(file: string, line: string, comment: string): Promise<void> {
  try {
    const handle = await open(file, "a+");
    try {
      const { size } = await handle.stat();
      const { buffer } = await handle.read(Buffer.alloc(1), 0, 1, Math.max(0, size - 1));
      const isComplete = size === 0 || buffer[0] === 0x0a;
      await handle.appendFile(`${isComplete ? "" : "\n"}${line} # ${printable(comment)}\n`);
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

/** A line without its comment and the space around it. */
function withoutComment(line: string): string {
  return line.replace(/(?:^|\s)#.*$/, "").trim();
}

function parseSignOut(line: string): SignOut | undefined {
  const [, time, session, subject] = SIGN_OUT.exec(line) ?? [];
  const at = Date.parse(time ?? "");
  return Number.isNaN(at) || (session === undefined && subject === undefined) ? undefined : { at, session, subject };
}

class List implements Revocations {
  readonly #ids = new Set<string>();
  /** By subject, when all its tokens were issued at the latest, and those without a session. */
  readonly #signOuts = new Map<string, { all: number; withoutSession: number }>();
  /** Lines read so far. */
  line = 0;
  size = 0;
  foreign?: { count: number; firstLine: number };

  has(id: string): boolean {
    return this.#ids.has(id);
  }

  revokes(token: Revocable): boolean {
    const { id, subject, name } = token;
    return (id !== undefined && this.#ids.has(id)) || (name !== undefined && this.#ids.has(`name:${name}`)) ||
      (subject !== undefined && this.#ids.has(`sub:${subject}`)) || this.#isSignedOut(token);
  }

  #isSignedOut({ subject, session, issuedAt }: Revocable): boolean {
    if (issuedAt === undefined) return false;
    if (session !== undefined && this.#ids.has(`sid:${session}`)) return true;
    const { all, withoutSession } = this.#signOutsOf(subject);
    return issuedAt <= (session === undefined ? Math.max(all, withoutSession) : all);
  }

  covers({ at, session, subject }: SignOut): boolean {
    if (session !== undefined && !this.#ids.has(`sid:${session}`)) return false;
    if (subject === undefined) return true;
    const { all, withoutSession } = this.#signOutsOf(subject);
    return at <= (session === undefined ? all : Math.max(all, withoutSession));
  }

  #signOutsOf(subject = ""): { readonly all: number; readonly withoutSession: number } {
    return this.#signOuts.get(subject) ?? { all: -1, withoutSession: -1 };
  }

  #addSignOut({ at, session, subject }: SignOut): void {
    if (session !== undefined) this.#ids.add(`sid:${session}`);
    if (subject === undefined) return;
    const before = this.#signOutsOf(subject);
    const key = session === undefined ? "all" : "withoutSession";
    this.#signOuts.set(subject, { ...before, [key]: Math.max(before[key], at) });
  }

  add(text: string): void {
    const line = ++this.line;
    const id = withoutComment(text);
    if (id === "") return;
    const signOut = parseSignOut(id);
    if (signOut !== undefined) {
      this.#addSignOut(signOut);
      this.#count(line);
      return;
    }
    const why = problemOf(id);
    if (why !== undefined) throw new Error(`line ${line}: ${why}`);
    const isUuid = UUID.test(id);
    // this program issues lower-case UUIDs
    const normalized = isUuid ? id.toLowerCase() : id;
    if (!this.#ids.has(normalized)) this.#count(line);
    this.#ids.add(normalized);
    if (normalized !== id) this.#ids.add(id);
    if (!isUuid && !PERSON.test(id) && !FINGERPRINT.test(id)) {
      this.foreign = { count: (this.foreign?.count ?? 0) + 1, firstLine: this.foreign?.firstLine ?? line };
    }
  }

  /** @throws {Error} if there are too many entries */
  #count(line: number): void {
    if (++this.size <= MAX_ENTRIES) return;
    throw new Error(`line ${line}: there are more than ${MAX_ENTRIES} entries; remove those of tokens that have expired`);
  }
}

/** The message quotes nothing of the line: it may be a token. */
function problemOf(id: string): string | undefined {
  if (id.length > MAX_LINE) return `it has more than ${MAX_LINE} characters`;
  if (TOKEN.test(id.replace(/^(?:name|sub):/, ""))) return "it is a token; write its jti instead";
  if (PERSON.test(id)) return undefined;
  if (/^(?:name|sub):/.test(id)) return "it has no name behind the colon";
  if (id.startsWith("before:")) return "it is not before:2026-01-31T09:00:00Z with sid:, sub:, or both, each behind one space";
  if (/\s/.test(id)) return "it contains a space: write one jti per line, and # before a comment";
  if (id.includes("#")) return "a comment needs a space before its #";
  if (/["'`]/.test(id)) return "it has quotation marks: write the jti without them";
  if (/[,;]/.test(id)) return "it has a comma or semicolon: write one jti per line";
  return ID.test(id) ? undefined : "it has characters that are invalid in a jti";
}
