// The messages of SOCKS 5 (RFC 1928) and of its authentication by user name and password (RFC 1929), without a connection.
import ipaddr from "ipaddr.js";
import { Buffer } from "node:buffer";
import { isIP } from "node:net";
import { type Authority, parseAuthority } from "../../address/authority.ts";
import { MalformedRequestError, TunnelError } from "../../tunnel/errors.ts";

/** The first byte of every message but the credentials. */
export const SOCKS_VERSION = 5;
const CREDENTIALS_VERSION = 1;

/** Codes of replies (RFC 1928 §6). Some clients take other codes for success. */
export const REPLY = {
  succeeded: 0,
  generalFailure: 1,
  notAllowed: 2,
  networkUnreachable: 3,
  hostUnreachable: 4,
  connectionRefused: 5,
  ttlExpired: 6,
  commandNotSupported: 7,
  addressTypeNotSupported: 8,
} as const;
export type Reply = (typeof REPLY)[keyof typeof REPLY];

/** The responses to the methods of a client: no authentication is needed; none of them is acceptable. */
export const NO_AUTHENTICATION: Uint8Array = Uint8Array.of(SOCKS_VERSION, 0);
export const NO_METHOD: Uint8Array = Uint8Array.of(SOCKS_VERSION, 0xff);
export const CREDENTIALS_ACCEPTED: Uint8Array = Uint8Array.of(CREDENTIALS_VERSION, 0);
/** Any status but 0 refuses. The client must close the connection then. */
export const CREDENTIALS_REFUSED: Uint8Array = Uint8Array.of(CREDENTIALS_VERSION, 1);

/**
 * Encodes a reply.
 * @param bound the IP address and port of an association. By default that of no server, 0.0.0.0:0: some clients read no other type than IPv4,
 *   and none needs it with CONNECT
 */
export function encodeReply(reply: Reply, { host, port }: Authority = { host: "0.0.0.0", port: 0 }): Uint8Array {
  const type = isIP(host) === 6 ? ADDRESS.ipv6 : ADDRESS.ipv4;
  return Uint8Array.of(SOCKS_VERSION, reply, 0, type, ...ipaddr.parse(host).toByteArray(), port >> 8, port & 0xff);
}

/** The messages of a client before its request. */
export interface Handshake {
  /** Numbers of the offered methods: 0 none, 1 GSSAPI, 2 user name and password. */
  readonly methods: readonly number[];
  /** Missing if the client does not offer a password. */
  readonly credentials?: { readonly username: Uint8Array; readonly password: Uint8Array };
}

/**
 * Parses the methods, and the credentials if they follow.
 * @param text one character per byte (ISO 8859-1); without the credentials it ends after the methods
 * @throws {MalformedRequestError} if the credentials have another version
 */
export function parseHandshake(text: string): Handshake {
  const bytes = Buffer.from(text, "latin1");
  const end = methodsEnd(bytes);
  const methods = [...bytes.subarray(2, end)];
  if (bytes.length <= end) return { methods };
  if (bytes[end] !== CREDENTIALS_VERSION) {
    throw new MalformedRequestError(`The SOCKS credentials have the version ${bytes[end]}, and ${CREDENTIALS_VERSION} is required`);
  }
  const username = 2 + end;
  const password = username + bytes[end + 1]! + 1;
  return { methods, credentials: { username: bytes.subarray(username, password - 1), password: bytes.subarray(password) } };
}

/** The name of the message in which `text`, the beginning of a handshake, ends. */
export function incompleteMessage(text: string): "methods" | "credentials" {
  return text.length < methodsEnd(Buffer.from(text, "latin1")) ? "methods" : "credentials";
}

function methodsEnd(bytes: Uint8Array): number {
  return 2 + (bytes[1] ?? 0);
}

/** Names of commands, for the log. `RESOLVE` is an extension of Tor. */
const COMMANDS: Readonly<Record<number, string>> = { 1: "CONNECT", 2: "BIND", 3: "UDP ASSOCIATE", 0xf0: "RESOLVE", 0xf1: "RESOLVE_PTR" };
export const CONNECT = 1;
export const UDP_ASSOCIATE = 3;

