// Plain HTTP through the proxy: a request with an absolute URI (RFC 9112 §3.2.2) becomes one in origin-form, with `Connection: close` both
// ways. One request a connection: framing stays the business of the end points.
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
import type { Exchange } from "./front.ts";

/** Where an absolute-form target leads. */
export interface AbsoluteTarget {
  readonly destination: Authority;
  /** The `Host` of the request that goes there. */
  readonly authority: string;
  /** In origin-form, or `*`. */
  readonly path: string;
}

/** Longest response head in bytes. */
const MAX_RESPONSE_HEAD = 64 * 1024;
/** Interim responses (1xx) before the final one. */
const MAX_INTERIM = 16;
const VIA = "1.1 reverse-http";

/**
 * Parses `http://authority/path?query`. `undefined` for a target in another form.
 * @throws {HeadError} 400
 */
export function parseAbsoluteTarget(target: string): AbsoluteTarget | undefined {
  const match = /^([A-Za-z][A-Za-z0-9+.-]*):\/\/([^/?#]*)([^#]*)$/.exec(target);
  if (!match) {
    if (target.includes("://")) throw new HeadError(400, "The request target is malformed");
    return undefined;
  }
  const [, scheme, authority, rest] = match;
  if (scheme!.toLowerCase() !== "http") throw new HeadError(400, "Only http URIs are forwarded: use CONNECT for the others");
  if (authority!.includes("@")) throw new HeadError(400, "The request target has user information");
  const destination = parseAuthority(authority!.replace(/:$/, ""), 80);
  return {
    destination,
    authority: destination.port === 80 ? formatAuthority(destination).replace(/:80$/, "") : formatAuthority(destination),
    path: rest === "" ? "/" : rest!.startsWith("?") ? `/${rest}` : rest!,
  };
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

/** The protocols that an upgrade (RFC 9110 §7.8) asks for, or was agreed on. */
function upgradeOf(fields: Fields): string | undefined {
  const options = values(fields, "connection").join(",").toLowerCase().split(",").map((option) => option.trim());
  return options.includes("upgrade") ? values(fields, "upgrade").join(", ") || undefined : undefined;
}

function connectionFields(upgrade: string | undefined): Fields {
  return upgrade === undefined ? [["Connection", "close"]] : [["Connection", "Upgrade"], ["Upgrade", upgrade]];
}

/** The head as the origin gets it. */
export function rewriteRequest(request: RequestHead, target: AbsoluteTarget): Uint8Array {
  const fields = endToEnd(request.fields).filter(([name]) => name.toLowerCase() !== "host");
  return encodeHead(`${request.method} ${target.path} HTTP/1.1`, [
    ["Host", target.authority],
    ...fields,
    ["Via", VIA],
    ...connectionFields(upgradeOf(request.fields)),
  ]);
}

/** The head as the client gets it. */
export function rewriteResponse(response: ResponseHead): Uint8Array {
  const upgrade = response.status === 101 ? upgradeOf(response.fields) : undefined;
  const interim = response.status < 200 && upgrade === undefined;
  return encodeHead(`HTTP/1.1 ${response.status} ${response.reason}`, [
    ...endToEnd(response.fields),
    ["Via", VIA],
    ...interim ? [] : connectionFields(upgrade),
  ]);
}

/** Sends the request on and its response back; bodies stream both ways at once. */
export async function forward(
  client: Duplex,
  origin: Duplex,
  request: RequestHead,
  target: AbsoluteTarget,
  exchange: Exchange,
): Promise<void> {
  let sending: Promise<void> | undefined;
  try {
    await origin.write(rewriteRequest(request, target));
    sending = sendBody(client, origin, bodyLimit(request), exchange);
    await sendResponse(client, origin, exchange);
    client.close();
    origin.close();
    await sending;
  } catch (error) {
    // `sending` ends with the client's connection, and that once the client is told of this: not to be waited for here
    origin.reset(1);
    origin.close();
    throw error;
  }
}

/** Bytes the client may send: no second request rides along. Chunks and upgraded protocols say their end themselves. */
function bodyLimit(request: RequestHead): number {
  if (values(request.fields, "transfer-encoding").length > 0 || upgradeOf(request.fields) !== undefined) return Infinity;
  return Number(values(request.fields, "content-length")[0] ?? 0);
}

/** Never rejects: an origin that answers without reading is heard out, and a client that is gone ends the response too. */
async function sendBody(client: Duplex, origin: Duplex, limit: number, exchange: Exchange): Promise<void> {
  let taken = true;
  try {
    for (let data; (data = await client.read()) !== null;) {
      const allowed = data.subarray(0, Math.max(0, limit - exchange.sent));
      if (!taken || allowed.length === 0) continue; // read on, to learn when the client goes
      taken = await origin.write(allowed).then(() => true, () => false);
      exchange.sent += allowed.length;
    }
    origin.closeWrite();
  } catch {
    origin.reset(1);
    origin.stopRead(1);
  }
}

async function sendResponse(client: Duplex, origin: Duplex, exchange: Exchange): Promise<void> {
  for (let data: Uint8Array | null = await sendResponseHeads(client, origin, exchange); data !== null; data = await origin.read()) {
    if (data.length === 0) continue;
    await client.write(data);
    exchange.received += data.length;
  }
  client.closeWrite();
}

/** Up to and including the final one; what followed it. */
async function sendResponseHeads(client: Duplex, origin: Duplex, exchange: Exchange): Promise<Uint8Array> {
  let buffer = "";
  for (let interim = 0; interim <= MAX_INTERIM;) {
    const end = buffer.indexOf("\r\n\r\n");
    if (end < 0) {
      if (buffer.length > MAX_RESPONSE_HEAD) throw incomplete("is too large");
      const data = await origin.read();
      if (data === null) throw incomplete("is missing");
      for (const byte of data) buffer += String.fromCharCode(byte);
      continue;
    }
    const response = parseResponse(buffer.slice(0, end + 4));
    buffer = buffer.slice(end + 4);
    const final = response.status >= 200 || response.status === 101;
    if (final) exchange.status = response.status;
    await client.write(rewriteResponse(response));
    if (final) return Uint8Array.from(buffer, (c) => c.charCodeAt(0));
    interim++;
  }
  throw incomplete("never becomes final");
}

function parseResponse(head: string): ResponseHead {
  try {
    return parseResponseHead(head);
  } catch (cause) {
    throw new Refusal(502, "http_response_incomplete", "The destination's response is malformed", [], { cause });
  }
}

function incomplete(what: string): Refusal {
  return new Refusal(502, "http_response_incomplete", `The destination's response head ${what}`);
}
