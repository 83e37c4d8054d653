// Who a client is: by its credentials, or by its certificate.
import {
  AuthenticationError,
  type Authenticator,
  type ClientCredentials,
  type ClientPeer,
  identifyClient,
  type Identity,
} from "../auth/authenticator.ts";
import type { CertificateIdentities, CertificateIdentity } from "../auth/certificate_identity.ts";
import type { Logger } from "../log/logger.ts";
import type { Incoming } from "../net/listener.ts";
import { printable } from "../net/printable.ts";
import { CredentialsError, TunnelError } from "../tunnel/errors.ts";
import type { RequestRecord } from "./access_log.ts";

/** Time in milliseconds after which a client whose credentials could not be checked may try again. */
export const CHECK_AGAIN_MS = 5_000;

/** Information about a client from its TLS handshake. */
export type TlsPeer = Pick<Incoming, "serverName" | "peerCertificate">;

/** The authenticators for clients. */
export interface AuthenticationRules {
  readonly authenticator: Authenticator;
  /** Reads certificates of clients. Default: none is read. */
  readonly certificates?: Pick<CertificateIdentities, "of">;
  readonly log: Logger;
}

/**
 * Verifies `credentials`; without any, what else is known of `peer`.
 * @param onDenied called if the credentials are denied, not if they cannot be checked
 * @throws {CredentialsError}
 * @throws {TunnelError} if they cannot be checked
 */
export async function authenticateClient(
  { authenticator, log }: AuthenticationRules,
  credentials: ClientCredentials | undefined,
  peer: ClientPeer,
  record: RequestRecord,
  onDenied: (credentials: ClientCredentials) => void,
): Promise<Identity> {
  let identity;
  try {
    identity = credentials === undefined
      ? await authenticator.anonymous?.(peer)
      : await identifyClient(authenticator, credentials, peer, log);
  } catch (cause) {
    if (!(cause instanceof AuthenticationError)) throw cause;
    const { agentId, tokenId } = cause.claims;
    record.agent = agentId && printable(agentId);
    record.token = tokenId && printable(tokenId);
    if (cause.kind === "unavailable") {
      const retryAfterMs = CHECK_AGAIN_MS;
      throw new TunnelError("proxy_internal_error", "The credentials cannot be checked now", { cause, retryAfterMs });
    }
    if (credentials !== undefined) onDenied(credentials);
    // the client does not learn why, unless a webhook says so: the log has the reason
    throw new CredentialsError(`The credentials are not accepted${cause.advice === undefined ? "" : `: ${cause.advice}`}`, { cause });
  }
  if (identity === undefined) throw new CredentialsError("Credentials are required: the agent id as user name");
  return identity;
}

/**
 * Who a client is by its certificate.
 * @param certificate DER; `undefined` if it has presented none
 * @throws {TunnelError} if the certificate names no client
 */
export async function readCertificate(
  { certificates }: AuthenticationRules,
  certificate: Uint8Array | undefined,
): Promise<CertificateIdentity | undefined> {
  if (certificates === undefined || certificate === undefined) return undefined;
  try {
    return await certificates.of(certificate);
  } catch (cause) {
    if (!(cause instanceof AuthenticationError)) throw cause;
    throw new TunnelError("http_request_denied", "The client certificate is not accepted", { cause });
  }
}
