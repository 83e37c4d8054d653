// The client side that proxy and lb have in common: head, credentials, allow-list, a way to the destination, answer, copy, one line in
// the log. It does not know where a way to the destination comes from: that is `dial`.
import { setTimeout as sleep } from "node:timers/promises";
import type { AllowList } from "../address/allow_list.ts";
import {
  AuthenticationError,
  type Authenticator,
  type ClientCredentials,
  endReason,
  identifyClient,
  type Identity,
  isLoggable,
  parseProxyAuthorization,
} from "../auth/authenticator.ts";
import {
  type Authority,
  type Fields,
  formatAuthority,
  HeadError,
  parseAuthority,
  parseRequestHead,
  type RequestHead,
  requestIdOf,
  values,
} from "../http/head.ts";
import type { Intermediary } from "../http/proxy_status.ts";
import { CONNECTION_ESTABLISHED_HEAD, encodeErrorResponse, ProxyError, TLS_NEEDED } from "../http/status.ts";
import type { ClientLimits, ClientPermit } from "../limits/client_limits.ts";
import { LimitReached } from "../limits/limit.ts";
import type { OpenTunnel } from "../limits/tunnels.ts";
import type { Logger } from "../log/logger.ts";
import type { TunnelEnd } from "../service/metrics.ts";
import { NetError } from "../net/errors.ts";
import type { Duplex, Incoming, Net, Spliced, SpliceOptions, TcpListener } from "../net/types.ts";
import { type TrustedProxies, UnnamedClients } from "./client_address.ts";
import { LogLimit } from "../log/limit.ts";
import { printable } from "../net/printable.ts";
import { withTimeout } from "../async/with_timeout.ts";
import { logAccess, type RequestRecord } from "./access_log.ts";
import { type AbsoluteTarget, checkMaxForwards, clientDisconnected, forward, parseAbsoluteTarget } from "./http_forward.ts";
import { linger } from "./linger.ts";

/** What `dial` is to reach, and for whom. */
export interface DialRequest {
  /** Appears in the logs of everybody who takes part. */
  readonly id: string;
  readonly agentId: string;
  /** The client's own address, `host:port` or `[host]:port`; the port may be missing. */
  readonly clientAddress: string;
  readonly destination: Authority;
  readonly credentials: ClientCredentials;
  /** Fields of the request, as they came. */
  readonly fields: Fields;
  /** The client and how it is to be copied to the destination, where nothing else is to be done with it: `dial` may begin with that. */
  readonly client?: { readonly stream: Duplex; readonly copy: SpliceOptions };
  /** Aborted when the client's connection is reset, with the error. For a `dial` that does not begin with `client`, which tells of it too. */
  readonly clientSignal?: () => AbortSignal;
}

/** A way to the destination. */
export type Upstream = (UpstreamStream | Spliced) & {
  /** Called once, when the request is over. */
  readonly release?: () => void;
};

/** A stream whose other end is the destination. */
export interface UpstreamStream {
  readonly stream: Duplex;
  /** What the destination has said already; the stream goes on after it. */
  readonly leftover?: Uint8Array;
}

export interface HttpFrontendOptions {
  net: Net;
  listener: TcpListener;
  authenticator: Authenticator;
  allowList: AllowList;
  /** @throws {ProxyError} what to answer when there is none */
  dial: (request: DialRequest) => Promise<Upstream>;
  /** Its name in Proxy-Status. */
  name: Intermediary;
  /** Who `dial` leads to, for the log. Default `agent`. */
  upstreamRole?: string;
  /** Proxies in front that tell their clients' addresses; limits by address never apply to their own. Default none. */
  trusted?: TrustedProxies;
  /** What clients may take. Default: as much as they like. It is not closed. */
  limits?: ClientLimits;
  log: Logger;
  /** A request is over that was answered. */
  onEnd?: (end: TunnelEnd) => void;
  /** A client's connection brought no request: its TLS handshake failed, or its head was malformed. */
  onBadClient?: (what: "handshake" | "head") => void;
  /** Milliseconds from any fixed point. Default `performance.now`. */
  now?: () => number;
}

