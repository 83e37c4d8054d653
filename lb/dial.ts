// Opens a tunnel through the proxy that holds the agent, with the client's own credentials or certificate. Plain HTTP requests use such a tunnel too, so
// that they work with any proxy.
import { type Authority, formatAuthority, parseAuthority } from "../shared/address/authority.ts";
import { formatProxyAuthorization } from "../shared/frontend/http/credentials.ts";
import { clientCertField } from "../shared/http/client_cert.ts";
import { encodeUdpRequest, isUdpEstablished, isWithoutUdp } from "../shared/http/connect_udp.ts";
import { formatForwarded } from "../shared/http/forwarded.ts";
import { encodeHead, type Fields, type ResponseHead, values } from "../shared/http/head.ts";
import { parseProxyStatus } from "../shared/http/proxy_status.ts";
import { readResponse } from "../shared/http/read_response.ts";
import { ReceivedResponse, TLS_NEEDED } from "../shared/http/status.ts";
import { NetError } from "../shared/net/errors.ts";
import type { Net } from "../shared/net/net.ts";
import type { Duplex } from "../shared/net/stream.ts";
import type { ClientTls } from "../shared/net/tls.ts";
import { StoreError } from "../shared/store/store.ts";
import { addressAttributes } from "../shared/tracing/attributes.ts";
import { traceFields } from "../shared/tracing/context.ts";
import { inSpan, type SpanEnd, spanError } from "../shared/tracing/span.ts";
import { connectError, CredentialsError, MalformedRequestError, TunnelError, type TunnelErrorType } from "../shared/tunnel/errors.ts";
import type { TunnelRequest, TunnelVia, UpstreamStream } from "../shared/tunnel/request.ts";
import type { Locator } from "./locator.ts";

export interface DialerOptions {
  net: Net;
  locator: Locator;
  /** The current TLS settings towards proxies; `undefined` for plain HTTP. */
  tls: () => ClientTls | undefined;
  /** Timeout in milliseconds for a connection to a proxy. */
  connectTimeoutMs: number;
  /** Timeout in milliseconds for the proxy's response after that. */
  responseTimeoutMs: number;
  /** The system has no local port left for a connection to the proxy at `address`. */
  onNoLocalPort?: (address: string) => void;
  /** This process in `Via`, to detect loops. */
  pseudonym: string;
}

/** Options that may change while the dialer is used. */
export type DialerTimeouts = Pick<DialerOptions, "connectTimeoutMs" | "responseTimeoutMs">;

/** Maximum length of an entry of the store in a message, in characters. */
const MAX_ENTRY = 100;
/** Maximum number of proxies that one request tries, and of those among them that the store has named. */
const MAX_ATTEMPTS = 4;
const MAX_NAMED = 2;

/** A stream to the destination, through a proxy. */
interface ProxyStream extends UpstreamStream {
  readonly via: TunnelVia;
}

/** The result of one attempt. */
type Outcome =
  | { readonly upstream: ProxyStream }
  /** `stale`: the agent may be connected to another proxy. */
  | { readonly refusal: TunnelError; readonly stale: boolean };

function describeOutcome(outcome: Outcome): SpanEnd {
  return "refusal" in outcome ? { error: spanError(outcome.refusal) } : {};
}

