// The server for clients: accepts connections on its listeners, has each served by the listener's protocol, and drains.
import { withTimeout } from "../async/with_timeout.ts";
import { LogLimit } from "../log/limit.ts";
import type { Activity } from "../service/live/activity.ts";
import type { TunnelEnd } from "../service/metrics.ts";
import type { ClientListener, Incoming } from "../net/listener.ts";
import type { Duplex } from "../net/stream.ts";
import type { UdpListener } from "../net/udp.ts";
import { endOfRequest } from "../service/live/trace.ts";
import type { LiveTunnel } from "../service/live/tunnel.ts";
import { auditEnd, createRequestIds, logAccess, type RequestRecord } from "./access_log.ts";
import { MissingClientWarnings } from "./client_address.ts";
import type { ClientHandler, ClientProtocol, ServeStreams } from "./client_protocol.ts";
import { linger } from "./linger.ts";
import { ClientSession, type PipelineContext, type PipelineRules } from "./pipeline.ts";
import { isSocks5 } from "./socks5.ts";
import { type ConnectionEnd, logInternalError, refuse, refuseAccepted } from "./refusal.ts";

/** A listener, and what its clients speak. */
export interface ProtocolListener {
  readonly listener: ClientListener | UdpListener;
  readonly protocol: ClientProtocol;
  /** What clients speak whose first byte is that of SOCKS, where the preamble is `http-or-socks5`. */
  readonly socks?: ClientProtocol;
}

export interface FrontendOptions
  extends Omit<PipelineContext, "upstreamRole" | "missingClientWarnings" | "logLimit" | "isDraining" | "now"> {
  readonly listeners: readonly ProtocolListener[];
  /** What `dial` connects to, for the log. Default `agent`. */
  readonly upstreamRole?: string;
  /** Shows operators what is served. Default: operators see nothing. */
  readonly activity?: Activity;
  /** Called after each request that got a response. */
  readonly onEnd?: (end: TunnelEnd) => void;
  /** Milliseconds from any fixed point. Default `performance.now`. */
  readonly now?: () => number;
}

/** Serves clients until it is closed. */
export interface Frontend {
  /** Serves the clients of another listener, until that is closed. */
  add(listener: ProtocolListener): void;
  /** Changes rules; new tunnels follow them. Rules that are `undefined` are removed, and others stay. */
  update(rules: Partial<PipelineRules>): void;
  /**
   * Checks all open tunnels against the rules in force, and cuts those that are no longer permitted, unless `keeps` is set. Resolves with the
   * number of those that were cut. `authenticates`: whether credentials are verified again.
   */
  recheck(options: { readonly authenticates: boolean; readonly keeps: boolean }): Promise<number>;
  /** Number of clients being served, with a tunnel or without. */
  readonly open: number;
  /** Number of these that are connected to their destination. */
  readonly tunnels: number;
  /** Datagrams that its UDP listeners, and those of its clients, have dropped so far. */
  readonly datagramsDropped: number;
  /**
   * Waits until the last client has gone, and resets the rest after `timeoutMs`. It accepts clients while it serves any, but no longer than
   * `timeoutMs`, or until `until` resolves.
   */
  drain(timeoutMs: number, until?: Promise<void>): Promise<void>;
  /**
   * Serves the clients that it has to their end, `timeoutMs` at most, while another process accepts new ones. {@link drain} and {@link close}
   * end it earlier.
   */
  outlive(timeoutMs: number): Promise<void>;
  /** Stops accepting and resets all clients. */
  close(): void;
  /** Resolves when the last client has gone after {@link close}. */
  readonly done: Promise<void>;
}

/** Rate at which bytes of refused clients are read and dropped, over all clients. */
const DROPPED_RATE = { bytesPerSecond: 64 << 20, burst: 8 << 20 };

/** Sessions that are checked again before other tasks have their turn. */
const CHUNK = 200;

/** What became of a request: it was served to its end, or refused. */
type RequestEnd = "served" | ConnectionEnd;

/** Time in milliseconds for the requests of clients that have connected before another process accepts; as the network gives them. */
const LAST_REQUESTS_MS = 10_000;
/** Time in milliseconds that clients get that were accepted just before a drain ends. */
const LAST_CLIENTS_GRACE_MS = 500;

