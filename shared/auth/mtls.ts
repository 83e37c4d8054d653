// Authentication of clients by their TLS certificates. Closes tunnels whose certificate has expired or is revoked by name.
import { ConfigError } from "../config/option.ts";
import type { Logger } from "../log/logger.ts";
import { ALL_AGENTS } from "./agent_list.ts";
import { AuthenticationError, type ClientPeer, type Identity } from "./authenticator.ts";
import { CertificateIdentities, type CertificateIdentity, type MtlsOptions } from "./certificate_identity.ts";
import type { OnExpiry } from "./jwt.ts";
import { LiveCredentials, watchCredentials } from "./live_credentials.ts";
import { agentNamedBy, type ClientProvider } from "./providers.ts";
import { RevocationFile } from "./revocation_file.ts";

export interface MtlsDeps {
  readonly log: Logger;
  /** File with revoked names, subjects and fingerprints. Default: none. */
  readonly revocationFile?: string;
  /** Whether an expired certificate closes the client's tunnels: only with `close`. */
  readonly onExpiry: OnExpiry;
  /** Milliseconds since 1970. Default `Date.now`. */
  readonly now?: () => number;
}

/**
 * Creates a provider for clients whose certificate the TLS listener has verified. Their user name is that of the agent, and their password has
 * no meaning.
 * @throws {ConfigError} for an invalid file
 */
export async function createMtlsProvider(options: MtlsOptions, deps: MtlsDeps): Promise<ClientProvider> {
  const { log, revocationFile, onExpiry, now = Date.now } = deps;
  const identities = new CertificateIdentities(options);
  const revocations = revocationFile === undefined ? undefined : await RevocationFile.open(revocationFile, log);
  const live = new LiveCredentials<CertificateIdentity>();
  const problemOf = ({ tokenId: id, subject, name }: CertificateIdentity) =>
    revocations?.revokes({ id, subject, name }) ? "The certificate is revoked" : undefined;
  const identify = async ({ certificate }: ClientPeer, agentId: string): Promise<Identity> => {
    if (certificate === undefined) throw new AuthenticationError("denied", "The client sent no certificate");
    const client = await identities.of(certificate);
    const { subject, name, groups, tokenId, expiresAt } = client;
    // on a connection that is kept open it was verified long ago
    if (expiresAt <= now()) {
      throw new AuthenticationError("ended", `The certificate expired at ${new Date(expiresAt).toISOString()}`, { tokenId });
    }
    const problem = problemOf(client);
    if (problem !== undefined) throw new AuthenticationError("ended", problem, { tokenId });
    const use = live.add(client, onExpiry === "close" ? expiresAt : Infinity);
    return { agentId, agents: ALL_AGENTS, subject, name, groups, tokenId, expiresAt, client: `mtls ${subject}`, certificate, ...use };
  };
  const { reload, close } = watchCredentials(live, { revocations, problemOf, now });
  return {
    name: "mtls",
    authenticateClient: (credentials, peer) => identify(peer, agentNamedBy(credentials)),
    anonymous: async (peer) => peer.certificate === undefined ? undefined : await identify(peer, ""),
    reload,
    close,
  };
}

/** The options for certificates of clients. */
export interface ClientCertificateOptions {
  readonly auth: { readonly clients: readonly string[]; readonly mtls: Pick<MtlsOptions, "trustClientCert"> };
  readonly httpProxy: {
    readonly trustedProxies: readonly string[];
    readonly tls: { readonly enable: boolean; readonly file: { readonly clientCa?: string } };
  };
}

/**
 * Checks that the clients' port, or a proxy in front, verifies certificates if clients are known by them.
 * @throws {ConfigError}
 */
export function checkClientCertificates({ auth: { clients, mtls }, httpProxy }: ClientCertificateOptions): void {
  const { trustedProxies, tls: { enable, file } } = httpProxy;
  const fail = (why: string) => new ConfigError(`Cannot use --auth.mtls.trust-client-cert: ${why}`);
  if (mtls.trustClientCert) {
    if (!clients.includes("mtls")) throw fail("--auth.clients does not name mtls");
    if (trustedProxies.length === 0) throw fail("--http-proxy.trusted-proxies names no proxy");
    return;
  }
  if (!clients.includes("mtls") || (enable && file.clientCa)) return;
  throw new ConfigError(
    "Cannot use --auth.clients: mtls needs --http-proxy.tls.enable and --http-proxy.tls.file.client-ca, or behind lb " +
      "--auth.mtls.trust-client-cert",
  );
}