/** For a client to read its answer, in milliseconds, before the first bytes of a server that speaks first. */
const HEAD_START_MS = 1;

/** Bytes a second, of all clients together, that are read only to be dropped. */
const DROPPED_RATE = { bytesPerSecond: 64 << 20, burst: 8 << 20 };

/** What the front has besides its options. */
interface Context {
  readonly options: HttpFrontendOptions;
  readonly now: () => number;
  /** Of lines that strangers provoke. */
  readonly logLimit: LogLimit;
  readonly unnamedProxies: UnnamedClients;
}

/** Serves clients until it is closed. */
export interface HttpFrontend {
  /** Clients being served. */
  readonly open: number;
  /**
   * Waits until the last client is gone, or resets those that are left after `timeoutMs`. It goes on taking clients as long as it serves
   * any, up to then, or up to `until`.
   */
  drain(timeoutMs: number, until?: Promise<void>): Promise<void>;
  /** Takes no more clients and resets those it has. */
  close(): void;
  /** Resolves when the last client is gone after {@link close}. */
  readonly done: Promise<void>;
}

/** Time in milliseconds for clients that came no longer ago than that when a drain ends. */
const LAST_CLIENTS_GRACE_MS = 500;

export function startHttpFrontend(options: HttpFrontendOptions): HttpFrontend {
  const { listener, log } = options;
  const now = options.now ?? (() => performance.now());
  const nextRequestId = createIds();
  /** With the time at which each came. */
  const clients = new Map<Duplex, number>();
  const lingering = new Set<Duplex>();
  const logLimit = new LogLimit({ log });
  const context: Context = { options, now, logLimit, unnamedProxies: new UnnamedClients(logLimit, now) };
  const dropped = options.net.createRate(DROPPED_RATE);
  const waiting = new Set<() => void>();
  let isStopping = false;

  /** `reached` resolves when there are none of those that `count` counts, unless it is disposed before. */
  const whenNone = (count: () => number): Disposable & { readonly reached: Promise<void> } => {
    const { promise: reached, resolve } = Promise.withResolvers<void>();
    const stop = () => void waiting.delete(check);
    const check = () => {
      if (count() > 0) return;
      stop();
      resolve();
    };
    waiting.add(check);
    check();
    return { reached, [Symbol.dispose]: stop };
  };
  const notifyWaiters = () => {
    for (const check of waiting) check();
  };

  /** A client that was refused may still be sending, and would not get to read its answer. */
  const lingerAfterRefusal = async (stream: Duplex): Promise<void> => {
    if (isStopping) return stream.close();
    lingering.add(stream);
    notifyWaiters();
    await linger(stream, (bytes) => dropped.take(bytes));
    lingering.delete(stream);
  };

  const serve = async (incoming: Incoming): Promise<void> => {
    const { stream } = incoming;
    const startedAt = now();
    const record: RequestRecord = { id: nextRequestId(), client: stream.remote, sent: 0, received: 0 };
    let permit: ClientPermit | undefined;
    let end: Ending = "over";
    clients.set(stream, startedAt);
    try {
      try {
        permit = options.limits?.acquire(options.trusted?.speaksForMany(stream.remote) ? undefined : stream.remote);
        await handle(context, incoming, record, permit);
      } catch (error) {
        // without a visit there is no place for it to stay in, and without a head it cannot be read
        const mayLinger = incoming.head !== undefined && (permit !== undefined || options.limits === undefined);
        end = await refuse(context, stream, record, error, mayLinger);
      } finally {
        if (record.status !== undefined) {
          logAccess(log, record, startedAt, now());
          const { status, proxyError: error, connectedAt, sent, received } = record;
          options.onEnd?.({ status, error, setupMs: connectedAt === undefined ? undefined : connectedAt - startedAt, sent, received });
        }
      }
    } catch (error) {
      logInternalError(log, undefined, error); // what goes wrong even there is one client's, and nobody else's
    }
    if (end === "may linger") await lingerAfterRefusal(stream);
    permit?.release();
    clients.delete(stream);
    notifyWaiters();
  };

  const run = async (): Promise<void> => {
    for (let batch; (batch = await listener.accept()) !== null;) {
      for (const incoming of batch) void serve(incoming); // never rejects
    }
    await whenNone(() => clients.size).reached;
    dropped.close();
    logLimit.close();
  };

  const done = run();
  const stopLingering = () => {
    isStopping = true;
    for (const stream of lingering) stream.close();
  };
  const close = () => {
    stopLingering();
    listener.close();
    for (const client of clients.keys()) client.reset(1);
  };
  return {
    get open() {
      return clients.size;
    },
    async drain(timeoutMs, until) {
      const startedAt = performance.now();
      {
        using idle = whenNone(() => clients.size - lingering.size);
        await withTimeout(timeoutMs, until ? Promise.race([until, idle.reached]) : idle.reached);
      }
      listener.stopAccepting();
      stopLingering();
      let timer = setTimeout(() => {
        if (timeoutMs === 0) return close();
        const end = now();
        for (const [client, cameAt] of clients) if (end - cameAt > LAST_CLIENTS_GRACE_MS) client.reset(1);
        timer = setTimeout(close, LAST_CLIENTS_GRACE_MS); // what came a moment ago is not cut off
      }, Math.max(0, timeoutMs - (performance.now() - startedAt)));
      await done;
      clearTimeout(timer);
      listener.close();
    },
    close,
    done,
  };
}

