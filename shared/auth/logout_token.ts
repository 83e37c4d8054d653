// Logout tokens, by which an OpenID Connect issuer says that a session has ended (OpenID Connect Back-Channel Logout 1.0).
import { decodeJwt } from "jose";
import { AuthenticationError } from "./authenticator.ts";
import { type FindKeys, OIDC_LEEWAY_S, verifyIssued } from "./oidc_token.ts";
import type { SignOut } from "./revocations.ts";

/** What makes a token a logout token (§2.4). */
const EVENT = "http://schemas.openid.net/event/backchannel-logout";
/** Longest subject and session, in characters. */
const MAX_TEXT = 256;
const isText = (value: unknown) => typeof value === "string" && value !== "" && value.length <= MAX_TEXT;

export interface LogoutExpectation {
  readonly issuer: string;
  /** One of these must be in `aud`. */
  readonly audiences: readonly string[];
  /** Current time, in milliseconds since 1970. */
  readonly now: number;
}

/**
 * Whether a logout token says that it is of another issuer, or for other audiences. Nothing is verified: an issuer may have several clients
 * here, and has a token for each.
 */
export function isForOthers(text: string, { issuer, audiences }: Pick<LogoutExpectation, "issuer" | "audiences">): boolean {
  try {
    const { iss, aud = [] } = decodeJwt(text);
    return iss !== issuer || ![aud].flat().some((audience) => audiences.includes(audience));
  } catch {
    return false; // verification says what is wrong with it
  }
}

/**
 * Verifies a logout token, and reads which session has ended. It may be sent again, since it revokes only tokens that were issued before it.
 * @throws {AuthenticationError} with the reason
 */
export async function verifyLogoutToken(text: string, find: FindKeys, expected: LogoutExpectation): Promise<SignOut> {
  const { payload } = await verifyIssued(text, find, expected, ["exp", "iat", "jti", "events"]);
  const { iat, sub: subject, sid: session, events, nonce } = payload;
  const deny = (why: string) => new AuthenticationError("denied", `The logout token ${why}`);
  if (typeof events !== "object" || events === null || !Object.hasOwn(events, EVENT)) throw deny("reports another event");
  if (nonce !== undefined) throw deny("has a nonce, as id tokens have");
  if (subject === undefined && session === undefined) throw deny("has neither sub nor sid");
  if (subject !== undefined && !isText(subject)) throw deny("has an unusable sub");
  if (session !== undefined && !isText(session)) throw deny("has an unusable sid");
  // with a time in the future it would also revoke tokens that are issued later
  const at = Math.min(iat!, Math.floor(expected.now / 1_000) + OIDC_LEEWAY_S) * 1_000;
  return { at, subject, session: session as string | undefined };
}
