// A program's own way to find out who somebody is, in place of a scheme of ours.
import { AuthenticationError, type Authenticator, type ClientCredentials, type Identity } from "./authenticator.ts";

/** Somebody who wants in: an agent with the text of its first frame, or a client with its Proxy-Authorization. */
export type AuthenticationRequest =
  | { readonly role: "agent"; readonly credentials: string; readonly certificate?: Uint8Array }
  | { readonly role: "client" } & ClientCredentials;

/**
 * Finds out who somebody is. For an agent the answer is its id, for a client the id of the agent that it may reach; `undefined` refuses. With
 * an {@link Identity} it may also limit what is reached, and end it later. To have the log say why it refused, it throws an
 * {@link AuthenticationError}; any other error is logged as a fault of this side, and refuses too.
 */
export type Authenticate = (applicant: AuthenticationRequest) => string | Identity | undefined | Promise<string | Identity | undefined>;

/** The hook as an authenticator. */
export function createHookAuthenticator(authenticate: Authenticate): Authenticator {
  const ask = async (applicant: AuthenticationRequest): Promise<string | Identity> => {
    const answer = await authenticate(applicant);
    if (answer === undefined) throw new AuthenticationError("denied", `The ${applicant.role}'s credentials are not accepted`);
    return answer;
  };
  return {
    authenticateAgent: (bytes, { certificate }) => ask({ role: "agent", credentials: decode(bytes), certificate }),
    authenticateClient: (credentials) => ask({ role: "client", ...credentials }),
  };
}

function decode(bytes: Uint8Array): string {
  try {
    return new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(bytes);
  } catch (cause) {
    throw new AuthenticationError("denied", `The agent's credentials are not UTF-8: ${(cause as Error).message}`);
  }
}
