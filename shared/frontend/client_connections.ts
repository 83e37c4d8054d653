// The connections of a frontend's clients: serves the requests on each of them to its end, and reports every request.
import { LogLimit } from "../log/limit.ts";
import type { Incoming } from "../net/listener.ts";
import type { Rate } from "../net/relay.ts";
import type { Duplex } from "../net/stream.ts";
import type { Activity } from "../service/live/activity.ts";
import { endOfRequest } from "../service/live/trace.ts";
import type { LiveTunnel } from "../service/live/tunnel.ts";
import type { TunnelEnd } from "../service/metrics.ts";
import { auditEnd, createRequestIds, logAccess, type RequestRecord } from "./access_log.ts";
import { MissingClientWarnings } from "./client_address.ts";
import type { ClientHandler, ClientProtocol, ServeStreams } from "./client_protocol.ts";
import { linger } from "./http/linger.ts";
import { ClientSession, type PipelineContext, type PipelineRules } from "./pipeline.ts";
import { type ConnectionEnd, logInternalError, refuse, refuseAccepted } from "./refusal.ts";

export interface ClientConnectionsOptions
  extends Omit<PipelineContext, "upstreamRole" | "missingClientWarnings" | "logLimit" | "isDraining" | "now"> {
  /** What `dial` connects to, for the log. Default `agent`. */
  readonly upstreamRole?: string;
  /** Lists open tunnels for operators. Default: they are not listed. */
  readonly activity?: Activity;
  /** Called after each request that got a response. */
  readonly onEnd?: (end: TunnelEnd) => void;
  /** Milliseconds from any fixed point. Default `performance.now`. */
  readonly now?: () => number;
}

/** Rate at which bytes of refused clients are read and dropped, over all clients. */
const DROPPED_RATE = { bytesPerSecond: 64 << 20, burst: 8 << 20 };

/** Sessions that are checked again before other tasks have their turn. */
const CHUNK = 200;

/** What became of a request: it was served to its end, or refused. */
type RequestEnd = "served" | ConnectionEnd;

export class ClientConnections {
  readonly #options: ClientConnectionsOptions;
  readonly #serveStreams: ServeStreams;
  readonly #context: PipelineContext;
  readonly #logLimit: LogLimit;
  readonly #dropped: Rate;
  readonly #nextRequestId = createRequestIds();
  readonly #clients: Map<Duplex, LiveTunnel>;
  readonly #sessions = new Set<ClientSession>();
  /** Those that are waiting for another request. */
  readonly #idle = new Set<Duplex>();
  /** Those that were refused, and may still send. */
  readonly #lingering = new Set<Duplex>();
  /** Called when there are fewer connections, or more of them linger. */
  readonly #waiting = new Set<() => void>();
  #isDraining = false;
  #isStopping = false;

  /** @param serveStreams what protocols call for more streams of their clients */
  constructor(options: ClientConnectionsOptions, serveStreams: ServeStreams) {
    const { log, now = () => performance.now(), upstreamRole = "agent" } = options;
    this.#options = options;
    this.#serveStreams = serveStreams;
    this.#logLimit = new LogLimit({ log });
    this.#context = {
      ...options,
      upstreamRole,
      now,
      logLimit: this.#logLimit,
      missingClientWarnings: new MissingClientWarnings(this.#logLimit, now),
      isDraining: () => this.#isDraining,
    };
    this.#dropped = options.net.createRate(DROPPED_RATE);
    this.#clients = options.activity?.tunnels ?? new Map();
  }

  /** Number of connections, with a tunnel or without. */
  get size(): number {
    return this.#clients.size;
  }

