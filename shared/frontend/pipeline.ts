// The way of one client through a frontend: admit, identify, allow, dial, relay. Knows no client protocol: that calls the steps in order.
import type { Authority, Network } from "../address/authority.ts";
import { AuthenticationError, type ClientCredentials, endReason, type Identity } from "../auth/authenticator.ts";
import { hostOf } from "../limits/addresses.ts";
import type { ClientLimits, ClientPermit } from "../limits/client_limits.ts";
import type { OpenTunnel } from "../limits/tunnels.ts";
import type { LogLimit } from "../log/limit.ts";
import type { Net } from "../net/net.ts";
import type { SpliceResult } from "../net/relay.ts";
import type { Duplex } from "../net/stream.ts";
import type { Grant } from "../policy/policy.ts";
import type { AuditLog } from "../service/audit.ts";
import type { Activity } from "../service/live/activity.ts";
import type { TraceContext, Tracer } from "../tracing/span.ts";
import { clientDisconnected, CredentialsError, TunnelError } from "../tunnel/errors.ts";
import type { Dialer, TunnelRequest, Upstream, UpstreamStream } from "../tunnel/request.ts";
import { auditedStart, type RequestRecord } from "./access_log.ts";
import { authenticateClient, type AuthenticationRules, type TlsPeer } from "./authentication.ts";
import { askProvider, type AuthorizationRules, authorize, checkAllowLists, chooseAgent, identityForForward } from "./authorization.ts";
import type { MissingClientWarnings, TrustedProxies } from "./client_address.ts";
import { ResetWatch } from "./reset_watch.ts";

/** Dependencies that all clients of a frontend share. */
export interface PipelineContext extends AuthenticationRules, AuthorizationRules {
  readonly net: Net;
  readonly dial: Dialer;
  /** Resolves when an agent may be looked for that is about to connect; `undefined`: at once. Default: at once. */
  readonly whenExpected?: (agentId: string) => Promise<void> | undefined;
  /** What `dial` connects to, for the log. */
  readonly upstreamRole: string;
  readonly trusted?: TrustedProxies;
  readonly missingClientWarnings: MissingClientWarnings;
  readonly limits?: ClientLimits;
  readonly audit?: AuditLog;
  /** Default: there are no traces. */
  readonly tracer?: Tracer;
  /** Registers open tunnels. */
  readonly activity?: Pick<Activity, "opened">;
  /** Limits log lines that unauthenticated clients can cause. */
  readonly logLimit: LogLimit;
  /** Whether clients should go elsewhere: connections that may bring several requests end after the current one. */
  readonly isDraining: () => boolean;
  /** A client's connection brought no request. */
  readonly onBadClient?: (what: "handshake" | "head") => void;
  readonly now: () => number;
}

/** The rules that can change while clients are served. */
export type PipelineRules = Pick<PipelineContext, "certificates" | "allowList" | "policy" | "agentSuffix" | "trusted" | "audit">;

/** A client's request, and the steps of its protocol once the destination is connected. */
export interface ClientRequest {
  readonly identity: Identity;
  /** Missing for an anonymous client. */
  readonly credentials: ClientCredentials | undefined;
  /** As the client has written it: it may name an agent. */
  readonly destination: Authority;
  /** Default `tcp`. */
  readonly network?: Network;
  /** The operator has configured it, and vouches for the client: the policy does not apply. Default `false`. */
  readonly isOperators?: boolean;
  /** See {@link TunnelRequest.via}. Default: none. */
  readonly via?: readonly string[];
  /** Returns why the operator's forward no longer permits the tunnel, or `undefined`. Default: the request is not for a forward. */
  readonly verify?: () => string | undefined;
  /** The protocol's response, written to the client before the destination's data. Default: none. */
  readonly established?: Uint8Array;
  /** Its status, for the log. Default 200. */
  readonly establishedStatus?: number;
  /** The exchange is a request of HTTP/2 to the destination, see `openHttp2Over` of the network. Default `false`. */
  readonly isHttp2?: boolean;
  /** Serves the client over the connection to the destination. Default: both directions are relayed. */
  readonly exchange?: (upstream: UpstreamStream, context: ExchangeContext) => Promise<void>;
}

