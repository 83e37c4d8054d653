// The session of a person at an OpenID Connect issuer: a file with the tokens that a device login has obtained. Several programs of the
// user share it; each renews the tokens when they are about to expire.
import { decodeJwt } from "jose";
import { timeOf } from "../shared/auth/claim_time.ts";
import { type IssuedTokens, IssuerClient, type IssuerClientOptions, IssuerError, type TokenScope } from "../shared/auth/issuer_client.ts";
import { MAX_TOKEN } from "../shared/auth/token.ts";
import { ConfigError } from "../shared/config/option.ts";
import { withLock } from "../shared/files/lock.ts";
import { describeFileError, readText } from "../shared/files/read.ts";
import { findExposure } from "../shared/files/secret_files.ts";
import { writeFileAtomically } from "../shared/files/write.ts";
import { messageOf } from "../shared/log/error_message.ts";
import type { ClientOptions } from "./options.ts";
import { TunnelFailure } from "./tunnel_failure.ts";

/** The options of a session. */
export type SessionOptions = Pick<
  ClientOptions,
  "issuer" | "clientId" | "clientSecret" | "scopes" | "audience" | "resource" | "tokenKind" | "sessionFile"
>;

/** The content of the file, as JSON. Times are in milliseconds since 1970. */
export interface Session {
  readonly issuer: string;
  readonly clientId: string;
  /** The token for the proxy. */
  readonly token: string;
  readonly issuedAt: number;
  readonly expiresAt: number;
  /** Missing if the issuer gave none: the session ends with the token. */
  readonly refreshToken?: string;
}

/** Largest file in bytes. */
const MAX_FILE = 64 * 1024;
/** Tokens are renewed this time in milliseconds before they expire, or when a third of their lifetime is left, whichever is later. */
const MARGIN_MS = 60_000;
/** A renewal takes three requests at most, of 10 s each. */
const LOCK = { staleMs: 40_000, timeoutMs: 45_000 };

/** @throws {ConfigError} for options that need others */
export function checkSessionOptions({ issuer, clientId, clientSecret }: SessionOptions): void {
  if (issuer !== undefined && clientId === undefined) throw new ConfigError("Cannot use --issuer: --client-id is required too");
  const unused = [["client-id", clientId], ["client-secret", clientSecret]].find(([, value]) =>
    issuer === undefined && value !== undefined
  );
  if (unused) throw new ConfigError(`Cannot use --${unused[0]}: --issuer is not set`);
}

/**
 * The token for the proxy, renewed if it is about to expire.
 * @throws {ConfigError} for a file that cannot be used
 * @throws {TunnelFailure} `denied` if the session has ended, or cannot be renewed
 */
export async function readSessionToken(options: SessionOptions, now: () => number = Date.now): Promise<string> {
  const file = fileOf(options);
  const session = await readSession(file, options);
  if (now() < renewalOf(session)) return session.token;
  try {
    return await withLock(`${file}.lock`, LOCK, () => renew(file, options, now));
  } catch (cause) {
    if (cause instanceof ConfigError || cause instanceof TunnelFailure) throw cause;
    if (now() < session.expiresAt) return session.token; // the next connection tries again
    throw new TunnelFailure("denied", `The token of ${session.issuer} has expired and cannot be renewed: ${messageOf(cause)}`, { cause });
  }
}

/** Renews the token, unless another process has. */
async function renew(file: string, options: SessionOptions, now: () => number): Promise<string> {
  const session = await readSession(file, options);
  if (now() < renewalOf(session)) return session.token;
  const { refreshToken, issuer } = session;
  const end = (why: string, cause?: unknown) =>
    new TunnelFailure("denied", `The session at ${issuer} has ended: ${why}; sign in again with reverse-http login`, { cause });
  if (refreshToken === undefined) {
    if (now() < session.expiresAt) return session.token;
    throw end("the issuer gave no refresh token, which the scope offline_access may ask for");
  }
  try {
    const issued = await (await openIssuer(options)).refresh(refreshToken, scopeOf(options));
    const renewed = sessionOf(options, { ...issued, refreshToken: issued.refreshToken ?? refreshToken }, now());
    await writeSession(file, renewed);
    return renewed.token;
  } catch (cause) {
    if (cause instanceof IssuerError && cause.kind === "ended") throw end(cause.message, cause);
    throw cause;
  }
}

