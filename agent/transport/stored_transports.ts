// Stores in a file, across restarts, which proxies were last reached over TLS or a WebSocket, and how rarely they may be pinged. Decides
// nothing: `policy.ts` and `keep_alive.ts` do.
import { mkdir } from "node:fs/promises";
import { join } from "node:path";
import { ConfigError } from "../../shared/config/option.ts";
import { describeFileError, readBytes } from "../../shared/files/read.ts";
import type { StateDirectory } from "../../shared/files/state_directory.ts";
import { writeFileAtomically } from "../../shared/files/write.ts";
import type { Logger } from "../../shared/log/logger.ts";
import type { SessionKind } from "../../shared/net/session.ts";

const FILE = "agent-links.json";
/** Longest file in bytes. */
const MAX_FILE = 64 * 1024;
/** Maximum number of proxies remembered; the oldest is dropped. */
const MAX_PROXIES = 64;
/** Networks change: after this time in milliseconds QUIC is tried first again. */
const LIFETIME_MS = 30 * 86_400_000;

/** How a proxy was reached that was not over QUIC, and when, in milliseconds since 1970. */
interface Stored {
  readonly kind: Fallback;
  readonly at: number;
}

type Fallback = Exclude<SessionKind, "quic">;

/** What is known of pings over QUIC. Times are in milliseconds. */
export interface StoredKeepAlive {
  /** Their interval. */
  readonly intervalMs: number;
  /** The network has forgotten the connection within this time, and when that was, from 1970. */
  readonly failedMs?: number;
  readonly failedAt?: number;
}

/** Addresses of proxies that were not reached over QUIC, or whose interval of pings was chosen. */
export class StoredTransports {
  readonly #file?: string;
  readonly #log: Logger;
  /** The oldest is first. */
  readonly #stored: Map<string, Stored>;
  /** The oldest is first. */
  readonly #keepAlives: Map<string, StoredKeepAlive>;
  #written: Promise<void> = Promise.resolve();
  #hasWarned = false;

  private constructor(file: string | undefined, { transports, keepAlives }: Known, log: Logger) {
    this.#file = file;
    this.#stored = transports;
    this.#keepAlives = keepAlives;
    this.#log = log;
  }

  /**
   * Reads the entries of an earlier process.
   * @throws {ConfigError} if a required directory cannot be used
   */
  static async open({ path, required }: StateDirectory, log: Logger): Promise<StoredTransports> {
    if (path === undefined) return new StoredTransports(undefined, nothing(), log);
    if (required) {
      await mkdir(path, { recursive: true, mode: 0o700 }).catch((cause) => {
        throw new ConfigError(`Cannot use --state-dir ${path}: ${describeFileError(cause)}`, { cause });
      });
    }
    const file = join(path, FILE);
    const stored = await readBytes(file, MAX_FILE).then(parse).catch(() => undefined); // missing, or written by another version
    return new StoredTransports(file, stored ?? nothing(), log);
  }

  /** How the proxy was last reached, if not over QUIC. */
  fallbackOf(address: string): Fallback | undefined {
    const stored = this.#stored.get(address);
    return stored && Date.now() - stored.at < LIFETIME_MS ? stored.kind : undefined;
  }

  /** Stores how the proxy was reached, in the background. */
  remember(address: string, kind: SessionKind): void {
    if (this.#stored.get(address)?.kind === (kind === "quic" ? undefined : kind)) return;
    this.#stored.delete(address);
    if (kind !== "quic") this.#stored.set(address, { kind, at: Date.now() });
    this.#changed();
  }

  /** How rarely the proxy may be pinged. */
  keepAliveOf(address: string): StoredKeepAlive | undefined {
    return this.#keepAlives.get(address);
  }

  /** Stores how rarely the proxy may be pinged, in the background. */
  rememberKeepAlive(address: string, keepAlive: StoredKeepAlive): void {
    this.#keepAlives.delete(address);
    this.#keepAlives.set(address, keepAlive);
    this.#changed();
  }

  #changed(): void {
    for (const map of [this.#stored, this.#keepAlives]) {
      for (const [oldest] of map) {
        if (map.size <= MAX_PROXIES) break;
        map.delete(oldest);
      }
    }
    this.#written = this.#written.then(() => this.#write());
  }

  /** Resolves when everything is stored. Never rejects. */
  async close(): Promise<void> {
    await this.#written;
  }

  /** Never rejects: the agent works without it. */
  async #write(): Promise<void> {
    if (this.#file === undefined) return;
    const times = (kind: Fallback) =>
      Object.fromEntries([...this.#stored].filter(([, s]) => s.kind === kind).map(([a, { at }]) => [a, at]));
    const text = JSON.stringify({
      overTls: times("tls"),
      overWebSocket: times("websocket"),
      keepAlive: Object.fromEntries(this.#keepAlives),
    });
    try {
      await mkdir(join(this.#file, ".."), { recursive: true, mode: 0o700 });
      await writeFileAtomically(this.#file, `${text}\n`, { mode: 0o600, existing: "replace" });
    } catch (error) {
      if (!this.#hasWarned) {
        this.#log.warn("the transport that works cannot be stored; set --state-dir", { reason: describeFileError(error) });
      }
      this.#hasWarned = true;
    }
  }
}

interface Known {
  readonly transports: Map<string, Stored>;
  readonly keepAlives: Map<string, StoredKeepAlive>;
}

const nothing = (): Known => ({ transports: new Map(), keepAlives: new Map() });

function parse(bytes: Uint8Array): Known {
  const { overTls, overWebSocket, keepAlive } = JSON.parse(new TextDecoder().decode(bytes)) as Record<string, unknown>;
  const fields = (value: unknown) => Object.entries<unknown>(typeof value === "object" && value !== null ? { ...value } : {});
  const entries = (times: unknown, kind: Fallback) =>
    fields(times).flatMap(([address, at]) => typeof at === "number" ? [[address, { kind, at }] as const] : []);
  const isNumber = (value: unknown) => typeof value === "number";
  const isKeepAlive = (value: unknown): value is StoredKeepAlive => {
    const { intervalMs, failedMs = 0, failedAt = 0 } = Object.fromEntries(fields(value));
    return [intervalMs, failedMs, failedAt].every(isNumber);
  };
  const all = [...entries(overTls, "tls"), ...entries(overWebSocket, "websocket")].sort(([, a], [, b]) => a.at - b.at);
  const keepAlives = fields(keepAlive).flatMap(([address, value]) => isKeepAlive(value) ? [[address, value] as const] : []);
  return { transports: new Map(all.slice(-MAX_PROXIES)), keepAlives: new Map(keepAlives.slice(-MAX_PROXIES)) };
}
