// TLS settings from files, checked at start and reloaded when the files change. If new files are invalid, the previous settings stay in
// force. Knows no sockets.
import { Buffer } from "node:buffer";
import { stat } from "node:fs/promises";
import { setTimeout as sleep } from "node:timers/promises";
import { ConfigError, flagOf } from "../config/option.ts";
import { describeFileError, readBytes } from "../files/read.ts";
import { versionOf } from "../files/version.ts";
import type { Logger } from "../log/logger.ts";
import { NetError } from "../net/errors.ts";
import type { Net } from "../net/net.ts";
import type { ClientTls, ServerTls } from "../net/tls.ts";
import { SecretFiles } from "../files/secret_files.ts";
import { checkIdentity, type PemFile, readCertificates, readPrivateKey, readRevocationLists, type Side, unusable } from "./pem.ts";
import { checkRevocationLists } from "./revocation.ts";
import { keyPinOf } from "./trust.ts";
import { messageOf } from "../log/error_message.ts";

/** Values of a server's options `--*.tls.*`. */
export interface ServerTlsOptions {
  readonly keyPassword?: string;
  /** Whether clients need a certificate of `file.clientCa`. Default `required`. */
  readonly clientAuth?: "required" | "optional";
  readonly file: { readonly key?: string; readonly cert?: string; readonly clientCa?: string; readonly clientCrl?: string };
}

/** Values of a client's options `--*.tls.*`. */
export interface ClientTlsOptions {
  readonly insecureSkipVerify: boolean;
  readonly useSystemPool?: boolean;
  readonly pinSha256?: readonly string[];
  readonly keyPassword?: string;
  readonly file: { readonly rootCa?: string; readonly key?: string; readonly cert?: string };
}

/** A certificate chain and its key, PEM. */
export interface CertifiedKey {
  readonly cert: string;
  readonly key: string;
}

/** How messages name options: all of them, and that of a file, such as `client-ca`. Both without dashes. */
export interface TlsGroup {
  readonly name: string;
  optionOf(file: string): string;
  /** Whether only regular files are read: a pipe in a directory would be waited for without end. Default `false`. */
  readonly isRegular?: boolean;
}

/** @param group what the options begin with, such as `agent-server.tls` */
function groupOf(group: string | TlsGroup): TlsGroup {
  return typeof group === "string" ? { name: group, optionOf: (file) => `${group}.file.${file}` } : group;
}

/** Validation of TLS settings by the network itself. */
export type TlsCheck = Pick<Net, "checkServerTls" | "checkClientTls">;

/** Limit on the size of a file, in bytes. Revocation lists of large authorities have tens of megabytes. */
const MAX_FILE = 64 * 1024 * 1024;

/** Settings, and warnings about doubtful but usable ones. */
interface Checked<T> {
  readonly tls: T;
  readonly warnings: readonly string[];
}

/** What a server uses whose options name no certificate. */
export interface DefaultIdentity {
  readonly selfSigned?: CertifiedKey;
  /** A file with certificate and key, which the program writes itself. Until it exists and can be used, `selfSigned` is. */
  readonly managedFile?: string;
}

/** File names by the last part of their option: `client-ca`. */
type Files = Readonly<Record<string, string | undefined>>;
type Pems = Readonly<Record<string, PemFile | undefined>>;

/** Where settings come from. */
interface Source {
  /** What the options' names begin with, such as `agent-server.tls`, or how they are made. */
  readonly group: string | TlsGroup;
  readonly files: Files;
  /** See {@link DefaultIdentity.managedFile}. */
  readonly managed?: string;
}

/**
 * Loads the settings of a server. Without certificate and key files it uses what `deps` has.
 * @param names what the options' names begin with, such as `agent-server.tls`, or how they are made
 * @throws {ConfigError} for a missing or invalid file
 */
