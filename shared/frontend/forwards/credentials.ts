// For whom a forward opens its tunnels: an identity for which the operator vouches, that of the token in its file, or the client's own.
import { type ClientCredentials, type Identity, usernameOf } from "../../auth/authenticator.ts";
import { usernameFor } from "../../auth/providers.ts";
import { MAX_TOKEN } from "../../auth/token.ts";
import { describeFileError, readText } from "../../files/read.ts";
import { CredentialsError, TunnelError } from "../../tunnel/errors.ts";
import { readCertificate } from "../authentication.ts";
import type { Forward } from "./forwards.ts";
import type { ClientSession } from "../pipeline.ts";

/** The identity of the client of a forward, and the credentials for the next hop. */
export interface ForwardIdentity {
  readonly identity: Identity;
  readonly credentials: ClientCredentials;
  /** Whether the operator vouches for the client without a token; the policy does not apply then. */
  readonly isOperators: boolean;
}

/**
 * The identity of clients that have nothing to show: the operator vouches for them, by a token if the forward has one.
 * @throws {TunnelError} if the token's file cannot be read, or the token is not accepted
 */
export async function identifyForward(session: ClientSession, { agent, tokenFile }: Forward): Promise<ForwardIdentity> {
  const username = usernameOf(agent);
  if (tokenFile === undefined) {
    return { identity: { agentId: agent }, credentials: { scheme: "basic", username, password: "" }, isOperators: true };
  }
  const credentials = { scheme: "basic", username, password: await readForwardToken(tokenFile) } as const;
  const identity = await session.identify(credentials, { isOperators: true });
  if (identity.agentId !== agent) throw new CredentialsError(`The token of the forward is not for the agent ${agent}`);
  return { identity, credentials, isOperators: false };
}

/**
 * The identity of a client by its certificate, where there is one. The forward opens its tunnels as {@link identifyForward} says.
 * @param isRequired whether it needs one; the policy then applies to it
 * @throws {TunnelError} without a certificate, and as {@link identifyForward}
 */
export async function identifyCertificate(session: ClientSession, forward: Forward, isRequired: boolean): Promise<ForwardIdentity> {
  const certificate = await readCertificate(session.context, session.certificate);
  if (certificate === undefined && isRequired) throw new TunnelError("http_request_denied", "A client certificate is required");
  const own = await identifyForward(session, forward);
  if (certificate === undefined) return own;
  const { subject, name, groups, tokenId } = certificate;
  const identity = { ...own.identity, subject, name, groups, tokenId, certificate: isRequired ? session.certificate : undefined };
  session.adopt(identity);
  return { ...own, identity, isOperators: own.isOperators && !isRequired };
}

/**
 * The identity of a client that shows credentials of its own.
 * @param given `undefined` if it shows none
 * @throws {TunnelError}
 */
export async function identifyVisitor(
  session: ClientSession,
  { agent }: Forward,
  given: ClientCredentials | undefined,
): Promise<ForwardIdentity> {
  if (given === undefined) throw new CredentialsError("Credentials are required");
  // the authorities of a forward may not be those of the proxy's clients
  const identity = await session.identify(given, { ignoresCertificate: true });
  const { agentId, agents, allowList, tokenId, subject, name, groups, client, authorize, signal } = identity;
  if (agentId !== agent && !agents?.allows(agent)) {
    throw new TunnelError("http_request_denied", `The credentials are not for the agent ${JSON.stringify(agent)}`);
  }
  session.record.agent = agent;
  const password = given.scheme === "bearer" ? given.token : given.password;
  return {
    identity: { agentId: agent, allowList, tokenId, subject, name, groups, client, authorize, signal },
    credentials: { scheme: "basic", username: identity.user === undefined ? usernameOf(agent) : usernameFor(identity, agent), password },
    isOperators: false,
  };
}

async function readForwardToken(file: string): Promise<string> {
  try {
    return await readToken(file);
  } catch (cause) {
    throw new TunnelError("proxy_configuration_error", "The token of the forward cannot be read", { cause });
  }
}

/** @throws {Error} saying why, without the token */
export async function readToken(file: string): Promise<string> {
  let text;
  try {
    text = (await readText(file, MAX_TOKEN)).trim();
  } catch (cause) {
    throw new Error(`${file}: ${describeFileError(cause)}`, { cause });
  }
  if (text === "") throw new Error(`${file}: the file is empty`);
  return text;
}
