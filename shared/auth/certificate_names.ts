// Binds agent ids to client certificates: with mutual TLS, an agent's id can be required to be a name in its certificate.
import type { Logger } from "../log/logger.ts";
import { loadX509 } from "../tls/x509.ts";
import { AuthenticationError, type Authenticator, identifyAgent, type Peer } from "./authenticator.ts";

/** The part of a certificate that names the agent: a subject alternative name (RFC 5280 §4.2.1.6), or the common name of the subject. */
export type NameSource = "san" | "cn";

/**
 * Wraps `authenticator`: denies agents whose certificate does not contain the authenticated id. Subject alternative names of the types DNS
 * name, URI and e-mail address are compared, byte by byte.
 */
export function bindToCertificate(authenticator: Authenticator, source: NameSource, log: Logger): Authenticator {
  return {
    async authenticateAgent(credentials, peer) {
      const identity = await identifyAgent(authenticator, credentials, peer, log);
      try {
        await checkNames(peer, source, identity.agentId);
        return identity;
      } catch (error) {
        identity.release?.();
        throw error;
      }
    },
    authenticateClient: (credentials, peer) => authenticator.authenticateClient(credentials, peer),
  };
}

async function checkNames({ certificate }: Peer, source: NameSource, agentId: string): Promise<void> {
  if (certificate === undefined) throw new AuthenticationError("denied", "The agent sent no certificate");
  const names = await readNames(certificate, source);
  if (names.includes(agentId)) return;
  const has = names.length === 0 ? "none" : names.map((name) => JSON.stringify(name)).join(", ");
  const what = source === "san" ? "subject alternative name" : "common name";
  throw new AuthenticationError("denied", `The agent's certificate is not for ${JSON.stringify(agentId)} (${what}: ${has})`);
}

async function readNames(der: Uint8Array, source: NameSource): Promise<string[]> {
  const x509 = await loadX509();
  const certificate = new x509.X509Certificate(new Uint8Array(der));
  if (source === "cn") return certificate.subjectName.getField("CN");
  const extension = certificate.getExtension(x509.SubjectAlternativeNameExtension);
  return extension?.names.items.filter(({ type }) => ["dns", "url", "email"].includes(type)).map(({ value }) => value) ?? [];
}
