// Stores in a file, across restarts, the pins that proxies announce for their next keys. An agent that has received one still recognizes its
// proxy after the change, although its options have the pin of the key before.
import { createHash } from "node:crypto";
import { mkdir } from "node:fs/promises";
import { join } from "node:path";
import { PIN_OF_KEY } from "../shared/config/common_options.ts";
import { describeFileError, readBytes } from "../shared/files/read.ts";
import { writeFileAtomically } from "../shared/files/write.ts";
import { MAX_PINS } from "../shared/link/message.ts";
import type { Logger } from "../shared/log/logger.ts";
import type { ClientTls } from "../shared/net/tls.ts";

const FILE = "agent-pins.json";
/** Longest file in bytes. */
const MAX_FILE = 256 * 1024;
/** Addresses that are stored; the oldest is dropped. */
const MAX_ADDRESSES = 64;
/** Proxies with keys of their own behind one address. */
const MAX_PROXIES = 8;

/** The pins that the proxies at an address have announced. */
interface Learned {
  /** Digest of the configured pins: announced pins are forgotten when these change. */
  readonly trust: string;
  /** The pins of each proxy, the one in use first. The oldest proxy is first. */
  readonly proxies: readonly (readonly string[])[];
}

export class LearnedPins {
  readonly #file?: string;
  readonly #log: Logger;
  /** By address of the proxy. The oldest is first. */
  readonly #learned: Map<string, Learned>;
  #written: Promise<void> = Promise.resolve();

  private constructor(file: string | undefined, learned: Map<string, Learned>, log: Logger) {
    this.#file = file;
    this.#learned = learned;
    this.#log = log;
  }

  /** Reads the pins that an earlier process has stored. @param directory default: nothing is stored */
  static async open(directory: string | undefined, log: Logger): Promise<LearnedPins> {
    if (directory === undefined) return new LearnedPins(undefined, new Map(), log);
    const file = join(directory, FILE);
    const learned = await readBytes(file, MAX_FILE).then(parse).catch(() => undefined); // missing, or written by another version
    return new LearnedPins(file, learned ?? new Map(), log);
  }

  /** The TLS settings for the proxy at `address`, with the pins that it has announced. */
  extend(address: string, tls: ClientTls): ClientTls {
    const learned = this.#learned.get(address);
    if (learned === undefined || learned.trust !== trustOf(tls)) return tls;
    return { ...tls, pinSha256: [...new Set([...tls.pinSha256!, ...learned.proxies.flat()])] };
  }

  /** The proxy at `address`, which was recognized by a pin, announces others. They are stored in the background. */
  learn(address: string, tls: ClientTls, pins: readonly string[]): void {
    const trust = trustOf(tls);
    if (trust === undefined) return;
    const before = this.#learned.get(address);
    const others = before?.trust === trust ? before.proxies.filter((proxy) => !proxy.includes(pins[0]!)) : [];
    const learned = { trust, proxies: [...others, pins].slice(-MAX_PROXIES) };
    if (JSON.stringify(learned) === JSON.stringify(before)) return;
    this.#learned.delete(address);
    this.#learned.set(address, learned);
    for (const [oldest] of this.#learned) {
      if (this.#learned.size <= MAX_ADDRESSES) break;
      this.#learned.delete(oldest);
    }
    const next = pins.slice(1);
    if (next.length > 0) this.#log.info("the proxy has announced its next key", { proxy: address, pins: next.join(",") });
    this.#written = this.#written.then(() => this.#write());
  }

  /** Resolves when everything is stored. Never rejects. */
  async close(): Promise<void> {
    await this.#written;
  }

  /** Never rejects. */
  async #write(): Promise<void> {
    if (this.#file === undefined) return;
    try {
      await mkdir(join(this.#file, ".."), { recursive: true, mode: 0o700 });
      const text = JSON.stringify(Object.fromEntries(this.#learned));
      await writeFileAtomically(this.#file, `${text}\n`, { mode: 0o600, existing: "replace" });
    } catch (error) {
      this.#log.warn("pins that the proxy has announced cannot be stored; set --state-dir", { reason: describeFileError(error) });
    }
  }
}

/** `undefined` if a proxy is not recognized by pins. */
function trustOf({ pinSha256 = [], insecureSkipVerify }: ClientTls): string | undefined {
  if (pinSha256.length === 0 || insecureSkipVerify) return undefined;
  return createHash("sha256").update([...pinSha256].sort().join()).digest("base64url");
}

function parse(bytes: Uint8Array): Map<string, Learned> {
  const stored = JSON.parse(new TextDecoder().decode(bytes)) as Record<string, Partial<Learned> | undefined>;
  const isProxy = (pins: unknown): pins is string[] =>
    Array.isArray(pins) && pins.length <= MAX_PINS && pins.every((pin) => typeof pin === "string" && PIN_OF_KEY.test(pin));
  const entries = Object.entries(stored).flatMap(([address, { trust, proxies } = {}]) =>
    typeof trust === "string" && Array.isArray(proxies) && proxies.every(isProxy)
      ? [[address, { trust, proxies: proxies.slice(-MAX_PROXIES) }] as const]
      : []
  );
  return new Map(entries.slice(-MAX_ADDRESSES));
}
