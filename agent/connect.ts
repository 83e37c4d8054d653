// Connects over QUIC with a hedged second attempt. QUIC retransmits with doubling delays, so an attempt that started without a network
// notices its return late; a second attempt that is restarted regularly notices it soon.
import { CloseCode } from "../shared/link/link.ts";
import type { AgentSession, ConnectQuicOptions, Net } from "../shared/net/types.ts";

export interface HedgedConnectOptions extends ConnectQuicOptions {
  /** Interval in milliseconds at which the second attempt is restarted. */
  attemptDelayMs: number;
  signal: AbortSignal;
}

/**
 * Resolves with the first connection of either attempt. The first attempt has the full timeout, for long paths and busy proxies, and its
 * error is that of the call.
 * @throws {NetError} as `connectQuic`
 */
export async function connectHedged(net: Net, { attemptDelayMs, ...options }: HedgedConnectOptions): Promise<AgentSession> {
  const { promise, resolve, reject } = Promise.withResolvers<AgentSession>();
  const done = new AbortController();
  const attempt = async (signal: AbortSignal): Promise<void> => {
    const connection = await net.connectQuic({ ...options, signal });
    if (signal.aborted) return connection.close(CloseCode.shutdown, ""); // the other attempt was faster
    resolve(connection);
    done.abort();
  };
  let second = new AbortController();
  const timer = setInterval(() => {
    second.abort();
    second = new AbortController();
    attempt(AbortSignal.any([done.signal, second.signal])).catch(() => {}); // the first attempt reports errors
  }, attemptDelayMs);
  attempt(AbortSignal.any([done.signal, options.signal])).catch(reject);
  try {
    return await promise;
  } finally {
    clearInterval(timer);
    done.abort();
  }
}
