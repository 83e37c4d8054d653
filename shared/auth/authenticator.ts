// Authenticators: turn the credentials of an agent or a client into an identity, or deny access.
import type { AllowList } from "../address/allow_list.ts";
import type { Authority, Network } from "../address/authority.ts";
import { isolateHook } from "../log/isolate.ts";
import type { Logger } from "../log/logger.ts";
import { type AgentList, ALL_AGENTS } from "./agent_list.ts";
import type { PublishList } from "./publish_list.ts";

/** The credentials of a client. */
export type ClientCredentials =
  | { readonly scheme: "basic"; readonly username: string; readonly password: string }
  | { readonly scheme: "bearer"; readonly token: string };

/** Claims of a token, for the log. */
export interface Claims {
  /** The claim `agent_id`. */
  readonly agentId?: string;
  /** The claim `jti`. */
  readonly tokenId?: string;
}

/** Denied credentials. The message goes to the local log only; the peer learns no reason. */
export class AuthenticationError extends Error {
  /** Always `AuthenticationError`. */
  override readonly name = "AuthenticationError";
  /**
   * Creates an error for the local log.
   * @param kind `agent-id`: an invalid agent id; `ended`: the credentials are known, but expired or revoked, so that no other provider is
   * asked; `unavailable`: they cannot be checked now, and the peer may try again; `denied`: any other reason
   * @param message for the log
   * @param claims of a token whose signature is valid
   * @param advice one line for the client, if it may learn the reason
   */
  constructor(
    readonly kind: "agent-id" | "denied" | "ended" | "unavailable",
    message: string,
    readonly claims: Claims = {},
    readonly advice?: string,
  ) {
    super(message);
  }
}

/** A token cannot be revoked. The message says why, for an operator. */
export class RevocationError extends Error {
  /** Always `RevocationError`. */
  override readonly name = "RevocationError";
}

/** The target of a client's request. */
export interface TunnelTarget {
  /** Id of the agent. */
  readonly agentId: string;
  /** Host and port that the agent is to connect to. */
  readonly destination: Authority;
  /** Whether over TCP or UDP. */
  readonly network: Network;
}

/** The identity of an agent or a client, its permissions, and their end. */
export interface Identity {
  /**
   * 1 to 250 bytes of UTF-8 without white space or control characters. Of a client that may reach several agents, it is the one for
   * destinations that name none, or empty for no such agent.
   */
  readonly agentId: string;
  /** The agents that the client may reach by destinations that name their agent. Default: `agentId` alone. */
  readonly agents?: AgentList;
  /** Destinations that the client may reach, or that the agent may be asked for, in addition to all other lists. Default: any. */
  readonly allowList?: AllowList;
  /** The ports and names that the proxy may publish for the agent while it is connected. Default: none. */
  readonly publish?: PublishList;
  /** Identifies the credentials in logs: the `jti` of a token. */
  readonly tokenId?: string;
  /** Who it is, for logs and the policy: the `sub` of a token, which never changes. Default: not known. */
  readonly subject?: string;
  /** The name that people know. Default: not known. */
  readonly name?: string;
  /** The groups of a person, as their identity provider names them. Default: none. */
  readonly groups?: readonly string[];
  /**
   * The user name that the password belongs to, where it is not the agent's id. A next hop, which authenticates the client again, gets the
   * agent's id behind it and an `@`. Default: the user name names the agent, or anything.
   */
  readonly user?: string;
  /**
   * Called for each tunnel of a client that lists and policy allow, before it is opened. Default: it is allowed.
   * @throws {AuthenticationError} `denied` or `unavailable`
   */
  readonly authorize?: (target: TunnelTarget) => Promise<void>;
  /** The certificate, DER, that has identified the client. lb passes it on to the proxy. Default: it was identified by something else. */
  readonly certificate?: Uint8Array;
  /** Identifies the client for limits. Default: `tokenId`, or else `agentId`. */
  readonly client?: string;
  /** When the credentials expire, in milliseconds since 1970. Default: never, or it is not known. */
  readonly expiresAt?: number;
  /** Aborted when the credentials become invalid; everything opened with them is then closed. The reason, an `Error`, goes to the log. */
  readonly signal?: AbortSignal;
  /** Called once, when everything opened with the credentials is closed. Errors are logged. */
  readonly release?: () => void;
}

