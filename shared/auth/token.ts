// One token (JWT, RFC 7519): how it is signed, and what it must say to be believed. It knows no file and no connection.
import { randomUUID } from "node:crypto";
import { decodeProtectedHeader, errors, type JWTPayload, jwtVerify, SignJWT } from "jose";
import { type AllowList, createAllowList } from "../address/allow_list.ts";
import { AuthenticationError, checkAgentId, type Claims } from "./authenticator.ts";
import { ALGORITHMS, keyAlgorithm, type SigningKey, type TokenAlgorithm, type VerificationKey } from "./keys.ts";

/** Who may show a token: an agent to a proxy, a client to a proxy or lb. */
export const ROLES = ["agent", "client"] as const;
export type Role = (typeof ROLES)[number];

/** Difference of clocks in seconds that is overlooked. */
export const LEEWAY_S = 5;
/** Longest token in bytes: it must fit into a request's head. */
export const MAX_TOKEN = 16 * 1024;
const ISSUER = "reverse-http";

/** What a token that is to be signed says. */
export interface TokenRequest {
  agentId: string;
  role: Role;
  /** Default: none, and then only proxies that ask for none take it. */
  audience?: string;
  /** From now to its expiry, in milliseconds. */
  durationMs: number;
  /** Allow-list patterns: the destinations that its bearer may reach, or be asked for. Empty: no limit of its own. */
  allow?: readonly string[];
}

/** A token that was believed. */
export interface Token {
  readonly agentId: string;
  /** `jti`: names it for revocation and in logs. */
  readonly id?: string;
  /** `exp`, in milliseconds since 1970. */
  readonly expiresAt: number;
  readonly allowList?: AllowList;
  /** {@link VerificationKey.id} of the key that verified it. */
  readonly keyId: string;
}

/**
 * A compact JWT.
 * @throws {AuthenticationError} `agent-id`
 * @throws {RangeError} naming an allow-list pattern that cannot be read
 */
export async function signToken({ algorithm, key }: SigningKey, request: TokenRequest, now = Date.now()): Promise<string> {
  const { agentId, role, audience, durationMs, allow = [] } = request;
  checkAgentId(agentId);
  createAllowList(allow);
  const seconds = Math.floor(now / 1000);
  const jwt = new SignJWT({ agent_id: agentId, role, ...allow.length > 0 && { allow: [...allow] } })
    .setProtectedHeader({ alg: algorithm, typ: "JWT" })
    .setIssuer(ISSUER)
    .setSubject(agentId)
    .setIssuedAt(seconds)
    .setNotBefore(seconds)
    .setExpirationTime(seconds + Math.ceil(durationMs / 1000))
    .setJti(randomUUID());
  if (audience !== undefined) jwt.setAudience([audience]);
  return await jwt.sign(key);
}

/** What is asked of a token. */
export interface Expectation {
  role: Role;
  /** Default: any, or none. */
  audience?: string;
  /** Milliseconds since 1970. */
  now: number;
}

/**
 * Believes a token that one of `keys` verifies, that is valid now, and that says what is expected.
 * @throws {AuthenticationError} `denied`, or `agent-id` for an id that no agent can have
 */
export async function verifyToken(text: string, keys: readonly VerificationKey[], expected: Expectation): Promise<Token> {
  const { payload, keyId } = await verify(text, keys, expected);
  const deny = (why: string) => new AuthenticationError("denied", describe(why, payload), claimsOf(payload));
  const { agent_id: agentId, role, exp, jti } = payload;
  if (role !== expected.role) {
    const shownBy = expected.role === "agent" ? "an agent" : "a client";
    throw deny(
      `has ${role === undefined ? "no role" : `the role ${show(role)}`}, and was shown by ${shownBy}, ` +
        `whose token needs the role ${show(expected.role)} (auth jwt token --role=${expected.role})`,
    );
  }
  if (typeof agentId !== "string") throw deny("has no agent_id");
  if (jti !== undefined && typeof jti !== "string") throw deny("has an unusable jti");
  return {
    agentId: checkAgentId(agentId),
    id: jti,
    expiresAt: exp! * 1000,
    allowList: readAllow(payload.allow, deny),
    keyId,
  };
}

