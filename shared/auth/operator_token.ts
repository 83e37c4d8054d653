// Tokens of operators of the admin API, signed with the keys of agents' and clients' tokens. Their role is another one, so that none is taken
// for the other.
import { SignJWT } from "jose";
import { AuthenticationError } from "./authenticator.ts";
import { timeOf } from "./claim_time.ts";
import type { SigningKey, VerificationKey } from "./keys.ts";
import { signNow, verifyClaims } from "./token.ts";

/** The role of an operator: to read, or to act as well. */
export const OPERATOR_ROLES = ["viewer", "operator"] as const;
export type OperatorRole = (typeof OPERATOR_ROLES)[number];

/** Names of operators: they are written to logs. */
export const OPERATOR_NAME = /^[\w.@-]{1,64}$/;

export interface OperatorToken {
  readonly name: string;
  readonly role: OperatorRole;
  /** `exp`, in milliseconds since 1970. */
  readonly expiresAt: number;
}

/** Signs a token and returns it as a compact JWT. */
export async function signOperatorToken(
  key: SigningKey,
  { name, role, durationMs }: { readonly name: string; readonly role: OperatorRole; readonly durationMs: number },
  now = Date.now(),
): Promise<string> {
  return await signNow(new SignJWT({ role }).setIssuer("reverse-http").setSubject(name), key, durationMs, now);
}

/**
 * Verifies a token: the signature by one of `keys`, its validity period, and its claims.
 * @throws {AuthenticationError} with the reason
 */
export async function verifyOperatorToken(text: string, keys: readonly VerificationKey[], now: number): Promise<OperatorToken> {
  const { payload: { sub, role, exp } } = await verifyClaims(text, keys, { role: "client", now });
  const known = OPERATOR_ROLES.find((known) => known === role);
  if (known === undefined) {
    throw new AuthenticationError("denied", `The token has the role ${JSON.stringify(role)?.slice(0, 100)}, and is none of an operator`);
  }
  if (typeof sub !== "string" || !OPERATOR_NAME.test(sub)) throw new AuthenticationError("denied", "The token has no usable sub");
  return { name: sub, role: known, expiresAt: timeOf(exp)! };
}