async function handle(
  context: Context,
  { stream, head, error }: Incoming,
  record: RequestRecord,
  permit: ClientPermit | undefined,
): Promise<void> {
  const { options, now } = context;
  if (head === undefined) return refuseHead(context, stream, error, record);
  const request = parseRequestHead(head);
  record.method = request.method;
  record.id = requestIdOf(request.fields) ?? record.id;
  if (options.trusted?.trusts(stream.remote)) {
    record.peer = stream.remote;
    record.client = options.trusted.clientOf(stream.remote, request.fields);
  }
  const isUnnamed = options.trusted?.speaksForMany(record.client) ?? false;
  if (!isUnnamed) permit?.setRemote(record.client);
  const absolute = request.method === "CONNECT" ? undefined : parseAbsoluteTarget(request.target);
  if (request.method !== "CONNECT" && absolute === undefined) {
    throw new ProxyError(405, "http_request_denied", "Only CONNECT, and requests with an absolute http URI, are served", [[
      "Allow",
      "CONNECT",
    ]]);
  }
  if (absolute) checkMaxForwards(request);
  else checkNoContent(request);
  const destination = absolute?.destination ?? parseAuthority(request.target);
  record.destination = formatAuthority(destination);
  record.agentClaimed = claimedAgent(request);
  logRequest(options.log, request, record);
  if (isUnnamed) context.unnamedProxies.seen(record.client);
  permit?.checkRate();
  const credentials = readCredentials(request);
  const identity = await identify(options, credentials, permit, record);
  record.agent = identity.agentId;
  record.token = identity.tokenId;
  let tunnel: OpenTunnel | undefined;
  try {
    tunnel = permit?.open(identity);
    const signal = tunnel ? tunnel.signal : identity.signal;
    const copy = { initialDataToA: CONNECTION_ESTABLISHED_HEAD, idleTimeoutMs: options.limits?.idleMs, rates: tunnel?.rates, signal };
    const client = absolute ? undefined : { stream, copy };
    using watch = new ResetWatch(stream);
    const clientSignal = () => watch.signal;
    const dialRequest: Omit<DialRequest, "agentId"> = {
      id: record.id,
      clientAddress: record.client,
      destination,
      credentials,
      fields: request.fields,
      client,
      clientSignal,
    };
    const upstream = await dialUpstream(options, dialRequest, identity, signal, watch);
    record.connectedAt = now();
    try {
      if (!absolute) watch[Symbol.dispose](); // the copy tells of it
      if ("stream" in upstream && signal?.aborted) throw endOf(signal);
      const { id, client, agent } = record;
      options.log.debug("opened", { id, client, agent, destination: record.destination });
      if (absolute && "stream" in upstream) {
        await forwardUntil({ by: options.name, stream, request, identity, tunnel, clientSignal: watch.signal }, upstream, absolute, record);
      } else await relay(options, stream, upstream, copy, record, tunnel);
    } catch (error) {
      if ("stream" in upstream) abort(upstream.stream);
      throw error;
    } finally {
      upstream.release?.();
    }
  } finally {
    tunnel?.close(); // a client that lingers after a refusal takes up its connection alone
    identity.release?.();
  }
}

