// A QUIC connection through a network that may come back at any moment. QUIC sends again what got no answer after waits that double, so an
// attempt that began while there was no network hears late of its return: here another one, begun anew again and again, goes beside it.
import { CloseCode } from "../shared/link/link.ts";
import type { ConnectQuicOptions, Net, QuicConnection } from "../shared/net/types.ts";

export interface HedgedConnectOptions extends ConnectQuicOptions {
  /** Every so many milliseconds in which nothing has come of it, the second attempt is begun anew. */
  attemptDelayMs: number;
  signal: AbortSignal;
}

/**
 * The first connection that either attempt makes. The first attempt has all the time there is, and its failure is the failure of both: where
 * the way is long, or the proxy has much to do, the others come to nothing.
 * @throws {NetError} as `connectQuic`
 */
export async function connectHedged(net: Net, { attemptDelayMs, ...options }: HedgedConnectOptions): Promise<QuicConnection> {
  const { promise, resolve, reject } = Promise.withResolvers<QuicConnection>();
  const done = new AbortController();
  const attempt = async (signal: AbortSignal): Promise<void> => {
    const connection = await net.connectQuic({ ...options, signal });
    if (signal.aborted) return connection.close(CloseCode.shutdown, ""); // the other one was quicker
    resolve(connection);
    done.abort();
  };
  let second = new AbortController();
  const timer = setInterval(() => {
    second.abort();
    second = new AbortController();
    attempt(AbortSignal.any([done.signal, second.signal])).catch(() => {}); // what is wrong, the first one will hear
  }, attemptDelayMs);
  attempt(AbortSignal.any([done.signal, options.signal])).catch(reject);
  try {
    return await promise;
  } finally {
    clearInterval(timer);
    done.abort();
  }
}
