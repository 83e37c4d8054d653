// UDP proxying over HTTP/1.1 (RFC 9298 §3.2): its request and its response. The network reads the capsules (RFC 9297) after them.
import { type Authority, parseAuthority } from "../address/authority.ts";
import { MalformedRequestError } from "../tunnel/errors.ts";
import { encodeHead, type Fields, hasToken, HeadError, type RequestHead, type ResponseHead, values } from "./head.ts";
import { parseProxyStatus } from "./proxy_status.ts";
import { ProxyError } from "./status.ts";

/** The upgrade token (RFC 9298 §3.2). */
const TOKEN = "connect-udp";
/** The default URI template (RFC 9298 §2) up to its variables, and its whole path. */
const PATH = "/.well-known/masque/udp/";
const TARGET = /^\/\.well-known\/masque\/udp\/([^/?#]+)\/([0-9]{1,5})\/$/;

/** The successful response head, of proxy and agent. */
export const UDP_ESTABLISHED_HEAD: Uint8Array = encodeHead("HTTP/1.1 101 Switching Protocols", [
  ["Connection", "Upgrade"],
  ["Upgrade", TOKEN],
  ["Capsule-Protocol", "?1"],
]);

/** The field of the agent link with which a proxy says that it takes QUIC DATAGRAM frames (docs/protocol.md). */
const DATAGRAMS_FIELD = "Datagrams";

/** Encodes the request for a UDP flow to `destination`. `datagrams`: the peer, an agent, may send QUIC DATAGRAM frames. */
export function encodeUdpRequest({ host, port }: Authority, fields: Fields, datagrams = false): Uint8Array {
  return encodeHead(`GET ${PATH}${encodeURIComponent(host)}/${port}/ HTTP/1.1`, [
    ...fields,
    ["Connection", "Upgrade"],
    ["Upgrade", TOKEN],
    ["Capsule-Protocol", "?1"],
    ...datagrams ? [[DATAGRAMS_FIELD, "?1"] as const] : [],
  ]);
}

/** Whether the peer of a request for a UDP flow takes QUIC DATAGRAM frames. */
export function takesDatagrams({ fields }: RequestHead): boolean {
  return values(fields, DATAGRAMS_FIELD.toLowerCase()).join() === "?1";
}

/** Whether a response to {@link encodeUdpRequest} is successful. */
export function isUdpEstablished({ status, fields }: ResponseHead): boolean {
  return status === 101 && hasToken(fields, "upgrade", TOKEN);
}

/** Whether a proxy that does not know the request has responded: an older one with 405, one of the Go project with 500 and no error type. */
export function isWithoutUdp({ status, fields }: ResponseHead): boolean {
  return (status !== 101 && status < 400) || [404, 405, 501].includes(status) ||
    (status === 500 && parseProxyStatus(fields).error === undefined);
}

/**
 * Returns the destination of a request for a UDP flow; `undefined` for a request with another target. An absolute target has the scheme
 * `https`: with `http` it is a request to an origin.
 * @throws {ProxyError} 426 unless it is a complete upgrade
 * @throws {HeadError} 400 for a malformed destination, or content
 */
export function parseUdpRequest({ method, target, version, fields }: RequestHead): Authority | undefined {
  const path = target.replace(/^https:\/\/[^/?#]+/i, "");
  if (!path.startsWith(PATH)) return undefined;
  if (method !== "GET" || version === "1.0" || !hasToken(fields, "connection", "upgrade") || !hasToken(fields, "upgrade", TOKEN)) {
    throw new ProxyError(426, "http_request_error", "Only UDP proxying is served here (RFC 9298), by GET with Upgrade: connect-udp", [
      ["Upgrade", TOKEN],
    ]);
  }
  if (values(fields, "content-length").some((length) => Number(length) !== 0) || values(fields, "transfer-encoding").length > 0) {
    throw new HeadError(400, "A request for UDP proxying has no content");
  }
  const [, host = "", port = ""] = TARGET.exec(path) ?? [];
  return parseDestination(host, port);
}

/** @throws {HeadError} */
function parseDestination(encodedHost: string, port: string): Authority {
  try {
    const host = decodeURIComponent(encodedHost);
    return parseAuthority(host.includes(":") ? `[${host}]:${port}` : `${host}:${port}`);
  } catch (cause) {
    if (!(cause instanceof MalformedRequestError || cause instanceof URIError)) throw cause;
    throw new HeadError(400, `The target is not ${PATH}host/port/, with a colon of an address written as %3A`);
  }
}