/** @throws {ProxyError} where it may not be reached, or cannot */
async function dialUpstream(
  options: HttpFrontendOptions,
  request: Omit<DialRequest, "agentId">,
  identity: Identity,
  signal: AbortSignal | undefined,
  watch: ResetWatch,
): Promise<Upstream> {
  const { destination } = request;
  if (!options.allowList.allows(destination)) {
    throw new ProxyError(403, "http_request_denied", `${formatAuthority(destination)} is not on the allow-list of this proxy`);
  }
  if (identity.allowList?.allows(destination) === false) {
    throw new ProxyError(403, "http_request_denied", `${formatAuthority(destination)} is not on the allow-list of the credentials`);
  }
  try {
    return await options.dial({ ...request, agentId: identity.agentId });
  } catch (cause) {
    if (signal?.aborted) throw endOf(signal);
    throw watch.reset === undefined ? cause : clientDisconnected(watch.reset);
  }
}

/** Tells when a client's connection is reset, once that is asked for. */
class ResetWatch implements Disposable {
  readonly #stream: Duplex;
  readonly #stop = new AbortController();
  readonly #gone = new AbortController();
  #watching = false;
  /** What its reads get. */
  reset?: NetError;

  constructor(stream: Duplex) {
    this.#stream = stream;
  }

  get signal(): AbortSignal {
    if (!this.#watching) void this.#watch(); // never rejects
    return this.#gone.signal;
  }

  async #watch(): Promise<void> {
    this.#watching = true;
    try {
      this.reset = await this.#stream.whenReset(this.#stop.signal);
      this.#gone.abort(this.reset);
    } catch {
      // Stopped, or the stream was closed: the code that uses the stream handles that.
    }
  }

  [Symbol.dispose](): void {
    this.#stop.abort();
  }
}

/** Copies to the end, where that has not begun. */
async function relay(
  options: HttpFrontendOptions,
  stream: Duplex,
  upstream: Upstream,
  copy: SpliceOptions,
  record: RequestRecord,
  tunnel: OpenTunnel | undefined,
): Promise<void> {
  record.status = 200;
  const leftover = "stream" in upstream ? upstream.leftover : undefined;
  if (leftover) {
    // apart from what follows: many clients lose what they read together with it
    await stream.write(CONNECTION_ESTABLISHED_HEAD);
    await sleep(HEAD_START_MS);
  }
  const { aToB, bToA, error: broken, errorSide } = "ended" in upstream ? await upstream.ended : await options.net.splice(
    stream,
    upstream.stream,
    leftover ? { ...copy, initialDataToA: leftover } : copy,
  );
  record.sent = aToB;
  record.received = bToA + (leftover?.length ?? 0);
  if (!broken) return;
  record.proxyError = "connection_terminated";
  if (broken.code === "timed-out" && errorSide === undefined) tunnel?.recordIdle();
  if (broken.code === "limit" && errorSide === undefined) tunnel?.recordCut();
  record.reason = broken.code === "cancelled" && copy.signal?.aborted
    ? endReason(copy.signal)
    : `${errorSide === undefined ? "" : errorSide === "a" ? "client: " : `${options.upstreamRole ?? "agent"}: `}${broken.message}`;
}

