// Who is it? Authenticators turn what an agent or a client shows into an identity, or say no.
import type { AllowList } from "../address/allow_list.ts";
import { isolateHook } from "../log/isolate.ts";
import type { Logger } from "../log/logger.ts";

/** Proxy-Authorization as a client sent it (RFC 9110 §11.7.2). */
export type ClientCredentials =
  | { readonly scheme: "basic"; readonly username: string; readonly password: string }
  | { readonly scheme: "bearer"; readonly token: string };

/** Who a token names, and its `jti`. */
export interface Claims {
  /** Its `agent_id`. */
  readonly agentId?: string;
  /** Its `jti`. */
  readonly tokenId?: string;
}

/** Says no. The message is for the log of this side; the peer is told only that it was refused. */
export class AuthenticationError extends Error {
  /** Always that. */
  override readonly name = "AuthenticationError";
  /**
   * What it says goes to the log.
   * @param kind `agent-id`: empty, or nothing that can be kept; `denied`: everything else
   * @param claims what was shown says of itself, where its signature is good
   */
  constructor(readonly kind: "agent-id" | "denied", message: string, readonly claims: Claims = {}) {
    super(message);
  }
}

/** Who an agent or a client is, what it may do, and until when. */
export interface Identity {
  /** 1 to 250 bytes of UTF-8 without white space or control characters. */
  readonly agentId: string;
  /** The destinations that its bearer may reach, or be asked for, on top of what all other lists allow. Default: no further limit. */
  readonly allowList?: AllowList;
  /** Names what was shown, in the logs: the `jti` of a token. */
  readonly tokenId?: string;
  /** Aborted when what was shown no longer counts: everything opened with it then ends. The reason, an `Error`, goes to the log. */
  readonly signal?: AbortSignal;
  /** Called once, when nothing is left that was opened with it. Where it fails, that is logged and changes nothing. */
  readonly release?: () => void;
}

/** What is known of an agent besides its credentials. */
export interface Peer {
  /** The certificate it showed in the TLS handshake, DER. */
  readonly certificate?: Uint8Array;
}

/** One scheme of authentication, for agents and clients. Where an id says it all, the id alone will do. */
export interface Authenticator {
  /**
   * Who the agent is that showed `credentials`, the bytes of its first frame.
   * @throws {AuthenticationError}
   */
  authenticateAgent(credentials: Uint8Array, peer: Peer): string | Identity | Promise<string | Identity>;
  /**
   * Who the client is, and with it the agent that it may reach.
   * @throws {AuthenticationError}
   */
  authenticateClient(credentials: ClientCredentials): string | Identity | Promise<string | Identity>;
  /** Reads its files again now. Never rejects. */
  reload?(): Promise<void>;
  /** Called by whoever made it, when nobody will ask it any more. */
  close?(): void;
}

/**
 * Asks `authenticator`, and sees to it that the id can be one. The identity's `release` never throws.
 * @throws {AuthenticationError}
 */
export async function identifyAgent(authenticator: Authenticator, credentials: Uint8Array, peer: Peer, log: Logger): Promise<Identity> {
  return checkIdentity(await authenticator.authenticateAgent(credentials, peer), log);
}

/**
 * Asks `authenticator`, and sees to it that the id can be one. The identity's `release` never throws.
 * @throws {AuthenticationError}
 */
export async function identifyClient(authenticator: Authenticator, credentials: ClientCredentials, log: Logger): Promise<Identity> {
  return checkIdentity(await authenticator.authenticateClient(credentials), log);
}

function checkIdentity(given: string | Identity, log: Logger): Identity {
  const identity = typeof given === "string" ? { agentId: given } : isolateRelease(given, log);
  try {
    checkAgentId(identity.agentId);
  } catch (error) {
    identity.release?.();
    throw error;
  }
  return identity;
}

/** An embedding program's authenticator has a function of its own as `release`. */
function isolateRelease(identity: Identity, log: Logger): Identity {
  if (identity.release === undefined) return identity;
  const { agentId, allowList, tokenId, signal } = identity;
  return { agentId, allowList, tokenId, signal, release: isolateHook("release", () => identity.release?.(), log) };
}

