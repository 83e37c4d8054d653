// A client of an OpenID Connect issuer, which gets tokens from it: by device login (RFC 8628), with a refresh token, or with its own
// credentials (RFC 6749 §4.4). The protocol is openid-client's.
import { importPKCS8 } from "jose";
import type { ClientAuth, Configuration } from "openid-client";
import { printable } from "../net/printable.ts";
import { boundedFetch, describeFetchError, describeStatus, type Fetch } from "./fetch.ts";
import type { SigningKey } from "./keys.ts";

export interface IssuerClientOptions {
  /** URL of the issuer. */
  readonly issuer: string;
  readonly clientId: string;
  /** How the client authenticates; default: it has no credentials (a public client). */
  readonly secret?: string;
  /** Private key for `private_key_jwt` (RFC 7523), instead of the secret. */
  readonly key?: SigningKey;
  /** Default: the runtime's. */
  readonly fetch?: Fetch;
}

/** The parameters of a request for tokens. */
export interface TokenScope {
  readonly scopes: readonly string[];
  /** Parameter `audience`, which some issuers know. Default: none. */
  readonly audience?: string;
  /** Parameter `resource` (RFC 8707). Default: none. */
  readonly resource?: string;
}

export interface IssuedTokens {
  readonly accessToken: string;
  readonly idToken?: string;
  readonly refreshToken?: string;
  /** Lifetime of the access token in milliseconds, if the issuer says it. */
  readonly lifetimeMs?: number;
}

/** The instructions for a person's device login. */
export interface DeviceCode {
  readonly userCode: string;
  readonly url: string;
  /** URL that contains the code, if the issuer gives one. */
  readonly completeUrl?: string;
  /** Time in milliseconds for which the code is valid. */
  readonly validMs: number;
}

/** An issuer gives no tokens. The message is one line, without secrets. */
export class IssuerError extends Error {
  override readonly name = "IssuerError";
  /**
   * @param kind `unreachable`: it gives no usable answer now; `refused`: it does not permit this; `ended`: the refresh token or the device code
   * is no longer valid
   * @param message one line
   */
  constructor(readonly kind: "unreachable" | "refused" | "ended", message: string, options?: ErrorOptions) {
    super(message, options);
  }
}

/** Time in seconds for one response, and the largest one in bytes. */
const TIMEOUT_S = 10;
const MAX_RESPONSE = 512 * 1024;
/** Longest time in milliseconds that a device login waits for a person, whatever the issuer says. */
const MAX_DEVICE_MS = 30 * 60_000;
/** Longest lifetime of a token in milliseconds that is believed: issuers may say anything, and some mean "forever". */
const MAX_LIFETIME_MS = 3_650 * 86_400_000;
/** Least and largest interval of its requests, in seconds. */
const MIN_INTERVAL_S = 1;
const MAX_INTERVAL_S = 60;

type Client = typeof import("openid-client");

export class IssuerClient {
  readonly #issuer: string;
  readonly #client: Client;
  readonly #config: Configuration;

  /**
   * Reads the issuer's discovery document.
   * @throws {IssuerError}
   */
  static async open(options: IssuerClientOptions): Promise<IssuerClient> {
    const { issuer, clientId, fetch = globalThis.fetch } = options;
    const client = await import("openid-client"); // most runs need none
    const auth = await authentication(client, options);
    const config = await attempt(issuer, () =>
      client.discovery(new URL(issuer), clientId, undefined, auth, {
        [client.customFetch]: boundedFetch(fetch, MAX_RESPONSE) as never,
        timeout: TIMEOUT_S,
        // an option with http is one of this machine
        execute: issuer.startsWith("http:") ? [client.allowInsecureRequests] : [],
      }));
    return new IssuerClient(issuer, client, config);
  }

  private constructor(issuer: string, client: Client, config: Configuration) {
    this.#issuer = issuer;
    this.#client = client;
    this.#config = config;
  }