/** Information about an agent besides its credentials. */
export interface Peer {
  /** Its certificate from the TLS handshake, DER; `undefined` if it sent none. */
  readonly certificate?: Uint8Array;
}

/** Information about a client besides its credentials. */
export interface ClientPeer {
  /** Its own address, without a port. */
  readonly address: string;
  /** The id of its request in the log. */
  readonly requestId: string;
  /** Its certificate from the TLS handshake, DER, verified; `undefined` if it presented none. */
  readonly certificate?: Uint8Array;
}

/** The end of a session at an identity provider. */
export interface SignedOut {
  /** The `sub` of the person, or the `sid` of the session if the issuer names no person. */
  readonly target: string;
  /** How many connections and tunnels are closed. */
  readonly affected: number;
}

/** An authentication scheme for agents and clients. Returning a string is short for an {@link Identity} with that agent id alone. */
export interface Authenticator {
  /**
   * Identifies the agent that sent `credentials`, the bytes of its first frame.
   * @throws {AuthenticationError} if they are denied
   */
  authenticateAgent(credentials: Uint8Array, peer: Peer): string | Identity | Promise<string | Identity>;
  /**
   * Identifies the client, and the agent that it may reach.
   * @throws {AuthenticationError} if the credentials are denied
   */
  authenticateClient(credentials: ClientCredentials, peer: ClientPeer): string | Identity | Promise<string | Identity>;
  /**
   * The identity of a client without credentials; `undefined` if it needs some. Default: clients need credentials.
   * @throws {AuthenticationError} if what else is known about it is denied
   */
  anonymous?(peer: ClientPeer): Identity | undefined | Promise<Identity | undefined>;
  /** Reloads the files that it uses. Never rejects. */
  reload?(): Promise<void>;
  /**
   * Revokes a token permanently, and closes its connections and tunnels. Returns the number of these.
   * @param comment kept with the token's id
   * @throws {RevocationError} if that cannot be stored
   */
  revoke?(tokenId: string, comment: string): Promise<number>;
  /**
   * Revokes the tokens of a session that has ended, by a logout token of the issuer. Returns its subject, and how many connections and
   * tunnels that closes; `undefined` for a token of another issuer or for another audience.
   * @throws {AuthenticationError} if the token is not valid, or cannot be checked now
   * @throws {RevocationError} if that cannot be stored
   */
  signOut?(logoutToken: string): Promise<SignedOut | undefined>;
  /** Releases its resources. Called by its creator, after the last authentication. */
  close?(): void;
}

/**
 * Authenticates an agent and checks its id. The identity's `release` never throws.
 * @throws {AuthenticationError}
 */
export async function identifyAgent(authenticator: Authenticator, credentials: Uint8Array, peer: Peer, log: Logger): Promise<Identity> {
  const identity = isolated(await authenticator.authenticateAgent(credentials, peer), log);
  return checked(identity, () => checkAgentId(identity.agentId));
}

/**
 * Authenticates a client and checks the agent id. The identity's `release` never throws.
 * @throws {AuthenticationError}
 */
export async function identifyClient(
  authenticator: Pick<Authenticator, "authenticateClient">,
  credentials: ClientCredentials,
  peer: ClientPeer,
  log: Logger,
): Promise<Identity> {
  const identity = isolated(await authenticator.authenticateClient(credentials, peer), log);
  return checked(identity, () => {
    if (identity.agentId !== "" || identity.agents === undefined) checkAgentId(identity.agentId);
  });
}

function isolated(given: string | Identity, log: Logger): Identity {
  return typeof given === "string" ? { agentId: given } : isolateRelease(given, log);
}

function checked(identity: Identity, check: () => void): Identity {
  try {
    check();
  } catch (error) {
    identity.release?.();
    throw error;
  }
  return identity;
}

/** `release` may be a function of an embedding program. */
function isolateRelease(identity: Identity, log: Logger): Identity {
  if (identity.release === undefined) return identity;
  const { agentId, agents, allowList, publish, tokenId, expiresAt, subject, name, groups, user, certificate, client, authorize, signal } =
    identity;
  const release = isolateHook("release", () => identity.release?.(), log);
  return {
    agentId,
    agents,
    allowList,
    publish,
    tokenId,
    expiresAt,
    subject,
    name,
    groups,
    user,
    certificate,
    client,
    authorize,
    signal,
    release,
  };
}

