// Clients that use the service as an HTTP proxy: one CONNECT (RFC 9110 §9.3.6), one UDP flow (RFC 9298) or one plain request on each
// connection, or stream of HTTP/2.
import { formatAuthority, parseAuthority } from "../../address/authority.ts";
import { parseUdpRequest, UDP_ESTABLISHED_HEAD } from "../../http/connect_udp.ts";
import { HeadError, parseRequestHead, type RequestHead, requestIdOf, takeHead, values } from "../../http/head.ts";
import type { Intermediary } from "../../http/proxy_status.ts";
import { CONNECTION_ESTABLISHED_HEAD, encodeErrorResponse, ProxyError, TLS_NEEDED } from "../../http/status.ts";
import type { NetError } from "../../net/errors.ts";
import type { Incoming } from "../../net/listener.ts";
import { parseTraceContext, withTrace } from "../../tracing/context.ts";
import { CredentialsError, type TunnelError } from "../../tunnel/errors.ts";
import { logRequest } from "../access_log.ts";
import type { ClientProtocol } from "../client_protocol.ts";
import { asHttp2, checkProtocol } from "./http2_request.ts";
import { claimedAgent, readCredentials } from "./credentials.ts";
import { forward } from "./plain_request.ts";
import { type AbsoluteTarget, checkMaxForwards, parseAbsoluteTarget } from "./rewrite.ts";
import { linger } from "./linger.ts";
import type { ClientRequest, ClientSession } from "../pipeline.ts";
import { encodeAutoConfig, isForAutoConfig, type ProxyAutoConfig } from "./proxy_auto_config.ts";
import { acceptUpgrade, isFor, type WebSocketEndpoint } from "./web_socket.ts";

/** Services besides proxy requests. Default: none. */
export interface Endpoints {
  webSocket?: WebSocketEndpoint;
  autoConfig?: ProxyAutoConfig;
}

/**
 * @param name of the service in Proxy-Status
 * @param endpoints may change
 * @param preamble `http2` for clients that speak HTTP/2. Default: HTTP/1.1
 */
export function createHttpProxy(name: Intermediary, endpoints: Endpoints = {}, preamble: "http" | "http2" = "http"): ClientProtocol {
  return {
    preamble,
    open: (session) => ({
      serve: (incoming) => serve(session, incoming, name, endpoints),
      refuse: (error) => session.stream.write(encodeErrorResponse(error, name, session.record)),
    }),
    refusalOf,
  };
}

/**
 * Serves one request to its end.
 * @throws {TunnelError}
 */
async function serve(session: ClientSession, incoming: Incoming, name: Intermediary, endpoints: Endpoints): Promise<void> {
  // a function of its own: what it has in memory, such as the head, is not kept while the tunnel is open
  const request = await readRequest(session, incoming, name, endpoints);
  if (request !== undefined) await session.connect(request);
}

/**
 * Parses a request and identifies its client. `undefined` if the request was not for a destination, and is served.
 * @throws {TunnelError}
 */
async function readRequest(
  session: ClientSession,
  incoming: Incoming,
  name: Intermediary,
  { webSocket, autoConfig }: Endpoints,
): Promise<ClientRequest | undefined> {
  const { context: { trusted, log }, record } = session;
  const { stream, isHttp2 } = incoming;
  const parsed = parseRequestHead(takeHead(incoming));
  const request = isHttp2 ? asHttp2(parsed) : parsed;
  record.method = request.method;
  record.id = requestIdOf(request.fields) ?? record.id;
  session.startTrace(parseTraceContext(request.fields));
  if (trusted?.trusts(stream.remote)) {
    session.setClient(trusted.clientOf(stream.remote, request.fields), trusted.certificateOf(request.fields));
  }
  if (webSocket && isFor(webSocket, request)) {
    session.checkRate();
    await stream.write(acceptUpgrade(request));
    webSocket.accept(stream, record.client);
    return undefined;
  }
  if (autoConfig && isForAutoConfig(request)) {
    session.checkRate();
    await stream.write(encodeAutoConfig(request, autoConfig));
    log.debug("proxy configuration sent", { id: record.id, client: record.client });
    await linger(stream, async () => {});
    return undefined;
  }
  const udp = parseUdpRequest(request);
  if (isHttp2 && !udp) checkProtocol(request, "websocket and connect-udp are served");
  const absolute = udp ? undefined : parseTarget(request);
  const destination = udp ?? absolute?.destination ?? parseAuthority(request.target);
  record.network = udp && "udp";
  record.destination = formatAuthority(destination);
  const credentials = readCredentials(request.fields);
  if (credentials && !(credentials instanceof CredentialsError)) record.agentClaimed = claimedAgent(credentials);
  logRequest(log, request, record);
  session.checkRate();
  if (credentials instanceof CredentialsError) throw credentials;
  const identity = await session.identify(credentials);
  const respond = udp
    ? { network: "udp" as const, established: UDP_ESTABLISHED_HEAD, establishedStatus: 101 }
    : absolute
    ? exchangeOf(session, request, absolute, name)
    : { established: CONNECTION_ESTABLISHED_HEAD };
  return { identity, credentials, destination, via: values(request.fields, "via"), ...respond };
}

/** Forwards a plain request instead of relaying. */
function exchangeOf(
  { stream, record }: ClientSession,
  request: RequestHead,
  target: AbsoluteTarget,
  name: Intermediary,
): Pick<ClientRequest, "exchange"> {
  return {
    exchange: async ({ stream: origin }, { clientSignal, pace }) => {
      const traced = { ...request, fields: withTrace(request.fields, record.trace) };
      await forward(stream, origin, { request: traced, target, record, by: name, clientSignal, pace });
    },
  };
}

/**
 * Returns the target of plain HTTP, `undefined` for CONNECT, and checks that the proxy serves it.
 * @throws {ProxyError} 405
 * @throws {HeadError} 400
 */
function parseTarget(request: RequestHead): AbsoluteTarget | undefined {
  if (request.method === "CONNECT") {
    checkNoContent(request);
    return undefined;
  }
  const absolute = parseAbsoluteTarget(request.target);
  if (absolute === undefined) {
    throw new ProxyError(405, "http_request_denied", "Only CONNECT, and requests with an absolute http URI, are served", [[
      "Allow",
      "CONNECT",
    ]]);
  }
  checkMaxForwards(request, "CONNECT");
  return absolute;
}

/**
 * Data after the head of a CONNECT belongs to the tunnel (RFC 9110 §9.3.6). Another hop that takes it for content would see a different
 * request.
 * @throws {HeadError} 400
 */
function checkNoContent({ fields }: RequestHead): void {
  const hasLength = values(fields, "content-length").some((length) => Number(length) !== 0);
  if (hasLength || values(fields, "transfer-encoding").length > 0) throw new HeadError(400, "A CONNECT has no content");
}

/** The response to a connection whose head could not be read. */
export function refusalOf(error: NetError): TunnelError | undefined {
  switch (error.code) {
    case "head-too-large":
      return new ProxyError(431, "http_request_error", "The request head is too large");
    case "head-timeout":
      return new ProxyError(408, "http_request_error", "The request head was not complete in time");
    case "head-malformed":
    case "head-truncated":
      return new HeadError(400, `The request head is malformed: ${error.message}`);
    case "not-tls":
      return new HeadError(400, TLS_NEEDED);
    case "not-http2":
      return new HeadError(505, `${error.message}: --http-proxy.listen-address is for other clients`);
    default:
      return undefined;
  }
}