/** Types of addresses. */
const ADDRESS = { ipv4: 1, name: 3, ipv6: 4 } as const;
/** Bytes before an address: version, command, a reserved byte, its type. */
const REQUEST_START = 4;

/** A request that cannot be served. */
export class UnsupportedRequestError extends TunnelError {
  override readonly name = "UnsupportedRequestError";
  constructor(readonly reply: Reply, message: string) {
    super("http_request_denied", message);
  }
}

/** A request. */
export interface SocksRequest {
  /** {@link CONNECT}, {@link UDP_ASSOCIATE}, or any other byte. */
  readonly command: number;
  /** The name of the command, or its number. */
  readonly method: string;
  /** Name or address, as in HTTP. An IP address in place of a name is one here. Its port is not checked, and 0 makes sense in some commands. */
  readonly host: string;
  /** 0 to 65535. */
  readonly port: number;
}

/**
 * Where a request ends in `data`; `undefined` until that is known. If the type of its address is unknown, it ends after that.
 * @throws {MalformedRequestError} if it has another version
 */
export function requestEnd(data: Uint8Array): number | undefined {
  const [version, , , type, length] = data;
  if (version !== undefined && version !== SOCKS_VERSION) {
    throw new MalformedRequestError(`The SOCKS request has the version ${version}, and ${SOCKS_VERSION} is required`);
  }
  switch (type) {
    case undefined:
      return undefined;
    case ADDRESS.ipv4:
      return REQUEST_START + 4 + 2;
    case ADDRESS.ipv6:
      return REQUEST_START + 16 + 2;
    case ADDRESS.name:
      return length === undefined ? undefined : REQUEST_START + 1 + length + 2;
    default:
      return REQUEST_START;
  }
}

/**
 * Parses a complete request.
 * @throws {UnsupportedRequestError} if the type of its address is unknown
 */
export function parseRequest(data: Uint8Array): SocksRequest {
  const [, command = 0] = data;
  return { command, method: COMMANDS[command] ?? String(command), ...parseAddress(data) };
}

/**
 * Parses the destination in the header of a datagram, whose type is known.
 * @param text one character per byte (ISO 8859-1)
 */
export function parseDatagramHeader(text: string): Authority {
  return parseAddress(Buffer.from(text, "latin1"));
}

/**
 * Parses the address in a request or in the header of a datagram, which have it at the same place.
 * @throws {UnsupportedRequestError} if its type is unknown
 */
function parseAddress(data: Uint8Array): Authority {
  const bytes = Buffer.from(data.buffer, data.byteOffset, data.byteLength);
  const type = bytes[REQUEST_START - 1];
  const address = bytes.subarray(REQUEST_START, -2);
  const port = () => bytes.readUInt16BE(bytes.length - 2);
  switch (type) {
    case ADDRESS.ipv4:
      return { host: address.join("."), port: port() };
    case ADDRESS.ipv6:
      return { host: formatIPv6(address), port: port() };
    case ADDRESS.name:
      return { host: withoutBrackets(address.toString("latin1", 1)), port: port() };
    default:
      throw new UnsupportedRequestError(REPLY.addressTypeNotSupported, `The SOCKS address type ${type} is unknown`);
  }
}

/**
 * The destination of a request or a datagram, checked.
 * @throws {MalformedRequestError} if the host is neither a valid name nor an address, or the port is 0
 */
export function destinationOf({ host, port }: Authority): Authority {
  return parseAuthority(isIP(host.replace(/%.*/, "")) === 6 ? `[${host}]:${port}` : `${host}:${port}`);
}

/** Many clients send an address as a name. */
function withoutBrackets(name: string): string {
  const [, inner = ""] = /^\[(.*)\]$/.exec(name) ?? [];
  return isIP(inner.replace(/%.*/, "")) > 0 ? inner : name;
}

function formatIPv6(address: Buffer): string {
  const parts = Array.from({ length: 8 }, (_, i) => address.readUInt16BE(2 * i).toString(16));
  return new URL(`http://[${parts.join(":")}]`).hostname.slice(1, -1);
}
