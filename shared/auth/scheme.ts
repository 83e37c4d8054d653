// Creates the authenticator that the options select.
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
  return type === "jwt" ? await createJwtAuth(jwt, { log }) : createNoAuth();
}

/**
 * Checks the files that the options refer to.
 * @throws {ConfigError} for an invalid file
 */
export async function checkAuthOptions(options: AuthOptions): Promise<void> {
  (await createAuthenticator(options, silentLogger)).close?.();
}