/** Forwards, and cuts it off when the client's credentials end, or its time. */
async function forwardUntil(
  { by, stream, request, identity, tunnel, clientSignal }: {
    readonly by: Intermediary;
    readonly stream: Duplex;
    readonly request: RequestHead;
    readonly identity: Identity;
    readonly tunnel?: OpenTunnel;
    readonly clientSignal: AbortSignal;
  },
  { stream: upstream, leftover }: UpstreamStream,
  target: AbsoluteTarget,
  record: RequestRecord,
): Promise<void> {
  if (leftover) throw new ProxyError(502, "http_response_incomplete", "The destination answers before it is asked");
  tunnel?.watchProgress(() => record.sent + record.received);
  const signal = tunnel ? tunnel.signal : identity.signal;
  const cut = () => {
    abort(upstream);
    if (record.status !== undefined) stream.reset(1); // without an answer begun, it is still to get one
  };
  signal?.addEventListener("abort", cut, { once: true });
  try {
    await forward(stream, upstream, request, target, record, by, clientSignal, tunnel && ((bytes) => tunnel.pace(bytes)));
  } catch (error) {
    throw signal?.aborted ? endOf(signal) : error;
  } finally {
    signal?.removeEventListener("abort", cut);
  }
}

function abort(stream: Duplex): void {
  stream.reset(1);
  stream.close();
}

function endOf({ reason }: AbortSignal): ProxyError {
  if (reason instanceof ProxyError) return reason;
  return new ProxyError(407, "connection_terminated", "The credentials are no longer accepted", CHALLENGE, { cause: reason });
}

/** What was not a head is answered where that makes sense, and is nobody's request. */
function refuseHead({ options, logLimit }: Context, stream: Duplex, error: NetError | undefined, record: RequestRecord): void {
  const { log, limits } = options;
  switch (error?.code) {
    case "head-too-large":
      throw new ProxyError(431, "http_request_error", "The request head is larger than this proxy takes");
    case "head-timeout":
      throw new ProxyError(408, "http_request_error", "The request head was not complete in time");
    case "limit":
      limits?.recordPendingHead(record.client);
      throw new LimitReached("pending-requests", "Too many requests are being received");
    case "limit-per-address":
      limits?.recordPendingHeadOfAddress(record.client);
      throw new LimitReached("pending-requests-per-address", "Too many requests of this address are being received");
    case "head-malformed":
    case "head-truncated":
      throw new HeadError(400, `The request head is malformed: ${error.message}`);
    case "not-tls":
      throw new HeadError(400, TLS_NEEDED);
    case "tls":
      options.onBadClient?.("handshake");
      logLimit.warn("client handshake failed", { id: record.id, remote: record.client, reason: error.message });
      return stream.close();
    default:
      log.debug("client disconnected before its request", { id: record.id, client: record.client, error: error?.message });
      stream.close();
  }
}

/**
 * What follows the head of a CONNECT is the tunnel's (RFC 9110 §9.3.6): somebody who takes it for a body reads something else in it.
 * @throws {HeadError} 400
 */
function checkNoContent({ fields }: RequestHead): void {
  const hasLength = values(fields, "content-length").some((length) => Number(length) !== 0);
  if (hasLength || values(fields, "transfer-encoding").length > 0) throw new HeadError(400, "A CONNECT has no content");
}

const CHALLENGE = [["Proxy-Authenticate", 'Basic realm="reverse-http"']] as const;

function readCredentials(request: RequestHead): ClientCredentials {
  const given = values(request.fields, "proxy-authorization");
  if (given.length !== 1) {
    const what = given.length === 0
      ? "Credentials are needed: the agent id as user name"
      : "There is more than one Proxy-Authorization field";
    throw new ProxyError(407, "http_request_denied", what, CHALLENGE);
  }
  try {
    return parseProxyAuthorization(given[0]!);
  } catch (cause) {
    throw toDenial(cause);
  }
}

