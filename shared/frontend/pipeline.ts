// The way of one request: parse its head, identify the client, check the destination, dial, respond, relay.
import { setTimeout as sleep } from "node:timers/promises";
import type { AllowList } from "../address/allow_list.ts";
import { type Authenticator, endReason, type Identity } from "../auth/authenticator.ts";
import { formatAuthority, HeadError, parseAuthority, parseRequestHead, type RequestHead, requestIdOf, values } from "../http/head.ts";
import { CONNECTION_ESTABLISHED_HEAD, ProxyError } from "../http/status.ts";
import type { ClientPermit } from "../limits/client_limits.ts";
import type { OpenTunnel } from "../limits/tunnels.ts";
import type { NetError } from "../net/errors.ts";
import type { Duplex, Incoming, Net, SpliceOptions } from "../net/types.ts";
import { proxyErrorOf } from "../tunnel/errors.ts";
import { logRequest, type RequestRecord } from "./access_log.ts";
import type { TrustedProxies, UnnamedClients } from "./client_address.ts";
import type { Dialer, DialRequest, Upstream, UpstreamStream } from "./dialer.ts";
import { type AbsoluteTarget, checkMaxForwards, clientDisconnected, forward, parseAbsoluteTarget } from "./http_forward.ts";
import { claimedAgent, identify, readCredentials } from "./identify.ts";
import { challenge, type RefusalContext, refuseHead } from "./refusal.ts";

/** What every request of a frontend shares. */
export interface PipelineContext extends RefusalContext {
  readonly net: Net;
  readonly authenticator: Authenticator;
  readonly allowList: AllowList;
  readonly dial: Dialer;
  /** What `dial` connects to, for the log. */
  readonly upstreamRole: string;
  readonly trusted?: TrustedProxies;
  readonly unnamedProxies: UnnamedClients;
  readonly now: () => number;
}

/** Milliseconds between the response to a CONNECT and the first bytes of a server that speaks first. */
const HEAD_START_MS = 1;

/**
 * Serves one request to its end.
 * @throws the error that the client gets a response for
 */
export async function serveRequest(
  context: PipelineContext,
  { stream, head, error }: Incoming,
  record: RequestRecord,
  permit: ClientPermit | undefined,
): Promise<void> {
  const { trusted, limits, log, now } = context;
  if (head === undefined) return refuseHead(context, stream, error, record);
  const request = parseRequestHead(head);
  record.method = request.method;
  record.id = requestIdOf(request.fields) ?? record.id;
  if (trusted?.trusts(stream.remote)) {
    record.peer = stream.remote;
    record.client = trusted.clientOf(stream.remote, request.fields);
  }
  const isUnnamed = trusted?.speaksForMany(record.client) ?? false;
  if (!isUnnamed) permit?.setRemote(record.client);
  const absolute = checkMethod(request);
  const destination = absolute?.destination ?? parseAuthority(request.target);
  record.destination = formatAuthority(destination);
  record.agentClaimed = claimedAgent(request);
  logRequest(log, request, record);
  if (isUnnamed) context.unnamedProxies.seen(record.client);
  permit?.checkRate();
  const credentials = readCredentials(request);
  const identity = await identify(context, credentials, permit, record);
  record.agent = identity.agentId;
  record.token = identity.tokenId;
  let tunnel: OpenTunnel | undefined;
  try {
    tunnel = permit?.open(identity);
    const signal = tunnel ? tunnel.signal : identity.signal;
    const copy = { initialDataToA: CONNECTION_ESTABLISHED_HEAD, idleTimeoutMs: limits?.idleMs, rates: tunnel?.rates, signal };
    using watch = new ResetWatch(stream);
    const clientSignal = () => watch.signal;
    const dialRequest: DialRequest = {
      id: record.id,
      agentId: identity.agentId,
      clientAddress: record.client,
      destination,
      credentials,
      fields: request.fields,
      client: absolute ? undefined : { stream, copy },
      clientSignal,
    };
    const upstream = await dialUpstream(context, dialRequest, identity, signal, watch);
    record.connectedAt = now();
    try {
      if (!absolute) watch[Symbol.dispose](); // the relay reports resets
      if ("stream" in upstream && signal?.aborted) throw endOf(signal);
      const { id, client, agent } = record;
      log.debug("tunnel opened", { id, client, agent, destination: record.destination });
      if (absolute && "stream" in upstream) {
        await forwardUntil(context, { stream, request, identity, tunnel, clientSignal: watch.signal }, upstream, absolute, record);
      } else await relay(context, stream, upstream, copy, record, tunnel);
    } catch (error) {
      if ("stream" in upstream) abort(upstream.stream);
      throw error;
    } finally {
      upstream.release?.();
    }
  } finally {
    tunnel?.close(); // a client that lingers after a refusal holds only its connection
    identity.release?.();
  }
}

/**
 * Checks that the proxy serves the method and target. Returns the target of plain HTTP, `undefined` for CONNECT.
 * @throws {ProxyError} 405
 * @throws {HeadError} 400
 */
