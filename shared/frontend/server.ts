// The server for clients: accepts connections on its listeners, has each served by the listener's protocol, and drains.
import { withTimeout } from "../async/with_timeout.ts";
import { LogLimit } from "../log/limit.ts";
import type { TunnelEnd } from "../service/metrics.ts";
import type { ClientListener, Duplex, Incoming } from "../net/types.ts";
import { createRequestIds, logAccess, type RequestRecord } from "./access_log.ts";
import { MissingClientWarnings } from "./client_address.ts";
import type { ClientProtocol } from "./client_protocol.ts";
import { linger } from "./linger.ts";
import { ClientSession, type PipelineContext } from "./pipeline.ts";
import { isSocks5 } from "./socks5.ts";
import { type ConnectionEnd, logInternalError, refuse, refuseAccepted } from "./refusal.ts";

/** A listener, and what its clients speak. */
export interface ProtocolListener {
  readonly listener: ClientListener;
  readonly protocol: ClientProtocol;
  /** What clients speak whose first byte is that of SOCKS, where the preamble is `http-or-socks5`. */
  readonly socks?: ClientProtocol;
}

export interface FrontendOptions extends Omit<PipelineContext, "upstreamRole" | "missingClientWarnings" | "logLimit" | "now"> {
  readonly listeners: readonly ProtocolListener[];
  /** What `dial` connects to, for the log. Default `agent`. */
  readonly upstreamRole?: string;
  /** Called after each request that got a response. */
  readonly onEnd?: (end: TunnelEnd) => void;
  /** Milliseconds from any fixed point. Default `performance.now`. */
  readonly now?: () => number;
}

/** Serves clients until it is closed. */
export interface Frontend {
  /** Number of clients being served, with a tunnel or without. */
  readonly open: number;
  /** Number of these that are connected to their destination. */
  readonly tunnels: number;
  /**
   * Waits until the last client has gone, and resets the rest after `timeoutMs`. It accepts clients while it serves any, but no longer than
   * `timeoutMs`, or until `until` resolves.
   */
  drain(timeoutMs: number, until?: Promise<void>): Promise<void>;
  /** Stops accepting and resets all clients. */
  close(): void;
  /** Resolves when the last client has gone after {@link close}. */
  readonly done: Promise<void>;
}

/** Rate at which bytes of refused clients are read and dropped, over all clients. */
const DROPPED_RATE = { bytesPerSecond: 64 << 20, burst: 8 << 20 };

/** Time in milliseconds that clients get that were accepted just before a drain ends. */
const LAST_CLIENTS_GRACE_MS = 500;

export function startFrontend(options: FrontendOptions): Frontend {
  const { listeners, log } = options;
  const now = options.now ?? (() => performance.now());
  const nextRequestId = createRequestIds();
  const clients = new Map<Duplex, { readonly acceptedAt: number; readonly record: RequestRecord }>();
  const lingering = new Set<Duplex>();
  const logLimit = new LogLimit({ log });
  const missingClientWarnings = new MissingClientWarnings(logLimit, now);
  const context: PipelineContext = { ...options, upstreamRole: options.upstreamRole ?? "agent", now, logLimit, missingClientWarnings };
  const dropped = options.net.createRate(DROPPED_RATE);
  const waiting = new Set<() => void>();
  let isStopping = false;

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

  const serve = async (incoming: Incoming, protocol: ClientProtocol): Promise<void> => {
    const { stream, error: acceptError } = incoming;
    const startedAt = now();
    const record: RequestRecord = { id: nextRequestId(), client: stream.remote, sent: 0, received: 0 };
    const session = new ClientSession(context, stream, record);
    const handler = protocol.open(session);
    let end: ConnectionEnd = "closed";
    clients.set(stream, { acceptedAt: startedAt, record });
    try {
      try {
        session.admit();
        if (acceptError) refuseAccepted(session, protocol, { ...incoming, error: acceptError });
        else {
          try {
            await handler.serve(incoming);
          } finally {
            session.end();
          }
        }
      } catch (error) {
        // only an admitted client may occupy its connection longer, and without a request the stream cannot be read
        end = await refuse(session, handler, error, acceptError === undefined && session.isAdmitted);
      } finally {
        if (record.status !== undefined) {
          logAccess(log, record, startedAt, now());
          const { status, proxyError: error, connectedAt, sent, received } = record;
          options.onEnd?.({ status, error, setupMs: connectedAt === undefined ? undefined : connectedAt - startedAt, sent, received });
        }
      }
    } catch (error) {
      logInternalError(log, undefined, error); // a fault in one request must not end the others
    }
    if (end === "lingering") await lingerAfterRefusal(stream);
    session.release();
    clients.delete(stream);
    notifyWaiters();
  };

  const accept = async ({ listener, protocol, socks }: ProtocolListener): Promise<void> => {
    for (let batch; (batch = await listener.accept()) !== null;) {
      for (const incoming of batch) {
        void serve(incoming, socks !== undefined && isSocks5(incoming) ? socks : protocol); // never rejects
      }
    }
  };

  const run = async (): Promise<void> => {
    await Promise.all(listeners.map(accept));
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
    for (const { listener } of listeners) listener.close();
    for (const client of clients.keys()) client.reset(1);
  };
  return {
    get open() {
      return clients.size;
    },
    get tunnels() {
      return [...clients.values()].filter(({ record }) => record.connectedAt !== undefined).length;
    },
    async drain(timeoutMs, until) {
      const startedAt = performance.now();
      {
        using idle = whenNone(() => clients.size - lingering.size);
        await withTimeout(timeoutMs, until ? Promise.race([until, idle.reached]) : idle.reached);
      }
      for (const { listener } of listeners) listener.stopAccepting();
      stopLingering();
      let timer = setTimeout(() => {
        if (timeoutMs === 0) return close();
        const end = now();
        for (const [client, { acceptedAt }] of clients) if (end - acceptedAt > LAST_CLIENTS_GRACE_MS) client.reset(1);
        timer = setTimeout(close, LAST_CLIENTS_GRACE_MS);
      }, Math.max(0, timeoutMs - (performance.now() - startedAt)));
      await done;
      clearTimeout(timer);
      for (const { listener } of listeners) listener.close();
    },
    close,
    done,
  };
}
