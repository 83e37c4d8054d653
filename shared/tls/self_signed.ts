// The self-signed certificate of a server without a configured one. It is stored, so that its pin stays valid after a restart.
import { webcrypto, X509Certificate } from "node:crypto";
import { mkdir, readFile } from "node:fs/promises";
import { hostname } from "node:os";
import { join } from "node:path";
import { ConfigError } from "../config/option.ts";
import { describeFileError, describeWriteError } from "../files/read.ts";
import type { StateDirectory } from "../files/state_directory.ts";
import { writeFileAtomically } from "../files/write.ts";
import type { Logger } from "../log/logger.ts";
import { SecretFiles } from "../files/secret_files.ts";
import type { CertifiedKey } from "./reloadable_tls.ts";
import { type PemFile, readCertificates, readPrivateKey, unusable } from "./pem.ts";
import { pinOf } from "./trust.ts";
import { loadX509 } from "./x509.ts";

/** Name of the proxy's certificate for agents in the state directory, without `.pem`. */
export const AGENT_CERTIFICATE = "agent-server";

/** A self-signed certificate and its pin. */
export interface SelfSigned extends CertifiedKey {
  /** SHA-256 of the certificate (DER), 64 hexadecimal digits. */
  readonly pin: string;
  /** `undefined` if the certificate is not stored. */
  readonly file?: string;
}

const NO_DIRECTORY = "Cannot keep the self-signed certificate, which all workers have: there is no state directory; set --state-dir";

/**
 * Opens the certificate `name`.pem in the state directory, and creates it if it is missing, readable by this user only. If the directory is
 * unusable and not required, logs a warning and returns a certificate for this process.
 * @throws {ConfigError} if a required directory is unusable, or the file is invalid
 */
export async function openSelfSigned(name: string, directory: StateDirectory, log: Logger): Promise<SelfSigned> {
  const { path } = directory;
  if (path === undefined && directory.required) throw new ConfigError(NO_DIRECTORY);
  if (path === undefined) return await createEphemeral("there is no state directory", log);
  const file = join(path, `${name}.pem`);
  let text;
  try {
    text = await readOrCreate(path, file);
    await new SecretFiles(log).check("the private key of the self-signed certificate", file);
  } catch (cause) {
    const why = describeWriteError(cause);
    if (directory.required) throw new ConfigError(`Cannot use --state-dir ${path}: ${why}`, { cause });
    return await createEphemeral(why, log);
  }
  return parse(file, text);
}

/**
 * Returns the certificate that {@link openSelfSigned} would use, or a temporary one if that is not created yet. Writes no file.
 * @throws {ConfigError} as {@link openSelfSigned}
 */
export async function checkSelfSigned(name: string, { path, required }: StateDirectory): Promise<CertifiedKey> {
  if (path === undefined && required) throw new ConfigError(NO_DIRECTORY);
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
  if (!cert!.checkPrivateKey(key)) throw unusable(pem, "key and certificate do not belong together; delete the file to create a new one");
  return { cert: certText, key: key.export({ type: "pkcs8", format: "pem" }).toString(), pin: pinOf(cert!), file };
}

async function createEphemeral(why: string, log: Logger): Promise<SelfSigned> {
  log.warn("self-signed certificate cannot be stored, so its pin changes with every start; set --state-dir", { reason: why });
  return await createTemporary();
}

/** Creates a certificate that is not stored. */
export async function createTemporary(): Promise<SelfSigned> {
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
  await writeFileAtomically(file, `${cert.trim()}\n${key.trim()}\n`, { mode: 0o600, existing: "keep" });
  return await readFile(file, "latin1"); // another process may have been first
}

/** Validity: ten years. */
const VALIDITY_MS = 3_650 * 86_400_000;
/** Start of the validity before the creation, because clocks differ. */
const BACKDATE_MS = 86_400_000;
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
    notBefore: new Date(Date.now() - BACKDATE_MS),
    notAfter: new Date(Date.now() + VALIDITY_MS),
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
