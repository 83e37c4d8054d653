// Credentials of a request, and the identity behind them.
import {
  AuthenticationError,
  type Authenticator,
  type ClientCredentials,
  identifyClient,
  type Identity,
  isLoggable,
  parseProxyAuthorization,
} from "../auth/authenticator.ts";
import { type RequestHead, values } from "../http/head.ts";
import type { ClientPermit } from "../limits/client_limits.ts";
import type { Logger } from "../log/logger.ts";
import { printable } from "../net/printable.ts";
import type { RequestRecord } from "./access_log.ts";
import { challenge, toDenial } from "./refusal.ts";

/** @throws {ProxyError} 407 */
export function readCredentials(request: RequestHead): ClientCredentials {
  const given = values(request.fields, "proxy-authorization");
  if (given.length === 0) throw challenge("Credentials are required: the agent id as user name");
  if (given.length > 1) throw challenge("There is more than one Proxy-Authorization field");
  try {
    return parseProxyAuthorization(given[0]!);
  } catch (cause) {
    throw toDenial(cause);
  }
}

/** The user name of Basic credentials, for the log alone. */
export function claimedAgent({ fields }: RequestHead): string | undefined {
  const [given] = values(fields, "proxy-authorization");
  if (given === undefined) return undefined;
  try {
    const credentials = parseProxyAuthorization(given);
    const name = credentials.scheme === "basic" ? credentials.username : "";
    return name !== "" && isLoggable(name) ? printable(name) : undefined;
  } catch {
    return undefined; // readCredentials reports malformed credentials
  }
}

/** @throws {ProxyError} 407 */
export async function identify(
  { authenticator, log }: { readonly authenticator: Authenticator; readonly log: Logger },
  credentials: ClientCredentials,
  permit: ClientPermit | undefined,
  record: RequestRecord,
): Promise<Identity> {
  try {
    return await identifyClient(authenticator, credentials, log);
  } catch (cause) {
    if (cause instanceof AuthenticationError) {
      permit?.recordFailure(credentials);
      const { agentId, tokenId } = cause.claims;
      record.agent = agentId && printable(agentId);
      record.token = tokenId && printable(tokenId);
    }
    throw toDenial(cause);
  }
}
