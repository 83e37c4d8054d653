// Join strings: all that an agent or a client needs to know of a proxy, as one word that can be pasted. Knows no options.
import { Buffer } from "node:buffer";
import { createHash } from "node:crypto";
import { checkRemote } from "../address/host_port.ts";
import { describeFileError, readTextSync } from "../files/read.ts";
import { ConfigError, ValueError } from "./option.ts";

/** The contents of a join string. */
export interface Invitation {
  /** Who uses it. */
  readonly role: "agent" | "client";
  /** Addresses of the proxy, `host:port`: those of `agent-server`, or that of `http-proxy`. */
  readonly servers: readonly string[];
  /** The agent's id, or that of the agent that the client reaches. */
  readonly agentId: string;
  /** Whether the proxy is reached over TLS. Always for an agent. */
  readonly tls: boolean;
  /**
   * SHA-256 of the proxy's public key, `sha256/` and base64, or of its certificate, 64 hexadecimal digits. Default: it is verified by the
   * system's authorities.
   */
  readonly pin?: string;
  /** Whether the address is one that speaks HTTP/2. */
  readonly isHttp2?: boolean;
  /** Default: the proxy does not authenticate. */
  readonly token?: string;
}

/** A name for the format, with its version. Later versions are known by their number. */
const FORMAT = "rhttp1";
const CHECKSUM_LENGTH = 8;
/** A token has at most 16 KiB. */
const MAX_JOIN = 24 * 1024;

/**
 * Formats `rhttp1.LENGTH.SETTINGS.TOKEN.CHECKSUM`, which needs no escape in a shell or a URL. The length (base 36) is that of the whole string.
 * @throws {RangeError} for a token that is no word of letters, digits, `_`, `-`, `.` and `~`
 */
export function formatJoin({ role, servers, agentId, tls, isHttp2, pin, token = "" }: Invitation): string {
  if (!/^[\w.~-]*$/.test(token)) throw new RangeError("the token has other characters than a JWT");
  const settings = { role, servers, id: agentId, tls, ...isHttp2 && { http2: true }, ...formatPin(pin) };
  const content = `${Buffer.from(JSON.stringify(settings)).toString("base64url")}.${token}.`;
  const fixed = FORMAT.length + 2 + content.length + CHECKSUM_LENGTH;
  let length = "";
  while (length !== (fixed + length.length).toString(36)) length = (fixed + length.length).toString(36);
  const text = `${FORMAT}.${length}.${content}`;
  return text + checksumOf(text);
}

/**
 * Parses a join string for `role`. White space in it is ignored: terminals break long lines.
 * @throws {ValueError} which quotes no part of it
 */
export function parseJoin(given: string, role: Invitation["role"]): Invitation {
  const text = given.replace(/\s+/g, "");
  const fail = (why: string) => new ValueError(why, false);
  if (text.length > MAX_JOIN) throw fail(`it has more than ${MAX_JOIN} characters`);
  const [, format, length] = /^(rhttp[0-9]+)\.(?:([0-9a-z]{1,4})\.)?/.exec(text) ?? [];
  if (format === undefined) throw fail("it is no join string, which begins with rhttp1; reverse-http invite prints one");
  if (format !== FORMAT) throw fail(`it begins with ${format}, which this version does not know; install a newer one`);
  const expected = length === undefined ? undefined : parseInt(length, 36);
  if (expected === undefined || text.length < expected) {
    throw fail(`it has been cut: ${text.length} of ${expected ?? "several hundred"} characters are left; copy all of it`);
  }
  const body = text.slice(0, -CHECKSUM_LENGTH);
  if (text.length > expected || text.slice(-CHECKSUM_LENGTH) !== checksumOf(body)) {
    throw fail("its checksum does not match: some characters were changed or added; copy it again");
  }
  const [, settings = "", token = ""] = /^rhttp1\.[0-9a-z]+\.([\w-]+)\.([\w.~-]*)\.$/.exec(body) ?? [];
  const invitation = readSettings(settings, token);
  if (invitation === undefined) throw fail("its content cannot be read; was it made by another program?");
  if (invitation.role === role) return invitation;
  const remedy = role === "agent" ? "without --client" : "with --client";
  throw fail(`it is for ${invitation.role === "agent" ? "an agent" : "a client"}; reverse-http invite ${remedy} prints one for ${role}s`);
}

/** Why a value of an option `join` cannot be used, `undefined` if it can. A file is not read. */
export function joinProblem(value: string, role: Invitation["role"]): string | undefined {
  if (value.startsWith(FILE)) return undefined;
  try {
    parseJoin(value, role);
    return undefined;
  } catch (error) {
    if (!(error instanceof ValueError)) throw error;
    return error.message;
  }
}

const FILE = "file:";
/** Limit on such a file, in bytes: it may have white space. */
const MAX_FILE = 1024 * 1024;

/**
 * Reads the value of an option `join`: a join string, or `file:NAME`.
 * @throws {ConfigError}
 */
export function readJoin(value: string, role: Invitation["role"]): Invitation {
  const file = value.startsWith(FILE) ? value.slice(FILE.length) : undefined;
  const where = file === undefined ? "--join" : `--join ${value}`;
  let text = value;
  try {
    if (file !== undefined) text = readTextSync(file, MAX_FILE);
  } catch (cause) {
    throw new ConfigError(`Cannot read ${where}: ${describeFileError(cause)}`, { cause });
  }
  try {
    return parseJoin(text, role);
  } catch (cause) {
    if (!(cause instanceof ValueError)) throw cause;
    throw new ConfigError(`Cannot use ${where}: ${cause.message}`, { cause });
  }
}

function checksumOf(text: string): string {
  return createHash("sha256").update(text).digest("base64url").slice(0, CHECKSUM_LENGTH);
}

/** `undefined` for anything that {@link formatJoin} does not write. */
function readSettings(encoded: string, token: string): Invitation | undefined {
  let value: Record<string, unknown>;
  try {
    value = JSON.parse(Buffer.from(encoded, "base64url").toString("utf8"));
  } catch {
    return undefined;
  }
  if (typeof value !== "object" || value === null) return undefined;
  const { role, servers, id, tls, http2, pin, key } = value;
  if (role !== "agent" && role !== "client") return undefined;
  if (!Array.isArray(servers) || servers.length === 0 || (role === "client" && servers.length > 1)) return undefined;
  if (!servers.every((server) => typeof server === "string" && checkRemote(server) === undefined)) return undefined;
  if (typeof id !== "string" || id === "" || typeof tls !== "boolean") return undefined;
  if (http2 !== undefined && (http2 !== true || role !== "client")) return undefined;
  const digest = pin ?? key;
  const bytes = digest === undefined ? undefined : typeof digest === "string" ? Buffer.from(digest, "base64url") : Buffer.alloc(0);
  if (bytes !== undefined && bytes.length !== 32) return undefined;
  const known = bytes && (pin === undefined ? `${KEY_PIN}${bytes.toString("base64")}` : bytes.toString("hex"));
  return { role, servers, agentId: id, tls, ...http2 === true && { isHttp2: true }, pin: known, token: token === "" ? undefined : token };
}

/** Prefix of the pin of a public key. */
const KEY_PIN = "sha256/";

/** `pin` is of a certificate, `key` of a public key. */
function formatPin(pin: string | undefined): { readonly pin?: string; readonly key?: string } {
  if (pin === undefined) return {};
  if (!pin.startsWith(KEY_PIN)) return { pin: Buffer.from(pin, "hex").toString("base64url") };
  return { key: Buffer.from(pin.slice(KEY_PIN.length), "base64").toString("base64url") };
}