export function startFrontend(options: FrontendOptions): Frontend {
  const { log } = options;
  const listeners = new Set<ProtocolListener>();
  const accepting = new Set<Promise<void>>();
  const now = options.now ?? (() => performance.now());
  const nextRequestId = createRequestIds();
  const clients: Map<Duplex, LiveTunnel> = options.activity?.tunnels ?? new Map();
  const lingering = new Set<Duplex>();
  const sessions = new Set<ClientSession>();
  /** Those that are waiting for another request. */
  const idle = new Set<Duplex>();
  /** The UDP listeners, and what those that are closed have dropped. */
  const datagrams = { listeners: new Set<UdpListener>(), droppedBefore: 0 };
  const logLimit = new LogLimit({ log });
  const missingClientWarnings = new MissingClientWarnings(logLimit, now);
  let [isDraining, isStopping] = [false, false];
  const context: PipelineContext = {
    ...options,
    upstreamRole: options.upstreamRole ?? "agent",
    now,
    logLimit,
    missingClientWarnings,
    isDraining: () => isDraining,
  };
  const dropped = options.net.createRate(DROPPED_RATE);
  const waiting = new Set<() => void>();

  /** `reached` resolves when `count` is 0, unless it is disposed of before. */
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

  /** Closing at once would reset a client that still sends, and it would lose the response. */
  const lingerAfterRefusal = async (stream: Duplex): Promise<void> => {
    if (isStopping) return stream.close();
    lingering.add(stream);
    notifyWaiters();
    await linger(stream, (bytes) => dropped.take(bytes));
    lingering.delete(stream);
  };

  /** Serves the requests on a connection to its end. */
  const serve = async (first: Incoming, protocol: ClientProtocol): Promise<void> => {
    const { stream } = first;
    const newRecord = (): RequestRecord => {
      const key = nextRequestId();
      return { key, id: key, client: stream.remote, startedAt: now(), sent: 0, received: 0 };
    };
    const session = new ClientSession(context, stream, newRecord(), first);
    sessions.add(session);
    const handler = protocol.open(session, serveStreams);
    let end: RequestEnd = "served";
    try {
      for (let incoming: Incoming | undefined = first; incoming !== undefined && end === "served";) {
        end = await serveRequest(session, handler, protocol, incoming, incoming === first);
        if (end !== "served" || handler.next === undefined) break;
        session.record = newRecord();
        incoming = await waitForNext(stream, handler);
      }
    } catch (error) {
      logInternalError(log, undefined, error); // a fault in one request must not end the others
    }
    if (end === "lingering") await lingerAfterRefusal(stream);
    else if (handler.next !== undefined) stream.close();
    session.release();
    sessions.delete(session);
    clients.delete(stream);
    notifyWaiters();
  };

  const waitForNext = async (stream: Duplex, handler: ClientHandler): Promise<Incoming | undefined> => {
    if (isDraining) return undefined;
    const at = now();
    clients.set(stream, { key: "", id: "", startedAt: at, endedAt: at, sent: 0, received: 0 }); // no tunnel
    idle.add(stream);
    try {
      return await handler.next?.();
    } finally {
      idle.delete(stream);
    }
  };

  const serveRequest = async (
    session: ClientSession,
    handler: ClientHandler,
    protocol: ClientProtocol,
    incoming: Incoming,
    isFirst: boolean,
  ): Promise<RequestEnd> => {
    const { error: acceptError } = incoming;
    const { stream, record } = session;
    record.startedAt = now();
    clients.set(stream, record);
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
      const endedAt = now();
      if (record.cutBecause !== undefined) record.reason = `cut: ${record.cutBecause}`;
      if (record.closedBy !== undefined) record.reason = `closed by the operator ${record.closedBy}`;
      record.trace?.end(() => endOfRequest(record));
      if (context.audit) auditEnd(context.audit, record, endedAt - record.startedAt);
      if (record.status !== undefined) {
        options.activity?.ended(record);
        logAccess(log, record, endedAt);
        const { id, trace, status, proxyError: error, startedAt, connectedAt, sent, received, datagramsDropped } = record;
        const traceId = trace?.isRecorded ? trace.context.traceId : undefined;
        const setupMs = connectedAt === undefined ? undefined : connectedAt - startedAt;
        const datagrams = datagramsDropped === undefined ? undefined : { aToB: 0, bToA: 0, dropped: datagramsDropped };
        options.onEnd?.({ status, error, setupMs, totalMs: endedAt - startedAt, id, traceId, sent, received, datagrams });
      }
    }
  };

  const watchDatagrams = (listener: UdpListener): Disposable => {
    datagrams.listeners.add(listener);
    return {
      [Symbol.dispose]() {
        datagrams.listeners.delete(listener);
        datagrams.droppedBefore += listener.dropped;
      },
    };
  };

  const serveStreams: ServeStreams = async (listener, protocol) => {
    const serving = new Set<Promise<void>>();
    using _watched = watchDatagrams(listener);
    for (let batch; (batch = await listener.accept()) !== null;) {
      for (const incoming of batch) {
        const served: Promise<void> = serve(incoming, protocol).then(() => void serving.delete(served));
        serving.add(served);
      }
    }
    await Promise.all(serving);
  };

  const accept = async ({ listener, protocol, socks }: ProtocolListener): Promise<void> => {
    using _watched = "dropped" in listener ? watchDatagrams(listener) : undefined;
    for (let batch; (batch = await listener.accept()) !== null;) {
      for (const incoming of batch) {
        void serve(incoming, socks !== undefined && isSocks5(incoming) ? socks : protocol); // never rejects
      }
    }
  };

  const add = (listener: ProtocolListener): void => {
    if (isStopping) return listener.listener.close();
    listeners.add(listener);
    const running = accept(listener).finally(() => {
      if (!isDraining) {
        listeners.delete(listener); // it was closed, or accepts no more; otherwise the end of the drain does that
        listener.listener.close();
      }
      accepting.delete(running);
    });
    accepting.add(running);
  };

  const run = async (): Promise<void> => {
    for (const listener of options.listeners) add(listener);
    while (accepting.size > 0) await Promise.all(accepting);
    await whenNone(() => clients.size).reached;
    dropped.close();
    logLimit.close();
  };

  const done = run();
  const stopLingering = () => {
    isStopping = true;
    for (const stream of lingering) stream.close();
  };
  const startDraining = () => {
    isDraining = true;
    for (const stream of idle) stream.close();
  };
  const close = () => {
    startDraining();
    stopLingering();
    for (const { listener } of listeners) listener.close();
    for (const client of clients.keys()) client.reset(1);
  };
  const drain = async (timeoutMs: number, until?: Promise<void>): Promise<void> => {
    const startedAt = performance.now();
    startDraining();
    {
      using unused = whenNone(() => clients.size - lingering.size);
      await withTimeout(timeoutMs, until ? Promise.race([until, unused.reached]) : unused.reached);
    }
    for (const { listener } of listeners) listener.stopAccepting();
    stopLingering();
    let timer = setTimeout(() => {
      if (timeoutMs === 0) return close();
      const end = now();
      for (const [client, { startedAt }] of clients) if (end - startedAt > LAST_CLIENTS_GRACE_MS) client.reset(1);
      timer = setTimeout(close, LAST_CLIENTS_GRACE_MS);
    }, Math.max(0, timeoutMs - (performance.now() - startedAt)));
    await done;
    clearTimeout(timer);
    for (const { listener } of listeners) listener.close();
  };
  return {
    add,
    update: (rules) => void Object.assign(context, rules),
    async recheck({ authenticates, keeps }) {
      let [checked, cut] = [0, 0];
      for (const session of [...sessions]) {
        const reason = await session.recheck(authenticates);
        if (reason !== undefined && !keeps) {
          cut++;
          session.cut(reason);
        }
        if (++checked % CHUNK === 0) await new Promise((resolve) => setTimeout(resolve));
      }
      return cut;
    },
    get open() {
      return clients.size;
    },
    get tunnels() {
      return [...clients.values()].filter(({ connectedAt }) => connectedAt !== undefined).length;
    },
    get datagramsDropped() {
      return [...datagrams.listeners].reduce((sum, { dropped }) => sum + dropped, datagrams.droppedBefore);
    },
    async outlive(timeoutMs) {
      await withTimeout(Math.min(LAST_REQUESTS_MS, timeoutMs), done);
      await drain(timeoutMs, Promise.resolve());
    },
    drain,
    close,
    done,
  };
}
