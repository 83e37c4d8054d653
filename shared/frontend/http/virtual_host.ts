// Clients of virtual hosts: web browsers and other programs that know no proxy. Each request on a connection goes to the destination that the
// operator has configured for its host and path.
import { parseAuthority } from "../../address/authority.ts";
import { hasToken, HeadError, parseRequestHead, type RequestHead, requestIdOf, takeHead, values } from "../../http/head.ts";
import type { Intermediary } from "../../http/proxy_status.ts";
import { encodeErrorResponse, ProxyError } from "../../http/status.ts";
import { hostOf } from "../../limits/addresses.ts";
import type { Incoming } from "../../net/listener.ts";
import { printable } from "../../net/printable.ts";
import { parseTraceContext, withTrace } from "../../tracing/context.ts";
import { CredentialsError, TunnelError } from "../../tunnel/errors.ts";
import { logRequest } from "../access_log.ts";
import type { TlsPeer } from "../authentication.ts";
import { ClientInput, nextRequest } from "./client_input.ts";
import type { ClientProtocol } from "../client_protocol.ts";
import { type ForwardIdentity, identifyCertificate, identifyVisitor } from "../forwards/credentials.ts";
import { forwardingFields, type RequestOrigin, withoutForwarding } from "./forwarded_fields.ts";
import type { Forward } from "../forwards/forwards.ts";
import { asHttp2, checkProtocol } from "./http2_request.ts";
import { claimedAgent, readCredentials } from "./credentials.ts";
import { forward as forwardRequest } from "./plain_request.ts";
import { refusalOf } from "./proxy.ts";
import { checkMaxForwards, type ForwardTarget, upgradeOf } from "./rewrite.ts";
import type { ClientSession } from "../pipeline.ts";
import { normalizePath, type VirtualHosts } from "../forwards/virtual_hosts.ts";

/**
 * The protocol of a listener of virtual hosts.
 * @param current the hosts at the moment; `undefined` after they were removed
 * @param name of the service in Proxy-Status
 * @param idleTimeoutMs time for another request on a connection. Default: that of {@link nextRequest}
 */
export function createVirtualHosts(current: () => VirtualHosts | undefined, name: Intermediary, idleTimeoutMs?: number): ClientProtocol {
  return createHostProtocol({ network: current()!.network, find: current, current, name, idleTimeoutMs });
}

/** Options of a listener whose virtual hosts are looked up. */
export interface HostProtocolOptions {
  readonly network: "http" | "https";
  /**
   * The hosts that may be for a host without a port, `undefined` without one, and a path, normalized by {@link normalizePath}.
   */
  readonly find: (host: string | undefined, path: string | undefined) => VirtualHosts | undefined | Promise<VirtualHosts>;
  /** As for {@link createVirtualHosts}. Missing: requests continue when their host is no longer found. */
  readonly current?: () => VirtualHosts | undefined;
  /** The service in Proxy-Status. */
  readonly name: Intermediary;
  /** As of {@link createVirtualHosts}. */
  readonly idleTimeoutMs?: number;
}

/** Creates the protocol of web sites whose hosts are looked up for each request. */
export function createHostProtocol(options: HostProtocolOptions): ClientProtocol {
  const { network, name, idleTimeoutMs } = options;
  return {
    preamble: network === "https" ? "http-or-http2" : "http",
    open(session) {
      const input = new ClientInput(session.stream);
      let isOpen = false;
      return {
        async serve(incoming) {
          isOpen = await serve(session, incoming, input, options);
        },
        refuse: (error) => session.stream.write(encodeErrorResponse(error, name, session.record)),
        next: async () => isOpen ? await nextRequest(session.stream, input, idleTimeoutMs) : undefined,
      };
    },
    refusalOf(error) {
      // browsers connect before they have a request, and may take a 408 for the response to it
      if (error.code === "head-timeout") return undefined;
      return error.code === "not-http2"
        ? new HeadError(505, "The client has agreed on HTTP/2 and uses another protocol")
        : refusalOf(error);
    },
  };
}

/**
 * Serves one request to its end. Returns whether another one may follow on the connection.
 * @throws {TunnelError}
 */
