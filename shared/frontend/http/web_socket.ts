// The server's part in opening a WebSocket (RFC 6455 §4.2) for a path. The endpoint handles its content.
import { createHash } from "node:crypto";
import { encodeHead, hasToken, type RequestHead, values } from "../../http/head.ts";
import { ProxyError } from "../../http/status.ts";
import type { Duplex } from "../../net/stream.ts";

/** A path for WebSockets. */
export interface WebSocketEndpoint {
  /** Path of the request target, without a query. */
  readonly path: string;
  /**
   * Takes over a stream whose upgrade is complete.
   * @param client address of the client, `host:port`; the port may be missing
   */
  accept(stream: Duplex, client: string): void;
}

/** RFC 6455 §1.3. */
const GUID = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";
/** Base64 of 16 bytes. */
const KEY = /^[A-Za-z0-9+/]{22}==$/;

/** Whether a request is for the endpoint, valid or not. */
export function isFor({ path }: WebSocketEndpoint, { target }: RequestHead): boolean {
  return target === path || target.startsWith(`${path}?`);
}

/**
 * Returns the response head that completes the upgrade.
 * @throws {ProxyError} 426 for any other request, 403 for one of a browser
 */
export function acceptUpgrade({ method, version, fields }: RequestHead): Uint8Array {
  const has = (name: string, token: string) => hasToken(fields, name, token);
  const [key = "", ...more] = values(fields, "sec-websocket-key");
  const isUpgrade = method === "GET" && version === "1.1" && has("connection", "upgrade") && has("upgrade", "websocket") &&
    has("sec-websocket-version", "13") && more.length === 0 && KEY.test(key);
  if (isUpgrade && values(fields, "origin").length > 0) {
    throw new ProxyError(403, "http_request_denied", "A browser cannot connect here: a page could do so for its visitors");
  }
  if (!isUpgrade) {
    throw new ProxyError(426, "http_request_error", "Only WebSockets are served here (RFC 6455, version 13)", [
      ["Upgrade", "websocket"],
      ["Sec-WebSocket-Version", "13"],
    ]);
  }
  return encodeHead("HTTP/1.1 101 Switching Protocols", [
    ["Upgrade", "websocket"],
    ["Connection", "Upgrade"],
    ["Sec-WebSocket-Accept", createHash("sha1").update(key + GUID).digest("base64")],
  ]);
}