/** What limits an exchange. It records bytes and status in the session's record. */
export interface ExchangeContext {
  /** Aborted with the error when the client resets its connection. */
  readonly clientSignal: AbortSignal;
  /** Waits until `bytes` may be forwarded. */
  readonly pace: (bytes: number) => Promise<void>;
}

/** An association that is counted until it is disposed of. */
export interface CountedAssociation extends Disposable {
  /** Aborted with an `Error` when the association must end; `undefined` if it may last forever. */
  readonly signal: AbortSignal | undefined;
  /** Ends the association when it has been idle for the idle timeout of tunnels. */
  endWhenIdle(isIdle: () => boolean): void;
}

/** How a client is identified. */
interface IdentifyOptions {
  /** The credentials are the operator's. Default `false`. */
  readonly isOperators?: boolean;
  /** Its certificate does not count. Default `false`. */
  readonly ignoresCertificate?: boolean;
}

interface IdentifiedBy extends Required<IdentifyOptions> {
  readonly credentials: ClientCredentials | undefined;
}

/** A permitted request, to be checked again if the rules change. */
interface Granted {
  readonly request: Pick<ClientRequest, "identity" | "credentials" | "isOperators" | "network" | "verify"> & Partial<ClientRequest>;
  /** The policy's permission, until the tunnel ends. */
  grant?: Grant;
}

/** One client's connection. Its steps are called in the order in which they are here, from {@link setClient} on for each request. */
export class ClientSession {
  #permit?: ClientPermit;
  #identity?: Identity;
  #identifiedBy?: IdentifiedBy;
  /** While a tunnel is being opened or open. */
  #granted?: Granted;
  #certificate?: Uint8Array;

  /** @param record of the current request */
  constructor(
    readonly context: PipelineContext,
    readonly stream: Duplex,
    public record: RequestRecord,
    readonly tls: TlsPeer = {},
  ) {
    this.#certificate = tls.peerCertificate;
  }

  /** The client's certificate, DER, which this TLS handshake or a trusted proxy has verified; `undefined` if it has presented none. */
  get certificate(): Uint8Array | undefined {
    return this.#certificate;
  }

  /**
   * Counts the connection, until {@link release}.
   * @throws {LimitReached}
   */
  admit(): void {
    const { limits, trusted } = this.context;
    const { remote } = this.stream;
    this.#permit = limits?.acquire(trusted?.isIntermediary(remote) ? undefined : remote);
  }

  /** Whether the client may occupy its connection after a refusal. */
  get isAdmitted(): boolean {
    return this.#permit !== undefined || this.context.limits === undefined;
  }

  /**
   * Starts the span of the request.
   * @param parent the context that the client has sent. Default: none
   */
  startTrace(parent?: TraceContext): void {
    const { tracer } = this.context;
    if (tracer === undefined) return;
    const { record } = this;
    record.trace = tracer.start(parent, record.startedAt);
    record.traceId = record.trace.context.traceId;
  }

  /**
   * Sets the client's address and certificate as the trusted proxy in front reports them, whose own they are not.
   * @param certificate DER; `undefined` if it reports none
   * @throws {LimitReached}
   */
  setClient(address: string, certificate: Uint8Array | undefined): void {
    this.#certificate = certificate;
    this.record.peer = this.stream.remote;
    this.record.client = address;
    if (!this.context.trusted?.isIntermediary(address)) this.#permit?.setRemote(address);
  }

  /**
   * Checks the request rate and the lockout of the client's address, before its credentials are looked at.
   * @throws {LimitReached}
   */
  checkRate(): void {
    const { trusted, missingClientWarnings } = this.context;
    const { client } = this.record;
    if (trusted?.isIntermediary(client)) missingClientWarnings.warn(client);
    this.#permit?.checkRate();
  }

