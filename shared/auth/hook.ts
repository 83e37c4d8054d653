// Authentication by a hook of the embedding program instead of a built-in scheme.
import { AuthenticationError, type Authenticator, type ClientCredentials, type Identity } from "./authenticator.ts";

/** A request to authenticate an agent (with the text of its first frame) or a client (with its Proxy-Authorization). */
export type AuthenticationRequest =
  | { readonly role: "agent"; readonly credentials: string; readonly certificate?: Uint8Array }
  | { readonly role: "client" } & ClientCredentials;

/**
 * Authenticates an agent or a client. Returns the agent's id, or for a client the id of the agent that it may reach; `undefined` denies access.
 * An {@link Identity} can also restrict destinations and revoke access later. Throw an {@link AuthenticationError} to deny access with a
 * reason for the log; any other error is logged as an internal error and denies access too.
 */
export type Authenticate = (request: AuthenticationRequest) => string | Identity | undefined | Promise<string | Identity | undefined>;

/** Creates an authenticator from a hook. */
export function createHookAuthenticator(authenticate: Authenticate): Authenticator {
  const call = async (request: AuthenticationRequest): Promise<string | Identity> => {
    const identity = await authenticate(request);
    if (identity === undefined) throw new AuthenticationError("denied", `The ${request.role}'s credentials are not accepted`);
    return identity;
  };
  return {
    authenticateAgent: (bytes, { certificate }) => call({ role: "agent", credentials: decode(bytes), certificate }),
    authenticateClient: (credentials) => call({ role: "client", ...credentials }),
  };
}

function decode(bytes: Uint8Array): string {
  try {
    return new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(bytes);
  } catch (cause) {
    throw new AuthenticationError("denied", `The agent's credentials are not UTF-8: ${(cause as Error).message}`);
  }
}
