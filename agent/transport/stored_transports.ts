// Stores in a file, across restarts, which proxies were last reached over TLS. Decides nothing: `policy.ts` does.
import { mkdir } from "node:fs/promises";
import { join } from "node:path";
import { ConfigError } from "../../shared/config/option.ts";
import { describeFileError, readBytes } from "../../shared/files/read.ts";
import type { StateDirectory } from "../../shared/files/state_directory.ts";
import { writeFileAtomically } from "../../shared/files/write.ts";
import type { Logger } from "../../shared/log/logger.ts";

const FILE = "agent-links.json";
/** Longest file in bytes. */
const MAX_FILE = 64 * 1024;
/** Maximum number of proxies remembered; the oldest is dropped. */
const MAX_PROXIES = 64;
/** Networks change: after this time in milliseconds QUIC is tried first again. */
const LIFETIME_MS = 30 * 86_400_000;

/** Addresses of proxies that were reached over TLS and not over QUIC. */
export class StoredTransports {
  readonly #file?: string;
  readonly #log: Logger;
  /** When each was stored, in milliseconds since 1970. */
  readonly #overTls: Map<string, number>;
  #written: Promise<void> = Promise.resolve();
  #hasWarned = false;

  private constructor(file: string | undefined, overTls: Map<string, number>, log: Logger) {
    this.#file = file;
    this.#overTls = overTls;
    this.#log = log;
  }

  /**
   * Reads what an earlier process has stored.
   * @throws {ConfigError} if a required directory cannot be used
   */
  static async open({ path, required }: StateDirectory, log: Logger): Promise<StoredTransports> {
    if (path === undefined) return new StoredTransports(undefined, new Map(), log);
    if (required) {
      await mkdir(path, { recursive: true, mode: 0o700 }).catch((cause) => {
        throw new ConfigError(`Cannot use --state-dir ${path}: ${describeFileError(cause)}`, { cause });
      });
    }
    const file = join(path, FILE);
    const stored = await readBytes(file, MAX_FILE).then(parse).catch(() => undefined); // missing, or written by another version
    return new StoredTransports(file, stored ?? new Map(), log);
  }

  /** Whether the proxy was last reached over TLS. */
  prefersTls(address: string): boolean {
    const at = this.#overTls.get(address);
    return at !== undefined && Date.now() - at < LIFETIME_MS;
  }

  /** Stores how the proxy was reached, in the background. */
  remember(address: string, overTls: boolean): void {
    if (overTls === this.#overTls.has(address)) return;
    if (overTls) this.#overTls.set(address, Date.now());
    else this.#overTls.delete(address);
    for (const [oldest] of this.#overTls) {
      if (this.#overTls.size <= MAX_PROXIES) break;
      this.#overTls.delete(oldest);
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
    const text = JSON.stringify({ overTls: Object.fromEntries(this.#overTls) });
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

function parse(bytes: Uint8Array): Map<string, number> | undefined {
  const { overTls } = JSON.parse(new TextDecoder().decode(bytes)) as { overTls?: unknown };
  if (typeof overTls !== "object" || overTls === null) return undefined;
  const valid = Object.entries(overTls).filter((entry): entry is [string, number] => typeof entry[1] === "number");
  return new Map(valid.slice(-MAX_PROXIES));
}
