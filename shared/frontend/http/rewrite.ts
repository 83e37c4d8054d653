// The heads of plain HTTP requests and their responses, as they are forwarded: the target, hop-by-hop fields (RFC 9110 §7.6.1), and how their
// bodies are framed.
import { type Authority, formatAuthority, parseAuthority } from "../../address/authority.ts";
import { type BodyEnd, ChunkedEnd, LengthEnd } from "../../http/body.ts";
import { encodeHead, type Fields, HeadError, type RequestHead, type ResponseHead, values } from "../../http/head.ts";
import { formatProxyStatus, type Intermediary, parseProxyStatus } from "../../http/proxy_status.ts";
import { ProxyError } from "../../http/status.ts";

/** The request for the origin. */
export interface ForwardTarget {
  /** The `Host` of the request. */
  readonly authority: string;
  /** Path and query as received; may be empty. */
  readonly path: string;
  /** Added to its fields. Default: none. */
  readonly fields?: Fields;
}

/** The destination of an absolute-form target. */
export interface AbsoluteTarget extends ForwardTarget {
  readonly destination: Authority;
}

/** The user information before the `@` of an authority (RFC 3986 §3.2.1). */
const USER_INFORMATION = /^[A-Za-z0-9._~!$&'()*+,;=:%-]*@/;

/**
 * Parses `http://authority/path?query`, or `ws:` as WebSocket clients write it. User information is dropped (RFC 9110 §4.2.4): wget and others
 * write it there and in Authorization too. `undefined` for a target in another form.
 * @throws {HeadError} 400
 */
export function parseAbsoluteTarget(target: string): AbsoluteTarget | undefined {
  const match = /^([A-Za-z][A-Za-z0-9+.-]*):\/\/([^/?#]*)([^#]*)$/.exec(target);
  if (!match) {
    if (/^[^/?#]*:\/\//.test(target)) throw new HeadError(400, "The request target is malformed");
    return undefined;
  }
  const [, scheme, authority, rest] = match;
  const name = scheme!.toLowerCase();
  if (name !== "http" && name !== "ws") {
    throw new HeadError(400, "Only http and ws URIs are forwarded; send CONNECT for the others, such as https");
  }
  // an empty port is the default one (RFC 3986 §3.2.3)
  const destination = parseAuthority(authority!.replace(USER_INFORMATION, "").replace(/^(\[.*\]|[^:]*):$/, "$1"), 80);
  return {
    destination,
    authority: destination.port === 80 ? formatAuthority(destination).replace(/:80$/, "") : formatAuthority(destination),
    path: rest!,
  };
}

/** `*` for an OPTIONS request about the server as a whole (RFC 9112 §3.2.4). */
function originForm(method: string, path: string): string {
  if (path === "") return method === "OPTIONS" ? "*" : "/";
  return path.startsWith("?") ? `/${path}` : path;
}

/**
 * Refuses OPTIONS and TRACE whose Max-Forwards ends at this proxy (RFC 9110 §7.6.2).
 * @param allow the methods that are served
 * @throws {ProxyError} 405
 * @throws {HeadError} 400
 */
export function checkMaxForwards({ method, fields }: RequestHead, allow: string): void {
  if (!isCounted(method)) return;
  const given = values(fields, "max-forwards");
  if (given.length > 1 || (given[0] !== undefined && !/^[0-9]{1,9}$/.test(given[0]))) throw new HeadError(400, "Max-Forwards is malformed");
  if (given.length > 0 && Number(given[0]) === 0) {
    throw new ProxyError(405, "http_request_denied", `This proxy does not serve ${method}`, [["Allow", allow]]);
  }
}

function isCounted(method: string): boolean {
  return method === "OPTIONS" || method === "TRACE";
}

/** Fields about the connection, not the message (RFC 9110 §7.6.1). Transfer-Encoding stays because the body is not changed. */
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

/** The fields without hop-by-hop fields and those that Connection names. */
function endToEnd(fields: Fields): Fields {
  const named = new Set(listed(fields, "connection"));
  // Connection must not remove the message's framing
  for (const kept of ["transfer-encoding", "content-length", "host"]) named.delete(kept);
  return fields.filter(([name]) => !HOP_BY_HOP.has(name.toLowerCase()) && !named.has(name.toLowerCase()));
}

/**
 * The protocol of an upgrade (RFC 9110 §7.8) that is forwarded: WebSocket alone. Others, such as `TLS/1.2` and `h2c`, concern the connection to
 * the proxy. HTTP/1.0 has no upgrade, and a request with a chunked body opens no WebSocket.
 */
export function upgradeOf({ version, fields }: RequestHead | ResponseHead): string | undefined {
  if (version === "1.0" || values(fields, "transfer-encoding").length > 0) return undefined;
  return listed(fields, "connection").includes("upgrade") ? listed(fields, "upgrade").find((name) => name === "websocket") : undefined;
}

/** The members of a list field in lower case. */
function listed(fields: Fields, name: string): string[] {
  return values(fields, name).join(",").toLowerCase().split(",").map((member) => member.trim());
}

function connectionFields(upgrade: string | undefined): Fields {
  return upgrade === undefined ? [["Connection", "close"]] : [["Connection", "Upgrade"], ["Upgrade", upgrade]];
}

/** Those of a request. Trailers pass, and servers of gRPC need to know it (RFC 9110 §10.1.4). */
function requestConnectionFields(request: RequestHead): Fields {
  const upgrade = upgradeOf(request);
  return upgrade === undefined && listed(request.fields, "te").includes("trailers")
    ? [["TE", "trailers"], ["Connection", "close, TE"]]
    : connectionFields(upgrade);
}

function via({ version }: RequestHead | ResponseHead): Fields[number] {
  return ["Via", `${version} reverse-http`];
}

/** The head for the origin. An HTTP/1.0 request stays one, so that its client understands the response. */
export function rewriteRequest(request: RequestHead, target: ForwardTarget): Uint8Array {
  const { method } = request;
  const version = request.version === "1.0" ? "1.0" : "1.1";
  const fields = endToEnd(request.fields)
    .filter(([name]) => name.toLowerCase() !== "host")
    .map(([name, value]) =>
      isCounted(method) && name.toLowerCase() === "max-forwards" ? [name, String(Number(value) - 1)] as const : [name, value] as const
    );
  return encodeHead(`${method} ${originForm(method, target.path)} HTTP/${version}`, [
    ["Host", target.authority],
    ...fields,
    ...target.fields ?? [],
    via(request),
    ...requestConnectionFields(request),
  ]);
}

/** Fields that frame the body. */
const FRAMING = ["content-length", "transfer-encoding"];

/**
 * The head for the client of `by`.
 * @param framing how the client finds the body's end
 * @param isPersistent whether the client may send another request on its connection
 */
export function rewriteResponse(response: ResponseHead, framing: ResponseFraming, by: Intermediary, isPersistent = false): Uint8Array {
  const { status, reason } = response;
  const upgrade = status === 101 ? upgradeOf(response) : undefined;
  const interim = status < 200 && upgrade === undefined;
  const codings = listed(response.fields, "transfer-encoding").filter((coding) => coding !== "");
  // RFC 9112 §6.1, §6.3: an interim response and a 204 have no body, and Transfer-Encoding overrides Content-Length
  const isReframed = status < 200 || status === 204 || framing !== "unchanged";
  const dropped = isReframed ? FRAMING : codings.length > 0 ? FRAMING.slice(0, 1) : [];
  const kept = endToEnd(response.fields).filter(([name]) => !dropped.includes(name.toLowerCase()));
  return encodeHead(`HTTP/1.1 ${status} ${reason}`, [
    ...kept.filter(([name]) => name.toLowerCase() !== "proxy-status"),
    ...proxyStatusOf(kept, by),
    ...framing === "chunked" ? [["Transfer-Encoding", [...codings, "chunked"].join(", ")] as const] : [],
    via(response),
    ...interim || isPersistent ? [] : connectionFields(upgrade),
  ]);
}

/** The Proxy-Status members of earlier intermediaries, followed by this one. */
function proxyStatusOf(fields: Fields, by: Intermediary): Fields {
  const { members } = parseProxyStatus(fields);
  return members.length === 0 ? [] : [["Proxy-Status", formatProxyStatus(members, by)]];
}

/**
 * How the client finds the end of a response: by the origin's framing (`unchanged`), or by chunks added here (`chunked`). Without either, a
 * truncated body looks complete. HTTP/2 has frames instead, in which the network also puts an origin's chunks and their trailers. HTTP/1.0 has
 * no chunks: if the origin sends them, the client gets their content (`dechunked`, RFC 9112 §6.1).
 */
export type ResponseFraming = "unchanged" | "chunked" | "dechunked";

export function framingOf({ method, version }: RequestHead, response: ResponseHead): ResponseFraming {
  if (version === "1.0" && listed(response.fields, "transfer-encoding").join() === "chunked") return "dechunked";
  return version === "1.1" && response.status !== 101 && endOfResponse(method, response) === undefined ? "chunked" : "unchanged";
}

/**
 * Where the request's body ends. Data after it is not forwarded: the connection to the origin serves this request alone (RFC 9112 §9.6).
 */
export function endOfRequest({ fields }: RequestHead): BodyEnd {
  if (values(fields, "transfer-encoding").length > 0) return new ChunkedEnd({ lenient: false });
  return new LengthEnd(Number(values(fields, "content-length")[0] ?? 0));
}

/** Where the response's body ends (RFC 9112 §6.3); `undefined` if it ends with the connection. */
export function endOfResponse(method: string, { status, fields }: ResponseHead): BodyEnd | undefined {
  if (method === "HEAD" || status < 200 || status === 204 || status === 304) return new LengthEnd(0);
  const codings = listed(fields, "transfer-encoding");
  if (codings.at(-1) === "chunked") return new ChunkedEnd({ lenient: true });
  const lengths = codings[0] ? [] : values(fields, "content-length");
  return lengths.length === 0 ? undefined : new LengthEnd(Number(lengths[0]));
}
