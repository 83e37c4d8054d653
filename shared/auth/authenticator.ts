// Who is it? Authenticators turn what an agent or a client shows into an agent id, or say no.

/** Proxy-Authorization as a client sent it (RFC 9110 §11.7.2). */
export type ClientCredentials =
  | { readonly scheme: "basic"; readonly username: string; readonly password: string }
  | { readonly scheme: "bearer"; readonly token: string };

/** Says no. The message is for the log of this side; the peer is told only that it was refused. */
export class AuthenticationError extends Error {
  override readonly name = "AuthenticationError";
  /**
   * @param kind `agent-id`: empty, or nothing that can be kept; `denied`: everything else
   */
  constructor(readonly kind: "agent-id" | "denied", message: string) {
    super(message);
  }
}

/** One scheme of authentication, for agents and clients. */
export interface Authenticator {
  /**
   * The id of the agent that showed `credentials`, the bytes of its first frame.
   * @throws {AuthenticationError}
   */
  authenticateAgent(credentials: Uint8Array): string | Promise<string>;
  /**
   * The id of the agent that the client may reach.
   * @throws {AuthenticationError}
   */
  authenticateClient(credentials: ClientCredentials): string | Promise<string>;
}

/** Longest agent id in bytes: the longest key of memcached. */
const MAX_AGENT_ID = 250;

/**
 * Returns `id` where it can be an agent's: 1 to 250 bytes of UTF-8 without white space or control characters.
 * @throws {AuthenticationError} `agent-id`
 */
export function checkAgentId(id: string): string {
  const fail = (why: string) => new AuthenticationError("agent-id", `Cannot use the agent id: it ${why}`);
  if (id === "") throw fail("is empty");
  const bytes = new TextEncoder().encode(id).length;
  if (bytes > MAX_AGENT_ID) throw fail(`has ${bytes} bytes, and ${MAX_AGENT_ID} is the limit`);
  // deno-lint-ignore no-control-regex -- these are what must not be in it
  if (/[\s\x00-\x1f\x7f-\x9f]/.test(id)) throw fail("has white space or control characters");
  return id;
}

/** Everybody is who they say they are; a client's password is ignored. */
export function createNoAuth(): Authenticator {
  return {
    authenticateAgent(credentials) {
      let id: string;
      try {
        id = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(credentials);
      } catch {
        throw new AuthenticationError("agent-id", "Cannot use the agent id: it is not UTF-8");
      }
      return checkAgentId(id);
    },
    authenticateClient(credentials) {
      if (credentials.scheme !== "basic") {
        throw new AuthenticationError("denied", "The client showed a token, and there is no authentication by tokens");
      }
      return checkAgentId(credentials.username);
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
    return new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(Uint8Array.from(atob(text), (c) => c.charCodeAt(0)));
  } catch {
    throw new AuthenticationError("denied", "The client's Basic credentials are not base64 of UTF-8");
  }
}