  /**
   * Verifies the credentials, or the client's certificate; `undefined` for a client without credentials. A failure counts for the client's
   * address, unless they are the operator's.
   * @throws {CredentialsError}
   */
  identify(
    credentials: ClientCredentials | undefined,
    { isOperators = false, ignoresCertificate = false }: IdentifyOptions = {},
  ): Promise<Identity> {
    this.#identifiedBy = { credentials, isOperators, ignoresCertificate };
    return this.#identify(this.#identifiedBy, { isRepeated: false });
  }

  async #identify(
    { credentials, isOperators, ignoresCertificate }: IdentifiedBy,
    { isRepeated }: { readonly isRepeated: boolean },
  ): Promise<Identity> {
    const { record } = this;
    const certificate = isOperators || ignoresCertificate ? undefined : this.#certificate;
    const peer = { address: hostOf(record.client), requestId: record.id, certificate };
    this.#identity = await authenticateClient(this.context, credentials, peer, record, (denied) => {
      if (!isOperators && !isRepeated) this.#permit?.recordFailure(denied);
    });
    this.adopt(this.#identity);
    return this.#identity;
  }

  /** Records whose request it is, also where another session of the same client has verified that. */
  adopt({ agentId, tokenId, expiresAt, subject, name, groups }: Identity): void {
    const { record } = this;
    record.agent = agentId || undefined;
    record.token = tokenId;
    record.tokenExpiresAt = expiresAt;
    record.subject = subject;
    record.name = name;
    record.groups = groups;
  }

  /**
   * Opens the tunnel, and serves or relays it to its end.
   * @throws {TunnelError | NetError}
   */
  async connect(request: ClientRequest): Promise<void> {
    const { net, dial, limits, log, now, activity } = this.context;
    const { stream, record } = this;
    const { network = "tcp", via = [], established, establishedStatus = 200, exchange, isHttp2 = false } = request;
    const chosen = chooseAgent(request, this.context, record);
    const { credentials, destination } = chosen;
    record.network = network === "udp" ? network : undefined;
    const expected = this.context.whenExpected?.(chosen.identity.agentId);
    if (expected !== undefined) await expected;
    const granted: Granted = { request, grant: request.isOperators ? undefined : authorize(this.context, chosen, network) };
    this.#granted = granted;
    const watch = new ResetWatch(stream);
    let tunnel: OpenTunnel | undefined;
    try {
      const { grant } = granted;
      const identity = grant ? { ...chosen.identity, signal: anyOf(chosen.identity.signal, grant.signal) } : chosen.identity;
      if (identity.authorize !== undefined) await askProvider(identity.authorize, chosen, network);
      tunnel = this.#permit?.open(identity, network, grant?.quotas);
      const signal = tunnel ? tunnel.signal : identity.signal;
      const splice = { initialDataToA: established, idleTimeoutMs: limits?.idleMs, rates: tunnel?.rates, signal };
      const tunnelRequest: TunnelRequest = {
        network,
        id: record.id,
        agentId: identity.agentId,
        destination,
        identity,
        credentials,
        client: record.client,
        via,
        trace: record.trace,
        relay: exchange ? undefined : { stream, splice },
        clientSignal: () => watch.signal,
      };
      checkAllowLists(this.context, tunnelRequest, network);
      const { audit } = this.context;
      if (audit) {
        record.isAudited = true;
        await audit.start(auditedStart(record));
      }
      let dialled: Upstream;
      try {
        dialled = await dial(tunnelRequest);
      } catch (cause) {
        if (signal?.aborted) throw endOf(signal);
        throw watch.reset === undefined ? cause : clientDisconnected(watch.reset);
      }
      const upstream = isHttp2 && "stream" in dialled ? { ...dialled, stream: await net.openHttp2Over(dialled.stream) } : dialled;
      record.connectedAt = now();
      record.via = upstream.via;
      activity?.opened(record);
      try {
        if (!exchange) watch[Symbol.dispose](); // the relay reports resets
        if ("stream" in upstream && signal?.aborted) throw endOf(signal);
        const { id, client, agent } = record;
        log.debug("tunnel opened", { id, client, agent, network: record.network, destination: record.destination });
        if (exchange && "stream" in upstream) {
          await this.#exchange(exchange, upstream, watch.signal, tunnel, signal);
        } else {
          record.status = establishedStatus;
          const result = "ended" in upstream ? await upstream.ended : await net.splice(stream, upstream.stream, splice);
          this.#relayed(result, signal, tunnel);
        }
      } catch (error) {
        if ("stream" in upstream) abort(upstream.stream);
        throw error;
      } finally {
        upstream.release?.();
      }
    } finally {
      watch[Symbol.dispose]();
      tunnel?.close(); // a client that lingers after a refusal holds only its connection
      this.#letGo(granted);
    }
  }

  #letGo(granted: Granted): void {
    granted.grant?.[Symbol.dispose]();
    if (this.#granted === granted) this.#granted = undefined;
  }

  /** Registers an association for {@link recheck}, until the result is disposed. */
  holdAssociation(request: Pick<ClientRequest, "identity" | "credentials">): Disposable {
    const granted: Granted = { request };
    this.#granted = granted;
    return { [Symbol.dispose]: () => this.#letGo(granted) };
  }

  /** Who the client is; `undefined` if another session has verified that. */
  get identity(): Identity | undefined {
    return this.#identity;
  }

  /**
   * Checks the request again, against the rules that are in force now.
   * @param authenticates whether the credentials are verified again, because others verify them now
   * @returns why it is no longer permitted; `undefined` if it is, if nothing was granted, or if the credentials cannot be checked now
   */
  async recheck(authenticates: boolean): Promise<string | undefined> {
    const granted = this.#granted;
    if (granted === undefined) return undefined;
    const { request } = granted;
    const { destination, network = "tcp", isOperators = false, verify } = request;
    try {
      const removed = verify?.();
      if (removed !== undefined) return removed;
      const verified = authenticates ? await this.#reauthenticate() : undefined;
      const identity = verified === undefined ? request.identity : verify ? identityForForward(verified, request.identity) : verified;
      if (destination === undefined || this.#granted !== granted) return undefined; // an association, or it has ended
      const chosen = chooseAgent({ ...request, identity, destination }, this.context, this.record);
      checkAllowLists(this.context, chosen, network);
      if (isOperators) return undefined;
      const grant = authorize(this.context, chosen, network);
      granted.grant?.[Symbol.dispose]();
      granted.grant = grant;
      this.#endWith(grant?.signal);
    } catch (error) {
      if (!(error instanceof TunnelError)) throw error;
      const { cause } = error;
      if (cause instanceof AuthenticationError && cause.kind === "unavailable") return undefined;
      return cause instanceof AuthenticationError ? cause.message : error.message;
    }
    return undefined;
  }

  /**
   * Replaces the identity by that of the present authenticator; `undefined` if none was verified here.
   * @throws {CredentialsError | TunnelError}
   */
  async #reauthenticate(): Promise<Identity | undefined> {
    const [before, granted] = [this.#identity, this.#granted];
    if (this.#identifiedBy === undefined) return undefined;
    let identity;
    try {
      identity = await this.#identify(this.#identifiedBy, { isRepeated: true });
    } catch (error) {
      this.#identity = before;
      throw error;
    }
    if (this.#granted !== granted) {
      identity.release?.();
      this.#identity = undefined;
    } else {
      before?.release?.();
      this.#endWith(identity.signal);
    }
    return identity;
  }

  /** Ends the tunnel when `signal` is aborted, which its relay does not know. */
  #endWith(signal: AbortSignal | undefined): void {
    const granted = this.#granted;
    const end = () => {
      if (this.#granted === granted) this.cut(endReason(signal!));
    };
    if (signal?.aborted) end();
    signal?.addEventListener("abort", end, { once: true });
  }

  /** Ends the tunnel or request, because it is no longer permitted. */
  cut(reason: string): void {
    this.record.cutBecause ??= reason;
    this.stream.reset(1);
  }

  /** Records how a relay has ended. */
  #relayed(
    { aToB, bToA, error: broken, errorSide, datagramsDropped }: SpliceResult,
    signal: AbortSignal | undefined,
    tunnel: OpenTunnel | undefined,
  ): void {
    const { record } = this;
    record.sent = aToB;
    record.received = bToA;
    record.datagramsDropped = datagramsDropped;
    if (!broken) return;
    record.proxyError = "connection_terminated";
    if (broken.code === "timed-out" && errorSide === undefined) tunnel?.recordIdle();
    if (broken.code === "limit" && errorSide === undefined) tunnel?.recordCut();
    const side = errorSide === undefined ? "" : errorSide === "a" ? "client: " : `${this.context.upstreamRole}: `;
    if (broken.code === "cancelled" && signal?.aborted) record.reason = endReason(signal);
    else if (broken.code === "cancelled" && this.context.isDraining()) record.reason = "The service has stopped before the tunnel ended";
    else record.reason = `${side}${broken.message}`;
  }

  /**
   * Counts an association of datagrams, whose socket is one more besides the connection, as a connection and as a UDP flow of the client.
   * @throws {LimitReached}
   */
  countAssociation(identity: Identity): CountedAssociation {
    const { limits, trusted } = this.context;
    const { client } = this.record;
    const permit = limits?.acquire(trusted?.isIntermediary(client) ? undefined : client);
    let tunnel: OpenTunnel | undefined;
    try {
      tunnel = permit?.open(identity, "udp");
    } catch (error) {
      permit?.release();
      throw error;
    }
    return {
      get signal() {
        return tunnel ? tunnel.signal : identity.signal;
      },
      endWhenIdle(isIdle) {
        let progress = 0;
        tunnel?.watchProgress(() => isIdle() ? progress : ++progress);
      },
      [Symbol.dispose]() {
        tunnel?.close();
        permit?.release();
      },
    };
  }

  /** Runs an exchange, and aborts it when the client's credentials end or its time is up. */
  async #exchange(
    exchange: NonNullable<ClientRequest["exchange"]>,
    upstream: UpstreamStream,
    clientSignal: AbortSignal,
    tunnel: OpenTunnel | undefined,
    identitySignal: AbortSignal | undefined,
  ): Promise<void> {
    const { record } = this;
    tunnel?.watchProgress(() => record.sent + record.received); // from here on the tunnel has a signal
    const signal = tunnel ? tunnel.signal : identitySignal;
    const cut = () => {
      abort(upstream.stream);
      if (record.status !== undefined) this.stream.reset(1); // before the response has begun, the client still gets one
    };
    signal?.addEventListener("abort", cut, { once: true });
    try {
      await exchange(upstream, { clientSignal, pace: async (bytes) => await tunnel?.pace(bytes) });
    } catch (error) {
      throw signal?.aborted ? endOf(signal) : error;
    } finally {
      signal?.removeEventListener("abort", cut);
    }
  }

  /** The request has ended: its credentials are no longer used. */
  end(): void {
    this.#identity?.release?.();
    this.#identity = undefined;
    this.#identifiedBy = undefined;
    this.#certificate = this.tls.peerCertificate;
  }

  /** The connection has ended. */
  release(): void {
    this.#permit?.release();
  }
}

function anyOf(first: AbortSignal | undefined, second: AbortSignal): AbortSignal {
  return first === undefined ? second : AbortSignal.any([first, second]);
}

function abort(stream: Duplex): void {
  stream.reset(1);
  stream.close();
}

/** The error of a request that ends because `signal` was aborted: by a limit, or because the credentials have ended. */
function endOf({ reason }: AbortSignal): TunnelError {
  if (reason instanceof TunnelError) return reason;
  return new CredentialsError("The credentials are no longer accepted", { type: "connection_terminated", cause: reason });
}