/** Creates the frontend's dialer. */
export function createDialer(options: DialerOptions): (request: TunnelRequest) => Promise<ProxyStream> {
  const { locator, pseudonym } = options;
  return async (request) => {
    const { agentId } = request;
    const { connectTimeoutMs, responseTimeoutMs } = options;
    if (request.via.some((hop) => hop.includes(pseudonym))) {
      throw new TunnelError("proxy_loop_detected", "The store names this load balancer as the proxy that holds the agent");
    }
    const deadline = performance.now() + connectTimeoutMs + responseTimeoutMs;
    const attempted = new Set<string>();
    const attempt = async (address: string): Promise<ProxyStream | TunnelError> => {
      const span = request.trace?.child(
        "client",
        "dial proxy",
        () => ({ "http.request.method": "CONNECT", ...addressAttributes("network.peer", address) }),
      );
      const outcome = await inSpan(span, () => requestTunnel(options, address, { ...request, trace: span }, deadline), describeOutcome);
      if ("upstream" in outcome) return outcome.upstream;
      if (!outcome.stale) throw outcome.refusal;
      attempted.add(address);
      locator.invalidate(agentId, address);
      return outcome.refusal;
    };
    let refusal: TunnelError | undefined;
    // the agent may have moved since the lookup: another lookup finds its new proxy
    while (attempted.size < MAX_NAMED && performance.now() < deadline) {
      const address = await locate(locator, request, refusal === undefined);
      if (address === undefined || attempted.has(address)) break;
      const result = await attempt(address);
      if (!(result instanceof TunnelError)) return result;
      refusal = result;
    }
    if (!refusal) throw new TunnelError("destination_unavailable", "The agent is not connected to any proxy");
    for (const address of locator.alternatives(agentId, attempted, MAX_ATTEMPTS - attempted.size)) {
      if (performance.now() >= deadline) throw refusal; // a proxy that was not asked may hold the agent
      const wrong = new Set(attempted);
      const result = await attempt(address);
      if (result instanceof TunnelError) continue;
      locator.record(agentId, address, wrong);
      return result;
    }
    locator.recordMiss(agentId);
    throw refusal;
  };
}

/** Asks the locator. A failing store is an error only if the result `isNeeded`. */
async function locate(locator: Locator, { agentId, trace }: TunnelRequest, isNeeded: boolean): Promise<string | undefined> {
  try {
    return await locator.locate(agentId, trace);
  } catch (cause) {
    if (!(cause instanceof StoreError)) throw cause;
    if (!isNeeded) return undefined;
    throw new TunnelError("proxy_internal_error", "The store of agents cannot be reached", { cause, retryAfterMs: 1_000 });
  }
}

async function requestTunnel(options: DialerOptions, address: string, request: TunnelRequest, deadline: number): Promise<Outcome> {
  const within = (ms: number) => Math.max(1, Math.min(ms, deadline - performance.now()));
  const signal = request.clientSignal?.();
  let stream: Duplex | undefined;
  const abort = () => stream?.reset(1);
  signal?.addEventListener("abort", abort, { once: true });
  try {
    const proxy = parseProxyAddress(address);
    if (proxy === undefined) return notAnAddress(address);
    stream = await options.net.connectTcp({
      ...proxy,
      timeoutMs: within(options.connectTimeoutMs),
      signal,
      tls: options.tls(),
    });
    await stream.write(encodeRequest(request, options.pseudonym, proxy));
    const response = await readResponse(stream, within(options.responseTimeoutMs), "--http-connector.tls.enable");
    const isUdp = request.network === "udp";
    if (isUdp ? isUdpEstablished(response) : response.status >= 200 && response.status < 300) {
      return { upstream: { stream, via: { address } } };
    }
    stream.reset(1); // the rest is not needed, and an orderly close would leave the port in TIME_WAIT
    stream.close();
    if (isUdp && isWithoutUdp(response)) return relaysNoUdp(response, address);
    return response.status === 400 ? notUnderstood(response, address, options.tls() !== undefined) : forwardResponse(response);
  } catch (cause) {
    stream?.reset(1);
    stream?.close();
    if (signal?.aborted) throw cause; // the client has disconnected; the proxy may be fine
    if (cause instanceof NetError && cause.code === "address-not-available") options.onNoLocalPort?.(address);
    return toOutcome(cause, address);
  } finally {
    signal?.removeEventListener("abort", abort);
  }
}

/** The Go proxy publishes its listen address by default. Without a host it is on this machine. `undefined` if it is not an address. */
function parseProxyAddress(address: string): Authority | undefined {
  try {
    return parseAuthority(address.startsWith(":") ? `localhost${address}` : address);
  } catch (error) {
    if (error instanceof MalformedRequestError) return undefined;
    throw error;
  }
}

/** Another program may have written the entry. */
function notAnAddress(text: string): Outcome {
  const cause = new Error(`the entry ${JSON.stringify(text.slice(0, MAX_ENTRY))} is not host:port`);
  return {
    refusal: new TunnelError("destination_unavailable", "The agent's entry in the store is not an address", { cause }),
    stale: true,
  };
}

