// Connects with a hedged second attempt. QUIC and TCP retransmit with doubling delays, so an attempt that started without a network notices
// its return late; a second attempt that is restarted regularly notices it soon.
import { CloseCode } from "../../shared/link/link.ts";
import { NetError } from "../../shared/net/errors.ts";
import type { AgentSession } from "../../shared/net/session.ts";

export interface HedgeOptions {
  /** Interval in milliseconds at which the second attempt is restarted. */
  restartMs: number;
  signal: AbortSignal;
}

/**
 * Resolves with the first connection of either attempt. The first attempt has the full timeout, for long paths and busy proxies, and its
 * error is that of the call.
 * @throws {NetError} as `connect`
 */
export async function connectHedged(
  connect: (signal: AbortSignal) => Promise<AgentSession>,
  { restartMs, signal }: HedgeOptions,
): Promise<AgentSession> {
  const { promise, resolve, reject } = Promise.withResolvers<AgentSession>();
  const done = new AbortController();
  const attempt = async (signal: AbortSignal): Promise<void> => {
    const connection = await connect(signal);
    if (signal.aborted) { // the other attempt was faster, or the call was cancelled
      connection.close(CloseCode.shutdown, "");
      throw new NetError("cancelled", "The connection was cancelled");
    }
    resolve(connection);
    done.abort();
  };
  let second = new AbortController();
  const timer = setInterval(() => {
    second.abort();
    second = new AbortController();
    attempt(AbortSignal.any([done.signal, signal, second.signal])).catch(() => {}); // the first attempt reports errors
  }, restartMs);
  attempt(AbortSignal.any([done.signal, signal])).catch(reject);
  try {
    return await promise;
  } finally {
    clearInterval(timer);
    done.abort();
  }
}
