// Signs and verifies tokens (JWT, RFC 7519). Knows neither files nor connections.
import { createPublicKey, randomUUID } from "node:crypto";
import { compactVerify, decodeProtectedHeader, errors, type JWTPayload, jwtVerify, SignJWT } from "jose";
import { type AllowList, createAllowList } from "../address/allow_list.ts";
import { type AgentList, createAgentList } from "./agent_list.ts";
import { AuthenticationError, checkAgentId, type Claims } from "./authenticator.ts";
import { showTime, timeOf } from "./claim_time.ts";
import { createPublishList, type PublishList } from "./publish_list.ts";
import { ALGORITHMS, keyAlgorithm, type SigningKey, type TokenAlgorithm, type VerificationKey } from "./keys.ts";

/** Who presents a token: an agent to a proxy, or a client to a proxy or lb. */
export const ROLES = ["agent", "client"] as const;
export type Role = (typeof ROLES)[number];

/** Tolerated clock difference in seconds. */
export const LEEWAY_S = 5;
/** Longest token in bytes: it must fit into the head of a request. */
export const MAX_TOKEN = 16 * 1024;
const ISSUER = "reverse-http";

/** The content of a new token. */
export interface TokenRequest {
  /** The agent that presents it, or that a client may reach. Either this or `agents` is given. */
  agentId?: string;
  /** Patterns of the agents that a client may reach ({@link createAgentList}). */
  agents?: readonly string[];
  role: Role;
  /** Default: none; only proxies without `auth.jwt.audience` accept such a token. */
  audience?: string;
  /** Lifetime in milliseconds. */
  durationMs: number;
  /** Allow-list patterns: destinations that the client may reach, or that the agent may be asked for. Default, and empty: any. */
  allow?: readonly string[];
  /** Patterns of ports and names that the agent may publish ({@link createPublishList}). Default, and empty: none. */
  publish?: readonly string[];
  /** Who it is for, in words; for logs, the policy and revocation. Default: none. */
  name?: string;
}

/** A verified token. */
export interface Token {
  /** Missing if there are `agents`. */
  readonly agentId?: string;
  /** The agents of a client's token that is for several. */
  readonly agents?: AgentList;
  /** `jti`, for revocation and logs. */
  readonly id?: string;
  /** `sub` and `name`, for logs and the policy. */
  readonly subject?: string;
  readonly name?: string;
  /** `exp`, in milliseconds since 1970. */
  readonly expiresAt: number;
  readonly allowList?: AllowList;
  readonly publish?: PublishList;
  /** {@link VerificationKey.id} of the key that verified it. */
  readonly keyId: string;
}

/**
 * Signs a token and returns it as a compact JWT.
 * @throws {AuthenticationError} `agent-id`
 * @throws {RangeError} naming an invalid pattern
 */
export async function signToken({ algorithm, key }: SigningKey, request: TokenRequest, now = Date.now()): Promise<string> {
  const { agentId, agents, role, audience, durationMs, allow = [], publish = [], name } = request;
  if (agents === undefined) checkAgentId(agentId ?? "");
  else createAgentList(agents);
  createAllowList(allow);
  createPublishList(publish);
  const jwt = new SignJWT({
    ...agents ? { agents: [...agents] } : { agent_id: agentId },
    role,
    ...name !== undefined && { name },
    ...allow.length > 0 && { allow: [...allow] },
    ...publish.length > 0 && { publish: [...publish] },
  }).setIssuer(ISSUER);
  if (agents === undefined) jwt.setSubject(agentId!);
  if (audience !== undefined) jwt.setAudience([audience]);
  return await signNow(jwt, { algorithm, key }, durationMs, now);
}

/**
 * Signs a token with the claims of another one of the same key, expired or not, but a new id and lifetime.
 * @throws {AuthenticationError} if the other one cannot be read, or is of another key
 */
export async function renewToken(text: string, { algorithm, key }: SigningKey, durationMs: number, now = Date.now()): Promise<string> {
  let payload: JWTPayload;
  try {
    const { payload: bytes } = await compactVerify(text, createPublicKey(key), { algorithms: [algorithm] });
    payload = JSON.parse(new TextDecoder().decode(bytes));
  } catch {
    throw new AuthenticationError("denied", "it cannot be read, or another key has signed it");
  }
  return await signNow(new SignJWT(payload), { algorithm, key }, durationMs, now);
}

/** Signs a token that is valid from now on, with a new id. */
export async function signNow(jwt: SignJWT, { algorithm, key }: SigningKey, durationMs: number, now: number): Promise<string> {
  const seconds = Math.floor(now / 1000);
  return await jwt.setProtectedHeader({ alg: algorithm, typ: "JWT" })
    .setIssuedAt(seconds)
    .setNotBefore(seconds)
    .setExpirationTime(seconds + Math.ceil(durationMs / 1000))
    .setJti(randomUUID())
    .sign(key);
}

/** The requirements for a token. */
export interface Expectation {
  role: Role;
  /** Default: not checked. */
  audience?: string;
  /** Current time, in milliseconds since 1970. */
  now: number;
}

/**
 * Verifies a token: the signature by one of `keys`, its validity period, and its claims.
 * @throws {AuthenticationError} `denied`, or `agent-id` for an invalid agent id
 */