/** The user name of Basic credentials, for the log alone. */
function claimedAgent({ fields }: RequestHead): string | undefined {
  const [given] = values(fields, "proxy-authorization");
  if (given === undefined) return undefined;
  try {
    const credentials = parseProxyAuthorization(given);
    const name = credentials.scheme === "basic" ? credentials.username : "";
    return name !== "" && isLoggable(name) ? printable(name) : undefined;
  } catch {
    return undefined; // that they cannot be read is found out, and said, later
  }
}

async function identify(
  { authenticator, log }: HttpFrontendOptions,
  credentials: ClientCredentials,
  permit: ClientPermit | undefined,
  record: RequestRecord,
): Promise<Identity> {
  try {
    return await identifyClient(authenticator, credentials, log);
  } catch (cause) {
    if (cause instanceof AuthenticationError) {
      permit?.recordFailure(credentials);
      const { agentId, tokenId } = cause.claims;
      record.agent = agentId && printable(agentId);
      record.token = tokenId && printable(tokenId);
    }
    throw toDenial(cause);
  }
}

/** The client is not told why: that goes to the log. */
function toDenial(cause: unknown): unknown {
  return cause instanceof AuthenticationError
    ? new ProxyError(407, "http_request_denied", "The credentials are not accepted", CHALLENGE, { cause })
    : cause;
}

function toRefusal(error: unknown): ProxyError {
  if (error instanceof ProxyError) return error;
  if (error instanceof HeadError) return new ProxyError(error.status, "http_request_error", error.message);
  if (error instanceof NetError) {
    return new ProxyError(502, "connection_terminated", "The connection to the destination was lost", [], { cause: error });
  }
  return new ProxyError(500, "proxy_internal_error", "Internal error", [], { cause: error });
}

/** What is left to do for a client that was refused. */
type Ending = "over" | "may linger";

async function refuse(
  { options: { name, log, onBadClient }, logLimit }: Context,
  stream: Duplex,
  record: RequestRecord,
  error: unknown,
  mayLinger: boolean,
): Promise<Ending> {
  const refusal = toRefusal(error);
  const answered = record.status !== undefined;
  record.status ??= refusal.status;
  record.proxyError = refusal.error;
  record.reason = refusal.cause instanceof Error ? `${refusal.message}: ${refusal.cause.message}` : refusal.message;
  record.isQuiet = refusal instanceof LimitReached;
  if (error instanceof HeadError && record.agent === undefined) {
    onBadClient?.("head");
    record.isQuiet = !logLimit.admits("malformed request");
  }
  if (refusal.status === 500) logInternalError(log, record.id, refusal.cause);
  try {
    if (answered) stream.reset(1); // an answer was begun: what it lacks must show
    else await stream.write(encodeErrorResponse(refusal, name, record));
    if (!answered && mayLinger) return "may linger";
  } catch (error) {
    log.debug("client disconnected before its response", { id: record.id, error: error instanceof Error ? error.message : String(error) });
  }
  stream.close();
  return "over";
}

function logInternalError(log: Logger, id: string | undefined, error: unknown): void {
  log.error("request failed", { id, error: error instanceof Error ? error.stack : String(error) });
}

/** Names of fields only: credentials, cookies and tokens are values, and so are paths and queries. */
function logRequest(log: Logger, request: RequestHead, { id, client, destination }: RequestRecord): void {
  const { method, version, fields } = request;
  log.debug("received", { id, client, method, version, destination });
  log.trace("head", { id, fields: fields.map(([name]) => name).join(", ") });
}

/** Short, and unique among all proxies and restarts for all practical purposes. */
function createIds(): () => string {
  const start = Array.from(crypto.getRandomValues(new Uint8Array(5)), (byte) => byte.toString(16).padStart(2, "0")).join("");
  let count = 0;
  return () => `${start}-${(++count).toString(36)}`;
}