function renewalOf({ issuedAt, expiresAt }: Session): number {
  return expiresAt - Math.min(MARGIN_MS, (expiresAt - issuedAt) / 3);
}

/** @throws {IssuerError | ConfigError} */
export async function openIssuer(options: SessionOptions): Promise<IssuerClient> {
  const { issuer, clientId, clientSecret } = options;
  const access: IssuerClientOptions = { issuer: issuer!, clientId: clientId!, secret: await readSecret(clientSecret) };
  return await IssuerClient.open(access);
}

export function scopeOf({ scopes, audience, resource }: SessionOptions): TokenScope {
  return { scopes, audience, resource };
}

/**
 * The session of new tokens.
 * @throws {IssuerError} if the proxy cannot use them
 */
export function sessionOf({ issuer, clientId, tokenKind }: SessionOptions, tokens: IssuedTokens, now: number): Session {
  const { accessToken, idToken, refreshToken, lifetimeMs } = tokens;
  const token = tokenKind === "id" ? idToken : accessToken;
  const refuse = (why: string) => new IssuerError("refused", `The issuer ${issuer} ${why}`);
  if (token === undefined) throw refuse("gives no ID token: add openid to --scopes, or use --token-kind=access");
  const expiresAt = expiryOf(token);
  if (expiresAt === undefined) {
    throw refuse(
      "gives access tokens that the proxy cannot verify, because they are not JWT: set --audience or --resource, or --token-kind=id",
    );
  }
  if (token.length > MAX_TOKEN) throw refuse(`gives tokens of ${token.length} bytes, and ${MAX_TOKEN} is the limit`);
  // the clock of this machine may be wrong
  const end = tokenKind === "access" && lifetimeMs !== undefined ? Math.min(expiresAt, now + lifetimeMs) : expiresAt;
  return { issuer: issuer!, clientId: clientId!, token, issuedAt: now, expiresAt: end, refreshToken };
}

function expiryOf(token: string): number | undefined {
  try {
    return timeOf(decodeJwt(token).exp);
  } catch {
    return undefined;
  }
}

export async function writeSession(file: string, session: Session): Promise<void> {
  await writeFileAtomically(file, `${JSON.stringify(session, null, 2)}\n`, { mode: 0o600, existing: "replace" });
}

function fileOf({ sessionFile }: SessionOptions): string {
  if (sessionFile !== undefined) return sessionFile;
  throw new ConfigError("Cannot use --issuer: --session-file is required too; reverse-http login writes it, and a profile that names it");
}

/**
 * Reads the session of these options.
 * @throws {ConfigError} if there is none, or other users can read it
 */
export async function readSession(file: string, { issuer, clientId }: SessionOptions): Promise<Session> {
  const fail = (why: string, cause?: unknown) => new ConfigError(`Cannot use the session ${file}: ${why}`, { cause });
  const text = await readText(file, MAX_FILE).catch((cause) => {
    if (cause.code === "ENOENT") throw fail("there is none; sign in with reverse-http login", cause);
    throw fail(describeFileError(cause), cause);
  });
  const exposure = await findExposure(file);
  if (exposure) throw fail(`other users may read it (mode ${exposure.mode}); run ${exposure.remedy}`);
  let session: Partial<Session>;
  try {
    session = JSON.parse(text) ?? {};
  } catch {
    throw fail("it is damaged; sign in again with reverse-http login"); // an error of JSON.parse would quote it
  }
  const { token, refreshToken, issuedAt, expiresAt } = session;
  const isValid = typeof token === "string" && typeof issuedAt === "number" && typeof expiresAt === "number" &&
    (refreshToken === undefined || typeof refreshToken === "string");
  if (!isValid) throw fail("it is damaged; sign in again with reverse-http login");
  if (session.issuer !== issuer || session.clientId !== clientId) {
    throw fail(`it is of the issuer ${session.issuer} and the client ${session.clientId}; sign in again with reverse-http login`);
  }
  return session as Session;
}

const FILE = "file:";

/** A secret, or that of the file that it names. @throws {ConfigError} */
async function readSecret(text: string | undefined): Promise<string | undefined> {
  if (!text?.startsWith(FILE)) return text;
  const file = text.slice(FILE.length);
  const secret = await readText(file, MAX_TOKEN).catch((cause) => {
    throw new ConfigError(`Cannot read --client-secret ${FILE}${file}: ${describeFileError(cause)}`, { cause });
  });
  return secret.trim();
}
