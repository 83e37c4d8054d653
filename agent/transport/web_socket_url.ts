// Where an agent opens WebSockets: the value of --agent-client.websocket-url, and the request for one proxy.
import type { SessionKind, WebSocketRequest } from "../../shared/net/session.ts";
import type { Server } from "../outbound_proxy.ts";
import type { ProxyEndpoint } from "../proxy_endpoints.ts";

/** The way to a proxy. */
export interface Route {
  readonly server: Server;
  readonly webSocket?: WebSocketRequest;
}

export interface WebSocketUrl {
  /** Whether an outer TLS connection carries it. */
  readonly isSecure: boolean;
  /** IPv6 without brackets. Missing: that of the proxy. */
  readonly host?: string;
  readonly port: number;
  readonly path: string;
}

const URL_PATTERN = /^(wss?):\/\/(\[[0-9A-Fa-f:.]+\]|[0-9A-Za-z._-]*)(?::([0-9]{1,5}))?(\/[!-"$-~]*)?$/i;

/** @throws {RangeError} */
export function parseWebSocketUrl(text: string): WebSocketUrl {
  const match = URL_PATTERN.exec(text);
  if (match === null) {
    // it may have a password
    throw new RangeError("it is not wss://HOST[:PORT]/PATH or ws://HOST[:PORT]/PATH, without user, password and fragment");
  }
  const [, scheme, host, portText, path = "/"] = match;
  const isSecure = scheme!.toLowerCase() === "wss";
  const port = portText === undefined ? defaultPort(isSecure) : Number(portText);
  if (port < 1 || port > 65_535) throw new RangeError(`its port ${portText} is not 1 to 65535`);
  return { isSecure, host: host!.replace(/^\[|\]$/g, "") || undefined, port, path };
}

/** The address that a transport connects to in order to reach `proxy`, and the request for a WebSocket. */
export function routeTo(proxy: ProxyEndpoint, kind: SessionKind, url: WebSocketUrl | undefined): Route {
  return kind === "websocket" && url ? webSocketTo(url, proxy) : { server: proxy };
}

function webSocketTo(url: WebSocketUrl, proxy: ProxyEndpoint): Route {
  const { isSecure, port, path } = url;
  const name = url.host ?? proxy.serverName;
  const bracketed = name.includes(":") ? `[${name}]` : name;
  return {
    server: { host: url.host ?? proxy.host, port, serverName: name },
    webSocket: {
      authority: port === defaultPort(isSecure) ? bracketed : `${bracketed}:${port}`,
      path,
      tlsServerName: isSecure ? name : undefined,
    },
  };
}

function defaultPort(isSecure: boolean): number {
  return isSecure ? 443 : 80;
}
