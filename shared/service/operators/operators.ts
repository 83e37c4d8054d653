// Who the operators are: by tokens of a file, by tokens of key files, and by an OpenID Connect issuer.
import { AuthenticationError, type SignedOut } from "../../auth/authenticator.ts";
import type { Fetch } from "../../auth/fetch.ts";
import { isForOthers, verifyLogoutToken } from "../../auth/logout_token.ts";
import { parsePublicKeys, type VerificationKey } from "../../auth/keys.ts";
import { type FindKeys, verifyOidcToken } from "../../auth/oidc_token.ts";
import { verifyOperatorToken } from "../../auth/operator_token.ts";
import { RemoteKeys } from "../../auth/remote_keys.ts";
import type { SignOut } from "../../auth/revocations.ts";
import { ConfigError } from "../../config/option.ts";
import { PolledFile } from "../../files/polled_file.ts";
import { describeFileError, readText } from "../../files/read.ts";
import { logFileError } from "../../auth/revocation_file.ts";
import type { Logger } from "../../log/logger.ts";
import type { Operator, TokenFile } from "../api/tokens.ts";
import { OidcLogin } from "./oidc_login.ts";
import type { OperatorOptions } from "./options.ts";
import { operatorOf } from "./people.ts";

/** Minimum interval between two looks at a key file, in milliseconds. */
const POLL_MS = 1_000;
const MAX_KEY_FILE = 1024 * 1024;
/** Times in milliseconds after which the issuer's keys are fetched again, and for which they serve after that. */
const REFRESH_MS = 300_000;
const MAX_STALE_MS = 3_600_000;

/** Authenticates operators by a token. */
export interface OperatorSource {
  /** The operator with this token, if any; otherwise why not, as far as that helps its owner. */
  find(token: string): Promise<Operator | undefined>;
}

export class Operators implements OperatorSource {
  /** Sign-in at the dashboard, if the options have it. */
  readonly login?: OidcLogin;
  readonly #sources: OperatorSource[] = [];
  #issuer?: IssuerTokens;
  readonly #closing: (() => void)[] = [];

  private constructor(login: OidcLogin | undefined) {
    this.login = login;
  }

  /**
   * `undefined` if the options name none.
   * @throws {ConfigError}
   */
  static async open(options: OperatorOptions, file: TokenFile | undefined, log: Logger, fetch?: Fetch): Promise<Operators | undefined> {
    const { jwt: { publicKey }, oidc } = options;
    checkOidc(oidc);
    if (file === undefined && publicKey.length === 0 && oidc.issuer === undefined) return undefined;
    const operators = new Operators(oidc.issuer === undefined || oidc.url === undefined ? undefined : await OidcLogin.open(oidc, log));
    operators.#closing.push(() => operators.login?.close());
    if (file) operators.#sources.push(file);
    if (publicKey.length > 0) operators.#sources.push(await KeyFiles.open(publicKey, log));
    if (oidc.issuer !== undefined) {
      const keys = new RemoteKeys({
        source: { issuer: oidc.issuer },
        refreshMs: REFRESH_MS,
        maxStaleMs: MAX_STALE_MS,
        onRemoved: () => {},
        log,
        fetch,
      });
      operators.#closing.push(() => keys.close());
      operators.#issuer = new IssuerTokens(oidc, keys, log);
      operators.#sources.push(operators.#issuer);
    }
    return operators;
  }

  async find(token: string): Promise<Operator | undefined> {
    for (const source of this.#sources) {
      const found = await source.find(token);
      if (found !== undefined) return found;
    }
    return undefined;
  }

