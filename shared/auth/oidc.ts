// Authentication of clients by tokens of an OpenID Connect issuer, and closing what was opened with a token that has expired, is revoked, or
// whose key is no longer published.
import { ConfigError } from "../config/option.ts";
import type { Logger } from "../log/logger.ts";
import { ALL_AGENTS } from "./agent_list.ts";
import { AuthenticationError, type ClientCredentials, isToken } from "./authenticator.ts";
import type { Fetch } from "./fetch.ts";
import type { OnExpiry } from "./jwt.ts";
import { everySecond, LiveCredentials } from "./live_credentials.ts";
import { OIDC_LEEWAY_S, type OidcToken, verifyOidcToken } from "./oidc_token.ts";
import { agentNamedBy, type ClientProvider } from "./providers.ts";
import { RemoteKeys } from "./remote_keys.ts";
import { RevocationFile } from "./revocation_file.ts";
import { VerifiedTokens } from "./verified_tokens.ts";

export interface OidcOptions {
  /** URL of the issuer, exactly as it is in `iss`. */
  readonly issuer?: string;
  /** One of these must be in `aud`. */
  readonly audience: readonly string[];
  /** Claim with the person's name. */
  readonly nameClaim: string;
  /** Claim with the person's groups. */
  readonly groupsClaim: string;
  /** Time in milliseconds after which the issuer's keys are fetched again. */
  readonly refresh: number;
  /** Time in milliseconds for which its keys serve after that, while it cannot be reached. */
  readonly maxStale: number;
}

export interface OidcDeps {
  readonly log: Logger;
  /** File with revoked tokens, names and subjects. Default: none. */
  readonly revocationFile?: string;
  /** What an expired token closes: the tunnels of clients with `close` alone. */
  readonly onExpiry: OnExpiry;
  /** Milliseconds since 1970. Default `Date.now`. */
  readonly now?: () => number;
  /** Monotonic clock in milliseconds. Default `performance.now`. */
  readonly monotonic?: () => number;
  /** Default: the runtime's. */
  readonly fetch?: Fetch;
}

/**
 * Creates a provider for the issuer's tokens, which fetches its keys until it is closed. The start does not wait for them.
 * @throws {ConfigError} if an option is missing, or a file is invalid
 */
export async function createOidcProvider(options: OidcOptions, deps: OidcDeps): Promise<ClientProvider> {
  const { log, onExpiry, revocationFile, now = Date.now, monotonic, fetch } = deps;
  const { issuer, audience: audiences, nameClaim, groupsClaim, refresh: refreshMs, maxStale: maxStaleMs } = options;
  if (issuer === undefined) throw new ConfigError("Cannot use --auth.clients: oidc needs --auth.oidc.issuer");
  if (audiences.length === 0) {
    throw new ConfigError("Cannot use --auth.clients: oidc needs --auth.oidc.audience, or the issuer's tokens for other services would do");
  }
  const revocations = revocationFile === undefined ? undefined : await RevocationFile.open(revocationFile, log);
  const verified = new VerifiedTokens<OidcToken>();
  const live = new LiveCredentials<OidcToken>();
  const problemOf = (token: OidcToken) =>
    revocations?.revokes(token)
      ? "The token is revoked"
      : keys.has(token.keyId)
      ? undefined
      : "The key of the token is no longer published";
  const onRemoved = () => {
    verified.clear();
    live.closeIf(problemOf);
  };
  const keys: RemoteKeys = new RemoteKeys({ source: { issuer }, refreshMs, maxStaleMs, onRemoved, log, now: monotonic, fetch });
  const find = (kid: string | undefined, algorithm: string) => keys.find(kid, algorithm);
  let reloading: Promise<void> | undefined;
  const reloadList = async () => {
    if (await revocations?.poll()) live.closeIf(problemOf);
  };
  const reload = () => reloading ??= reloadList().finally(() => reloading = undefined);
  const stop = everySecond(now, () => {
    live.closeExpired(now());
    keys.poll();
    void reload();
  });
  return {
    name: "oidc",
    async authenticateClient(credentials) {
      const text = tokenOf(credentials);
      if (!isToken(text)) throw new AuthenticationError("denied", "The client's credentials are not a JWT");
      await keys.ready(); // also for a token that was verified before
      const token = await verified.get(text, () => verifyOidcToken(text, find, { issuer, audiences, nameClaim, groupsClaim, now: now() }));
      // a token that closes tunnels at its expiry is not accepted within the leeway
      const closes = onExpiry === "close";
      if (token.expiresAt + (closes ? 0 : OIDC_LEEWAY_S * 1000) <= now()) {
        throw new AuthenticationError("ended", `The token expired at ${new Date(token.expiresAt).toISOString()}`, { tokenId: token.id });
      }
      const problem = problemOf(token);
      if (problem !== undefined) throw new AuthenticationError("ended", problem, { tokenId: token.id });
      const { subject, name, groups, id: tokenId } = token;
      return {
        agentId: agentNamedBy(credentials),
        agents: ALL_AGENTS,
        subject,
        name,
        groups,
        tokenId,
        ...live.add(token, closes ? token.expiresAt : Infinity),
      };
    },
    reload,
    close() {
      stop();
      keys.close();
    },
  };
}

function tokenOf(credentials: ClientCredentials): string {
  return (credentials.scheme === "basic" ? credentials.password : credentials.token).trimEnd();
}