function checkMethod(request: RequestHead): AbsoluteTarget | undefined {
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
  checkMaxForwards(request);
  return absolute;
}

/**
 * What follows the head of a CONNECT belongs to the tunnel (RFC 9110 §9.3.6). Another hop that takes it for content would see a different
 * request.
 * @throws {HeadError} 400
 */
function checkNoContent({ fields }: RequestHead): void {
  const hasLength = values(fields, "content-length").some((length) => Number(length) !== 0);
  if (hasLength || values(fields, "transfer-encoding").length > 0) throw new HeadError(400, "A CONNECT has no content");
}

/** @throws {ProxyError} when the destination is not allowed or cannot be reached */
async function dialUpstream(
  { allowList, dial }: PipelineContext,
  request: DialRequest,
  identity: Identity,
  signal: AbortSignal | undefined,
  watch: ResetWatch,
): Promise<Upstream> {
  const { destination } = request;
  if (!allowList.allows(destination)) {
    throw new ProxyError(403, "http_request_denied", `${formatAuthority(destination)} is not on the allow-list of this proxy`);
  }
  if (identity.allowList?.allows(destination) === false) {
    throw new ProxyError(403, "http_request_denied", `${formatAuthority(destination)} is not on the allow-list of the credentials`);
  }
  try {
    return await dial(request);
  } catch (cause) {
    if (signal?.aborted) throw endOf(signal);
    throw watch.reset === undefined ? cause : clientDisconnected(watch.reset);
  }
}

/** Watches for a reset of the client's connection, from the first use of `signal` on. */
class ResetWatch implements Disposable {
  readonly #stream: Duplex;
  readonly #stop = new AbortController();
  readonly #reset = new AbortController();
  #watching = false;
  /** The error that reads of the stream get. */
  reset?: NetError;

  constructor(stream: Duplex) {
    this.#stream = stream;
  }

  get signal(): AbortSignal {
    if (!this.#watching) void this.#watch(); // never rejects
    return this.#reset.signal;
  }

  async #watch(): Promise<void> {
    this.#watching = true;
    try {
      this.reset = await this.#stream.whenReset(this.#stop.signal);
      this.#reset.abort(this.reset);
    } catch {
      // Stopped, or the stream was closed: the code that uses the stream handles that.
    }
  }

  [Symbol.dispose](): void {
    this.#stop.abort();
  }
}

/** Relays both directions to their ends, where the dialer has not started that. */
async function relay(
  { net, upstreamRole }: PipelineContext,
  stream: Duplex,
  upstream: Upstream,
  copy: SpliceOptions,
  record: RequestRecord,
  tunnel: OpenTunnel | undefined,
): Promise<void> {
  record.status = 200;
  const leftover = "stream" in upstream ? upstream.leftover : undefined;
  if (leftover) {
    // many clients lose bytes that arrive in one read with the response
    await stream.write(CONNECTION_ESTABLISHED_HEAD);
    await sleep(HEAD_START_MS);
  }
  const { aToB, bToA, error: broken, errorSide } = "ended" in upstream
    ? await upstream.ended
    : await net.splice(stream, upstream.stream, leftover ? { ...copy, initialDataToA: leftover } : copy);
  record.sent = aToB;
  record.received = bToA + (leftover?.length ?? 0);
  if (!broken) return;
  record.proxyError = "connection_terminated";
  if (broken.code === "timed-out" && errorSide === undefined) tunnel?.recordIdle();
  if (broken.code === "limit" && errorSide === undefined) tunnel?.recordCut();
  const side = errorSide === undefined ? "" : errorSide === "a" ? "client: " : `${upstreamRole}: `;
  record.reason = broken.code === "cancelled" && copy.signal?.aborted ? endReason(copy.signal) : `${side}${broken.message}`;
}

/** Forwards one plain request, and aborts it when the client's credentials end or its time is up. */
async function forwardUntil(
  { name }: PipelineContext,
  { stream, request, identity, tunnel, clientSignal }: {
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
  if (leftover) throw new ProxyError(502, "http_response_incomplete", "The destination has responded before the request");
  tunnel?.watchProgress(() => record.sent + record.received);
  const signal = tunnel ? tunnel.signal : identity.signal;
  const cut = () => {
    abort(upstream);
    if (record.status !== undefined) stream.reset(1); // before the response has begun, the client still gets one
  };
  signal?.addEventListener("abort", cut, { once: true });
  try {
    await forward(stream, upstream, request, target, record, name, clientSignal, tunnel && ((bytes) => tunnel.pace(bytes)));
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

/** The error of a request that ends because `signal` was aborted: by a limit, or because the credentials have ended. */
function endOf({ reason }: AbortSignal): unknown {
  if (proxyErrorOf(reason) !== undefined) return reason;
  return challenge("The credentials are no longer accepted", { error: "connection_terminated", cause: reason });
}