export async function verifyToken(text: string, keys: readonly VerificationKey[], expected: Expectation): Promise<Token> {
  const { payload, keyId } = await verifyClaims(text, keys, expected);
  const deny = (why: string) => new AuthenticationError("denied", describe(why, payload), claimsOf(payload));
  const { agent_id: agentId, role, exp, jti, sub, name } = payload;
  if (role !== expected.role) {
    const sender = expected.role === "agent" ? "an agent" : "a client";
    throw deny(
      `has ${role === undefined ? "no role" : `the role ${show(role)}`}, and was sent by ${sender}, ` +
        `whose token needs the role ${show(expected.role)} (auth jwt token --role=${expected.role})`,
    );
  }
  const agents = expected.role === "client" ? readPatterns("agents", payload.agents, createAgentList, deny) : undefined;
  if (agents !== undefined && agentId !== undefined) throw deny("has both agent_id and agents");
  if (agents === undefined && typeof agentId !== "string") throw deny("has no agent_id");
  if (jti !== undefined && typeof jti !== "string") throw deny("has an unusable jti");
  return {
    agentId: agents ? undefined : checkAgentId(String(agentId)),
    agents,
    id: jti,
    subject: typeof sub === "string" ? sub : undefined,
    name: typeof name === "string" ? name : undefined,
    expiresAt: timeOf(exp)!,
    allowList: readPatterns("allow", payload.allow, createAllowList, deny),
    publish: expected.role === "agent" ? readPatterns("publish", payload.publish, createPublishList, deny) : undefined,
    keyId,
  };
}

/**
 * Verifies the signature of a token by one of `keys`, and its validity period.
 * @throws {AuthenticationError} `denied`
 */
export async function verifyClaims(
  text: string,
  keys: readonly VerificationKey[],
  { role, audience, now }: Expectation,
): Promise<{ payload: JWTPayload; keyId: string }> {
  const { algorithm, kid } = readHeader(text, role);
  const isNamed = (key: VerificationKey) => kid !== undefined && (key.kid === kid || key.id === kid);
  // try the key that the token names first: each attempt costs a signature check
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
      ? `The token is signed with ${algorithm}, but no public key is for that algorithm`
      : "The token's signature matches none of the public keys",
  );
}

/**
 * Reads the header of a token that is not verified yet, so the bytes are untrusted.
 * @throws {AuthenticationError}
 */
export function readHeader(text: string, role: Role): { algorithm: TokenAlgorithm; kid?: string } {
  const deny = (what: string) => new AuthenticationError("denied", what);
  if (text === "") throw deny("There is no token");
  if (text.length > MAX_TOKEN) throw deny(`The token has ${text.length} bytes; the limit is ${MAX_TOKEN}`);
  if (!/^[\w-]+\.[\w-]+\.[\w-]*$/.test(text)) throw deny(NO_TOKEN[role]);
  let [alg, kid]: unknown[] = [];
  try {
    ({ alg, kid } = decodeProtectedHeader(text));
  } catch {
    throw deny("The token's header cannot be read");
  }
  const algorithm = ALGORITHMS.find((known) => known === alg);
  if (algorithm === undefined) throw deny(`The token's alg is ${show(alg)}; one of ${ALGORITHMS.join(", ")} is required`);
  return { algorithm, kid: typeof kid === "string" ? kid : undefined };
}

const NO_TOKEN: Readonly<Record<Role, string>> = {
  agent: "The agent's credentials are not a JWT: it needs --auth.type=jwt and --auth.jwt.token",
  client: "The client's credentials are not a JWT, and no ticket: send one as the password; only a ticket fits into one of SOCKS",
};

/** Describes errors in our own words, because the library's may change. */
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
    return `is ${payload.aud === undefined ? "for no audience" : `for the audience ${show(payload.aud)}`}, but this side is ${
      show(audience)
    }`;
  }
  if (reason === "missing") return `has no ${claim}`;
  if (reason === "invalid") return `has an unusable ${claim}`;
  // shows which clock is wrong
  const clock = `; the clock of this machine is at ${showTime(Math.floor(now / 1000))}`;
  if (claim === "exp") return `expired at ${showTime(payload.exp)}${clock}`;
  if (claim === "nbf") return `is not valid before ${showTime(payload.nbf)}${clock}`;
  return `has an unusable ${claim}`;
}

/** A claim that is a list of patterns; `undefined` if it is missing. */
export function readPatterns<T>(
  claim: string,
  value: unknown,
  create: (patterns: string[]) => T,
  deny: (why: string) => AuthenticationError,
): T | undefined {
  if (value === undefined) return undefined;
  // an empty list is hardly intended: one of destinations would allow everything
  if (!Array.isArray(value) || value.length === 0 || !value.every((pattern) => typeof pattern === "string")) {
    throw deny(`has an unusable ${claim}: a list of patterns is required`);
  }
  try {
    return create(value);
  } catch (error) {
    throw deny(`has an unusable ${claim}: ${(error as RangeError).message}`);
  }
}

/** Adds the claims that identify the token. Its signature is valid, so they can be trusted. */
function describe(why: string, { agent_id: agentId, agents, jti }: JWTPayload): string {
  const of = agentId === undefined && agents !== undefined ? `agents ${show(agents)}` : `agent_id ${show(agentId)}`;
  return `The token ${why} (${of}, jti ${show(jti)})`;
}

/** Formats a value, shortened for the log. */
function show(value: unknown): string {
  const text = JSON.stringify(value) ?? "missing";
  return text.length <= 100 ? text : `${text.slice(0, 100)}…`;
}