/** What identifies the client for limits: a person, a token, or else the agent. */
export function clientOf({ client, tokenId, agentId }: Pick<Identity, "client" | "tokenId" | "agentId">): string {
  return client ?? tokenId ?? agentId;
}

/** Why `signal` was aborted, for the log. */
export function endReason({ reason }: AbortSignal): string {
  return reason instanceof Error ? reason.message : String(reason);
}

const encoder = new TextEncoder();
const strictDecoder = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });

/** Longest agent id in bytes: the longest memcached key. */
const MAX_AGENT_ID = 250;
/** Most bytes of UTF-8 for a UTF-16 code unit. */
const MAX_UTF8 = 3;

/**
 * Returns `id` if it is a valid agent id: 1 to 250 bytes of UTF-8 without white space or control characters.
 * @throws {AuthenticationError} `agent-id`
 */
export function checkAgentId(id: string): string {
  const fail = (why: string) => new AuthenticationError("agent-id", `Cannot use the agent id: it ${why}`);
  if (id === "") throw fail("is empty");
  const bytes = id.length * MAX_UTF8 <= MAX_AGENT_ID ? 0 : encoder.encode(id).length;
  if (bytes > MAX_AGENT_ID) throw fail(`has ${bytes} bytes, and ${MAX_AGENT_ID} is the limit`);
  // deno-lint-ignore no-control-regex -- matches forbidden characters
  if (/[\s\x00-\x1f\x7f-\x9f]/.test(id)) throw fail("has white space or control characters");
  return id;
}

/**
 * Decodes the agent id in a client's user name. A Basic user name cannot contain a colon (RFC 7617 §2), but an id can: it is written `%3A`,
 * and a literal `%3A` is written `%253A`.
 */
export function agentIdOf(username: string): string {
  return username.replace(/%((?:25)*)3A/gi, (all, escapes: string) => escapes === "" ? ":" : `%${escapes.slice(2)}${all.slice(-2)}`);
}

/** The inverse of {@link agentIdOf}. */
export function usernameOf(agentId: string): string {
  return agentId.replace(/%((?:25)*3A)/gi, "%25$1").replaceAll(":", "%3A");
}

/** A JWT, whose header is JSON in base64url, or a ticket. */
const TOKEN = /^(?:eyJ[\w-]+\.[\w-]+\.[\w-]*|rht_[\w-]{64,})\s*$/;
/** Longest user name that is logged, in characters. */
const MAX_LOGGED = 64;

/** Whether `text` looks like a token. */
export function isToken(text: string): boolean {
  return TOKEN.test(text);
}

/** Whether a user name may be logged: some clients send a token as user name, such as `curl -U "$TOKEN:$TOKEN"`. */
export function isLoggable(username: string): boolean {
  return username.length <= MAX_LOGGED && !TOKEN.test(username);
}

/** Accepts any agent id without verification; a client may reach any agent, and its password is ignored. */
export function createNoAuth(): Authenticator {
  return {
    authenticateAgent(credentials) {
      let id: string;
      try {
        id = strictDecoder.decode(credentials);
      } catch {
        throw new AuthenticationError("agent-id", "Cannot use the agent id: it is not UTF-8");
      }
      if (TOKEN.test(id)) {
        throw new AuthenticationError(
          "agent-id",
          "The agent sent a token, but this side uses --auth.type=noauth: set --auth.type=noauth there, or --auth.type=jwt here",
        );
      }
      return id;
    },
    authenticateClient(credentials) {
      if (credentials.scheme !== "basic") {
        throw new AuthenticationError("denied", "The client sent a token, but --auth.type is noauth");
      }
      // a token is no agent id and must not be logged
      if (TOKEN.test(credentials.username)) {
        throw new AuthenticationError("denied", "The client sent a token as user name, but --auth.type is noauth");
      }
      const agentId = agentIdOf(credentials.username);
      return agentId === "" ? agentId : { agentId, agents: ALL_AGENTS };
    },
    anonymous: () => ({ agentId: "", agents: ALL_AGENTS }),
  };
}
