// Measures whether a transport moves data: a session of its own protocol name on which both ends send 64 KiB, one after the other.
import { NetError } from "../net/errors.ts";
import type { AgentSession, SessionStats } from "../net/session.ts";
import type { Duplex } from "../net/stream.ts";
import { CloseCode, closeWith } from "./link.ts";

/** ALPN protocol name (RFC 7301) of a session that is only a probe. */
export const PROBE_ALPN = "reverse-http-probe/1";

/** Bytes in each direction: more than passes a network that only lets handshakes through. */
const PROBE_BYTES = 64 * 1024;
/** Timeout in milliseconds of a probe after its handshake. */
const PROBE_TIMEOUT_MS = 5_000;

/** The result of a probe. */
export interface ProbeResult {
  /** Time for the data of both directions, in milliseconds. */
  readonly durationMs: number;
  /** The session's statistics after that. */
  readonly stats: SessionStats;
}

/**
 * Sends and receives the bytes, and closes the session.
 * @throws {NetError} `timed-out`, `closed`, `reset`
 */
export async function runProbe(session: AgentSession): Promise<ProbeResult> {
  const start = performance.now();
  let stats!: SessionStats;
  await closeAfter(session, async () => {
    const stream = closeWith(session, await session.openStream());
    await stream.write(new Uint8Array(PROBE_BYTES));
    stream.closeWrite();
    const received = await countBytes(stream);
    if (received !== PROBE_BYTES) throw new NetError("reset", `The probe received ${received} bytes instead of ${PROBE_BYTES}`);
    stats = session.stats();
  });
  return { durationMs: performance.now() - start, stats };
}

/** Responds to a probe on the proxy. Never rejects: the agent measures the result. */
export async function serveProbe(session: AgentSession): Promise<void> {
  await closeAfter(session, async () => {
    const stream = await session.acceptStream();
    if (stream === null) return;
    closeWith(session, stream);
    if (await countBytes(stream) > PROBE_BYTES) return;
    await stream.write(new Uint8Array(PROBE_BYTES));
    stream.closeWrite();
    await session.closed;
  }).catch(() => {});
}

/** Counts the bytes up to the end of the stream; a probe has no more than {@link PROBE_BYTES}, and the rest is not read. */
async function countBytes(stream: Duplex): Promise<number> {
  let count = 0;
  for (let data; count <= PROBE_BYTES && (data = await stream.read()) !== null;) count += data.length;
  return count;
}

/** Runs `work`, then closes the session; closes it earlier when the work takes too long. */
async function closeAfter(session: AgentSession, work: () => Promise<void>): Promise<void> {
  let expired = false;
  const timer = setTimeout(() => {
    expired = true;
    session.close(CloseCode.shutdown, "the probe timed out");
  }, PROBE_TIMEOUT_MS);
  try {
    await work();
  } catch (cause) {
    throw expired ? new NetError("timed-out", `64 KiB each way took longer than ${PROBE_TIMEOUT_MS} ms`, { cause }) : cause;
  } finally {
    clearTimeout(timer);
    session.close(CloseCode.shutdown, "");
  }
}
