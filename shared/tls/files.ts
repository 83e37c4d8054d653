// TLS settings in files: what a server or a client is told to show and believe, checked when it starts and read again when they change. Bad
// new files keep the old settings. Sockets are not known here.
import { readFile } from "node:fs/promises";
import { setTimeout as sleep } from "node:timers/promises";
import { ConfigError, flagOf } from "../cli/option.ts";
import { describeFileError } from "../files.ts";
import type { Logger } from "../log.ts";
import type { ClientTls, ServerTls } from "../net/types.ts";
import { checkIdentity, type PemFile, readCertificates, readPrivateKey, readRevocationLists } from "./pem.ts";
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
  log: Logger,
  own?: CertifiedKey,
): Promise<TlsFiles<ServerTls>> {
  const { key, cert, clientCa, clientCrl } = options.file;
  const check = async (pems: Pems): Promise<Checked<ServerTls>> => {
    const identity = readIdentity(group, pems, options.keyPassword);
    const tls = identity?.tls ?? own;
    if (tls === undefined) throw new ConfigError(`Cannot start: ${flagOf(group)}.file.key and ${flagOf(group)}.file.cert are needed`);
    if (pems["client-crl"] && !pems["client-ca"]) throw needs(group, "client-crl", "client-ca");
    const authorities = pems["client-ca"] && readCertificates(pems["client-ca"]);
    const lists = pems["client-crl"] && readRevocationLists(pems["client-crl"]);
    const stale = lists ? await checkRevocationLists(pems["client-crl"]!, lists, authorities!) : [];
    return {
      tls: { ...tls, clientCa: pems["client-ca"]?.text, clientCrl: pems["client-crl"]?.text },
      warnings: [...identity?.warnings ?? [], ...stale],
    };
  };
  return await TlsFiles.open(group, { key, cert, "client-ca": clientCa, "client-crl": clientCrl }, check, log);
}

/**
 * The settings of the client whose options begin with `group`: `agent-client.tls`.
 * @throws {ConfigError}
 */
export async function openClientTls(group: string, options: ClientTlsOptions, log: Logger): Promise<TlsFiles<ClientTls>> {
  const { rootCa, key, cert } = options.file;
  const check = (pems: Pems): Promise<Checked<ClientTls>> => {
    const identity = readIdentity(group, pems, options.keyPassword);
    if (pems["root-ca"]) readCertificates(pems["root-ca"]);
    const tls: ClientTls = {
      ...identity?.tls,
      ca: pems["root-ca"]?.text,
      systemRoots: options.useSystemPool,
      insecureSkipVerify: options.insecureSkipVerify,
      pinSha256: options.pinSha256 && [...options.pinSha256],
    };
    return Promise.resolve({ tls, warnings: identity?.warnings ?? [] });
  };
  return await TlsFiles.open(group, { "root-ca": rootCa, key, cert }, check, log);
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
export class TlsFiles<T> {
  #state: string;
  #current: T;
  #turn = Promise.resolve();

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
  }

  /** @throws {ConfigError} where a file cannot be read or used */
  static async open<T>(group: string, files: Files, check: (pems: Pems) => Promise<Checked<T>>, log: Logger): Promise<TlsFiles<T>> {
    const pems = await readPems(group, files);
    const { tls, warnings } = await check(pems);
    warn(log, warnings);
    return new TlsFiles(group, files, check, log, JSON.stringify(pems), tls);
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
      if (this.#state === before) return;
      const { tls, warnings } = await this.check(pems);
      use(tls);
      this.#current = tls;
      this.log.info("certificates renewed", { options: flagOf(this.group) });
      warn(this.log, warnings);
    } catch (error) {
      const reason = error instanceof Error ? error.message : String(error);
      if (this.#state === before) this.#state = reason; // it could not be read
      if (this.#state !== before) this.log.warn("certificates not renewed, the old ones stay", { options: flagOf(this.group), reason });
    }
  }
}

/** Reads files again every `intervalMs` milliseconds until it is closed; 0 never. `use` as in {@link TlsFiles.reload}. */
export function refreshTls<T>(files: TlsFiles<T>, intervalMs: number, use?: (tls: T) => void): { close(): Promise<void> } {
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

function readIdentity(group: string, { key, cert }: Pems, password: string | undefined): Checked<CertifiedKey> | undefined {
  if (key === undefined && cert === undefined) return undefined;
  if (cert === undefined) throw needs(group, "key", "cert");
  if (key === undefined) throw needs(group, "cert", "key");
  const chain = readCertificates(cert);
  const privateKey = readPrivateKey(key, password, `${group}.key-password`);
  const warnings = checkIdentity(cert, chain, key, privateKey);
  return { tls: { cert: cert.text, key: privateKey.export({ type: "pkcs8", format: "pem" }).toString() }, warnings };
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
    return await readFile(file, "utf8");
  } catch (cause) {
    throw new ConfigError(`Cannot read ${flagOf(option)} ${file}: ${describeFileError(cause)}`, { cause });
  }
}

function warn(log: Logger, warnings: readonly string[]): void {
  for (const warning of warnings) log.warn("certificate of doubtful use", { reason: warning });
}
