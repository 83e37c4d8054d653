// Chooses the transport of a new connection: that of the first attempt to succeed. The next transport starts in parallel with those before
// it after a short delay (RFC 8305), or at once when one fails. Knows neither how to connect nor which transport is preferred.
import { setTimeout as sleep } from "node:timers/promises";
import { CloseCode } from "../../shared/link/link.ts";
import { NetError } from "../../shared/net/errors.ts";
import type { AgentSession, SessionKind } from "../../shared/net/session.ts";

/** Opens one connection; cancelled by the signal. */
export type Connect = (kind: SessionKind, signal: AbortSignal) => Promise<AgentSession>;

export interface RaceOptions {
  /** The transports, the preferred one first. */
  readonly order: readonly SessionKind[];
  readonly connect: Connect;
  /** Time in milliseconds that a transport has before the next one starts beside it. */
  readonly fallbackDelayMs: number;
  /** Delay in milliseconds before a transport that has failed is tried again while another one is still connecting. */
  readonly retryMs: number;
  /** The transport whose error is that of the call when all fail, if it was tried. */
  readonly telling: SessionKind;
  readonly signal: AbortSignal;
}

/** Maximum time in milliseconds for QUIC's other attempt. The proxy closes the waiting connection if it does not authenticate within 3 s. */
const CONFIRM_MS = 1_000;

/** The connection to use, and the errors of transports that failed before it was open. */
export interface Winner {
  readonly connection: AgentSession;
  readonly errors: ReadonlyMap<SessionKind, unknown>;
}

/**
 * Resolves with the first connection; the other attempts are cancelled. If QUIC is first, another transport wins only if another attempt over
 * QUIC fails too: a proxy that has just started, or a lost packet, must not decide. Fails when the proxy refuses the connection over QUIC,
 * because UDP passes then, and when no transport is connecting any more.
 * @throws {NetError} as `connect`
 */
export async function raceTransports({ order, connect, fallbackDelayMs, retryMs, telling, signal }: RaceOptions): Promise<Winner> {
  const over = new AbortController();
  const ended = AbortSignal.any([signal, over.signal]);
  const errors = new Map<SessionKind, unknown>();
  const connecting = new Set<SessionKind>();
  const waiting = new Set(order);
  const { promise, resolve, reject } = Promise.withResolvers<Winner>();

  const win = (connection: AgentSession): void => {
    if (over.signal.aborted) return connection.close(CloseCode.shutdown, ""); // another attempt was faster
    resolve({ connection, errors: new Map(errors) }); // attempts that are cancelled now are no errors
    over.abort();
  };
  /** Tries one transport until there is a winner or nothing is left to wait for. Never rejects. */
  const run = async (kind: SessionKind): Promise<void> => {
    waiting.delete(kind);
    do {
      connecting.add(kind);
      try {
        const connection = await connect(kind, ended);
        if (kind !== "quic" && order[0] === "quic") await confirm();
        return win(connection);
      } catch (error) {
        errors.set(kind, error);
        if (kind === "quic" && order[0] === "quic" && isRefusedByPeer(error)) return reject(error);
      }
      connecting.delete(kind);
      startNext();
      if (connecting.size === 0) return reject(errors.get(telling) ?? errors.get(kind));
    } while (await pause(retryMs, ended));
  };
  /** Gives QUIC another attempt, which may win. Never rejects. */
  const confirm = async (): Promise<void> => {
    await connect("quic", AbortSignal.any([ended, AbortSignal.timeout(Math.min(fallbackDelayMs, CONFIRM_MS))])).then(win, () => {});
  };
  const startNext = (): void => {
    const [next] = waiting;
    if (next) void run(next); // never rejects
  };

  startNext();
  const timer = setInterval(startNext, fallbackDelayMs);
  try {
    return await promise;
  } finally {
    clearInterval(timer);
    over.abort();
  }
}

/** Whether the proxy has answered that it takes no connections: it is stopping, or has too many handshakes. */
function isRefusedByPeer(error: unknown): boolean {
  return error instanceof NetError && error.code === "refused" && error.remote;
}

/** Resolves with whether the time has passed; the signal ends the wait. */
async function pause(ms: number, signal: AbortSignal): Promise<boolean> {
  return await sleep(ms, true, { signal }).catch(() => false);
}
