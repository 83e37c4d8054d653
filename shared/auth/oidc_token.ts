// Verifies the tokens of an OpenID Connect issuer, and reads who a person is from their claims. Knows neither files nor connections.
import { decodeJwt, decodeProtectedHeader, errors, type JWTPayload, jwtVerify } from "jose";
import { printable } from "../net/printable.ts";
import { createAllowList } from "../address/allow_list.ts";
import { AuthenticationError, checkAgentId, type Claims, type Identity } from "./authenticator.ts";
import { showTime, timeOf } from "./claim_time.ts";
import { type IssuerKey, keyAlgorithm, SIGNATURE_ALGORITHMS, type TokenAlgorithm } from "./keys.ts";
import { createPublishList } from "./publish_list.ts";
import { MAX_TOKEN, readPatterns } from "./token.ts";

/** Tolerated clock difference in seconds. */
export const OIDC_LEEWAY_S = 60;
/** Most signature checks for one token. */
const MAX_ATTEMPTS = 16;
/** Most groups of a person, and the longest name, in characters. */
const MAX_GROUPS = 1_000;
const MAX_NAME = 256;

/** The requirements for a token, and its claims with the identity. */
export interface OidcExpectation {
  readonly issuer: string;
  /** One of these must be in `aud`. */
  readonly audiences: readonly string[];
  readonly nameClaim: string;
  readonly groupsClaim: string;
  /** Claim with the id of the agent that presents it. Default: it is a client's token. */
  readonly agentIdClaim?: string;
  /** Current time, in milliseconds since 1970. */
  readonly now: number;
}

/** A verified token. */
export interface OidcToken {
  readonly subject: string;
  readonly name?: string;
  readonly groups: readonly string[];
  /** `jti`, for revocation and logs. */
  readonly id?: string;
  /** `sid`, the session at the issuer. */
  readonly session?: string;
  /** `iat`, in milliseconds since 1970; 0 if it is missing. */
  readonly issuedAt: number;
  /** `exp`, in milliseconds since 1970. */
  readonly expiresAt: number;
  /** Thumbprint of the key that verified it. */
  readonly keyId: string;
  /** Identity and permissions, if it is an agent's token. */
  readonly agent?: Pick<Identity, "agentId" | "allowList" | "publish">;
}

/** The keys that may have signed a token; see `find` of `RemoteKeys`. */
export type FindKeys = (kid: string | undefined, algorithm: string, ageMs: number) => Promise<readonly IssuerKey[]>;

/**
 * Verifies a token: the signature by one of the keys that are found, its validity period, issuer and audience.
 * @throws {AuthenticationError} with the reason
 */
export async function verifyOidcToken(text: string, find: FindKeys, expected: OidcExpectation): Promise<OidcToken> {
  const { payload, keyId } = await verifyIssued(text, find, expected, ["exp", "sub"]);
  const deny = (why: string) => new AuthenticationError("denied", `The token ${why}`, claimsOf(payload));
  const { exp, jti, sid, iat = 0, events } = payload;
  // it has the same issuer and audience, but is for this service, and not for a person
  if (events !== undefined) throw deny("is a logout token, or reports another event");
  return {
    ...personOf(payload, expected, deny),
    id: typeof jti === "string" ? jti : undefined,
    session: typeof sid === "string" ? sid : undefined,
    issuedAt: iat * 1000,
    expiresAt: timeOf(exp)!,
    keyId,
    agent: expected.agentIdClaim === undefined ? undefined : agentOf(payload, expected.agentIdClaim, deny),
  };
}

function agentOf(payload: JWTPayload, claim: string, deny: (why: string) => AuthenticationError): OidcToken["agent"] {
  const agentId = claimAt(payload, claim);
  if (typeof agentId !== "string") throw deny(`has no agent id in its claim ${claim}`);
  return {
    agentId: checkAgentId(agentId),
    allowList: readPatterns("allow", payload.allow, createAllowList, deny),
    publish: readPatterns("publish", payload.publish, createPublishList, deny),
  };
}

/**
 * Reads the identity from a token.
 * @param deny creates the error that is thrown for an unusable claim
 */
export function personOf(
  payload: JWTPayload,
  { nameClaim, groupsClaim }: Pick<OidcExpectation, "nameClaim" | "groupsClaim">,
  deny: (why: string) => Error,
): Pick<OidcToken, "subject" | "name" | "groups"> {
  const { sub } = payload;
  if (typeof sub !== "string" || sub === "" || sub.length > MAX_NAME) throw deny("has no usable sub");
  const name = claimAt(payload, nameClaim);
  if (name !== undefined && (typeof name !== "string" || name.length > MAX_NAME)) {
    throw deny(`has an unusable ${nameClaim}: a name is required`);
  }
  return { subject: sub, name, groups: readGroups(payload, groupsClaim, deny) };
}

/**
 * Verifies the signature of an issuer's token by one of the keys that are found, its validity period, issuer and audience.
 * @param requiredClaims those without which it is refused
 * @throws {AuthenticationError} with the reason
 */
export async function verifyIssued(
  text: string,
  find: FindKeys,
  expected: Pick<OidcExpectation, "issuer" | "audiences" | "now">,
  requiredClaims: string[],
): Promise<{ payload: JWTPayload; keyId: string }> {
  const { name, kid } = readHeader(text);
  const keys = await find(kid, keyAlgorithm(name as TokenAlgorithm), ageOf(text, expected));
  for (const { id, key } of keys.slice(0, MAX_ATTEMPTS)) {
    try {
      const { payload } = await jwtVerify(text, key, {
        algorithms: [name],
        issuer: expected.issuer,
        audience: [...expected.audiences],
        clockTolerance: OIDC_LEEWAY_S,
        currentDate: new Date(expected.now),
        requiredClaims,
      });
      return { payload, keyId: id };
    } catch (error) {
      if (!(error instanceof errors.JWSSignatureVerificationFailed)) throw toDenial(error, expected);
    }
  }
  const named = kid === undefined ? `for ${name}` : `${show(kid)} for ${name}`;
  throw new AuthenticationError(
    "denied",
    keys.length === 0 ? `The issuer publishes no key ${named}` : "The token's signature matches none of the issuer's keys",
  );
}

