// Sign-in at the dashboard with an OpenID Connect issuer: the authorization code flow with PKCE (RFC 7636), and sessions by a cookie. What a
// sign-in has begun with is in an encrypted cookie of the browser, so strangers cannot fill memory.
import { createHash, randomBytes } from "node:crypto";
import { EncryptJWT, errors, jwtDecrypt } from "jose";
import type * as OpenIdClient from "openid-client";
import { Gate, GateFull } from "../../async/gate.ts";
import { AuthenticationError } from "../../auth/authenticator.ts";
import { boundedFetch, describeFetchError, describeStatus } from "../../auth/fetch.ts";
import { personOf } from "../../auth/oidc_token.ts";
import { endsWith, type Revocable, type SignOut } from "../../auth/revocations.ts";
import { ConfigError } from "../../config/option.ts";
import { describeFileError, readText } from "../../files/read.ts";
import { SecretFiles } from "../../files/secret_files.ts";
import { messageOf } from "../../log/error_message.ts";
import { LogLimit } from "../../log/limit.ts";
import type { Logger } from "../../log/logger.ts";
import { printable } from "../../net/printable.ts";
import type { Operator } from "../api/tokens.ts";
import { operatorOf } from "./people.ts";
import type { OperatorOptions } from "./options.ts";

const [SESSION_COOKIE, LOGIN_COOKIE] = ["reverse-http-session", "reverse-http-login"];
/** Sessions that are open at once; the oldest ends for a new one. */
const MAX_SESSIONS = 1_000;
/** Time in seconds for a sign-in at the issuer. */
const LOGIN_S = 600;
/** Time in seconds for a response of the issuer, and the difference between clocks that is tolerated. */
const TIMEOUT_S = 10;
const LEEWAY_S = 60;
const MAX_SECRET = 4_096;
/** Codes that are exchanged at the issuer at once, and those that wait: anyone can send some. */
const MAX_EXCHANGES = 8;
const MAX_WAITING = 64;
/** Longest response of the issuer in bytes. */
const MAX_RESPONSE = 512 * 1024;

/** A person cannot sign in. The message says why, for the browser. */
export class LoginError extends Error {
  override readonly name = "LoginError";
  constructor(readonly status: 400 | 403 | 502 | 503, message: string, options?: ErrorOptions) {
    super(message, options);
  }
}

type Options = OperatorOptions["oidc"];

/** The library, and its metadata of the issuer. */
interface Provider {
  readonly oidc: typeof OpenIdClient;
  readonly configuration: OpenIdClient.Configuration;
}

interface Session {
  readonly operator: Operator;
  /** What the issuer's logout tokens name. */
  readonly issued: Pick<Revocable, "subject" | "session" | "issuedAt">;
  /** Milliseconds of the monotonic clock. */
  readonly endsAt: number;
}

export class OidcLogin {
  readonly issuer: string;
  /** URL of the dashboard, with a slash at the end. */
  readonly url: URL;
  readonly #options: Options;
  readonly #secret?: string;
  readonly #log: Logger;
  readonly #failures: LogLimit;
  readonly #gate = new Gate(MAX_EXCHANGES, MAX_WAITING);
  /** Encrypts the state of a pending sign-in. */
  readonly #key = randomBytes(32);
  /** By the hash of their cookie. The oldest is first. */
  readonly #sessions = new Map<string, Session>();
  #provider?: Promise<Provider>;

  private constructor(options: Options, secret: string | undefined, log: Logger) {
    this.#options = options;
    this.#secret = secret;
    this.#log = log;
    this.#failures = new LogLimit({ log });
    this.issuer = options.issuer!;
    this.url = new URL(options.url!.replace(/\/?$/, "/"));
  }

  /** @throws {ConfigError} if the secret cannot be read */
  static async open(options: Options, log: Logger): Promise<OidcLogin> {
    const { clientSecretFile: file } = options;
    if (file === undefined) return new OidcLogin(options, undefined, log);
    const fail = (why: string, cause?: unknown) =>
      new ConfigError(`Cannot use --admin.oidc.client-secret-file ${JSON.stringify(file)}: ${why}`, { cause });
    const secret = (await readText(file, MAX_SECRET).catch((cause) => {
      throw fail(describeFileError(cause), cause);
    })).trim();
    if (secret === "") throw fail("it is empty");
    await new SecretFiles(log).check("--admin.oidc.client-secret-file", file);
    return new OidcLogin(options, secret, log);
  }

