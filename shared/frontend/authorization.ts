// Authorizes a client's request: its agent, the allow-lists, the policy, and the provider of its identity.
import type { AllowList } from "../address/allow_list.ts";
import { type Authority, formatAuthority, formatDestination, type Network } from "../address/authority.ts";
import { AuthenticationError, type ClientCredentials, type Identity } from "../auth/authenticator.ts";
import { usernameFor } from "../auth/providers.ts";
import type { Grant, Policy } from "../policy/policy.ts";
import { CredentialsError, TunnelError } from "../tunnel/errors.ts";
import type { TunnelRequest } from "../tunnel/request.ts";
import type { RequestRecord } from "./access_log.ts";
import { splitAgentName } from "./agent_names.ts";
import { CHECK_AGAIN_MS } from "./authentication.ts";

/** By what requests are authorized. */
export interface AuthorizationRules {
  readonly allowList: AllowList;
  /** The policy, in addition to all allow-lists. Default: only the lists apply. */
  readonly policy?: Pick<Policy, "authorize">;
  /** The labels, `name=value`, of each connection of an agent; for the policy. Default: none are known. */
  readonly labelsOf?: (agentId: string) => readonly (readonly string[])[];
  /** Suffix of destinations that name their agent ({@link splitAgentName}). Default: none do. */
  readonly agentSuffix?: string;
  /** Whether the dialer finds the agent of a request that names none. Default `false`: such a request is refused. */
  readonly findsAgent?: boolean;
}

/** A tunnel as a client asks for it: the destination may name an agent. */
interface RequestedTunnel {
  readonly identity: Identity;
  readonly credentials: ClientCredentials | undefined;
  readonly destination: Authority;
}

/** A request to an agent: its id is that of the identity. */
type AgentRequest = Required<Pick<TunnelRequest, "identity" | "credentials" | "destination">>;

/**
 * The agent of the request, from the destination's name or from the credentials, as if the client had given its id as user name: a next hop
 * need not know the suffix.
 * @throws {TunnelError} if there is none, or the credentials are not for it
 */
export function chooseAgent(
  { identity, credentials, destination }: RequestedTunnel,
  { agentSuffix: suffix, findsAgent = false }: AuthorizationRules,
  record: RequestRecord,
): AgentRequest {
  record.destination = formatAuthority(destination);
  const named = splitAgentName(destination, suffix);
  if (named === undefined) {
    if (findsAgent) {
      return { identity, credentials: credentials ?? { scheme: "basic", username: identity.agentId, password: "" }, destination };
    }
    if (identity.agentId !== "" && credentials !== undefined) return { identity, credentials, destination };
    const missing = credentials === undefined ? "Credentials are required" : "The credentials are for several agents, and name none";
    const advice = suffix === undefined ? "" : `, or a destination that ends with .AGENT${suffix}`;
    throw new CredentialsError(`${missing}: the agent id as user name${advice}`);
  }
  const { agentId } = named;
  record.agent = agentId;
  record.destination = formatAuthority(named.destination);
  if (agentId !== identity.agentId && !identity.agents?.allows(agentId)) {
    throw new TunnelError("http_request_denied", `The credentials are not for the agent ${JSON.stringify(agentId)}`);
  }
  const { allowList, tokenId, subject, name, groups, certificate, client, authorize, signal } = identity;
  const password = credentials?.scheme === "bearer" ? credentials.token : credentials?.password ?? "";
  return {
    identity: { agentId, allowList, tokenId, subject, name, groups, certificate, client, authorize, signal },
    credentials: { scheme: "basic", username: usernameFor(identity, agentId), password },
    destination: named.destination,
  };
}

/** @throws {TunnelError} when the destination is not allowed */
export function checkAllowLists(
  { allowList }: AuthorizationRules,
  { destination, identity }: Omit<AgentRequest, "credentials">,
  network: Network,
): void {
  const refuse = (list: string) =>
    new TunnelError("http_request_denied", `${formatDestination(destination, network)} is not on the allow-list of ${list}`);
  if (!allowList.allows(destination, network)) throw refuse("this proxy");
  if (identity.allowList?.allows(destination, network) === false) throw refuse("the credentials");
}

/**
 * Asks the policy.
 * @throws {TunnelError} if it denies the tunnel
 */
export function authorize(
  { policy, labelsOf }: AuthorizationRules,
  { identity, destination }: Omit<AgentRequest, "credentials">,
  network: Network,
): Grant | undefined {
  const { agentId } = identity;
  return policy?.authorize(identity, { agentId, destination, network, labels: labelsOf?.(agentId) ?? [] });
}

/**
 * Asks the provider of the identity.
 * @throws {TunnelError} if it denies the tunnel, or cannot be asked
 */
export async function askProvider(
  authorize: NonNullable<Identity["authorize"]>,
  { identity: { agentId }, destination }: Omit<AgentRequest, "credentials">,
  network: Network,
): Promise<void> {
  try {
    await authorize({ agentId, destination, network });
  } catch (cause) {
    if (!(cause instanceof AuthenticationError)) throw cause;
    if (cause.kind === "unavailable") {
      throw new TunnelError("proxy_internal_error", "The tunnel cannot be authorized now", { cause, retryAfterMs: CHECK_AGAIN_MS });
    }
    const advice = cause.advice === undefined ? "" : `: ${cause.advice}`;
    throw new TunnelError("http_request_denied", `${formatDestination(destination, network)} is not allowed${advice}`, { cause });
  }
}

/**
 * The identity of a forward's tunnel after its credentials were verified again.
 * @throws {TunnelError} if they are not for its agent
 */
export function identityForForward({ agentId, agents, allowList, signal, authorize }: Identity, given: Identity): Identity {
  if (agentId === given.agentId || agents?.allows(given.agentId)) return { ...given, allowList, signal, authorize };
  throw new TunnelError("http_request_denied", `The credentials are not for the agent ${JSON.stringify(given.agentId)}`);
}