  /**
   * Signs a person in with a code, which `show` is called with, and waits until that is done.
   * @throws {IssuerError}
   */
  async signIn(scope: TokenScope, show: (code: DeviceCode) => void | Promise<void>): Promise<IssuedTokens> {
    if (this.#config.serverMetadata().device_authorization_endpoint === undefined) {
      throw new IssuerError("refused", `The issuer ${this.#issuer} has no device login: its discovery document names no endpoint for it`);
    }
    const response = await this.#attempt(() => this.#client.initiateDeviceAuthorization(this.#config, parametersOf(scope)));
    const validMs = Math.min(response.expires_in * 1_000, MAX_DEVICE_MS);
    await show({
      userCode: printable(response.user_code),
      url: printable(response.verification_uri),
      completeUrl: response.verification_uri_complete && printable(response.verification_uri_complete),
      validMs,
    });
    const signal = AbortSignal.timeout(validMs);
    const interval = Math.min(Math.max(response.interval ?? 5, MIN_INTERVAL_S), MAX_INTERVAL_S);
    for (;;) {
      try {
        return await this.#tokens(() =>
          this.#client.pollDeviceAuthorizationGrant(this.#config, { ...response, interval }, resourceOf(scope), { signal })
        );
      } catch (cause) {
        if (signal.aborted) throw new IssuerError("ended", "The code has expired", { cause });
        if (!(cause instanceof IssuerError) || cause.kind !== "unreachable") throw cause; // the next poll may reach it
      }
    }
  }

  /**
   * Gets tokens with a refresh token.
   * @throws {IssuerError} `ended` if it is no longer valid
   */
  async refresh(refreshToken: string, scope: TokenScope): Promise<IssuedTokens> {
    return await this.#tokens(() => this.#client.refreshTokenGrant(this.#config, refreshToken, resourceOf(scope)));
  }

  /**
   * Gets a token for the client itself.
   * @throws {IssuerError}
   */
  async clientCredentials(scope: TokenScope): Promise<IssuedTokens> {
    return await this.#tokens(() => this.#client.clientCredentialsGrant(this.#config, parametersOf(scope)));
  }

  /**
   * Revokes a token (RFC 7009). Returns whether the issuer can do that.
   * @throws {IssuerError}
   */
  async revoke(token: string): Promise<boolean> {
    if (this.#config.serverMetadata().revocation_endpoint === undefined) return false;
    await this.#attempt(() => this.#client.tokenRevocation(this.#config, token));
    return true;
  }

  async #tokens(request: () => ReturnType<Client["clientCredentialsGrant"]>): Promise<IssuedTokens> {
    const { access_token: accessToken, id_token: idToken, refresh_token: refreshToken, expires_in: seconds } = await this.#attempt(request);
    const lifetimeMs = seconds === undefined ? undefined : Math.min(seconds * 1_000, MAX_LIFETIME_MS);
    return { accessToken, idToken, refreshToken, lifetimeMs };
  }

  async #attempt<T>(request: () => Promise<T>): Promise<T> {
    return await attempt(this.#issuer, request);
  }
}

function parametersOf(scope: TokenScope): Record<string, string> {
  const { scopes } = scope;
  return { ...scopes.length > 0 && { scope: scopes.join(" ") }, ...resourceOf(scope) };
}

function resourceOf({ audience, resource }: TokenScope): Record<string, string> {
  return { ...audience !== undefined && { audience }, ...resource !== undefined && { resource } };
}

async function authentication(client: Client, { secret, key }: IssuerClientOptions): Promise<ClientAuth> {
  if (key !== undefined) {
    const pem = String(key.key.export({ type: "pkcs8", format: "pem" }));
    return client.PrivateKeyJwt(await importPKCS8(pem, key.algorithm));
  }
  if (secret === undefined) return client.None();
  const [basic, post] = [client.ClientSecretBasic(secret), client.ClientSecretPost(secret)];
  return (server, ...rest) => {
    // without the list it is Basic (OpenID Connect Discovery 1.0 §3)
    const { token_endpoint_auth_methods_supported: methods = ["client_secret_basic"] } = server;
    return (methods.includes("client_secret_basic") || !methods.includes("client_secret_post") ? basic : post)(server, ...rest);
  };
}

/** Describes an error of the library. @throws {IssuerError} */
async function attempt<T>(issuer: string, request: () => Promise<T>): Promise<T> {
  try {
    return await request();
  } catch (cause) {
    const { error, error_description: text, status, code } = cause as Partial<
      Record<"error" | "error_description" | "code", string> & { status: number }
    >;
    if (typeof error === "string") {
      const kind = error === "invalid_grant" || error === "expired_token" ? "ended" : (status ?? 0) >= 500 ? "unreachable" : "refused";
      throw new IssuerError(kind, refusalOf(issuer, error, text), { cause });
    }
    // errors of fetch, and statuses such as 503; other answers are wrong, and asking again would not help
    const isUnreachable = code === undefined || code === "OAUTH_TIMEOUT" || code === "OAUTH_RESPONSE_IS_NOT_CONFORM";
    const kind = isUnreachable ? "unreachable" : "refused";
    throw new IssuerError(kind, `The issuer ${issuer} gives no usable answer: ${printable(reasonOf(cause, code))}`, { cause });
  }
}

const REASONS: Readonly<Record<string, string>> = {
  access_denied: "the sign-in was denied",
  expired_token: "the code has expired",
  invalid_client: "it does not know the client, or not with this secret or key",
  invalid_grant: "the sign-in has ended, or was revoked",
  unauthorized_client: "the client may not use this grant: enable it for the client there",
  unsupported_grant_type: "it does not support this grant",
  invalid_scope: "it does not know one of the scopes",
  invalid_target: "it does not know the resource or the audience",
};

function refusalOf(issuer: string, error: string, description: string | undefined): string {
  const details = [printable(error, 64), description && printable(description)].filter(Boolean).join(": ");
  const reason = Object.hasOwn(REASONS, error) ? REASONS[error] : undefined;
  return `The issuer ${issuer} refuses: ${reason === undefined ? details : `${reason} (${details})`}`;
}

/** The innermost reason, such as ECONNREFUSED. */
function reasonOf(error: unknown, code: string | undefined): string {
  if (code === "OAUTH_TIMEOUT") return `no response within ${TIMEOUT_S} s`;
  const { cause: response, message } = error as Error;
  if (!(response instanceof Response)) return describeFetchError(error);
  return response.ok ? `its response cannot be used: ${message}` : `it responds with ${describeStatus(response.status)}`;
}