  /** The issuer, asked at the first sign-in and after a failure. */
  async #discover(): Promise<Provider> {
    const discovery = this.#provider ??= (async () => {
      const oidc = await import("openid-client"); // most services do without
      const url = new URL(this.issuer);
      // http is only to this machine
      const options = {
        timeout: TIMEOUT_S,
        execute: url.protocol === "http:" ? [oidc.allowInsecureRequests] : [],
        [oidc.customFetch]: boundedFetch(globalThis.fetch, MAX_RESPONSE) as never, // the types differ in the buffers that a body may be
      };
      const metadata = { [oidc.clockTolerance]: LEEWAY_S };
      const authentication = this.#secret === undefined ? oidc.None() : oidc.ClientSecretBasic(this.#secret);
      const configuration = await oidc.discovery(url, this.#options.clientId!, metadata, authentication, options);
      oidc.enableNonRepudiationChecks(configuration); // verifies signatures of id tokens
      return { oidc, configuration };
    })();
    try {
      return await discovery;
    } catch (cause) {
      this.#provider = undefined;
      this.#failures.warn("the issuer of operators cannot be asked", { issuer: this.issuer, reason: describe(cause) });
      throw new LoginError(502, "The identity provider cannot be asked; the log of the service says why", { cause });
    }
  }

  get #redirectUri(): string {
    return new URL("login/callback", this.url).href;
  }

  /**
   * Begins a sign-in.
   * @throws {LoginError}
   */
  async begin(): Promise<Response> {
    const { oidc, configuration } = await this.#discover();
    const [verifier, state, nonce] = [oidc.randomPKCECodeVerifier(), oidc.randomState(), oidc.randomNonce()];
    const target = oidc.buildAuthorizationUrl(configuration, {
      redirect_uri: this.#redirectUri,
      scope: "openid profile email",
      code_challenge: await oidc.calculatePKCECodeChallenge(verifier),
      code_challenge_method: "S256",
      state,
      nonce,
    });
    const begun = await new EncryptJWT({ verifier, state, nonce }).setProtectedHeader({ alg: "dir", enc: "A256GCM" })
      .setExpirationTime(`${LOGIN_S}s`).encrypt(this.#key);
    // Lax: the issuer sends the browser back from another site
    return redirect(target.href, [this.#cookie(LOGIN_COOKIE, begun, LOGIN_S, "Lax")]);
  }

  /**
   * Ends a sign-in: opens a session, and leads to the dashboard.
   * @param query of the redirect
   * @param cookies the field Cookie
   * @throws {LoginError}
   */
  async finish(query: string, cookies: string | undefined): Promise<Response> {
    const { oidc, configuration } = await this.#discover();
    const { verifier, state, nonce } = await this.#begun(cookies);
    let opened: Omit<Session, "endsAt">;
    try {
      const tokens = await this.#gate.run(() =>
        oidc.authorizationCodeGrant(configuration, new URL(`${this.#redirectUri}${query}`), {
          pkceCodeVerifier: verifier,
          expectedState: state,
          expectedNonce: nonce,
          idTokenExpected: true,
        })
      );
      const deny = (why: string) => new AuthenticationError("denied", `The id token ${why}`);
      const claims = tokens.claims()!;
      const { sub: subject, sid, iat } = claims;
      opened = {
        operator: operatorOf(personOf(claims, this.#options, deny), this.#options),
        issued: { subject, session: typeof sid === "string" ? sid : undefined, issuedAt: iat * 1_000 },
      };
    } catch (cause) {
      if (cause instanceof GateFull) throw new LoginError(503, "Too many sign-ins wait for the identity provider: try again", { cause });
      const isDenied = cause instanceof AuthenticationError;
      this.#failures.warn("an operator could not sign in", { issuer: this.issuer, reason: describe(cause) });
      throw new LoginError(403, isDenied ? cause.message : "The identity provider's answer is not accepted; the log says why", { cause });
    }
    const id = randomBytes(32).toString("base64url");
    this.#open(id, opened);
    const { name, role, subject } = opened.operator;
    this.#log.info("operator signed in", { by: name, subject, role });
    return redirect(this.url.href, [
      this.#cookie(SESSION_COOKIE, id, Math.floor(this.#options.session / 1_000), "Strict"),
      this.#cookie(LOGIN_COOKIE, "", 0, "Lax"),
    ]);
  }

  async #begun(cookies: string | undefined): Promise<{ verifier: string; state: string; nonce: string }> {
    try {
      const { payload } = await jwtDecrypt(cookieIn(cookies, LOGIN_COOKIE) ?? "", this.#key);
      return payload as unknown as { verifier: string; state: string; nonce: string }; // only this process can have encrypted it
    } catch (cause) {
      if (!(cause instanceof errors.JOSEError)) throw cause;
      throw new LoginError(400, "This sign-in has not begun here, or took more than ten minutes: begin again", { cause });
    }
  }

  #open(id: string, opened: Omit<Session, "endsAt">): void {
    const now = performance.now();
    for (const [key, { endsAt }] of this.#sessions) {
      if (endsAt > now && this.#sessions.size < MAX_SESSIONS) break; // all live as long, so the oldest ends first
      this.#sessions.delete(key);
    }
    this.#sessions.set(hashOf(id), { ...opened, endsAt: now + this.#options.session });
  }

  /** The operator of the session that the field Cookie names. */
  find(cookies: string | undefined): Operator | undefined {
    const id = cookieIn(cookies, SESSION_COOKIE);
    const session = id === undefined ? undefined : this.#sessions.get(hashOf(id));
    return session !== undefined && session.endsAt > performance.now() ? session.operator : undefined;
  }

  /** Ends the session. Returns the cookie that says so. */
  end(cookies: string | undefined): string {
    const id = cookieIn(cookies, SESSION_COOKIE);
    if (id !== undefined) this.#sessions.delete(hashOf(id));
    return this.#cookie(SESSION_COOKIE, "", 0, "Strict");
  }

  /** Ends the sessions that began in one of the issuer's that has ended. Returns how many these are. */
  signOut(signOut: SignOut): number {
    const ended = [...this.#sessions].filter(([, { issued }]) => endsWith(issued, signOut));
    for (const [key] of ended) this.#sessions.delete(key);
    return ended.length;
  }

  close(): void {
    this.#failures.close();
  }

  #cookie(name: string, value: string, maxAgeS: number, sameSite: "Strict" | "Lax"): string {
    const secure = this.url.protocol === "https:" ? "; Secure" : "";
    return `${name}=${value}; Path=${this.url.pathname}; Max-Age=${maxAgeS}; HttpOnly; SameSite=${sameSite}${secure}`;
  }
}

function redirect(location: string, cookies: readonly string[]): Response {
  const headers = new Headers({ "Location": location, "Cache-Control": "no-store", "Referrer-Policy": "no-referrer" });
  for (const cookie of cookies) headers.append("Set-Cookie", cookie);
  return new Response(null, { status: 303, headers });
}

function cookieIn(cookies: string | undefined, name: string): string | undefined {
  return cookies?.split(/; */).find((pair) => pair.startsWith(`${name}=`))?.slice(name.length + 1);
}

function hashOf(id: string): string {
  return createHash("sha256").update(id).digest("hex");
}

/** The library's errors have the issuer's reason as a property, and its response as the cause. */
function describe(error: unknown): string {
  const { error_description: description, error: code, cause } = error as { error_description?: string; error?: string; cause?: unknown };
  const reason = cause instanceof Response && !cause.ok
    ? `it responds with ${describeStatus(cause.status)}`
    : cause instanceof Error
    ? describeFetchError(cause)
    : undefined;
  const parts = [messageOf(error), code, description, reason].filter((part) => typeof part === "string" && part !== "");
  return printable(parts.join(": "), 300);
}