export async function openServerTls(
  names: string | TlsGroup,
  options: ServerTlsOptions,
  { log, net, selfSigned, managedFile }: DefaultIdentity & { log: Logger; net: TlsCheck },
): Promise<ReloadableTls<ServerTls>> {
  const group = groupOf(names);
  const { key, cert, clientCa, clientCrl } = options.file;
  const managed = key || cert ? undefined : managedFile;
  let isFirst = true;
  const check = async (pems: Pems): Promise<Checked<ServerTls>> => {
    const warnings: string[] = [];
    let identity: Checked<CertifiedKey> | undefined;
    try {
      identity = readIdentity(group, pems, options, "server");
      warnings.push(...identity?.warnings ?? []);
    } catch (error) {
      // the program obtains another one
      if (!isFirst || managed === undefined || !(error instanceof ConfigError)) throw error;
      warnings.push(error.message);
    }
    let tls: ServerTls | undefined = identity?.tls ?? selfSigned;
    if (tls === undefined) throw new ConfigError(`Cannot start: ${fileFlag(group, "key")} and ${fileFlag(group, "cert")} are required`);
    const { "client-ca": caFile, "client-crl": listFile } = pems;
    if (listFile && !caFile) throw needs(group, "client-crl", "client-ca");
    if (options.clientAuth === "optional" && !caFile) {
      throw new ConfigError(`Cannot use ${flagOf(`${group.name}.client-auth`)}: ${fileFlag(group, "client-ca")} is required too`);
    }
    if (pems.cert) attributeTo(pems.cert, () => net.checkServerTls(tls!));
    if (caFile) {
      const authorities = readCertificates(caFile, "authorities");
      tls = { ...tls, clientCa: authorities.text, isClientOptional: options.clientAuth === "optional" };
      attributeTo(caFile, () => net.checkServerTls(tls!));
      if (listFile) {
        const lists = readRevocationLists(listFile);
        warnings.push(...await checkRevocationLists(listFile, lists.all, authorities.all));
        tls = { ...tls, clientCrl: lists.text };
        attributeTo(listFile, () => net.checkServerTls(tls!));
      }
    }
    return { tls, warnings };
  };
  const files = { key: managed ?? key, cert: managed ?? cert, "client-ca": clientCa, "client-crl": clientCrl };
  const opened = await ReloadableTls.open({ group, files, managed }, check, log);
  isFirst = false;
  return opened;
}

/**
 * Loads the settings of a client whose options begin with `group`, such as `agent-client.tls`.
 * @throws {ConfigError} for a missing or invalid file
 */
export async function openClientTls(
  name: string,
  options: ClientTlsOptions,
  { log, net }: { log: Logger; net: TlsCheck },
): Promise<ReloadableTls<ClientTls>> {
  const group = groupOf(name);
  const { rootCa, key, cert } = options.file;
  const check = (pems: Pems): Promise<Checked<ClientTls>> => {
    const identity = readIdentity(group, pems, options, "client");
    const { "root-ca": rootFile } = pems;
    const trust = {
      ca: rootFile && readCertificates(rootFile, "authorities").text,
      systemRoots: options.useSystemPool,
      insecureSkipVerify: options.insecureSkipVerify,
      pinSha256: options.pinSha256 && [...options.pinSha256],
    };
    // separate checks attribute an error to its file
    if (rootFile) attributeTo(rootFile, () => net.checkClientTls({ ca: trust.ca }));
    const tls: ClientTls = { ...identity?.tls, ...trust };
    if (pems.cert) attributeTo(pems.cert, () => net.checkClientTls({ ...identity?.tls, insecureSkipVerify: true }));
    checkSystemAuthorities(() => net.checkClientTls(tls));
    return Promise.resolve({ tls, warnings: identity?.warnings ?? [] });
  };
  const opened = await ReloadableTls.open({ group, files: { "root-ca": rootCa, key, cert } }, check, log);
  if (rootCa && options.insecureSkipVerify) {
    log.warn("authorities have no effect, because certificates are not verified", {
      ignored: fileFlag(group, "root-ca"),
      remedy: `leave out ${flagOf(name)}.insecure-skip-verify`,
    });
  }
  return opened;
}

/**
 * The pin of the public key in a certificate that is not used yet; `undefined` without a file.
 * @throws {ConfigError} for a missing or invalid file
 */
export async function openNextPin(name: string, file: string | undefined, log: Logger): Promise<ReloadableTls<string | undefined>> {
  const check = ({ "next-cert": pem }: Pems): Promise<Checked<string | undefined>> =>
    Promise.resolve({ tls: pem && keyPinOf(readCertificates(pem, "chain").all[0]!), warnings: [] });
  return await ReloadableTls.open({ group: groupOf(name), files: { "next-cert": file } }, check, log);
}

/** Runs a check of the network and reports its error, which names the variable, as one of the configuration. */
function checkSystemAuthorities(check: () => void): void {
  try {
    check();
  } catch (cause) {
    if (!(cause instanceof NetError)) throw cause;
    throw new ConfigError(cause.message, { cause });
  }
}

/** Runs a check of the network and reports its error as one of the file. */
function attributeTo(pem: PemFile, check: () => void): void {
  try {
    check();
  } catch (cause) {
    if (!(cause instanceof NetError)) throw cause;
    const why = cause.message.replace(/^Cannot [^:]*: /, "").replace(/^(?:unexpected error|invalid peer certificate): /, "");
    throw unusable(pem, why, cause);
  }
}