/** Reads the header of a token that is not verified yet, so the bytes are untrusted. */
function readHeader(text: string): { name: string; kid?: string } {
  const deny = (what: string) => new AuthenticationError("denied", what);
  if (text.length > MAX_TOKEN) throw deny(`The token has ${text.length} bytes; the limit is ${MAX_TOKEN}`);
  if (!/^[\w-]+\.[\w-]+\.[\w-]*$/.test(text)) throw deny("The client's credentials are not a JWT");
  let [alg, kid]: unknown[] = [];
  try {
    ({ alg, kid } = decodeProtectedHeader(text));
  } catch {
    throw deny("The token's header cannot be read");
  }
  if (typeof alg !== "string" || alg === "none") throw deny("The token is not signed: its alg is none");
  // with a public key as the secret, anyone could sign
  if (/^HS[0-9]+$/.test(alg)) throw deny(`The token's alg is ${alg}: it is signed with a shared secret, and the issuer's keys are public`);
  if (!SIGNATURE_ALGORITHMS.includes(alg)) {
    throw deny(`The token's alg is ${show(alg)}; one of ${SIGNATURE_ALGORITHMS.join(", ")} is required`);
  }
  return { name: alg, kid: typeof kid === "string" ? kid : undefined };
}

/** The age in milliseconds that a token claims, which is not verified yet; `Infinity` if it is of another issuer. */
function ageOf(text: string, { issuer, now }: Pick<OidcExpectation, "issuer" | "now">): number {
  try {
    const { iss, iat } = decodeJwt(text);
    return iss === issuer && typeof iat === "number" ? now - iat * 1_000 : Infinity;
  } catch {
    return Infinity; // verification says what is wrong with it
  }
}

/** Describes errors in our own words, because the library's may change. */
function toDenial(error: unknown, expected: Pick<OidcExpectation, "issuer" | "audiences" | "now">): unknown {
  if (error instanceof errors.JWTExpired || error instanceof errors.JWTClaimValidationFailed) {
    const { claim, reason, payload } = error;
    const kind = claim === "exp" && reason !== "missing" ? "ended" : "denied";
    return new AuthenticationError(kind, `The token ${problemOf(claim, reason, payload, expected)}`, claimsOf(payload));
  }
  if (error instanceof errors.JOSENotSupported) {
    return new AuthenticationError("denied", `The token needs what is not supported (crit): ${printable(error.message)}`);
  }
  return error instanceof errors.JOSEError
    ? new AuthenticationError("denied", `The token cannot be read: ${printable(error.message)}`)
    : error;
}

function problemOf(
  claim: string,
  reason: string,
  payload: JWTPayload,
  { issuer, audiences, now }: Pick<OidcExpectation, "issuer" | "audiences" | "now">,
): string {
  if (reason === "missing") return `has no ${claim}`;
  if (claim === "iss") return `is of the issuer ${show(payload.iss)}, and ${show(issuer)} is required`;
  if (claim === "aud") return `is for the audience ${show(payload.aud)}, and ${audiences.map(show).join(" or ")} is required`;
  // shows which clock is wrong
  const clock = `; the clock of this machine is at ${new Date(now).toISOString()}`;
  if (reason === "check_failed" && claim === "exp") return `expired at ${showTime(payload.exp)}${clock}`;
  if (reason === "check_failed" && claim === "nbf") return `is not valid before ${showTime(payload.nbf)}${clock}`;
  return `has an unusable ${claim}`;
}

function claimsOf({ jti }: JWTPayload): Claims {
  return { tokenId: typeof jti === "string" ? jti : undefined };
}

/** The claim of that name, or else the nested one at the path that its dots separate: `realm_access.roles`. */
export function claimAt(payload: JWTPayload, name: string): unknown {
  if (Object.hasOwn(payload, name)) return payload[name];
  let at: unknown = payload;
  for (const part of name.split(".")) {
    if (typeof at !== "object" || at === null || !Object.hasOwn(at, part)) return undefined;
    at = (at as Readonly<Record<string, unknown>>)[part];
  }
  return at;
}

/** A string is one group. A missing claim is no group, unless the issuer says that it has left the groups out. */
function readGroups(payload: JWTPayload, claim: string, deny: (why: string) => Error): readonly string[] {
  const value = claimAt(payload, claim);
  if (value === undefined) {
    const omitted = payload._claim_names;
    // Microsoft Entra does so from 200 groups on: a rule that denies a group would not apply
    if (typeof omitted !== "object" || omitted === null || !Object.hasOwn(omitted, claim)) return [];
    throw deny(`names a link instead of its ${claim}, because there are too many: let the issuer send only those of this application`);
  }
  const groups = typeof value === "string" ? [value] : value;
  if (
    !Array.isArray(groups) || groups.length > MAX_GROUPS || !groups.every((group) => typeof group === "string" && group.length <= MAX_NAME)
  ) {
    throw deny(`has an unusable ${claim}: a name or a list of at most ${MAX_GROUPS} names is required`);
  }
  return [...new Set<string>(groups)];
}

/** Formats a value, shortened for the log. */
function show(value: unknown): string {
  return printable(JSON.stringify(value) ?? "missing", 100);
}
