// Plain HTTP through the proxy: a request with an absolute URI (RFC 9112 §3.2.2) becomes one in origin-form, with `Connection: close` both
// ways. One request a connection: framing stays the business of the end points.
//
// The bytes are copied here rather than handed to `splice`: that would let the client's direction carry a second request behind the first.
import { Buffer } from "node:buffer";
import {
  type Authority,
  encodeHead,
  type Fields,
  formatAuthority,
  HeadError,
  parseAuthority,
  parseResponseHead,
  type RequestHead,
  type ResponseHead,
  values,
} from "../http/head.ts";
import { Refusal } from "../http/status.ts";
import type { Duplex } from "../net/types.ts";
import type { Exchange } from "./exchange.ts";

/** Where an absolute-form target leads. */
export interface AbsoluteTarget {
  readonly destination: Authority;
  /** The `Host` of the request that goes there. */
  readonly authority: string;
  /** Path and query as they were written; may be empty. */
  readonly path: string;
}

/** Longest response head in bytes. */
const MAX_RESPONSE_HEAD = 64 * 1024;
/** Interim responses (1xx) before the final one. */
const MAX_INTERIM = 16;

/**
 * Parses `http://authority/path?query`. `undefined` for a target in another form.
 * @throws {HeadError} 400
 */
export function parseAbsoluteTarget(target: string): AbsoluteTarget | undefined {
  const match = /^([A-Za-z][A-Za-z0-9+.-]*):\/\/([^/?#]*)([^#]*)$/.exec(target);
  if (!match) {
    if (/^[^/?#]*:\/\//.test(target)) throw new HeadError(400, "The request target is malformed");
    return undefined;
  }
  const [, scheme, authority, rest] = match;
  if (scheme!.toLowerCase() !== "http") throw new HeadError(400, "Only http URIs are forwarded: use CONNECT for the others");
  if (authority!.includes("@")) throw new HeadError(400, "The request target has user information");
  // an empty port is the default one (RFC 3986 §3.2.3)
  const destination = parseAuthority(authority!.replace(/^(\[.*\]|[^:]*):$/, "$1"), 80);
  return {
    destination,
    authority: destination.port === 80 ? formatAuthority(destination).replace(/:80$/, "") : formatAuthority(destination),
    path: rest!,
  };
}

/** `*` where OPTIONS asks about the server as a whole (RFC 9112 §3.2.4). */
function originForm(method: string, path: string): string {
  if (path === "") return method === "OPTIONS" ? "*" : "/";
  return path.startsWith("?") ? `/${path}` : path;
}

/**
 * Checks what only the last on the way may answer: OPTIONS and TRACE that go no further than this (RFC 9110 §7.6.2).
 * @throws {Refusal} 405
 * @throws {HeadError} 400
 */
export function checkMaxForwards({ method, fields }: RequestHead): void {
  if (!isCounted(method)) return;
  const given = values(fields, "max-forwards");
  if (given.length > 1 || (given[0] !== undefined && !/^[0-9]{1,9}$/.test(given[0]))) throw new HeadError(400, "Max-Forwards is malformed");
  if (given.length > 0 && Number(given[0]) === 0) {
    throw new Refusal(405, "http_request_denied", `${method} is not answered by this proxy`, [["Allow", "CONNECT"]]);
  }
}

function isCounted(method: string): boolean {
  return method === "OPTIONS" || method === "TRACE";
}

/** Fields that say something about one connection, not about the message (RFC 9110 §7.6.1). Transfer-Encoding stays: the body is not touched. */
const HOP_BY_HOP = new Set([
  "connection",
  "proxy-connection",
  "keep-alive",
  "te",
  "upgrade",
  "proxy-authorization",
  "proxy-authenticate",
  "proxy-authentication-info",
]);

/** Without those, and without what Connection names. */
function endToEnd(fields: Fields): Fields {
  const named = new Set(values(fields, "connection").flatMap((value) => value.split(",")).map((option) => option.trim().toLowerCase()));
  // nobody may have the message's framing taken away
  for (const kept of ["transfer-encoding", "content-length", "host"]) named.delete(kept);
  return fields.filter(([name]) => !HOP_BY_HOP.has(name.toLowerCase()) && !named.has(name.toLowerCase()));
}

/**
 * The protocols that an upgrade (RFC 9110 §7.8) asks for, or was agreed on. HTTP/1.0 has none; and behind a body of chunks nothing is
 * taken for another protocol, for where that body ends is not looked at here.
 */
function upgradeOf({ version, fields }: RequestHead | ResponseHead): string | undefined {
  if (version === "1.0" || values(fields, "transfer-encoding").length > 0) return undefined;
  const options = values(fields, "connection").join(",").toLowerCase().split(",").map((option) => option.trim());
  return options.includes("upgrade") ? values(fields, "upgrade").join(", ") || undefined : undefined;
}

function connectionFields(upgrade: string | undefined): Fields {
  return upgrade === undefined ? [["Connection", "close"]] : [["Connection", "Upgrade"], ["Upgrade", upgrade]];
}

function via({ version }: RequestHead | ResponseHead): Fields[number] {
  return ["Via", `${version} reverse-http`];
}

/** The head as the origin gets it. An HTTP/1.0 request stays one: the answer must be one that its client understands. */
export function rewriteRequest(request: RequestHead, target: AbsoluteTarget): Uint8Array {
  const { method, version } = request;
  const fields = endToEnd(request.fields)
    .filter(([name]) => name.toLowerCase() !== "host")
    .map(([name, value]) =>
      isCounted(method) && name.toLowerCase() === "max-forwards" ? [name, String(Number(value) - 1)] as const : [name, value] as const
    );
  return encodeHead(`${method} ${originForm(method, target.path)} HTTP/${version}`, [
    ["Host", target.authority],
    ...fields,
    via(request),
    ...connectionFields(upgradeOf(request)),
  ]);
}

/** The head as the client gets it. */
export function rewriteResponse(response: ResponseHead): Uint8Array {
  const upgrade = response.status === 101 ? upgradeOf(response) : undefined;
  const interim = response.status < 200 && upgrade === undefined;
  const isChunked = values(response.fields, "transfer-encoding").length > 0;
  // RFC 9112 §6.3: of two lengths the client gets the one that counts
  const fields = endToEnd(response.fields).filter(([name]) => !isChunked || name.toLowerCase() !== "content-length");
  return encodeHead(`HTTP/1.1 ${response.status} ${response.reason}`, [
    ...fields,
    via(response),
    ...interim ? [] : connectionFields(upgrade),
  ]);
}

/** Sends the request on and its response back; bodies stream both ways at once, each part when `pace` lets its bytes go. */
export async function forward(
  client: Duplex,
  origin: Duplex,
  request: RequestHead,
  target: AbsoluteTarget,
  exchange: Exchange,
  pace: (bytes: number) => Promise<void> = async () => {},
): Promise<void> {
  const passage = new Passage(client, origin, request, exchange, pace);
  try {
    await origin.write(rewriteRequest(request, target));
    const sent = passage.sendBody();
    await passage.sendResponse();
    if (passage.isUpgraded) await sent; // each direction of the other protocol ends on its own
    passage.finish();
    await sent;
  } catch (error) {
    // what sends the body ends with the client's connection, and that once the client is told of this: not to be waited for here
    passage.abandon();
    throw error;
  }
}

/** One request and its response on their way. */
class Passage {
  #finished = false;
  /** Settled by the final response: whether the origin has switched to the protocol asked for. */
  #agree: (upgraded: boolean) => void = () => {};
  readonly #upgraded = new Promise<boolean>((resolve) => this.#agree = resolve);
  /** Why the client's direction broke. */
  #clientError: unknown;
  /** Bytes that the client may send. */
  #limit: number;
  isUpgraded = false;

  constructor(
    readonly client: Duplex,
    readonly origin: Duplex,
    readonly request: RequestHead,
    readonly exchange: Exchange,
    readonly pace: (bytes: number) => Promise<void>,
  ) {
    this.#limit = bodyLimit(request);
  }

  /** Never rejects: an origin that answers without reading is heard out, and a client that is gone ends the response too. */
  async sendBody(): Promise<void> {
    const { client, origin, exchange } = this;
    let taken = true;
    try {
      for (let data; (data = await client.read()) !== null;) {
        while (taken && data.length > 0) {
          const allowed = data.subarray(0, Math.max(0, this.#limit - exchange.sent));
          if (allowed.length === 0) {
            // what follows the request belongs to the other protocol, if it comes to that
            if (upgradeOf(this.request) === undefined || !await this.#upgraded) break;
            this.#limit = Infinity;
            continue;
          }
          await this.pace(allowed.length);
          taken = await origin.write(allowed).then(() => true, () => false);
          exchange.sent += allowed.length;
          data = data.subarray(allowed.length);
        }
        // what is left is read on and dropped, to learn when the client goes
      }
      origin.closeWrite();
    } catch (error) {
      if (this.#finished) return;
      this.#clientError = error;
      origin.reset(1);
      origin.stopRead(1);
    }
  }

  async sendResponse(): Promise<void> {
    const { client, request, exchange } = this;
    const { response, rest } = await this.#sendHeads();
    this.isUpgraded = response.status === 101;
    this.#agree(this.isUpgraded);
    const length = responseLength(request.method, response);
    for (let data: Uint8Array | null = rest; data !== null; data = await this.#read()) {
      const part = data.subarray(0, length - exchange.received);
      if (part.length > 0) await this.pace(part.length);
      if (part.length > 0) await this.#write(part);
      exchange.received += part.length;
      // an origin that keeps its connection keeps nobody waiting; one that is still sent a body may have use for it
      if (exchange.received >= length && exchange.sent >= this.#limit) break;
    }
    if (length !== Infinity && exchange.received < length) throw incomplete("The destination's response ends before it is complete");
    client.closeWrite();
  }

  /** Up to and including the final one, and what followed it. */
  async #sendHeads(): Promise<{ response: ResponseHead; rest: Uint8Array }> {
    let buffer = Buffer.alloc(0);
    for (let interim = 0; interim <= MAX_INTERIM;) {
      const end = buffer.indexOf("\r\n\r\n");
      if (end < 0) {
        if (buffer.length > MAX_RESPONSE_HEAD) throw tooLarge();
        const data = await this.#read();
        if (data === null) throw incomplete("The destination's response head is missing");
        buffer = Buffer.concat([buffer, data]);
        continue;
      }
      const response = parseResponse(buffer.toString("latin1", 0, end + 4));
      buffer = buffer.subarray(end + 4);
      const final = response.status >= 200 || response.status === 101;
      if (response.status === 101 && (upgradeOf(this.request) === undefined || upgradeOf(response) === undefined)) {
        throw new Refusal(502, "http_upgrade_failed", "The destination switches to a protocol that was not asked for");
      }
      if (final) this.exchange.status = response.status;
      // HTTP/1.0 knows no interim responses (RFC 9110 §15.2)
      if (final || this.request.version !== "1.0") await this.#write(rewriteResponse(response));
      if (final) return { response, rest: buffer };
      interim++;
    }
    throw new Refusal(502, "http_protocol_error", "The destination's response never becomes final");
  }

  async #read(): Promise<Uint8Array | null> {
    try {
      return await this.origin.read();
    } catch (cause) {
      throw this.#clientError === undefined ? cause : clientGone(this.#clientError);
    }
  }

  async #write(data: Uint8Array): Promise<void> {
    await this.client.write(data).catch((cause) => {
      throw clientGone(cause);
    });
  }

  finish(): void {
    this.#finished = true;
    this.client.close();
    this.origin.close();
  }

  abandon(): void {
    this.#finished = true;
    this.#agree(false);
    this.origin.reset(1);
    this.origin.close();
  }
}

/**
 * Bytes the client may send before the response: no second request rides along.
 *
 * Chunks say their end themselves, and what follows the last one is sent on unread: a parser of chunks here would be one more opinion on
 * where a body ends, and such differences are what smuggling lives on. It can do no harm: the origin's connection is this client's alone,
 * the origin was told `Connection: close`, so it takes nothing behind the body for a request (RFC 9112 §9.6), and the client may reach
 * this very destination by CONNECT with any bytes it likes.
 */
function bodyLimit({ fields }: RequestHead): number {
  return values(fields, "transfer-encoding").length > 0 ? Infinity : Number(values(fields, "content-length")[0] ?? 0);
}

/**
 * Bytes that the response's body has (RFC 9112 §6.3); `Infinity` where its end is not told in advance.
 * @throws {Refusal} 502
 */
function responseLength(method: string, { status, fields }: ResponseHead): number {
  if (status === 101) return Infinity;
  if (method === "HEAD" || status === 204 || status === 304) return 0;
  if (values(fields, "transfer-encoding").length > 0) return Infinity;
  const lengths = values(fields, "content-length");
  return lengths.length === 0 ? Infinity : Number(lengths[0]);
}

function parseResponse(head: string): ResponseHead {
  let response;
  try {
    response = parseResponseHead(head);
  } catch (cause) {
    if (cause instanceof HeadError && cause.status === 431) throw tooLarge();
    throw new Refusal(502, "http_protocol_error", "The destination's response is malformed", [], { cause });
  }
  // one length said twice is taken as one; two different ones are nobody's
  const lengths = new Set(values(response.fields, "content-length").flatMap((value) => value.split(",")).map((value) => value.trim()));
  if (lengths.size > 1 || [...lengths].some((length) => !/^[0-9]{1,15}$/.test(length))) {
    throw new Refusal(502, "http_protocol_error", "The destination's response has no valid Content-Length");
  }
  const [length] = lengths;
  const others = response.fields.filter(([name]) => name.toLowerCase() !== "content-length");
  return length === undefined ? response : { ...response, fields: [...others, ["Content-Length", length]] };
}

function incomplete(message: string): Refusal {
  return new Refusal(502, "http_response_incomplete", message);
}

function tooLarge(): Refusal {
  return new Refusal(502, "http_response_header_section_size", "The destination's response head is too large");
}

function clientGone(cause: unknown): Refusal {
  return new Refusal(502, "connection_terminated", "The client is gone", [], { cause });
}