  /**
   * Ends the sessions at the dashboard of a person who has signed out at the issuer, by its logout token; `undefined` if people do not sign in
   * here, or the token is for another client.
   * @throws {AuthenticationError} if it is not valid, or cannot be checked now
   */
  async signOut(logoutToken: string): Promise<SignedOut | undefined> {
    if (this.login === undefined || this.#issuer === undefined) return undefined;
    const signOut = await this.#issuer.readLogout(logoutToken);
    return signOut && { target: signOut.subject ?? signOut.session!, affected: this.login.signOut(signOut) };
  }

  close(): void {
    for (const close of this.#closing) close();
  }
}

/** @throws {ConfigError} */
function checkOidc({ issuer, clientId, clientSecretFile, url, operators, viewers }: OperatorOptions["oidc"]): void {
  const fail = (option: string, why: string) => new ConfigError(`Cannot use --admin.oidc.${option}: ${why}`);
  if (issuer === undefined) {
    const given = [["client-id", clientId], ["client-secret-file", clientSecretFile], ["url", url], ["operators", operators[0]], [
      "viewers",
      viewers[0],
    ]].find(([, value]) => value !== undefined);
    if (given) throw fail(given[0]!, "--admin.oidc.issuer is not set");
    return;
  }
  if (clientId === undefined) throw fail("issuer", "it needs --admin.oidc.client-id, or the issuer's tokens for other services would do");
  if (operators.length + viewers.length === 0) {
    throw fail("issuer", "set --admin.oidc.operators or --admin.oidc.viewers: without a group, nothing is permitted to anyone");
  }
}

/** Tokens of `auth jwt operator`. */
class KeyFiles implements OperatorSource {
  readonly #files: readonly PolledFile<VerificationKey[]>[];
  readonly #log: Logger;
  #polledAt = performance.now();

  private constructor(files: readonly PolledFile<VerificationKey[]>[], log: Logger) {
    this.#files = files;
    this.#log = log;
  }

  /** @throws {ConfigError} */
  static async open(names: readonly string[], log: Logger): Promise<KeyFiles> {
    const files = names.map((name) => new PolledFile(name, async (name) => await parsePublicKeys(await readText(name, MAX_KEY_FILE))));
    for (const file of files) {
      await file.poll().catch((cause) => {
        throw new ConfigError(`Cannot use --admin.jwt.public-key ${JSON.stringify(file.name)}: ${describeFileError(cause)}`, { cause });
      });
    }
    return new KeyFiles(files, log);
  }

  async find(token: string): Promise<Operator | undefined> {
    if (performance.now() - this.#polledAt >= POLL_MS) {
      this.#polledAt = performance.now();
      for (const file of this.#files) await file.poll().catch((error) => logFileError(this.#log, file, error));
    }
    try {
      const { name, role } = await verifyOperatorToken(token, this.#files.flatMap(({ value }) => value), Date.now());
      return { name, role };
    } catch (error) {
      return logDenial(this.#log, error);
    }
  }
}

/** Tokens of the issuer, which programs send, and its logout tokens. */
class IssuerTokens implements OperatorSource {
  readonly #find: FindKeys = (kid, algorithm, ageMs) => this.keys.find(kid, algorithm, ageMs);

  constructor(
    private readonly options: OperatorOptions["oidc"],
    private readonly keys: RemoteKeys,
    private readonly log: Logger,
  ) {}

  async find(token: string): Promise<Operator | undefined> {
    const { issuer, clientId, nameClaim, groupsClaim } = this.options;
    if (!/^[\w-]+\.[\w-]+\.[\w-]+$/.test(token)) return undefined;
    const expected = { issuer: issuer!, audiences: [clientId!], nameClaim, groupsClaim, now: Date.now() };
    try {
      this.keys.poll();
      return operatorOf(
        await verifyOidcToken(token, this.#find, expected),
        this.options,
      );
    } catch (error) {
      return logDenial(this.log, error);
    }
  }

  /**
   * The end of a session that a logout token reports; `undefined` if it is for another client.
   * @throws {AuthenticationError}
   */
  async readLogout(text: string): Promise<SignOut | undefined> {
    const { issuer, clientId } = this.options;
    const expected = { issuer: issuer!, audiences: [clientId!], now: Date.now() };
    if (isForOthers(text, expected)) return undefined;
    this.keys.poll();
    return await verifyLogoutToken(text, this.#find, expected);
  }
}

/** The reason is for the log only; the sender of an invalid token does not get it. */
function logDenial(log: Logger, error: unknown): undefined {
  if (!(error instanceof AuthenticationError)) throw error;
  log.debug("token of an operator refused", { reason: error.message });
}