async function serve(
  session: ClientSession,
  incoming: Incoming,
  input: ClientInput,
  { find, current, name }: HostProtocolOptions,
): Promise<boolean> {
  const { context: { trusted, log, isDraining }, record, stream } = session;
  const { isHttp2 } = incoming;
  const parsed = parseRequestHead(takeHead(incoming));
  const request = isHttp2 ? asHttp2(parsed) : parsed;
  record.method = request.method;
  record.id = requestIdOf(request.fields) ?? record.id;
  session.startTrace(parseTraceContext(request.fields));
  const isTrusted = trusted?.trusts(stream.remote) ?? false;
  if (trusted && isTrusted) session.setClient(trusted.clientOf(stream.remote, request.fields), trusted.certificateOf(request.fields));
  if (isHttp2) checkProtocol(request, "websocket is served");
  const asked = parseTarget(request);
  record.serverName = asked.host;
  logRequest(log, request, record);
  session.checkRate();
  const hosts = await find(asked.host, asked.normalizedPath);
  if (hosts === undefined) throw new ProxyError(404, "destination_not_found", "The site was removed");
  const forward = findForward(hosts, asked);
  checkServerName(hosts, asked, session.tls);
  const { to } = forward;
  record.destination = to;
  if (!hosts.allowed.get(forward)!.allows({ host: hostOf(record.client), port: 1 })) {
    throw new TunnelError("http_request_denied", "The client's address is not on the list allow of the forward");
  }
  const origin: RequestOrigin = {
    peer: stream.remote,
    isTrusted,
    trustsCertificate: isTrusted && trusted!.trustsCertificates,
    scheme: hosts.network,
    host: asked.authority,
    certificate: session.tls.peerCertificate,
  };
  const target: ForwardTarget = { authority: asked.authority ?? to, path: asked.path, fields: forwardingFields(request.fields, origin) };
  const fields = withoutForwarding(withoutCredentials(request.fields, forward), origin);
  const mayPersist = () => request.version === "1.1" && !hasToken(request.fields, "connection", "close") && !isDraining();
  let isPersistent = false;
  try {
    const { identity, credentials, isOperators } = await identify(session, forward, request);
    record.agent = forward.agent;
    await session.connect({
      identity,
      credentials,
      destination: parseAuthority(to),
      isOperators,
      verify: () => problemOf(current ? current() : hosts, asked, record.client),
      via: values(request.fields, "via"),
      isHttp2: forward.toProtocol === "h2c" && upgradeOf(request) === undefined,
      exchange: async ({ stream: upstream }, { clientSignal, pace }) => {
        const exchange = {
          request: { ...request, fields: withTrace(fields, record.trace) },
          target,
          record,
          by: name,
          clientSignal,
          pace,
          input,
          mayPersist,
        };
        isPersistent = await forwardRequest(stream, upstream, exchange);
      },
    });
  } catch (error) {
    throw error instanceof CredentialsError ? toOriginError(error, forward) : error;
  }
  return isPersistent;
}

/** Why an open request is no longer permitted, or `undefined`. If its site leads elsewhere now, it is. */
function problemOf(hosts: VirtualHosts | undefined, asked: Asked, client: string): string | undefined {
  if (hosts === undefined) return "The site was removed";
  try {
    const isAllowed = hosts.allowed.get(findForward(hosts, asked))!.allows({ host: hostOf(client), port: 1 });
    return isAllowed ? undefined : "The client's address is not on the list allow of the forward";
  } catch (error) {
    if (!(error instanceof TunnelError)) throw error;
    return error.message;
  }
}

/** The target of a request. */
interface Asked {
  /** `Host` of the origin, with the port as written; missing in HTTP/1.0. */
  readonly authority?: string;
  /** `authority` without the port. */
  readonly host?: string;
  /** Path and query as received; empty for the server as a whole (RFC 9112 §3.2.4). */
  readonly path: string;
  /** The path alone, by {@link normalizePath}. */
  readonly normalizedPath: string | undefined;
}

