// A certificate that a server makes for itself where it was given none, and keeps: whoever has pinned it must find it again after a restart.
import { randomBytes, webcrypto, X509Certificate } from "node:crypto";
import { link, mkdir, open, readFile, rename, rm } from "node:fs/promises";
import { hostname } from "node:os";
import { join } from "node:path";
import { ConfigError } from "../config/option.ts";
import { describeFileError } from "../files/read.ts";
import type { Logger } from "../log/logger.ts";
import { SecretFiles } from "../files/secret_files.ts";
import type { CertifiedKey } from "./files.ts";
import { type PemFile, readCertificates, readPrivateKey, unusable } from "./pem.ts";
import { loadX509 } from "./revocation.ts";

/** Where a server keeps what must outlive it. */
export interface StateDirectory {
  /** Missing: nothing is kept. */
  readonly path?: string;
  /** Whether somebody has asked for this one: it must be usable then. */
  readonly required: boolean;
}

/** A certificate made here, and what to tell those who are to trust it. */
export interface SelfSigned extends CertifiedKey {
  /** SHA-256 of the certificate (DER), 64 hexadecimal digits. */
  readonly pin: string;
  /** Missing where it ends with this process. */
  readonly file?: string;
}

/**
 * The directory for state of the user `uid` that the environment speaks of: systemd's `$STATE_DIRECTORY`, `$XDG_STATE_HOME/reverse-http`,
 * `/var/lib/reverse-http` for root, `$HOME/.local/state/reverse-http`; `undefined` without any.
 */
export function defaultStateDirectory(env: Readonly<Record<string, string | undefined>>, uid: number | undefined): string | undefined {
  const [own] = (env.STATE_DIRECTORY ?? "").split(":");
  if (own) return own;
  if (env.XDG_STATE_HOME) return join(env.XDG_STATE_HOME, "reverse-http");
  if (uid === 0) return "/var/lib/reverse-http";
  return env.HOME ? join(env.HOME, ".local", "state", "reverse-http") : undefined;
}

/**
 * The certificate kept as `name`.pem in the directory; it is made there where it is missing, readable by this user alone. Where nothing can
 * be kept, one for this process, and a warning.
 * @throws {ConfigError} where a directory that is required cannot be used, or holds something else under this name
 */
export async function openSelfSigned(name: string, directory: StateDirectory, log: Logger): Promise<SelfSigned> {
  const { path } = directory;
  if (path === undefined) return await createEphemeral("there is no state directory", log);
  const file = join(path, `${name}.pem`);
  let text;
  try {
    text = await readOrCreate(path, file);
    await new SecretFiles(log).check("the private key of the self-signed certificate", file);
  } catch (cause) {
    const why = (cause as Error).message;
    if (directory.required) throw new ConfigError(`Cannot use --state-dir ${path}: ${why}`, { cause });
    return await createEphemeral(why, log);
  }
  return parse(file, text);
}

/**
 * What {@link openSelfSigned} would use; where it is not made yet, one that is for checks alone. Makes no file.
 * @throws {ConfigError}
 */
export async function checkSelfSigned(name: string, { path, required }: StateDirectory): Promise<CertifiedKey> {
  if (path === undefined) return await makeSelfSigned();
  const file = join(path, `${name}.pem`);
  try {
    return parse(file, await readFile(file, "latin1"));
  } catch (cause) {
    if (cause instanceof ConfigError) throw cause;
    const { code } = cause as NodeJS.ErrnoException;
    if (required && code !== "ENOENT") throw new ConfigError(`Cannot use --state-dir ${path}: ${describeFileError(cause)}`, { cause });
    return await makeSelfSigned();
  }
}

function parse(file: string, text: string): SelfSigned {
  const pem: PemFile = { option: "state-dir", file, text };
  const { all: [cert], text: certText } = readCertificates(pem, "chain");
  const key = readPrivateKey(pem);
  if (!cert!.checkPrivateKey(key)) throw unusable(pem, "key and certificate do not belong together; without the file a new one is made");
  return { cert: certText, key: key.export({ type: "pkcs8", format: "pem" }).toString(), pin: pinOf(cert!), file };
}

async function createEphemeral(why: string, log: Logger): Promise<SelfSigned> {
  log.warn("the self-signed certificate cannot be kept, and its pin changes with every start; --state-dir names a place", { reason: why });
  const { cert, key } = await makeSelfSigned();
  return { cert, key, pin: pinOf(new X509Certificate(cert)) };
}

async function readOrCreate(directory: string, file: string): Promise<string> {
  try {
    return await readFile(file, "latin1");
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== "ENOENT") throw error;
  }
  await mkdir(directory, { recursive: true, mode: 0o700 });
  const { cert, key } = await makeSelfSigned();
  await create(file, `${cert.trim()}\n${key.trim()}\n`);
  return await readFile(file, "latin1"); // another process may have been first
}

/** All of the file or nothing, even after a power failure. One that is there already stays. */
async function create(file: string, text: string): Promise<void> {
  const unfinished = `${file}.${randomBytes(6).toString("hex")}`;
  try {
    const handle = await open(unfinished, "wx", 0o600);
    try {
      await handle.writeFile(text);
      await handle.sync();
    } finally {
      await handle.close();
    }
    await link(unfinished, file).catch(async (error: NodeJS.ErrnoException) => {
      // some file systems have no links
      if (error.code !== "EEXIST") await rename(unfinished, file);
    });
  } finally {
    await rm(unfinished, { force: true });
  }
}

/** Some ten years: longer than the machine that it is on. */
const LIFE_MS = 3_650 * 86_400_000;
/** Clocks differ. */
const LEAD_MS = 86_400_000;
const ALGORITHM = { name: "ECDSA", namedCurve: "P-256", hash: "SHA-256" };

async function makeSelfSigned(): Promise<CertifiedKey> {
  const x509 = await loadX509();
  const crypto = webcrypto as unknown as Crypto;
  const keys = await crypto.subtle.generateKey(ALGORITHM, true, ["sign", "verify"]);
  const names = [...new Set(["localhost", hostname()])];
  const cert = await x509.X509CertificateGenerator.createSelfSigned({
    name: "CN=reverse-http",
    keys,
    signingAlgorithm: ALGORITHM,
    notBefore: new Date(Date.now() - LEAD_MS),
    notAfter: new Date(Date.now() + LIFE_MS),
    extensions: [
      new x509.BasicConstraintsExtension(false, undefined, true),
      new x509.KeyUsagesExtension(x509.KeyUsageFlags.digitalSignature, true),
      new x509.ExtendedKeyUsageExtension([x509.ExtendedKeyUsage.serverAuth]),
      new x509.SubjectAlternativeNameExtension([
        ...names.map((value) => ({ type: "dns" as const, value })),
        { type: "ip", value: "127.0.0.1" },
        { type: "ip", value: "::1" },
      ]),
    ],
  }, crypto);
  return {
    cert: cert.toString("pem"),
    key: x509.PemConverter.encode(await crypto.subtle.exportKey("pkcs8", keys.privateKey), "PRIVATE KEY"),
  };
}

function pinOf(cert: X509Certificate): string {
  return cert.fingerprint256.replaceAll(":", "").toLowerCase();
}
