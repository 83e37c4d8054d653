// Releases on a server with the layout of GitHub's: archives, their checksums, and the signature of these.
import { createHash } from "node:crypto";
import { Buffer } from "node:buffer";
import { gunzipSync } from "node:zlib";
import { parseTar } from "nanotar";
import { messageOf } from "../../log/error_message.ts";
import { ConfigError } from "../../config/option.ts";
import { verifySignature } from "./signature.ts";

/** The repository, as `homepage` in deno.json. */
export const REPOSITORY = "https://github.com/reverse-http/reverse-http";
const ISSUER = "https://token.actions.githubusercontent.com";

/** Largest file of checksums, and of a signature, in bytes. */
const MAX_TEXT = 1 << 20;
/** Largest archive and largest executable in bytes. */
const MAX_ARCHIVE = 512 << 20;
const MAX_EXECUTABLE = 1 << 30;
/** Time in milliseconds for a response to begin, and between its parts. */
const IDLE_MS = 30_000;
/** Time in milliseconds for a whole download. */
const DOWNLOAD_MS = 15 * 60_000;

export interface ReleaseServerOptions {
  /** URL of the releases, without a slash at its end. */
  readonly base: string;
  /** Text of a trusted_root.json; see {@link verifySignature}. */
  readonly trustedRoot?: string;
  /** Ends downloads. */
  readonly signal?: AbortSignal;
  /** Times in milliseconds. */
  readonly idleMs?: number;
}

/** A release whose signature is good. */
export interface Release {
  readonly version: string;
  /** SHA-256, hexadecimal, by the name of a file. */
  readonly checksums: ReadonlyMap<string, string>;
}

/** Where releases come from. */
export class ReleaseServer {
  readonly #given: ReleaseServerOptions;

  constructor(given: ReleaseServerOptions) {
    this.#given = given;
  }

  /**
   * Finds a release, the latest one without `version`, and verifies its signature.
   * @throws {Error} naming the URL
   */
  async find(version?: string): Promise<Release> {
    const { base, trustedRoot } = this.#given;
    const url = version === undefined ? `${base}/latest/download/checksums.txt` : `${this.#folder(version)}/checksums.txt`;
    const data = await this.#download(url, MAX_TEXT);
    const checksums = readChecksums(data.toString("utf8"));
    const [found] = [...checksums.keys()].flatMap((name) => /^reverse-http_(.+)_linux_amd64\.tar\.gz$/.exec(name)?.[1] ?? []);
    if (found === undefined || !isVersion(found)) throw new Error(`Cannot use ${url}: it names no release`);
    if (version !== undefined && found !== version) throw new Error(`Cannot use ${url}: it belongs to ${found}`);
    // of the same release, also if a newer one has just become the latest
    const bundle = await this.#download(`${this.#folder(found)}/checksums.txt.sigstore.json`, MAX_TEXT);
    const workflow = `${REPOSITORY}/.github/workflows/release.yml@refs/tags/v${found}`;
    try {
      verifySignature(data, bundle.toString("utf8"), { workflow, issuer: ISSUER }, trustedRoot);
    } catch (cause) {
      throw new Error(`Cannot trust ${url}: its signature is not that of the release ${found}: ${messageOf(cause)}`, { cause });
    }
    return { version: found, checksums };
  }

  /**
   * Downloads and verifies the archive of `name` for `platform`, and returns the executable in it.
   * @throws {Error} naming the archive
   */
  async executable({ version, checksums }: Release, name: string, platform: string): Promise<Uint8Array> {
    const archive = `${name}_${version}_${platform}.tar.gz`;
    const expected = checksums.get(archive);
    if (expected === undefined) throw new Error(`Cannot upgrade: the release ${version} has no ${archive}`);
    const data = await this.#download(`${this.#folder(version)}/${archive}`, MAX_ARCHIVE);
    const actual = createHash("sha256").update(data).digest("hex");
    if (actual !== expected) throw new Error(`Cannot trust ${archive}: its SHA-256 is ${actual} instead of ${expected}`);
    let content;
    try {
      content = parseTar(gunzipSync(data, { maxOutputLength: MAX_EXECUTABLE })).find((file) => file.name === name)?.data;
    } catch (cause) {
      throw new Error(`Cannot unpack ${archive}: ${messageOf(cause)}`, { cause });
    }
    if (content === undefined) throw new Error(`Cannot unpack ${archive}: it contains no ${name}`);
    return content;
  }

