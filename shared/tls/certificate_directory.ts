// A directory of certificates with their keys, for the names in them. Files that come, change and go are noticed; a file that is invalid
// changes nothing for the others. Knows no sockets.
import { X509Certificate } from "node:crypto";
import { readdir } from "node:fs/promises";
import { join } from "node:path";
import { ConfigError, flagOf } from "../config/option.ts";
import { describeFileError } from "../files/read.ts";
import { versionOf } from "../files/version.ts";
import { messageOf } from "../log/error_message.ts";
import type { Logger } from "../log/logger.ts";
import type { HostTls, ServerTls } from "../net/tls.ts";
import { openServerTls, type Reloadable, type TlsCheck, type TlsGroup } from "./reloadable_tls.ts";

const OPTION = "http-proxy.tls.cert-dir";
/** How messages name the option, and the log a certificate. */
function groupOf(cert: string): TlsGroup {
  return { name: `${OPTION} ${cert}`, optionOf: () => OPTION, isRegular: true };
}

/** Limit on the certificates of a directory. */
const MAX_CERTIFICATES = 1_000;

/** Files in a subdirectory, as certbot and Kubernetes name them. */
const NAMES_BELOW = [["fullchain.pem", "privkey.pem"], ["tls.crt", "tls.key"]] as const;

/** Describes why a directory could not be read, without its name. */
function describeDirectoryError(error: unknown): string {
  const { code } = error as NodeJS.ErrnoException;
  if (code === "ENOENT") return "the directory does not exist";
  return code === "ENOTDIR" ? "it is not a directory" : describeFileError(error);
}

/** Errors of a file that does not exist. */
const ABSENT: ReadonlySet<string> = new Set(["ENOENT", "ENOTDIR"]);

/** The files of a certificate; of the same name if one file has both. */
interface Pair {
  readonly cert: string;
  readonly key: string;
}

interface Deps {
  readonly log: Logger;
  readonly net: TlsCheck;
  /** Milliseconds since 1970. Default `Date.now`. */
  readonly now?: () => number;
}

/** What a certificate is for. */
interface Contents {
  /** Its DNS names, in lower case. */
  readonly names: readonly string[];
  /** Its validity, in milliseconds since 1970. */
  readonly from: number;
  readonly until: number;
}

interface OpenCertificate {
  readonly tls: Reloadable<ServerTls>;
  contents: Contents;
}

export class CertificateDirectory implements Reloadable<readonly HostTls[]> {
  readonly #path: string;
  readonly #deps: Deps;
  /** By the file of the certificate, as all of these. */
  readonly #open = new Map<string, OpenCertificate>();
  /** Versions that are not in use, and were seen at the last poll or could not be used. */
  readonly #seen = new Map<string, string>();
  readonly #refused = new Map<string, string>();
  /** Files that were missing at the last poll. */
  readonly #missing = new Set<string>();
  #current: readonly HostTls[] = [];
  /** When `current` was chosen, in milliseconds since 1970. */
  #chosenAt = 0;
  #problem?: string;
  #work = Promise.resolve();

  private constructor(path: string, deps: Deps) {
    this.#path = path;
    this.#deps = deps;
  }

  /**
   * Reads a directory. Files that cannot be used are warnings in the log.
   * @throws {ConfigError} if the directory cannot be read, or has more than 1,000 certificates
   */
  static async open(path: string, deps: Deps): Promise<CertificateDirectory> {
    const opened = new CertificateDirectory(path, deps);
    try {
      await opened.#update(await pairsIn(path), { isPoll: false });
    } catch (cause) {
      throw new ConfigError(`Cannot use ${flagOf(OPTION)} ${path}: ${describeDirectoryError(cause)}`, { cause });
    }
    return opened;
  }

  /** The certificates in use, by the names in them. Of two for a name, it is one that is valid now, and of two such, the one that is valid longer. */
  get current(): readonly HostTls[] {
    return this.#current;
  }

  /** Reads what has changed. `use` is called with all certificates if some have. Never rejects. */
  reload(use?: (hosts: readonly HostTls[]) => void): Promise<void> {
    return this.#refresh({ isPoll: false }, use);
  }

  /** The same for what has not changed since the last poll: programs write a certificate and its key one after the other. */
  poll(use?: (hosts: readonly HostTls[]) => void): Promise<void> {
    return this.#refresh({ isPoll: true }, use);
  }