/** Why `signal` was aborted, in words for the log. */
export function endReason({ reason }: AbortSignal): string {
  return reason instanceof Error ? reason.message : String(reason);
}

const encoder = new TextEncoder();
const strictDecoder = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });

/** Longest agent id in bytes: the longest key of memcached. */
const MAX_AGENT_ID = 250;

/**
 * Returns `id` where it can be an agent's: 1 to 250 bytes of UTF-8 without white space or control characters.
 * @throws {AuthenticationError} `agent-id`
 */
export function checkAgentId(id: string): string {
  const fail = (why: string) => new AuthenticationError("agent-id", `Cannot use the agent id: it ${why}`);
  if (id === "") throw fail("is empty");
  const bytes = encoder.encode(id).length;
  if (bytes > MAX_AGENT_ID) throw fail(`has ${bytes} bytes, and ${MAX_AGENT_ID} is the limit`);
  // deno-lint-ignore no-control-regex -- these are what must not be in it
  if (/[\s\x00-\x1f\x7f-\x9f]/.test(id)) throw fail("has white space or control characters");
  return id;
}

/**
 * The agent id that a client's user name stands for. No user name of Basic can have a colon (RFC 7617 §2), and an id can: `%3A` stands for one.
 * An id that has `%3A` itself is written with `%253A`.
 */
export function agentIdOf(username: string): string {
  return username.replace(/%((?:25)*)3A/gi, (all, escapes: string) => escapes === "" ? ":" : `%${escapes.slice(2)}${all.slice(-2)}`);
}

/** A JWT, whose header is JSON in base64url. */
const TOKEN = /^eyJ[\w-]+\.[\w-]+\.[\w-]*\s*$/;
/** Longest user name in the log, in characters. */
const MAX_LOGGED = 64;

/** Whether the user name may be in the log: some clients send a token there, as `curl -U "$TOKEN:$TOKEN"` does. */
export function isLoggable(username: string): boolean {
  return username.length <= MAX_LOGGED && !TOKEN.test(username);
}

/** Everybody is who they say they are; a client's password is ignored. */
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
          "The agent showed a token, and there is no authentication by tokens here: it needs --auth.type=noauth, or this side --auth.type=jwt",
        );
      }
      return id;
    },
    authenticateClient(credentials) {
      if (credentials.scheme !== "basic") {
        throw new AuthenticationError("denied", "The client showed a token, and there is no authentication by tokens");
      }
      // no agent can have such an id, and it would be in the log
      if (TOKEN.test(credentials.username)) {
        throw new AuthenticationError("denied", "The client showed a token as user name, and there is no authentication by tokens");
      }
      return agentIdOf(credentials.username);
    },
  };
}

/**
 * Reads the value of Proxy-Authorization: `Basic` (RFC 7617) or `Bearer` (RFC 6750).
 * @throws {AuthenticationError} `denied`
 */
export function parseProxyAuthorization(value: string): ClientCredentials {
  const [, scheme, rest] = /^([A-Za-z]+) +([A-Za-z0-9._~+/-]+=*)$/.exec(value) ?? [];
  switch (scheme?.toLowerCase()) {
    case "basic": {
      const text = decodeBase64(rest!);
      const colon = text.indexOf(":");
      if (colon < 0) throw new AuthenticationError("denied", "The client's Basic credentials have no colon");
      return { scheme: "basic", username: text.slice(0, colon), password: text.slice(colon + 1) };
    }
    case "bearer":
      return { scheme: "bearer", token: rest! };
    default:
      throw new AuthenticationError("denied", "The client's Proxy-Authorization is neither Basic nor Bearer");
  }
}

function decodeBase64(text: string): string {
  try {
    const binary = atob(text);
    const bytes = new Uint8Array(binary.length);
    for (let i = 0; i < bytes.length; i++) bytes[i] = binary.charCodeAt(i);
    return strictDecoder.decode(bytes);
  } catch {
    throw new AuthenticationError("denied", "The client's Basic credentials are not base64 of UTF-8");
  }
}
