// Finds out why a proxy does not respond, from ICMP errors that QUIC ignores, while the agent keeps trying.
import type { Logger } from "../../shared/log/logger.ts";
import { NetError } from "../../shared/net/errors.ts";
import type { Net } from "../../shared/net/net.ts";
import { withTimeout } from "../../shared/async/with_timeout.ts";
import type { ProxyEndpoint } from "../proxy_endpoints.ts";

/** Delay before the probe, and timeout of the probe, in milliseconds. */
const PROBE_DELAY_MS = 250;
const PROBE_TIMEOUT_MS = 600;

/**
 * Settles as `attempt`. If it takes long, the reason is logged within a second and attached to a `timed-out` error. The probe never ends the
 * attempt: the network may recover at any moment, and ICMP can be forged.
 * @throws {NetError} as the attempt
 */
export async function explainTimeout<T>(net: Net, log: Logger, { host, port, address }: ProxyEndpoint, attempt: Promise<T>): Promise<T> {
  const done = new AbortController();
  const explained = (async () => {
    if (await withTimeout(PROBE_DELAY_MS, attempt.then(() => true, () => true))) return undefined;
    const probeError = await net.probeUdp({ host, port, timeoutMs: PROBE_TIMEOUT_MS, signal: done.signal });
    if (probeError && !done.signal.aborted) log.warn("no response from the proxy yet", { proxy: address, reason: probeError.message });
    return probeError;
  })().catch(() => undefined); // the attempt ended first
  try {
    return await attempt;
  } catch (error) {
    const probeError = error instanceof NetError && error.code === "timed-out" ? await explained : undefined;
    throw probeError ? new NetError("timed-out", (error as NetError).message, { cause: probeError }) : error;
  } finally {
    done.abort();
  }
}