  #refresh(how: { readonly isPoll: boolean }, use?: (hosts: readonly HostTls[]) => void): Promise<void> {
    return this.#work = this.#work.then(async () => {
      let problem: string | undefined;
      try {
        if (await this.#update(await pairsIn(this.#path), how)) use?.(this.#current);
      } catch (error) {
        problem = describeDirectoryError(error);
      }
      if (problem !== undefined && problem !== this.#problem) {
        this.#deps.log.warn("directory of certificates cannot be used; keeping the previous certificates", {
          directory: this.#path,
          reason: problem,
        });
      }
      this.#problem = problem;
    });
  }

  /** Returns whether a certificate has changed. */
  async #update(pairs: readonly Pair[], { isPoll }: { readonly isPoll: boolean }): Promise<boolean> {
    let isChanged = this.#forget(new Set(pairs.map(({ cert }) => cert)), isPoll);
    for (const pair of pairs) {
      const open = this.#open.get(pair.cert);
      const use = (tls: ServerTls) => {
        open!.contents = contentsOf(pair.cert, tls);
        isChanged = true;
      };
      if (open) await (isPoll ? open.tls.poll(use) : open.tls.reload(use));
      else if (await this.#isReady(pair, isPoll)) isChanged = await this.#add(pair) || isChanged;
    }
    const now = (this.#deps.now ?? Date.now)();
    const isPassed = (time: number) => this.#chosenAt < time && time <= now;
    isChanged ||= [...this.#open.values()].some(({ contents: { from, until } }) => isPassed(from) || isPassed(until));
    if (isChanged) [this.#current, this.#chosenAt] = [this.#hosts(now), now];
    return isChanged;
  }

  /** Forgets files that have gone, at the second poll: some programs replace a file by removing it first. */
  #forget(found: ReadonlySet<string>, isPoll: boolean): boolean {
    for (const known of [this.#seen, this.#refused]) for (const file of known.keys()) if (!found.has(file)) known.delete(file);
    let isChanged = false;
    for (const file of this.#open.keys()) {
      if (found.has(file)) this.#missing.delete(file);
      else if (isPoll && !this.#missing.has(file)) this.#missing.add(file);
      else {
        this.#missing.delete(file);
        isChanged = this.#open.delete(file);
        this.#deps.log.info("certificate removed", { file });
      }
    }
    return isChanged;
  }

  /** Whether files that are not in use may be: they are written, and were not refused. */
  async #isReady({ cert, key }: Pair, isPoll: boolean): Promise<boolean> {
    const version = `${(await versionOf(cert)).version}\n${(await versionOf(key)).version}`;
    const isStable = this.#seen.get(cert) === version;
    this.#seen.set(cert, version);
    if ((isPoll && !isStable) || this.#refused.get(cert) === version) return false;
    this.#refused.set(cert, version); // until it is in use
    return true;
  }

  async #add({ cert, key }: Pair): Promise<boolean> {
    const { log } = this.#deps;
    try {
      const tls = await openServerTls(groupOf(cert), { file: { cert, key } }, this.#deps);
      const contents = contentsOf(cert, tls.current);
      this.#open.set(cert, { tls, contents });
      this.#refused.delete(cert);
      log.info("certificate added", { file: cert, names: contents.names.join(",") });
      return true;
    } catch (error) {
      if (!(error instanceof ConfigError)) throw error;
      log.warn("certificate of a directory cannot be used", { reason: messageOf(error) });
      return false;
    }
  }

  #hosts(now: number): HostTls[] {
    const isValid = ({ from, until }: Contents) => from <= now && now < until;
    const best = new Map<string, OpenCertificate>();
    for (const open of this.#open.values()) {
      const { contents } = open;
      for (const name of contents.names) {
        const other = best.get(name)?.contents;
        const isBetter = other === undefined || (isValid(contents) === isValid(other) ? contents.until > other.until : isValid(contents));
        if (isBetter) best.set(name, open);
      }
    }
    const byFile = Map.groupBy(best, ([, open]) => open);
    return Array.from(byFile, ([{ tls }, names]) => ({ names: names.map(([name]) => name), tls: tls.current }));
  }
}

/** @throws {ConfigError} if it has no DNS name */
function contentsOf(file: string, { cert }: ServerTls): Contents {
  const { subjectAltName, validFrom, validTo } = new X509Certificate(cert);
  const names = (subjectAltName ?? "").split(", ").filter((name) => name.startsWith("DNS:")).map((name) => name.slice(4).toLowerCase());
  if (names.length === 0) throw new ConfigError(`Cannot use ${flagOf(OPTION)} ${file}: the certificate has no DNS name`);
  return { names: [...new Set(names)], from: Date.parse(validFrom), until: Date.parse(validTo) };
}

/** The options that matter. */
export interface CertificateDirectoryOptions {
  readonly httpProxy: { readonly tls: { readonly enable: boolean; readonly certDir?: string } };
  readonly forward: readonly { readonly network: string }[];
}

/**
 * Opens the directory that the options name; `undefined` if they name none.
 * @throws {ConfigError} as {@link CertificateDirectory.open}, and if no port has TLS
 */
export async function openCertificateDirectory(
  { httpProxy: { tls: { enable, certDir } }, forward }: CertificateDirectoryOptions,
  deps: Deps,
): Promise<CertificateDirectory | undefined> {
  if (certDir === undefined) return undefined;
  if (!enable && forward.every(({ network }) => network !== "https")) {
    throw new ConfigError(
      `Cannot use ${flagOf(OPTION)}: no port has TLS; set --http-proxy.tls.enable, or a --forward with network=https`,
    );
  }
  return await CertificateDirectory.open(certDir, deps);
}

/**
 * The certificates of a directory, sorted. A `.crt` without its key is that of an authority.
 * @throws {Error} if it cannot be read, or has too many
 */
async function pairsIn(path: string): Promise<Pair[]> {
  const entries = (await readdir(path, { withFileTypes: true })).filter(({ name }) => !name.startsWith("."));
  const names = new Set(entries.map(({ name }) => name));
  const pairs: Pair[] = [];
  for (const entry of entries.sort((a, b) => a.name < b.name ? -1 : 1)) {
    const { name } = entry;
    const key = name.replace(/\.crt$/, ".key");
    if (name.endsWith(".pem")) pairs.push({ cert: join(path, name), key: join(path, name) });
    else if (key !== name && names.has(key)) pairs.push({ cert: join(path, name), key: join(path, key) });
    else if (entry.isDirectory() || entry.isSymbolicLink()) {
      for (const [cert, key] of NAMES_BELOW) {
        const files = { cert: join(path, name, cert), key: join(path, name, key) };
        const { version, error } = await versionOf(files.cert);
        if (error === undefined || !ABSENT.has(version)) pairs.push(files); // one that cannot be read is not absent
      }
    }
    if (pairs.length > MAX_CERTIFICATES) throw new Error(`it has more than ${MAX_CERTIFICATES} certificates, the limit`);
  }
  return pairs;
}
