// Which authenticator the options name.
import { type Logger, silentLogger } from "../log/logger.ts";
import { type Authenticator, createNoAuth } from "./authenticator.ts";
import { createJwtAuth, type JwtOptions } from "./jwt.ts";

/** Values of the options `auth.*` of whoever verifies. */
export interface AuthOptions {
  type: "noauth" | "jwt";
  jwt: JwtOptions;
}

/**
 * To be closed by the caller.
 * @throws {ConfigError} for a file that cannot be used
 */
export async function createAuthenticator({ type, jwt }: AuthOptions, log: Logger): Promise<Authenticator> {
  return type === "jwt" ? await createJwtAuth(jwt, { log }) : createNoAuth();
}

/**
 * Reads the files that the options name.
 * @throws {ConfigError} for one that cannot be used
 */
export async function checkAuthOptions(options: AuthOptions): Promise<void> {
  (await createAuthenticator(options, silentLogger)).close?.();
}
