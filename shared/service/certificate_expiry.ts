// Warns of certificates in use that expire soon, and fails readiness when one has expired.
import { X509Certificate } from "node:crypto";
import type { Logger } from "../log/logger.ts";
import type { Health } from "./health.ts";

/** A certificate in use. */
interface Watched {
  /** Who sees it: agents, clients or proxies. */
  readonly use: string;
  /** Its chain, PEM; `undefined` if there is none. */
  readonly pem: () => string | undefined;
  /** Whether the service is not ready when it has expired. */
  readonly isVital: boolean;
  /** Of the last warning, in milliseconds since 1970. */
  warnedAt: number;
  seen?: { readonly pem: string; readonly from: number; readonly to: number };
}

/** Interval of the checks in milliseconds. */
const CHECK_MS = 60_000;
/** Interval in milliseconds at which a warning is repeated. */
const REPEAT_MS = 86_400_000;
/** A certificate is reported when this share of its lifetime is left, and this time in milliseconds at most. */
const WARNING = { share: 1 / 4, atMostMs: 14 * 86_400_000 };
/** The cause of readiness. */
const CAUSE = "certificate-expired";

/** Watches certificates until it is closed. */
export class CertificateExpiry {
  readonly #log: Logger;
  readonly #health: Health;
  readonly #now: () => number;
  readonly #watched = new Set<Watched>();
  readonly #timer = setInterval(() => this.check(), CHECK_MS);

  /** @param now milliseconds since 1970 */
  constructor(log: Logger, health: Health, now: () => number = Date.now) {
    this.#log = log;
    this.#health = health;
    this.#now = now;
  }

  /**
   * Watches the first certificate of what `pem` returns, until the result is called.
   * @param isVital whether the service is not ready when it has expired
   */
  watch(use: string, pem: () => string | undefined, isVital = true): () => void {
    const watched = { use, pem, isVital, warnedAt: -Infinity };
    this.#watched.add(watched);
    if (this.#isExpired(watched)) this.check();
    return () => {
      this.#watched.delete(watched);
      this.check();
    };
  }

  /** Checks all certificates now. */
  check(): void {
    const expired = [...this.#watched].filter((watched) => this.#isExpired(watched) && watched.isVital).map(({ use }) => use);
    if (expired.length === 0) this.#health.setReady(CAUSE);
    else this.#health.setUnready(CAUSE, `the certificate for ${expired.join(" and ")} has expired`);
  }

  #isExpired(watched: Watched): boolean {
    const pem = watched.pem();
    if (pem === undefined) return false;
    if (watched.seen?.pem !== pem) {
      const { validFrom, validTo } = new X509Certificate(pem);
      watched.seen = { pem, from: Date.parse(validFrom), to: Date.parse(validTo) };
      watched.warnedAt = -Infinity;
    }
    const { from, to } = watched.seen;
    const leftMs = to - this.#now();
    if (leftMs > Math.min((to - from) * WARNING.share, WARNING.atMostMs)) return false;
    if (this.#now() - watched.warnedAt >= REPEAT_MS || (leftMs <= 0 && watched.warnedAt < to)) {
      watched.warnedAt = this.#now();
      const fields = { for: watched.use, until: new Date(to).toISOString() };
      if (leftMs > 0) this.#log.warn("certificate expires soon", fields);
      else this.#log.error("certificate has expired", fields);
    }
    return leftMs <= 0;
  }

  close(): void {
    clearInterval(this.#timer);
  }
}
