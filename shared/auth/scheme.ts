// Creates the authenticator that the options select.
import { authOptions } from "../config/common_options.ts";
import { ConfigError } from "../config/option.ts";
import { type Logger, silentLogger } from "../log/logger.ts";
import { type Authenticator, createNoAuth } from "./authenticator.ts";
import { createHtpasswdProvider } from "./htpasswd.ts";
import { createJwtAuth, type JwksOptions, type JwtOptions } from "./jwt.ts";
import { createOidcAuth, type OidcAuth, type OidcOptions } from "./oidc.ts";
import type { MtlsOptions } from "./certificate_identity.ts";
import { createMtlsProvider } from "./mtls.ts";
import { type ClientProvider, withProviders } from "./providers.ts";
import { checkWebhookSecret, createWebhookProvider, type WebhookOptions } from "./webhook.ts";

/** Values of the options `auth.*` on the side that verifies credentials. */
export interface AuthOptions {
  type: "noauth" | "jwt" | "oidc";
  /** Identity providers for clients, tried in order. Empty: as `type` says. */
  clients: readonly string[];
  jwt: JwtOptions;
  jwks: JwksOptions;
  oidc: Omit<OidcOptions, "refresh" | "maxStale">;
  htpasswd: { readonly file?: string };
  webhook: WebhookOptions;
  mtls: MtlsOptions;
}

/** The scheme that clients are authenticated with: `noauth`, or one that needs a secret. */
export function clientScheme({ type, clients }: Pick<AuthOptions, "type"> & { readonly clients: readonly string[] }): "noauth" | "jwt" {
  return clients.length > 0 || type !== "noauth" ? "jwt" : "noauth";
}

/**
 * Creates an authenticator, which the caller closes.
 * @throws {ConfigError} for an invalid file
 */
export async function createAuthenticator(options: AuthOptions, log: Logger): Promise<Authenticator> {
  const { type, jwt, jwks, oidc } = options;
  const clients = options.clients.length === 0 && type === "oidc" ? ["oidc"] : options.clients;
  refuseUnused({ ...options, clients });
  checkIssuer(type, clients, oidc);
  const tokens = type === "jwt" || clients.includes("jwt") ? await createJwtAuth(jwt, { log, jwks }) : undefined;
  const providers: ClientProvider[] = [];
  let issuer: OidcAuth | undefined;
  try {
    if (type === "oidc" || clients.includes("oidc")) {
      issuer = await createOidcAuth({ ...oidc, ...jwks }, { log, onExpiry: jwt.onExpiry, revocationFile: jwt.revocationFile });
    }
    for (const name of clients) providers.push(await createProvider(name, options, { tokens, issuer }, log));
  } catch (error) {
    for (const opened of [tokens, issuer, ...providers]) opened?.close?.();
    throw error;
  }
  const agents: Authenticator = type === "jwt" ? tokens! : type === "oidc" ? issuer! : createNoAuth();
  if (clients.length === 0) return agents;
  return { ...withProviders(agents, providers), revoke: tokens?.revoke?.bind(tokens) ?? issuer?.revoke, signOut: issuer?.signOut };
}

async function createProvider(
  name: string,
  { jwt: { onExpiry, revocationFile }, htpasswd, webhook, mtls }: AuthOptions,
  { tokens, issuer }: { readonly tokens?: Authenticator; readonly issuer?: OidcAuth },
  log: Logger,
): Promise<ClientProvider> {
  switch (name) {
    case "oidc":
      return { name, ...issuer! };
    case "htpasswd":
      return await createHtpasswdProvider(htpasswd, { log });
    case "mtls":
      return await createMtlsProvider(mtls, { log, onExpiry, revocationFile });
    case "webhook":
      await checkWebhookSecret(webhook);
      return createWebhookProvider(webhook, { log });
    default:
      return {
        name: "jwt",
        authenticateClient: async (credentials, peer) => {
          const identity = await tokens!.authenticateClient(credentials, peer);
          return typeof identity === "string" ? { agentId: identity } : identity;
        },
        reload: () => tokens!.reload!(),
        close: () => tokens!.close?.(),
      };
  }
}

/**
 * Without an audience, the issuer's tokens for other services would do.
 * @throws {ConfigError}
 */
function checkIssuer(
  type: AuthOptions["type"],
  clients: readonly string[],
  { issuer, audience, agentAudience }: AuthOptions["oidc"],
): void {
  if (type === "oidc" && issuer === undefined) throw new ConfigError("Cannot use --auth.type=oidc: --auth.oidc.issuer is required");
  if (clients.includes("oidc") && issuer === undefined) throw new ConfigError("Cannot use --auth.clients: oidc needs --auth.oidc.issuer");
  if (clients.includes("oidc") && audience.length === 0) {
    throw new ConfigError("Cannot use --auth.clients: oidc needs --auth.oidc.audience, or the issuer's tokens for other services would do");
  }
  // lb has no agents, and no such option
  if (type === "oidc" && agentAudience?.length === 0) {
    throw new ConfigError("Cannot use --auth.type=oidc: --auth.oidc.agent-audience is required, which only agents' tokens name");
  }
}

/**
 * Rejects options of a provider that is not used: they show that it was meant to be.
 * @throws {ConfigError}
 */
function refuseUnused({ type, clients, jwt, jwks, oidc, htpasswd, webhook }: AuthOptions): void {
  const { publicKey, audience, revocationFile } = jwt;
  const unlessJwt = type === "jwt" || clients.includes("jwt") ? undefined : "no token is verified without --auth.type=jwt";
  const unless = (name: string) => clients.includes(name) ? undefined : `--auth.clients does not name ${name}`;
  const given: readonly [option: string, isGiven: boolean, why: string | undefined][] = [
    ["jwt.public-key", publicKey.join() !== authOptions["auth.jwt.public-key"].default, unlessJwt],
    ["jwt.audience", audience !== undefined, unlessJwt],
    [
      "jwt.revocation-file",
      revocationFile !== undefined,
      type === "oidc" || clients.some((name) => name === "oidc" || name === "mtls") ? undefined : unlessJwt,
    ],
    ["jwks.url", jwks.url !== undefined, unlessJwt],
    ["oidc.issuer", oidc.issuer !== undefined, type === "oidc" ? undefined : unless("oidc")],
    ["oidc.agent-audience", (oidc.agentAudience ?? []).length > 0, type === "oidc" ? undefined : "--auth.type is not oidc"],
    ["oidc.logout-audience", (oidc.logoutAudience ?? []).length > 0, type === "oidc" ? undefined : unless("oidc")],
    ["oidc.audience", oidc.audience.length > 0, unless("oidc")],
    ["htpasswd.file", htpasswd.file !== undefined, unless("htpasswd")],
    ["webhook.url", webhook.url !== undefined, unless("webhook")],
    ["webhook.token-file", webhook.tokenFile !== undefined, unless("webhook")],
  ];
  const unused = given.find(([, isGiven, why]) => isGiven && why !== undefined);
  if (unused) throw new ConfigError(`Cannot use --auth.${unused[0]}: ${unused[2]}`);
}

/**
 * Checks the files that the options refer to.
 * @throws {ConfigError} for an invalid file
 */
export async function checkAuthOptions(options: AuthOptions): Promise<void> {
  (await createAuthenticator(options, silentLogger)).close?.();
}
