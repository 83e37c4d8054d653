// TLS settings in files: what a server or a client is told to show and believe, checked when it starts and read again when they change. Bad
// new files keep the old settings. Sockets are not known here.
import { Buffer } from "node:buffer";
import { setTimeout as sleep } from "node:timers/promises";
import { ConfigError, flagOf } from "../config/option.ts";
import { describeFileError, readBytes } from "../files/read.ts";
import type { Logger } from "../log/logger.ts";
import { NetError } from "../net/errors.ts";
import type { ClientTls, Net, ServerTls } from "../net/types.ts";
import { SecretFiles } from "../files/secret_files.ts";
import { checkIdentity, type PemFile, readCertificates, readPrivateKey, readRevocationLists, type Side, unusable } from "./pem.ts";
import { checkRevocationLists } from "./revocation.ts";

/** The values of `--*.tls.*` of a server. */
export interface ServerTlsOptions {
  readonly keyPassword?: string;
  readonly file: { readonly key?: string; readonly cert?: string; readonly clientCa?: string; readonly clientCrl?: string };
}

/** The values of `--*.tls.*` of a client. */
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

/** Whether the network takes settings: what is checked is what it will be given. */
export type TlsCheck = Pick<Net, "checkServerTls" | "checkClientTls">;

/** Most bytes of a file. Lists of large authorities have some tens of megabytes. */
const MAX_FILE = 64 * 1024 * 1024;

/** Settings, and what is wrong with them but may be meant so. */
interface Checked<T> {
  readonly tls: T;
  readonly warnings: readonly string[];
}

/** Files by the last part of their option's name: `client-ca`. */
type Files = Readonly<Record<string, string | undefined>>;
type Pems = Readonly<Record<string, PemFile | undefined>>;

/**
 * The settings of the server whose options begin with `group`: `agent-server.tls`. Without certificate and key in files it shows `own`.
 * @throws {ConfigError}
 */
export async function openServerTls(
  group: string,
  options: ServerTlsOptions,
  { log, net, own }: { log: Logger; net: TlsCheck; own?: CertifiedKey },
): Promise<ReloadableTls<ServerTls>> {
  const { key, cert, clientCa, clientCrl } = options.file;
  const check = async (pems: Pems): Promise<Checked<ServerTls>> => {
    const identity = readIdentity(group, pems, options, "server");
    let tls: ServerTls | undefined = identity?.tls ?? own;
    if (tls === undefined) throw new ConfigError(`Cannot start: ${flagOf(group)}.file.key and ${flagOf(group)}.file.cert are needed`);
    const { "client-ca": caFile, "client-crl": listFile } = pems;
    if (listFile && !caFile) throw needs(group, "client-crl", "client-ca");
    const warnings = [...identity?.warnings ?? []];
    if (pems.cert) tryOut(pems.cert, () => net.checkServerTls(tls!));
    if (caFile) {
      const authorities = readCertificates(caFile, "authorities");
      tls = { ...tls, clientCa: authorities.text };
      tryOut(caFile, () => net.checkServerTls(tls!));
      if (listFile) {
        const lists = readRevocationLists(listFile);
        warnings.push(...await checkRevocationLists(listFile, lists.all, authorities.all));
        tls = { ...tls, clientCrl: lists.text };
        tryOut(listFile, () => net.checkServerTls(tls!));
      }
    }
    return { tls, warnings };
  };
  return await ReloadableTls.open(group, { key, cert, "client-ca": clientCa, "client-crl": clientCrl }, check, log);
}

/**
 * The settings of the client whose options begin with `group`: `agent-client.tls`.
 * @throws {ConfigError}
 */
export async function openClientTls(
  group: string,
  options: ClientTlsOptions,
  { log, net }: { log: Logger; net: TlsCheck },
): Promise<ReloadableTls<ClientTls>> {
  const { rootCa, key, cert } = options.file;
  const check = (pems: Pems): Promise<Checked<ClientTls>> => {
    const identity = readIdentity(group, pems, options, "client");
    const { "root-ca": rootFile } = pems;
    const believes = {
      ca: rootFile && readCertificates(rootFile, "authorities").text,
      systemRoots: options.useSystemPool,
      insecureSkipVerify: options.insecureSkipVerify,
      pinSha256: options.pinSha256 && [...options.pinSha256],
    };
    // one after the other: whose fault it is, is clear
    if (rootFile) tryOut(rootFile, () => net.checkClientTls({ ca: believes.ca }));
    const tls: ClientTls = { ...identity?.tls, ...believes };
    if (pems.cert) tryOut(pems.cert, () => net.checkClientTls({ ...identity?.tls, insecureSkipVerify: true }));
    return Promise.resolve({ tls, warnings: identity?.warnings ?? [] });
  };
  return await ReloadableTls.open(group, { "root-ca": rootCa, key, cert }, check, log);
}

/** What the network says of a file's content, as a mistake in that file. */
function tryOut(pem: PemFile, check: () => void): void {
  try {
    check();
  } catch (cause) {
    if (!(cause instanceof NetError)) throw cause;
    const why = cause.message.replace(/^Cannot [^:]*: /, "").replace(/^(?:unexpected error|invalid peer certificate): /, "");
    throw unusable(pem, why, cause);
  }
}

