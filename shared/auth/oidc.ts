// Authentication of clients and agents by tokens of an OpenID Connect issuer, and closing what was opened with a token that has expired, is revoked, or
// whose key is no longer published.
import { ConfigError } from "../config/option.ts";
import type { Logger } from "../log/logger.ts";
import { ALL_AGENTS } from "./agent_list.ts";
import { AuthenticationError, type Authenticator, type ClientCredentials, type Identity, isToken } from "./authenticator.ts";
import type { Fetch } from "./fetch.ts";
import type { OnExpiry } from "./jwt.ts";
import { LiveCredentials, watchCredentials } from "./live_credentials.ts";
import { type FindKeys, OIDC_LEEWAY_S, type OidcToken, verifyOidcToken } from "./oidc_token.ts";
import { isForOthers, verifyLogoutToken } from "./logout_token.ts";
import { agentNamedBy } from "./providers.ts";
import { RemoteKeys } from "./remote_keys.ts";
import { RevocationFile } from "./revocation_file.ts";
import { VerifiedTokens } from "./verified_tokens.ts";

export interface OidcOptions {
  /** URL of the issuer, exactly as it is in `iss`. */
  readonly issuer?: string;
  /** One of these must be in `aud` of a client's token. Empty: it is not used for clients. */
  readonly audience: readonly string[];
  /** One of these must be in `aud` of an agent's token. Missing or empty: it is not used for agents. */
  readonly agentAudience?: readonly string[];
  /** One of these must be in `aud` of a logout token. Missing or empty: none is accepted. */
  readonly logoutAudience?: readonly string[];
  /** Claim with the agent's id. Default `sub`. */
  readonly agentIdClaim?: string;
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
  /** Which connections and tunnels an expired token closes. */
  readonly onExpiry: OnExpiry;
  /** Milliseconds since 1970. Default `Date.now`. */
  readonly now?: () => number;
  /** Monotonic clock in milliseconds. Default `performance.now`. */
  readonly monotonic?: () => number;
  /** Default: the runtime's. */
  readonly fetch?: Fetch;
}

/** What accepts the tokens of an issuer. It may be closed several times. */
export type OidcAuth = Required<Pick<Authenticator, "reload" | "close">> & Pick<Authenticator, "revoke" | "signOut"> & {
  authenticateAgent(credentials: Uint8Array): Promise<Identity>;
  authenticateClient(credentials: ClientCredentials): Promise<Identity>;
};

/**
 * Creates an authenticator for the issuer's tokens, which fetches its keys until it is closed. The start does not wait for them.
 * @throws {ConfigError} if an option is missing, or a file is invalid
 */
export async function createOidcAuth(options: OidcOptions, deps: OidcDeps): Promise<OidcAuth> {
  const { log, onExpiry, revocationFile, now = Date.now, monotonic, fetch } = deps;
  const { issuer, audience, agentAudience = [], logoutAudience = [], agentIdClaim = "sub", nameClaim, groupsClaim } = options;
  const { refresh: refreshMs, maxStale: maxStaleMs } = options;
  if (issuer === undefined) throw new ConfigError("Cannot authenticate by oidc: --auth.oidc.issuer is required");
  const both = agentAudience.find((name) => audience.includes(name));
  if (both !== undefined) {
    throw new ConfigError(
      `Cannot use --auth.oidc.agent-audience ${both}: it is in --auth.oidc.audience too, and anyone with a client's token could be an agent`,
    );
  }
  if (logoutAudience.length > 0 && revocationFile === undefined) {
    throw new ConfigError(
      "Cannot use --auth.oidc.logout-audience: --auth.jwt.revocation-file is required, which keeps the sessions that have ended",
    );
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
  const find: FindKeys = (kid, algorithm, ageMs) => keys.find(kid, algorithm, ageMs);
  const { reload, close: stop } = watchCredentials(live, { revocations, problemOf, now, tick: () => keys.poll() });
  const admit = async (text: string, role: "agent" | "client"): Promise<Omit<Identity, "agentId"> & { readonly token: OidcToken }> => {
    if (!isToken(text)) throw new AuthenticationError("denied", `The ${role}'s credentials are not a JWT`);
    await keys.ready(); // also for a token that was verified before
    const ofRole = role === "agent" ? { audiences: agentAudience, agentIdClaim } : { audiences: audience };
    const token = await verified.get(
      `${role} ${text}`,
      () => verifyOidcToken(text, find, { issuer, ...ofRole, nameClaim, groupsClaim, now: now() }),
    );
    // a token that closes something at its expiry is not accepted within the leeway
    const closes = onExpiry === "close" || (onExpiry === "close-agents" && role === "agent");
    if (token.expiresAt + (closes ? 0 : OIDC_LEEWAY_S * 1000) <= now()) {
      throw new AuthenticationError("ended", `The token expired at ${new Date(token.expiresAt).toISOString()}`, { tokenId: token.id });
    }
    const problem = problemOf(token);
    if (problem !== undefined) throw new AuthenticationError("ended", problem, { tokenId: token.id });
    const { subject, name, groups, id: tokenId, expiresAt } = token;
    return { token, subject, name, groups, tokenId, expiresAt, ...live.add(token, closes ? expiresAt : Infinity) };
  };
  return {
    async authenticateAgent(credentials) {
      const { token, ...identity } = await admit(new TextDecoder("latin1").decode(credentials).trimEnd(), "agent");
      return { ...identity, ...token.agent! };
    },
    async authenticateClient(credentials) {
      const { token: _, ...identity } = await admit(tokenOf(credentials), "client");
      return { ...identity, agentId: agentNamedBy(credentials), agents: ALL_AGENTS, client: `oidc ${identity.subject}` };
    },
    reload,
    revoke: revocations && ((id, comment) => revocations.revoke(id, comment, { live, reload })),
    signOut: logoutAudience.length === 0 || revocations === undefined ? undefined : async (text) => {
      const expected = { issuer, audiences: logoutAudience, now: now() };
      if (isForOthers(text, expected)) return undefined;
      await keys.ready();
      const signOut = await verifyLogoutToken(text, find, expected);
      const affected = await revocations.signOut(signOut, `signed out at ${issuer}`, { live, reload });
      return { target: signOut.subject ?? signOut.session!, affected };
    },
    close() {
      stop();
      keys.close();
    },
  };
}

function tokenOf(credentials: ClientCredentials): string {
  return (credentials.scheme === "basic" ? credentials.password : credentials.token).trimEnd();
}

/** The options for logout tokens. */
export interface LogoutOptions {
  readonly auth: { readonly oidc: Pick<OidcOptions, "logoutAudience"> };
  readonly admin: { readonly listenAddress?: string; readonly socket?: string };
}

/**
 * Checks that the issuer has somewhere to send logout tokens to, if they are accepted.
 * @throws {ConfigError}
 */
export function checkLogout({ auth: { oidc: { logoutAudience = [] } }, admin: { listenAddress, socket } }: LogoutOptions): void {
  if (logoutAudience.length === 0 || listenAddress || socket) return;
  throw new ConfigError(
    "Cannot use --auth.oidc.logout-audience: the issuer sends logout tokens to --admin.listen-address, which is not set",
  );
}