  /** Number of these that are connected to their destination. */
  get tunnels(): number {
    return [...this.#clients.values()].filter(({ connectedAt }) => connectedAt !== undefined).length;
  }

  /** Whether connections end after the current request. */
  get isDraining(): boolean {
    return this.#isDraining;
  }

  /** Whether clients that are refused are closed at once. */
  get isStopping(): boolean {
    return this.#isStopping;
  }

  /** Changes rules; new tunnels follow them. */
  update(rules: Partial<PipelineRules>): void {
    Object.assign(this.#context, rules);
  }

  /** Serves the requests on a connection to its end. Never rejects. */
  async serve(first: Incoming, protocol: ClientProtocol): Promise<void> {
    const { stream } = first;
    const { serverName, peerCertificate } = first; // not the head, which is no longer needed once it is parsed
    const session = new ClientSession(this.#context, stream, this.#newRecord(stream), { serverName, peerCertificate });
    this.#sessions.add(session);
    const handler = protocol.open(session, this.#serveStreams);
    let end: RequestEnd = "served";
    try {
      for (let incoming: Incoming | undefined = first; incoming !== undefined && end === "served";) {
        end = await this.#serveRequest(session, handler, protocol, incoming, incoming === first);
        if (end !== "served" || handler.next === undefined) break;
        session.record = this.#newRecord(stream);
        incoming = await this.#waitForNext(stream, handler);
      }
    } catch (error) {
      logInternalError(this.#options.log, undefined, error); // a fault in one request must not end the others
    }
    if (end === "lingering") await this.#linger(stream);
    else if (handler.next !== undefined) stream.close();
    session.release();
    this.#sessions.delete(session);
    this.#clients.delete(stream);
    this.#notifyWaiters();
  }

  #newRecord({ remote: client }: Duplex): RequestRecord {
    const key = this.#nextRequestId();
    return { key, id: key, client, startedAt: this.#context.now(), sent: 0, received: 0 };
  }

  async #serveRequest(
    session: ClientSession,
    handler: ClientHandler,
    protocol: ClientProtocol,
    incoming: Incoming,
    isFirst: boolean,
  ): Promise<RequestEnd> {
    const { error: acceptError } = incoming;
    const { stream, record } = session;
    record.startedAt = this.#context.now();
    this.#clients.set(stream, record);
    try {
      if (isFirst) session.admit();
      if (acceptError) refuseAccepted(session, protocol, { ...incoming, error: acceptError });
      else {
        try {
          await handler.serve(incoming);
        } finally {
          session.end();
        }
      }
      return acceptError ? "closed" : "served";
    } catch (error) {
      // only an admitted client may occupy its connection longer, and without a request the stream cannot be read
      return await refuse(session, handler, error, acceptError === undefined && session.isAdmitted);
    } finally {
      this.#report(record);
    }
  }

  /** Tells of a request that has ended: to its trace, the logs, operators and metrics. */
  #report(record: RequestRecord): void {
    const { audit, now } = this.#context;
    const { log, activity, onEnd } = this.#options;
    const endedAt = now();
    if (record.cutBecause !== undefined) record.reason = `cut: ${record.cutBecause}`;
    if (record.closedBy !== undefined) record.reason = `closed by the operator ${record.closedBy}`;
    record.trace?.end(() => endOfRequest(record));
    if (audit) auditEnd(audit, record, endedAt - record.startedAt);
    if (record.status === undefined) return;
    activity?.ended(record);
    logAccess(log, record, endedAt);
    const { id, trace, status, proxyError: error, startedAt, connectedAt, sent, received, datagramsDropped } = record;
    const traceId = trace?.isRecorded ? trace.context.traceId : undefined;
    const setupMs = connectedAt === undefined ? undefined : connectedAt - startedAt;
    const datagrams = datagramsDropped === undefined ? undefined : { aToB: 0, bToA: 0, dropped: datagramsDropped };
    onEnd?.({ status, error, setupMs, totalMs: endedAt - startedAt, id, traceId, sent, received, datagrams });
  }

  async #waitForNext(stream: Duplex, handler: ClientHandler): Promise<Incoming | undefined> {
    if (this.#isDraining) return undefined;
    const at = this.#context.now();
    this.#clients.set(stream, { key: "", id: "", startedAt: at, endedAt: at, sent: 0, received: 0 }); // no tunnel
    this.#idle.add(stream);
    try {
      return await handler.next?.();
    } finally {
      this.#idle.delete(stream);
    }
  }

  /** Closing at once would reset a client that still sends, and it would lose the response. */
  async #linger(stream: Duplex): Promise<void> {
    if (this.#isStopping) return stream.close();
    this.#lingering.add(stream);
    this.#notifyWaiters();
    await linger(stream, (bytes) => this.#dropped.take(bytes));
    this.#lingering.delete(stream);
  }

  /**
   * Checks all open tunnels against the rules in force, and cuts those no longer permitted, unless `keeps` is set. Resolves with the
   * number of tunnels cut. `authenticates`: whether credentials are verified again.
   */
  async recheck({ authenticates, keeps }: { readonly authenticates: boolean; readonly keeps: boolean }): Promise<number> {
    let [checked, cut] = [0, 0];
    for (const session of [...this.#sessions]) {
      const reason = await session.recheck(authenticates);
      if (reason !== undefined && !keeps) {
        cut++;
        session.cut(reason);
      }
      if (++checked % CHUNK === 0) await new Promise((resolve) => setTimeout(resolve));
    }
    return cut;
  }

  /** Closes connections that wait for another request, and from now on others after their current request. */
  startDraining(): void {
    this.#isDraining = true;
    for (const stream of this.#idle) stream.close();
  }

  /** Closes the connections of refused clients, which may lose the response. */
  stopLingering(): void {
    this.#isStopping = true;
    for (const stream of this.#lingering) stream.close();
  }

  /** Resets all connections, or those whose request began more than `olderThanMs` ago. */
  reset(olderThanMs = -Infinity): void {
    const now = this.#context.now();
    for (const [client, { startedAt }] of this.#clients) if (now - startedAt > olderThanMs) client.reset(1);
  }

  /** Resolves when the last connection has ended. */
  whenEmpty(): Promise<void> {
    return this.#whenNone(() => this.#clients.size).reached;
  }

  /** `reached` resolves when all connections have ended but those of refused clients, unless it is disposed of before. */
  whenUnused(): Disposable & { readonly reached: Promise<void> } {
    return this.#whenNone(() => this.#clients.size - this.#lingering.size);
  }

  /** `reached` resolves when `count` is 0, unless it is disposed of before. */
  #whenNone(count: () => number): Disposable & { readonly reached: Promise<void> } {
    const { promise: reached, resolve } = Promise.withResolvers<void>();
    const stop = () => void this.#waiting.delete(check);
    const check = () => {
      if (count() > 0) return;
      stop();
      resolve();
    };
    this.#waiting.add(check);
    check();
    return { reached, [Symbol.dispose]: stop };
  }

  #notifyWaiters(): void {
    for (const check of this.#waiting) check();
  }

  /** Frees what connections share. It has no connections, and gets no more. */
  close(): void {
    this.#dropped.close();
    this.#logLimit.close();
  }
}