/** Methods that origins may serve, for `Allow` in responses to others. */
const METHODS = "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS";

/**
 * @throws {HeadError} 400
 * @throws {ProxyError} 405
 */
function parseTarget(request: RequestHead): Asked {
  const { method, target, version, fields } = request;
  if (method === "CONNECT") {
    throw new ProxyError(405, "http_request_denied", "Web sites are served here, and no CONNECT", [["Allow", METHODS]]);
  }
  checkMaxForwards(request, METHODS);
  // a server must accept a whole URI, which replaces Host (RFC 9112 §3.2.2)
  const [, named, rest] = /^https?:\/\/([^/?#]+)([^#]*)$/i.exec(target) ?? [];
  const [host = ""] = values(fields, "host");
  const authority = named ?? (host || undefined);
  if (version === "2" && named !== undefined && host !== "" && host.toLowerCase() !== named.toLowerCase()) {
    throw new HeadError(400, "The request has a Host that differs from :authority"); // RFC 9113 §8.3.1
  }
  const path = rest ?? (target === "*" && method === "OPTIONS" ? "" : target);
  if (rest === undefined && path !== "" && !/^\/[^#]*$/.test(path)) throw new HeadError(400, "The request target is malformed");
  if (authority === undefined && version === "1.1") throw new HeadError(400, "The request has no Host, which selects the web site");
  return {
    authority,
    host: authority && parseAuthority(authority.replace(/:$/, ""), 80).host,
    path,
    normalizedPath: normalizePath(path.split("?")[0]!),
  };
}

/**
 * @throws {ProxyError} 404 if there is none
 * @throws {HeadError} 400 if the path may be another one for the origin
 */
function findForward(hosts: VirtualHosts, { host, normalizedPath }: Asked): Forward {
  if (normalizedPath === undefined && hosts.isByPath) throw new HeadError(400, "The path has dot segments, and it selects the web site");
  const match = hosts.match(host, normalizedPath ?? "/");
  if (match) return match.forward;
  throw new ProxyError(
    404,
    "destination_not_found",
    host === undefined ? "The request names no host" : `No web site is at ${printable(host)} with this path`,
  );
}

/**
 * Refuses a request for a host whose certificate, or rules for certificates of clients, are not those of its connection: clients send requests
 * for several hosts on one connection of HTTP/2 (RFC 9110 §7.4).
 * @throws {ProxyError} 421
 */
function checkServerName({ certificates }: VirtualHosts, { host }: Asked, { serverName }: TlsPeer): void {
  if (certificates.of(serverName) === certificates.of(host)) return;
  throw new ProxyError(421, "http_request_error", "The host of the request is not that of the connection: use another connection for it");
}

/**
 * The identity of a request.
 * @throws {TunnelError}
 */
async function identify(session: ClientSession, forward: Forward, { fields }: RequestHead): Promise<ForwardIdentity> {
  if (forward.auth !== "token") return await identifyCertificate(session, forward, forward.auth === "mtls");
  const given = readCredentials(fields, "authorization");
  if (given instanceof CredentialsError) throw given;
  if (given !== undefined) session.record.agentClaimed = claimedAgent(given);
  return await identifyVisitor(session, forward, given);
}

/** Credentials for the forward are not for the origin. */
function withoutCredentials(fields: RequestHead["fields"], { auth }: Forward): RequestHead["fields"] {
  return auth !== "token" ? fields : fields.filter(([name]) => name.toLowerCase() !== "authorization");
}

/** Challenges of an origin (RFC 9110 §11.6.1). */
const CHALLENGES = ['Basic realm="reverse-http", charset="UTF-8"', 'Bearer realm="reverse-http"']
  .map((challenge) => ["WWW-Authenticate", challenge] as const);

/** A proxy asks for credentials by other means than an origin, as which the client sees this one. Those of the operator are not its own. */
function toOriginError({ type, message, cause }: CredentialsError, { auth }: Forward): TunnelError {
  if (auth !== "token") return new TunnelError("proxy_configuration_error", "The token of the forward is not accepted", { cause });
  return new ProxyError(401, type, message, CHALLENGES, { cause });
}