  #folder(version: string): string {
    return `${this.#given.base}/download/v${version}`;
  }

  /** @throws {Error} naming the URL, if it has more than `limit` bytes, and if it takes too long */
  async #download(url: string, limit: number): Promise<Buffer> {
    const { signal, idleMs = IDLE_MS } = this.#given;
    const slow = new AbortController();
    const abort = () => slow.abort(new Error(`nothing has come for ${idleMs / 1_000} s`));
    let timer = setTimeout(abort, idleMs);
    const ends = [slow.signal, AbortSignal.timeout(DOWNLOAD_MS), ...signal ? [signal] : []];
    const end = AbortSignal.any(ends);
    try {
      const response = await fetch(url, { signal: end, headers: { "Accept-Encoding": "identity", "User-Agent": "reverse-http" } });
      if (response.status !== 200) {
        throw new Error(`the status is ${response.status}${response.status === 404 ? ": there is no such file" : ""}`);
      }
      const parts: Uint8Array[] = [];
      let size = 0;
      for await (const part of response.body as AsyncIterable<Uint8Array> | null ?? []) {
        clearTimeout(timer);
        timer = setTimeout(abort, idleMs);
        size += part.length;
        if (size > limit) throw new Error(`it has more than ${limit} bytes`);
        parts.push(part);
      }
      const length = response.headers.get("content-length");
      if (length !== null && Number(length) !== size) throw new Error(`only ${size} of ${length} bytes have come`);
      return Buffer.concat(parts);
    } catch (cause) {
      throw new Error(`Cannot download ${url}: ${describe(end.aborted ? end.reason : cause)}`, { cause });
    } finally {
      clearTimeout(timer);
      slow.abort(); // what is left of the response
    }
  }
}

/** Lines of sha256sum(1); others are ignored. */
function readChecksums(text: string): Map<string, string> {
  return new Map(
    text.split("\n").flatMap((line): [string, string][] => {
      const [, sum, name] = /^([0-9a-f]{64}) [ *]([\w.+-]+)$/.exec(line) ?? [];
      return sum === undefined ? [] : [[name!, sum]];
    }),
  );
}

function describe(error: unknown): string {
  const { code, name } = error as NodeJS.ErrnoException;
  if (name === "TimeoutError") return `it takes longer than ${DOWNLOAD_MS / 60_000} minutes`;
  const message = messageOf(error);
  if (/CERT|SSL|TLS|ISSUER/.test(String(code))) {
    return `the certificate or TLS of the server cannot be used (${code}: ${message}); NODE_EXTRA_CA_CERTS names a file with other authorities`;
  }
  return code === undefined || message.includes(code) ? message : `${message} (${code})`;
}

const VERSION = /^(\d{1,9})\.(\d{1,9})\.(\d{1,9})(?:-([0-9A-Za-z.-]{1,100}))?(?:\+[0-9A-Za-z.-]{1,100})?$/;

/** Whether this is a version of https://semver.org. */
export function isVersion(text: string): boolean {
  return VERSION.test(text);
}

/**
 * Negative if `a` precedes `b`, 0 if neither does (https://semver.org §11).
 * @throws {ConfigError} if one is no version
 */
export function compareVersions(a: string, b: string): number {
  const [x, y] = [a, b].map((text) => {
    const [, major, minor, patch, pre] = VERSION.exec(text) ?? [];
    if (major === undefined) throw new ConfigError(`Cannot compare with the version ${text}: it is not one such as 1.2.3`);
    return { numbers: [major, minor, patch].map(Number), pre: pre?.split(".") ?? [] };
  }) as [{ numbers: number[]; pre: string[] }, { numbers: number[]; pre: string[] }];
  for (let at = 0; at < 3; at++) {
    if (x.numbers[at] !== y.numbers[at]) return x.numbers[at]! - y.numbers[at]!;
  }
  if (x.pre.length === 0 || y.pre.length === 0) return y.pre.length - x.pre.length; // a release follows its previews
  for (let at = 0; at < Math.max(x.pre.length, y.pre.length); at++) {
    const order = compareIdentifiers(x.pre[at], y.pre[at]);
    if (order !== 0) return order;
  }
  return 0;
}

function compareIdentifiers(a: string | undefined, b: string | undefined): number {
  if (a === undefined || b === undefined) return a === b ? 0 : a === undefined ? -1 : 1;
  const [x, y] = [a, b].map((text) => /^\d+$/.test(text));
  if (x && y) return Number(a) - Number(b);
  if (x !== y) return x ? -1 : 1;
  return a < b ? -1 : a > b ? 1 : 0;
}