async function verify(
  text: string,
  keys: readonly VerificationKey[],
  { role, audience, now }: Expectation,
): Promise<{ payload: JWTPayload; keyId: string }> {
  const { algorithm, kid } = readHeader(text, role);
  const isNamed = (key: VerificationKey) => kid !== undefined && (key.kid === kid || key.id === kid);
  // the one that the token names first: each that is tried costs a verification
  const candidates = keys.filter((key) => key.algorithm === keyAlgorithm(algorithm)).sort((a, b) =>
    Number(isNamed(b)) - Number(isNamed(a))
  );
  for (const { id, key } of candidates) {
    try {
      const { payload } = await jwtVerify(text, key, {
        algorithms: [algorithm],
        audience,
        clockTolerance: LEEWAY_S,
        currentDate: new Date(now),
        requiredClaims: ["exp"],
      });
      return { payload, keyId: id };
    } catch (error) {
      if (!(error instanceof errors.JWSSignatureVerificationFailed)) throw toDenial(error, audience, now);
    }
  }
  throw new AuthenticationError(
    "denied",
    candidates.length === 0
      ? `The token is signed with ${algorithm}, and there is no public key for that`
      : "The token's signature is by none of the public keys",
  );
}

/** Before a signature is looked at, a token is nothing but bytes of a stranger's. */
function readHeader(text: string, role: Role): { algorithm: TokenAlgorithm; kid?: string } {
  const deny = (what: string) => new AuthenticationError("denied", what);
  if (text === "") throw deny("There is no token");
  if (text.length > MAX_TOKEN) throw deny(`The token has ${text.length} bytes, and ${MAX_TOKEN} is the limit`);
  if (!/^[\w-]+\.[\w-]+\.[\w-]*$/.test(text)) throw deny(NO_TOKEN[role]);
  let [alg, kid]: unknown[] = [];
  try {
    ({ alg, kid } = decodeProtectedHeader(text));
  } catch {
    throw deny("The token's header cannot be read");
  }
  const algorithm = ALGORITHMS.find((known) => known === alg);
  if (algorithm === undefined) throw deny(`The token's alg is ${show(alg)}, and one of ${ALGORITHMS.join(", ")} is needed`);
  return { algorithm, kid: typeof kid === "string" ? kid : undefined };
}

const NO_TOKEN: Readonly<Record<Role, string>> = {
  agent: "What the agent showed is not a JWT: it needs --auth.type=jwt and --auth.jwt.token",
  client: "What the client showed is not a JWT: its token is the password",
};

/** In words of our own: those of a library may change. */
function toDenial(error: unknown, audience: string | undefined, now: number): unknown {
  if (error instanceof errors.JWTExpired || error instanceof errors.JWTClaimValidationFailed) {
    return new AuthenticationError("denied", describe(problemOf(error, audience, now), error.payload), claimsOf(error.payload));
  }
  return error instanceof errors.JOSEError ? new AuthenticationError("denied", `The token cannot be read: ${error.message}`) : error;
}

function claimsOf({ agent_id: agentId, jti }: JWTPayload): Claims {
  return { agentId: typeof agentId === "string" ? agentId : undefined, tokenId: typeof jti === "string" ? jti : undefined };
}

function problemOf(
  { claim, reason, payload }: errors.JWTExpired | errors.JWTClaimValidationFailed,
  audience: string | undefined,
  now: number,
): string {
  if (claim === "aud") {
    return `is ${payload.aud === undefined ? "for no audience" : `for the audience ${show(payload.aud)}`}, and this one is ${
      show(audience)
    }`;
  }
  if (reason === "missing") return `has no ${claim}`;
  if (reason === "invalid") return `has an unusable ${claim}`;
  // whose clock is wrong shows in the two
  const clock = `, and the clock here says ${showTime(Math.floor(now / 1000))}`;
  if (claim === "exp") return `expired at ${showTime(payload.exp)}${clock}`;
  if (claim === "nbf") return `is not valid before ${showTime(payload.nbf)}${clock}`;
  return `has an unusable ${claim}`;
}

function readAllow(allow: unknown, deny: (why: string) => AuthenticationError): AllowList | undefined {
  if (allow === undefined) return undefined;
  const patterns = Array.isArray(allow) && allow.length > 0 && allow.every((pattern) => typeof pattern === "string");
  // an empty list would allow everything, which nobody can mean by writing it
  if (!patterns) throw deny("has an unusable allow: a list of patterns is needed");
  try {
    return createAllowList(allow);
  } catch (error) {
    throw deny(`has an unusable allow: ${(error as RangeError).message}`);
  }
}

/** The signature was good: what the token says of itself helps to find it. */
function describe(why: string, { agent_id: agentId, jti }: JWTPayload): string {
  return `The token ${why} (agent_id ${show(agentId)}, jti ${show(jti)})`;
}

/** Short enough for a line of the log. */
function show(value: unknown): string {
  const text = JSON.stringify(value) ?? "missing";
  return text.length <= 100 ? text : `${text.slice(0, 100)}…`;
}

function showTime(seconds: number | undefined): string {
  const date = new Date((seconds ?? NaN) * 1000);
  return Number.isNaN(date.getTime()) ? String(seconds) : date.toISOString();
}
