// Creates the authenticator that the options select.
import { authOptions } from "../config/common_options.ts";
import { ConfigError } from "../config/option.ts";
import { type Logger, silentLogger } from "../log/logger.ts";
import { type Authenticator, createNoAuth } from "./authenticator.ts";
import { createJwtAuth, type JwtOptions } from "./jwt.ts";

/** Values of the options `auth.*` on the side that verifies credentials. */
export interface AuthOptions {
  type: "noauth" | "jwt";
  jwt: JwtOptions;
}

/**
 * Creates an authenticator, which the caller closes.
 * @throws {ConfigError} for an invalid file
 */
export async function createAuthenticator({ type, jwt }: AuthOptions, log: Logger): Promise<Authenticator> {
  if (type === "jwt") return await createJwtAuth(jwt, { log });
  refuseWithoutJwt(jwt);
  return createNoAuth();
}

/**
 * Rejects options of tokens while tokens are not verified: they show that it was meant to be so.
 * @throws {ConfigError}
 */
function refuseWithoutJwt({ publicKey, audience, revocationFile }: JwtOptions): void {
  const given = publicKey.join() !== authOptions["auth.jwt.public-key"].default
    ? "public-key"
    : audience !== undefined
    ? "audience"
    : revocationFile !== undefined
    ? "revocation-file"
    : undefined;
  if (given !== undefined) throw new ConfigError(`Cannot use --auth.jwt.${given}: no token is verified without --auth.type=jwt`);
}

/**
 * Checks the files that the options refer to.
 * @throws {ConfigError} for an invalid file
 */
export async function checkAuthOptions(options: AuthOptions): Promise<void> {
  (await createAuthenticator(options, silentLogger)).close?.();
}
