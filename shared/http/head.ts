// Parses and writes request and response heads (RFC 9112): requests strictly, responses leniently. Knows no sockets and no policy.
import { Buffer } from "node:buffer";
import { isIPv6 } from "node:net";
import { MalformedRequestError } from "../tunnel/errors.ts";

/** A malformed or oversized head. `status` is the response to a client. */
export class HeadError extends MalformedRequestError {
  override readonly name = "HeadError";
  constructor(readonly status: 400 | 431 | 505, message: string) {
    super(message);
  }
}

/** Header fields in the order received, with names as written. */
export type Fields = readonly (readonly [name: string, value: string])[];

export interface RequestHead {
  readonly method: string;
  readonly target: string;
  /** `2`: the head was translated to the form of HTTP/1.1. */
  readonly version: "1.0" | "1.1" | "2";
  readonly fields: Fields;
}

export interface ResponseHead {
  readonly version: "1.0" | "1.1";
  readonly status: number;
  readonly reason: string;
  readonly fields: Fields;
}

/** Limit on the header lines of a request. */
const MAX_FIELDS = 100;
/** Limit on the header lines of a response. */
const MAX_RESPONSE_FIELDS = 1_000;

/** A PROXY protocol header, version 1, which the network has not taken. */
const PROXY_HEADER = /^PROXY (?:TCP[46]|UNKNOWN)(?: |$)/;
const UNEXPECTED_PROXY_HEADER =
  "This connection begins with a PROXY protocol header, but --http-proxy.proxy-protocol does not list the load balancer";

