// Several identity providers for clients, tried in order: the first one that recognizes the credentials decides.
import {
  agentIdOf,
  AuthenticationError,
  type Authenticator,
  type ClientCredentials,
  type ClientPeer,
  type Identity,
  isToken,
  usernameOf,
} from "./authenticator.ts";

/** A source of identities for clients. */
export interface ClientProvider extends Pick<Authenticator, "anonymous" | "reload" | "close"> {
  /** The name in `auth.clients`. */
  readonly name: string;
  /** @throws {AuthenticationError} if the credentials are denied */
  authenticateClient(credentials: ClientCredentials, peer: ClientPeer): Promise<Identity>;
}

/** Adds the client's identity providers to `agents`, which authenticates agents alone then. Closes and reloads all of them. */
export function withProviders(agents: Authenticator, providers: readonly ClientProvider[]): Authenticator {
  const all = [agents, ...providers];
  const byPeer = providers.find(({ anonymous }) => anonymous !== undefined);
  return {
    authenticateAgent: (credentials, peer) => agents.authenticateAgent(credentials, peer),
    authenticateClient: (credentials, peer) => tryAll(providers, credentials, peer),
    ...byPeer && { anonymous: (peer: ClientPeer) => byPeer.anonymous!(peer) },
    reload: async () => void await Promise.all(all.map((each) => each.reload?.())),
    close() {
      for (const each of all) each.close?.();
    },
  };
}

/**
 * A provider that denies the credentials may not know them, so the next one is tried. One that cannot be reached may know them, so without
 * an acceptance the answer is open.
 */
async function tryAll(providers: readonly ClientProvider[], credentials: ClientCredentials, peer: ClientPeer): Promise<Identity> {
  const denials: [name: string, error: AuthenticationError][] = [];
  for (const provider of providers) {
    try {
      return await provider.authenticateClient(credentials, peer);
    } catch (error) {
      if (!(error instanceof AuthenticationError) || error.kind === "ended") throw error;
      denials.push([provider.name, error]);
    }
  }
  const only = denials.length === 1 ? denials[0]![1] : undefined;
  if (only) throw only;
  const [, { kind, claims, advice }] = denials.find(([, { kind }]) => kind === "unavailable") ??
    denials.find(([, { claims, advice }]) => advice !== undefined || claims.tokenId !== undefined) ?? denials[0]!;
  throw new AuthenticationError(kind, denials.map(([name, { message }]) => `${name}: ${message}`).join("; "), claims, advice);
}

/** What separates the name of a user from the id of an agent. */
export const AGENT_SEPARATOR = "#";

/** Splits a user name of the form `USER#AGENT`; without the agent, its id is empty. */
export function splitUser(username: string): { readonly user: string; readonly agentId: string } {
  const at = username.lastIndexOf(AGENT_SEPARATOR);
  return at < 0 ? { user: username, agentId: "" } : { user: username.slice(0, at), agentId: agentIdOf(username.slice(at + 1)) };
}

/** The user name with which a next hop authenticates the client again, and learns the agent. */
export function usernameFor({ user }: Identity, agentId: string): string {
  return user === undefined ? agentId : `${user}${AGENT_SEPARATOR}${usernameOf(agentId)}`;
}

/** The agent that the user name beside a token stands for; empty if it stands for none. */
export function agentNamedBy(credentials: ClientCredentials): string {
  if (credentials.scheme !== "basic" || isToken(credentials.username)) return ""; // a token must not be logged
  const agentId = agentIdOf(credentials.username);
  // deno-lint-ignore no-control-regex -- what an agent id cannot contain
  return /[\s\x00-\x1f\x7f-\x9f]/.test(agentId) ? "" : agentId;
}