/**
 * Refuses options of TLS where TLS is off: whoever wrote them expects it.
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

/** Settings that follow their files. */
export class ReloadableTls<T> {
  #state: string;
  #current: T;
  #turn = Promise.resolve();
  readonly #secrets: SecretFiles;

  private constructor(
    private readonly group: string,
    private readonly files: Files,
    private readonly check: (pems: Pems) => Promise<Checked<T>>,
    private readonly log: Logger,
    state: string,
    current: T,
  ) {
    this.#state = state;
    this.#current = current;
    this.#secrets = new SecretFiles(log);
  }

  /** @throws {ConfigError} where a file cannot be read or used */
  static async open<T>(group: string, files: Files, check: (pems: Pems) => Promise<Checked<T>>, log: Logger): Promise<ReloadableTls<T>> {
    const pems = await readPems(group, files);
    const { tls, warnings } = await check(pems);
    warn(log, warnings);
    const opened = new ReloadableTls(group, files, check, log, JSON.stringify(pems), tls);
    await opened.#checkModes();
    return opened;
  }

  async #checkModes(): Promise<void> {
    if (this.files.key) await this.#secrets.check(`${flagOf(this.group)}.file.key`, this.files.key);
  }

  /** The newest that can be used. */
  get current(): T {
    return this.#current;
  }

  /**
   * Reads the files again. Where they have changed and can be used, `use` gets the new settings; where they cannot, or `use` throws, the old
   * ones are kept, and each change is logged once. Never rejects.
   */
  reload(use: (tls: T) => void = () => {}): Promise<void> {
    // one at a time: a change that two see at once is one change
    return this.#turn = this.#turn.then(() => this.#reload(use));
  }

  async #reload(use: (tls: T) => void): Promise<void> {
    const before = this.#state;
    try {
      const pems = await readPems(this.group, this.files);
      this.#state = JSON.stringify(pems);
      await this.#checkModes();
      if (this.#state === before) return;
      const { tls, warnings } = await this.check(pems);
      use(tls);
      this.#current = tls;
      this.log.info("certificates renewed", { options: flagOf(this.group) });
      warn(this.log, warnings);
    } catch (error) {
      const reason = error instanceof Error ? error.message : String(error);
      if (this.#state === before) this.#state = reason; // it could not be read
      if (this.#state !== before) {
        this.log.warn("certificate reload failed; keeping the previous certificates", { options: flagOf(this.group), reason });
      }
    }
  }
}

/** Reads files again every `intervalMs` milliseconds until it is closed; 0 never. `use` as in {@link ReloadableTls.reload}. */
export function startTlsRefresh<T>(files: ReloadableTls<T>, intervalMs: number, use?: (tls: T) => void): { close(): Promise<void> } {
  const stopping = new AbortController();
  const { signal } = stopping;
  const run = async (): Promise<void> => {
    while (intervalMs > 0 && !signal.aborted) {
      await sleep(intervalMs, undefined, { signal }).catch(() => {}); // stopping
      if (!signal.aborted) await files.reload(use);
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

function readIdentity(
  group: string,
  { key, cert }: Pems,
  options: { keyPassword?: string },
  side: Side,
): Checked<CertifiedKey> | undefined {
  if (key === undefined && cert === undefined) return undefined;
  if (cert === undefined) throw needs(group, "key", "cert");
  if (key === undefined) throw needs(group, "cert", "key");
  const chain = readCertificates(cert, "chain");
  const passwordOption = "keyPassword" in options ? `${group}.key-password` : undefined;
  const privateKey = readPrivateKey(key, options.keyPassword, passwordOption);
  const warnings = checkIdentity(cert, chain.all, key, privateKey, side);
  return { tls: { cert: chain.text, key: privateKey.export({ type: "pkcs8", format: "pem" }).toString() }, warnings };
}

function needs(group: string, given: string, missing: string): ConfigError {
  return new ConfigError(`Cannot use ${flagOf(group)}.file.${given}: ${flagOf(group)}.file.${missing} is needed too`);
}

/** An empty name is none: that is how a variable of the environment is unset in many places. */
async function readPems(group: string, files: Files): Promise<Pems> {
  const pems: Record<string, PemFile | undefined> = {};
  for (const [name, file] of Object.entries(files)) {
    if (!file) continue;
    // key and certificate in one file must not be from before and after its change
    const before = Object.values(pems).find((pem) => pem?.file === file);
    const option = `${group}.file.${name}`;
    pems[name] = { option, file, text: before ? before.text : await readPem(option, file) };
  }
  return pems;
}

async function readPem(option: string, file: string): Promise<string> {
  try {
    return Buffer.from(await readBytes(file, MAX_FILE)).toString("latin1");
  } catch (cause) {
    throw new ConfigError(`Cannot read ${flagOf(option)} ${file}: ${describeFileError(cause)}`, { cause });
  }
}

function warn(log: Logger, warnings: readonly string[]): void {
  for (const warning of warnings) log.warn("certificate may be unusable", { reason: warning });
}