const TOKEN = /^[!#$%&'*+.^_`|~0-9A-Za-z-]+$/;
// visible characters, space, tab and obs-text (RFC 9110 §5.5)
const FIELD_VALUE = /^[\t\x20-\x7e\x80-\xff]*$/;
// uri-host [ ":" port ], or empty (RFC 9110 §7.2): not used here, but it must be unambiguous for the next recipient
const HOST_VALUE = /^(?:\[[0-9A-Za-z:.%~_-]+\]|[0-9A-Za-z._~!$&'()*+,;=%-]*)(?::[0-9]*)?$/;

/**
 * Parses a request head including its empty line, one character per byte (ISO 8859-1).
 * @throws {HeadError} 400 malformed, 431 too many fields, 505 version
 */
export function parseRequestHead(head: string): RequestHead {
  const [line, ...rest] = splitLines(head);
  const parts = copyOf(line!).split(" ");
  const [method, target, version] = parts;
  if (parts.length !== 3 || !method || !target || !version) {
    throw new HeadError(400, PROXY_HEADER.test(line!) ? UNEXPECTED_PROXY_HEADER : "The request line is malformed");
  }
  if (!TOKEN.test(method)) throw new HeadError(400, "The method is malformed");
  if (/[\x80-\xff]/.test(target)) {
    throw new HeadError(400, "The request target is not ASCII: all other characters must be percent-encoded, as %C3%A4");
  }
  if (!/^[\x21-\x7e]+$/.test(target)) throw new HeadError(400, "The request target is malformed");
  const fields = parseFields(rest);
  const checked = checkVersion(version);
  checkFraming(checked, fields);
  const hosts = values(fields, "host");
  // RFC 9112 §3.2 also requires one in HTTP/1.1, but clients omit it with CONNECT, and the target names the host anyway
  if (hosts.length > 1) throw new HeadError(400, "There is more than one Host field");
  if (hosts[0] !== undefined && !HOST_VALUE.test(hosts[0]) && !isBareIpv6(hosts[0])) {
    throw new HeadError(400, "The Host field is malformed");
  }
  return { method, target, version: checked, fields };
}

/** An IPv6 address without brackets, with an optional port, as wget, Ruby and others write it with CONNECT. */
function isBareIpv6(host: string): boolean {
  return [host, host.slice(0, Math.max(host.lastIndexOf(":"), 0))].some((address) => isIPv6(address.replace(/%.*/, "")));
}

/**
 * Parses a response head including its empty line. It is lenient, as clients are with servers: lines may end with LF alone (RFC 9112 §2.2),
 * white space before a colon is removed (§5.1), folded lines are joined (§5.2), control characters become spaces (RFC 9110 §5.5), and lines
 * without a valid name are dropped. The result is strict, so that all recipients read it alike.
 * @throws {HeadError} 400 malformed, 431 too many fields, 505 version
 */
export function parseResponseHead(head: string): ResponseHead {
  if (!/\n\r?\n$/.test(head)) throw new HeadError(400, "The head does not end with an empty line");
  const [line, ...rest] = head.replace(/\r?\n\r?\n$/, "").replace(/\r?\n[\t ]+/g, " ").split(/\r?\n/);
  if (rest.length > MAX_RESPONSE_FIELDS) throw new HeadError(431, `There are more than ${MAX_RESPONSE_FIELDS} header lines`);
  const match = /^(HTTP\/\S+)[\t ]+([1-9][0-9][0-9])(?:[\t ]+(.*))?$/is.exec(line!);
  if (!match) throw new HeadError(400, "The status line is malformed");
  const version = checkResponseVersion(match[1]!);
  return { version, status: Number(match[2]), reason: withoutControls(match[3] ?? ""), fields: rest.flatMap(parseResponseField) };
}

/** Empty if the line is not a field. */
function parseResponseField(line: string): Fields {
  const colon = line.indexOf(":");
  const name = trimSpace(line.slice(0, Math.max(colon, 0)));
  return TOKEN.test(name) ? [[name, withoutControls(line.slice(colon + 1))]] : [];
}

function withoutControls(text: string): string {
  // deno-lint-ignore no-control-regex -- matches forbidden characters
  return trimSpace(text.replace(/[\x00-\x08\x0a-\x1f\x7f]/g, " "));
}

/** Treats later minor versions as 1.1 (RFC 9110 §2.5). */
function checkResponseVersion(version: string): "1.0" | "1.1" {
  const written = version.toUpperCase();
  return /^HTTP\/1\.[2-9]$/.test(written) ? "1.1" : checkVersion(written);
}

/**
 * Returns the end of the first empty line in `bytes`, with CRLF or LF; -1 without one. Searches from three bytes before `from`.
 */
export function endOfHead(bytes: Buffer, from = 0): number {
  for (let at = Math.max(0, from - 3); (at = bytes.indexOf("\n", at)) >= 0; at++) {
    if (bytes[at + 1] === 0x0a) return at + 2;
    if (bytes[at + 1] === 0x0d && bytes[at + 2] === 0x0a) return at + 3;
  }
  return -1;
}

/** Removes the head from `incoming` and returns it, so that it is not kept while a tunnel is open. */
export function takeHead(incoming: { head?: string }): string {
  const { head = "" } = incoming;
  incoming.head = undefined;
  return head;
}

/** Copies text that outlives its head: a part of a string keeps the whole in memory. */
function copyOf(text: string): string {
  return Buffer.from(text, "latin1").toString("latin1");
}

/** Splits a head into lines, without CRLF and the empty line. */
function splitLines(head: string): string[] {
  if (!head.endsWith("\r\n\r\n")) throw new HeadError(400, "The head does not end with an empty line");
  const lines = head.slice(0, -4).split("\r\n");
  if (lines.some((line) => line.includes("\n") || line.includes("\r"))) throw new HeadError(400, "A line ends with a bare CR or LF");
  if (lines.length - 1 > MAX_FIELDS) throw new HeadError(431, `There are more than ${MAX_FIELDS} header lines`);
  return lines;
}

function parseFields(lines: string[]): Fields {
  return lines.map((line) => {
    if (line.startsWith(" ") || line.startsWith("\t")) throw new HeadError(400, "A header line is folded");
    const colon = line.indexOf(":");
    const name = line.slice(0, Math.max(colon, 0));
    if (!TOKEN.test(name)) throw new HeadError(400, "A header field name is malformed");
    const value = trimSpace(line.slice(colon + 1));
    if (!FIELD_VALUE.test(value)) throw new HeadError(400, "A header field value is malformed");
    return [name, value] as const;
  });
}

function isSpace(code: number): boolean {
  return code === 0x20 || code === 0x09;
}

/** Trims optional white space: space and tab only (RFC 9110 §5.6.3). */
function trimSpace(text: string): string {
  let start = 0;
  let end = text.length;
  while (start < end && isSpace(text.charCodeAt(start))) start++;
  while (end > start && isSpace(text.charCodeAt(end - 1))) end--;
  return text.slice(start, end);
}

/** Rejects framing that implementations interpret differently (RFC 9112 §6.3, §11.2). */
function checkFraming(version: RequestHead["version"], fields: Fields): void {
  const lengths = values(fields, "content-length");
  const codings = values(fields, "transfer-encoding");
  if (lengths.length > 0 && codings.length > 0) throw new HeadError(400, "There are both Content-Length and Transfer-Encoding");
  if (lengths.length > 1) throw new HeadError(400, "There is more than one Content-Length field");
  if (lengths[0] !== undefined && !/^[0-9]{1,15}$/.test(lengths[0])) throw new HeadError(400, "Content-Length is malformed");
  if (codings.length > 1 || (codings[0] !== undefined && !/^chunked$/i.test(codings[0]))) {
    throw new HeadError(400, "Transfer-Encoding is not chunked alone");
  }
  // RFC 9112 §6.1: an intermediary may not have understood it
  if (codings.length > 0 && version === "1.0") throw new HeadError(400, "Transfer-Encoding is not part of HTTP/1.0");
}

function checkVersion(version: string): "1.0" | "1.1" {
  if (version === "HTTP/1.1") return "1.1";
  if (version === "HTTP/1.0") return "1.0";
  throw /^HTTP\/[0-9]\.[0-9]$/.test(version)
    ? new HeadError(505, `${version} is not accepted at this port; send HTTP/1.1, or open a port with --http-proxy.http2-listen-address`)
    : new HeadError(400, "The HTTP version is malformed");
}

/**
 * Returns the request id in `X-Request-Id`, for the logs of all hops. `undefined` unless it is a single token of at most 64 characters, which
 * is safe to log.
 */
export function requestIdOf(fields: Fields): string | undefined {
  const ids = values(fields, "x-request-id");
  const [id] = ids;
  return id !== undefined && ids.length === 1 && id.length <= 64 && TOKEN.test(id) ? id : undefined;
}

/** All values of a field; `name` in lower case. */
export function values(fields: Fields, name: string): string[] {
  const result: string[] = [];
  for (const [fieldName, value] of fields) {
    if (fieldName.length === name.length && fieldName.toLowerCase() === name) result.push(value);
  }
  return result;
}

/** Whether a list field has the token, ignoring case; `name` and `token` in lower case. */
export function hasToken(fields: Fields, name: string, token: string): boolean {
  return values(fields, name).some((value) => value.toLowerCase().split(/[ \t]*,[ \t]*/).includes(token));
}

const encoder = new TextEncoder();

/** Encodes a head. The parts must be parsed or from this program: nothing is escaped. */
export function encodeHead(startLine: string, fields: Fields): Uint8Array {
  let text = `${startLine}\r\n`;
  for (const [name, value] of fields) text += `${name}: ${value}\r\n`;
  return encodeLatin1(`${text}\r\n`);
}

function encodeLatin1(text: string): Uint8Array {
  const bytes = encoder.encode(text);
  return bytes.length === text.length ? bytes : Uint8Array.from(text, (c) => c.charCodeAt(0));
}