/**
 * Rejects TLS options while TLS is disabled: they show that it was meant to be enabled.
 * @throws {ConfigError}
 */
export function refuseWithoutTls(group: string, options: { keyPassword?: string; file: object }): void {
  const given = [...Object.entries(options.file).map(([name, value]) => [`file.${name}`, value] as const), [
    "key-password",
    options.keyPassword,
  ]].find(([, value]) => value);
  if (given === undefined) return;
  const option = String(given[0]).replace(/[A-Z]/g, (c) => `-${c.toLowerCase()}`);
  throw new ConfigError(`Cannot use ${flagOf(group)}.${option}: ${flagOf(group)}.enable is not set`);
}

/** TLS settings that can be reloaded. */
export interface Reloadable<T> {
  /** The latest valid settings. */
  readonly current: T;
  /** See {@link ReloadableTls.reload}. */
  reload(use?: (tls: T) => void): Promise<void>;
  /** See {@link ReloadableTls.poll}. */
  poll(use?: (tls: T) => void): Promise<void>;
}

/** TLS settings that can be reloaded from their files. */
export class ReloadableTls<T> implements Reloadable<T> {
  #state: string;
  #current: T;
  /** Versions of the files when they were last read, and at the last poll. */
  #versions: { readonly read: string; readonly polled: string };
  #reloading = Promise.resolve();
  readonly #secrets: SecretFiles;

  private constructor(
    private group: TlsGroup,
    private source: Source,
    private check: (pems: Pems) => Promise<Checked<T>>,
    private readonly log: Logger,
    state: string,
    current: T,
    versions: string,
  ) {
    this.#state = state;
    this.#versions = { read: versions, polled: versions };
    this.#current = current;
    this.#secrets = new SecretFiles(log);
  }

  /** @throws {ConfigError} if a file cannot be read or is invalid */
  static async open<T>(source: Source, check: (pems: Pems) => Promise<Checked<T>>, log: Logger): Promise<ReloadableTls<T>> {
    const group = groupOf(source.group);
    const versions = await versionsOf(source); // before reading: a later write is then a new version
    const pems = await readPems(group, source);
    const { tls, warnings } = await check(pems);
    warn(log, warnings);
    const opened = new ReloadableTls(group, source, check, log, JSON.stringify(pems), tls, versions);
    await opened.#checkModes();
    return opened;
  }

  async #checkModes(): Promise<void> {
    const { key } = this.source.files;
    if (key) await this.#secrets.check(fileFlag(this.group, "key"), key);
  }

  /** The latest valid settings. */
  get current(): T {
    return this.#current;
  }

  /**
   * Reloads the files. If they have changed and are valid, `use` is called with the new settings. If they are invalid or `use` throws, the
   * previous settings stay in force, and that is logged once per change. Never rejects.
   */
  reload(use: (tls: T) => void = () => {}): Promise<void> {
    // serialized, so that concurrent calls report a change once
    return this.#reloading = this.#reloading.then(() => this.#reload(use));
  }

  /**
   * Takes the files of `next`, which must not be used any more, and its settings; `use` is called with them if they differ. If it throws, that
   * is logged, and the next reload tries again. Never rejects.
   */
  replaceBy(next: ReloadableTls<T>, use: (tls: T) => void = () => {}): Promise<void> {
    return this.#reloading = this.#reloading.then(() => {
      [this.group, this.source, this.check] = [next.group, next.source, next.check];
      this.#versions = next.#versions;
      try {
        if (JSON.stringify(next.#current) !== JSON.stringify(this.#current)) use(next.#current);
        [this.#current, this.#state] = [next.#current, next.#state];
      } catch (error) {
        this.#state = "";
        this.log.warn("certificates cannot be used", { options: flagOf(this.group.name), reason: messageOf(error) });
      }
    });
  }

  /**
   * As {@link reload}, if the files have changed since they were read, but not since the last poll: programs write a certificate and its key
   * one after the other.
   */
  poll(use?: (tls: T) => void): Promise<void> {
    return this.#reloading = this.#reloading.then(async () => {
      const polled = await versionsOf(this.source);
      const isStable = polled === this.#versions.polled;
      this.#versions = { ...this.#versions, polled };
      if (!isStable || polled === this.#versions.read) return;
      this.#versions = { read: polled, polled };
      await this.#reload(use ?? (() => {}));
    });
  }

  async #reload(use: (tls: T) => void): Promise<void> {
    const before = this.#state;
    try {
      const pems = await readPems(this.group, this.source);
      this.#state = JSON.stringify(pems);
      await this.#checkModes();
      if (this.#state === before) return;
      const { tls, warnings } = await this.check(pems);
      use(tls);
      this.#current = tls;
      this.log.info("certificates reloaded", { options: flagOf(this.group.name) });
      warn(this.log, warnings);
    } catch (error) {
      const reason = messageOf(error);
      if (this.#state === before) this.#state = reason; // a file could not be read
      if (this.#state !== before) {
        this.log.warn("certificate reload failed; keeping the previous certificates", { options: flagOf(this.group.name), reason });
      }
    }
  }
}

