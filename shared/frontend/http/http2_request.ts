// Properties that only requests of HTTP/2 have, which the engine translates to HTTP/1.1.
import { randomBytes } from "node:crypto";
import { hasToken, type RequestHead, values } from "../../http/head.ts";
import { ProxyError } from "../../http/status.ts";

/** A request that was translated from HTTP/2. A WebSocket has no key there (RFC 8441 §5), which its server needs. */
export function asHttp2(request: RequestHead): RequestHead {
  const needsKey = hasToken(request.fields, "upgrade", "websocket") && values(request.fields, "sec-websocket-key").length === 0;
  const fields = needsKey ? [...request.fields, ["Sec-WebSocket-Key", randomBytes(16).toString("base64")] as const] : request.fields;
  return { ...request, version: "2", fields };
}

/**
 * Refuses an extended CONNECT (RFC 8441) for any protocol but WebSocket. Other requests of HTTP/2 have no Upgrade.
 * @param served the supported protocols, for the error message
 * @throws {ProxyError} 501
 */
export function checkProtocol({ fields }: RequestHead, served: string): void {
  if (values(fields, "upgrade").length === 0 || hasToken(fields, "upgrade", "websocket")) return;
  throw new ProxyError(501, "http_request_error", `Of the protocols that an extended CONNECT can name, ${served}`);
}
