// Which agent is a client certificate for? With mutual TLS, an agent's id may have to be a name in the certificate that it shows.
import type { Logger } from "../log/logger.ts";
import { loadX509 } from "../tls/revocation.ts";
import { AuthenticationError, type Authenticator, identifyAgent, type Peer } from "./authenticator.ts";

/** The part of a certificate that names the agent: a subject alternative name (RFC 5280 §4.2.1.6), or the common name of the subject. */
export type NameSource = "san" | "cn";

/**
 * Lets `authenticator` decide who the agent is, and refuses it where its certificate is not for that id. Of alternative names, DNS names, URIs
 * and e-mail addresses count; they are compared byte by byte, as ids are.
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
    authenticateClient: (credentials) => authenticator.authenticateClient(credentials),
  };
}

async function checkNames({ certificate }: Peer, source: NameSource, agentId: string): Promise<void> {
  if (certificate === undefined) throw new AuthenticationError("denied", "The agent showed no certificate");
  const names = await readNames(certificate, source);
  if (names.includes(agentId)) return;
  const has = names.length === 0 ? "none" : names.map((name) => JSON.stringify(name)).join(", ");
  const what = source === "san" ? "subject alternative name" : "common name";
  throw new AuthenticationError("denied", `The agent's certificate is not for ${JSON.stringify(agentId)}: as ${what} it has ${has}`);
}

async function readNames(der: Uint8Array, source: NameSource): Promise<string[]> {
  const x509 = await loadX509();
  const certificate = new x509.X509Certificate(new Uint8Array(der));
  if (source === "cn") return certificate.subjectName.getField("CN");
  const extension = certificate.getExtension(x509.SubjectAlternativeNameExtension);
  return extension?.names.items.filter(({ type }) => ["dns", "url", "email"].includes(type)).map(({ value }) => value) ?? [];
}
