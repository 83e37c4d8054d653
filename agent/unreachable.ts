// Why a proxy does not answer, as far as the system knows, while the agent goes on trying. QUIC itself hears nothing of it.
import type { Logger } from "../shared/log/logger.ts";
import { NetError } from "../shared/net/errors.ts";
import type { Net } from "../shared/net/types.ts";
import { withTimeout } from "../shared/async/with_timeout.ts";
import type { ProxyEndpoint } from "./proxy_endpoints.ts";

/** Time in milliseconds without an answer after which the system is asked why; it gets PROBE_TIMEOUT_MS to reply. */
const SILENT_MS = 250;
const PROBE_TIMEOUT_MS = 600;

/**
 * What `attempt` brings. Where it takes long, the log says why within a second, and so does its error where it fails for want of an answer.
 * Nothing that is heard ends the attempt: the network may be back at any moment, and what routers say can be forged.
 * @throws {NetError} as the attempt
 */
export async function explainTimeout<T>(net: Net, log: Logger, { host, port, address }: ProxyEndpoint, attempt: Promise<T>): Promise<T> {
  const over = new AbortController();
  const explained = (async () => {
    if (await withTimeout(SILENT_MS, attempt.then(() => true, () => true))) return undefined;
    const trouble = await net.probeUdp({ host, port, timeoutMs: PROBE_TIMEOUT_MS, signal: over.signal });
    if (trouble && !over.signal.aborted) log.warn("the proxy does not answer yet", { proxy: address, reason: trouble.message });
    return trouble;
  })().catch(() => undefined); // the attempt was over first
  try {
    return await attempt;
  } catch (error) {
    const trouble = error instanceof NetError && error.code === "timed-out" ? await explained : undefined;
    throw trouble ? new NetError("timed-out", (error as NetError).message, { cause: trouble }) : error;
  } finally {
    over.abort();
  }
}