function encodeRequest(
  { network, id, client, identity: { certificate }, destination, credentials, via, trace }: TunnelRequest,
  pseudonym: string,
  proxy: Authority,
): Uint8Array {
  const isUdp = network === "udp";
  const authority = formatAuthority(isUdp ? proxy : destination);
  const fields: Fields = [
    ["Host", authority],
    ["Proxy-Authorization", formatProxyAuthorization(credentials)],
    ...isUdp ? [] : [["Proxy-Connection", "keep-alive"] as const],
    ...[...via, `1.1 ${pseudonym}`].map((hop) => ["Via", hop] as const),
    ["Forwarded", formatForwarded(client)],
    ...certificate === undefined ? [] : [clientCertField(certificate)],
    ["X-Request-Id", id],
    ...traceFields(trace),
  ];
  return isUdp ? encodeUdpRequest(destination, fields) : encodeHead(`CONNECT ${authority} HTTP/1.1`, fields);
}

function relaysNoUdp({ status, reason }: ResponseHead, address: string): Outcome {
  const cause = new Error(`${address}: it responded ${status} ${reason}`.trim());
  return {
    refusal: new TunnelError("http_upgrade_failed", `${PROXY} does not relay UDP: its version is too old`, { cause }),
    stale: false,
  };
}

/** Error statuses that are forwarded to the client. */
const FORWARDED_STATUS = new Set([403, 407, 429, 431, 502, 503, 504]);
/** Fields of an error response that tell the client what to do. */
const ADVICE = ["Proxy-Authenticate", "Retry-After"];

/** Errors of a proxy that does not hold the agent, or has just lost it. */
const STALE_ERRORS: readonly TunnelErrorType[] = ["destination_unavailable", "connection_terminated"];

/** Forwards the proxy's error: status, type and message. */
function forwardResponse({ status, reason, fields }: ResponseHead): Outcome {
  const proxyStatus = parseProxyStatus(fields);
  const { error, details } = proxyStatus;
  const advice = ADVICE.flatMap((name) => values(fields, name.toLowerCase()).map((value) => [name, value] as const));
  const type = error ?? (status === 407 || status === 403 ? "http_request_denied" : "destination_unavailable");
  const message = details ?? `The proxy responded with ${status} ${reason}`.trim();
  const received = new ReceivedResponse(proxyStatus, FORWARDED_STATUS.has(status) ? status : 502, advice);
  return {
    refusal: status === 407 ? new CredentialsError(message, { type, received }) : new TunnelError(type, message, { received }),
    // the Go proxy answers every failure with 503 and no error type
    stale: (status === 502 || status === 503) && STALE_ERRORS.includes(type),
  };
}

/** lb has parsed the client's request, so a 400 means that proxy and lb do not agree on the protocol. */
function notUnderstood({ status, reason, fields }: ResponseHead, address: string, withTls: boolean): Outcome {
  const proxyStatus = parseProxyStatus(fields);
  const needsTls = !withTls && proxyStatus.details === TLS_NEEDED;
  const advice = withTls ? "" : needsTls ? "; set --http-connector.tls.enable" : "; if it takes TLS, set --http-connector.tls.enable";
  const cause = new Error(`${address}: it responded ${proxyStatus.details ?? `${status} ${reason}`.trim()}${advice}`);
  const options = { cause, received: new ReceivedResponse(proxyStatus) };
  const refusal = needsTls
    ? new TunnelError("tls_protocol_error", "The proxy that holds the agent takes TLS, and lb uses plain HTTP", options)
    : new TunnelError("http_protocol_error", "The proxy that holds the agent does not understand lb", options);
  return { refusal, stale: false };
}

const PROXY = "The proxy that holds the agent";

function toOutcome(error: unknown, address: string): Outcome {
  const cause = new Error(`${address}: ${error instanceof Error ? error.message : error}`, { cause: error });
  if (error instanceof MalformedRequestError) {
    return { refusal: new TunnelError("http_response_incomplete", `${PROXY} sent a malformed response`, { cause }), stale: true };
  }
  if (!(error instanceof NetError)) throw error;
  const refusal = connectError(error, PROXY, "lb", cause) ??
    new TunnelError("connection_terminated", `${PROXY} ended the connection without a response`, { cause });
  return { refusal, stale: refusal.type !== "connection_limit_reached" };
}
