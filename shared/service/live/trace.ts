// What the span of a request says at its end.
import { addressAttributes } from "../../tracing/attributes.ts";
import type { Attributes, SpanEnd } from "../../tracing/span.ts";
import type { LiveTunnel } from "./tunnel.ts";

/** Methods that a span names; others are those of a peer's choice (OpenTelemetry's conventions for HTTP). */
const METHODS = ["CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "TRACE"];

/** @param method of an HTTP request, or what stands for one in another protocol */
export function endOfRequest(tunnel: LiveTunnel & { readonly method?: string }): SpanEnd {
  const { id, key, client, peer, agent, destination, protocol = "http", network = "tcp", method = "CONNECT" } = tunnel;
  const { status, proxyError, reason = "", connectedAt, sent, received } = tunnel;
  const isHttp = protocol === "http" && method !== "FORWARD";
  const shown = METHODS.includes(method) ? method : "_OTHER";
  const http: Attributes = isHttp ? { "http.request.method": shown, "http.response.status_code": status } : {};
  const isFailure = proxyError !== undefined && (connectedAt !== undefined || status === undefined || status >= 500);
  return {
    name: !isHttp ? `${protocol === "http" ? "forward" : protocol}` : shown === "_OTHER" ? "HTTP" : shown,
    attributes: {
      ...http,
      ...destination === undefined ? {} : addressAttributes("server", destination),
      ...client === undefined ? {} : addressAttributes("client", client),
      ...peer === undefined ? {} : addressAttributes("network.peer", peer),
      "network.protocol.name": isHttp ? "http" : protocol === "http" ? undefined : protocol,
      "network.transport": network,
      "reverse_http.request.id": id,
      "reverse_http.tunnel.id": key,
      "reverse_http.agent.id": agent,
      "reverse_http.sent": sent,
      "reverse_http.received": received,
      // a request that a client has to blame itself for is no failure of the server
      ...proxyError === undefined || isFailure ? {} : { "error.type": proxyError, "reverse_http.reason": reason },
    },
    error: isFailure ? { type: proxyError, message: reason } : undefined,
    openedAt: connectedAt,
  };
}