/** Interval of polls in milliseconds, unless an option sets another. */
const POLL_MS = 5_000;

/**
 * Polls the files until it is closed. `use` as in {@link ReloadableTls.reload}.
 * @param intervalMs returns the interval in milliseconds; 0: 5 seconds
 */
export function startTlsRefresh<T>(files: Reloadable<T>, intervalMs: () => number, use?: (tls: T) => void): { close(): Promise<void> } {
  const stopping = new AbortController();
  const { signal } = stopping;
  const run = async (): Promise<void> => {
    while (!signal.aborted) {
      await sleep(intervalMs() || POLL_MS, undefined, { signal }).catch(() => {}); // stopping
      if (!signal.aborted) await files.poll(use);
    }
  };
  const running = run();
  return {
    async close() {
      stopping.abort();
      await running;
    },
  };
}

function fileFlag({ optionOf }: TlsGroup, file: string): string {
  return flagOf(optionOf(file));
}

function readIdentity(
  group: TlsGroup,
  { key, cert }: Pems,
  options: { keyPassword?: string },
  side: Side,
): Checked<CertifiedKey> | undefined {
  if (key === undefined && cert === undefined) return undefined;
  if (cert === undefined) throw needs(group, "key", "cert");
  if (key === undefined) throw needs(group, "cert", "key");
  const chain = readCertificates(cert, "chain");
  const passwordOption = "keyPassword" in options ? `${group.name}.key-password` : undefined;
  const privateKey = readPrivateKey(key, options.keyPassword, passwordOption);
  const warnings = checkIdentity(cert, chain.all, key, privateKey, side);
  return { tls: { cert: chain.text, key: privateKey.export({ type: "pkcs8", format: "pem" }).toString() }, warnings };
}

function needs(group: TlsGroup, given: string, missing: string): ConfigError {
  return new ConfigError(`Cannot use ${fileFlag(group, given)}: ${fileFlag(group, missing)} is required too`);
}

/** The versions of the files, one after the other. */
async function versionsOf({ files }: Source): Promise<string> {
  const versions = await Promise.all(Object.values(files).map(async (file) => file ? (await versionOf(file)).version : ""));
  return versions.join("\n");
}

/** Reads the files. An empty name counts as none. */
async function readPems({ optionOf, isRegular }: TlsGroup, { files, managed }: Source): Promise<Pems> {
  const pems: Record<string, PemFile | undefined> = {};
  for (const [name, file] of Object.entries(files)) {
    if (!file) continue;
    // read a file that has both key and certificate once, so that both are of the same version
    const sameFile = Object.values(pems).find((pem) => pem?.file === file);
    const option = file === managed ? "state-dir" : optionOf(name);
    try {
      pems[name] = sameFile ? { option, file, text: sameFile.text } : await readPemFile(option, file, isRegular);
    } catch (error) {
      const { code } = (error as Error).cause as NodeJS.ErrnoException;
      if (file !== managed || code !== "ENOENT") throw error; // else it does not exist yet
    }
  }
  return pems;
}

/**
 * Reads the file that an option names, without parsing it.
 * @param isRegular whether it must be a regular file
 * @throws {ConfigError} if it cannot be read
 */
export async function readPemFile(option: string, file: string, isRegular = false): Promise<PemFile> {
  try {
    if (isRegular && !(await stat(file)).isFile()) throw new Error("it is not a regular file");
    return { option, file, text: Buffer.from(await readBytes(file, MAX_FILE)).toString("latin1") };
  } catch (cause) {
    throw new ConfigError(`Cannot read ${flagOf(option)} ${file}: ${describeFileError(cause)}`, { cause });
  }
}

function warn(log: Logger, warnings: readonly string[]): void {
  for (const warning of warnings) log.warn("certificate may be unusable", { reason: warning });
}
